"""Rules over offers and exchange rates: prices that cannot be, or stand apart from their like."""

from __future__ import annotations

import itertools
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sweep.catalogs.check_gpus import Fault, Row, host_faults
from sweep.catalogs.hardware import Gpu, gpu_names
from sweep.catalogs.offers import OFFER_COLUMNS, ON_REQUEST_REASONS, unrankable_reason
from sweep.errors import Problem, nearest

_PROVIDER = re.compile(r"[a-z0-9.-]+")
_CURRENCY = re.compile(r"[A-Z]{3}")
# USD for one unit: what the currencies a price is likely to come in have been worth since 2015.
_USD_BANDS = {
    "CNY": (0.12, 0.18),
    "EUR": (0.9, 1.4),
    "GBP": (1.0, 1.7),
    "JPY": (0.005, 0.012),
    "INR": (0.009, 0.018),
    "KRW": (0.0006, 0.0011),
    "USD": (1.0, 1.0),
}
# How far a price may stand from the median of its like before it wants confirming. List prices of one
# machine differ between regions and years by a factor of 1.8 at most in the shipped catalog, spot
# prices by 5; one provider's prices for one GPU by 3 below the median (bigger hosts reach further up).
_SAME_MACHINE = {"on_demand": 2.5, "reserved_1y": 2.5, "reserved_3y": 2.5, "spot": 6.0}
_SAME_PROVIDER = {"on_demand": 3.5, "reserved_1y": 3.5, "reserved_3y": 3.5, "spot": 6.0}
_SAME_GPU = 8.0
# The cheapest real offers cost 9e-4 (on demand) and 4.5e-4 (spot) USD per dense 16-bit TFLOP-hour.
_FLOOR_USD_PER_TFLOP_HOUR = {"spot": 3e-4}
_FLOOR_OTHERWISE = 6e-4
_CONFIRM = "correct it, or say in confirmed why it is right"


def _problem(row: Row, fault: Fault) -> Problem:
    column, what, found, allowed, fix = fault
    return Problem(f"{row['_path']}:{row['_line']}, {column}", what, found, allowed, fix)


class _Priced:
    """A row with its price per GPU-hour in USD."""

    __slots__ = ("gpu", "reason", "row", "usd_per_gpu_hour")

    def __init__(self, row: Row, gpu: Gpu | None, reason: str, usd_per_unit: float) -> None:
        self.row = row
        self.gpu = gpu
        self.reason = reason
        self.usd_per_gpu_hour = row["price_per_hour"] * usd_per_unit / row["gpu_count"]

    def parts(self, *names: str) -> tuple[Any, ...]:
        """The row's values of some columns, the GPU by its key."""
        gpu = self.gpu.key if self.gpu else self.row["gpu"]
        return tuple(gpu if name == "gpu" else self.row[name] for name in names)


def _word_faults(row: Row, rates: Mapping[str, float]) -> Iterator[Fault]:
    if not _PROVIDER.fullmatch(row["provider"]):
        yield "provider", "provider", repr(row["provider"]), "lower case, digits, . and -", ""
    if not _CURRENCY.fullmatch(row["currency"]) or row["currency"] not in rates:
        close = nearest(row["currency"], rates)
        fix = f"did you mean {close!r}?" if close else "add its rate to exchange_rates.csv"
        known = "one with a rate: " + ", ".join(rates)
        yield "currency", "currency", repr(row["currency"]), known, fix
    if row["rankable"] is False and not row["unrankable_reason"]:
        yield "unrankable_reason", "mark", "no reason for rankable = n", "a reason", ""
    if row["checked"] and row["as_of"] and row["as_of"] > row["checked"]:
        found = f"{row['as_of']}, checked on {row['checked']}"
        yield "as_of", "date", found, "a day not after the check", "correct one of them"
    names = {column.name for column in OFFER_COLUMNS}
    for name in (row["assumed"] or "").split(";"):
        if name and name not in names:
            yield "assumed", "mark", repr(name), "names of columns", ""
    if (
        row["scope"] == "instance"
        and row["gpu_count"] == int(row["gpu_count"])
        and (not row["confirmed"])
    ):
        yield from host_faults(row)


def _median_faults(
    offers: Sequence[_Priced],
    like: Callable[[_Priced], tuple[Any, ...]],
    name: str,
    low: Callable[[str], float],
    high: Callable[[str], float] | None,
    fewest: int,
) -> Iterator[tuple[Row, Fault]]:
    """Prices too far from the median of the other offers of their group."""
    groups: dict[tuple[Any, ...], list[_Priced]] = defaultdict(list)
    for offer in offers:
        groups[like(offer)].append(offer)
    for group in groups.values():
        if len(group) < fewest:
            continue
        median = statistics.median(offer.usd_per_gpu_hour for offer in group)
        for offer in group:
            model, price = offer.row["price_model"], offer.usd_per_gpu_hour
            least = median / low(model)
            most = median * high(model) if high else float("inf")
            if not least <= price <= most:
                allowed = f"{least:.3g} to {most:.3g}" if high else f"at least {least:.3g}"
                what = "price (a GPU-only price?)" if price < least else "price"
                found = (
                    f"{price:.3g} USD per GPU-hour, {price / median:.2f} of the median of {name}"
                )
                yield offer.row, ("price_per_hour", what, found, allowed, _CONFIRM)


def _floor_faults(offers: Sequence[_Priced]) -> Iterator[tuple[Row, Fault]]:
    for offer in offers:
        if offer.gpu is None:
            continue
        peak = max(offer.gpu.bf16_flop_per_s or 0.0, offer.gpu.fp16_flop_per_s or 0.0) / 1e12
        rate = _FLOOR_USD_PER_TFLOP_HOUR.get(offer.row["price_model"], _FLOOR_OTHERWISE)
        if offer.usd_per_gpu_hour < rate * peak and offer.row["price_model"] != "owned":
            found = f"{offer.usd_per_gpu_hour:.3g} USD per GPU-hour of {offer.gpu.key}"
            allowed = f"at least {rate * peak:.3g}"
            what = "price (a GPU-only price?)"
            yield offer.row, ("price_per_hour", what, found, allowed, _CONFIRM)


def _pair_faults(offers: Sequence[_Priced]) -> Iterator[tuple[Row, Fault]]:
    """Same machine, same day: two prices of one kind, or a discount that is none."""
    machines: dict[tuple[Any, ...], dict[str, Row]] = defaultdict(dict)
    for offer in offers:
        row = offer.row
        names = ("provider", "instance_type", "gpu", "gpu_count", "region", "currency", "as_of")
        models = machines[offer.parts(*names)]
        first = models.setdefault(row["price_model"], row)
        if first["price_per_hour"] != row["price_per_hour"]:
            found = f"{row['price_per_hour']:g}, and {first['price_per_hour']:g} at line {first['_line']}"
            yield row, ("price_per_hour", "two prices of one day", found, "one price", _CONFIRM)
    for models in machines.values():
        for cheaper, dearer in (
            ("spot", "on_demand"),
            ("reserved_1y", "on_demand"),
            ("reserved_3y", "reserved_1y"),
            ("reserved_3y", "on_demand"),
        ):
            if cheaper in models and dearer in models:
                price, other = models[cheaper]["price_per_hour"], models[dearer]["price_per_hour"]
                if price >= other:
                    found = f"{cheaper} at {price:g}, {dearer} at {other:g}"
                    allowed = f"{cheaper} below {dearer}"
                    yield models[cheaper], ("price_per_hour", "discount", found, allowed, _CONFIRM)


def check_offers(
    rows: Sequence[Row], gpus: Mapping[str, Gpu], rates: Mapping[str, float]
) -> list[Problem]:
    """What cannot be true of offers; odd prices with a reason in `confirmed` are left alone."""
    keys = gpu_names(gpus)
    problems: list[Problem] = []
    priced: list[_Priced] = []
    for row in rows:
        problems += [_problem(row, fault) for fault in _word_faults(row, rates)]
        gpu = gpus.get(keys.get(row["gpu"].casefold(), ""))
        reason = unrankable_reason(row, gpu is not None)
        if row["currency"] in rates and reason in ("", *ON_REQUEST_REASONS):
            priced.append(_Priced(row, gpu, reason, rates[row["currency"]]))
    machines = [offer for offer in priced if not offer.reason]
    found: dict[tuple[str, int], tuple[Row, Fault]] = {}
    for row, fault in (
        *_floor_faults(priced),
        *_median_faults(
            machines,
            lambda offer: offer.parts("provider", "instance_type", "price_model"),
            "this machine's offers",
            lambda model: _SAME_MACHINE.get(model, _SAME_GPU),
            lambda model: _SAME_MACHINE.get(model, _SAME_GPU),
            4,
        ),
        *_median_faults(
            machines,
            lambda offer: offer.parts("provider", "gpu", "price_model"),
            "this provider's offers of the GPU",
            lambda model: _SAME_PROVIDER.get(model, _SAME_GPU),
            None,
            8,
        ),
        *_median_faults(
            priced,
            lambda offer: (*offer.parts("gpu", "price_model"), offer.reason == ""),
            "all offers of the GPU",
            lambda _: _SAME_GPU,
            lambda _: _SAME_GPU,
            4,
        ),
        *_pair_faults(machines),
    ):
        if not row["confirmed"]:
            found.setdefault((str(row["_path"]), row["_line"]), (row, fault))
    return problems + [_problem(row, fault) for row, fault in found.values()]


def check_rates(rows: Sequence[Row]) -> list[Problem]:
    """What cannot be true of exchange rates: mostly a rate the wrong way round."""
    problems = []
    dated: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        dated[row["currency"]].append(row)
        if not _CURRENCY.fullmatch(row["currency"]):
            fault = ("currency", "currency", repr(row["currency"]), "three capitals (ISO 4217)", "")
            problems.append(_problem(row, fault))
        least, most = _USD_BANDS.get(row["currency"], (0.0, float("inf")))
        if not least <= row["usd_per_unit"] <= most:
            found = f"{row['usd_per_unit']:g} USD for one {row['currency']}"
            fix = "give USD per unit, not units per USD"
            fault = ("usd_per_unit", "exchange rate", found, f"{least:g} to {most:g}", fix)
            problems.append(_problem(row, fault))
    for currency, group in dated.items():
        group.sort(key=lambda row: str(row["as_of"]))
        for before, after in itertools.pairwise(group):
            change = after["usd_per_unit"] / before["usd_per_unit"]
            if currency not in _USD_BANDS and not 0.5 <= change <= 2.0:
                found = f"{after['usd_per_unit']:g} after {before['usd_per_unit']:g}"
                fix = "give USD per unit, not units per USD"
                allowed = "a change by less than a factor of 2"
                fault = ("usd_per_unit", "exchange rate", found, allowed, fix)
                problems.append(_problem(after, fault))
    return problems
