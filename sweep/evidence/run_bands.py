"""Bands on step time: how far published runs lie from what was predicted without their source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sweep.catalogs.bands import ANY
from sweep.catalogs.time_bands import EXPERTS, UNMEASURED, TimeBand
from sweep.evidence.calibrate import band_ends

# No band is narrower: clocks, cooling, library versions and fabrics differ between equal clusters.
_FLOOR = 0.05
_WIDEST = (0.4, 3.0)
_FEWEST = 3
# The runs of a band were predicted without their source: little of the spread is left unseen.
_LONE_SPREAD = 1.5
_BASIS = "5th to 95th percentile of measured over predicted, each source left out of the fit"


@dataclass(frozen=True)
class LeftOut:
    """A published run and its time over the one predicted by a fit that had not seen its source.

    `only_gpu` and `only_stack` say that no other source measured that GPU or that stack; `experts`
    that the model has some.
    """

    stack: str
    method: str
    source: str
    model: str
    ratio: float
    only_gpu: bool
    only_stack: bool
    experts: bool = False


def time_bands(runs: Sequence[LeftOut]) -> list[TimeBand]:
    """Bands by (stack, method) and by stack, and for stacks without evidence.

    Then what multiplies them for GPUs that nobody measured and for models with experts.
    """
    groups: dict[tuple[str, str], list[LeftOut]] = {}
    routed = [run for run in runs if run.experts]
    runs = [run for run in runs if not run.experts]
    for run in runs:
        for method in (run.method, ANY):
            groups.setdefault((run.stack, method), []).append(run)
    alone = [run for run in runs if run.only_stack]
    odd = [run for run in runs if run.only_gpu]
    general = _band(ANY, ANY, ANY, alone, f"{_BASIS}; stacks that one source measured")
    unmeasured = _band(ANY, ANY, UNMEASURED, odd, f"{_BASIS}; GPUs that one source measured")
    found = [
        _band(stack, method, ANY, members, _BASIS)
        for (stack, method), members in sorted(groups.items())
        if len(members) >= _FEWEST
    ]
    # Nothing is known better of a stack without evidence than of one with it.
    lowest = min((band.low for band in found if band.method == ANY), default=1.0)
    general = replace(general, low=min(general.low, lowest))
    return [general, unmeasured, _expert_factor(routed, found), *found]


def _expert_factor(runs: Sequence[LeftOut], found: Sequence[TimeBand]) -> TimeBand:
    """What is left of the spread of models with experts beyond the band of their stack."""
    if not runs:
        return TimeBand(ANY, ANY, EXPERTS, 1.0, 1.0, 0, 0, "no evidence")
    bands = {(band.stack, band.method): band for band in found}
    beyond = []
    for run in runs:
        band = bands.get((run.stack, run.method))
        ratio = run.ratio
        if band is not None:
            ratio = ratio / band.high if ratio > 1.0 else ratio / band.low
            # Inside its stack's band nothing more is needed.
            ratio = ratio if (ratio > 1.0) == (run.ratio > 1.0) else 1.0
        beyond.append(replace(run, ratio=ratio))
    return _band(ANY, ANY, EXPERTS, beyond, f"{_BASIS}; beyond the band of the stack")


def _band(stack: str, method: str, gpu: str, runs: Sequence[LeftOut], basis: str) -> TimeBand:
    members = [(f"{run.source} {run.model}", run.ratio) for run in runs]
    low, high, clusters = band_ends(members, _FLOOR, _WIDEST, _LONE_SPREAD)
    return TimeBand(stack, method, gpu, low, high, len(runs), clusters, basis)
