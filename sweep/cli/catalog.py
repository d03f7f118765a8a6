"""`sweep catalog`: list, show and check what the engine knows of models, machines and prices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from sweep.cli import BAD_INPUT
from sweep.cli.output import console, json_option, say, write_json
from sweep.errors import nearest

# Rows a list shows; --json writes all.
MOST_ROWS = 500
# As many entries `show` prints when none is named.
_MOST_SHOWN = 12
Entry = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One catalog: how it is read, the columns of its list, what its entries are called by."""

    load: Callable[[Sequence[Path]], list[Entry]]
    columns: tuple[str, ...]
    names: tuple[str, ...]


def _fields(values: Sequence[Any]) -> list[Entry]:
    return [
        {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        for value in values
    ]


def _loaded(found: tuple[Any, Any]) -> Any:
    from sweep.catalogs.tables import raise_if

    values, problems = found
    raise_if(problems)
    return values


def _models(folders: Sequence[Path]) -> list[Entry]:
    from sweep.catalogs.architecture import count_parameters
    from sweep.catalogs.models import load_models

    models = list(_loaded(load_models(folders)).values())
    entries: list[Entry] = []
    for model, entry in zip(models, _fields(models), strict=True):
        counts = count_parameters(model)
        entries.append(
            {
                **entry,
                "total_parameters": counts.total,
                "active_parameters": counts.active_per_token,
                "vision": "yes" if counts.vision is not None else "",
            }
        )
    return entries


def _gpus(folders: Sequence[Path]) -> list[Entry]:
    from sweep.catalogs.hardware import load_gpus
    from sweep.units import GB, GIB, TFLOP

    def scaled(value: float | None, scale: float) -> float | None:
        return None if value is None else value / scale

    return [
        {
            **entry,
            "usable_gib": entry["usable_bytes"] / GIB,
            "bf16_tflops": scaled(entry["bf16_flop_per_s"], TFLOP),
            "hbm_gb_per_s": entry["hbm_bytes_per_s"] / GB,
            "link_gb_per_s": scaled(entry["link_bytes_per_s"], GB),
        }
        for entry in _fields(list(_loaded(load_gpus(folders)).values()))
    ]


def _instances(folders: Sequence[Path]) -> list[Entry]:
    from sweep.catalogs.hardware import load_instances
    from sweep.units import GBIT_PER_S_BYTES

    instances = list(_loaded(load_instances(folders)).values())
    return [
        {
            **entry,
            "network_gbps": (
                None
                if instance.node_bytes_per_s is None
                else instance.node_bytes_per_s / GBIT_PER_S_BYTES
            ),
        }
        for instance, entry in zip(instances, _fields(instances), strict=True)
    ]


def _offers(folders: Sequence[Path]) -> list[Entry]:
    from sweep.catalogs.offers import load_offers

    return _fields(_loaded(load_offers(folders)))


def _billing(folders: Sequence[Path]) -> list[Entry]:
    from sweep.catalogs.billing import load_billing

    return _fields(_loaded(load_billing(folders)).rows)


def _rates(folders: Sequence[Path]) -> list[Entry]:
    from sweep.catalogs.rates import load_rates

    return _fields(_loaded(load_rates(folders)))


def _sources(folders: Sequence[Path]) -> list[Entry]:
    from sweep.catalogs.sources import load_sources

    return _fields(list(_loaded(load_sources(folders)).values()))


def _stacks(folders: Sequence[Path]) -> list[Entry]:
    from sweep.catalogs.stacks import load_stacks

    book = _loaded(load_stacks(folders))
    return [
        {
            "stack": stack.key,
            "title": stack.title,
            **{name: list(values) for name, values in stack.supports.items()},
            **stack.flags,
            **stack.constants,
        }
        for stack in book.stacks.values()
    ]


KINDS = {
    "models": Kind(
        _models,
        ("key", "family", "total_parameters", "active_parameters", "num_hidden_layers",
         "hidden_size", "max_position_embeddings", "vision", "licence"),
        ("key", "hf_id", "aliases"),
    ),
    "gpus": Kind(
        _gpus,
        ("key", "vendor", "arch", "memory_marketed_gb", "usable_gib", "bf16_tflops",
         "hbm_gb_per_s", "link", "link_gb_per_s", "link_domain_gpus", "fp8"),
        ("key", "aliases", "loose_aliases"),
    ),
    "instances": Kind(
        _instances,
        ("provider", "instance_type", "gpu", "gpu_count", "vcpus", "host_ram_gib",
         "local_nvme_gb", "network_gbps", "rdma"),
        ("instance_type", "provider"),
    ),
    "offers": Kind(
        _offers,
        ("provider", "instance_type", "gpu", "gpu_count", "region", "price_model",
         "price_per_hour", "currency", "as_of", "unrankable_reason", "source"),
        ("instance_type", "provider", "region"),
    ),
    "billing": Kind(
        _billing,
        ("provider", "instance_type", "granularity_s", "minimum_s", "assumed", "source"),
        ("provider",),
    ),
    "rates": Kind(_rates, ("currency", "usd_per_unit", "as_of", "source"), ("currency",)),
    "stacks": Kind(
        _stacks, ("stack", "title", "methods", "precisions", "optimizers"), ("stack",)
    ),
    "sources": Kind(
        _sources, ("key", "title", "licence", "retrieved"), ("key",)
    ),
}  # fmt: skip
_KIND = click.Choice(tuple(KINDS))
_CATALOGS = click.option(
    "--catalogs", multiple=True, metavar="DIR", type=click.Path(path_type=Path),
    help="A folder of your own catalog files, laid over the shipped ones.",
)  # fmt: skip


@click.group(
    name="catalog",
    short_help="List, show and check models, GPUs and prices.",
    epilog="Example: sweep catalog list offers aws H100",
)
def command() -> None:
    """List, show and check what is known of models, GPUs, machines, prices and training stacks."""


@command.command(name="list", epilog="Example: sweep catalog list offers aws H100")
@click.argument("kind", metavar="KIND", type=_KIND)
@click.argument("containing", metavar="[WORD]...", nargs=-1)
@_CATALOGS
@json_option
def list_entries(
    kind: str, containing: tuple[str, ...], catalogs: tuple[Path, ...], as_json: bool
) -> None:
    """List the entries of one catalog: models, gpus, instances, offers, rates, stacks or sources.

    Of several WORDs an entry must hold each.
    """
    found = _containing(_entries(kind, catalogs), KINDS[kind].columns, containing)
    if as_json:
        write_json(found)
        return
    if not found:
        say(f"no entry of {kind} holds {' and '.join(repr(word) for word in containing)}")
        return
    from sweep.report.tables import table_lines

    columns = KINDS[kind].columns
    rows = [[_shown(entry[name]) for name in columns] for entry in found[:MOST_ROWS]]
    out = console()
    for line in table_lines(columns, rows):
        out.print(line)
    if len(found) > MOST_ROWS:
        say(
            f"the first {MOST_ROWS} of {len(found):,}; name words to look for, or take all as --json"
        )


@command.command(epilog="Example: sweep catalog show gpus H100-SXM-80GB")
@click.argument("kind", metavar="KIND", type=_KIND)
@click.argument("name", metavar="[NAME]", required=False)
@_CATALOGS
@json_option
def show(kind: str, name: str | None, catalogs: tuple[Path, ...], as_json: bool) -> None:
    """Show every fact of the entries of that NAME, with their sources."""
    entries = _entries(kind, catalogs)
    found = entries if name is None else _called(entries, kind, name)
    if name is None and len(found) > _MOST_SHOWN:
        raise click.UsageError(
            f"which of the {len(found):,} {kind}? see: sweep catalog list {kind}"
        )
    if as_json:
        write_json(found)
        return
    for number, entry in enumerate(found):
        if number:
            click.echo()
        width = max(map(len, entry))
        for key, value in entry.items():
            text = f"{value:,.10g}" if isinstance(value, float) else _shown(value)
            if text not in (None, ""):
                click.echo(f"{key:<{width}}  {text}")


@command.command(epilog="Example: sweep catalog check my-catalogs")
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@json_option
def check(folder: Path | None, as_json: bool) -> int | None:
    """Check every catalog file of DIR (the shipped ones if not given); exit with 2 on a fault.

    A folder of your own is checked as it would be used: laid over the shipped catalogs.
    """
    from sweep.catalogs.check import check_catalogs
    from sweep.catalogs.folder import shipped_folder
    from sweep.report.words import count_of

    folder = folder or shipped_folder()
    problems = check_catalogs(folder)
    if as_json:
        write_json([dataclasses.asdict(problem) for problem in problems])
    else:
        for problem in problems:
            click.echo(str(problem))
        say(f"{folder}: {count_of(len(problems), 'problem') if problems else 'no problems'}")
    return BAD_INPUT if problems else None


def _entries(kind: str, catalogs: tuple[Path, ...]) -> list[Entry]:
    from sweep.catalogs.folder import catalog_folders

    return KINDS[kind].load(catalog_folders(catalogs))


def _containing(
    entries: Sequence[Entry], columns: Sequence[str], wanted: Sequence[str]
) -> list[Entry]:
    folded = [word.casefold() for word in wanted]
    if not folded:
        return list(entries)

    def text(entry: Entry) -> str:
        return " ".join(str(_shown(entry[name])) for name in columns).casefold()

    return [entry for entry in entries if all(word in text(entry) for word in folded)]


def _called(entries: Sequence[Entry], kind: str, name: str) -> list[Entry]:
    """The entries of a name, case ignored; raises BadParameter with the nearest known one."""

    def names(entry: Entry) -> list[str]:
        found: list[str] = []
        for column in KINDS[kind].names:
            value = entry[column]
            found += value if isinstance(value, tuple) else [value] if value else []
        return found

    wanted = name.casefold()
    # By the first kind of name that fits: a key before an alias.
    for exact in (True, False):
        found = [
            entry
            for entry in entries
            if any(
                wanted == known.casefold() if exact else wanted in known.casefold()
                for known in names(entry)
            )
        ]
        if found:
            return found
    close = nearest(name, [known for entry in entries for known in names(entry)])
    hint = f"; did you mean {close!r}?" if close else f"; see: sweep catalog list {kind}"
    raise click.BadParameter(f"no entry of {kind} is called {name!r}{hint}", param_hint="NAME")


def _shown(value: Any) -> Any:
    """A value for a person: lists joined, nothing for what is not known."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else ""
    return float(f"{value:.6g}") if isinstance(value, float) else value
