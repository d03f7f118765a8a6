"""One scenario evaluated alone, by the same kernels a sweep runs: for `explain`, estimates and tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sweep.catalogs.architecture import lora_parameters
from sweep.catalogs.stacks import StackBook
from sweep.kernels.candidate import evaluate, layer_lines, step_seconds, time_terms
from sweep.kernels.decide import half_dtype
from sweep.kernels.memory import expert_split, stage_bytes
from sweep.kernels.tables import EMBED, HEAD, ROOM, VISION, Quantity, pack
from sweep.plan.cases import Case, build_case, case_table
from sweep.plan.layouts import Layout
from sweep.plan.programs import Program, program_table, rule_of, stack_table
from sweep.plan.setups import SetupRates
from sweep.plan.shapes import ModelShape, model_table


@dataclass(frozen=True)
class Scenario:
    """One model, program and layout on a number of GPUs."""

    shape: ModelShape
    program: Program
    layout: Layout
    seq_len: int
    global_batch: int
    micro_batch: int
    gpus: int
    gpus_per_node: int
    vision_flop: float = 0.0
    vision_kept_bytes: float = 0.0
    vision_trained: bool = False
    root_trained: bool = False

    @property
    def dp(self) -> int:
        """Data-parallel ranks."""
        return self.gpus // (self.layout.tp * self.layout.pp * self.layout.cp)


@dataclass(frozen=True)
class Evaluation:
    """Every quantity of a scenario by name (see kernels.tables.Quantity), its case and form bases.

    `stack` holds the stack's constants by name, in the units of the stacks catalog.
    """

    quantities: Mapping[str, float]
    case: Case
    basis: tuple[str, ...]
    array: np.ndarray
    stack: Mapping[str, float]

    def step_seconds(self, rates: SetupRates, dtype: int) -> float:
        """Seconds of one step on a setup; inf when it lacks the compute dtype."""
        peak, half = rates.peaks[dtype], rates.peaks[half_dtype(dtype)]
        kernel = int(self.stack["attention_kernel"])
        return float(
            step_seconds(
                self.array,
                np.inf if peak is None else 1.0 / peak,
                np.inf if half is None else 1.0 / half,
                1.0 / rates.attention_flop_per_s[kernel],
                1.0 / rates.hbm_bytes_per_s,
                1.0 / rates.link_bytes_per_s,
                1.0 / rates.network_bytes_per_s,
                1.0 / rates.pcie_bytes_per_s,
            )
        )


def _with_tower(case: Case, scenario: Scenario) -> Case:
    """The case with what the images of a sequence keep in the tower, and the tower trained or not."""
    case = dataclasses.replace(case, vision_kept_bytes=scenario.vision_kept_bytes)
    counts = scenario.shape.counts
    if not scenario.vision_trained or counts.vision is None:
        return case
    frozen, trained = list(case.frozen_bytes), list(case.trained)
    if scenario.program.method == "full":
        frozen[VISION], trained[VISION] = 0.0, float(counts.vision.total)
    else:
        program = scenario.program
        trained[VISION] = float(
            lora_parameters(counts, program.lora_rank, program.lora_target, vision=True)
            - lora_parameters(counts, program.lora_rank, program.lora_target)
        )
    return dataclasses.replace(case, frozen_bytes=tuple(frozen), trained=tuple(trained))


def _with_root(case: Case, scenario: Scenario, book: StackBook) -> Case:
    """The case with embedding and head trained beside the adapters (PEFT's modules_to_save).

    PEFT trains 16-bit copies and keeps the frozen originals: in the rule's bytes a trained element of
    an fp32 adapter counts 4, so one of these counts for half.
    """
    rule = rule_of(scenario.program, book)
    assert rule is not None
    counts = scenario.shape.counts
    share = 2.0 / rule.bytes["weight_bytes"]
    trained = list(case.trained)
    trained[EMBED] += share * counts.embedding
    trained[HEAD] += share * counts.lm_head
    largest = max(case.largest_trained, float(counts.embedding))
    return dataclasses.replace(case, trained=tuple(trained), largest_trained=largest)


def evaluate_time(scenario: Scenario, book: StackBook) -> Evaluation:
    """What a step of a scenario computes, moves and sends; its memory is not looked at.

    Unlike `evaluate_scenario` this needs no layer forms: published runs use programs whose memory no
    form describes (LoRA under Megatron, 8-bit matmuls). Quantities of memory are 0.
    """
    program = scenario.program
    case = build_case(scenario.shape, program, scenario.seq_len, book, variants=())
    cases, _, _ = case_table([case], [0], book)
    models, _ = model_table([scenario.shape])
    row = pack(program_table([program], [program.stack], book))[0]
    if scenario.root_trained:
        row["head_trained"] = 1
    stack = pack(stack_table([program.stack], book))[0]
    tp, pp, cp, ep, sequence = scenario.layout
    out = np.zeros(ROOM)
    time_terms(
        out, pack(models)[0], row, pack(cases)[0], stack, scenario.seq_len, scenario.vision_flop,
        scenario.global_batch, scenario.micro_batch, scenario.gpus, scenario.gpus_per_node,
        scenario.dp, tp, pp, cp, ep, int(sequence),
    )  # fmt: skip
    names = {quantity.name.lower(): float(out[quantity]) for quantity in Quantity}
    constants = {name: float(stack[name]) for name in stack.dtype.names}
    return Evaluation(names, case, (), out, constants)


def evaluate_scenario(
    scenario: Scenario, book: StackBook, *, stage: int | None = None
) -> Evaluation:
    """Evaluate one scenario: bytes by phase, FLOP and bytes moved, as the kernels compute them.

    With several pipeline stages the one that needs most decides, or `stage`: memory.FIRST, LAST or SECOND.
    """
    program = scenario.program
    case = build_case(scenario.shape, program, scenario.seq_len, book)
    case = _with_tower(case, scenario)
    if scenario.root_trained:
        case = _with_root(case, scenario, book)
    cases, forms, basis = case_table([case], [0], book)
    models, features = model_table([scenario.shape])
    model = pack(models)[0]
    row = pack(program_table([program], [program.stack], book))[0]
    if scenario.root_trained:
        row["head_trained"] = 1
    stack = pack(stack_table([program.stack], book))[0]
    record = pack(cases)[0]
    tp, pp, cp, ep, sequence = scenario.layout
    lines = np.empty((2 + 2 * forms.backward.shape[1], 6))
    layer_lines(
        lines, model, features[0], forms, record, row["lora_rank"], scenario.seq_len, tp,
        expert_split(tp, ep, scenario.dp * cp), ep, int(sequence),
    )  # fmt: skip
    out, other = np.zeros(ROOM), np.zeros(ROOM)
    evaluate(
        out, other, lines, model, row, record, stack, scenario.seq_len,
        scenario.vision_flop,
        scenario.global_batch, scenario.micro_batch, scenario.gpus, scenario.gpus_per_node,
        scenario.dp, tp, pp, cp, ep, int(sequence),
    )  # fmt: skip
    names = {quantity.name.lower(): float(out[quantity]) for quantity in Quantity}
    if stage is not None and pp > 1:
        tokens = out[Quantity.TOKENS]
        stage_bytes(
            other, stage, lines, model, row, record, stack, scenario.seq_len, tokens,
            out[Quantity.ACCUMULATION], tp, pp, cp, ep, int(sequence), scenario.dp * cp, True,
        )  # fmt: skip
        memory = range(Quantity.DEVICE + 1)
        names |= {Quantity(index).name.lower(): float(other[index]) for index in memory}
    constants = {name: float(stack[name]) for name in stack.dtype.names}
    return Evaluation(names, case, tuple(basis), out, constants)
