"""Setups: the machines of the offers as shapes, by node count, with the rates the kernels read."""

from __future__ import annotations

import datetime as dt
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sweep.catalogs import PriceCatalogs
from sweep.catalogs.hardware import Gpu
from sweep.catalogs.offers import ON_REQUEST_REASONS, Offer, latest_offers, load_quotes
from sweep.catalogs.rates import usd_rates
from sweep.catalogs.stacks import Efficiency, StackBook
from sweep.catalogs.tables import raise_if
from sweep.errors import PlanError, nearest
from sweep.kernels.tables import (
    ATTENTION_S,
    DEVICE_INVERSE,
    DEVICE_LIMIT,
    HOST_INVERSE,
    HOST_LIMIT,
    LINK_S,
    MATMUL_BF16_S,
    MEMORY_S,
    NETWORK_S,
    OFFLOAD_INVERSE,
    OFFLOAD_LIMIT,
    PCIE_S,
    SETUP_ROWS,
    Classes,
    Kinds,
)
from sweep.spec import Spec
from sweep.units import GB, GBIT_PER_S_BYTES, GIB

# Only ever used for nodes that work alone and so send nothing: any finite figure does.
_ALONE_GBPS = 10.0
# Link domains from here on span the machines of a rack; smaller ones end at a machine.
_RACK_SCALE_GPUS = 32
# Need over limit, per byte, of an offload to a host whose RAM is unknown: behind every miss of a
# known size, yet finite, so that a scenario the GPU supports goes before one it does not.
_UNKNOWN_RAM_INVERSE = 1.0


class Shape(NamedTuple):
    """What makes two machines the same to the engine; None is unknown.

    `max_nodes` is the most nodes tried of owned machines, where that is fewer than of rented ones:
    two clusters of equal machines and unequal sizes do not share their offers. None is no limit.
    """

    gpu: str
    gpus_per_node: int
    network_gbps: float | None
    rdma: bool
    host_ram_gib: float | None
    vcpus: float | None
    local_nvme_gb: float | None
    max_nodes: int | None = None


@dataclass(frozen=True)
class PricedOffer:
    """An offer of a shape at its price in USD, rented or owned."""

    shape: Shape
    provider: str
    instance_type: str
    region: str
    price_model: str
    price_per_hour: float
    currency: str
    usd_per_hour: float
    as_of: dt.date | None
    source: str
    scope: str
    rankable: bool
    unrankable_reason: str
    billing_granularity_s: float
    billing_minimum_s: float
    notes: str


class Setup(NamedTuple):
    """A shape by a number of nodes."""

    shape: int
    node_count: int


def _matches(name: str, globs: Sequence[str]) -> bool:
    folded = name.casefold()
    return any(fnmatch.fnmatchcase(folded, glob.casefold()) for glob in globs)


def choose_gpus(spec: Spec, gpus: Mapping[str, Gpu]) -> set[str]:
    """The GPU keys a spec's globs name; raises PlanError for a glob that matches nothing."""
    chosen: set[str] = set()
    for glob in spec.hardware.gpus:
        names = {
            key
            for key, gpu in gpus.items()
            if any(_matches(name, [glob]) for name in (key, *gpu.aliases))
        }
        if not names:
            close = nearest(glob, [*gpus, *(a for gpu in gpus.values() for a in gpu.loose_aliases)])
            hint = f"; did you mean {close!r}?" if close else ""
            raise PlanError(
                f"{spec.path}: hardware.gpus: found {glob!r}, which no GPU of the catalog matches"
                f"{hint}; see `sweep catalog list gpus`"
            )
        chosen |= names
    return chosen


def _check_globs(spec: Spec, offers: Sequence[Offer]) -> None:
    for setting, field in (
        ("providers", "provider"),
        ("regions", "region"),
        ("instances", "instance_type"),
    ):
        known = {getattr(offer, field) for offer in offers}
        for glob in getattr(spec.hardware, setting):
            if not any(_matches(name, [glob]) for name in known):
                close = nearest(glob, known)
                hint = f"; did you mean {close!r}?" if close else ""
                raise PlanError(
                    f"{spec.path}: hardware.{setting}: found {glob!r}, which no offer matches{hint}"
                )


def _owned_offers(spec: Spec, gpus: Mapping[str, Gpu]) -> list[PricedOffer]:
    found = []
    for machine in spec.hardware.owned:
        if machine.gpu not in gpus:
            close = nearest(machine.gpu, gpus)
            hint = f"; did you mean {close!r}?" if close else ""
            raise PlanError(
                f"{spec.path}: hardware.owned {machine.name!r}: gpu: found {machine.gpu!r}, allowed "
                f"a key of the GPU catalog{hint}"
            )
        shape = Shape(
            machine.gpu,
            machine.gpus_per_node,
            machine.network_gbps,
            machine.rdma,
            machine.host_ram_gib,
            float(machine.vcpus),
            machine.local_nvme_gb,
        )
        tried = _node_counts(spec, shape, gpus[machine.gpu])
        enough = [nodes for nodes in tried if nodes <= machine.nodes]
        if enough != tried:
            shape = shape._replace(max_nodes=max(enough, default=0))
        found.append(
            PricedOffer(
                shape=shape,
                provider="owned",
                instance_type=machine.name,
                region="on site",
                price_model="owned",
                price_per_hour=machine.usd_per_hour,
                currency="USD",
                usd_per_hour=machine.usd_per_hour,
                as_of=None,
                source="spec",
                scope="instance",
                rankable=True,
                unrankable_reason="",
                billing_granularity_s=1.0,
                billing_minimum_s=0.0,
                notes="",
            )
        )
    return found


def priced_offers(spec: Spec, catalogs: PriceCatalogs, today: dt.date) -> list[PricedOffer]:
    """The offers a spec asks for, newest per machine, region and price model, priced in USD."""
    hardware = spec.hardware
    owned = _owned_offers(spec, catalogs.gpus)
    if set(hardware.price_models) == {"owned"}:
        return owned
    chosen = choose_gpus(spec, catalogs.gpus)
    newest_day = hardware.offers_as_of or today
    files = [Path(file) for file in hardware.offers]
    quotes, problems = load_quotes(files, catalogs.folders, newest_day) if files else ([], [])
    raise_if(problems)
    offers = [*catalogs.offers, *quotes]
    _check_globs(spec, offers)
    rates = usd_rates(catalogs.rates, spec.exchange_rates, hardware.offers_as_of)
    allowed_reasons = ON_REQUEST_REASONS if hardware.include_per_gpu_prices else ()
    found = list(owned)
    for offer in latest_offers(offers, hardware.offers_as_of):
        if not offer.rankable and offer.unrankable_reason not in allowed_reasons:
            continue
        if (
            offer.price_model not in hardware.price_models
            or offer.gpu not in chosen
            or not _matches(offer.provider, hardware.providers)
            or not _matches(offer.region, hardware.regions)
            or not _matches(offer.instance_type, hardware.instances)
        ):
            continue
        if hardware.max_price_age_days is not None and (
            offer.as_of is None or (newest_day - offer.as_of).days > hardware.max_price_age_days
        ):
            continue
        if offer.currency not in rates:
            raise PlanError(
                f"{offer.provider} {offer.instance_type}: currency {offer.currency}: no exchange "
                "rate; add it to exchange_rates.csv or to [exchange_rates] in the spec"
            )
        found.append(
            PricedOffer(
                shape=Shape(
                    offer.gpu,
                    offer.gpu_count,
                    offer.network_gbps,
                    offer.rdma,
                    offer.host_ram_gib,
                    offer.vcpus,
                    offer.local_nvme_gb,
                ),
                provider=offer.provider,
                instance_type=offer.instance_type,
                region=offer.region,
                price_model=offer.price_model,
                price_per_hour=offer.price_per_hour,
                currency=offer.currency,
                usd_per_hour=offer.price_per_hour * rates[offer.currency],
                as_of=offer.as_of,
                source=offer.source,
                scope=offer.scope,
                rankable=offer.rankable,
                unrankable_reason=offer.unrankable_reason,
                billing_granularity_s=offer.billing_granularity_s,
                billing_minimum_s=offer.billing_minimum_s,
                notes=offer.notes,
            )
        )
    return found


def list_shapes(offers: Sequence[PricedOffer], gpus: Mapping[str, Gpu]) -> list[Shape]:
    """The distinct shapes of the offers, by GPUs a node, then by name."""

    def order(shape: Shape) -> tuple[Any, ...]:
        return (
            devices_per_node(shape, gpus),
            shape.gpu,
            *(-1.0 if value is None else float(value) for value in shape[2:]),
        )

    return sorted({offer.shape for offer in offers}, key=order)


def devices_per_node(shape: Shape, gpus: Mapping[str, Gpu]) -> int:
    """GPUs software sees in one node (two for a package of two devices)."""
    return shape.gpus_per_node * gpus[shape.gpu].logical_devices


def _node_counts(spec: Spec, shape: Shape, gpu: Gpu) -> list[int]:
    """The numbers of nodes to try of a shape: within max_gpus, and joined by something."""
    per_node = shape.gpus_per_node * gpu.logical_devices
    networked = shape.network_gbps is not None or spec.hardware.assume_network_gbps is not None
    return [
        nodes
        for nodes in spec.hardware.node_counts
        if nodes * per_node <= spec.hardware.max_gpus
        and (shape.max_nodes is None or nodes <= shape.max_nodes)
        and (nodes == 1 or networked or _joined_by_link(gpu, nodes * per_node, per_node))
    ]


def list_setups(spec: Spec, shapes: Sequence[Shape], gpus: Mapping[str, Gpu]) -> list[Setup]:
    """Every shape by every node count asked for, ordered so that equal classes stand together."""
    found = [
        Setup(index, nodes)
        for index, shape in enumerate(shapes)
        for nodes in _node_counts(spec, shape, gpus[shape.gpu])
    ]

    def order(setup: Setup) -> tuple[int, int, int]:
        per_node = devices_per_node(shapes[setup.shape], gpus)
        return per_node * setup.node_count, per_node, setup.shape

    return sorted(found, key=order)


def _joined_by_link(gpu: Gpu, total: int, per_node: int) -> bool:
    """Whether the GPUs' own link reaches beyond the node to all of the job.

    Only a link made for a rack does (NVL72); bridges and the switch of a board join no two machines.
    """
    rack_scale = gpu.link_kind == "switch" and gpu.link_domain_gpus >= _RACK_SCALE_GPUS
    return rack_scale and gpu.link_domain_gpus >= total > per_node


def class_table(
    setups: Sequence[Setup], shapes: Sequence[Shape], gpus: Mapping[str, Gpu]
) -> Classes:
    """Runs of setups with equal GPUs and GPUs a node."""
    keys = []
    for setup in setups:
        per_node = devices_per_node(shapes[setup.shape], gpus)
        keys.append((per_node * setup.node_count, per_node))
    starts = [i for i, key in enumerate(keys) if i == 0 or keys[i - 1] != key]
    ends = [*starts[1:], len(keys)]
    return Classes(
        first=np.array(starts, np.int64),
        last=np.array(ends, np.int64),
        gpus=np.array([keys[i][0] for i in starts], np.int64),
        gpus_per_node=np.array([keys[i][1] for i in starts], np.int64),
    )


class SetupRates(NamedTuple):
    """What one setup can do, in SI units; a peak of None means the GPU lacks the dtype."""

    peaks: tuple[float | None, ...]  # by programs.COMPUTE_DTYPES, sustained [flop/s]
    attention_flop_per_s: tuple[float, ...]  # best kernel, FlashAttention 2 and 1
    hbm_bytes_per_s: float
    link_bytes_per_s: float
    link: str
    network_bytes_per_s: float
    network_assumed: bool
    pcie_bytes_per_s: float
    usable_bytes: float
    host_ram_bytes: float | None
    time_measured: bool


def compute_rates(
    gpu: Gpu, share: Efficiency
) -> tuple[tuple[float | None, ...], tuple[float, ...]]:
    """Sustained rates of one device: matmuls by COMPUTE_DTYPES (None: lacks it), attention kernels.

    Source: dense peaks of the GPU catalog times the sustained shares of the efficiencies catalog
    [flop/s].
    """
    devices = gpu.logical_devices
    bf16 = gpu.bf16_flop_per_s if gpu.bf16 else None
    half = bf16 or gpu.fp16_flop_per_s or gpu.fp32_flop_per_s or 1e12
    peaks = tuple(
        peak * sustained / devices if peak and sustained else None
        for peak, sustained in (
            (bf16, share.matmul_share),
            (gpu.fp16_flop_per_s, share.matmul_share),
            (gpu.fp32_flop_per_s, share.matmul_share),
            (gpu.fp8_flop_per_s if gpu.fp8 else None, share.matmul8_share),
            (gpu.fp4_flop_per_s, share.matmul4_share),
        )
    )
    kernels = (share.attention_share, share.attention_fa2_share, share.attention_fa1_share)
    return peaks, tuple(half * kernel / devices for kernel in kernels)


def setup_rates(
    setup: Setup, shape: Shape, gpu: Gpu, book: StackBook, assumed_gbps: float | None = None
) -> SetupRates:
    """Rates of one setup. Sources: GPU and efficiency catalogs; docs/physics.md section 5.

    A fast link counts only when it joins every GPU of the node; else collectives cross PCIe, staged
    through the host (stack constant p2p_free_share). A link domain wider than the node (NVL72)
    carries the traffic between nodes too while the job fits into it.
    """
    constants = book.stacks["hf"].constants
    share = book.efficiency(gpu)
    devices = gpu.logical_devices
    per_node = shape.gpus_per_node * devices
    pcie = gpu.pcie_bytes_per_s or 16e9
    joined = gpu.link_bytes_per_s is not None and gpu.link_domain_gpus >= shape.gpus_per_node
    link = gpu.link_bytes_per_s if joined else None
    link_rate = link or pcie * constants["p2p_free_share"]
    assumed = shape.network_gbps is None
    network = (shape.network_gbps or assumed_gbps or _ALONE_GBPS) * GBIT_PER_S_BYTES
    if link and _joined_by_link(gpu, setup.node_count * per_node, per_node):
        network = link * per_node
        assumed = False
    peaks, attention = compute_rates(gpu, share)
    return SetupRates(
        peaks=peaks,
        attention_flop_per_s=attention,
        hbm_bytes_per_s=gpu.hbm_bytes_per_s / devices,
        link_bytes_per_s=link_rate,
        link=gpu.link if joined else "PCIe",
        network_bytes_per_s=network,
        network_assumed=assumed and setup.node_count > 1,
        pcie_bytes_per_s=pcie,
        usable_bytes=gpu.usable_bytes / devices,
        host_ram_bytes=None if shape.host_ram_gib is None else shape.host_ram_gib * GIB,
        time_measured=book.time_measured(gpu),
    )


def setup_table(rates: Sequence[SetupRates], memory_headroom: float) -> np.ndarray:
    """The kernels' setup table [SETUP_ROWS, J]: times per unit, and limits (see kernels.tables)."""
    table = np.empty((SETUP_ROWS, len(rates)))
    for j, rate in enumerate(rates):
        for dtype, peak in enumerate(rate.peaks):
            table[MATMUL_BF16_S + dtype, j] = np.inf if peak is None else 1.0 / peak
        for kernel, attention in enumerate(rate.attention_flop_per_s):
            table[ATTENTION_S + kernel, j] = 1.0 / attention
        table[MEMORY_S, j] = 1.0 / rate.hbm_bytes_per_s
        table[LINK_S, j] = 1.0 / rate.link_bytes_per_s
        table[NETWORK_S, j] = 1.0 / rate.network_bytes_per_s
        table[PCIE_S, j] = 1.0 / rate.pcie_bytes_per_s
        limit = rate.usable_bytes * (1.0 - memory_headroom)
        table[DEVICE_LIMIT, j] = limit
        table[DEVICE_INVERSE, j] = 1.0 / limit
        ram = rate.host_ram_bytes
        table[HOST_LIMIT, j] = np.inf if ram is None else ram
        table[HOST_INVERSE, j] = 0.0 if ram is None else 1.0 / ram
        table[OFFLOAD_LIMIT, j] = 0.0 if ram is None else ram
        table[OFFLOAD_INVERSE, j] = _UNKNOWN_RAM_INVERSE if ram is None else 1.0 / ram
    return table


def kind_table(setups: np.ndarray, classes: Classes, rivals: np.ndarray) -> Kinds:
    """The kinds of setups in each class, most GPU memory first, from the setup table; with `rivals`."""
    host = {HOST_LIMIT, OFFLOAD_LIMIT, HOST_INVERSE, OFFLOAD_INVERSE}
    columns: list[np.ndarray] = []
    first, last = [], []
    of_setup = np.empty(setups.shape[1], np.int64)
    least, most = np.empty((2, len(classes.first), 2))
    for k, (start, end) in enumerate(zip(classes.first, classes.last, strict=True)):
        ignored = set(host)
        if classes.gpus[k] <= classes.gpus_per_node[k]:
            ignored.add(NETWORK_S)
        if classes.gpus[k] == 1:
            ignored.add(LINK_S)
        counted = [row for row in range(SETUP_ROWS) if row not in ignored]
        here = setups[:, start:end]
        ram = here[[HOST_LIMIT, OFFLOAD_LIMIT]]
        least[k], most[k] = ram.min(axis=1), ram.max(axis=1)
        numbers: dict[bytes, int] = {}
        first.append(len(columns))
        for j in np.argsort(-here[DEVICE_LIMIT], kind="stable"):
            key = here[counted, j].tobytes()
            if key not in numbers:
                numbers[key] = len(columns)
                columns.append(here[:, j])
            of_setup[start + j] = numbers[key]
        last.append(len(columns))
    return Kinds(
        rates=np.ascontiguousarray(np.array(columns).T),
        first=np.array(first, np.int64),
        last=np.array(last, np.int64),
        of_setup=of_setup,
        least_host=least,
        most_host=most,
        rival=rivals,
    )


def setup_columns(
    setups: Sequence[Setup],
    shapes: Sequence[Shape],
    rates: Sequence[SetupRates],
    gpus: Mapping[str, Gpu],
) -> dict[str, list[Any]]:
    """The setups as the columns of setups.parquet."""
    rows = []
    for index, (setup, rate) in enumerate(zip(setups, rates, strict=True)):
        shape = shapes[setup.shape]
        per_node = devices_per_node(shape, gpus)
        rows.append(
            {
                "setup": index,
                "shape": setup.shape,
                "gpu": shape.gpu,
                "gpus_per_node": per_node,
                "node_count": setup.node_count,
                "gpu_count": per_node * setup.node_count,
                "usable_bytes": int(rate.usable_bytes),
                "link": rate.link,
                "link_bytes_per_s": rate.link_bytes_per_s,
                "network_bytes_per_s": rate.network_bytes_per_s,
                "rdma": shape.rdma,
                "host_ram_bytes": None if rate.host_ram_bytes is None else int(rate.host_ram_bytes),
                "vcpus": shape.vcpus,
                "local_nvme_bytes": (
                    None if shape.local_nvme_gb is None else int(shape.local_nvme_gb * GB)
                ),
                "network_assumed": rate.network_assumed,
                "time_measured": rate.time_measured,
            }
        )
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def offer_columns(offers: Sequence[PricedOffer], shapes: Sequence[Shape]) -> dict[str, list[Any]]:
    """The offers as the columns of offers.parquet, numbered within the given shapes."""
    index = {shape: number for number, shape in enumerate(shapes)}
    kept = [offer for offer in offers if offer.shape in index]
    kept.sort(
        key=lambda offer: (
            index[offer.shape],
            offer.provider,
            offer.instance_type,
            offer.region,
            offer.price_model,
        )
    )
    names = (
        "provider", "instance_type", "region", "price_model", "price_per_hour", "currency",
        "usd_per_hour", "billing_granularity_s", "billing_minimum_s", "as_of", "source", "scope",
        "rankable", "unrankable_reason", "notes",
    )  # fmt: skip
    columns: dict[str, list[Any]] = {
        "offer": list(range(len(kept))),
        "shape": [index[offer.shape] for offer in kept],
    }
    for name in names:
        columns[name] = [getattr(offer, name) for offer in kept]
    return columns
