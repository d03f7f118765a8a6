"""What is known of a source of measured points beyond the columns of its rows."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweep.catalogs.folder import read_catalog
from sweep.catalogs.tables import Column
from sweep.errors import Problem

_COLUMNS = (
    Column("source_contains", str, required=True),
    Column(
        "setting",
        str,
        required=True,
        vocabulary=(
            "transformers",
            "lora_dropout",
            "compile",
            "trainer",
            "lora_target",
            "full_stack",
        ),
    ),
    Column("value", str, required=True),
    Column("source", str, required=True),
    Column("locator", str, required=True),
    Column("checked", dt.date, required=True),
    Column("notes", str),
)


@dataclass(frozen=True)
class EvidenceSetting:
    """A setting of every point whose source holds a text: a fact read there, not in the row."""

    source_contains: str
    setting: str
    value: str


def load_evidence_settings(
    folders: Sequence[Path],
) -> tuple[tuple[EvidenceSetting, ...], list[Problem]]:
    """The settings of all folders, in order, and every problem of evidence_settings.csv."""
    key = ("source_contains", "setting")
    rows, problems = read_catalog(folders, "evidence_settings.csv", _COLUMNS, key)
    found = tuple(
        EvidenceSetting(row["source_contains"], row["setting"], row["value"]) for row in rows
    )
    return found, problems
