"""What can go wrong, as one family of exceptions the command line turns into messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class SweepError(Exception):
    """A mistake in what the engine was given, or a failure around it; the text is meant for its user."""


class SpecError(SweepError):
    """The spec asks for something that cannot be: exit code 2."""


class CatalogError(SweepError):
    """A catalog file holds a value that cannot be right: exit code 2."""


class PlanError(SweepError):
    """Spec and catalogs together leave nothing to evaluate: exit code 2."""


class RunError(SweepError):
    """The output folder or a finished run cannot be used: exit code 1."""


class FolderInUse(RunError):
    """Another process writes to the output folder: it may be free later."""


@dataclass(frozen=True)
class Problem:
    """One finding: where it is, what was found, what would be allowed, what to do."""

    where: str
    what: str
    found: str
    allowed: str
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}: found {self.found}, allowed {self.allowed}"
        return f"{text}; {self.fix}" if self.fix else text


def format_problems(problems: Sequence[Problem]) -> str:
    """All problems, one per line, in the order they were found."""
    return "\n".join(str(problem) for problem in problems)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like the given one, or None when nothing is close."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[close[0]] if close else None
