"""How far measured peaks lie from predicted ones, as shares of the prediction, by stack and method."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweep.catalogs.folder import read_catalog
from sweep.catalogs.tables import Column
from sweep.errors import Problem

ANY = "*"
# Where a stack has no points of a figure, the one whose band stands for it.
_STANDS_FOR = {
    "allocated": ("reserved",),
    "reserved": ("device", "allocated"),
    "device": ("reserved",),
}
_COLUMNS = (
    Column("stack", str, required=True),
    Column("method", str, required=True),
    Column("figure", str, required=True),
    Column("low", float, "ratio", required=True, low=0.1, high=1.0),
    Column("high", float, "ratio", required=True, low=1.0, high=20.0),
    Column("points", int, required=True),
    Column("sources", int, required=True),
    Column("basis", str, required=True),
    Column("source", str, required=True),
    Column("checked", dt.date, required=True),
)


@dataclass(frozen=True)
class Band:
    """About nine in ten measured peaks lie between low and high times the predicted one."""

    stack: str
    method: str
    figure: str
    low: float
    high: float
    points: int
    sources: int
    basis: str


@dataclass(frozen=True)
class BandBook:
    """All bands; the most specific one for a stack's lineage, a method and a figure is found."""

    bands: tuple[Band, ...]

    def find(self, lineage: Sequence[str], method: str, figure: str) -> Band:
        """The band of the nearest stack and method; the general one where nothing is known."""
        known = {(band.stack, band.method, band.figure): band for band in self.bands}
        figures = (figure, *_STANDS_FOR.get(figure, ()), ANY)
        for stack in (*lineage, ANY):
            for name in figures:
                for one in (method, ANY):
                    if band := known.get((stack, one, name)):
                        return band
        raise KeyError("memory_bands.csv has no general band (*, *, *)")


def load_bands(folders: Sequence[Path]) -> tuple[BandBook, list[Problem]]:
    """The bands of all folders, and every problem of memory_bands.csv."""
    rows, problems = read_catalog(
        folders, "memory_bands.csv", _COLUMNS, ("stack", "method", "figure")
    )
    bands = tuple(
        Band(
            row["stack"], row["method"], row["figure"], row["low"], row["high"], row["points"],
            row["sources"], row["basis"],
        )
        for row in rows
    )  # fmt: skip
    if not any((band.stack, band.method, band.figure) == (ANY, ANY, ANY) for band in bands):
        where = ", ".join(str(folder / "memory_bands.csv") for folder in folders)
        problems.append(Problem(where, "general band", "none", "a row with *, *, *"))
    return BandBook(bands), problems
