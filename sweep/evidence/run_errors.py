"""How far predicted throughput lies from published, and whether the faster setup is named right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sweep.evidence.points import Point
from sweep.evidence.runs import RunPrediction
from sweep.evidence.validate import Errors, error_summary

# A row with one of these in its flags is shown apart: its tokens are not known (lengths vary, RLHF), it
# is no model anyone trains (proxies), it times something else too (evaluation, start-up), its load is
# forced or capped, or the source contradicts itself.
EXCLUDING_FLAGS = (
    "variable_length", "force_balanced", "proxy_fewer", "noise_", "resubmission", "doc_",
    "moe_token_drop", "moe_capacity", "tiny_gbs", "rlhf", "possibly_extrapolated", "suspect",
    "incl_eval", "cpu_offload", "activation_offload", "deterministic", "config_minibs",
    "tracked_throughput", "naive_layer", "power_limited", "seq_inferred",
)  # fmt: skip


def excluding_flag(point: Point) -> str:
    """The first flag that keeps a row out of the count, "" for a clean one."""
    flags = point["flags"].split(";")
    return next(
        (flag for flag in flags if any(flag.startswith(name) for name in EXCLUDING_FLAGS)), ""
    )


def is_clean(point: Point) -> bool:
    """Whether a row counts: every parameter known (grade A) and nothing that excludes it."""
    return point["completeness"] == "A" and not excluding_flag(point)


def scale_of(prediction: RunPrediction) -> str:
    """The size of a job in GPUs, by steps of eight."""
    assert prediction.run is not None
    gpus = prediction.run.scenario.gpus
    for most, name in ((1, "1 GPU"), (8, "2-8 GPUs"), (64, "9-64 GPUs"), (512, "65-512 GPUs")):
        if gpus <= most:
            return name
    return "above 512 GPUs"


def parallelism_of(prediction: RunPrediction) -> str:
    """What splits the model of a run: tp, pp, cp, ep, sharding, or data parallelism alone."""
    assert prediction.run is not None
    scenario = prediction.run.scenario
    layout = scenario.layout
    names = [name for name in ("tp", "pp", "cp", "ep") if getattr(layout, name) > 1]
    if scenario.program.zero_stage == 3:
        names.append("sharded")
    if not names:
        return "one GPU" if scenario.gpus == 1 else "data parallel"
    return " ".join(names)


def _stack(prediction: RunPrediction) -> str:
    assert prediction.run is not None
    return prediction.run.scenario.program.stack


def method_and_gpu(prediction: RunPrediction) -> str:
    """Method and GPU generation of a run: 'lora Hopper'."""
    assert prediction.run is not None
    return f"{prediction.run.scenario.program.method} {prediction.run.gpu.arch}"


GROUPS: Mapping[str, Callable[[RunPrediction], str]] = {
    "method and GPU generation": method_and_gpu,
    "stack": _stack,
    "parallelism": parallelism_of,
    "scale": scale_of,
    "source": lambda one: one.point["source"],
}


def errors_of_runs(name: str, predictions: Iterable[RunPrediction]) -> Errors | None:
    """Errors of the predictions that have both a figure and a published one; None without any."""
    known = [one for one in predictions if one.error is not None]
    inside = sum(1 for one in known if is_inside(one))
    return error_summary(name, [one.error or 0.0 for one in known], inside)


def is_inside(one: RunPrediction) -> bool:
    """Whether a published throughput lies in its band."""
    if one.measured is None or one.low is None or one.high is None:
        return False
    return one.low <= one.measured <= one.high


def group_run_errors(
    predictions: Sequence[RunPrediction], key: Callable[[RunPrediction], str]
) -> list[Errors]:
    """Errors by a key, the largest groups first."""
    groups: dict[str, list[RunPrediction]] = {}
    for one in predictions:
        if one.error is not None:
            groups.setdefault(key(one), []).append(one)
    found = (errors_of_runs(name, members) for name, members in groups.items())
    return sorted((one for one in found if one is not None), key=lambda one: -one.points)


@dataclass(frozen=True)
class PairRates:
    """Published pairs of setups for one job, and how many the predictions put in the right order.

    `clear` are those whose published figures differ by more than the margin.
    """

    pairs: int
    right: int
    clear: int
    clear_right: int
    wrong: tuple[tuple[RunPrediction, RunPrediction], ...]


# Published figures closer than this are no clear difference between two setups.
CLEAR_MARGIN = 0.15


def _job(one: RunPrediction) -> tuple[object, ...]:
    assert one.run is not None
    scenario = one.run.scenario
    program = scenario.program
    return (
        one.point["source"], scenario.shape.model.key, scenario.shape.model.num_hidden_layers,
        program.method, one.run.dtype, program.quantization, scenario.seq_len, program.stack,
    )  # fmt: skip


def _setup(one: RunPrediction) -> tuple[object, ...]:
    assert one.run is not None
    return one.run.gpu.key, one.run.scenario.gpus


def rank_pairs(
    predictions: Iterable[RunPrediction], value: Callable[[RunPrediction, float], float | None]
) -> PairRates:
    """Pairs of one source, model, method and data on two GPUs or two counts, ordered by `value`.

    `value` turns a run and its throughput [tokens/s per GPU] into what is compared (less is better),
    or None where it is not known. Of several rows for one setup the fastest published one stands.
    """
    best: dict[tuple[object, ...], dict[tuple[object, ...], RunPrediction]] = {}
    for one in predictions:
        if one.error is None or one.measured is None:
            continue
        setups = best.setdefault(_job(one), {})
        held = setups.get(_setup(one))
        if held is None or (held.measured or 0.0) < one.measured:
            setups[_setup(one)] = one
    pairs = right = clear = clear_right = 0
    wrong: list[tuple[RunPrediction, RunPrediction]] = []
    for setups in best.values():
        runs = list(setups.values())
        for i, first in enumerate(runs):
            for second in runs[i + 1 :]:
                figures = [
                    value(one, speed or math.nan)
                    for one in (first, second)
                    for speed in (one.measured, one.tokens_per_s)
                ]
                if any(figure is None for figure in figures):
                    continue
                published_a, predicted_a, published_b, predicted_b = (
                    float(figure or 0.0) for figure in figures
                )
                agrees = (published_a < published_b) == (predicted_a < predicted_b)
                pairs += 1
                right += agrees
                if max(published_a, published_b) > (1.0 + CLEAR_MARGIN) * min(
                    published_a, published_b
                ):
                    clear += 1
                    clear_right += agrees
                    if not agrees:
                        wrong.append((first, second))
    return PairRates(pairs, right, clear, clear_right, tuple(wrong))


def job_seconds(one: RunPrediction, tokens_per_s: float) -> float | None:
    """Seconds a run's setup takes for a token of the job: all its GPUs together."""
    assert one.run is not None
    return 1.0 / (tokens_per_s * one.run.scenario.gpus)


def job_usd(
    usd_per_gpu_hour: Mapping[str, float],
) -> Callable[[RunPrediction, float], float | None]:
    """What a token costs on a run's setup at list prices by GPU [usd per GPU-hour]."""

    def cost(one: RunPrediction, tokens_per_s: float) -> float | None:
        assert one.run is not None
        price = usd_per_gpu_hour.get(one.run.gpu.key)
        return None if price is None else price / tokens_per_s

    return cost
