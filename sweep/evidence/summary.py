"""The comparison with evidence in lines for a terminal, and as values for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sweep.catalogs import Catalogs
from sweep.evidence.points import Point, read_points
from sweep.evidence.predict import Prediction
from sweep.evidence.tables import estimator_errors, prediction_row
from sweep.evidence.validate import (
    GROUPS,
    Errors,
    Reasoned,
    counts,
    errors_of,
    fit_rates,
    group_errors,
    is_full_length,
    unpredicted,
    worst,
)
from sweep.units import GIB

EVIDENCE_FILE = Path("evidence") / "memory.csv"
_PHASES = ("p_forward", "p_loss", "p_top", "p_bottom", "p_end", "p_step")
_TERMS = (
    "weights", "frozen", "optimizer", "gradients", "buckets", "root_gather", "layer_gather",
    "kept", "loss_forward", "loss_backward", "work", "held", "step_temporary",
)  # fmt: skip
_LEAST_TERM_BYTES = 0.01 * GIB


def read_evidence(path: Path | None, catalogs: Catalogs) -> list[Point]:
    """The points of a file, or those of the shipped evidence catalog and its overlays."""
    if path is not None:
        return read_points(path)
    files = [folder / EVIDENCE_FILE for folder in catalogs.folders]
    return [point for file in files if file.exists() for point in read_points(file)]


def _sections(predictions: Sequence[Prediction]) -> Iterator[tuple[str, list[Prediction]]]:
    traced = [one for one in predictions if one.point["kind"] == "traced"]
    published = [one for one in predictions if one.point["kind"] != "traced"]
    yield "traced steps", traced
    yield (
        "published, every parameter and the unit known, full-length batches (grade A)",
        [one for one in published if counts(one.point)],
    )
    yield (
        "published, something assumed, full-length batches",
        [one for one in published if not counts(one.point) and is_full_length(one.point)],
    )
    yield (
        "published, batches of unknown or varying length: a trend, not a test",
        [one for one in published if not is_full_length(one.point)],
    )


def _error_line(errors: Errors, width: int) -> str:
    return (
        f"  {errors.name[:width]:<{width}} {errors.points:>6} {errors.median:>+9.2%}"
        f" {errors.median_absolute:>9.2%} {errors.p90_absolute:>9.2%} {errors.worst:>+8.1%}"
        f" {errors.inside_band:>8.0%}"
    )


def table_lines(title: str, rows: Sequence[Errors]) -> Iterator[str]:
    """Errors of some groups as a table with a header."""
    width = max([len(title), *(len(row.name) for row in rows)])
    yield (
        f"  {title:<{width}} {'points':>6} {'median':>9} {'|median|':>9} {'|p90|':>9}"
        f" {'worst':>8} {'in band':>8}"
    )
    for row in rows:
        yield _error_line(row, width)


def _breakdown(one: Prediction) -> str:
    assert one.figures is not None
    terms = one.figures.terms
    if all(name in terms for name in _PHASES):
        phase = max(_PHASES, key=lambda name: terms[name])
        parts = [
            f"{name.replace('_', ' ')} {terms[name] / GIB:.2f}"
            for name in _TERMS
            if terms[name] > _LEAST_TERM_BYTES
        ]
        return f"peak in {phase.removeprefix('p_')}: {', '.join(parts)}"
    parts = [
        f"{name.replace('_', ' ')} {size / GIB:.2f}"
        for name, size in terms.items()
        if size > _LEAST_TERM_BYTES
    ]
    return ", ".join(parts)


def _worst_lines(predictions: Sequence[Prediction], count: int) -> Iterator[str]:
    for one in worst(predictions, count):
        point = one.point
        measured, expected = point.measured_bytes, one.expected_bytes
        assert measured is not None
        assert expected is not None
        yield (
            f"  {one.error:+.1%}  {point['id']}  {point['model']}  {point['method']}  {one.stack}"
            f"  {point['gpu_count'] or 1} GPU, micro-batch {point['micro_batch']} x"
            f" {point['seq_len']}: {expected / GIB:.2f} GiB {one.figure},"
            f" measured {measured / GIB:.2f}"
        )
        yield f"      {_breakdown(one)}"


def summary_lines(
    predictions: Sequence[Prediction], width: int, *, estimators: bool, worst_count: int
) -> Iterator[str]:
    """The whole comparison in lines; wide ones are cut to `width`."""
    for line in _all_lines(predictions, estimators, worst_count):
        yield line if len(line) <= width else line[: width - 1] + "…"


def _all_lines(
    predictions: Sequence[Prediction], estimators: bool, worst_count: int
) -> Iterator[str]:
    known = sum(1 for one in predictions if one.error is not None)
    yield (
        f"{len(predictions)} points, {known} with a measured and a predicted peak; errors are"
        " predicted over measured, less one"
    )
    judged: list[Prediction] = []
    for title, members in _sections(predictions):
        total = errors_of("all of them", members)
        if total is None:
            continue
        yield ""
        yield title
        for name, key in GROUPS.items():
            yield from table_lines(f"by {name}", group_errors(members, key))
        yield from table_lines("", [total])
        if "trend" not in title:
            judged += members
    yield ""
    yield from _fit_lines(predictions)
    if worst_count and known:
        yield ""
        yield "farthest off, with the terms of the peak in GiB"
        yield from _worst_lines(judged or predictions, worst_count)
    if estimators:
        published = [one for one in judged if one.point["kind"] != "traced"]
        rules = estimator_errors(published)
        ours = errors_of("sweep", [one for one in published if one.match is not None])
        yield ""
        yield "rules of thumb on the published training points (each on those it speaks of)"
        yield from table_lines("rule", [*rules, *([ours] if ours else [])])
    yield from unpredicted_lines(predictions)


def unpredicted_lines(predictions: Iterable[Reasoned]) -> Iterator[str]:
    """Why some points have no prediction, the most frequent reason first."""
    reasons = unpredicted(predictions)
    if reasons:
        yield ""
        yield f"without a prediction: {sum(reasons.values())} points"
        for reason, count in reasons.items():
            yield f"  {count:>4}  {reason}"


def _fit_lines(predictions: Sequence[Prediction]) -> Iterator[str]:
    rates = fit_rates(one for one in predictions if is_full_length(one.point))
    if rates.failed:
        share = len(rates.false) / rates.failed
        yield (
            f"false fits: {len(rates.false)} of {rates.failed} that ran out of memory were said to"
            f" fit ({share:.0%}) {_ids(rates.false)}"
        )
    if rates.ran:
        share = len(rates.missed) / rates.ran
        yield (
            f"missed fits: {len(rates.missed)} of {rates.ran} that ran were said not to fit"
            f" ({share:.0%}) {_ids(rates.missed)}"
        )


def _ids(predictions: Sequence[Prediction], most: int = 8) -> str:
    names = [one.point["id"] for one in predictions[:most]]
    more = f" and {len(predictions) - most} more" if len(predictions) > most else ""
    return f"{', '.join(names)}{more}"


def summary_values(
    predictions: Sequence[Prediction], *, estimators: bool, worst_count: int
) -> dict[str, Any]:
    """The comparison as values: errors by section and group, fit rates, every point."""
    sections: dict[str, Any] = {}
    for title, members in _sections(predictions):
        total = errors_of("all", members)
        if total is None:
            continue
        sections[title] = {
            "all": dataclasses.asdict(total),
            **{
                name: [dataclasses.asdict(row) for row in group_errors(members, key)]
                for name, key in GROUPS.items()
            },
        }
    rates = fit_rates(one for one in predictions if is_full_length(one.point))
    found: dict[str, Any] = {
        "sections": sections,
        "fits": {
            "failed": rates.failed,
            "false": [one.point["id"] for one in rates.false],
            "ran": rates.ran,
            "missed": [one.point["id"] for one in rates.missed],
        },
        "points": [
            {**prediction_row(one), "measured_gib": one.point["peak_gib"], "error": one.error}
            for one in predictions
        ],
        "worst": [one.point["id"] for one in worst(predictions, worst_count)],
    }
    if estimators:
        found["estimators"] = [dataclasses.asdict(row) for row in estimator_errors(predictions)]
    return found
