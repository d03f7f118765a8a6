"""Rules over the GPUs and machines: units, dense peaks, capabilities and links that fit together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sweep.catalogs.hardware import GPU_COLUMNS, split_list
from sweep.errors import Problem, nearest
from sweep.units import GB, MIB

Row = Mapping[str, Any]
Fault = tuple[str, str, str, str, str]

_KEY = re.compile(r"[A-Za-z0-9._+-]+")
_KEY_MEMORY = re.compile(r"-(\d+)GB$")
_ARCH_CAPABILITY = {
    "Pascal": r"6\.\d",
    "Volta": r"7\.[02]",
    "Turing": r"7\.5",
    "Ampere": r"8\.[067]",
    "Ada": r"8\.9",
    "Hopper": r"9\.0",
    "Blackwell": r"(10|12)\.\d",
    "Blackwell Ultra": r"(10|12)\.\d",
    "CDNA2": r"gfx90a",
    "CDNA3": r"gfx94\d",
    "CDNA4": r"gfx950",
}
# What one stack technology reaches on the cards that carry it [GB/s]; outside, a unit or a column slipped.
_MEMORY_GB_PER_S = {
    "HBM2": (500, 1_600),
    "HBM2e": (1_200, 4_000),
    "HBM3": (2_000, 7_000),
    "HBM3e": (4_000, 10_000),
    "GDDR6": (200, 1_000),
    "GDDR6X": (500, 1_200),
    "GDDR7": (400, 2_200),
}
# One direction, all links of a GPU [GB/s].
_NVLINK_GB_PER_S = {1: 80.0, 2: 150.0, 3: 300.0, 4: 450.0, 5: 900.0, 6: 1800.0}
_LINK_DOMAINS = {"bridge": (2, 4), "mesh": (2, 4, 8), "switch": (4, 8, 16, 32, 36, 72, 144, 576)}
_PCIE_LANE_GB_PER_S = {3: 0.985, 4: 1.97, 5: 3.94, 6: 7.56, 7: 15.1}


def _problem(row: Row, fault: Fault) -> Problem:
    column, what, found, allowed, fix = fault
    return Problem(f"{row['_path']}:{row['_line']}, {column}", what, found, allowed, fix)


def _memory_faults(row: Row) -> Iterator[Fault]:
    marketed_bytes = row["memory_marketed_gb"] * GB
    ratio = row["usable_mib"] * MIB / marketed_bytes
    # A card sold by the GiB reports 7.4% more than its GB; a figure in another unit more or less.
    if not 0.92 <= ratio <= 1.08:
        yield (
            "usable_mib",
            "usable memory",
            f"{row['usable_mib']:g} MiB, {ratio:.2f} of the marketed GB",
            "0.92 to 1.08 of it",
            "give the driver's figure in MiB, and the marketed one in GB",
        )
    named = _KEY_MEMORY.search(row["gpu"])
    if named and abs(float(named[1]) / row["memory_marketed_gb"] - 1) > 0.03:
        found = f"{row['memory_marketed_gb']:g} GB on {row['gpu']}"
        yield "memory_marketed_gb", "memory", found, f"{named[1]} GB, as the key says", ""
    if row["usable_basis"] != "driver" and "usable_mib" not in split_list(row["assumed"]):
        yield (
            "assumed",
            "mark",
            "usable_mib not named",
            f"it named, as it is {row['usable_basis']}",
            "",
        )
    band = _MEMORY_GB_PER_S.get(row["memory_type"])
    if band is None:
        known = ", ".join(_MEMORY_GB_PER_S)
        close = nearest(row["memory_type"], _MEMORY_GB_PER_S)
        fix = f"did you mean {close!r}?" if close else ""
        yield "memory_type", "memory type", repr(row["memory_type"]), known, fix
    elif not band[0] <= row["hbm_gb_per_s"] <= band[1]:
        yield (
            "hbm_gb_per_s",
            "memory bandwidth",
            f"{row['hbm_gb_per_s']:g} GB/s of {row['memory_type']}",
            f"{band[0]} to {band[1]} GB/s",
            "check the unit and the column",
        )


def _ratio_faults(row: Row) -> Iterator[Fault]:
    """Peaks against one another: a figure with sparsity is twice what the others allow."""
    sparse = "give the dense figure, or name the column in confirmed"
    nvidia = row["vendor"] == "NVIDIA"
    for column, other, most in (
        ("bf16_tflops", "fp8_tflops", 0.6),
        ("bf16_tflops", "int8_tops", 0.6 if nvidia else 1.1),
        ("bf16_tflops", "tf32_tflops", 2.2),
        ("bf16_tflops", "fp16_tflops", 1.3),
        ("tf32_tflops", "bf16_tflops", 0.6),
        ("fp8_tflops", "bf16_tflops", 2.2),
        ("fp8_tflops", "int8_tops", 1.2),
        ("fp8_tflops", "fp4_tflops", 0.6),
        ("fp4_tflops", "fp8_tflops", 3.3),
        ("int8_tops", "fp16_tflops", 4.2),
        ("fp16_tflops", "int8_tops", 0.6 if nvidia else 1.1),
        ("fp16_tflops", "bf16_tflops", 1.3),
        ("fp16_tflops", "fp32_tflops", 36.0 if row["bf16"] else 8.5),
        ("fp16_tflops", "fp16_accum16_tflops", 1.01),
        ("fp16_accum16_tflops", "fp16_tflops", 2.2),
        ("fp32_tflops", "tf32_tflops", 1.01),
        ("fp32_tflops", "fp16_tflops", 1.01),
        ("mamf_bf16_tflops", "bf16_tflops", 1.0),
    ):
        if row[column] and row[other] and row[column] > most * row[other]:
            found = f"{row[column]:g}, {row[column] / row[other]:.2f} of {other}"
            yield column, "peak", found, f"at most {most:g} of it", sparse
    mamf, bf16 = row["mamf_bf16_tflops"], row["bf16_tflops"]
    if mamf and bf16 and mamf < 0.45 * bf16:
        found = f"{bf16:g}, while the best matmul measured is {mamf:g}"
        yield "bf16_tflops", "peak", found, f"at most {mamf / 0.45:.0f}", sparse
    if bf16 and bf16 * 1e3 / row["hbm_gb_per_s"] > 450:
        intensity = bf16 * 1e3 / row["hbm_gb_per_s"]
        found = f"{bf16:g}, {intensity:.0f} flop per byte of memory traffic"
        yield "bf16_tflops", "peak", found, "at most 450", sparse


def _capability_faults(row: Row) -> Iterator[Fault]:
    capability = row["compute_capability"] or ""
    pattern = _ARCH_CAPABILITY.get(row["arch"])
    if pattern and not re.fullmatch(pattern, capability):
        found = f"{capability or 'nothing'} for {row['arch']}"
        yield "compute_capability", "compute capability", found, f"like {pattern}", ""
    if row["vendor"] == "NVIDIA" and re.fullmatch(r"\d+\.\d", capability):
        version = float(capability)
        for column, first in (("fp8", 8.9), ("bf16", 8.0)):
            if row[column] != (version >= first):
                found = f"{'y' if row[column] else 'n'} at compute capability {capability}"
                yield column, f"{column} support", found, f"y from {first} on, n below", ""
    for column, peak in (("fp8", "fp8_tflops"), ("bf16", "bf16_tflops")):
        if row[peak] and not row[column]:
            yield peak, "peak", f"{row[peak]:g} without {column} support", "nothing", ""
    if row["bf16"] and not row["bf16_tflops"]:
        yield "bf16_tflops", "peak", "nothing, though bf16 is y", "a figure", ""


def _link_faults(row: Row) -> Iterator[Fault]:
    speed, domain, kind = row["link_gb_per_s"], row["link_domain_gpus"], row["link_kind"]
    if kind == "none":
        if speed or domain != 1:
            found = f"{speed or 0:g} GB/s over {domain} GPUs without a link"
            yield "link_kind", "link", found, "no speed and a domain of 1", ""
    elif not speed or domain < 2:
        found = f"{speed or 0:g} GB/s over {domain} GPUs by a {kind}"
        yield "link_gb_per_s", "link", found, "a speed and a domain of 2 or more", ""
    elif domain not in _LINK_DOMAINS[kind]:
        allowed = ", ".join(str(size) for size in _LINK_DOMAINS[kind])
        yield "link_domain_gpus", "link", f"{domain} GPUs by a {kind}", allowed, ""
    generation = re.match(r"NVLink(\d)", row["link"] or "")
    if speed and generation:
        most = _NVLINK_GB_PER_S.get(int(generation[1]), 1800.0)
        # Bridges have fewer links than a module, export versions half of them.
        if not most / (6.0 if kind == "bridge" else 2.5) <= speed <= most * 1.01:
            yield (
                "link_gb_per_s",
                "link speed",
                f"{speed:g} GB/s for {row['link']}",
                f"{most / (6.0 if kind == 'bridge' else 2.5):g} to {most:g} GB/s",
                "give GB/s (not Gbit/s) of one GPU in one direction (not both)",
            )
    lane = _PCIE_LANE_GB_PER_S.get(row["pcie_gen"] or 0)
    if lane and row["pcie_gb_per_s"]:
        most = lane * (row["pcie_lanes"] or 16) * 1.02
        if not most / 2.5 <= row["pcie_gb_per_s"] <= most:
            found = f"{row['pcie_gb_per_s']:g} GB/s for PCIe {row['pcie_gen']}"
            fix = "give GB/s of one direction"
            yield "pcie_gb_per_s", "PCIe speed", found, f"at most {most:.1f} GB/s", fix


def _word_faults(row: Row) -> Iterator[Fault]:
    if not _KEY.fullmatch(row["gpu"]):
        yield "gpu", "key", repr(row["gpu"]), "letters, digits and . _ + -", ""
    names = {column.name for column in GPU_COLUMNS}
    for column in ("assumed", "confirmed"):
        for name in split_list(row[column]):
            if name not in names:
                close = nearest(name, names)
                fix = f"did you mean {close!r}?" if close else ""
                yield column, "mark", repr(name), "names of columns", fix


def check_gpus(rows: Sequence[Row]) -> list[Problem]:
    """What cannot be true of GPUs; a column named in `confirmed` is left alone."""
    problems = []
    for row in rows:
        confirmed = split_list(row["confirmed"])
        for rule in (_word_faults, _memory_faults, _ratio_faults, _capability_faults, _link_faults):
            problems += [_problem(row, fault) for fault in rule(row) if fault[0] not in confirmed]
    return problems


# Names that state a count: "gpu_8x_h100_sxm5", "8x-H200-32-65536", "a3-highgpu-8g", "..._8gpu-...".
_NAMED_COUNTS = (
    re.compile(r"^gpu_(\d+)x_"),
    re.compile(r"^(\d+)x[_-]"),
    re.compile(r"gpu-(\d+)g$"),
    re.compile(r"_(\d+)gpu-"),
    re.compile(r"^BM\.GPU.*\.(\d+)$"),
)


def named_gpu_count(instance_type: str) -> int | None:
    """The GPU count an instance type's name states, or None."""
    for pattern in _NAMED_COUNTS:
        if found := pattern.search(instance_type):
            return int(found[1])
    return None


# What machines of the catalog have per GPU, with room on both sides: outside, a unit slipped.
_PER_GPU = (
    ("vcpus", "vCPUs", "vCPUs", 1.0, 128.0),
    ("host_ram_gib", "host RAM", "GiB", 2.0, 1_200.0),
    ("local_nvme_gb", "local disk", "GB", 30.0, 10_000.0),
    ("network_gbps", "network", "Gbit/s", 0.5, 1_000.0),
)


def host_faults(row: Row) -> Iterator[Fault]:
    """What cannot be true of a machine's host: shared by instances and offers."""
    count = row["gpu_count"]
    for column, what, unit, least, most in _PER_GPU:
        value = row[column]
        if value is not None and not least <= value / count <= most:
            found = f"{value:g} {unit} for {count:g} GPUs"
            yield column, what, found, f"{least:g} to {most:g} {unit} per GPU", f"give {unit}"
    ram_gib, vcpus = row["host_ram_gib"], row["vcpus"]
    if ram_gib and vcpus and not 1 <= ram_gib / vcpus <= 40:
        found = f"{ram_gib:g} GiB for {vcpus:g} vCPUs"
        yield "host_ram_gib", "host RAM", found, "1 to 40 GiB per vCPU", "give GiB"
    stated = named_gpu_count(row["instance_type"])
    if stated is not None and stated != count:
        found = f"{count:g} in {row['instance_type']}"
        yield "gpu_count", "GPU count", found, f"{stated}, as the name says", ""
    if row["rdma"] and (row["fabric"] or "none").startswith("none"):
        yield "rdma", "RDMA", f"y with fabric {row['fabric'] or 'empty'!r}", "a fabric, or n", ""


_NIC_GBPS = {"EFA v1": 100, "EFA v2": 100, "EFA v3": 200, "EFA v4": 400, "CX-7": 400}


def _fabric_faults(row: Row) -> Iterator[Fault]:
    speed, nics = row["fabric_gbps"], row["fabric_nics"]
    ports = re.search(r"(\d+)x(\d+)", row["fabric"] or "")
    if ports and speed and speed != int(ports[1]) * int(ports[2]):
        found = f"{speed:g} Gbit/s for {row['fabric']}"
        allowed = f"{int(ports[1]) * int(ports[2])} Gbit/s"
        yield "fabric_gbps", "fabric", found, allowed, "give Gbit/s of the whole machine"
    fix = "give Gbit/s (not GB/s) of the whole machine"
    counted = nics or (
        int(nic[1]) if (nic := re.search(r"(\d+)x CX-?7", row["fabric"] or "")) else 0
    )
    known = next((gbps for name, gbps in _NIC_GBPS.items() if name in (row["fabric"] or "")), 0)
    if speed and counted and known and not ports and speed != counted * known:
        found = f"{speed:g} Gbit/s for {counted} NICs of {row['fabric']}"
        yield "fabric_gbps", "fabric", found, f"{counted * known} Gbit/s", fix
    elif nics and speed and not 25 <= speed / nics <= 800:
        found = f"{speed / nics:g} Gbit/s a NIC"
        yield "fabric_gbps", "fabric", found, "25 to 800 Gbit/s", fix
    elif speed and not 25 <= speed / row["gpu_count"] <= 1_000:
        found = f"{speed:g} Gbit/s for {row['gpu_count']} GPUs"
        yield "fabric_gbps", "fabric", found, "25 to 1000 Gbit/s per GPU", fix


def _instance_faults(row: Row, gpu_keys: Mapping[str, str]) -> Iterator[Fault]:
    if row["gpu"].casefold() not in gpu_keys:
        close = nearest(row["gpu"], gpu_keys.values())
        fix = f"did you mean {close!r}?" if close else "add it to gpus.csv"
        yield "gpu", "GPU", repr(row["gpu"]), "a GPU of gpus.csv", fix
    yield from host_faults(row)
    yield from _fabric_faults(row)


def check_instances(rows: Sequence[Row], gpu_keys: Mapping[str, str]) -> list[Problem]:
    """What cannot be true of machines, but for `confirmed` columns; `gpu_keys` is gpu_names of the GPUs."""
    return [
        _problem(row, fault)
        for row in rows
        for fault in _instance_faults(row, gpu_keys)
        if fault[0] not in split_list(row["confirmed"])
    ]
