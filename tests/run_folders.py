"""Small made-up run folders, written through the sink, for the tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sweep import sink
from sweep.columns import NO_KNOB, VERDICTS
from sweep.manifest import Manifest, RunIdentity

GIB = 1024.0**3
IDENTITY = RunIdentity(
    spec=json.dumps({"made": "up"}),
    catalogs_sha256="c" * 64,
    kernels_sha256="k" * 64,
    versions={"numpy": "2"},
    engine_version="0.1.0",
)
MODELS = ("Llama-3-8B", "Qwen2.5-7B", "GPT-2")
METHODS = ("full", "lora", "qlora")
GPUS = (("L4", 23), ("A100-SXM-80GB", 79), ("H100-SXM-80GB", 79), ("H200-SXM-141GB", 140))


def run_columns(**changes: Any) -> dict[str, list[Any]]:
    """The one row of the run table, with whatever a test wants different."""
    row = {
        "name": "made-up",
        "spec_path": "made-up.toml",
        "engine_version": "0.1.0",
        "objective": "usd",
        "keep": "best",
        "deadline_hours": 24.0,
        "max_usd": None,
        "memory_headroom": 0.05,
        "provision_hours": 0.2,
        "compile_hours": 0.01,
        "eval_fraction": 0.01,
        "spot_overhead": 0.15,
        "epochs": 2.0,
        "bytes_per_token": 4.0,
        "checkpoints_per_job": 4,
        "checkpoints_kept": 2,
        "storage_bytes_per_s": 1e9,
        "cores_per_gpu": 8.0,
        "vcpus_per_core": 2.0,
        "offers_as_of": None,
        "offers_not_covered": 7,
    }
    assert set(changes) <= set(row)
    return {name: [value] for name, value in (row | changes).items()}


def workload_columns(count: int, rng: np.random.Generator) -> dict[str, Any]:
    """Workloads: models by methods by sequence lengths, as many as asked."""
    ids = np.arange(count, dtype=np.uint32)
    models = [f"{MODELS[i % 3]}" if i < 27 else f"model-{i // 72:03d}" for i in range(count)]
    parameters = rng.uniform(1e8, 1e11, count).round()
    return {
        "workload": ids,
        "task": ["train"] * count,
        "model": models,
        "method": [METHODS[i // 3 % 3] for i in range(count)],
        "seq_len": (2 ** (10 + ids % 4)).astype(np.uint32),
        "images_per_sample": np.zeros(count, np.uint32),
        "image_size": [None] * count,
        "image_tokens": np.zeros(count, np.uint32),
        "axes": ["{}"] * count,
        "weights_bytes": parameters * 2,
        "checkpoint_bytes": parameters * 16,
        "total_parameters": parameters,
        "active_parameters": parameters,
        "trained_parameters": parameters,
        "expert_time_low": np.ones(count),
        "expert_time_high": np.ones(count),
    }


def setup_columns(shapes: int, nodes: tuple[int, ...]) -> dict[str, Any]:
    """Setups: every shape at every number of nodes; some facts about the machine unknown."""
    count = shapes * len(nodes)
    shape = np.repeat(np.arange(shapes, dtype=np.uint32), len(nodes))
    node_count = np.tile(np.array(nodes, dtype=np.uint32), shapes)
    gpus = np.where(shape % 3 == 0, 1, 8).astype(np.uint32)
    return {
        "setup": np.arange(count, dtype=np.uint32),
        "shape": shape,
        "gpu": [GPUS[i % len(GPUS)][0] for i in shape],
        "gpus_per_node": gpus,
        "node_count": node_count,
        "gpu_count": gpus * node_count,
        "usable_bytes": [int(GPUS[i % len(GPUS)][1] * GIB) for i in shape],
        "link": ["NVLink"] * count,
        "link_bytes_per_s": np.full(count, 3e11),
        "network_bytes_per_s": np.full(count, 5e10),
        "network_assumed": (shape % 5 == 0),
        "rdma": (shape % 2 == 0),
        "host_ram_bytes": [None if i % 7 == 3 else int(500 * GIB) for i in shape],
        "vcpus": [None if i % 7 == 3 else 96.0 for i in shape],
        "local_nvme_bytes": [None if i % 4 == 3 else 2_000_000_000_000 for i in shape],
        "time_measured": (shape % 4 != 1),
    }


def knob_columns(ids: np.ndarray) -> dict[str, Any]:
    """Knobs for ids; each id means the same whichever are asked for."""
    count = len(ids)
    return {
        "knob": ids,
        "stack": ["hf" if i % 4 else "megatron" for i in ids],
        "precision": ["bf16"] * count,
        "quantization": ["none"] * count,
        "lora_rank": np.full(count, 16),
        "lora_target": ["all-linear"] * count,
        "lora_dropout": np.zeros(count),
        "checkpointing": [("none", "selective", "full")[i % 3] for i in ids],
        "attention": ["flash"] * count,
        "cross_entropy": ["plain"] * count,
        "optimizer": ["adamw-fused"] * count,
        "global_batch": np.where(ids % 2 == 0, 64, 256),
        "zero_stage": ids % 4,
        "offload": ["none"] * count,
        "tp": np.ones(count),
        "cp": np.ones(count),
        "pp": np.ones(count),
        "ep": np.ones(count),
        "sequence_parallel": [False] * count,
        "micro_batch": 2 ** (ids % 3),
        "memory_low": np.full(count, 0.98),
        "memory_high": np.full(count, 1.02),
        "measured_time_low": np.where(ids % 2 == 0, 0.9, 0.8),
        "measured_time_high": np.where(ids % 2 == 0, 1.1, 1.25),
        "unmeasured_time_low": np.full(count, 0.6),
        "unmeasured_time_high": np.full(count, 1.8),
    }


def offer_columns(count: int, shapes: int, rng: np.random.Generator) -> dict[str, Any]:
    """Offers: some spot, some not rankable, some of shapes the run does not know."""
    shape = np.arange(count) % (shapes + 1)
    price_model = [
        ("on_demand", "on_demand", "spot", "reserved_1y")[i] for i in rng.integers(0, 4, count)
    ]
    usd = rng.integers(100, 4000, count) / 100
    rankable = rng.random(count) < 0.9
    return {
        "offer": np.arange(count, dtype=np.uint32),
        "shape": shape,
        "provider": [f"provider-{i % 25:02d}" for i in range(count)],
        "instance_type": [f"type-{i}" for i in shape],
        "region": [("us-east", "eu-west", "asia")[i % 3] for i in range(count)],
        "price_model": price_model,
        "price_per_hour": usd,
        "currency": ["USD"] * count,
        "usd_per_hour": usd,
        "billing_granularity_s": [(1.0, 60.0, 3600.0)[i] for i in rng.integers(0, 3, count)],
        "billing_minimum_s": [(0.0, 60.0, 3600.0)[i] for i in rng.integers(0, 3, count)],
        "as_of": [None] * count,
        "source": ["made-up"] * count,
        "scope": ["instance"] * count,
        "rankable": rankable,
        "unrankable_reason": np.where(rankable, "", "doubtful_listing"),
        "notes": [""] * count,
    }


def fact_columns(
    workloads: np.ndarray, setups: Mapping[str, Any], rng: np.random.Generator, knobs: int
) -> dict[str, np.ndarray]:
    """One row for each workload and setup: two thirds fit, the rest fail in three ways."""
    count = len(setups["setup"])
    rows = len(workloads) * count
    verdict = rng.choice(np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 3, 4], np.uint8), rows)
    unsupported = verdict >= 3
    usable = np.tile(np.array(setups["usable_bytes"], np.float32), len(workloads))
    share = np.where(verdict == 1, 0.95 + rng.random(rows), 0.94 * rng.random(rows))
    gpus = np.tile(np.asarray(setups["gpu_count"], np.float64), len(workloads))
    seconds = np.exp(rng.normal(-9.5, 1.5, rows)) / gpus**0.9
    return {
        "workload": np.repeat(workloads, count).astype(np.uint32),
        "setup": np.tile(np.asarray(setups["setup"], np.uint32), len(workloads)),
        "knob": np.where(unsupported, NO_KNOB, rng.integers(0, knobs, rows)).astype(np.uint32),
        "verdict": verdict,
        "seconds_per_token": np.where(unsupported, 0, seconds).astype(np.float32),
        "allocated_bytes": np.where(unsupported, 0, usable * share * 0.9).astype(np.float32),
        "device_bytes": np.where(unsupported, 0, usable * share).astype(np.float32),
        "host_bytes": np.where(verdict == 2, 600 * GIB, 100 * GIB).astype(np.float32),
        "network_bytes_per_token": np.where(gpus > 8, 1e5, 0).astype(np.float32),
    }


def write_run(
    folder: Path,
    *,
    workloads: int = 18,
    shapes: int = 8,
    nodes: tuple[int, ...] = (1, 2, 4),
    parts: int = 3,
    offers: int = 60,
    tokens: tuple[float, ...] = (1e8, 1e9),
    knobs: int = 40,
    seed: int = 0,
    facts: list[dict[str, np.ndarray]] | None = None,
    identity: RunIdentity = IDENTITY,
    **changes: Any,
) -> Manifest:
    """A finished run folder; `facts` replaces the drawn parts, `changes` the run table's values."""
    rng = np.random.default_rng(seed)
    setups = setup_columns(shapes, nodes)
    with sink.open_run(folder, identity, part_count=parts) as run:
        chunks = np.array_split(np.arange(workloads, dtype=np.uint32), parts)
        for index, chunk in enumerate(chunks):
            columns = facts[index] if facts else fact_columns(chunk, setups, rng, knobs)
            counts = np.bincount(columns["verdict"], minlength=len(VERDICTS))
            run.write_part(index, columns, 10 * len(columns["verdict"]), counts)
        rng = np.random.default_rng(seed + 1)
        run.write_table("workloads", workload_columns(workloads, rng))
        run.write_table("setups", setups)
        questions = workloads * len(tokens)
        train_tokens = np.tile(np.array(tokens), workloads)
        run.write_table(
            "questions",
            {
                "question": np.arange(questions, dtype=np.uint32),
                "workload": np.repeat(np.arange(workloads, dtype=np.uint32), len(tokens)),
                "train_tokens": train_tokens,
                "train_text_gb": [None] * questions,
                "data_bytes": train_tokens * 4,
            },
        )
        run.write_table("offers", offer_columns(offers, shapes, rng))
        names = sorted(set(workload_columns(workloads, rng)["model"]))
        run.write_table(
            "models",
            {
                "model": names,
                "family": names,
                "hf_id": [None] * len(names),
                "total_parameters": [1e9] * len(names),
                "active_parameters": [1e9] * len(names),
                "num_hidden_layers": [32] * len(names),
                "hidden_size": [4096] * len(names),
                "max_position_embeddings": [None] * len(names),
                "licence": ["apache-2.0"] * len(names),
            },
        )
        run.write_table("run", run_columns(**changes))
        return run.commit(knob_columns, threads=1)
