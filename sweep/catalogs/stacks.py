"""Training stacks as data: what each supports, its dtype rules, optimizers, loss heads and constants."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.catalogs.bands import Band, BandBook, load_bands
from sweep.catalogs.folder import read_catalog
from sweep.catalogs.form_book import FormBook
from sweep.catalogs.hardware import Gpu, split_list
from sweep.catalogs.layer_forms import load_kernel_changes, load_layer_forms
from sweep.catalogs.stack_columns import (
    ARCHITECTURE_COLUMNS,
    CONSTANT_COLUMNS,
    CONSTANTS,
    EFFICIENCY_COLUMNS,
    FAMILY_COLUMNS,
    FLAGS,
    LISTS,
    LOSS_COLUMNS,
    OPTIMIZER_COLUMNS,
    RELEASE_COLUMNS,
    RULE_COLUMNS,
    RULE_NUMBERS,
    STACK_COLUMNS,
)
from sweep.catalogs.time_bands import TimeBand, TimeBandBook, load_time_bands
from sweep.errors import Problem, nearest


@dataclass(frozen=True)
class Stack:
    """One training stack: what it supports and its constants (SI units, see CONSTANTS).

    A stack that extends another takes over the rules, loss heads and constants it does not state;
    `lineage` is its own key and those of the stacks it extends, nearest first.
    """

    key: str
    title: str
    lineage: tuple[str, ...]
    kernels: str
    supports: Mapping[str, tuple[Any, ...]]
    flags: Mapping[str, bool]
    constants: Mapping[str, float]


@dataclass(frozen=True)
class DtypeRule:
    """How (stack, method, precision, ZeRO stage) holds its tensors; `bytes` are per element."""

    stack: str
    method: str
    precision: str
    zero_stages: tuple[int, ...]
    weight_dtype: str
    autocast: bool
    adapter_dtype: str
    kbit_prep: bool
    compute_dtype: str
    bytes: Mapping[str, float]
    note: str


@dataclass(frozen=True)
class Optimizer:
    """State bytes per element = state_dtype_multiple x dtype + state_fixed_bytes, and its step."""

    key: str
    state_dtype_multiple: float
    state_fixed_bytes: float
    temp_weight_multiple: float
    temp_tensor_bytes: float
    traffic_passes: float


@dataclass(frozen=True)
class LossHead:
    """Bytes a logit takes in forward and backward; None keeps the dtype rule's figure."""

    logit_forward: float | None
    logit_backward: float | None
    traffic_share: float


@dataclass(frozen=True)
class Release:
    """What an older release of a stack's framework did otherwise: its loss head and its kernels.

    `before` is the first release it does not hold for; `kernels` hold for the model types named.
    """

    stack: str
    before: tuple[int, ...]
    cross_entropy: str
    logit_forward: float | None
    logit_backward: float | None
    kernels: str
    model_types: tuple[str, ...]


def parse_release(text: str) -> tuple[int, ...]:
    """A release number as a tuple: '4.48.1' is (4, 48, 1); ValueError for other text."""
    return tuple(int(part) for part in text.strip().split("."))


@dataclass(frozen=True)
class Efficiency:
    """Sustained shares of the dense peak; `assumed` names the figures nobody measured.

    `matmul8_share` and `matmul4_share` are of the 8- and 4-bit peaks, None where nothing is known.
    Attention is a share of the 16-bit peak, by generation of its kernel: the best the GPU has, the
    second FlashAttention and the first.
    """

    matmul_share: float
    matmul8_share: float | None
    matmul4_share: float | None
    attention_share: float
    attention_fa2_share: float
    attention_fa1_share: float
    assumed: tuple[str, ...]


@dataclass(frozen=True)
class StackBook:
    """Everything the catalogs say about stacks, layers and sustained rates."""

    stacks: Mapping[str, Stack]
    rules: Mapping[tuple[str, str, str, int], DtypeRule]
    optimizers: Mapping[str, Optimizer]
    loss_heads: Mapping[tuple[str, str], LossHead]
    family_of: Mapping[tuple[str, str, str], str]
    basis_of: Mapping[str, str]
    fused_family_of: Mapping[str, str]
    forms: FormBook
    efficiencies: Mapping[str, Efficiency]
    releases: tuple[Release, ...]
    bands: BandBook
    time_bands: TimeBandBook

    def with_stack(self, stack: Stack) -> StackBook:
        """The book with this stack in place of the one of its key."""
        return dataclasses.replace(self, stacks={**self.stacks, stack.key: stack})

    def with_rule(self, key: tuple[str, str, str, int], rule: DtypeRule) -> StackBook:
        """The book with this dtype rule under a key (stack, method, precision, zero_stage)."""
        return dataclasses.replace(self, rules={**self.rules, key: rule})

    def with_rule_bytes(
        self, key: tuple[str, str, str, int], changes: Mapping[str, float]
    ) -> StackBook:
        """The book with some bytes of one dtype rule changed, by their names in RULE_NUMBERS."""
        rule = self.rules[key]
        return self.with_rule(key, dataclasses.replace(rule, bytes={**rule.bytes, **changes}))

    def memory_band(self, stack: str, method: str, figure: str = "allocated") -> Band:
        """How far the measured peaks of a stack and method lie from the predicted ones."""
        return self.bands.find(self.stacks[stack].lineage, method, figure)

    def time_band(self, stack: str, method: str, gpu: Gpu, experts: bool = False) -> TimeBand:
        """How far measured step times of a stack and method lie from the predicted ones on a GPU.

        `experts`: the model has experts.
        """
        lineage = self.stacks[stack].lineage
        return self.time_bands.find(lineage, method, self.time_measured(gpu), experts)

    def time_measured(self, gpu: Gpu) -> bool:
        """Whether somebody measured what share of its peak a GPU sustains."""
        return "matmul_share" not in self.efficiency(gpu).assumed

    def release(self, stack: str, cross_entropy: str, number: tuple[int, ...]) -> Release | None:
        """What a release did otherwise than the current one, None when nothing is known to differ."""
        held = [
            one
            for one in self.releases
            if one.stack in self.stacks[stack].lineage
            and one.cross_entropy == cross_entropy
            and number < one.before
        ]
        return min(held, key=lambda one: one.before, default=None)

    def family(self, stack: str, key: str, model_type: str, name: str, kind: str) -> str | None:
        """The layer family of one kind of layer on a stack, None when the catalog knows none.

        A row for the model's own key goes before one for its Transformers class `name`, that before
        one for its model type.
        """
        for row in ((key, "*", kind), (model_type, name, kind), (model_type, "*", kind)):
            if family := self.family_of.get(row):
                break
        else:
            return None
        if self.stacks[stack].flags["fused_layers"]:
            return self.fused_family_of.get(family) or None
        return family

    def efficiency(self, gpu: Gpu) -> Efficiency:
        """Sustained shares of a GPU: its own row, else its architecture's, else the general one."""
        for name in (gpu.key, f"arch:{gpu.arch}"):
            if name in self.efficiencies:
                return self.efficiencies[name]
        return self.efficiencies["arch:*"]


def _words(row: Mapping[str, Any], name: str, path: Path) -> tuple[tuple[Any, ...], list[Problem]]:
    allowed = LISTS[name]
    by_text = {str(word): word for word in allowed}
    found = split_list(row[name])
    problems = []
    for text in found:
        if text not in by_text:
            close = nearest(text, by_text)
            fix = f"did you mean {close!r}?" if close else ""
            where = f"{path}:{row['_line']}, {name}"
            problems.append(Problem(where, "word", repr(text), ", ".join(by_text), fix))
    return tuple(by_text[text] for text in found if text in by_text), problems


def _load_stacks(folders: Sequence[Path]) -> tuple[dict[str, Stack], list[Problem]]:
    rows, problems = read_catalog(folders, "stacks.csv", STACK_COLUMNS, ("stack",))
    constant_rows, more = read_catalog(
        folders, "stack_constants.csv", CONSTANT_COLUMNS, ("stack", "name")
    )
    problems += more
    constants: dict[str, dict[str, float]] = {}
    for row in constant_rows:
        if row["unit"] != CONSTANTS[row["name"]]:
            where = f"{row['_path']}:{row['_line']}, unit"
            problems.append(Problem(where, "unit", repr(row["unit"]), CONSTANTS[row["name"]]))
        constants.setdefault(row["stack"], {})[row["name"]] = row["value"]
    stacks: dict[str, Stack] = {}
    for row in rows:
        supports = {}
        for name in LISTS:
            supports[name], more = _words(row, name, row["_path"])
            problems += more
        key = row["stack"]
        lineage: tuple[str, ...] = (key,)
        if parent := row["extends"]:
            if parent not in stacks:
                where = f"{row['_path']}:{row['_line']}, extends"
                allowed = "a stack of an earlier row: " + ", ".join(stacks)
                problems.append(Problem(where, "stack", repr(parent), allowed))
                continue
            lineage = (key, *stacks[parent].lineage)
            constants[key] = {**constants.get(parent, {}), **constants.get(key, {})}
        for name in CONSTANTS:
            if name not in constants.get(key, {}):
                where = f"{row['_path']}:{row['_line']}"
                problems.append(
                    Problem(where, f"stack {key}", f"no {name}", "a row in stack_constants.csv")
                )
        flags = {name: row[name] for name in FLAGS}
        stacks[key] = Stack(
            key,
            row["title"],
            lineage,
            row["kernels"] or "",
            supports,
            flags,
            constants.get(key, {}),
        )
    return stacks, problems


def _load_rules(
    folders: Sequence[Path],
) -> tuple[dict[tuple[str, str, str, int], DtypeRule], list[Problem]]:
    key = ("stack", "method", "precision", "zero_stages")
    rows, problems = read_catalog(folders, "dtype_rules.csv", RULE_COLUMNS, key)
    rules = {}
    for row in rows:
        stages, more = _words(row, "zero_stages", row["_path"])
        problems += more
        rule = DtypeRule(
            stack=row["stack"],
            method=row["method"],
            precision=row["precision"],
            zero_stages=stages,
            weight_dtype=row["weight_dtype"],
            autocast=row["autocast"],
            adapter_dtype=row["adapter_dtype"],
            kbit_prep=row["kbit_prep"],
            compute_dtype=row["compute_dtype"],
            bytes={name: row[name] for name in RULE_NUMBERS},
            note=row["locator"] or "",
        )
        for stage in stages:
            rules[rule.stack, rule.method, rule.precision, stage] = rule
    return rules, problems


def _load_releases(folders: Sequence[Path]) -> tuple[tuple[Release, ...], list[Problem]]:
    key = ("stack", "before", "cross_entropy")
    rows, problems = read_catalog(folders, "stack_releases.csv", RELEASE_COLUMNS, key)
    releases = []
    for row in rows:
        try:
            before = parse_release(row["before"])
        except ValueError:
            where = f"{row['_path']}:{row['_line']}, before"
            problems.append(Problem(where, "release", repr(row["before"]), "a number like 4.48"))
            continue
        releases.append(
            Release(
                row["stack"],
                before,
                row["cross_entropy"],
                row["logit_forward"],
                row["logit_backward"],
                row["kernels"] or "",
                split_list(row["model_types"] or ""),
            )
        )
    return tuple(releases), problems


def _inherit(
    stacks: Mapping[str, Stack],
    rules: dict[tuple[str, str, str, int], DtypeRule],
    heads: dict[tuple[str, str], LossHead],
) -> None:
    """Fill in what a stack takes over from the stack it extends."""
    for key, stack in stacks.items():
        for parent in stack.lineage[1:]:
            for (owner, method, precision, stage), rule in list(rules.items()):
                if owner == parent:
                    rules.setdefault((key, method, precision, stage), rule)
            for (owner, cross_entropy), head in list(heads.items()):
                if owner == parent:
                    heads.setdefault((key, cross_entropy), head)


def load_stacks(folders: Sequence[Path]) -> tuple[StackBook, list[Problem]]:
    """The stack catalogs of the given folders (later ones overlay), and every problem in them."""
    stacks, problems = _load_stacks(folders)
    rules, more = _load_rules(folders)
    problems += more
    optimizer_rows, more = read_catalog(
        folders, "optimizers.csv", OPTIMIZER_COLUMNS, ("optimizer",)
    )
    problems += more
    head_rows, more = read_catalog(
        folders, "loss_heads.csv", LOSS_COLUMNS, ("stack", "cross_entropy")
    )
    problems += more
    architecture_rows, more = read_catalog(
        folders,
        "architectures.csv",
        ARCHITECTURE_COLUMNS,
        ("model_type", "transformers_class", "kind"),
    )
    problems += more
    family_rows, more = read_catalog(folders, "layer_families.csv", FAMILY_COLUMNS, ("family",))
    problems += more
    efficiency_rows, more = read_catalog(folders, "efficiencies.csv", EFFICIENCY_COLUMNS, ("gpu",))
    problems += more
    forms, more = load_layer_forms(folders)
    problems += more
    changes, more = load_kernel_changes(folders)
    problems += more
    heads = {
        (row["stack"], row["cross_entropy"]): LossHead(
            row["logit_forward"], row["logit_backward"], row["traffic_share"]
        )
        for row in head_rows
    }
    _inherit(stacks, rules, heads)
    releases, more = _load_releases(folders)
    problems += more
    bands, more = load_bands(folders)
    problems += more
    time_bands, more = load_time_bands(folders, stacks)
    problems += more
    families = {row["family"]: row for row in family_rows}
    for row in architecture_rows:
        if row["family"] not in families:
            where = f"{row['_path']}:{row['_line']}, family"
            problems.append(Problem(where, "family", row["family"], ", ".join(families)))
    for row in family_rows:
        if row["like"] and row["like"] not in families:
            where = f"{row['_path']}:{row['_line']}, like"
            problems.append(Problem(where, "family", row["like"], ", ".join(families)))
    for variant in forms:
        if variant.family not in families:
            problems.append(
                Problem("layer_forms.csv", "family", variant.family, ", ".join(families))
            )
    book = StackBook(
        stacks=stacks,
        rules=rules,
        optimizers={
            row["optimizer"]: Optimizer(
                row["optimizer"],
                row["state_dtype_multiple"],
                row["state_fixed_bytes"],
                row["temp_weight_multiple"],
                row["temp_tensor_bytes"],
                row["traffic_passes"],
            )
            for row in optimizer_rows
        },
        loss_heads=heads,
        family_of={
            (row["model_type"], row["transformers_class"], row["kind"]): row["family"]
            for row in architecture_rows
        },
        basis_of={row["family"]: row["basis"] for row in architecture_rows},
        fused_family_of={name: row["fused_family"] or "" for name, row in families.items()},
        forms=FormBook(
            {v: f for v, f in forms.items() if v.family in families},
            {name: row["mlp"] for name, row in families.items()},
            {name: row["like"] or "" for name, row in families.items()},
            frozenset(name for name, row in families.items() if row["fp32_norm_output"]),
            changes,
        ),
        releases=releases,
        bands=bands,
        time_bands=time_bands,
        efficiencies={
            row["gpu"]: Efficiency(
                row["matmul_share"],
                row["matmul8_share"],
                row["matmul4_share"],
                row["attention_share"],
                row["attention_fa2_share"],
                row["attention_fa1_share"],
                split_list(row["assumed"]),
            )
            for row in efficiency_rows
        },
    )
    return book, problems
