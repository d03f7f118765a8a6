"""How far predictions are off: signed errors by group, false and missed fits, how bands hold."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sweep.evidence.points import Point
from sweep.evidence.predict import Prediction

# Words by which a source says that its batches were not all full-length.
_PARTIAL = re.compile(
    r"dynamic length|unpacked|variable|padded to (the )?longest|padding-free", re.IGNORECASE
)


def is_full_length(point: Point) -> bool:
    """Whether every batch of a point held full sequences: others are trends, shown apart."""
    if point["kind"] == "traced" or point["task"] == "serve":
        return True
    return not _PARTIAL.search(point["packing"])


def counts(point: Point) -> bool:
    """Whether a point is judged: published in full (grade A) in a certain unit, or traced."""
    return (
        point["grade"] == "A"
        and (point["unit_certainty"] == "certain" or point["kind"] == "traced")
        and is_full_length(point)
    )


@dataclass(frozen=True)
class Errors:
    """Signed errors of a group of points (predicted over measured, less one)."""

    name: str
    points: int
    median: float
    median_absolute: float
    p90_absolute: float
    worst: float
    inside_band: float


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def errors_of(name: str, predictions: Iterable[Prediction]) -> Errors | None:
    """The errors of a group, None when no point of it has both a figure and a prediction."""
    pairs = [(one, one.error) for one in predictions]
    known = [(one, error) for one, error in pairs if error is not None]
    if not known:
        return None
    return error_summary(
        name, [error for _, error in known], sum(1 for one, _ in known if is_inside(one))
    )


def error_summary(name: str, signed: Sequence[float], inside: int) -> Errors:
    """The summary of signed errors, `inside` of them within their band."""
    absolute = sorted(abs(error) for error in signed)
    return Errors(
        name=name,
        points=len(signed),
        median=statistics.median(signed),
        median_absolute=statistics.median(absolute),
        p90_absolute=_quantile(absolute, 0.9),
        worst=max(signed, key=abs),
        inside_band=inside / len(signed),
    )


def is_inside(one: Prediction) -> bool:
    """Whether a measured peak lies in its band."""
    measured = one.point.measured_bytes
    if measured is None or one.low_bytes is None or one.high_bytes is None:
        return False
    return one.low_bytes <= measured <= one.high_bytes


def group_errors(
    predictions: Sequence[Prediction], key: Callable[[Prediction], str]
) -> list[Errors]:
    """Errors by a key, groups in order of their names."""
    groups: dict[str, list[Prediction]] = {}
    for one in predictions:
        groups.setdefault(key(one), []).append(one)
    found = (errors_of(name, members) for name, members in sorted(groups.items()))
    return [one for one in found if one is not None]


def source_of(point: Point) -> str:
    """A point's source without the row of it: 'foundation-model-stack/fms-acceleration'."""
    words = point["source"].split()
    return words[0].rstrip(":,") if words else "(none)"


GROUPS: Mapping[str, Callable[[Prediction], str]] = {
    "stack": lambda one: one.stack or one.point["stack"],
    "method": lambda one: one.point["method"],
    "gpus": lambda one: one.point["gpu_count"] or "1",
    "source": lambda one: source_of(one.point),
}


@dataclass(frozen=True)
class FitRates:
    """How often what is said to fit ran out of memory, and what ran is said not to fit."""

    ran: int
    missed: tuple[Prediction, ...]
    failed: int
    false: tuple[Prediction, ...]


def fit_rates(predictions: Iterable[Prediction]) -> FitRates:
    """Verdicts against what happened: measured and 'fits' points ran, 'oom' points did not."""
    judged = [one for one in predictions if one.fits is not None]
    ran = [one for one in judged if one.point["kind"] in ("measured", "fits")]
    failed = [one for one in judged if one.point["kind"] == "oom"]
    return FitRates(
        ran=len(ran),
        missed=tuple(one for one in ran if not one.fits),
        failed=len(failed),
        false=tuple(one for one in failed if one.fits),
    )


def worst(predictions: Iterable[Prediction], count: int = 10) -> list[Prediction]:
    """The predictions farthest off, worst first."""
    known = [one for one in predictions if one.error is not None]
    return sorted(known, key=lambda one: -abs(one.error or 0.0))[:count]


class Reasoned(Protocol):
    """A prediction that may instead have a reason why there is none."""

    @property
    def reason(self) -> str:
        """Why there is no figure; empty where there is one."""


def unpredicted(predictions: Iterable[Reasoned]) -> dict[str, int]:
    """How many points have no prediction, by reason, the most frequent first."""
    reasons: dict[str, int] = {}
    for one in predictions:
        if one.reason:
            reasons[one.reason] = reasons.get(one.reason, 0) + 1
    return dict(sorted(reasons.items(), key=lambda pair: -pair[1]))
