"""How far measured step times lie from predicted ones, as shares of the prediction, by stack and method."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sweep.catalogs.bands import ANY
from sweep.catalogs.folder import read_catalog
from sweep.catalogs.tables import Column
from sweep.errors import Problem, nearest
from sweep.vocabulary import METHODS

# Rows that hold for GPUs whose sustained rate is assumed, on top of the row for any GPU.
UNMEASURED = "unmeasured"
# The same for models with experts: their load, kernels and exchange differ between releases.
EXPERTS = "experts"
_COLUMNS = (
    Column("stack", str, required=True),
    Column("method", str, required=True, vocabulary=(*METHODS, ANY)),
    Column("gpu", str, required=True, vocabulary=(ANY, UNMEASURED, EXPERTS)),
    Column("low", float, "ratio", required=True, low=0.1, high=1.0),
    Column("high", float, "ratio", required=True, low=1.0, high=20.0),
    Column("points", int, required=True, low=0),
    Column("sources", int, required=True, low=0),
    Column("basis", str, required=True),
    Column("source", str, required=True),
    Column("checked", dt.date, required=True),
)


@dataclass(frozen=True)
class TimeBand:
    """About nine in ten measured step times lie between low and high times the predicted one."""

    stack: str
    method: str
    gpu: str
    low: float
    high: float
    points: int
    sources: int
    basis: str

    @property
    def provenance(self) -> str:
        """Where the band is from, for people."""
        of = f"{self.stack} {self.method}" if self.stack != ANY else "any stack"
        if not self.points:
            return f"time_bands.csv: {of}, assumed"
        points = "1 point" if self.points == 1 else f"{self.points} points"
        sources = "1 source" if self.sources == 1 else f"{self.sources} sources"
        return f"time_bands.csv: {of}, {points} of {sources}"


@dataclass(frozen=True)
class TimeBandBook:
    """All bands; the most specific one for a stack's lineage and a method is found."""

    bands: tuple[TimeBand, ...]

    def find(
        self, lineage: Sequence[str], method: str, measured: bool, experts: bool = False
    ) -> TimeBand:
        """The band of the nearest stack, its method before any; the general one where nothing is known.

        On a GPU whose sustained rate is not `measured`, and for a model with `experts`, both ends are
        multiplied by those of the nearest row for such.
        """
        band = self._nearest(lineage, method, ANY)
        if not measured:
            band = _wider(band, self._nearest(lineage, method, UNMEASURED), "a GPU not measured")
        if experts:
            band = _wider(band, self._nearest(lineage, method, EXPERTS), "a model with experts")
        return band

    def expert_factor(self) -> TimeBand:
        """What the band of a model with experts is multiplied by, whatever its stack and method."""
        return self._nearest((), ANY, EXPERTS)

    def _nearest(self, lineage: Sequence[str], method: str, gpu: str) -> TimeBand:
        known = {(band.stack, band.method): band for band in self.bands if band.gpu == gpu}
        for stack in (*lineage, ANY):
            for name in (method, ANY):
                if band := known.get((stack, name)):
                    return band
        raise KeyError(f"time_bands.csv has no general band ({ANY}, {ANY}, {gpu})")


def _wider(band: TimeBand, by: TimeBand, what: str) -> TimeBand:
    return replace(
        band,
        gpu=by.gpu,
        low=band.low * by.low,
        high=band.high * by.high,
        basis=f"{band.basis}; {what}: {by.basis}",
    )


def load_time_bands(
    folders: Sequence[Path], stacks: Collection[str] | None = None
) -> tuple[TimeBandBook, list[Problem]]:
    """The bands of all folders, and every problem of time_bands.csv; `stacks` are the keys it may name."""
    rows, problems = read_catalog(folders, "time_bands.csv", _COLUMNS, ("stack", "method", "gpu"))
    for row in rows:
        if stacks is not None and row["stack"] not in (*stacks, ANY):
            close = nearest(row["stack"], stacks)
            where = f"{row['_path']}:{row['_line']}, stack"
            fix = f"did you mean {close!r}?" if close else ""
            problems.append(Problem(where, "stack", repr(row["stack"]), f"a stack or {ANY}", fix))
    bands = tuple(
        TimeBand(
            row["stack"], row["method"], row["gpu"], row["low"], row["high"], row["points"],
            row["sources"], row["basis"],
        )
        for row in rows
    )  # fmt: skip
    known = {(band.stack, band.method, band.gpu) for band in bands}
    for row in rows:
        if row["gpu"] == EXPERTS and (row["stack"], row["method"]) != (ANY, ANY):
            where = f"{row['_path']}:{row['_line']}, gpu"
            wanted = f"one row with {ANY}, {ANY}, {EXPERTS}"
            problems.append(Problem(where, "experts", f"{row['stack']}, {row['method']}", wanted))
    for gpu in (ANY, UNMEASURED, EXPERTS):
        if (ANY, ANY, gpu) not in known:
            where = ", ".join(str(folder / "time_bands.csv") for folder in folders)
            wanted = f"a row with {ANY}, {ANY}, {gpu}"
            problems.append(Problem(where, "general band", "none", wanted))
    return TimeBandBook(bands), problems
