"""Cases: what a model weighs, trains and keeps under a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sweep.catalogs.architecture import adapter_rank
from sweep.catalogs.layer_forms import (
    FEATURE_INDEX,
    FEATURES,
    Form,
    LayerForms,
    LayerVariant,
)
from sweep.catalogs.parameters import LayerGroup, Linear, ParameterCounts
from sweep.catalogs.stacks import StackBook
from sweep.errors import PlanError
from sweep.kernels.tables import EMBED, EXPERT, HEAD, LINEAR, OTHER, VISION, Cases, Forms
from sweep.plan.programs import QUANTIZED_BYTES, SCALE_BYTES, Program, rule_of
from sweep.plan.shapes import (
    FEATURE_BY_RANK,
    FEATURE_BY_SEQ,
    FEATURE_ROUTED,
    FEATURE_SPLIT,
    FEATURE_TOKEN,
    ModelShape,
)

# Model types that scale their embedding: where inputs need gradients (frozen weights, checkpointing)
# the unscaled one stays too. Source: traced checkpointed steps (hf-trace-2026).
_SCALED_EMBEDDING = ("granite", "granitemoe")
# Kinds of attention projections that read a layer's input, which layer 0 need not keep a mask for.
_INPUT_TARGETS = {"attention-qv": 2.0, "attention": 3.0, "all-linear": 3.0}


@dataclass(frozen=True)
class Case:
    """One model under one program, by part [bytes, elements]; what the kernels' Cases row holds."""

    variants: tuple[LayerVariant, ...]
    frozen_bytes: tuple[float, ...]
    trained: tuple[float, ...]
    group_frozen_bytes: tuple[tuple[float, float, float], ...]
    group_trained: tuple[tuple[float, float, float], ...]
    layer_frozen_bytes: tuple[float, float, float]
    layer_trained: tuple[float, float, float]
    matrix_elements: tuple[float, float]
    quantized_elements: tuple[float, float]
    adapter_active: float
    adapter_io: float
    adapted: float
    largest_trained: float
    first_layer_saving: float
    scale_bytes: float
    vision_kept_bytes: float = 0.0


@dataclass(frozen=True)
class _GroupParts:
    """One layer of a group: stored bytes and trained elements of its matrices, rest and experts."""

    frozen: tuple[float, float, float]
    trained: tuple[float, float, float]
    matrices: tuple[float, float]
    quantized: tuple[float, float]
    adapter_active: float
    adapter_io: float
    adapted: float
    largest: float


def form_target(program: Program) -> str:
    """The traced LoRA target nearest to a program's: a list of projections keeps as much as one."""
    if "+" not in program.lora_target:
        return program.lora_target
    listed = set(program.lora_target.split("+"))
    if listed & {"gate", "up", "down"}:
        return "all-linear"
    return "attention" if listed & {"k", "o"} else "attention-qv"


def variant_of(
    shape: ModelShape, group: LayerGroup, program: Program, seq_len: int, book: StackBook
) -> LayerVariant:
    """The layer variant of a group under a program; raises PlanError for an unknown layer."""
    model = shape.model
    kind = group.kind
    # A sequence that fits the window meets the same kernels as a layer without one.
    if kind == "sliding" and group.window and seq_len < group.window:
        kind = "global"
    name = model.transformers_class or ""
    family = None
    for one in (kind, group.kind):
        family = family or book.family(program.stack, model.key, model.model_type, name, one)
    if family is None:
        raise PlanError(
            f"{model.key}: no layer form for {kind} layers of {model.model_type} on stack "
            f"{program.stack}; add a row to architectures.csv or leave the model out"
        )
    rule = rule_of(program, book)
    assert rule is not None
    eager_only = {"gemma2", "bloom", "gptoss"}
    return LayerVariant(
        family=family,
        method=program.method,
        weight_dtype=rule.weight_dtype,
        autocast=rule.autocast,
        adapter_dtype=rule.adapter_dtype,
        lora_target=form_target(program),
        dropout=program.lora_dropout > 0.0,
        kbit_prep=rule.kbit_prep,
        attention="eager" if family in eager_only else program.attention,
        checkpointing=program.checkpointing,
        kernels=book.stacks[program.stack].kernels,
    )


def _matrix_bytes(linear: Linear, program: Program, plain_bytes: float) -> float:
    """Stored bytes of a frozen matrix and its bias."""
    bias = (linear.params - linear.weight_elements) * plain_bytes
    if program.method == "qlora" and linear.is_linear_module:
        return linear.weight_elements * QUANTIZED_BYTES[program.quantization] + bias
    # Experts stay 16-bit: preparing them for k-bit training would double them, which nobody does.
    width = 2.0 if linear.role == "expert" else plain_bytes
    return linear.weight_elements * width + bias


def _group_parts(
    shape: ModelShape, group: LayerGroup, program: Program, frozen_bytes: float
) -> _GroupParts:
    frozen = [0.0, (group.norm_params + group.other_params) * frozen_bytes, 0.0]
    trained = [0.0, 0.0, 0.0]
    matrices = [0.0, 0.0]
    quantized = [0.0, 0.0]
    active = io = adapted = largest = 0.0
    k = float(group.experts_per_token or 0)
    full = program.method == "full"
    for linear in group.linears:
        expert = linear.role == "expert"
        part = EXPERT if expert else LINEAR
        side = 1 if expert else 0
        used = k if expert else float(linear.copies)
        matrices[side] += linear.weight_elements
        if full:
            trained[part] += linear.params
            largest = max(largest, float(linear.weight_elements))
            continue
        frozen[part] += _matrix_bytes(linear, program, frozen_bytes)
        if program.method == "qlora" and linear.is_linear_module:
            quantized[side] += linear.weight_elements
        rank = adapter_rank(linear, shape.counts, program.lora_rank, program.lora_target)
        if rank:
            ends = linear.in_features + linear.out_features
            trained[part] += linear.copies * rank * ends
            active += used * rank * ends
            io += used * ends
            adapted += 1.0 if expert else float(linear.copies)
            largest = max(
                largest, float(linear.copies * rank * max(linear.in_features, linear.out_features))
            )
    if full:
        trained[OTHER] = float(group.norm_params + group.other_params)
        frozen[OTHER] = 0.0
    return _GroupParts(
        (frozen[0], frozen[1], frozen[2]),
        (trained[0], trained[1], trained[2]),
        (matrices[0], matrices[1]),
        (quantized[0], quantized[1]),
        active,
        io,
        adapted,
        largest,
    )


def _tower_bytes(counts: ParameterCounts, program: Program) -> float:
    """Stored bytes of a frozen vision tower: 4-bit loading quantises its linear modules too."""
    if counts.vision is None:
        return 0.0
    quantized = 0.0
    if program.method == "qlora":
        tower = counts.vision
        blocks = sum(one.weight_elements for one in tower.block if one.is_linear_module)
        joins = sum(one.weight_elements for one in tower.projector if one.is_linear_module)
        quantized = float(tower.depth * blocks + joins)
    plain = counts.vision.total - quantized
    return plain * 2.0 + quantized * QUANTIZED_BYTES.get(program.quantization, 2.0)


def build_case(
    shape: ModelShape,
    program: Program,
    seq_len: int,
    book: StackBook,
    *,
    variants: tuple[LayerVariant, ...] | None = None,
) -> Case:
    """One model under one program. The vision tower is frozen: it is stored, it does not train.

    `variants` are the layers' forms; without them they are looked up, and () asks for none.
    """
    counts = shape.counts
    rule = rule_of(program, book)
    assert rule is not None
    stored = rule.bytes["frozen_bytes"]
    full = program.method == "full"
    groups = [_group_parts(shape, one.group, program, stored) for one in shape.groups]
    sizes = [one.group.count for one in shape.groups]
    frozen = [0.0] * 6
    trained = [0.0] * 6
    for size, parts in zip(sizes, groups, strict=True):
        for part in (LINEAR, OTHER, EXPERT):
            frozen[part] += size * parts.frozen[part]
            trained[part] += size * parts.trained[part]
    head = counts.lm_head + counts.final_norm + counts.root_other
    if full:
        trained[EMBED], trained[HEAD] = float(counts.embedding), float(head)
    else:
        frozen[EMBED], frozen[HEAD] = counts.embedding * stored, head * stored
    frozen[VISION] = _tower_bytes(counts, program)
    largest_layer = max(groups, key=lambda parts: sum(parts.frozen) + 2.0 * sum(parts.trained))
    saving = 0.0
    lineage = book.stacks[program.stack].lineage
    if not full and program.checkpointing == "none" and "hf" in lineage:
        masks = _INPUT_TARGETS[form_target(program)] if program.lora_dropout > 0.0 else 0.0
        saving = (4.0 + masks) * shape.model.hidden_size + 4.0
    elif not full and "hf" in lineage and shape.model.model_type in _SCALED_EMBEDDING:
        saving = -2.0 * shape.model.hidden_size
    quantized = _total(sizes, [parts.quantized for parts in groups])
    if variants is None:
        variants = tuple(
            variant_of(shape, one.group, program, seq_len, book) for one in shape.groups
        )
    return Case(
        variants=variants,
        frozen_bytes=tuple(frozen),
        trained=tuple(trained),
        group_frozen_bytes=tuple(parts.frozen for parts in groups),
        group_trained=tuple(parts.trained for parts in groups),
        layer_frozen_bytes=largest_layer.frozen,
        layer_trained=largest_layer.trained,
        matrix_elements=_total(sizes, [parts.matrices for parts in groups]),
        quantized_elements=quantized,
        adapter_active=sum(
            n * parts.adapter_active for n, parts in zip(sizes, groups, strict=True)
        ),
        adapter_io=sum(n * parts.adapter_io for n, parts in zip(sizes, groups, strict=True)),
        adapted=sum(n * parts.adapted for n, parts in zip(sizes, groups, strict=True)),
        largest_trained=max(
            [parts.largest for parts in groups] + ([float(counts.embedding)] if full else [])
        ),
        first_layer_saving=saving,
        scale_bytes=sum(quantized) * SCALE_BYTES.get(program.quantization, 0.0),
    )


def _total(sizes: Sequence[int], pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    first = sum(size * pair[0] for size, pair in zip(sizes, pairs, strict=True))
    second = sum(size * pair[1] for size, pair in zip(sizes, pairs, strict=True))
    return first, second


def _dominated(row: np.ndarray, others: list[np.ndarray]) -> bool:
    return any(bool(np.all(other >= row)) for other in others)


def _vector(form: Form) -> np.ndarray:
    vector = np.zeros(len(FEATURES))
    for name, coefficient in form.items():
        vector[FEATURE_INDEX[name]] = coefficient
    return vector


def form_table(forms: Sequence[LayerForms]) -> Forms:
    """The kernels' form table, one row a variant; sets that another of them covers are left out."""
    backward: list[list[np.ndarray]] = []
    for one in forms:
        rows: list[np.ndarray] = []
        for form in one.backward:
            vector = _vector(form)
            if not _dominated(vector, rows):
                rows = [row for row in rows if not np.all(vector >= row)]
                rows.append(vector)
        backward.append(rows)
    most = max((len(rows) for rows in backward), default=1)
    table = np.zeros((len(forms), max(1, most), len(FEATURES)))
    for index, rows in enumerate(backward):
        for row, vector in enumerate(rows):
            table[index, row] = vector
    return Forms(
        keep=np.array([_vector(one.keep) for one in forms]),
        cached=np.array([_vector(one.cached) for one in forms]),
        backward=table,
        backward_count=np.array([len(rows) for rows in backward], np.int64),
        token=FEATURE_TOKEN,
        split=FEATURE_SPLIT,
        by_seq=FEATURE_BY_SEQ,
        by_rank=FEATURE_BY_RANK,
        routed=FEATURE_ROUTED,
    )


def _by_group(values: Sequence[Sequence[tuple[float, float, float]]]) -> np.ndarray:
    """Values by group and part [C, 2, 3], zeros where a model has one group."""
    table = np.zeros((len(values), 2, 3))
    for row, groups in enumerate(values):
        table[row, : len(groups)] = groups
    return table


def case_table(
    cases: Sequence[Case], program_rows: Sequence[int], book: StackBook
) -> tuple[Cases, Forms, list[str]]:
    """The kernels' case and form tables, and the basis of each form row."""
    rows: dict[LayerVariant, int] = {}
    forms: list[LayerForms] = []
    variant = np.zeros((len(cases), 2), np.int64)
    for index, case in enumerate(cases):
        for g, one in enumerate(case.variants):
            if one not in rows:
                resolved = book.forms.resolve(one)
                if resolved is None:
                    raise PlanError(f"no layer forms for {one}; add rows to layer_forms.csv")
                rows[one] = len(forms)
                forms.append(resolved)
            variant[index, g] = rows[one]
    table = Cases(
        program=np.array(program_rows, np.int64),
        variant=variant,
        frozen_bytes=np.array([case.frozen_bytes for case in cases]),
        trained=np.array([case.trained for case in cases]),
        group_frozen_bytes=_by_group([case.group_frozen_bytes for case in cases]),
        group_trained=_by_group([case.group_trained for case in cases]),
        layer_frozen_bytes=np.array([case.layer_frozen_bytes for case in cases]),
        layer_trained=np.array([case.layer_trained for case in cases]),
        matrix_elements=np.array([case.matrix_elements for case in cases]),
        quantized_elements=np.array([case.quantized_elements for case in cases]),
        adapter_active=np.array([case.adapter_active for case in cases]),
        adapter_io=np.array([case.adapter_io for case in cases]),
        adapted=np.array([case.adapted for case in cases]),
        largest_trained=np.array([case.largest_trained for case in cases]),
        first_layer_saving=np.array([case.first_layer_saving for case in cases]),
        scale_bytes=np.array([case.scale_bytes for case in cases]),
        vision_kept_bytes=np.array([case.vision_kept_bytes for case in cases]),
    )
    return table, form_table(forms), [one.basis for one in forms]
