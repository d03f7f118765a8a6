"""Rules of a spec that join several keys or reach outside the text: sides, repeats, paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweep.spec import Owned, is_model_path
from sweep.spec_fields import (
    LONGEST_LIST,
    TRAIN_TEXT_GB,
    VARIABLES,
    rule_of,
)
from sweep.spec_findings import Findings, shown
from sweep.spec_locations import Location


def check_rules(findings: Findings) -> None:
    """Note every breach. Reads the tree as written, so it must expect any type anywhere."""
    _one_side_each(findings)
    _one_size_of_data(findings)
    _no_repeats(findings)
    _owned_machines(findings)
    _price_models(findings)
    _paths_lead_somewhere(findings)
    if findings.table("exchange_rates").get("USD", 1) != 1:
        found = shown(findings.table("exchange_rates")["USD"])
        findings.at_value(("exchange_rates", "USD"), found, "1, or no such key")


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _one_side_each(findings: Findings) -> None:
    axes, knobs = findings.table("axes"), findings.table("knobs")
    for variable in VARIABLES:
        key = variable.key
        if variable.axes_only or key not in axes or key not in knobs:
            continue
        first, second = sorted(
            ("axes", "knobs"), key=lambda side: findings.locations.of_key((side, key))
        )
        findings.at_key(
            (second, key),
            f"it here and under [{first}] at {findings.place_of_key((first, key))}",
            "one side: [axes] to report every value, [knobs] to keep the best",
            "remove one of them",
        )


def _one_size_of_data(findings: Findings) -> None:
    axes = findings.table("axes")
    if TRAIN_TEXT_GB not in axes:
        return
    if "train_tokens" in axes:
        first, second = sorted(
            (TRAIN_TEXT_GB, "train_tokens"),
            key=lambda key: findings.locations.of_key(("axes", key)),
        )
        findings.at_key(
            ("axes", second),
            f"it beside {first} at {findings.place_of_key(('axes', first))}",
            "one of the two",
            "remove one of them",
        )
    images = _items(axes.get("images_per_sample", 0))
    if any(isinstance(count, int | float) and count > 0 for count in images):
        findings.at_key(
            ("axes", TRAIN_TEXT_GB),
            "a size of text with images_per_sample above 0",
            "train_tokens, which counts image tokens too",
            "give train_tokens instead",
        )


def _no_repeats(findings: Findings) -> None:
    for section in ("axes", "knobs", "hardware"):
        for key, values in findings.table(section).items():
            if not isinstance(values, list):
                continue
            first: dict[Any, int] = {}
            for index, value in enumerate(values[:LONGEST_LIST]):
                if not isinstance(value, str | int | float):
                    continue
                identity = (isinstance(value, bool), value)  # True == 1 in Python, not in TOML
                if identity in first:
                    place = findings.place_of_value((section, key, first[identity]))
                    findings.at_value(
                        (section, key, index),
                        f"{shown(value)} again (first at {place})",
                        "each value once",
                        "remove it",
                    )
                first.setdefault(identity, index)


def _owned_tables(findings: Findings) -> list[dict[str, Any]]:
    tables = findings.table("hardware").get("owned", [])
    return [table if isinstance(table, dict) else {} for table in _items(tables)]


def _owned_machines(findings: Findings) -> None:
    first: dict[str, int] = {}
    for index, table in enumerate(_owned_tables(findings)):
        path: Location = ("hardware", "owned", index)
        name, nodes = table.get("name"), table.get("nodes")
        if isinstance(name, str) and name in first:
            place = findings.place_of_value(("hardware", "owned", first[name], "name"))
            findings.at_value(
                (*path, "name"),
                f"{shown(name)} again (first at {place})",
                "each name once",
                "rename one of them",
            )
        if isinstance(name, str):
            first.setdefault(name, index)
        if isinstance(nodes, int | float) and nodes > 1 and "network_gbps" not in table:
            findings.at_key(
                (*path, "network_gbps"),
                "nothing",
                rule_of(Owned, "network_gbps").allowed(),
                "the key is required for more than one node",
            )


def _price_models(findings: Findings) -> None:
    """Owned machines and the price model "owned" come together."""
    asked = findings.table("hardware").get("price_models")
    if asked is None:
        return
    path = ("hardware", "price_models")
    if "owned" in _items(asked) and not _owned_tables(findings):
        findings.at_value(
            path,
            '"owned" without machines of your own',
            "price models of the catalog",
            'add a [[hardware.owned]] table or remove "owned"',
        )
    if "owned" not in _items(asked) and _owned_tables(findings):
        findings.at_value(
            path,
            "owned machines left out",
            'a list with "owned"',
            'add "owned" or remove the [[hardware.owned]] tables',
        )


def resolved(entry: str, folder: Path) -> Path:
    """A path of the spec as an absolute one; "~" is the user's home."""
    try:
        expanded = Path(entry).expanduser()
    except RuntimeError:  # "~nobody"
        expanded = Path(entry)
    return folder.absolute() / expanded


def _paths_lead_somewhere(findings: Findings) -> None:
    """Checked here, where the line is known, rather than by whoever reads the files later."""
    folder = findings.path.parent
    wanted = {
        ("axes", "models"): "a config.json or a folder that holds one",
        ("hardware", "offers"): "a CSV file",
        ("hardware", "catalogs"): "a folder of catalog files",
    }
    for (section, key), allowed in wanted.items():
        for index, entry in enumerate(_items(findings.table(section).get(key, []))):
            if not isinstance(entry, str) or not entry or "\0" in entry:
                continue
            if key == "models" and not is_model_path(entry):
                continue
            target = resolved(entry, folder)
            if not _is_there(key, target):
                found = f"{shown(entry)}, which is not there"
                findings.at_value((section, key, index), found, f"{allowed} (looked at {target})")


def _is_there(key: str, target: Path) -> bool:
    try:
        if key == "catalogs":
            return target.is_dir()
        return target.is_file() or (key == "models" and (target / "config.json").is_file())
    except OSError:
        return False  # a name longer than the file system takes
