"""From a spec and the catalogs to the axis tables of a sweep: no files, no formulas."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweep.catalogs import Catalogs
from sweep.catalogs.bands import Band
from sweep.catalogs.hardware import Gpu
from sweep.catalogs.stacks import StackBook
from sweep.catalogs.time_bands import TimeBand
from sweep.errors import PlanError
from sweep.kernels.tables import Classes, Forms, Kinds, Splits, Workloads, pack
from sweep.kernels.tables import Layouts as LayoutTable
from sweep.plan.cases import Case, build_case, case_table
from sweep.plan.layouts import (
    Layout,
    LayoutChoices,
    layout_choices,
    layout_tables,
    list_layouts,
    signature_of,
)
from sweep.plan.programs import (
    PROGRAM_COLUMNS,
    LayoutRule,
    Program,
    check_stacks,
    layout_rule,
    list_programs,
    program_table,
    rule_of,
    stack_table,
    unmet_wishes,
)
from sweep.plan.questions import LAYOUT_COLUMNS, Workload, choose_models, list_workloads
from sweep.plan.rivals import rival_table
from sweep.plan.setups import (
    PricedOffer,
    Setup,
    SetupRates,
    Shape,
    class_table,
    kind_table,
    list_setups,
    list_shapes,
    priced_offers,
    setup_rates,
    setup_table,
)
from sweep.plan.shapes import ModelShape, model_shape, model_table
from sweep.spec import Spec


@dataclass(frozen=True)
class KernelTables:
    """The axis tables as kernels take them; models, programs, cases and stacks as records."""

    workloads: Workloads
    layouts: LayoutTable
    splits: Splits
    models: np.ndarray
    features: np.ndarray
    forms: Forms
    programs: np.ndarray
    cases: np.ndarray
    stacks: np.ndarray
    setups: np.ndarray
    classes: Classes
    kinds: Kinds


@dataclass(frozen=True)
class Plan:
    """One sweep, ready to run: what is asked, on what, how, at what price, and how many scenarios.

    `candidates` [W, K] counts the knob combinations of each workload on each class of setups;
    `basis` says of each form row whether it was traced or derived; `memory_bands` has the band of
    each program's memory, `time_bands` those of its time on GPUs measured and not,
    `expert_time` what multiplies these for a model with experts.
    """

    spec: Spec
    gpus: Mapping[str, Gpu]
    shapes: Mapping[str, ModelShape]
    workloads: tuple[Workload, ...]
    programs: tuple[Program, ...]
    cases: tuple[Case, ...]
    layouts: tuple[Layout, ...]
    micro_batches: tuple[int, ...]
    global_batches: tuple[int, ...]
    offers: tuple[PricedOffer, ...]
    hardware_shapes: tuple[Shape, ...]
    setups: tuple[Setup, ...]
    rates: tuple[SetupRates, ...]
    tables: KernelTables
    choices: LayoutChoices
    candidates: np.ndarray
    basis: tuple[str, ...]
    memory_bands: tuple[Band, ...]
    time_bands: tuple[tuple[TimeBand, TimeBand], ...]
    expert_time: TimeBand

    @property
    def class_sizes(self) -> np.ndarray:
        """Setups in each class [K]."""
        sizes: np.ndarray = self.tables.classes.last - self.tables.classes.first
        return sizes

    @property
    def scenarios(self) -> int:
        """Knob combinations over all workloads and setups."""
        return int((self.candidates @ self.class_sizes).sum())

    @property
    def pairs(self) -> int:
        """Workload x setup pairs: the rows of keep = 'best'."""
        return len(self.workloads) * len(self.setups)

    @property
    def knob_count(self) -> int:
        """Knob numbers: programs x global batches x layouts x micro-batches."""
        return (
            len(self.programs)
            * len(self.global_batches)
            * len(self.layouts)
            * len(self.micro_batches)
        )


def _workload_table(
    workloads: Sequence[Workload],
    model_rows: Mapping[str, int],
    signature_rows: Sequence[int],
    case_lists: Sequence[Sequence[int]],
    micro_batches: Sequence[int],
    global_batches: Sequence[int],
) -> Workloads:
    lengths = np.array([len(rows) for rows in case_lists], np.int64)
    ends = np.cumsum(lengths)
    batch_lists = []
    first_micro, last_micro = [], []
    for workload in workloads:
        fixed = workload.fixed(("global_batch", "micro_batch"))
        batch = fixed.get("global_batch")
        batch_lists.append(
            list(range(len(global_batches))) if batch is None else [global_batches.index(batch)]
        )
        micro = fixed.get("micro_batch")
        first_micro.append(0 if micro is None else micro_batches.index(micro))
        last_micro.append(len(micro_batches) if micro is None else first_micro[-1] + 1)
    batch_lengths = np.array([len(rows) for rows in batch_lists], np.int64)
    batch_ends = np.cumsum(batch_lengths)
    batch_index = np.array([row for rows in batch_lists for row in rows], np.int64)
    return Workloads(
        model=np.array([model_rows[workload.model] for workload in workloads], np.int64),
        seq_len=np.array([workload.seq_len for workload in workloads], np.int64),
        vision_flop=np.array([workload.vision_flop for workload in workloads]),
        signature=np.array(signature_rows, np.int64),
        first_case=ends - lengths,
        last_case=ends,
        case_list=np.array([row for rows in case_lists for row in rows] or [0], np.int64),
        first_batch=batch_ends - batch_lengths,
        last_batch=batch_ends,
        batch_list=np.array(global_batches, np.int64)[batch_index],
        batch_index=batch_index,
        first_micro=np.array(first_micro, np.int64),
        last_micro=np.array(last_micro, np.int64),
    )


def windows_beyond(shape: ModelShape, seq_len: int) -> tuple[bool, ...]:
    """Of each layer group, whether a sequence is longer than its attention window."""
    return tuple(seq_len > group.window for group in shape.groups)


class _CaseBook:
    """Builds each distinct case once: most programs share weights and forms."""

    def __init__(self, catalogs: Catalogs):
        self._book = catalogs.stacks
        self._built: dict[tuple[Any, ...], Case] = {}
        self.cases: list[Case] = []
        self.program_rows: list[int] = []
        self._rows: dict[tuple[Any, ...], int] = {}

    def row(self, shape: ModelShape, program: Program, program_row: int, seq_len: int) -> int:
        """The row of a model under a program; sequence length matters to sliding windows only."""
        beyond = windows_beyond(shape, seq_len)
        key = (shape.model.key, program_row, beyond)
        if key not in self._rows:
            rule = rule_of(program, self._book)
            same = (shape.model.key, id(rule), program[1:9], beyond)
            if same not in self._built:
                self._built[same] = build_case(shape, program, seq_len, self._book)
            self._rows[key] = len(self.cases)
            self.cases.append(self._built[same])
            self.program_rows.append(program_row)
        return self._rows[key]


def _candidate_counts(
    workloads: Workloads,
    cases_program: np.ndarray,
    choices: LayoutChoices,
    program_rules: np.ndarray,
    micro_count: int,
) -> np.ndarray:
    rules = choices.pairs.shape[2]
    counts = np.zeros((len(workloads.model), choices.pairs.shape[1]), np.int64)
    for w in range(len(workloads.model)):
        rows = workloads.case_list[workloads.first_case[w] : workloads.last_case[w]]
        of_rule = np.bincount(program_rules[cases_program[rows]], minlength=rules)
        first, last = workloads.first_micro[w], workloads.last_micro[w]
        column = micro_count if last - first == micro_count else first
        batches = workloads.batch_index[workloads.first_batch[w] : workloads.last_batch[w]]
        pairs = choices.pairs[workloads.signature[w]][:, :, batches, column].sum(axis=2)
        counts[w] = pairs @ of_rule
    return counts


def build_plan(spec: Spec, catalogs: Catalogs, today: dt.date | None = None) -> Plan:
    """Build every table of a sweep; raises PlanError when nothing would be left to evaluate."""
    book = catalogs.stacks
    check_stacks(spec.values("stack"), book, spec.path)
    models = choose_models(spec, catalogs.models)
    shapes = {key: model_shape(model) for key, model in models.items()}
    workloads = list_workloads(spec, shapes)
    offers = priced_offers(spec, catalogs, today or dt.date.today())
    if not offers:
        raise PlanError(
            f"{spec.path}: hardware: no offer is left; found {_asked(spec)}; widen gpus, providers, "
            "regions, instances or price_models (see `sweep catalog list offers`)"
        )
    hardware_shapes = list_shapes(offers, catalogs.gpus)
    setups = list_setups(spec, hardware_shapes, catalogs.gpus)
    if not setups:
        raise PlanError(
            f"{spec.path}: hardware: no setup is left; every machine has more GPUs than "
            f"max_gpus = {spec.hardware.max_gpus}, or node_counts are beyond what is owned, or no "
            "source states the network of the machines (set assume_network_gbps, or allow 1 node)"
        )
    rates = [
        setup_rates(
            setup,
            hardware_shapes[setup.shape],
            catalogs.gpus[hardware_shapes[setup.shape].gpu],
            book,
            spec.hardware.assume_network_gbps,
        )
        for setup in setups
    ]
    classes = class_table(setups, hardware_shapes, catalogs.gpus)

    values = {name: spec.values(name) for name in (*PROGRAM_COLUMNS, *LAYOUT_COLUMNS)}
    programs = [
        program for method in spec.axes["method"] for program in list_programs(method, values, book)
    ]
    if not programs:
        raise PlanError(
            f"{spec.path}: no stack of {', '.join(spec.values('stack'))} supports any combination "
            "of the methods, precisions, optimizers, ZeRO stages and offloads asked for"
            f"{''.join(unmet_wishes(spec.axes['method'], values, book))}; see `sweep catalog show "
            f"stacks {spec.values('stack')[0]}`"
        )
    rules: list[LayoutRule] = []
    program_rules = []
    for program in programs:
        rule = layout_rule(program, book)
        if rule not in rules:
            rules.append(rule)
        program_rules.append(rules.index(rule))
    layouts = list_layouts(values)
    layout_table, splits = layout_tables(layouts)
    micro_batches = tuple(sorted(spec.values("micro_batch")))
    global_batches = tuple(spec.values("global_batch"))

    case_book = _CaseBook(catalogs)
    signatures: list[Any] = []
    signature_index: dict[Any, int] = {}
    signature_rows = []
    case_lists = []
    known_lists: dict[Any, list[int]] = {}
    for workload in workloads:
        shape = shapes[workload.model]
        signature = signature_of(
            shape.model, workload.seq_len, workload.fixed(LAYOUT_COLUMNS), values
        )
        if signature not in signature_index:
            signature_index[signature] = len(signatures)
            signatures.append(signature)
        signature_rows.append(signature_index[signature])
        fixed = workload.fixed(PROGRAM_COLUMNS)
        beyond = windows_beyond(shape, workload.seq_len)
        same = (workload.model, workload.method, beyond, tuple(fixed.items()))
        if same not in known_lists:
            known_lists[same] = [
                case_book.row(shape, program, row, workload.seq_len)
                for row, program in enumerate(programs)
                if program.method == workload.method
                and all(getattr(program, name) == value for name, value in fixed.items())
            ]
        case_lists.append(known_lists[same])
    choices = layout_choices(
        layouts, signatures, classes, rules, program_rules, micro_batches, global_batches
    )
    model_rows = {key: row for row, key in enumerate(shapes)}
    workload_table = _workload_table(
        workloads, model_rows, signature_rows, case_lists, micro_batches, global_batches
    )
    stack_names = tuple(dict.fromkeys(program.stack for program in programs))
    cases, forms, basis = case_table(case_book.cases, case_book.program_rows, book)
    models_table, features = model_table(list(shapes.values()))
    candidates = _candidate_counts(
        workload_table, cases.program, choices, np.array(program_rules), len(micro_batches)
    )
    setups_table = setup_table(rates, spec.constraints.memory_headroom)
    packed_programs = pack(program_table(programs, stack_names, book))
    packed_cases = pack(cases)
    rivals = rival_table(workload_table, packed_cases, packed_programs, np.array(program_rules))
    plan = Plan(
        spec=spec,
        gpus=catalogs.gpus,
        shapes=shapes,
        workloads=tuple(workloads),
        programs=tuple(programs),
        cases=tuple(case_book.cases),
        layouts=tuple(layouts),
        micro_batches=micro_batches,
        global_batches=global_batches,
        offers=tuple(offers),
        hardware_shapes=tuple(hardware_shapes),
        setups=tuple(setups),
        rates=tuple(rates),
        tables=KernelTables(
            workloads=workload_table,
            layouts=layout_table,
            splits=splits,
            models=pack(models_table),
            features=features,
            forms=forms,
            programs=packed_programs,
            cases=packed_cases,
            stacks=pack(stack_table(stack_names, book)),
            setups=setups_table,
            classes=classes,
            kinds=kind_table(setups_table, classes, rivals),
        ),
        choices=choices,
        candidates=candidates,
        basis=tuple(basis),
        memory_bands=tuple(book.memory_band(one.stack, one.method) for one in programs),
        time_bands=tuple(_time_bands(one, book) for one in programs),
        expert_time=book.time_bands.expert_factor(),
    )
    if plan.scenarios == 0:
        raise PlanError(
            f"{spec.path}: no scenario is left: no layout is valid for any model on any setup; check "
            "that global_batches are multiples of micro_batches x data-parallel ranks, and tp, pp, "
            "cp, ep against the models and machines"
        )
    return plan


def _time_bands(program: Program, book: StackBook) -> tuple[TimeBand, TimeBand]:
    lineage = book.stacks[program.stack].lineage
    return (
        book.time_bands.find(lineage, program.method, measured=True),
        book.time_bands.find(lineage, program.method, measured=False),
    )


def _asked(spec: Spec) -> str:
    hardware = spec.hardware
    return (
        f"gpus {list(hardware.gpus)}, providers {list(hardware.providers)}, regions "
        f"{list(hardware.regions)}, instances {list(hardware.instances)}, price_models "
        f"{list(hardware.price_models)}"
    )
