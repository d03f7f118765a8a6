"""The comparison with published throughput in lines for a terminal, and as values for programs."""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sweep.catalogs import Catalogs
from sweep.catalogs.rates import usd_rates
from sweep.evidence.points import Point, read_points
from sweep.evidence.run_errors import (
    CLEAR_MARGIN,
    GROUPS,
    PairRates,
    errors_of_runs,
    excluding_flag,
    group_run_errors,
    is_clean,
    job_seconds,
    job_usd,
    rank_pairs,
)
from sweep.evidence.runs import RunPrediction
from sweep.evidence.summary import table_lines, unpredicted_lines
from sweep.evidence.validate import Errors
from sweep.plan.programs import COMPUTE_DTYPES

RUNS_FILE = Path("evidence") / "throughput.csv"
COLUMNS = ("id", "tokens_per_s_per_gpu", "low", "high", "reason")
# The published runs a buyer knows best: MLPerf's fine-tuning benchmark.
_MLPERF_MODEL, _MLPERF_METHOD, _MLPERF_MARGIN = "Llama-2-70B", "lora", 0.20
_LEAST_SHARE = 0.02


def read_runs(path: Path | None, catalogs: Catalogs) -> list[Point]:
    """The runs of a file, or those of the shipped evidence catalog and its overlays."""
    if path is not None:
        return read_points(path)
    files = [folder / RUNS_FILE for folder in catalogs.folders]
    return [point for file in files if file.exists() for point in read_points(file)]


def list_prices(catalogs: Catalogs) -> dict[str, float]:
    """What a GPU costs on demand: the median of the offers with it [usd per GPU-hour]."""
    rates = usd_rates(catalogs.rates)
    found: dict[str, list[float]] = {}
    for offer in catalogs.offers:
        if offer.price_model == "on_demand" and offer.rankable and offer.currency in rates:
            price = offer.price_per_hour * rates[offer.currency] / offer.gpu_count
            found.setdefault(offer.gpu, []).append(price)
    return {gpu: statistics.median(prices) for gpu, prices in found.items()}


def prediction_row(one: RunPrediction) -> dict[str, str]:
    """One prediction under COLUMNS; tokens/s per GPU, empty where there is none."""

    def text(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    return {
        "id": one.point["id"],
        "tokens_per_s_per_gpu": text(one.tokens_per_s),
        "low": text(one.low),
        "high": text(one.high),
        "reason": one.reason,
    }


def write_run_predictions(predictions: Sequence[RunPrediction]) -> str:
    """The predictions as CSV, in the order of the file they answer."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(prediction_row(one) for one in predictions)
    return text.getvalue()


def mlperf_lora(predictions: Sequence[RunPrediction]) -> list[RunPrediction]:
    """The clean MLPerf rows of Llama-2-70B LoRA."""
    return [
        one
        for one in predictions
        if one.error is not None
        and one.run is not None
        and one.point["source"].startswith("mlperf")
        and one.run.scenario.shape.model.key == _MLPERF_MODEL
        and one.run.scenario.program.method == _MLPERF_METHOD
        and is_clean(one.point)
    ]


def worst_runs(predictions: Sequence[RunPrediction], count: int) -> list[RunPrediction]:
    """The clean predictions farthest off, worst first."""
    known = [one for one in predictions if one.error is not None and is_clean(one.point)]
    return sorted(known, key=lambda one: -abs(one.error or 0.0))[:count]


def _seconds(one: RunPrediction) -> dict[str, float]:
    """Seconds of one micro-batch by term, before overlap."""
    assert one.run is not None
    assert one.evaluation is not None
    q, rates = one.evaluation.quantities, one.run.rates
    stack = one.evaluation.stack
    dtype = COMPUTE_DTYPES.index(one.run.dtype)
    half = rates.peaks[dtype if dtype <= COMPUTE_DTYPES.index("fp32") else 0]
    peak = rates.peaks[dtype]
    assert peak is not None
    assert half is not None
    memory = rates.hbm_bytes_per_s * stack["memory_efficiency"]
    link, network = rates.link_bytes_per_s, rates.network_bytes_per_s
    kernel = int(stack["attention_kernel"])
    return {
        "matmul": q["matmul_flop"] / peak,
        "head and adapters": q["half_flop"] / half,
        "attention": q["attention_flop"] / rates.attention_flop_per_s[kernel],
        "elementwise": (q["elementwise_bytes"] + q["eager_bytes"]) / memory,
        "adapter passes": q["adapter_bytes"] / memory,
        "operands": (q["operand_bytes"] + q["cast_bytes"] + q["dequant_bytes"]) / memory,
        "experts moved": q["permute_bytes"] / memory,
        "loss": q["loss_bytes"] / memory,
        "launches": q["host_s"],
        "shards": max(q["shard_link_bytes"] / link, q["shard_network_bytes"] / network),
        "parallel": (q["tp_link_bytes"] + q["ring_link_bytes"]) / link
        + q["ring_network_bytes"] / network
        + q["latency_s"],
    }


def _worst_lines(predictions: Sequence[RunPrediction], count: int) -> Iterator[str]:
    for one in worst_runs(predictions, count):
        assert one.run is not None
        scenario, point = one.run.scenario, one.point
        layout = scenario.layout
        split = " ".join(
            f"{name}{getattr(layout, name)}"
            for name in ("tp", "pp", "cp", "ep")
            if getattr(layout, name) > 1
        )
        yield (
            f"  {one.error:+.0%}  {point['id']}  {scenario.shape.model.key}"
            f" {scenario.program.method} {one.run.dtype}, {scenario.gpus} x {one.run.gpu.key},"
            f" {scenario.program.stack}, {scenario.micro_batch} x {scenario.seq_len}"
            f"{' ' + split if split else ''}: {one.tokens_per_s:,.0f} tokens/s a GPU,"
            f" published {one.measured:,.0f}"
        )
        seconds = _seconds(one)
        total = sum(seconds.values())
        parts = [
            f"{name} {value / total:.0%}"
            for name, value in sorted(seconds.items(), key=lambda pair: -pair[1])
            if value / total > _LEAST_SHARE
        ]
        assumed = f"; assumed: {', '.join(one.run.assumed)}" if one.run.assumed else ""
        yield f"      {', '.join(parts)}{assumed}"


def _pair_line(what: str, rates: PairRates) -> str:
    if not rates.pairs:
        return f"  {what}: no pairs"
    clear = (
        f", {rates.clear_right} of {rates.clear} ({rates.clear_right / rates.clear:.0%}) where the"
        f" published figures differ by more than {CLEAR_MARGIN:.0%}"
        if rates.clear
        else ""
    )
    return (
        f"  {what}: right for {rates.right} of {rates.pairs} pairs"
        f" ({rates.right / rates.pairs:.0%}){clear}"
    )


def run_summary_lines(
    predictions: Sequence[RunPrediction], catalogs: Catalogs, width: int, worst_count: int
) -> Iterator[str]:
    """The whole comparison in lines; wide ones are cut to `width`."""
    for line in _all_lines(predictions, catalogs, worst_count):
        yield line if len(line) <= width else line[: width - 1] + "…"


def _all_lines(
    predictions: Sequence[RunPrediction], catalogs: Catalogs, worst_count: int
) -> Iterator[str]:
    known = [one for one in predictions if one.error is not None]
    clean = [one for one in known if is_clean(one.point)]
    rest = [one for one in known if not is_clean(one.point)]
    yield (
        f"{len(predictions)} published runs, {len(known)} with a published and a predicted"
        " throughput; errors are predicted over published tokens/s, less one"
    )
    total = errors_of_runs("all of them", clean)
    if total is not None:
        yield ""
        yield "every parameter known (grade A), nothing that excludes a row"
        for name, key in GROUPS.items():
            yield from table_lines(f"by {name}", group_run_errors(clean, key))
        yield from table_lines("", [total])
    if rest:
        yield ""
        yield "shown apart: something assumed, or a flag that excludes the row"
        yield from table_lines(
            "by flag",
            group_run_errors(
                rest, lambda one: excluding_flag(one.point) or f"grade {one.point['completeness']}"
            ),
        )
    lora = mlperf_lora(predictions)
    if lora:
        near = sum(1 for one in lora if abs(one.error or 0.0) <= _MLPERF_MARGIN)
        yield ""
        yield (
            f"MLPerf {_MLPERF_MODEL} LoRA: {near} of {len(lora)} rows ({near / len(lora):.0%})"
            f" within {_MLPERF_MARGIN:.0%}"
        )
        yield from table_lines(
            "by GPU", group_run_errors(lora, lambda one: one.run.gpu.key if one.run else "")
        )
    if clean:
        yield ""
        yield "pairs of published setups for one job (same source, model, method and data)"
        yield _pair_line("the faster one", rank_pairs(clean, job_seconds))
        prices = list_prices(catalogs)
        yield _pair_line("the cheaper one at list prices", rank_pairs(clean, job_usd(prices)))
    if worst_count and clean:
        yield ""
        yield "farthest off, with each term's share of the micro-batch before overlap"
        yield from _worst_lines(predictions, worst_count)
    yield from unpredicted_lines(predictions)


def run_summary_values(
    predictions: Sequence[RunPrediction], catalogs: Catalogs, worst_count: int
) -> dict[str, Any]:
    """The comparison as values: errors by group, pairs, every run."""
    known = [one for one in predictions if one.error is not None]
    clean = [one for one in known if is_clean(one.point)]
    total = errors_of_runs("all", clean)

    def rows(errors: Sequence[Errors]) -> list[dict[str, Any]]:
        return [dataclasses.asdict(row) for row in errors]

    def pairs(rates: PairRates) -> dict[str, Any]:
        return {
            "pairs": rates.pairs,
            "right": rates.right,
            "clear": rates.clear,
            "clear_right": rates.clear_right,
            "wrong": [[a.point["id"], b.point["id"]] for a, b in rates.wrong],
        }

    lora = mlperf_lora(predictions)
    return {
        "clean": {
            "all": dataclasses.asdict(total) if total else None,
            **{name: rows(group_run_errors(clean, key)) for name, key in GROUPS.items()},
        },
        "mlperf_lora": {
            "rows": len(lora),
            "within_20_percent": sum(1 for one in lora if abs(one.error or 0.0) <= _MLPERF_MARGIN),
        },
        "faster": pairs(rank_pairs(clean, job_seconds)),
        "cheaper": pairs(rank_pairs(clean, job_usd(list_prices(catalogs)))),
        "points": [
            {
                **prediction_row(one),
                "published": one.measured,
                "error": one.error,
                "clean": is_clean(one.point),
                "assumed": list(one.run.assumed) if one.run else [],
            }
            for one in predictions
        ],
        "worst": [one.point["id"] for one in worst_runs(predictions, worst_count)],
    }
