"""The exchange rates that make prices in different currencies comparable."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweep.catalogs.folder import read_catalog
from sweep.catalogs.tables import Column
from sweep.errors import CatalogError, Problem

RATE_KEY = ("currency", "as_of")
RATE_COLUMNS = (
    Column("currency", str, required=True),
    Column("usd_per_unit", float, "USD", required=True, low=1e-6, high=100),
    Column("as_of", dt.date, required=True),
    Column("source", str, required=True),
    Column("locator", str),
    Column("assumed", str),
    Column("checked", dt.date, required=True),
    Column("notes", str),
)


@dataclass(frozen=True, slots=True)
class Rate:
    """What one unit of a currency was worth in USD on a day."""

    currency: str
    usd_per_unit: float
    as_of: dt.date
    source: str
    assumed: str


def load_rates(folders: Sequence[Path]) -> tuple[list[Rate], list[Problem]]:
    """The exchange rates of exchange_rates.csv, and every problem found."""
    rows, problems = read_catalog(folders, "exchange_rates.csv", RATE_COLUMNS, RATE_KEY)
    rates = [
        Rate(
            row["currency"], row["usd_per_unit"], row["as_of"], row["source"], row["assumed"] or ""
        )
        for row in rows
    ]
    return rates, problems


def usd_rates(
    rates: Iterable[Rate],
    overrides: Mapping[str, float] | None = None,
    as_of: dt.date | None = None,
) -> dict[str, float]:
    """USD per unit of each currency: the newest rate not after `as_of`, or the user's own.

    A currency whose rates are all newer than `as_of` gets its oldest. Raises CatalogError for an
    override that is not a positive number.
    """
    chosen: dict[str, Rate] = {}
    for rate in sorted(rates, key=lambda rate: rate.as_of):
        if rate.currency not in chosen or as_of is None or rate.as_of <= as_of:
            chosen[rate.currency] = rate
    result = {currency: rate.usd_per_unit for currency, rate in chosen.items()}
    result.setdefault("USD", 1.0)
    for currency, usd_per_unit in (overrides or {}).items():
        if not (math.isfinite(usd_per_unit) and usd_per_unit > 0):
            raise CatalogError(
                f"exchange rate of {currency}: found {usd_per_unit:g}, allowed a positive number "
                "of USD per unit"
            )
        result[currency] = float(usd_per_unit)
    return result
