"""GPUs and machines: the shipped files load whole, in SI units, with what is unknown left unknown."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from sweep.catalogs.folder import catalog_folders, read_catalog, shipped_folder
from sweep.catalogs.hardware import (
    GPU_COLUMNS,
    find_gpu,
    gpu_names,
    load_gpus,
    load_instances,
    split_list,
)
from sweep.catalogs.sources import load_sources
from sweep.errors import CatalogError

SHIPPED = (shipped_folder(),)


def shipped_rows(name: str) -> list[dict[str, str]]:
    with (shipped_folder() / name).open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_every_shipped_gpu_loads() -> None:
    gpus, problems = load_gpus(SHIPPED)
    assert problems == []
    assert len(gpus) == len(shipped_rows("gpus.csv")) >= 45


def test_h100_figures_are_in_si_units() -> None:
    h100 = load_gpus(SHIPPED)[0]["H100-SXM-80GB"]
    assert h100.usable_bytes == 81559 * 1024**2
    assert h100.hbm_bytes_per_s == 3.35e12
    assert h100.bf16_flop_per_s == 989e12
    assert h100.fp8_flop_per_s == 1979e12
    assert h100.link_bytes_per_s == 450e9
    assert h100.link_domain_gpus == 8
    assert h100.pcie_bytes_per_s == 63e9
    assert h100.mamf_flop_per_s == 794.5e12
    assert (h100.compute_capability, h100.bf16, h100.fp8) == ("9.0", True, True)


def test_unknown_figures_are_none_not_zero() -> None:
    gpus, _ = load_gpus(SHIPPED)
    assert gpus["T4"].bf16_flop_per_s is None
    assert gpus["T4"].bf16 is False
    assert gpus["L4"].link_bytes_per_s is None
    assert gpus["L4"].link_domain_gpus == 1
    assert gpus["A100-SXM-80GB"].fp8_flop_per_s is None
    for gpu in gpus.values():
        for field in ("bf16_flop_per_s", "fp16_flop_per_s", "link_bytes_per_s", "tdp_w"):
            assert getattr(gpu, field) is None or getattr(gpu, field) > 0


def test_memory_without_a_driver_figure_says_so() -> None:
    for gpu in load_gpus(SHIPPED)[0].values():
        if gpu.usable_basis != "driver":
            assert "usable_mib" in gpu.assumed, gpu.key
            assert gpu.usable_bytes <= gpu.memory_marketed_gb * 1.08e9, gpu.key


def test_v100_pcie_is_two_cards() -> None:
    gpus, _ = load_gpus(SHIPPED)
    small, large = gpus["V100-PCIE-16GB"], gpus["V100-PCIE-32GB"]
    assert small.fp16_flop_per_s == large.fp16_flop_per_s == 112e12
    assert large.usable_bytes > 1.9 * small.usable_bytes


def test_link_domains_follow_the_kind_of_link() -> None:
    gpus, _ = load_gpus(SHIPPED)
    assert gpus["A100-PCIE-80GB"].link_domain_gpus == 2
    assert gpus["A100-SXM-80GB"].link_domain_gpus == 8
    assert gpus["GB200-186GB"].link_domain_gpus == 72
    assert gpus["MI300X"].link_domain_gpus == 8
    assert gpus["RTX-4090"].link_domain_gpus == 1
    for gpu in gpus.values():
        assert (gpu.link_kind == "none") == (gpu.link_domain_gpus == 1), gpu.key


def test_two_die_packages_are_marked() -> None:
    gpus, _ = load_gpus(SHIPPED)
    assert {gpu.key for gpu in gpus.values() if gpu.logical_devices == 2} == {"MI250", "MI250X"}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("H100-SXM", "H100-SXM-80GB"),
        ("h100-pcie", "H100-PCIE-80GB"),
        ("A100-80GB-SXM", "A100-SXM-80GB"),
        ("A100-SXM4-40GB", "A100-SXM-40GB"),
        ("RTX4090", "RTX-4090"),
        ("RTX6000Ada", "RTX-6000-Ada"),
        ("H100-96GB (HBM2e, 95.04 GiB)", "H100-SXM-96GB"),
        ("a100_80gb", "A100-SXM-80GB"),
        ("V100", "V100-SXM-16GB"),
        ("GAUDI2", "Gaudi2"),
    ],
)
def test_other_spellings_find_the_gpu(name: str, key: str) -> None:
    assert find_gpu(load_gpus(SHIPPED)[0], name).key == key


def test_names_that_leave_the_form_factor_open_are_loose() -> None:
    gpus, _ = load_gpus(SHIPPED)
    exact = gpu_names(gpus, loose=False)
    assert "h100" not in exact
    assert gpu_names(gpus)["h100"] == "H100-SXM-80GB"


def test_an_unknown_gpu_gets_the_nearest_name() -> None:
    with pytest.raises(CatalogError, match="did you mean 'H100-SXM-80GB'"):
        find_gpu(load_gpus(SHIPPED)[0], "H100-SMX-80GB")


def test_every_figure_marked_assumed_exists() -> None:
    names = {column.name for column in GPU_COLUMNS}
    for row in shipped_rows("gpus.csv"):
        for column in split_list(row["assumed"]):
            assert column in names
            assert row[column], (row["gpu"], column)


def test_every_source_is_listed() -> None:
    sources, problems = load_sources(SHIPPED)
    assert problems == []
    for name in ("gpus.csv", "instances.csv", "offers.csv", "exchange_rates.csv"):
        for row in shipped_rows(name):
            assert row["source"]
            assert set(split_list(row["source"])) <= set(sources), (name, row)


def test_every_shipped_instance_loads() -> None:
    instances, problems = load_instances(SHIPPED)
    assert problems == []
    assert len(instances) == len(shipped_rows("instances.csv")) > 100
    gpus, _ = load_gpus(SHIPPED)
    assert {machine.gpu for machine in instances.values()} <= set(gpus)


def test_node_bandwidth_is_the_fabric_where_there_is_one() -> None:
    instances, _ = load_instances(SHIPPED)
    infiniband = instances["azure", "Standard_ND96isr_H100_v5"]
    assert infiniband.rdma
    assert infiniband.node_bytes_per_s == 3200e9 / 8
    assert infiniband.network_bytes_per_s == 80e9 / 8
    plain = instances["azure", "Standard_ND96is_H100_v5"]
    assert not plain.rdma
    assert plain.node_bytes_per_s is None
    tcpx = instances["gcp", "a3-highgpu-8g"]
    assert not tcpx.rdma
    assert tcpx.node_bytes_per_s == 800e9 / 8
    assert instances["gcp", "a2-highgpu-8g"].node_bytes_per_s == 100e9 / 8


def test_a_users_row_replaces_the_shipped_one_and_new_rows_follow(tmp_path: Path) -> None:
    h100 = next(row for row in shipped_rows("gpus.csv") if row["gpu"] == "H100-SXM-80GB")
    own = {**h100, "tdp_w": "650"}
    new = {**h100, "gpu": "H100-LAB", "aliases": "", "loose_aliases": ""}
    write_rows(tmp_path / "gpus.csv", [own, new])
    gpus, problems = load_gpus(catalog_folders([tmp_path]))
    shipped, _ = load_gpus(SHIPPED)
    assert problems == []
    assert gpus["H100-SXM-80GB"].tdp_w == 650
    assert list(gpus) == [*shipped, "H100-LAB"]


def test_a_missing_user_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no-such-folder"):
        catalog_folders([tmp_path / "no-such-folder"])


def test_a_file_in_no_folder_is_a_problem(tmp_path: Path) -> None:
    rows, problems = read_catalog([tmp_path], "gpus.csv", GPU_COLUMNS, ("gpu",))
    assert rows == []
    assert "gpus.csv" in str(problems[0])


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_spreadsheet_files_are_read(tmp_path: Path, newline: str) -> None:
    text = (shipped_folder() / "gpus.csv").read_text(encoding="utf-8")
    (tmp_path / "gpus.csv").write_bytes(text.replace("\n", newline).encode("utf-8-sig"))
    assert load_gpus([tmp_path]) == load_gpus(SHIPPED)
