"""Mistakes found in a spec's text, gathered with their places and told in the order of the text."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweep.errors import Problem, SpecError, format_problems
from sweep.spec_locations import BARE_KEY, Location, Locations

MOST_PROBLEMS = 50


@dataclass(frozen=True)
class _Finding:
    line_column: tuple[int, int]
    problem: Problem


@dataclass
class Findings:
    """A spec being checked: its tree, where things stand in its text, and what was found so far."""

    path: Path
    tree: dict[str, Any]
    locations: Locations
    found: list[_Finding] = field(default_factory=list)

    def at_value(self, path: Location, found: str, allowed: str, fix: str = "") -> None:
        """Note a mistake at the value of a path."""
        self._add(self.locations.of_value(path), path, found, allowed, fix)

    def at_key(self, path: Location, found: str, allowed: str, fix: str = "") -> None:
        """Note a mistake at the key of a path, or at what is around it if the key is absent."""
        self._add(self.locations.of_key(path), path, found, allowed, fix)

    def _add(
        self, line_column: tuple[int, int], path: Location, found: str, allowed: str, fix: str
    ) -> None:
        where = f"{self.path}:{line_column[0]}:{line_column[1]}"
        problem = Problem(where, key_name(path, self.tree), found, allowed, fix)
        self.found.append(_Finding(line_column, problem))

    def place_of_key(self, path: Location) -> str:
        """A key's place as line:column."""
        line, column = self.locations.of_key(path)
        return f"{line}:{column}"

    def place_of_value(self, path: Location) -> str:
        """A value's place as line:column."""
        line, column = self.locations.of_value(path)
        return f"{line}:{column}"

    def table(self, key: str) -> dict[str, Any]:
        """A section as written, empty if it is absent or no table."""
        section = self.tree.get(key, {})
        return section if isinstance(section, dict) else {}

    def raise_if_any(self) -> None:
        """Raise one SpecError with everything found, if there is anything."""
        if not self.found:
            return
        ordered = sorted(self.found, key=lambda finding: finding.line_column)
        problems = [finding.problem for finding in ordered]
        text = format_problems(problems[:MOST_PROBLEMS])
        if len(problems) > MOST_PROBLEMS:
            text += f"\n{self.path}: and {len(problems) - MOST_PROBLEMS:,} more"
        raise SpecError(text)


def key_name(path: Location, tree: dict[str, Any]) -> str:
    """A path as people read it; the index of a value that stands alone is not shown."""
    text = ""
    node: Any = tree
    for part in path:
        if isinstance(part, str):
            name = part if BARE_KEY.fullmatch(part) and len(part) <= 60 else shown(part)
            text += f".{name}" if text else name
            node = node.get(part) if isinstance(node, dict) else None
        elif isinstance(node, list):
            text += f"[{part}]"
            node = node[part]
    return text


def shown(value: Any) -> str:
    """A value as the file has it, cut to what fits a line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = value if len(value) <= 60 else value[:57] + "..."
        printable = (sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
        return '"' + "".join(printable) + '"'
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, int) and abs(value) >= 10**18:
        return f"a whole number of {value.bit_length():,} bits"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.1f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.12g}"
    return value.isoformat() if isinstance(value, dt.date | dt.time) else str(value)
