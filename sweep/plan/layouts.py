"""Parallel layouts: which are valid for a model on a class of setups under a program."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sweep.catalogs.models import Model
from sweep.kernels.tables import Choices, Classes, Layouts, Splits
from sweep.plan.programs import LayoutRule


class Layout(NamedTuple):
    """Degrees of each parallelism but data, which takes what GPUs are left."""

    tp: int
    pp: int
    cp: int
    ep: int
    sequence_parallel: bool


@dataclass(frozen=True)
class Signature:
    """What a layout's validity depends on in a workload: the degrees its model and length allow."""

    tp: tuple[int, ...]
    pp: tuple[int, ...]
    cp: tuple[int, ...]
    ep: tuple[int, ...]
    fixed: tuple[tuple[str, object], ...] = ()


def signature_of(
    model: Model, seq_len: int, fixed: Mapping[str, object], values: Mapping[str, tuple[int, ...]]
) -> Signature:
    """The signature of a workload; equal ones share their lists of layouts.

    Heads split evenly over tp, layers fill pp stages, sequences split over cp, experts over ep.
    """
    heads, experts = model.num_attention_heads, model.num_experts or 0
    return Signature(
        tp=tuple(tp for tp in values["tp"] if heads % tp == 0),
        pp=tuple(pp for pp in values["pp"] if pp <= model.num_hidden_layers),
        cp=tuple(cp for cp in values["cp"] if seq_len % cp == 0),
        ep=tuple(ep for ep in values["ep"] if ep == 1 or (experts > 0 and experts % ep == 0)),
        fixed=tuple(sorted(fixed.items())),
    )


def list_layouts(values: Mapping[str, tuple[int, ...]]) -> list[Layout]:
    """Every combination of degrees asked for, in knob order; sequence parallel only with tp > 1."""
    return [
        Layout(tp, pp, cp, ep, bool(sequence))
        for tp, pp, cp, ep, sequence in itertools.product(
            values["tp"], values["pp"], values["cp"], values["ep"], values["sequence_parallel"]
        )
        if tp > 1 or not sequence
    ]


def is_valid(
    layout: Layout, signature: Signature, gpus: int, gpus_per_node: int, rule: LayoutRule
) -> bool:
    """Whether a layout works: the conditions at the end of docs/physics.md."""
    tp, pp, cp, ep, sequence = layout
    if gpus % (tp * pp * cp):
        return False
    shards = gpus // (tp * pp)
    return (
        tp <= gpus_per_node
        and gpus_per_node % tp == 0
        and tp in signature.tp
        and pp in signature.pp
        and cp in signature.cp
        and ep in signature.ep
        and shards % ep == 0
        and (rule.tensor or tp == 1)
        and (rule.sequence or not sequence)
        and (rule.pipeline or pp == 1)
        and (rule.context or cp == 1)
        and (rule.expert or ep == 1)
        and not (rule.needs_shards and shards == 1)
        and all(getattr(layout, name) == value for name, value in signature.fixed)
    )


def layout_tables(layouts: Sequence[Layout]) -> tuple[Layouts, Splits]:
    """The kernels' layout table, and the distinct (tp, sequence parallel, ep) among it."""
    splits: dict[tuple[int, bool, int], int] = {}
    rows = [
        splits.setdefault((one.tp, one.sequence_parallel, one.ep), len(splits)) for one in layouts
    ]
    table = Layouts(
        tp=np.array([one.tp for one in layouts], np.int64),
        pp=np.array([one.pp for one in layouts], np.int64),
        cp=np.array([one.cp for one in layouts], np.int64),
        ep=np.array([one.ep for one in layouts], np.int64),
        sequence_parallel=np.array([one.sequence_parallel for one in layouts], np.int64),
        split=np.array(rows, np.int64),
    )
    keys = list(splits)
    return table, Splits(
        tp=np.array([key[0] for key in keys], np.int64),
        sequence_parallel=np.array([key[1] for key in keys], np.int64),
        ep=np.array([key[2] for key in keys], np.int64),
    )


@dataclass(frozen=True)
class LayoutChoices:
    """The kernels' choices, and how many (layout, micro-batch) pairs each has by global batch."""

    table: Choices
    pairs: np.ndarray  # [signature, class, rule, global batch, micro-batch axis value or all]


def _valid_pairs(
    layouts: Sequence[Layout],
    gpus: int,
    micro_batches: Sequence[int],
    global_batches: Sequence[int],
) -> np.ndarray:
    """(layout, micro-batch) pairs that divide a global batch evenly, by batch; the last column sums."""
    data_parallel = np.array([gpus // (one.tp * one.pp * one.cp) for one in layouts], np.int64)
    per_step = data_parallel[:, None] * np.array(micro_batches, np.int64)[None, :]
    counts = np.array([(batch % per_step == 0).sum(axis=0) for batch in global_batches])
    return np.concatenate([counts, counts.sum(axis=1, keepdims=True)], axis=1)


def layout_choices(
    layouts: Sequence[Layout],
    signatures: Sequence[Signature],
    classes: Classes,
    rules: Sequence[LayoutRule],
    program_rules: Sequence[int],
    micro_batches: Sequence[int],
    global_batches: Sequence[int],
) -> LayoutChoices:
    """Valid layouts of every (signature, class, rule), as lists the kernels walk, with their counts."""
    shape = (len(signatures), len(classes.gpus), len(rules))
    first = np.zeros(shape, np.int64)
    last = np.zeros(shape, np.int64)
    flat: list[int] = []
    # One more than the micro-batches: the last column counts all of them.
    pairs = np.zeros((*shape, len(global_batches), len(micro_batches) + 1), np.int64)
    known: dict[tuple[int, ...], tuple[int, int]] = {}
    counted: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}
    for s, signature in enumerate(signatures):
        for k in range(len(classes.gpus)):
            gpus, per_node = int(classes.gpus[k]), int(classes.gpus_per_node[k])
            for r, rule in enumerate(rules):
                found = tuple(
                    y
                    for y, layout in enumerate(layouts)
                    if is_valid(layout, signature, gpus, per_node, rule)
                )
                if found not in known:
                    known[found] = (len(flat), len(flat) + len(found))
                    flat += found
                first[s, k, r], last[s, k, r] = known[found]
                if not found:
                    continue
                if (gpus, found) not in counted:
                    counted[gpus, found] = _valid_pairs(
                        [layouts[y] for y in found], gpus, micro_batches, global_batches
                    )
                pairs[s, k, r] = counted[gpus, found]
    table = Choices(
        first=first,
        last=last,
        layout_list=np.array(flat or [0], np.int64),
        rule=np.array(program_rules, np.int64),
        micro_batches=np.array(micro_batches, np.int64),
    )
    return LayoutChoices(table, pairs)
