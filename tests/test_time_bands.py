"""Bands of step times: the nearest row is found, a wrong row is told where it stands."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sweep.catalogs import Catalogs
from sweep.catalogs.folder import shipped_folder
from sweep.catalogs.stacks import load_stacks
from sweep.catalogs.time_bands import TimeBand, TimeBandBook, load_time_bands

HEADER = "stack,method,gpu,low,high,points,sources,basis,source,checked"
GENERAL = (
    "*,*,*,0.7,1.5,0,0,none,sweep-assumed,2026-11-21",
    "*,*,unmeasured,0.9,1.2,0,0,none,sweep-assumed,2026-11-21",
    "*,*,experts,0.8,1.6,0,0,none,sweep-assumed,2026-11-21",
)


def band(stack: str, method: str, low: float, high: float, gpu: str = "*") -> TimeBand:
    return TimeBand(stack, method, gpu, low, high, 12, 3, "percentiles")


BOOK = TimeBandBook(
    (
        TimeBand("*", "*", "*", 0.5, 2.0, 0, 0, "none"),
        TimeBand("*", "*", "unmeasured", 0.8, 1.5, 0, 0, "none"),
        TimeBand("*", "*", "experts", 0.7, 2.5, 9, 2, "experts"),
        band("megatron", "*", 0.9, 1.1),
        band("hf", "lora", 0.6, 1.4),
        band("hf", "*", 0.65, 1.3),
        band("hf", "lora", 0.75, 1.6, gpu="unmeasured"),
    )
)


@pytest.mark.parametrize(
    ("lineage", "method", "low", "high"),
    [
        (("hf",), "lora", 0.6, 1.4),
        (("hf",), "full", 0.65, 1.3),
        (("hf-liger", "hf-fused", "hf"), "lora", 0.6, 1.4),
        # The nearest stack goes before the method of a further one.
        (("child", "megatron", "hf"), "lora", 0.9, 1.1),
        (("litgpt",), "qlora", 0.5, 2.0),
    ],
)
def test_the_nearest_row_is_found(
    lineage: tuple[str, ...], method: str, low: float, high: float
) -> None:
    found = BOOK.find(lineage, method, measured=True)
    assert (found.low, found.high) == (low, high)


def test_a_gpu_nobody_measured_widens_both_ends() -> None:
    found = BOOK.find(("megatron",), "full", measured=False)
    assert (found.low, found.high) == pytest.approx((0.9 * 0.8, 1.1 * 1.5))
    assert found.gpu == "unmeasured"
    found = BOOK.find(("hf",), "lora", measured=False)
    assert (found.low, found.high) == pytest.approx((0.6 * 0.75, 1.4 * 1.6))


def test_experts_widen_both_ends_whatever_the_stack() -> None:
    found = BOOK.find(("megatron",), "full", measured=True, experts=True)
    assert (found.low, found.high) == pytest.approx((0.9 * 0.7, 1.1 * 2.5))
    assert found.basis == "percentiles; a model with experts: experts"
    found = BOOK.find(("megatron",), "full", measured=False, experts=True)
    assert found.high == pytest.approx(1.1 * 1.5 * 2.5)
    assert (BOOK.expert_factor().low, BOOK.expert_factor().high) == (0.7, 2.5)


def test_a_band_says_where_it_is_from() -> None:
    assert BOOK.find(("hf",), "lora", measured=True).provenance == (
        "time_bands.csv: hf lora, 12 points of 3 sources"
    )
    assert BOOK.find(("x",), "lora", measured=True).provenance == (
        "time_bands.csv: any stack, assumed"
    )


def test_which_gpus_are_measured_is_what_the_efficiencies_say(catalogs: Catalogs) -> None:
    gpus = [catalogs.gpus[key] for key in ("H100-SXM-80GB", "A100-SXM-80GB", "T4")]
    some = catalogs.stacks.efficiency(gpus[0])
    book = dataclasses.replace(
        catalogs.stacks,
        time_bands=BOOK,
        efficiencies={
            "H100-SXM-80GB": dataclasses.replace(some, assumed=()),
            "arch:Ampere": dataclasses.replace(some, assumed=("attention_share",)),
            "arch:*": dataclasses.replace(some, assumed=("matmul_share", "attention_share")),
        },
    )
    assert [book.time_measured(gpu) for gpu in gpus] == [True, True, False]
    lows = [book.time_band("megatron", "full", gpu).low for gpu in gpus]
    assert lows == pytest.approx([0.9, 0.9, 0.9 * 0.8])


def test_the_shipped_bands_have_no_fault_and_cover_every_stack(catalogs: Catalogs) -> None:
    stacks, _ = load_stacks((shipped_folder(),))
    book, problems = load_time_bands((shipped_folder(),), stacks.stacks)
    assert problems == []
    for stack in stacks.stacks.values():
        for method in ("full", "lora", "qlora"):
            for measured in (True, False):
                for experts in (True, False):
                    found = book.find(stack.lineage, method, measured, experts)
                    assert 0 < found.low <= 1 <= found.high


FAULTS = {
    "low above one": ("hf,lora,*,1.1,1.5,1,1,x,sweep-assumed,2026-11-21", "low: value: found '1.1'"),
    "high below one": ("hf,lora,*,0.9,0.95,1,1,x,sweep-assumed,2026-11-21", "high: value: found '0.95'"),
    "a GPU by name": (
        "hf,lora,A100-SXM-80GB,0.9,1.1,1,1,x,sweep-assumed,2026-11-21",
        "gpu: value: found 'A100-SXM-80GB', allowed one of *, unmeasured, experts",
    ),
    "a method there is not": (
        "hf,lorra,*,0.9,1.1,1,1,x,sweep-assumed,2026-11-21",
        "method: value: found 'lorra', allowed one of full, lora, qlora, * (did you mean 'lora'?)",
    ),
    "a stack there is not": (
        "megatrn,lora,*,0.9,1.1,1,1,x,sweep-assumed,2026-11-21",
        "stack: stack: found 'megatrn', allowed a stack or *; did you mean 'megatron'?",
    ),
    "a row twice": (GENERAL[0], "stack+method+gpu: key: found ('*', '*', '*') again"),
    "experts of one stack": (
        "hf,*,experts,0.9,1.1,1,1,x,sweep-assumed,2026-11-21",
        "gpu: experts: found hf, *, allowed one row with *, *, experts",
    ),
    "fewer points than none": (
        "hf,lora,*,0.9,1.1,-1,1,x,sweep-assumed,2026-11-21",
        "points: value: found '-1'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_where_it_stands(tmp_path: Path, fault: str) -> None:
    row, message = FAULTS[fault]
    (tmp_path / "time_bands.csv").write_text("\n".join([HEADER, *GENERAL, row]) + "\n")
    _, problems = load_time_bands((tmp_path,), ("hf", "megatron"))
    text = "\n".join(map(str, problems))
    assert message in text
    assert f"{tmp_path / 'time_bands.csv'}:5" in text


@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_a_missing_general_row_is_told(tmp_path: Path, left_out: int) -> None:
    kept = [row for place, row in enumerate(GENERAL) if place != left_out]
    (tmp_path / "time_bands.csv").write_text("\n".join([HEADER, *kept]) + "\n")
    _, problems = load_time_bands((tmp_path,))
    wanted = f"a row with *, *, {('*', 'unmeasured', 'experts')[left_out]}"
    assert any(str(problem).endswith(wanted) for problem in problems)
