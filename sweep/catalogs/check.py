"""Every rule over every catalog of a folder: what `sweep catalog check` reports."""

from __future__ import annotations

import csv
import datetime as dt
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweep.catalogs.check_gpus import check_gpus, check_instances
from sweep.catalogs.check_prices import check_offers, check_rates
from sweep.catalogs.folder import read_catalog, shipped_folder
from sweep.catalogs.hardware import (
    GPU_COLUMNS,
    INSTANCE_COLUMNS,
    gpu_names,
    load_gpus,
    split_list,
)
from sweep.catalogs.offers import OFFER_COLUMNS, OFFER_KEY, load_offers
from sweep.catalogs.rates import RATE_COLUMNS, RATE_KEY, load_rates, usd_rates
from sweep.catalogs.sources import load_sources
from sweep.errors import Problem, nearest

# Loaders of other catalogs, each called with the folders and returning (values, problems).
_OTHER_LOADERS = (
    ("models.csv", "sweep.catalogs.models", "load_models"),
    ("layer_forms.csv", "sweep.catalogs.layer_forms", "load_layer_forms"),
    ("stacks.csv", "sweep.catalogs.stacks", "load_stacks"),
    ("memory_bands.csv", "sweep.catalogs.bands", "load_bands"),
    ("time_bands.csv", "sweep.catalogs.time_bands", "load_time_bands"),
    ("billing.csv", "sweep.catalogs.billing", "load_billing"),
    ("evidence_settings.csv", "sweep.catalogs.evidence_settings", "load_evidence_settings"),
)
# Columns that hold keys of sources.csv.
_SOURCE_COLUMNS = ("source", "mamf_source")
# Columns that hold a day on which something was seen or read.
_DAY_COLUMNS = ("checked", "as_of", "retrieved")
_OLDEST = dt.date(2000, 1, 1)


def _unknown_files(folder: Path, shipped: Path) -> list[Problem]:
    """Files a user's folder holds that no catalog reads: most often a slip in the name."""
    known = {path.name for path in shipped.glob("*.csv")}
    problems = []
    for path in sorted(folder.glob("*.csv")):
        if path.name not in known:
            close = nearest(path.name, known)
            fix = f"did you mean {close!r}?" if close else "remove it"
            allowed = ", ".join(sorted(known))
            problems.append(Problem(str(path), "catalog file", "an unknown name", allowed, fix))
    return problems


def _day_problem(where: str, text: str, today: dt.date) -> Problem | None:
    try:
        day = dt.date.fromisoformat(text)
    except ValueError:
        return None
    if _OLDEST <= day <= today:
        return None
    return Problem(where, "date", text, f"{_OLDEST} to today, {today}", "write the day it was seen")


def _provenance(path: Path, sources: Sequence[str], today: dt.date) -> list[Problem]:
    """Source keys that are not listed, and days that have not come, in any catalog file."""
    problems: list[Problem] = []
    known = frozenset(sources)
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as handle:
        reader = csv.DictReader(handle)
        header = reader.fieldnames or ()
        if path.name != "sources.csv" and "source" not in header:
            problems.append(
                Problem(f"{path}:1", "column source", "no such column", "the column", "add it")
            )
        is_sources = path.name == "sources.csv"
        checked_keys = () if is_sources or path.name == "models.csv" else _SOURCE_COLUMNS
        keys = [name for name in checked_keys if name in header]
        days = [name for name in _DAY_COLUMNS if name in header]
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error:
                break
            if row is None:
                break
            for name in keys:
                for key in split_list(row[name]):
                    if key not in known:
                        close = nearest(key, known)
                        fix = f"did you mean {close!r}?" if close else "add it to sources.csv"
                        where = f"{path}:{line}, {name}"
                        problems.append(
                            Problem(where, "source", repr(key), "a key of sources.csv", fix)
                        )
            for name in days:
                found = _day_problem(f"{path}:{line}, {name}", row[name] or "", today)
                problems += [found] if found else []
    return problems


def _other_catalogs(folders: Sequence[Path]) -> list[Problem]:
    problems: list[Problem] = []
    for name, module_name, loader_name in _OTHER_LOADERS:
        if not any((folder / name).exists() for folder in folders):
            continue
        try:
            loader: Any = getattr(importlib.import_module(module_name), loader_name)
        except (ModuleNotFoundError, AttributeError):
            continue
        problems += loader(folders)[1]
    return problems


def check_catalogs(folder: Path, today: dt.date | None = None) -> list[Problem]:
    """Every fault of a folder's catalogs, in the order of files and rules; empty when clean.

    A folder other than the shipped one is checked as it would be used: laid over the shipped one.
    """
    today = today or dt.date.today()
    shipped = shipped_folder()
    if not folder.is_dir():
        return [Problem(str(folder), "catalog folder", "no folder", "a folder of catalog files")]
    own = folder.resolve() == shipped.resolve()
    folders = (shipped,) if own else (shipped, folder)
    problems = [] if own else _unknown_files(folder, shipped)
    if not any(folder.glob("*.csv")):
        problems.append(Problem(str(folder), "catalog folder", "no .csv file", "catalog files"))

    sources, found = load_sources(folders)
    problems += found
    gpus, found = load_gpus(folders)
    problems += found
    problems += check_gpus(read_catalog(folders, "gpus.csv", GPU_COLUMNS, ("gpu",))[0])
    rows, found = read_catalog(
        folders, "instances.csv", INSTANCE_COLUMNS, ("provider", "instance_type")
    )
    problems += found + check_instances(rows, gpu_names(gpus))
    rates, found = load_rates(folders)
    problems += found
    rows = read_catalog(folders, "exchange_rates.csv", RATE_COLUMNS, RATE_KEY)[0]
    found = check_rates(rows)
    problems += found
    # A rate that is wrong would make every price in its currency look wrong too.
    wrong_at = {problem.where.partition(",")[0] for problem in found}
    wrong = {
        (row["currency"], row["as_of"])
        for row in rows
        if f"{row['_path']}:{row['_line']}" in wrong_at
    }
    usable_rates = [rate for rate in rates if (rate.currency, rate.as_of) not in wrong]
    problems += load_offers(folders)[1]
    rows = read_catalog(folders, "offers.csv", OFFER_COLUMNS, OFFER_KEY)[0]
    problems += check_offers(rows, gpus, usd_rates(usable_rates))
    problems += _other_catalogs(folders)
    for path in sorted(folder.glob("*.csv")):
        problems += _provenance(path, tuple(sources), today)
    return list(dict.fromkeys(problems))
