"""Reading a catalog's CSV file against its declared columns: every fault found, none passed over."""

from __future__ import annotations

import csv
import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.errors import CatalogError, Problem, format_problems, nearest

_TRUE = {"y", "yes", "true", "1"}
_FALSE = {"n", "no", "false", "0"}


@dataclass(frozen=True)
class Column:
    """One declared column: its type, unit and what a value may be.

    `kind` is str, int, float, bool or date; an empty cell becomes None and is refused when `required`.
    `low` and `high` bound numbers (both allowed); `vocabulary` closes a set of words.
    """

    name: str
    kind: type
    unit: str = ""
    required: bool = False
    low: float = -math.inf
    high: float = math.inf
    vocabulary: tuple[str, ...] = ()
    description: str = ""


def _parse_number(column: Column, text: str) -> tuple[Any, str | None]:
    try:
        value = float(text)
    except ValueError:
        return None, f"a number{_unit(column)}"
    if not math.isfinite(value):
        return None, f"a finite number{_unit(column)}"
    if column.kind is int:
        if value != math.floor(value):
            return None, "a whole number"
        value = int(text) if text.lstrip("+-").isdigit() else int(value)
    if not column.low <= value <= column.high:
        return None, f"{column.low:g} to {column.high:g}{_unit(column)}"
    return value, None


def _unit(column: Column) -> str:
    return f" {column.unit}" if column.unit else ""


def parse_cell(column: Column, text: str) -> tuple[Any, str | None]:
    """The value of one cell, or what would have been allowed in its place."""
    text = text.strip()
    if not text:
        return None, "a value (the column is required)" if column.required else None
    if column.kind in (int, float):
        return _parse_number(column, text)
    if column.kind is bool:
        if text.casefold() in _TRUE:
            return True, None
        return (False, None) if text.casefold() in _FALSE else (None, "y or n")
    if column.kind is dt.date:
        try:
            return dt.date.fromisoformat(text), None
        except ValueError:
            return None, "a date as YYYY-MM-DD"
    if column.vocabulary and text not in column.vocabulary:
        close = nearest(text, column.vocabulary)
        hint = f" (did you mean {close!r}?)" if close else ""
        return None, "one of " + ", ".join(column.vocabulary) + hint
    return text, None


def _missing_columns(path: Path, header: Sequence[str], columns: Sequence[Column]) -> list[Problem]:
    known = {column.name for column in columns}
    problems = [
        Problem(f"{path}:1", f"column {column.name}", "no such column", "the column", "add it")
        for column in columns
        if column.required and column.name not in header
    ]
    for name in header:
        if name not in known:
            close = nearest(name, known - set(header))
            fix = f"did you mean {close!r}?" if close else "remove it"
            problems.append(
                Problem(f"{path}:1", f"column {name}", "an unknown column", "known names", fix)
            )
    return problems


def read_rows(
    path: Path, columns: Sequence[Column], key: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The rows of a CSV file, typed, with the line each began on under '_line', and its problems.

    A row with a problem is left out of the rows. `key` names the columns no two rows may share.
    """
    problems: list[Problem] = []
    rows: list[dict[str, Any]] = []
    first_line_of: dict[tuple[Any, ...], int] = {}
    try:
        handle = path.open(newline="", encoding="utf-8-sig")
    except OSError as error:
        return [], [Problem(str(path), "file", error.strerror or str(error), "a readable CSV file")]
    with handle:
        reader = csv.reader(handle)
        try:
            header = next(reader, None)
            if not header:
                return [], [Problem(f"{path}:1", "header", "an empty file", "column names")]
            problems += _missing_columns(path, header, columns)
            if any(column.required and column.name not in header for column in columns):
                return [], problems
            by_name = {column.name: column for column in columns}
            known = [by_name.get(name) for name in header]
            # Cells repeat from row to row: each text of a column is parsed once.
            parsed: list[dict[str, tuple[Any, str | None]]] = [{} for _ in header]
            nothing: dict[str, Any] = {column.name: None for column in columns}
            while True:
                line = reader.line_num + 1
                cells = next(reader, None)
                if cells is None:
                    break
                if not any(cells):
                    continue
                if len(cells) != len(header):
                    problems.append(
                        Problem(f"{path}:{line}", "row", f"{len(cells)} cells", f"{len(header)}")
                    )
                    continue
                row: dict[str, Any] = {**nothing, "_line": line}
                good = True
                for column, text, found in zip(known, cells, parsed, strict=True):
                    if column is None:
                        continue
                    if text not in found:
                        found[text] = parse_cell(column, text)
                    row[column.name], allowed = found[text]
                    if allowed:
                        good = False
                        where = f"{path}:{line}, {column.name}"
                        problems.append(
                            Problem(where, "value", repr(text) if text else "nothing", allowed)
                        )
                if good and key:
                    identity = tuple(row[name] for name in key)
                    if identity in first_line_of:
                        good = False
                        problems.append(
                            Problem(
                                f"{path}:{line}, {'+'.join(key)}",
                                "key",
                                f"{identity} again (first on line {first_line_of[identity]})",
                                "each key once",
                                "remove or rename one of them",
                            )
                        )
                    first_line_of.setdefault(identity, line)
                if good:
                    rows.append(row)
        except (csv.Error, UnicodeDecodeError) as error:
            problems.append(Problem(f"{path}:{reader.line_num}", "text", str(error), "UTF-8 CSV"))
    return rows, problems


def raise_if(problems: Sequence[Problem]) -> None:
    """Raise one CatalogError that names every problem, if there is any."""
    if problems:
        raise CatalogError(format_problems(problems))
