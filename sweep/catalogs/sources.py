"""The sources every catalog row points to."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweep.catalogs.folder import read_catalog
from sweep.catalogs.tables import Column
from sweep.errors import Problem

SOURCE_COLUMNS = (
    Column("source", str, required=True, description="key"),
    Column("title", str, required=True),
    Column("url_or_repo", str, required=True),
    Column("licence", str, required=True, description="'not stated' where none was found"),
    Column("retrieved", dt.date, required=True),
    Column("notes", str),
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a figure was read: a publication, repository or page, its licence, the day it was read."""

    key: str
    title: str
    url_or_repo: str
    licence: str
    retrieved: dt.date
    notes: str


def load_sources(folders: Sequence[Path]) -> tuple[dict[str, Source], list[Problem]]:
    """The sources of sources.csv by key, and every problem found."""
    rows, problems = read_catalog(folders, "sources.csv", SOURCE_COLUMNS, ("source",))
    sources = {
        row["source"]: Source(
            row["source"],
            row["title"],
            row["url_or_repo"],
            row["licence"],
            row["retrieved"],
            row["notes"] or "",
        )
        for row in rows
    }
    return sources, problems
