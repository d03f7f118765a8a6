"""A sweep's question as a frozen value: a TOML file in, every mistake told at once, `Spec` out."""

from __future__ import annotations

import codecs
import datetime as dt
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sweep import vocabulary
from sweep.errors import Problem, SpecError, format_problems
from sweep.spec_fields import (
    GLOB_RULE,
    NAME_RULE,
    PATH_RULE,
    Rule,
    choice,
    count,
    setting,
)

SPEC_VERSION = 1
# Far above any real spec; keeps a mistyped path to a data file from being read whole.
LARGEST_SPEC_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Owned:
    """Machines the user has, under [[hardware.owned]]: equal nodes at a price of their own."""

    name: str = setting(None, NAME_RULE, "Name shown as the instance type.", required=True)
    gpu: str = setting(
        None, Rule(str, example="a GPU's key in the catalog"), "GPU key.", required=True
    )
    gpus_per_node: int = setting(None, count(1024, "GPUs"), "GPUs in one node.", required=True)
    nodes: int = setting(None, count(16384, "nodes"), "Nodes available.", required=True)
    usd_per_hour: float = setting(
        None,
        Rule(float, "usd per node-hour", low=0.0, high=1e5),
        "Price of one node for one hour; 0 if it is already paid for.",
        required=True,
    )
    vcpus: int = setting(None, count(65536, "vCPUs"), "vCPUs of one node.", required=True)
    host_ram_gib: float = setting(
        None, Rule(float, "GiB", above=0.0, high=262144.0), "RAM of one node.", required=True
    )
    local_nvme_gb: float = setting(
        0.0, Rule(float, "GB", low=0.0, high=1e6), "Local NVMe disk of one node."
    )
    network_gbps: float | None = setting(
        None,
        Rule(float, "Gb/s", above=0.0, high=1e5),
        "Network bandwidth of one node in each direction; required for more than one node.",
    )
    rdma: bool = setting(False, Rule(bool), "Whether the network has RDMA (InfiniBand, RoCE, EFA).")


@dataclass(frozen=True)
class Hardware:
    """Which machines and prices are considered. Globs ignore case; owned machines pass them all."""

    gpus: tuple[str, ...] = setting(("*",), GLOB_RULE, "GPU keys, by name or glob.", many=True)
    node_counts: tuple[int, ...] = setting(
        (1, 2, 4, 8, 16, 32, 64), count(16384, "nodes"), "Numbers of nodes to try.", many=True
    )
    max_gpus: int = setting(512, count(131072, "GPUs"), "Most GPUs in one job.")
    providers: tuple[str, ...] = setting(
        ("*",), GLOB_RULE, "Providers, by name or glob.", many=True
    )
    regions: tuple[str, ...] = setting(("*",), GLOB_RULE, "Regions, by name or glob.", many=True)
    instances: tuple[str, ...] = setting(
        ("*",), GLOB_RULE, "Instance types, by name or glob.", many=True
    )
    price_models: tuple[str, ...] = setting(
        ("on_demand",),
        choice(*vocabulary.PRICE_MODELS),
        'Price models. With [[hardware.owned]] and nothing said it is ["owned"]; add "on_demand" '
        "to compare owned machines with rented ones.",
        many=True,
    )
    include_per_gpu_prices: bool = setting(
        False,
        Rule(bool),
        "Whether to rank price lists per GPU whose machine (CPU, RAM, network) is not known.",
    )
    assume_network_gbps: float | None = setting(
        None,
        Rule(float, "Gb/s", above=0.0, high=1e5),
        "Network of a node no source states, in each direction. Without it such machines are used "
        "one at a time.",
    )
    offers: tuple[str, ...] = setting(
        (), PATH_RULE, "CSV files of your own quotes, added to the catalog's offers.", many=True
    )
    catalogs: tuple[str, ...] = setting(
        (), PATH_RULE, "Folders of catalog files that overlay the shipped ones.", many=True
    )
    offers_as_of: dt.date | None = setting(
        None, Rule(dt.date), "Leave out prices dated after this day."
    )
    max_price_age_days: int | None = setting(
        None,
        count(36500, "days"),
        "Leave out prices older than this, counted back from offers_as_of (from today if absent).",
    )
    owned: tuple[Owned, ...] = ()


@dataclass(frozen=True)
class Constraints:
    """What an answer must respect; a limit that is absent does not bind."""

    deadline_hours: float | None = setting(
        None, Rule(float, "hours", above=0.0, high=87600.0), "Longest job, start-up included."
    )
    max_usd: float | None = setting(
        None, Rule(float, "usd", above=0.0, high=1e12), "Most one job may cost."
    )
    memory_headroom: float = setting(
        0.05,
        Rule(float, "share of usable GPU memory", low=0.0, below=0.9),
        "Share of the usable GPU memory that must stay free.",
    )


@dataclass(frozen=True)
class Data:
    """How training text becomes tokens.

    bytes_per_token: the Llama 3 tokenizer takes 3.94 characters of English per token (Llama Team,
    "The Llama 3 Herd of Models", arXiv 2407.21783, section 3.2; Llama 2's took 3.17). English is
    slightly over one UTF-8 byte a character, hence 4.0. Taken over for Qwen's and DeepSeek's
    tokenizers of similar size, which is assumed; source code and other languages differ widely.
    """

    bytes_per_token: float = setting(
        4.0,
        Rule(float, "bytes per token", low=0.25, high=32.0),
        "UTF-8 bytes of text per token. 4.0 is English under a tokenizer of 128 k entries "
        "(Llama 3: 3.94 characters, arXiv 2407.21783, section 3.2); assumed for other tokenizers.",
    )
    epochs: float = setting(
        1.0, Rule(float, "passes over the data", above=0.0, high=1000.0), "Passes over the data."
    )


@dataclass(frozen=True)
class Job:
    """What a job spends beside its training steps. Every default here is assumed, not measured."""

    startup_minutes: float = setting(
        10.0,
        Rule(float, "minutes", low=0.0, high=10080.0),
        "Paid minutes before the weights are read: nodes, images, environment. Assumed.",
    )
    compile_minutes: float = setting(
        1.0,
        Rule(float, "minutes", low=0.0, high=10080.0),
        "Paid minutes of compilation and warm-up before steps run at their pace. Assumed.",
    )
    checkpoints_per_job: int = setting(
        4, count(100000, "checkpoints", low=0), "Checkpoints written during a job. Assumed."
    )
    storage_gb_per_s: float = setting(
        1.0,
        Rule(float, "GB/s per node", above=0.0, high=1000.0),
        "Speed at which a node reads the weights, all of them, and writes its share of checkpoints. "
        "Assumed.",
    )
    eval_fraction: float = setting(
        0.01,
        Rule(float, "share of the training tokens", low=0.0, high=10.0),
        "Tokens evaluated (forward only) as a share of the tokens trained. Assumed.",
    )
    spot_overhead: float = setting(
        0.15,
        Rule(float, "share of the job's time", low=0.0, high=10.0),
        "Extra time of a job on spot machines for interruptions and repeated work. Assumed.",
    )


@dataclass(frozen=True)
class Results:
    """What counts as best and what is written."""

    objective: str = setting(
        "usd", choice(*vocabulary.OBJECTIVES), "What the ranking minimises: money or time."
    )
    keep: str = setting(
        "best",
        choice(*vocabulary.KEEPS),
        "Rows written: the best knobs of each question and setup, every feasible combination, or "
        "all of them.",
    )
    top: int = setting(3, count(10000, "rows"), "Rows shown for each question.")


@dataclass(frozen=True)
class Spec:
    """A checked sweep: `axes` and `knobs` map column names to values, each variable on one side.

    `axes["model"]` holds keys, globs, ids and absolute paths of a config.json or its folder;
    `train_tokens` counts the training set once. `exchange_rates` maps a currency to usd per unit.
    """

    name: str
    path: Path
    axes: Mapping[str, tuple[Any, ...]]
    knobs: Mapping[str, tuple[Any, ...]]
    hardware: Hardware = Hardware()
    constraints: Constraints = Constraints()
    data: Data = Data()
    job: Job = Job()
    results: Results = Results()
    exchange_rates: Mapping[str, float] = field(default_factory=dict)
    spec_version: int = SPEC_VERSION

    def values(self, column: str) -> tuple[Any, ...]:
        """The values of a variable, on whichever side it stands."""
        return self.axes[column] if column in self.axes else self.knobs[column]


def is_model_path(entry: str) -> bool:
    """Whether an entry of `models` is a path to a config.json rather than a key, glob or id."""
    return entry.startswith(("./", "../", "/", "~")) or entry.endswith(".json")


def load_spec(path: Path | str) -> Spec:
    """The spec in a file. Raises SpecError naming every mistake as file:line:column."""
    path = Path(path)
    try:
        with path.open("rb") as handle:
            content = handle.read(LARGEST_SPEC_BYTES + 1)
    except OSError as error:
        folder = isinstance(error, IsADirectoryError)
        reason = "a folder" if folder else (error.strerror or str(error)).lower()
        raise _refusal(f"{path}", reason, "a readable TOML file") from error
    if len(content) > LARGEST_SPEC_BYTES:
        raise _refusal(f"{path}", "more than 4 MiB", "a spec of at most 4 MiB")
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        content = error.object
        before = content[: error.start].decode()
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        found = f"byte 0x{content[error.start]:02x}, which is not UTF-8"
        raise _refusal(f"{path}:{line}:{column}", found, "UTF-8 text") from error
    return parse_spec(text, path)


def _refusal(where: str, found: str, allowed: str) -> SpecError:
    return SpecError(format_problems([Problem(where, "spec", found, allowed)]))


def parse_spec(text: str, path: Path | str) -> Spec:
    """The spec in a text; `path` is what messages name and its folder is where paths start.

    Raises SpecError naming every mistake, one a line, in the order they stand in the text.
    """
    from sweep.spec_check import check_text  # brings in pydantic, which `--help` must not wait for

    return check_text(text, Path(path))


def canonical(spec: Spec) -> str:
    """A stable text of what the spec means, for hashing.

    Two specs with the same text ask for the same results: comments, key order, a scalar for a list
    of one, absent defaults and units of data size do not show. The spec's name and place and the
    number of rows to print are left out; paths are written relative to the spec's folder.
    """
    folder = spec.path.parent.resolve()

    def relative(entry: str) -> str:
        return Path(os.path.relpath(entry, folder)).as_posix()

    meaning = asdict(spec)
    del meaning["name"], meaning["path"], meaning["results"]["top"]
    meaning["axes"]["model"] = [
        relative(entry) if is_model_path(entry) else entry for entry in spec.axes["model"]
    ]
    for key in ("offers", "catalogs"):
        meaning["hardware"][key] = [relative(entry) for entry in getattr(spec.hardware, key)]
    meaning["exchange_rates"] = dict(spec.exchange_rates)
    return json.dumps(
        meaning, sort_keys=True, separators=(",", ":"), default=dt.date.isoformat, allow_nan=False
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a spec file, for editors."""
    from sweep.schema import json_schema as generate  # brings in pydantic

    return generate()
