"""Predicted peaks against traced ones: real training steps followed storage by storage.

Data: tests/data/traced_memory.csv, single-GPU steps of the Hugging Face stack (Transformers 5.23,
PEFT 0.21, Accelerate 1.15, torch 2.15) on fake tensors; source hf-trace-2026 in the catalogs.
"""

from __future__ import annotations

import csv
import dataclasses
import statistics
from pathlib import Path

import pytest

from sweep.catalogs import Catalogs, load_catalogs
from sweep.catalogs.models import resolve_model
from sweep.catalogs.stacks import StackBook
from sweep.plan.layouts import Layout
from sweep.plan.programs import Program
from sweep.plan.shapes import model_shape
from sweep.scenario import Scenario, evaluate_scenario
from sweep.units import GIB

with (Path(__file__).parent / "data/traced_memory.csv").open(newline="") as handle:
    POINTS = list(csv.DictReader(handle))
OPTIMIZERS = {
    "adamw_fused": "adamw-fused",
    "adamw_foreach": "adamw-foreach",
    "sgd": "sgd",
    "sgdm": "sgd-momentum",
    "adafactor": "adafactor",
}
TARGETS = {"": "none", "all": "all-linear", "qkvo": "attention", "qv": "attention-qv"}
# Families whose layers have no routed experts.
SPARSE = ("Mixtral", "DeepSeek", "gpt-oss", "MoE")


@pytest.fixture(scope="module")
def catalogs() -> Catalogs:
    return load_catalogs()


def book_for(point: dict[str, str], book: StackBook) -> StackBook:
    """The catalog's dtype rules, changed to what the trace ran where no program says it."""
    method = point["method"]
    if method == "full":
        return book
    precision = precision_of(point)
    # A traced base without k-bit preparation keeps the residual stream and the head in 16 bits.
    source = "lora" if point["kbit_prep"] != "y" else method
    rule = book.rules["hf", source, precision, 0]
    weight_dtype = "nf4" if method == "qlora" else "bf16"
    changed = dataclasses.replace(
        rule, method=method, weight_dtype=weight_dtype, adapter_dtype=point["adapter_dtype"]
    )
    if point["adapter_dtype"] == "bf16":
        smaller = dict.fromkeys(
            ("weight_bytes", "shard_weight_bytes", "grad_bytes", "state_dtype_bytes"), 2.0
        )
        changed = dataclasses.replace(changed, bytes={**rule.bytes, **smaller})
    return dataclasses.replace(book, rules={**book.rules, ("hf", method, precision, 0): changed})


def precision_of(point: dict[str, str]) -> str:
    if point["method"] == "full":
        if point["weight_dtype"] == "bf16":
            return "bf16"
        return "bf16-mixed" if point["autocast"] == "y" else "fp32"
    return "bf16-mixed" if point["autocast"] == "y" else "bf16"


def predicted(point: dict[str, str], catalogs: Catalogs) -> dict[str, float]:
    model = resolve_model(point["model"], catalogs.models)
    assert model is not None, point["model"]
    shape = model_shape(model)
    if shape.counts.vision:
        # The traced step is of the text tower alone.
        shape = dataclasses.replace(shape, counts=dataclasses.replace(shape.counts, vision=None))
    # PEFT's traced all-linear left fused experts alone.
    shape = dataclasses.replace(
        shape, counts=dataclasses.replace(shape.counts, experts_adapted=False)
    )
    program = Program(
        method=point["method"],
        stack="hf",
        precision=precision_of(point),
        quantization={"full": "none", "lora": "none"}.get(
            point["method"], "nf4-double" if point["double_quant"] == "y" else "nf4"
        ),
        lora_rank=int(point["lora_rank"] or 0),
        lora_target=TARGETS[point["lora_targets"]],
        lora_dropout=float(point["lora_dropout"] or 0.0),
        checkpointing=point["checkpointing"],
        attention="eager" if point["attention"] == "eager" else "flash",
        cross_entropy="plain",
        optimizer=OPTIMIZERS[point["optimizer"]],
        zero_stage=0,
        offload="none",
    )
    micro_batch = int(point["micro_batch"])
    scenario = Scenario(
        shape=shape,
        program=program,
        layout=Layout(1, 1, 1, 1, False),
        seq_len=int(point["seq_len"]),
        global_batch=micro_batch * int(point["grad_accum"]),
        micro_batch=micro_batch,
        gpus=1,
        gpus_per_node=1,
    )
    return dict(evaluate_scenario(scenario, book_for(point, catalogs.stacks)).quantities)


@pytest.fixture(scope="module")
def errors(catalogs: Catalogs) -> list[tuple[float, dict[str, str]]]:
    found = []
    for point in POINTS:
        # No program pads its batches, and 4-bit loading leaves fused experts alone (traced2-235 did not).
        if "padding" in point["attention"] or point["id"] == "traced2-235":
            continue
        allocated = predicted(point, catalogs)["allocated"]
        found.append((allocated / GIB / float(point["peak_gib"]) - 1.0, point))
    off = sorted(abs(error) for error, _ in found)
    print(f"\n{len(off)} traced peaks: median error {statistics.median(off):.4%}, ", end="")
    print(f"95th percentile {off[int(0.95 * len(off))]:.2%}, largest", end=" ")
    worst = sorted(found, key=lambda pair: -abs(pair[0]))[:3]
    print(", ".join(f"{error:+.1%} {point['id']}" for error, point in worst))
    return found


def test_dense_peaks_are_within_one_percent_at_the_median_and_five_at_the_95th(errors):
    dense = sorted(
        abs(error) for error, point in errors if not any(name in point["model"] for name in SPARSE)
    )
    assert len(dense) > 400
    assert statistics.median(dense) < 0.01
    assert dense[int(0.95 * len(dense))] < 0.05


def test_llama_lora_and_qlora_peaks_agree_to_a_thousandth(errors):
    tight = [
        abs(error)
        for error, point in errors
        if point["model"] in ("meta-llama/Meta-Llama-3-8B", "Qwen/Qwen2.5-7B")
        and point["method"] != "full"
    ]
    assert len(tight) > 30
    assert max(tight) < 2e-3


@pytest.mark.parametrize("name", ["falcon-7b", "opt-6.7b", "bloom-7b1"])
def test_four_bit_layers_with_fp32_norms_widen_the_stream(errors, name):
    # Derived from LoRA over 16-bit weights, not traced layer by layer: see FormBook._widen.
    found = [
        abs(error)
        for error, point in errors
        if name in point["model"] and point["method"] == "qlora"
    ]
    assert found
    assert max(found) < 0.01


def test_sparse_peaks_are_within_a_tenth(errors):
    sparse = [
        abs(error) for error, point in errors if any(name in point["model"] for name in SPARSE)
    ]
    assert len(sparse) > 25
    assert statistics.median(sparse) < 0.01
    assert max(sparse) < 0.10


with (Path(__file__).parent / "data/traced_memory_fsdp2.csv").open(newline="") as handle:
    SHARDED = list(csv.DictReader(handle))


@pytest.mark.parametrize("point", SHARDED, ids=[point["id"] for point in SHARDED])
def test_fsdp2_peaks_agree_to_a_hundredth(point: dict[str, str], catalogs: Catalogs):
    # FSDP2 over 2 and 8 GPUs, resharded after forward: pure bf16, and fp32 shards with bf16 compute
    # and fp32 reduction. Never-resharded traces are another engine and are not predicted.
    model = resolve_model(point["model"], catalogs.models)
    assert model is not None
    gpus, micro_batch = int(point["gpu_count"]), int(point["micro_batch"])
    program = Program(
        method="full",
        stack="hf",
        precision="bf16-mixed" if point["weight_dtype"] == "fp32" else "bf16",
        quantization="none",
        lora_rank=0,
        lora_target="none",
        lora_dropout=0.0,
        checkpointing=point["checkpointing"],
        attention="flash",
        cross_entropy="plain",
        optimizer=OPTIMIZERS[point["optimizer"]],
        zero_stage=3,
        offload="none",
    )
    scenario = Scenario(
        shape=model_shape(model),
        program=program,
        layout=Layout(1, 1, 1, 1, False),
        seq_len=int(point["seq_len"]),
        global_batch=micro_batch * gpus,
        micro_batch=micro_batch,
        gpus=gpus,
        gpus_per_node=gpus,
    )
    found = evaluate_scenario(scenario, catalogs.stacks).quantities
    assert found["allocated"] / GIB == pytest.approx(float(point["peak_gib"]), rel=0.01)
