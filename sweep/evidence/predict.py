"""What the engine says of a point: three memory figures, a band, whether it fits, or a reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sweep.catalogs import Catalogs
from sweep.catalogs.bands import Band
from sweep.catalogs.hardware import Gpu
from sweep.errors import SweepError
from sweep.evidence.matching import Match, match_point
from sweep.evidence.points import Point, Unpredictable
from sweep.evidence.serving import serving_peak_bytes, serving_terms
from sweep.evidence.serving_points import read_serving
from sweep.scenario import Evaluation, evaluate_scenario
from sweep.units import GIB

# Which figure a point's `measure` names. A source that does not say how it measured may have read
# any of the three: the middle one is predicted, and the band is that of such sources.
FIGURE_OF_MEASURE: Mapping[str, str] = {
    "peak_allocated": "allocated",
    "traced_allocated": "allocated",
    "allocated weights": "allocated",
    "peak_reserved": "reserved",
    "nvidia_smi": "device",
    "unspecified": "reserved",
    "": "reserved",
}
# Drivers keep back a little of what a card is sold with: usable share of the cards of the catalog.
_USABLE_SHARE = 0.985

_RUNNING_PHASES = ("p_forward", "p_loss", "p_top", "p_bottom", "p_end")


@dataclass(frozen=True)
class Figures:
    """The three peaks of one GPU, and what the device must hold at the least [bytes].

    `device_bytes` is what nvidia-smi shows while the allocator may cache freely; `needed_bytes` what
    remains when it must give its cache back: feasibility is judged on it.
    """

    allocated_bytes: float
    reserved_bytes: float
    device_bytes: float
    needed_bytes: float
    terms: Mapping[str, float]

    def by_name(self, name: str) -> float:
        """The figure called allocated, reserved or device [bytes]."""
        return {
            "allocated": self.allocated_bytes,
            "reserved": self.reserved_bytes,
            "device": self.device_bytes,
        }[name]


@dataclass(frozen=True)
class Prediction:
    """A point with what is predicted for it; `reason` says why there is nothing else."""

    point: Point
    stack: str
    figures: Figures | None
    figure: str
    band: Band | None
    fits: bool | None
    reason: str
    match: Match | None = None

    @property
    def expected_bytes(self) -> float | None:
        """The figure the point's measure names [bytes]."""
        return self.figures.by_name(self.figure) if self.figures else None

    @property
    def low_bytes(self) -> float | None:
        """The low end of its band [bytes]."""
        expected = self.expected_bytes
        return expected * self.band.low if expected is not None and self.band else None

    @property
    def high_bytes(self) -> float | None:
        """The high end of its band [bytes]."""
        expected = self.expected_bytes
        return expected * self.band.high if expected is not None and self.band else None

    @property
    def error(self) -> float | None:
        """Predicted over measured, less one; None where either is missing."""
        measured = self.point.measured_bytes
        if measured is None or self.expected_bytes is None:
            return None
        return self.expected_bytes / measured - 1.0


def usable_bytes(point: Point, gpus: Mapping[str, Gpu]) -> float | None:
    """Memory the driver gives on a point's GPU, None when neither card nor size is known [bytes]."""
    stated = point["gpu_memory_gb"]
    wanted = point["gpu"].casefold()
    for gpu in gpus.values():
        if wanted and wanted in (name.casefold() for name in (gpu.key, *gpu.aliases)):
            return gpu.usable_bytes
    if not stated:
        return None
    # Sold gigabytes of a card are GiB.
    return point.number("gpu_memory_gb") * GIB * _USABLE_SHARE


def training_figures(evaluation: Evaluation, match: Match, usable: float | None) -> Figures:
    """Allocated, reserved and device peaks of a training step.

    Reserved: the blocks of the loss and of a layer's backward do not all serve each other, nor do
    the optimizer's; near the card's end the allocator gives its cache back (docs/physics.md, section
    "Allocated, reserved, device").
    """
    found = evaluation.quantities
    constants = match.book.stacks[match.scenario.program.stack].constants
    allocated = found["allocated"]
    base = found["resident"] + found["kept_backward"]
    loss = max(found["p_loss"], found["p_forward"]) - base
    layer = max(found["p_top"], found["p_bottom"] - found["held"]) - base
    smaller = max(0.0, min(loss, layer))
    several = match.scenario.gpus > 1
    share = constants["unshared_multi" if several else "unshared_single"]
    running = max(found[name] for name in _RUNNING_PHASES)
    reserved = max(allocated, running + share * smaller + found["step_temporary"])
    if match.scenario.program.cross_entropy == "plain":
        # Whole logits fit no freed block, where a stack's replayed allocator shows it.
        vocab = match.scenario.shape.model.vocab_size
        reserved += constants["reserved_logit_bytes"] * vocab * found["tokens"]
    needed = found["device"]
    overhead = constants["context_bytes"] + (constants["comm_bytes"] if several else 0.0)
    if usable is not None:
        limit = usable - overhead
        reserved = max(allocated, min(reserved, limit))
    return Figures(allocated, reserved, reserved + overhead, needed, found)


def _times(figures: Figures, gpus: int) -> Figures:
    """The figures of all GPUs together, for a source that prints their sum."""
    return Figures(
        figures.allocated_bytes * gpus,
        figures.reserved_bytes * gpus,
        figures.device_bytes * gpus,
        figures.needed_bytes * gpus,
        figures.terms,
    )


def predict_point(point: Point, catalogs: Catalogs) -> Prediction:
    """The prediction for one point; never raises for what the point says."""
    figure = FIGURE_OF_MEASURE.get(point["measure"], "reserved")
    try:
        usable = usable_bytes(point, catalogs.gpus)
        if point["task"] == "serve":
            return _predict_serving(point, catalogs, figure, usable)
        match = match_point(point, catalogs)
        evaluation = evaluate_scenario(match.scenario, match.book, stage=match.stage)
    except (Unpredictable, SweepError, ValueError) as error:
        return Prediction(point, point["stack"], None, figure, None, None, str(error))
    figures = training_figures(evaluation, match, usable)
    fits = None if usable is None else figures.needed_bytes <= usable
    if point["scope"] == "sum_all_gpus":
        figures = _times(figures, match.scenario.gpus)
    stack = match.scenario.program.stack
    band = catalogs.stacks.memory_band(
        stack, match.scenario.program.method, measured_by(point, figure)
    )
    return Prediction(point, stack, figures, figure, band, fits, "", match)


def measured_by(point: Point, figure: str) -> str:
    """The figure whose band holds for a point: its own, or that of sources that do not say."""
    return "unspecified" if point["measure"] in ("", "unspecified") else figure


def _predict_serving(
    point: Point, catalogs: Catalogs, figure: str, usable: float | None
) -> Prediction:
    serving = read_serving(point.words, catalogs.models)
    if isinstance(serving, str):
        raise Unpredictable(serving)
    allocated = serving_peak_bytes(serving)
    device = allocated + catalogs.stacks.stacks["hf"].constants["context_bytes"]
    figures = Figures(allocated, allocated, device, device, serving_terms(serving))
    band = catalogs.stacks.bands.find(
        (serving.engine, "serving"), "serve", measured_by(point, figure)
    )
    # A model spread over GPUs by a device map is summed over them.
    fits = None if usable is None else figures.needed_bytes * band.high <= usable * serving.gpus
    return Prediction(point, serving.engine, figures, figure, band, fits, "")
