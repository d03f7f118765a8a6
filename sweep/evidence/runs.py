"""Published training runs as scenarios: what a file says of a run, and its predicted throughput."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from sweep.catalogs import Catalogs
from sweep.catalogs.hardware import Gpu
from sweep.catalogs.models import Model
from sweep.catalogs.stacks import DtypeRule, StackBook
from sweep.catalogs.time_bands import TimeBand
from sweep.errors import SweepError
from sweep.evidence import run_words as words
from sweep.evidence.points import Point, Unpredictable
from sweep.evidence.run_checkpointing import lightest_checkpointing
from sweep.plan.layouts import Layout
from sweep.plan.programs import COMPUTE_DTYPES, NARROW_DTYPES, Program, rule_key
from sweep.plan.setups import SetupRates, compute_rates
from sweep.plan.shapes import ModelShape, model_shape
from sweep.scenario import Evaluation, Scenario, evaluate_time

# Stacks whose tensor parallelism shares norms and residuals along the sequence.
_SEQUENCE_PARALLEL = ("megatron", "torchtitan", "torchtitan-tp", "nemo-automodel", "nanotron")
# Link domains from here on span the trays of a rack.
_RACK_SCALE_GPUS = 32
_DEFAULT_RANK = 16
_USUAL_NODE_GPUS = 8
# "Older board, slow lanes": read as PCIe 3.0 with eight lanes [bytes/s].
_SLOW_LANES_BYTES_PER_S = 7.9e9


@dataclass(frozen=True)
class Run:
    """A published run as the engine reads it; `assumed` names what its source left open."""

    point: Point
    scenario: Scenario
    book: StackBook
    rates: SetupRates
    gpu: Gpu
    dtype: str
    assumed: tuple[str, ...]


@dataclass(frozen=True)
class RunPrediction:
    """A run with its predicted throughput and band [tokens/s per GPU]; `reason` if there is none."""

    point: Point
    run: Run | None
    tokens_per_s: float | None
    band: TimeBand | None
    evaluation: Evaluation | None
    reason: str

    @property
    def low(self) -> float | None:
        """The slow end of the band [tokens/s per GPU]."""
        return self.tokens_per_s / self.band.high if self.tokens_per_s and self.band else None

    @property
    def high(self) -> float | None:
        """The fast end of the band [tokens/s per GPU]."""
        return self.tokens_per_s / self.band.low if self.tokens_per_s and self.band else None

    @property
    def measured(self) -> float | None:
        """Published throughput, None where the source gives another figure [tokens/s per GPU]."""
        try:
            return words.published_tokens_per_s(self.point)
        except ValueError:
            return None  # then there is no prediction either, and its reason names the cell

    @property
    def error(self) -> float | None:
        """Predicted over measured throughput, less one; None where either is missing."""
        if self.measured is None or self.tokens_per_s is None:
            return None
        return self.tokens_per_s / self.measured - 1.0


def settings_of_run(point: Point, catalogs: Catalogs) -> Mapping[str, str]:
    """What the catalog knows of a run's source beyond its columns (evidence_settings.csv)."""
    source = f"{point['source']} {point['source_ref']}"
    found: dict[str, str] = {}
    for row in catalogs.evidence_settings:
        if row.source_contains in source:
            found.setdefault(row.setting, row.value)
    return found


def read_run(point: Point, catalogs: Catalogs, networks: Mapping[str, float]) -> Run:
    """A published run as a scenario; `networks` are what runs use that do not state theirs.

    Raises Unpredictable with the reason when it cannot be read.
    """
    try:
        return _read(point, catalogs, networks)
    except (SweepError, ValueError) as error:
        raise Unpredictable(str(error)) from None


def _read(point: Point, catalogs: Catalogs, networks: Mapping[str, float]) -> Run:
    assumed: list[str] = []
    words.published_tokens_per_s(point)
    model = words.model_of_run(point, catalogs.models)
    gpu = words.gpu_of_run(point, catalogs.gpus)
    settings = settings_of_run(point, catalogs)
    stack = words.stack_of_run(point)
    method = words.method_of_run(point)
    if method == "full" and stack == "hf":
        stack = settings.get("full_stack", stack)
    dtype = words.dtype_of_run(point, method)
    if not point["seq_len"]:
        raise Unpredictable("seq_len is not known")
    seq_len = words.count(point, "seq_len")
    layout = _layout(point, stack, assumed)
    dp = max(1, words.count(point, "gpu_count", 1) // (layout.tp * layout.pp * layout.cp))
    micro_batch, accumulation = _batch(point, dp, assumed)
    shape = _shape(model, method)
    zero_stage = words.zero_stage_of_run(point, stack)
    per_node, network = _nodes(point, gpu, dp * layout.tp * layout.pp * layout.cp, networks)
    program = Program(
        method=method,
        stack=stack,
        precision=dtype,
        quantization=words.quantization_of_run(point, method),
        lora_rank=words.count(point, "lora_rank", _DEFAULT_RANK) if method != "full" else 0,
        lora_target=(
            words.lora_target_of_run(point, stack, settings) if method != "full" else "none"
        ),
        lora_dropout=0.0,
        checkpointing=words.stated_checkpointing(point) or "none",
        attention=words.attention_of_run(point),
        cross_entropy=_cross_entropy(stack, catalogs.stacks),
        optimizer="adamw-fused",
        zero_stage=zero_stage,
        offload="none",
    )
    book = catalogs.stacks.with_rule(
        rule_key(program), _rule(point, program, dtype, catalogs.stacks)
    )
    book = _with_words(book, point, program, model, layout)
    scenario = Scenario(
        shape=shape,
        program=program,
        layout=layout,
        seq_len=seq_len,
        global_batch=micro_batch * accumulation * dp,
        micro_batch=micro_batch,
        gpus=dp * layout.tp * layout.pp * layout.cp,
        gpus_per_node=per_node,
        root_trained="trains_embedding" in point["flags"],
    )
    if words.stated_checkpointing(point) is None:
        assumed.append("checkpointing")
        virtual = book.stacks[stack].constants["virtual_stages"]
        mode = lightest_checkpointing(scenario, gpu, virtual, dtype in NARROW_DTYPES)
        scenario = dataclasses.replace(scenario, program=program._replace(checkpointing=mode))
    elif program.checkpointing == "selective" and "megatron" in book.stacks[stack].lineage:
        # Megatron's selective mode recomputes attention, which a flash kernel does anyway, or a
        # few elementwise modules.
        scenario = dataclasses.replace(scenario, program=program._replace(checkpointing="none"))
    rates = _rates(point, gpu, book, per_node, network)
    if rates.peaks[COMPUTE_DTYPES.index(dtype)] is None:
        raise Unpredictable(f"{gpu.key} has no sustained {dtype} rate in the catalog")
    return Run(point, scenario, book, rates, gpu, dtype, tuple(assumed))


def _layout(point: Point, stack: str, assumed: list[str]) -> Layout:
    if not point["tp"] and words.count(point, "gpu_count", 1) > 1:
        assumed.append("layout")
    tp, pp, cp, ep = (words.count(point, name, 1) for name in ("tp", "pp", "cp", "ep"))
    return Layout(tp, pp, cp, ep, tp > 1 and stack in _SEQUENCE_PARALLEL)


def _batch(point: Point, dp: int, assumed: list[str]) -> tuple[int, int]:
    """micro_batch and accumulation; 1 sequence where only the global batch is known."""
    total = words.count(point, "global_batch", 0)
    if point["micro_batch"]:
        micro_batch = words.count(point, "micro_batch")
    elif total:
        assumed.append("micro_batch")
        micro_batch = 1
    else:
        raise Unpredictable("neither micro_batch nor global_batch is known")
    stated = words.count(point, "grad_accum", 1)
    accumulation = total / (micro_batch * dp) if total else stated
    return micro_batch, max(1, round(accumulation))


def _shape(model: Model, method: str) -> ModelShape:
    shape = model_shape(model)
    counts = dataclasses.replace(shape.counts, vision=None)
    if method != "full":
        counts = dataclasses.replace(counts, experts_adapted=False)
    return dataclasses.replace(shape, counts=counts)


def _cross_entropy(stack: str, book: StackBook) -> str:
    order = ("plain", "fused", "chunked", "fused-linear")
    for name in order:
        if (stack, name) in book.loss_heads and name in book.stacks[stack].supports[
            "cross_entropy"
        ]:
            return name
    raise Unpredictable(f"stack {stack} has no loss head in the catalog")


def _rule(point: Point, program: Program, dtype: str, book: StackBook) -> DtypeRule:
    """The dtype rule nearest to a run: its stack's for the method and sharding, with its dtype.

    Adapters on a stack without a rule for them are trained in fp32 beside a 16-bit base.
    """
    for method in (program.method, "full"):
        found = [
            (key, rule) for key, rule in book.rules.items() if key[:2] == (program.stack, method)
        ]
        if found:
            break
    else:
        raise Unpredictable(f"stack {program.stack} has no dtype rule")

    def distance(entry: tuple[tuple[str, str, str, int], DtypeRule]) -> tuple[bool, int, bool]:
        (_, _, precision, zero_stage), _ = entry
        return precision == "fp32", abs(zero_stage - program.zero_stage), precision != "bf16-mixed"

    (_, base, _, _), rule = min(found, key=distance)
    changed = dict(rule.bytes)
    if program.method == "qlora" and not words.is_kbit_prepared(point):
        changed["residual_bytes"] = 2.0
    if base != program.method:
        changed |= {"frozen_bytes": 2.0, "weight_bytes": 4.0, "grad_bytes": 4.0}
    return dataclasses.replace(rule, method=program.method, compute_dtype=dtype, bytes=changed)


def _with_words(
    book: StackBook, point: Point, program: Program, model: Model, layout: Layout
) -> StackBook:
    """The catalog with what a run says of its schedule and of its experts' load."""
    stack = book.stacks[program.stack]
    virtual = words.virtual_stages_of_run(point, stack.key, model.num_hidden_layers, layout.pp)
    constants = {**stack.constants, "virtual_stages": virtual}
    if "force_balanced" in point["flags"]:
        constants["moe_imbalance"] = 1.0
    return book.with_stack(dataclasses.replace(stack, constants=constants))


def _nodes(point: Point, gpu: Gpu, gpus: int, networks: Mapping[str, float]) -> tuple[int, float]:
    """GPUs that the fast link joins, and the network of as many [bytes/s]."""
    per_node = words.count(point, "gpus_per_node", _USUAL_NODE_GPUS)
    per_gpu = words.network_of_run(point, gpu, networks)
    if gpu.link_kind == "switch" and gpu.link_domain_gpus >= _RACK_SCALE_GPUS:
        # Parallel groups are laid out inside the rack: the largest part of it that divides the job.
        sizes = [n for n in range(per_node, gpu.link_domain_gpus + 1, per_node) if gpus % n == 0]
        per_node = max(sizes, default=per_node)
    per_node = min(per_node, gpus)
    return per_node, per_gpu * per_node


def _rates(
    point: Point, gpu: Gpu, book: StackBook, per_node: int, network_bytes_per_s: float
) -> SetupRates:
    peaks, attention = compute_rates(gpu, book.efficiency(gpu))
    pcie = gpu.pcie_bytes_per_s or 16e9
    crossing = "PCIe" in point["interconnect"] and "NVLink" not in point["interconnect"].replace(
        "no NVLink", ""
    )
    if "slow lanes" in point["interconnect"]:
        pcie = _SLOW_LANES_BYTES_PER_S
    fast = None if crossing or gpu.link_kind == "none" else gpu.link_bytes_per_s
    return SetupRates(
        peaks=peaks,
        attention_flop_per_s=attention,
        hbm_bytes_per_s=gpu.hbm_bytes_per_s / gpu.logical_devices,
        link_bytes_per_s=fast or pcie * book.stacks["hf"].constants["p2p_free_share"],
        link=gpu.link or "PCIe",
        network_bytes_per_s=network_bytes_per_s,
        network_assumed=False,
        time_measured=book.time_measured(gpu),
        pcie_bytes_per_s=pcie,
        usable_bytes=gpu.usable_bytes / gpu.logical_devices,
        host_ram_bytes=None,
    )


def warmup_share_s(run: Run) -> float:
    """What start-up adds to each step of a run timed from its very first step [s/step]."""
    steps = words.timed_steps(run.point)
    if steps is None:
        return 0.0
    return run.book.stacks[run.scenario.program.stack].constants["warmup_s"] / steps


def tokens_per_s(run: Run, evaluation: Evaluation) -> float:
    """Predicted throughput of a run [tokens/s per GPU]."""
    seconds = evaluation.step_seconds(run.rates, COMPUTE_DTYPES.index(run.dtype))
    seconds += warmup_share_s(run)
    if not np.isfinite(seconds) or seconds <= 0.0:
        raise Unpredictable(f"{run.gpu.key} cannot run {run.dtype}")
    return evaluation.quantities["tokens_per_step"] / seconds / run.scenario.gpus


def predict_runs(points: Iterable[Point], catalogs: Catalogs) -> list[RunPrediction]:
    """The predictions for published runs, in order; never raises for what a run says."""
    networks = words.best_networks(catalogs.offers)
    return [_predict(point, catalogs, networks) for point in points]


def _predict(point: Point, catalogs: Catalogs, networks: Mapping[str, float]) -> RunPrediction:
    try:
        run = read_run(point, catalogs, networks)
        evaluation = evaluate_time(run.scenario, run.book)
        speed = tokens_per_s(run, evaluation)
    except (Unpredictable, SweepError, ValueError) as error:
        return RunPrediction(point, None, None, None, None, str(error))
    band = run_band(run, catalogs.stacks)
    return RunPrediction(point, run, speed, band, evaluation, "")


def run_band(run: Run, book: StackBook) -> TimeBand:
    """The band of a run's step time: its stack's and method's, wider where things were assumed."""
    program = run.scenario.program
    experts = bool(run.scenario.shape.model.num_experts)
    return book.time_band(program.stack, program.method, run.gpu, experts)
