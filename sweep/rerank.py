"""New prices for a finished run: today's offers of the machines it evaluated, without a new sweep."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.catalogs.folder import catalog_folders
from sweep.errors import RunError
from sweep.manifest import write_durably
from sweep.spec import Hardware, Owned, Results, Spec

if TYPE_CHECKING:
    from sweep.catalogs import PriceCatalogs
    from sweep.plan.setups import PricedOffer, Shape
    from sweep.results import Results as OpenResults

# What a run remembers about its prices. The name starts with a dot: it is no file of the results.
RECORD_NAME = ".prices.json"
# Files whose content decides which offers there are, for which machines, at what price in USD.
_PRICE_FILES = ("offers.csv", "billing.csv", "exchange_rates.csv", "instances.csv", "gpus.csv")
# What identifies a kind of node among the columns of setups. Memory and links of a GPU are left out:
# a corrected figure does not make it another machine.
_NODE_COLUMNS = (
    "gpu", "gpus_per_node", "node_count", "network_bytes_per_s", "network_assumed", "rdma",
    "host_ram_bytes", "vcpus", "local_nvme_bytes",
)  # fmt: skip
_OFFER_NAMES = ("shape", "provider", "instance_type", "region", "price_model")
_OFFER_COLUMNS = (*_OFFER_NAMES, "usd_per_hour", "billing_granularity_s", "billing_minimum_s")


@dataclass(frozen=True)
class Repriced:
    """What looking at the price files brought: offers ranked now, how many differ from before.

    `not_covered` offers are of machines the run did not evaluate: they rank after a new sweep only;
    `not_covered_before` were known when it was last ranked.
    """

    offers: int
    changed: int
    new: int
    gone: int
    not_covered: int
    not_covered_before: int

    @property
    def differs(self) -> bool:
        """Whether the ranking may have changed."""
        return bool(self.changed or self.new or self.gone)

    def __str__(self) -> str:
        """What to tell whoever looks at the ranking; empty if nothing is new to them."""
        lines = []
        if self.differs:
            counts = ((self.changed, "changed"), (self.new, "new"), (self.gone, "gone"))
            what = ", ".join(f"{count:,} {word}" for count, word in counts if count)
            lines = [f"prices have changed since this run was last ranked ({what}): ranked anew"]
        if self.not_covered > self.not_covered_before:
            of = "offer is of a machine" if self.not_covered == 1 else "offers are of machines"
            lines += [f"{self.not_covered:,} {of} this run did not evaluate; `sweep run` would"]
        return "\n".join(lines)


def spec_of_run(meaning: Mapping[str, Any], path: Path) -> Spec:
    """What a run's manifest says of hardware and prices, as a spec; `path` is where it stood.

    Axes and knobs are left empty: prices do not depend on them.
    """
    hardware = dict(meaning["hardware"])
    for key, value in hardware.items():
        if isinstance(value, list):
            hardware[key] = tuple(value)
    for key in ("offers", "catalogs"):
        hardware[key] = tuple(str(path.parent / entry) for entry in hardware[key])
    hardware["owned"] = tuple(Owned(**machine) for machine in hardware["owned"])
    if hardware["offers_as_of"]:
        hardware["offers_as_of"] = dt.date.fromisoformat(hardware["offers_as_of"])
    return Spec(
        name=path.stem,
        path=path,
        axes={},
        knobs={},
        hardware=Hardware(**hardware),
        exchange_rates=dict(meaning["exchange_rates"]),
    )


def prices_sha256(spec: Spec, today: dt.date) -> str:
    """A hash of every file that decides the offers of a spec; of the day too, if prices can age."""
    digest = hashlib.sha256()
    folders = catalog_folders([Path(folder) for folder in spec.hardware.catalogs])
    files = [folder / name for folder in folders for name in _PRICE_FILES]
    for file in (*files, *(Path(file) for file in spec.hardware.offers)):
        digest.update(file.name.encode())
        if file.exists():
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    if spec.hardware.max_price_age_days is not None and spec.hardware.offers_as_of is None:
        digest.update(today.isoformat().encode())
    return digest.hexdigest()


def spec_place(folder: Path) -> Path:
    """Where the spec of a run stands: as seen from the run if both were moved, else where it was.

    The relative paths in the manifest's spec start there. If nobody noted it: beside the results.
    """
    record = _read_record(folder)
    here = Path(os.path.normpath(folder.resolve() / record.get("spec_from_here", "spec.toml")))
    if here.exists() or "spec" not in record:
        return here
    return Path(record["spec"])


def places_shown(folder: Path) -> int:
    """How many setups of each question the run's spec wants to see, or else the default."""
    places = _read_record(folder).get("places")
    return places if isinstance(places, int) and places > 0 else Results.top


def remember_prices(folder: Path, spec_path: Path, sha256: str, places: int) -> None:
    """Note which price files the offers in the run's database are from, and where its spec stands.

    `places` is what the manifest leaves out of the spec: how many setups of a question to show.
    """
    path = spec_path.resolve()
    record = {
        "places": places,
        "spec": str(path),
        "spec_from_here": os.path.relpath(path, folder.resolve()),
        "prices_sha256": sha256,
        "database": _database_stamp(folder),
    }
    write_durably(folder / RECORD_NAME, json.dumps(record, indent=1).encode())


def reprice(folder: Path, today: dt.date | None = None) -> Repriced | None:
    """Rank a finished run by the prices of today's catalogs; None if it already is.

    Raises RunError if the run or its database cannot be used, CatalogError for a fault in a file.
    """
    from sweep.manifest import load_manifest
    from sweep.results import open_results

    today = today or dt.date.today()
    manifest = load_manifest(folder)
    with open_results(folder) as results:  # builds or repairs the database: it is compared below
        record = _read_record(folder)
        path = spec_place(folder)
        spec = spec_of_run(manifest.spec, path)
        for entry in (*spec.hardware.catalogs, *spec.hardware.offers):
            if not Path(entry).exists():
                raise RunError(f"{entry}: the run's spec names it, but it is not there any more")
        sha256 = prices_sha256(spec, today)
        stamp = _database_stamp(folder)
        if record.get("prices_sha256") == sha256 and record.get("database") == stamp:
            return None
        before = _ranked_by(results)
    found = _refresh(folder, spec, today, before)
    # A folder that cannot be written can still be ranked: then this is looked at again next time.
    with contextlib.suppress(RunError):
        remember_prices(folder, path, sha256, places_shown(folder))
    return found


@dataclass(frozen=True)
class _Ranked:
    """What a run is ranked by so far: its setups and offers, and how many offers it has none of."""

    setups: Sequence[Mapping[str, Any]]
    offers: Sequence[Mapping[str, Any]]
    not_covered: int


def _ranked_by(results: OpenResults) -> _Ranked:
    (run,) = results.rows("SELECT offers_not_covered FROM run")
    return _Ranked(
        results.rows("SELECT * FROM setups ORDER BY setup"),
        results.rows(f"SELECT {', '.join(_OFFER_COLUMNS)} FROM offers"),
        run["offers_not_covered"],
    )


def _refresh(folder: Path, spec: Spec, today: dt.date, before: _Ranked) -> Repriced:
    from sweep.catalogs import load_price_catalogs
    from sweep.plan.dimensions import covered_offers
    from sweep.plan.setups import priced_offers
    from sweep.results import refresh_offers

    catalogs = load_price_catalogs([Path(entry) for entry in spec.hardware.catalogs])
    offers = priced_offers(spec, catalogs, today)
    shapes = _run_shapes(spec, before.setups, offers, catalogs)
    columns, not_covered = covered_offers(shapes, offers)
    refresh_offers(folder, columns, not_covered=not_covered)
    after = zip(*(columns[name] for name in _OFFER_COLUMNS), strict=True)
    return _compare(before.offers, after, not_covered, before.not_covered)


def _run_shapes(
    spec: Spec,
    setups: Sequence[Mapping[str, Any]],
    offers: Sequence[PricedOffer],
    catalogs: PriceCatalogs,
) -> list[Shape | None]:
    """Today's shapes in the places the run numbered them; None where no offer has that shape now.

    The run's tables hold rates, not shapes. So today's shapes are taken the same way to rates, and
    two are the same if all their setups are.
    """
    from sweep.plan.setups import list_setups, list_shapes, setup_columns, setup_rates

    numbers = {nodes: shape for shape, nodes in _by_shape(setups).items()}
    shapes = list_shapes(offers, catalogs.gpus)
    todays = list_setups(spec, shapes, catalogs.gpus)
    rates = [
        setup_rates(
            setup,
            shapes[setup.shape],
            catalogs.gpus[shapes[setup.shape].gpu],
            catalogs.stacks,
            spec.hardware.assume_network_gbps,
        )
        for setup in todays
    ]
    columns = setup_columns(todays, shapes, rates, catalogs.gpus)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    found: list[Shape | None] = [None] * (max(numbers.values()) + 1)
    for shape, nodes in _by_shape(rows).items():
        if nodes in numbers:
            found[numbers[nodes]] = shapes[shape]
    return found


def _by_shape(rows: Iterable[Mapping[str, Any]]) -> dict[int, frozenset[tuple[Any, ...]]]:
    nodes: dict[int, set[tuple[Any, ...]]] = {}
    for row in rows:
        nodes.setdefault(row["shape"], set()).add(tuple(row[name] for name in _NODE_COLUMNS))
    return {shape: frozenset(found) for shape, found in nodes.items()}


def _compare(
    before: Iterable[Mapping[str, Any]],
    after: Iterable[tuple[Any, ...]],
    not_covered: int,
    not_covered_before: int,
) -> Repriced:
    """Offers by (shape, provider, instance, region, price model) and what is paid, then and now."""

    def by_name(rows: Iterable[tuple[Any, ...]]) -> dict[tuple[Any, ...], list[tuple[Any, ...]]]:
        prices: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
        for row in rows:
            name, paid = row[: len(_OFFER_NAMES)], row[len(_OFFER_NAMES) :]
            prices.setdefault(name, []).append(paid)
        return {name: sorted(found) for name, found in prices.items()}

    then = by_name(tuple(row[name] for name in _OFFER_COLUMNS) for row in before)
    now = by_name(after)
    return Repriced(
        offers=sum(len(prices) for prices in now.values()),
        changed=sum(then[name] != now[name] for name in then.keys() & now.keys()),
        new=len(now.keys() - then.keys()),
        gone=len(then.keys() - now.keys()),
        not_covered=not_covered,
        not_covered_before=not_covered_before,
    )


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / RECORD_NAME).read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _database_stamp(folder: Path) -> list[int]:
    """Tells a database that was built anew (and so holds the run's own offers) from this one."""
    from sweep.results.database import DATABASE_NAME

    try:
        found = (folder / DATABASE_NAME).stat()
    except OSError:
        return []
    return [found.st_mtime_ns, found.st_size]
