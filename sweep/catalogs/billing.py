"""By what steps providers bill a machine: facts that turn the hours of a job into the hours paid for."""

from __future__ import annotations

import datetime as dt
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sweep.catalogs.folder import read_catalog
from sweep.catalogs.tables import Column
from sweep.errors import Problem

ANY = "*"
# An hour is the coarsest step rented machines have, and the ranking relies on it: which numbers of
# nodes may be the cheapest is decided before prices are known (sweep/sql/views/best_by_shape.sql).
COARSEST_S = 3600.0
GRANULARITY = Column("granularity_s", float, "s", required=True, low=1.0, high=COARSEST_S)
MINIMUM = Column("minimum_s", float, "s", required=True, low=0.0, high=COARSEST_S)
_COLUMNS = (
    Column("provider", str, required=True),
    Column("instance_type", str, required=True, description="a glob; * for all of the provider's"),
    GRANULARITY,
    MINIMUM,
    Column("source", str, required=True),
    Column("locator", str),
    Column("checked", dt.date, required=True),
    Column("notes", str),
    Column("assumed", str, description="columns inferred or assumed"),
)


@dataclass(frozen=True, slots=True)
class Billing:
    """A machine is billed by whole steps of `granularity_s`, for at least `minimum_s`."""

    provider: str
    instance_type: str
    granularity_s: float
    minimum_s: float
    source: str
    notes: str
    assumed: str


@dataclass(frozen=True)
class BillingBook:
    """How every provider bills; what has no row of its own takes the general one."""

    rows: tuple[Billing, ...]

    @cached_property
    def _known(self) -> dict[tuple[str, str], Billing]:
        """What was found before: thousands of offers are of some hundred machines."""
        return {}

    @cached_property
    def _of(self) -> dict[str, list[Billing]]:
        found: dict[str, list[Billing]] = {}
        for row in self.rows:
            found.setdefault(row.provider, []).append(row)
        return found

    def find(self, provider: str, instance_type: str) -> Billing:
        """The row of the longest matching pattern among the provider's, else the general row."""
        if (provider, instance_type) in self._known:
            return self._known[provider, instance_type]
        folded = instance_type.casefold()
        for name in (provider, ANY):
            matching = [
                row
                for row in self._of.get(name, ())
                if fnmatch.fnmatchcase(folded, row.instance_type.casefold())
            ]
            if matching:
                found = max(matching, key=lambda row: len(row.instance_type))
                self._known[provider, instance_type] = found
                return found
        raise KeyError(f"billing.csv has no general row ({ANY}, {ANY})")


def load_billing(folders: Sequence[Path]) -> tuple[BillingBook, list[Problem]]:
    """How providers bill by the files of all folders, and every problem of billing.csv."""
    rows, problems = read_catalog(folders, "billing.csv", _COLUMNS, ("provider", "instance_type"))
    found = tuple(
        Billing(
            row["provider"], row["instance_type"], row["granularity_s"], row["minimum_s"],
            row["source"], row["notes"] or "", row["assumed"] or "",
        )
        for row in rows
    )  # fmt: skip
    if not any((row.provider, row.instance_type) == (ANY, ANY) for row in found):
        where = ", ".join(str(folder / "billing.csv") for folder in folders)
        problems.append(Problem(where, "general row", "none", f"a row with {ANY}, {ANY}"))
    return BillingBook(found), problems
