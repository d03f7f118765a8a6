"""Every rule over the catalogs: one bad fixture each with its message, and the shipped files clean."""

from __future__ import annotations

import csv
import datetime as dt
import shutil
from pathlib import Path

import pytest

import sweep.catalogs.check as check_module
from sweep.catalogs.check import check_catalogs
from sweep.catalogs.check_gpus import named_gpu_count
from sweep.catalogs.folder import shipped_folder
from sweep.errors import Problem

BAD = Path(__file__).parent / "data" / "bad_catalogs"
TODAY = dt.date(2026, 11, 21)
# The offers the fixtures are compared with; the others would only make each case slower.
COMPARED_GPUS = {"H100-SXM-80GB", "A100-SXM-40GB", "A100-PCIE-80GB", "MI355X"}

# Folder of the fixture, and how its first message begins.
CASES = [
    ("file-empty", "gpus.csv:1: header: found an empty file"),
    ("file-not-utf8", "sources.csv:0: text"),
    ("file-short-row", "exchange_rates.csv:2: row: found 3 cells"),
    ("file-unknown-name", "offer.csv: catalog file: found an unknown name"),
    ("file-without-source-column", "exchange_rates.csv:1: column source: found no such column"),
    ("gpu-bad-date", "gpus.csv:2, checked: value: found '21.11.2026'"),
    ("gpu-bad-key", "gpus.csv:2, gpu: key: found 'H100 SXM'"),
    ("gpu-bandwidth-in-mb", "gpus.csv:2, hbm_gb_per_s: value: found '3350000'"),
    ("gpu-bandwidth-in-tb", "gpus.csv:2, hbm_gb_per_s: value: found '3.35'"),
    (
        "gpu-bandwidth-of-another-memory",
        "gpus.csv:2, hbm_gb_per_s: memory bandwidth: found 335 GB/s of HBM3",
    ),
    (
        "gpu-capability-of-another-arch",
        "gpus.csv:2, compute_capability: compute capability: found 8.0 for Hopper",
    ),
    ("gpu-derived-unmarked", "gpus.csv:2, assumed: mark: found usable_mib not named"),
    (
        "gpu-duplicate-alias",
        "gpus.csv:2, aliases: alias: found 'h100-sxm', which also names H100-SXM-80GB",
    ),
    ("gpu-duplicate-key", "gpus.csv:3, gpu: key: found ('H100-SXM-80GB',) again (first on line 2)"),
    ("gpu-fp8-before-ada", "gpus.csv:2, fp8: fp8 support: found y at compute capability 8.0"),
    ("gpu-fp8-denied", "gpus.csv:2, fp8: fp8 support: found n at compute capability 9.0"),
    ("gpu-future-date", "gpus.csv:2, checked: date: found 2199-01-01"),
    ("gpu-header-typo", "gpus.csv:1: column hbm_gb_per_s: found no such column"),
    (
        "gpu-link-both-directions",
        "gpus.csv:2, link_gb_per_s: link speed: found 900 GB/s for NVLink4",
    ),
    ("gpu-link-domain-of-bridge", "gpus.csv:2, link_domain_gpus: link: found 8 GPUs by a bridge"),
    (
        "gpu-link-domain-without-link",
        "gpus.csv:2, link_kind: link: found 0 GB/s over 8 GPUs without a link",
    ),
    ("gpu-link-in-gbit", "gpus.csv:2, link_gb_per_s: value: found '3600'"),
    (
        "gpu-link-without-speed",
        "gpus.csv:2, link_gb_per_s: link: found 0 GB/s over 8 GPUs by a switch",
    ),
    ("gpu-memory-in-tb", "gpus.csv:2, memory_marketed_gb: value: found '0.08'"),
    (
        "gpu-memory-not-of-its-key",
        "gpus.csv:2, memory_marketed_gb: memory: found 94 GB on H100-SXM-80GB",
    ),
    ("gpu-missing-source", "gpus.csv:2, source: value: found nothing"),
    ("gpu-nan", "gpus.csv:2, bf16_tflops: value: found 'nan'"),
    ("gpu-negative", "gpus.csv:2, tdp_w: value: found '-700'"),
    (
        "gpu-pcie-both-directions",
        "gpus.csv:2, pcie_gb_per_s: PCIe speed: found 126 GB/s for PCIe 5",
    ),
    ("gpu-peak-of-sparse-int8", "gpus.csv:2, int8_tops: peak: found 15832, 16.01 of fp16_tflops"),
    ("gpu-peak-without-support", "gpus.csv:2, bf16_tflops: peak: found 65 without bf16 support"),
    ("gpu-sparse-bf16", "gpus.csv:2, bf16_tflops: peak: found 1979, 1.00 of fp8_tflops"),
    (
        "gpu-sparse-every-peak",
        "gpus.csv:2, bf16_tflops: peak: found 1979, while the best matmul measured is 794.5",
    ),
    ("gpu-sparse-fp8", "gpus.csv:2, fp8_tflops: peak: found 3958, 4.00 of bf16_tflops"),
    ("gpu-swapped-columns", "gpus.csv:2, hbm_gb_per_s: memory bandwidth: found 700 GB/s of HBM3"),
    ("gpu-swapped-peaks", "gpus.csv:2, tf32_tflops: peak: found 494.5, 7.38 of bf16_tflops"),
    ("gpu-text-in-number", "gpus.csv:2, bf16_tflops: value: found '989 TFLOPS'"),
    ("gpu-unknown-mark", "gpus.csv:2, assumed: mark: found 'bf16_tflop'"),
    ("gpu-unknown-source", "gpus.csv:2, source: source: found 'stas-ml-enginering'"),
    ("gpu-unknown-word", "gpus.csv:2, link_kind: value: found 'nvswitch'"),
    (
        "gpu-usable-gib-as-gb",
        "gpus.csv:2, usable_mib: usable memory: found 87961 MiB, 1.15 of the marketed GB",
    ),
    ("gpu-usable-in-gib", "gpus.csv:2, usable_mib: value: found '79.65'"),
    (
        "instance-count-not-of-its-name",
        "instances.csv:2, gpu_count: GPU count: found 4 in a3-highgpu-8g",
    ),
    ("instance-disk-in-tb", "instances.csv:2, local_nvme_gb: local disk: found 30.4 GB for 8 GPUs"),
    (
        "instance-duplicate",
        "instances.csv:3, provider+instance_type: key: found ('aws', 'p5.48xlarge') again (first on line 2)",
    ),
    (
        "instance-fabric-in-gbyte",
        "instances.csv:2, fabric_gbps: fabric: found 400 Gbit/s for 32 NICs of EFA v2",
    ),
    (
        "instance-fabric-of-nics",
        "instances.csv:2, fabric_gbps: fabric: found 400 Gbit/s for 8 NICs of GPUDirect RDMA (RoCE, 8x CX-7)",
    ),
    (
        "instance-fabric-of-one-port",
        "instances.csv:2, fabric_gbps: fabric: found 400 Gbit/s for InfiniBand NDR (8x400 CX7)",
    ),
    ("instance-fractional-gpu", "instances.csv:2, gpu_count: value: found '0.5'"),
    ("instance-network-in-mbit", "instances.csv:2, network_gbps: value: found '100000'"),
    ("instance-ram-in-mib", "instances.csv:2, host_ram_gib: value: found '2097152'"),
    ("instance-ram-in-tib", "instances.csv:2, host_ram_gib: host RAM: found 2 GiB for 8 GPUs"),
    (
        "instance-rdma-without-fabric",
        "instances.csv:2, rdma: RDMA: found y with fabric 'none: name lacks \"r\" (RDMA)'",
    ),
    ("instance-unknown-gpu", "instances.csv:2, gpu: GPU: found 'H1000'"),
    ("offer-bad-date", "offers.csv:2, as_of: value: found '2026-13-01'"),
    ("offer-cny-as-usd", "offers.csv:2, price_per_hour: price: found 37.2 USD per GPU-hour"),
    (
        "offer-count-not-of-its-machine",
        "offers.csv:2, gpu_count: GPU count: found 12 GPUs in p5.48xlarge",
    ),
    ("offer-currency-without-rate", "offers.csv:2, currency: currency: found 'XAU'"),
    (
        "offer-duplicate",
        "offers.csv:3, provider+instance_type+gpu+gpu_count+region+price_model+as_of+source: key",
    ),
    ("offer-empty-region", "offers.csv:2, region: value: found ' '"),
    (
        "offer-fractional-gpu",
        "offers.csv:2, rankable: mark: found y on a row that is fractional_gpu",
    ),
    ("offer-future-date", "offers.csv:2, as_of: date: found 2199-01-01, checked on 2026-11-21"),
    ("offer-gpu-not-of-its-machine", "offers.csv:2, gpu: GPU: found H200-SXM-141GB in p5.48xlarge"),
    (
        "offer-gpu-only-price",
        "offers.csv:2, price_per_hour: price (a GPU-only price?): found 0.94 USD per GPU-hour",
    ),
    (
        "offer-gpu-only-price-in-place",
        "offers.csv:2, price_per_hour: price (a GPU-only price?): found 0.94 USD per GPU-hour",
    ),
    (
        "offer-gpu-only-price-of-new-seller",
        "offers.csv:2, price_per_hour: price (a GPU-only price?): found 0.117 USD per GPU-hour of",
    ),
    ("offer-header-typo", "offers.csv:1: column price_per_hour: found no such column"),
    (
        "offer-hidden-without-reason",
        "offers.csv:2, unrankable_reason: mark: found no reason for rankable = n",
    ),
    ("offer-negative-price", "offers.csv:2, price_per_hour: value: found '-98.32'"),
    ("offer-placeholder-price", "offers.csv:2, price_per_hour: placeholder price: found 700"),
    ("offer-price-in-cents", "offers.csv:2, price_per_hour: price: found 246 USD per GPU-hour"),
    (
        "offer-price-list-ranked",
        "offers.csv:2, rankable: mark: found y on a row that is per_gpu_price_list",
    ),
    ("offer-price-nan", "offers.csv:2, price_per_hour: value: found 'nan'"),
    (
        "offer-price-of-one-gpu-for-eight",
        "offers.csv:2, price_per_hour: price (a GPU-only price?): found 0.988 USD per GPU-hour",
    ),
    (
        "offer-price-of-rare-gpu",
        "offers.csv:2, price_per_hour: price (a GPU-only price?): found 0.117 USD per GPU-hour of MI355X",
    ),
    ("offer-price-too-high", "offers.csv:2, price_per_hour: price: found 4000 USD per GPU-hour"),
    ("offer-ram-in-mib", "offers.csv:2, host_ram_gib: value: found '2097152'"),
    (
        "offer-seen-after-its-check",
        "offers.csv:2, as_of: date: found 2026-07-20, checked on 2026-01-01",
    ),
    (
        "offer-spot-above-on-demand",
        "offers.csv:2, price_per_hour: discount: found spot at 55.04, on_demand at 55.04",
    ),
    (
        "offer-two-prices-of-one-day",
        "offers.csv:2, price_per_hour: two prices of one day: found 44.032",
    ),
    ("offer-undated-ranked", "offers.csv:2, rankable: mark: found y on a row that is undated"),
    ("offer-unknown-currency-case", "offers.csv:2, currency: currency: found 'usd'"),
    ("offer-unknown-gpu", "offers.csv:2, gpu: GPU: found 'H1000'"),
    ("offer-unknown-price-model", "offers.csv:2, price_model: value: found 'on-demand'"),
    ("offer-unknown-provider-spelling", "offers.csv:2, provider: provider: found 'AWS'"),
    ("offer-unknown-reason", "offers.csv:2, unrankable_reason: value: found 'to_old'"),
    ("offer-unknown-source", "offers.csv:2, source: source: found 'karpenter-amazon'"),
    ("offer-zero-price", "offers.csv:2, price_per_hour: value: found '0.0'"),
    ("rate-bad-code", "exchange_rates.csv:2, currency: currency: found 'YUAN'"),
    ("rate-duplicate", "exchange_rates.csv:3, currency+as_of: key"),
    ("rate-future-date", "exchange_rates.csv:2, as_of: date: found 2199-01-01"),
    ("rate-negative", "exchange_rates.csv:2, usd_per_unit: value: found '-0.149'"),
    (
        "rate-upside-down",
        "exchange_rates.csv:2, usd_per_unit: exchange rate: found 6.6989 USD for one CNY",
    ),
    (
        "rate-upside-down-in-time",
        "exchange_rates.csv:2, usd_per_unit: exchange rate: found 1.2 after 23.1",
    ),
    ("source-bad-date", "sources.csv:2, retrieved: value: found 'yesterday'"),
    (
        "source-duplicate",
        "sources.csv:3, source: key: found ('karpenter-aws',) again (first on line 2)",
    ),
    ("source-without-licence", "sources.csv:2, licence: value: found nothing"),
]


@pytest.fixture(scope="module")
def small_catalogs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalogs")
    for name in (
        "gpus.csv",
        "instances.csv",
        "exchange_rates.csv",
        "sources.csv",
        "billing.csv",
    ):
        shutil.copy(shipped_folder() / name, folder / name)
    with (
        (shipped_folder() / "offers.csv").open(newline="", encoding="utf-8") as source,
        (folder / "offers.csv").open("w", newline="", encoding="utf-8") as target,
    ):
        reader = csv.DictReader(source)
        writer = csv.DictWriter(target, list(reader.fieldnames or ()))
        writer.writeheader()
        writer.writerows(row for row in reader if row["gpu"] in COMPARED_GPUS)
    return folder


@pytest.fixture
def small_shipped(small_catalogs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(check_module, "shipped_folder", lambda: small_catalogs)
    return small_catalogs


def in_folder(problems: list[Problem], folder: Path) -> list[str]:
    prefix = f"{folder}/"
    return [str(p).removeprefix(prefix) for p in problems if p.where.startswith(prefix)]


def test_the_shipped_catalogs_are_clean() -> None:
    assert [str(problem) for problem in check_catalogs(shipped_folder(), TODAY)] == []


def test_the_small_catalogs_are_clean(small_shipped: Path) -> None:
    assert check_catalogs(small_shipped, TODAY) == []


@pytest.mark.parametrize(("rule", "message"), CASES, ids=[rule for rule, _ in CASES])
def test_a_planted_fault_is_found(rule: str, message: str, small_shipped: Path) -> None:
    problems = check_catalogs(BAD / rule, TODAY)
    found = in_folder(problems, BAD / rule)
    assert found, f"nothing found in {rule}"
    assert found[0].startswith(message)
    assert str(problems[0]).endswith(found[0]), "a consequence is reported before the fault"


def test_a_wrong_rate_does_not_blame_the_prices(small_shipped: Path) -> None:
    problems = check_catalogs(BAD / "rate-upside-down", TODAY)
    assert len(problems) == 1


def test_every_fixture_is_asserted() -> None:
    assert {path.name for path in BAD.iterdir()} == {rule for rule, _ in CASES}


def test_faults_are_found_in_the_shipped_folder_itself(
    small_shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_shipped, tmp_path / "catalogs")
    gpus = tmp_path / "catalogs" / "gpus.csv"
    gpus.write_text(gpus.read_text().replace(",3350,", ",3.35,", 1))
    monkeypatch.setattr(check_module, "shipped_folder", lambda: tmp_path / "catalogs")
    problems = check_catalogs(tmp_path / "catalogs", TODAY)
    assert "hbm_gb_per_s: value: found '3.35', allowed 100 to 50000 GB/s" in str(problems[0])


def test_several_faults_are_reported_at_once(small_shipped: Path, tmp_path: Path) -> None:
    for rule, name in (
        ("gpu-sparse-bf16", "gpus.csv"),
        ("offer-zero-price", "offers.csv"),
        ("rate-upside-down", "exchange_rates.csv"),
    ):
        shutil.copy(BAD / rule / name, tmp_path / name)
    names = {message.split(":")[0] for message in in_folder(check_catalogs(tmp_path), tmp_path)}
    assert names == {"gpus.csv", "offers.csv", "exchange_rates.csv"}


def test_a_confirmed_price_is_left_alone(small_shipped: Path, tmp_path: Path) -> None:
    text = (BAD / "offer-gpu-only-price" / "offers.csv").read_text()
    header, row = text.splitlines()
    cells = dict(zip(header.split(","), next(csv.reader([row])), strict=True))
    cells["confirmed"] = "promotion, seen on the page"
    with (tmp_path / "offers.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(cells))
        writer.writeheader()
        writer.writerow(cells)
    assert check_catalogs(tmp_path, TODAY) == []


def test_a_spreadsheets_byte_order_mark_and_line_ends_are_accepted(
    small_shipped: Path, tmp_path: Path
) -> None:
    for name in ("gpus.csv", "offers.csv", "sources.csv"):
        text = (small_shipped / name).read_text(encoding="utf-8")
        (tmp_path / name).write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert check_catalogs(tmp_path, TODAY) == []


def test_a_folder_that_is_not_there_or_empty(tmp_path: Path, small_shipped: Path) -> None:
    missing = tmp_path / "missing"
    assert str(check_catalogs(missing)[0]).startswith(f"{missing}: catalog folder: found no folder")
    assert "found no .csv file" in str(check_catalogs(tmp_path)[0])


@pytest.mark.parametrize(
    ("instance_type", "count"),
    [
        ("gpu_8x_h100_sxm5", 8),
        ("8x-H200-32-65536", 8),
        ("a3-highgpu-8g", 8),
        ("gpu-h100-sxm_8gpu-128vcpu-1600gb", 8),
        ("BM.GPU.A100-v2.8", 8),
        ("p5.48xlarge", None),
        ("gpu_1x_rtx6000", 1),
    ],
)
def test_counts_in_names(instance_type: str, count: int | None) -> None:
    assert named_gpu_count(instance_type) == count
