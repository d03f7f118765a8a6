"""Dated prices of machines as frozen values: what was asked for what, where, on which day."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sweep.catalogs.billing import GRANULARITY, MINIMUM, BillingBook, load_billing
from sweep.catalogs.folder import read_catalog
from sweep.catalogs.hardware import Gpu, Instance, gpu_names, load_gpus, load_instances
from sweep.catalogs.tables import Column, read_rows
from sweep.errors import Problem, nearest
from sweep.units import GBIT_PER_S_BYTES
from sweep.vocabulary import PRICE_MODELS

SCOPES = ("instance", "per_gpu")
# Why an offer is kept but not ranked. The first two are ranked when asked for, the others never.
ON_REQUEST_REASONS = ("per_gpu_price_list", "undated")
UNRANKABLE_REASONS = (
    *ON_REQUEST_REASONS,
    "gpu_only_price",
    "estimated_price",
    "doubtful_listing",
    "fractional_gpu",
    "unknown_gpu",
    "withdrawn",
)
# Prices that importers met in place of "none": Azure's and Vast's 0.0 fall to the range of the
# column, Google's 700.0 for machines it does not sell by the hour stands here.
PLACEHOLDER_PRICES = (700.0, 999.0, 9999.0, 999999.0)
# No machine of the catalog costs a quarter of this per GPU; a price in cents or per month does.
MAX_USD_PER_GPU_HOUR = 250.0

OFFER_COLUMNS = (
    Column("provider", str, required=True),
    Column("instance_type", str, required=True),
    Column("gpu", str, required=True, description="catalog key or alias"),
    Column("gpu_count", float, "GPUs", required=True, low=0.01, high=128),
    Column("region", str, required=True, description="'not stated' where the source gives none"),
    Column("price_model", str, required=True, vocabulary=PRICE_MODELS),
    Column("price_per_hour", float, "per hour of the whole machine", True, low=0.001, high=1e6),
    Column("currency", str, required=True, description="ISO 4217, as quoted"),
    Column("as_of", dt.date, description="day the price was seen; empty = undated, never ranked"),
    Column("scope", str, required=True, vocabulary=SCOPES),
    Column("rankable", bool),
    Column("unrankable_reason", str, vocabulary=UNRANKABLE_REASONS),
    Column("vcpus", float, low=1, high=2_048),
    Column("host_ram_gib", float, "GiB", low=1, high=65_536),
    Column("local_nvme_gb", float, "GB", low=1, high=500_000),
    Column("network_gbps", float, "Gbit/s", low=0.1, high=30_000),
    Column("rdma", bool),
    Column("fabric", str),
    replace(
        GRANULARITY,
        name="billing_granularity_s",
        required=False,
        description="step of the bill, where it is not that of billing.csv",
    ),
    replace(MINIMUM, name="billing_minimum_s", required=False, description="0 without a word"),
    Column("confirmed", str, description="why an odd-looking price is right"),
    Column("assumed", str, description="columns inferred or assumed"),
    Column("source", str, required=True),
    Column("locator", str),
    Column("checked", dt.date),
    Column("notes", str),
)
OFFER_KEY = (
    "provider",
    "instance_type",
    "gpu",
    "gpu_count",
    "region",
    "price_model",
    "as_of",
    "source",
)

# A user's own quote: the columns of offers.csv, of which it needs few; what the others are without
# a word. A quote without a day counts as seen on the day prices are asked for.
_QUOTE_NEEDS = ("provider", "instance_type", "gpu", "gpu_count", "price_per_hour")
_QUOTE_DEFAULTS: Mapping[str, Any] = {
    "region": "not stated",
    "price_model": "on_demand",
    "currency": "USD",
    "scope": "instance",
    "source": "user quote",
}
QUOTE_COLUMNS = tuple(
    Column("gpu_count", int, "GPUs", required=True, low=1, high=128)
    if column.name == "gpu_count"
    else replace(column, required=column.name in _QUOTE_NEEDS)
    for column in OFFER_COLUMNS
)


@dataclass(frozen=True, slots=True)
class Offer:
    """One price seen on one day. Facts not known are None; `gpu_count` 0 means a share of a GPU.

    `price_per_hour` is for the whole machine in `currency` as quoted. vCPUs, RAM [GiB], disk [GB] and
    node-to-node network [Gbit/s] are the offer's own or its instance type's. The steps of the bill and
    its least [s] are the offer's own or the provider's. `rdma` is True only where a source states it.
    `gpu` is a catalog key unless `unrankable_reason` is "unknown_gpu".
    """

    provider: str
    instance_type: str
    gpu: str
    gpu_count: int
    vcpus: float | None
    host_ram_gib: float | None
    local_nvme_gb: float | None
    network_gbps: float | None
    rdma: bool
    fabric: str
    region: str
    price_model: str
    price_per_hour: float
    currency: str
    as_of: dt.date | None
    scope: str
    rankable: bool
    unrankable_reason: str
    billing_granularity_s: float
    billing_minimum_s: float
    confirmed: str
    assumed: str
    source: str
    notes: str


def unrankable_reason(row: Mapping[str, Any], gpu_known: bool) -> str:
    """Why a row of offers.csv cannot be ranked: as it says, or by its facts; '' when it can be."""
    if row["unrankable_reason"]:
        return str(row["unrankable_reason"])
    if row["gpu_count"] != int(row["gpu_count"]):
        return "fractional_gpu"
    if not gpu_known:
        return "unknown_gpu"
    if row["scope"] == "per_gpu":
        return "per_gpu_price_list"
    if row["as_of"] is None:
        return "undated"
    return "withdrawn" if row["rankable"] is False else ""


def _contradictions(
    row: Mapping[str, Any],
    reason: str,
    gpu_key: str | None,
    gpus: Mapping[str, Gpu],
    instance: Instance | None,
) -> Iterable[tuple[str, str, str, str, str]]:
    """(column, what, found, allowed, fix) for what cannot be true of one row."""
    if row["price_per_hour"] in PLACEHOLDER_PRICES and not row["confirmed"]:
        found = f"{row['price_per_hour']:g}"
        yield "price_per_hour", "placeholder price", found, "a real price", "remove the row"
    elif row["price_per_hour"] / row["gpu_count"] > MAX_USD_PER_GPU_HOUR and (
        row["currency"] in ("USD", "EUR", "GBP")
    ):
        found = f"{row['price_per_hour'] / row['gpu_count']:g} {row['currency']} per GPU-hour"
        allowed = f"at most {MAX_USD_PER_GPU_HOUR:g}"
        yield "price_per_hour", "price", found, allowed, "give the price of one hour in whole units"
    if row["rankable"] and reason:
        allowed = "n, because the row cannot be ranked"
        yield "rankable", "mark", f"y on a row that is {reason}", allowed, "write n"
    if gpu_key is None and reason != "unknown_gpu":
        close = nearest(row["gpu"], gpus)
        fix = f"did you mean {close!r}?" if close else "add it to gpus.csv or mark it unknown_gpu"
        yield "gpu", "GPU", repr(row["gpu"]), "a GPU of gpus.csv", fix
    if instance is not None and not reason:
        if row["gpu_count"] != instance.gpu_count:
            found = f"{row['gpu_count']:g} GPUs in {row['instance_type']}"
            allowed = f"{instance.gpu_count}, as instances.csv says"
            yield "gpu_count", "GPU count", found, allowed, "correct one of them"
        if gpu_key != instance.gpu:
            found = f"{row['gpu']} in {row['instance_type']}"
            yield (
                "gpu",
                "GPU",
                found,
                f"{instance.gpu}, as instances.csv says",
                "correct one of them",
            )


def _billing_s(row: Mapping[str, Any], billing: BillingBook) -> tuple[float, float]:
    """The step and the least of a row's bill [s]: its own, else its provider's."""
    step_s, least_s = row["billing_granularity_s"], row["billing_minimum_s"]
    if step_s is not None:
        return step_s, least_s or 0.0
    usual = billing.find(row["provider"], row["instance_type"])
    return usual.granularity_s, usual.minimum_s if least_s is None else least_s


def _offer(
    row: Mapping[str, Any],
    gpu_key: str | None,
    loose: bool,
    reason: str,
    machine: Instance | None,
    billing_s: tuple[float, float],
) -> Offer:
    vcpus, ram_gib, nvme_gb = row["vcpus"], row["host_ram_gib"], row["local_nvme_gb"]
    network_gbps, rdma, fabric = row["network_gbps"], row["rdma"], row["fabric"]
    if machine is not None:
        vcpus = machine.vcpus if vcpus is None else vcpus
        ram_gib = machine.host_ram_gib if ram_gib is None else ram_gib
        nvme_gb = machine.local_nvme_gb if nvme_gb is None else nvme_gb
        rdma = machine.rdma if rdma is None else rdma
        fabric = fabric or machine.fabric
        node_bytes_per_s = machine.node_bytes_per_s
        if network_gbps is None and node_bytes_per_s is not None:
            network_gbps = node_bytes_per_s / GBIT_PER_S_BYTES
    count = row["gpu_count"]
    assumed = row["assumed"] or ""
    if loose and "gpu" not in assumed.split(";"):
        assumed = f"{assumed};gpu" if assumed else "gpu"
    return Offer(
        row["provider"],
        row["instance_type"],
        row["gpu"] if gpu_key is None or reason == "unknown_gpu" else gpu_key,
        int(count) if count == int(count) else 0,
        vcpus,
        ram_gib,
        nvme_gb,
        network_gbps,
        bool(rdma),
        fabric or "",
        row["region"],
        row["price_model"],
        row["price_per_hour"],
        row["currency"],
        row["as_of"],
        row["scope"],
        not reason,
        reason,
        *billing_s,
        row["confirmed"] or "",
        assumed,
        row["source"],
        row["notes"] or "",
    )


def _offers(
    rows: Iterable[Mapping[str, Any]], folders: Sequence[Path]
) -> tuple[list[Offer], list[Problem]]:
    """Rows as offers, host facts filled from instances.csv; a row with a problem is left out.

    Problems of billing.csv are told here: nobody else reads it.
    """
    gpus, _ = load_gpus(folders)
    instances, _ = load_instances(folders)
    billing, problems = load_billing(folders)
    if problems:
        return [], problems
    exact, all_names = gpu_names(gpus, loose=False), gpu_names(gpus)
    offers: list[Offer] = []
    for row in rows:
        folded = row["gpu"].casefold()
        gpu_key = all_names.get(folded)
        reason = unrankable_reason(row, gpu_key is not None or row["rankable"] is not False)
        machine = instances.get((row["provider"], row["instance_type"]))
        found = [
            Problem(f"{row['_path']}:{row['_line']}, {column}", what, value, allowed, fix)
            for column, what, value, allowed, fix in _contradictions(
                row, reason, gpu_key, gpus, machine
            )
        ]
        if found:
            problems += found
        else:
            loose = gpu_key is not None and folded not in exact
            billing_s = _billing_s(row, billing)
            offers.append(_offer(row, gpu_key, loose, reason, machine, billing_s))
    return offers, problems


def load_offers(
    folders: Sequence[Path], files: Sequence[Path] = ()
) -> tuple[list[Offer], list[Problem]]:
    """The offers of offers.csv and of files of quotes, and every problem found.

    Host facts are filled from instances.csv. Rows of gpus.csv and instances.csv are read too, but
    their own problems are not repeated here. A row with a problem is left out. Offers keep the
    order of the files, a later folder's last, quotes after them.
    """
    rows, problems = read_catalog(folders, "offers.csv", OFFER_COLUMNS, OFFER_KEY)
    offers, found = _offers(rows, folders)
    quotes, more = load_quotes(files, folders, dt.date.today()) if files else ([], [])
    return offers + quotes, problems + found + more


def load_quotes(
    files: Sequence[Path], folders: Sequence[Path], today: dt.date
) -> tuple[list[Offer], list[Problem]]:
    """The offers of a user's own CSV files, and every problem found.

    The columns are those of offers.csv; only provider, instance_type, gpu, gpu_count and
    price_per_hour must be there. Without the others a quote is an on-demand price of the whole
    machine in USD, in a region not stated, seen `today`, billed as billing.csv says.
    The folders' catalogs say what a GPU is, and what an instance type has besides.
    """
    quotes: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for path in files:
        rows, found = read_rows(path, QUOTE_COLUMNS, OFFER_KEY)
        problems += found
        for row in rows:
            stated = {name: value for name, value in row.items() if value is not None}
            quotes.append({**row, "as_of": today, **_QUOTE_DEFAULTS, **stated, "_path": path})
    offers, found = _offers(quotes, folders)
    return offers, problems + found


def latest_offers(offers: Iterable[Offer], as_of: dt.date | None = None) -> list[Offer]:
    """The newest offer of each provider, machine, region and price model, not newer than `as_of`.

    Undated offers count as oldest, and are left out when `as_of` is given. Of several offers of one
    day the last in the list stands (a user's folder overlays the shipped one).
    """
    newest: dict[tuple[Any, ...], Offer] = {}
    for offer in offers:
        if as_of is not None and (offer.as_of is None or offer.as_of > as_of):
            continue
        key = (
            offer.provider,
            offer.instance_type,
            offer.gpu,
            offer.gpu_count,
            offer.region,
            offer.price_model,
        )
        held = newest.get(key)
        if held is None or (offer.as_of or dt.date.min) >= (held.as_of or dt.date.min):
            newest[key] = offer
    return list(newest.values())
