"""Predictions as rows: what `sweep estimate` writes, and the rules of thumb beside them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from sweep.catalogs.architecture import lora_parameters
from sweep.evidence.estimators import ESTIMATORS, Estimate, Subject, estimate_all
from sweep.evidence.predict import Prediction
from sweep.evidence.validate import Errors, error_summary
from sweep.scenario import Scenario
from sweep.units import GIB

COLUMNS = (
    "id", "peak_allocated_gib", "peak_reserved_gib", "device_used_gib", "low_gib", "high_gib",
    "fits", "reason",
)  # fmt: skip
# Bits of a stored weight by the dtype words of a points file.
_WEIGHT_BITS = {
    "fp32": 32.0, "bf16": 16.0, "fp16": 16.0, "int8": 8.0, "nf4": 4.0, "fp4": 4.0,
    "gptq_int4": 4.0, "awq_int4": 4.0, "hqq_int4": 4.0, "gptq_int8": 8.0, "fp8": 8.0, "int4": 4.0,
}  # fmt: skip


def _gib(size_bytes: float | None) -> str:
    return "" if size_bytes is None else f"{size_bytes / GIB:.4f}"


def prediction_row(one: Prediction) -> dict[str, str]:
    """One prediction under COLUMNS; figures in GiB, empty where there is none."""
    figures = one.figures
    return {
        "id": one.point["id"],
        "peak_allocated_gib": _gib(figures.allocated_bytes if figures else None),
        "peak_reserved_gib": _gib(figures.reserved_bytes if figures else None),
        "device_used_gib": _gib(figures.device_bytes if figures else None),
        "low_gib": _gib(one.low_bytes),
        "high_gib": _gib(one.high_bytes),
        "fits": "" if one.fits is None else ("y" if one.fits else "n"),
        "reason": one.reason,
    }


def subject_of(one: Prediction) -> Subject | None:
    """What a rule of thumb is asked for a predicted training point; None without a scenario."""
    if one.match is None:
        return None
    return subject_of_scenario(
        one.match.scenario, _WEIGHT_BITS.get(one.point["weight_dtype"], 16.0)
    )


def subject_of_scenario(scenario: Scenario, weight_bits: float) -> Subject:
    """What a rule of thumb is asked for a scenario whose weights are stored in so many bits."""
    program, counts = scenario.program, scenario.shape.counts
    adapters = 0.0
    if program.method != "full" and program.lora_target in (
        "attention-qv",
        "attention",
        "all-linear",
    ):
        adapters = float(lora_parameters(counts, program.lora_rank, program.lora_target))
    return Subject(
        model=scenario.shape.model,
        counts=counts,
        method=program.method,
        task="train",
        weight_bits=weight_bits,
        mixed=program.precision != "fp32",
        optimizer=program.optimizer,
        zero_stage=program.zero_stage,
        offload=program.offload,
        gpus=scenario.gpus,
        micro_batch=scenario.micro_batch,
        seq_len=scenario.seq_len,
        lora_parameters=adapters,
    )


def rules_of(one: Prediction) -> dict[str, Estimate]:
    """What each rule of thumb says of a point, or why it says nothing."""
    subject = subject_of(one)
    return estimate_all(subject) if subject else {}


def write_predictions(predictions: Iterable[Prediction], *, estimators: bool = False) -> str:
    """Predictions as CSV text, one row a point in the order given."""
    names = (*COLUMNS, *(f"{key}_gib" for key in ESTIMATORS)) if estimators else COLUMNS
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for one in predictions:
        row = prediction_row(one)
        if estimators:
            found = rules_of(one)
            for key in ESTIMATORS:
                said = found.get(key)
                row[f"{key}_gib"] = _gib(said[1]) if isinstance(said, tuple) else ""
        writer.writerow(row)
    return out.getvalue()


def estimator_errors(predictions: Sequence[Prediction]) -> list[Errors]:
    """Errors of each rule of thumb on the training points that it speaks of."""
    judged = [one for one in predictions if one.error is not None and one.match is not None]
    said = {id(one): rules_of(one) for one in judged}
    rows = []
    for key in ESTIMATORS:
        signed = []
        inside = 0
        for one in judged:
            estimate = said[id(one)].get(key)
            measured = one.point.measured_bytes
            if isinstance(estimate, tuple) and measured:
                signed.append(estimate[1] / measured - 1.0)
                inside += estimate[0] <= measured <= estimate[2]
        if signed:
            rows.append(error_summary(key, signed, inside))
    return rows
