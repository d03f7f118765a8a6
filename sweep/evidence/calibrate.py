"""Bands from evidence: how far measured peaks lie from predicted ones, by stack, method and figure.

About nine in ten points that played no part should fall inside. Points of one source and model are
not independent, so each such cluster weighs the same, and few clusters widen the band.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sweep.catalogs.bands import Band
from sweep.evidence.predict import Prediction, measured_by
from sweep.evidence.validate import is_full_length
from sweep.units import GIB

# No band is narrower than this on either side, whatever the visible points say: rounding of printed
# figures, library versions, the allocator's blocks.
_FLOOR = {"allocated": 0.015, "reserved": 0.04, "device": 0.05, "unspecified": 0.08}
_TAIL = 0.05
# Beyond this a band says nothing.
_WIDEST = (0.3, 4.0)
# Rows of one file or commit are one source.
_LINE = re.compile(r"\b(line|row|lines|rows) [\d-]+")
_FEWEST_POINTS = 3


def _weighted_quantile(pairs: Sequence[tuple[float, float]], share: float) -> float:
    ordered = sorted(pairs)
    total = sum(weight for _, weight in ordered)
    reached = 0.0
    for value, weight in ordered:
        reached += weight
        if reached >= share * total:
            return value
    return ordered[-1][0]


def band_ends(
    members: Sequence[tuple[str, float]],
    floor: float,
    widest: tuple[float, float] = _WIDEST,
    lone_spread: float = 3.0,
) -> tuple[float, float, int]:
    """Low and high end of a band about ratios of measured over predicted, and their clusters.

    `members` are (cluster, ratio). Points of a cluster weigh as one. With one cluster the spread among
    sources is unknown: `lone_spread` times what is seen, and less with each more. Ratios spread
    multiplicatively: 2 and 1/2 are as far off as one another. No end is nearer to 1 than `floor`.
    """
    sizes: dict[str, int] = {}
    for cluster, _ in members:
        sizes[cluster] = sizes.get(cluster, 0) + 1
    weighted = [(ratio, 1.0 / sizes[cluster]) for cluster, ratio in members]
    inflation = 1.0 + (lone_spread - 1.0) / len(sizes)
    low = _weighted_quantile(weighted, _TAIL) ** inflation
    high = _weighted_quantile(weighted, 1.0 - _TAIL) ** inflation
    return (
        round(max(widest[0], min(1.0 - floor, low)), 3),
        round(min(widest[1], max(1.0 + floor, high)), 3),
        len(sizes),
    )


def calibrate(predictions: Iterable[Prediction]) -> list[Band]:
    """Bands of every (stack, method, figure) and (stack, any method, figure) with enough points."""
    groups: dict[tuple[str, str, str], list[tuple[str, float]]] = {}
    for one in predictions:
        measured, expected = one.point.measured_bytes, one.expected_bytes
        if measured is None or expected is None or not is_full_length(one.point):
            continue
        figure = measured_by(one.point, one.figure)
        method = "serve" if one.point["task"] == "serve" else _method(one)
        cluster = f"{_LINE.sub('', one.point['source'])} {one.point['model']}"
        for named, ratio in [(figure, measured / expected), *_other_figures(one)]:
            for name in (method, "*"):
                groups.setdefault((one.stack, name, named), []).append((cluster, ratio))
    return [
        _band(key, members)
        for key, members in sorted(groups.items())
        if len(members) >= _FEWEST_POINTS
    ]


def _other_figures(one: Prediction) -> list[tuple[str, float]]:
    """Ratios of the reserved and device figures a point states beside its peak."""
    assert one.figures is not None
    found = []
    for column, named in (("reserved_gib", "reserved"), ("device_used_gib", "device")):
        if one.point[column] and one.figure != named:
            measured = one.point.number(column) * GIB
            found.append((named, measured / one.figures.by_name(named)))
    return found


def _method(one: Prediction) -> str:
    return one.match.scenario.program.method if one.match else one.point["method"]


def _band(key: tuple[str, str, str], members: Sequence[tuple[str, float]]) -> Band:
    low, high, clusters = band_ends(members, _FLOOR[key[2]])
    return Band(
        *key,
        low=low,
        high=high,
        points=len(members),
        sources=clusters,
        basis="5th to 95th percentile of measured over predicted",
    )
