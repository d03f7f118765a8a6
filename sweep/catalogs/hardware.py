"""The GPUs and cloud machines of the catalogs as frozen values in SI units."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.catalogs.folder import read_catalog
from sweep.catalogs.tables import Column
from sweep.errors import CatalogError, Problem, nearest
from sweep.units import GB, GBIT_PER_S_BYTES, MIB, TFLOP

VENDORS = ("NVIDIA", "AMD", "Intel", "Huawei")
USABLE_BASES = ("driver", "derived", "assumed")
LINK_KINDS = ("none", "bridge", "mesh", "switch")

GPU_COLUMNS = (
    Column("gpu", str, required=True, description="key, used by every other catalog"),
    Column("aliases", str, description="other exact spellings, ';' between them"),
    Column("loose_aliases", str, description="names that leave form factor or memory open"),
    Column("vendor", str, required=True, vocabulary=VENDORS),
    Column("arch", str, required=True),
    Column("form_factor", str, required=True),
    Column(
        "logical_devices", int, required=True, low=1, high=2, description="devices software sees"
    ),
    Column("memory_marketed_gb", float, "GB", required=True, low=4, high=1024),
    Column("memory_type", str, required=True),
    Column("usable_mib", float, "MiB", required=True, low=4000, high=1.1e6),
    Column("usable_basis", str, required=True, vocabulary=USABLE_BASES),
    Column("hbm_gb_per_s", float, "GB/s", required=True, low=100, high=50_000),
    Column("fp32_tflops", float, "TFLOP/s", low=1, high=2_000),
    Column("tf32_tflops", float, "TFLOP/s", low=5, high=20_000),
    Column("fp16_tflops", float, "TFLOP/s", low=5, high=40_000),
    Column("fp16_accum16_tflops", float, "TFLOP/s", low=5, high=40_000),
    Column("bf16_tflops", float, "TFLOP/s", low=5, high=40_000),
    Column("fp8_tflops", float, "TFLOP/s", low=50, high=80_000),
    Column("int8_tops", float, "TOP/s", low=10, high=80_000),
    Column("fp4_tflops", float, "TFLOP/s", low=100, high=160_000),
    Column("mamf_bf16_tflops", float, "TFLOP/s", low=5, high=40_000),
    Column("mamf_source", str),
    Column("link", str),
    Column("link_kind", str, required=True, vocabulary=LINK_KINDS),
    Column("link_gb_per_s", float, "GB/s", low=10, high=2_000, description="per GPU, one way"),
    Column("link_domain_gpus", int, "GPUs", required=True, low=1, high=1024),
    Column("pcie_gen", int, low=3, high=7),
    Column("pcie_lanes", int, low=1, high=16),
    Column("pcie_gb_per_s", float, "GB/s", low=1, high=260, description="one way"),
    Column("tdp_w", float, "W", low=20, high=4_000),
    Column("compute_capability", str),
    Column("bf16", bool, required=True),
    Column("fp8", bool, required=True),
    Column("assumed", str, description="columns recalled, inferred or assumed"),
    Column("confirmed", str, description="odd-looking columns checked against their source"),
    Column("source", str, required=True),
    Column("locator", str),
    Column("checked", dt.date, required=True),
    Column("notes", str),
)

INSTANCE_COLUMNS = (
    Column("provider", str, required=True),
    Column("instance_type", str, required=True),
    Column("gpu", str, required=True),
    Column("gpu_count", int, "GPUs", required=True, low=1, high=128),
    Column("vcpus", float, low=1, high=2_048),
    Column("host_ram_gib", float, "GiB", low=1, high=65_536),
    Column("local_nvme_gb", float, "GB", low=1, high=500_000),
    Column("network_gbps", float, "Gbit/s", low=0.1, high=30_000),
    Column("rdma", bool),
    Column("fabric", str),
    Column("fabric_gbps", float, "Gbit/s", low=10, high=30_000),
    Column("fabric_nics", int, low=1, high=128),
    Column("assumed", str),
    Column("confirmed", str, description="odd-looking columns checked against their source"),
    Column("source", str, required=True),
    Column("locator", str),
    Column("checked", dt.date, required=True),
    Column("notes", str),
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: memory, dense peaks and links. Unknown figures are None, never 0.

    `usable_bytes` is what the driver reports (`usable_basis` "driver"), or is derived from the
    marketed figure by a sibling's ratio, or assumed. Peaks are dense [flop/s]; `fp16_flop_per_s`
    accumulates in fp32. `link_bytes_per_s` is per GPU in one direction, `link_domain_gpus` how many
    GPUs it joins (1: no fast link; a "bridge" is a part a machine may lack). `mamf_flop_per_s` is the
    best bf16 matmul measured. With `logical_devices` 2 the figures are those of the whole package
    while software sees two devices of half each. `assumed` names the columns not read in a source.
    """

    key: str
    aliases: tuple[str, ...]
    loose_aliases: tuple[str, ...]
    vendor: str
    arch: str
    form_factor: str
    logical_devices: int
    memory_marketed_gb: float
    memory_type: str
    usable_bytes: float
    usable_basis: str
    hbm_bytes_per_s: float
    fp32_flop_per_s: float | None
    tf32_flop_per_s: float | None
    fp16_flop_per_s: float | None
    fp16_accum16_flop_per_s: float | None
    bf16_flop_per_s: float | None
    fp8_flop_per_s: float | None
    int8_op_per_s: float | None
    fp4_flop_per_s: float | None
    mamf_flop_per_s: float | None
    mamf_source: str
    link: str
    link_kind: str
    link_bytes_per_s: float | None
    link_domain_gpus: int
    pcie_bytes_per_s: float | None
    tdp_w: float | None
    compute_capability: str
    bf16: bool
    fp8: bool
    assumed: tuple[str, ...]
    source: tuple[str, ...]
    notes: str


@dataclass(frozen=True, slots=True)
class Instance:
    """One machine type. Unknown facts are None. RAM in GiB, disk in GB, network in bytes/s per node.

    `network_bytes_per_s` is the ordinary network, `fabric_bytes_per_s` what GPUs of different nodes
    reach each other with where that is a fabric of its own; `node_bytes_per_s` is the one to use.
    """

    provider: str
    instance_type: str
    gpu: str
    gpu_count: int
    vcpus: float | None
    host_ram_gib: float | None
    local_nvme_gb: float | None
    network_bytes_per_s: float | None
    rdma: bool
    fabric: str
    fabric_bytes_per_s: float | None
    fabric_nics: int | None
    assumed: tuple[str, ...]
    source: tuple[str, ...]
    notes: str

    @property
    def node_bytes_per_s(self) -> float | None:
        """Node-to-node bandwidth per node in one direction [bytes/s], or None when unknown."""
        return self.fabric_bytes_per_s or self.network_bytes_per_s


def split_list(text: str | None) -> tuple[str, ...]:
    """The parts of a ';'-separated cell."""
    return tuple(part.strip() for part in (text or "").split(";") if part.strip())


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def _gpu(row: Mapping[str, Any]) -> Gpu:
    return Gpu(
        key=row["gpu"],
        aliases=split_list(row["aliases"]),
        loose_aliases=split_list(row["loose_aliases"]),
        vendor=row["vendor"],
        arch=row["arch"],
        form_factor=row["form_factor"],
        logical_devices=row["logical_devices"],
        memory_marketed_gb=row["memory_marketed_gb"],
        memory_type=row["memory_type"],
        usable_bytes=row["usable_mib"] * MIB,
        usable_basis=row["usable_basis"],
        hbm_bytes_per_s=row["hbm_gb_per_s"] * GB,
        fp32_flop_per_s=_scaled(row["fp32_tflops"], TFLOP),
        tf32_flop_per_s=_scaled(row["tf32_tflops"], TFLOP),
        fp16_flop_per_s=_scaled(row["fp16_tflops"], TFLOP),
        fp16_accum16_flop_per_s=_scaled(row["fp16_accum16_tflops"], TFLOP),
        bf16_flop_per_s=_scaled(row["bf16_tflops"], TFLOP),
        fp8_flop_per_s=_scaled(row["fp8_tflops"], TFLOP),
        int8_op_per_s=_scaled(row["int8_tops"], TFLOP),
        fp4_flop_per_s=_scaled(row["fp4_tflops"], TFLOP),
        mamf_flop_per_s=_scaled(row["mamf_bf16_tflops"], TFLOP),
        mamf_source=row["mamf_source"] or "",
        link=row["link"] or "",
        link_kind=row["link_kind"],
        link_bytes_per_s=_scaled(row["link_gb_per_s"], GB),
        link_domain_gpus=row["link_domain_gpus"],
        pcie_bytes_per_s=_scaled(row["pcie_gb_per_s"], GB),
        tdp_w=row["tdp_w"],
        compute_capability=row["compute_capability"] or "",
        bf16=row["bf16"],
        fp8=row["fp8"],
        assumed=split_list(row["assumed"]),
        source=split_list(row["source"]),
        notes=row["notes"] or "",
    )


def load_gpus(folders: Sequence[Path]) -> tuple[dict[str, Gpu], list[Problem]]:
    """The GPUs of gpus.csv by key, later folders overlaying earlier ones, and every problem found."""
    rows, problems = read_catalog(folders, "gpus.csv", GPU_COLUMNS, ("gpu",))
    gpus = {row["gpu"]: _gpu(row) for row in rows}
    named: dict[str, str] = {}
    # Rows of a later folder last, so that a clash is reported where the user can mend it.
    for row in sorted(rows, key=lambda row: folders.index(row["_path"].parent)):
        gpu = gpus[row["gpu"]]
        for name in dict.fromkeys(
            spelling.casefold() for spelling in (gpu.key, *gpu.aliases, *gpu.loose_aliases)
        ):
            if (other := named.setdefault(name, gpu.key)) != gpu.key:
                problems.append(
                    Problem(
                        f"{row['_path']}:{row['_line']}, aliases",
                        "alias",
                        f"{name!r}, which also names {other}",
                        "each name for one GPU",
                        "remove it from one of them",
                    )
                )
    return gpus, problems


def gpu_names(gpus: Mapping[str, Gpu], loose: bool = True) -> dict[str, str]:
    """Every spelling, case folded, to the key it names; `loose` includes the ambiguous ones."""
    names: dict[str, str] = {}
    for gpu in gpus.values():
        spellings = (gpu.key, *gpu.aliases, *(gpu.loose_aliases if loose else ()))
        names.update(dict.fromkeys((spelling.casefold() for spelling in spellings), gpu.key))
    return names


def find_gpu(gpus: Mapping[str, Gpu], name: str) -> Gpu:
    """The GPU of a key or alias, case ignored. Raises CatalogError naming the nearest known key."""
    key = gpu_names(gpus).get(name.casefold())
    if key is None:
        close = nearest(name, gpus)
        hint = f"; did you mean {close!r}?" if close else ""
        raise CatalogError(f"gpu: found {name!r}, allowed the {len(gpus)} catalog names{hint}")
    return gpus[key]


def load_instances(
    folders: Sequence[Path],
) -> tuple[dict[tuple[str, str], Instance], list[Problem]]:
    """The machines of instances.csv by (provider, instance type), and every problem found."""
    key = ("provider", "instance_type")
    rows, problems = read_catalog(folders, "instances.csv", INSTANCE_COLUMNS, key)
    instances = {
        (row["provider"], row["instance_type"]): Instance(
            provider=row["provider"],
            instance_type=row["instance_type"],
            gpu=row["gpu"],
            gpu_count=row["gpu_count"],
            vcpus=row["vcpus"],
            host_ram_gib=row["host_ram_gib"],
            local_nvme_gb=row["local_nvme_gb"],
            network_bytes_per_s=_scaled(row["network_gbps"], GBIT_PER_S_BYTES),
            rdma=bool(row["rdma"]),
            fabric=row["fabric"] or "",
            fabric_bytes_per_s=_scaled(row["fabric_gbps"], GBIT_PER_S_BYTES),
            fabric_nics=row["fabric_nics"],
            assumed=split_list(row["assumed"]),
            source=split_list(row["source"]),
            notes=row["notes"] or "",
        )
        for row in rows
    }
    return instances, problems
