"""The axis tables of a plan as columns of the result tables: what numbered keys stand for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sweep.plan import Plan
from sweep.plan.programs import PROGRAM_COLUMNS
from sweep.plan.setups import PricedOffer, offer_columns
from sweep.spec import Spec
from sweep.units import GB, HOUR_S, MINUTE_S

# CPU cores that feed one GPU with tokenised text (assumed: data loading of packed text is light), how
# many vCPUs providers count per core (two hyper-threads), checkpoints kept on disk at once (assumed).
CORES_PER_GPU = 4.0
VCPUS_PER_CORE = 2.0
CHECKPOINTS_KEPT = 2
# Bytes of a training checkpoint per trained element: 16-bit weight, fp32 master and two fp32 states
# for full training; fp32 adapter and two states for adapters.
FULL_CHECKPOINT_BYTES = 14.0
ADAPTER_CHECKPOINT_BYTES = 12.0


def knob_columns(plan: Plan, ids: np.ndarray) -> dict[str, list[Any]]:
    """What knob numbers stand for, as the columns of knobs.parquet."""
    micro_count, layout_count = len(plan.micro_batches), len(plan.layouts)
    rest, micro = np.divmod(ids.astype(np.int64), micro_count)
    rest, layout = np.divmod(rest, layout_count)
    program, batch = np.divmod(rest, len(plan.global_batches))
    columns: dict[str, list[Any]] = {"knob": [int(one) for one in ids]}
    for name in PROGRAM_COLUMNS:
        columns[name] = [getattr(plan.programs[row], name) for row in program]
    columns["global_batch"] = [plan.global_batches[row] for row in batch]
    for name in ("tp", "pp", "cp", "ep", "sequence_parallel"):
        columns[name] = [getattr(plan.layouts[row], name) for row in layout]
    columns["micro_batch"] = [plan.micro_batches[row] for row in micro]
    columns["memory_low"] = [plan.memory_bands[row].low for row in program]
    columns["memory_high"] = [plan.memory_bands[row].high for row in program]
    for place, name in enumerate(("measured_", "unmeasured_")):
        columns[f"{name}time_low"] = [plan.time_bands[row][place].low for row in program]
        columns[f"{name}time_high"] = [plan.time_bands[row][place].high for row in program]
    return columns


def workload_columns(plan: Plan) -> dict[str, list[Any]]:
    """The workloads as the columns of workloads.parquet."""
    table = plan.tables.workloads
    rows = []
    for index, workload in enumerate(plan.workloads):
        counts = plan.shapes[workload.model].counts
        experts = bool(plan.shapes[workload.model].model.num_experts)
        first, last = table.first_case[index], table.last_case[index]
        case = plan.cases[table.case_list[first]] if last > first else None
        trained = sum(case.trained) if case else 0.0
        per_element = (
            FULL_CHECKPOINT_BYTES if workload.method == "full" else ADAPTER_CHECKPOINT_BYTES
        )
        rows.append(
            {
                "workload": index,
                "task": "train",
                "model": workload.model,
                "method": workload.method,
                "seq_len": workload.seq_len,
                "images_per_sample": workload.images_per_sample,
                "image_size": workload.image_size,
                "image_tokens": workload.image_tokens,
                "axes": json.dumps(dict(workload.axes)),
                "weights_bytes": 2.0 * counts.total,
                "checkpoint_bytes": per_element * trained,
                "total_parameters": float(counts.total),
                "active_parameters": float(counts.active_per_token),
                "trained_parameters": float(trained),
                "expert_time_low": plan.expert_time.low if experts else 1.0,
                "expert_time_high": plan.expert_time.high if experts else 1.0,
            }
        )
    return {name: [row[name] for row in rows] for name in rows[0]}


def question_columns(plan: Plan) -> dict[str, list[Any]]:
    """Workloads by amounts of data, as the columns of questions.parquet."""
    columns: dict[str, list[Any]] = {
        "question": [], "workload": [], "train_tokens": [], "train_text_gb": [], "data_bytes": []
    }  # fmt: skip
    per_token = plan.spec.data.bytes_per_token
    for workload in range(len(plan.workloads)):
        for tokens in plan.spec.axes["train_tokens"]:
            columns["question"].append(len(columns["question"]))
            columns["workload"].append(workload)
            columns["train_tokens"].append(float(tokens))
            columns["train_text_gb"].append(tokens * per_token / GB)
            columns["data_bytes"].append(tokens * per_token)
    return columns


def model_columns(plan: Plan) -> dict[str, list[Any]]:
    """The models asked about, as the columns of models.parquet."""
    rows = [
        {
            "model": key,
            "family": shape.model.family,
            "hf_id": shape.model.hf_id,
            "total_parameters": float(shape.counts.total),
            "active_parameters": float(shape.counts.active_per_token),
            "num_hidden_layers": shape.model.num_hidden_layers,
            "hidden_size": shape.model.hidden_size,
            "max_position_embeddings": shape.model.max_position_embeddings,
            "licence": shape.model.licence,
        }
        for key, shape in plan.shapes.items()
    ]
    return {name: [row[name] for row in rows] for name in rows[0]}


def run_columns(
    spec: Spec, offers: Sequence[PricedOffer], not_covered: int, engine_version: str
) -> dict[str, list[Any]]:
    """Limits, settings and constants of a run: the one row of run.parquet."""
    dates = [offer.as_of for offer in offers if offer.as_of is not None]
    row = {
        "name": spec.name,
        "spec_path": Path(spec.path).name,
        "engine_version": engine_version,
        "objective": spec.results.objective,
        "keep": spec.results.keep,
        "deadline_hours": spec.constraints.deadline_hours,
        "max_usd": spec.constraints.max_usd,
        "memory_headroom": spec.constraints.memory_headroom,
        "provision_hours": spec.job.startup_minutes * MINUTE_S / HOUR_S,
        "compile_hours": spec.job.compile_minutes * MINUTE_S / HOUR_S,
        "eval_fraction": spec.job.eval_fraction / 3.0,
        "spot_overhead": spec.job.spot_overhead,
        "epochs": spec.data.epochs,
        "bytes_per_token": spec.data.bytes_per_token,
        "checkpoints_per_job": spec.job.checkpoints_per_job,
        "checkpoints_kept": CHECKPOINTS_KEPT,
        "storage_bytes_per_s": spec.job.storage_gb_per_s * GB,
        "cores_per_gpu": CORES_PER_GPU,
        "vcpus_per_core": VCPUS_PER_CORE,
        "offers_as_of": max(dates) if dates else None,
        "offers_not_covered": not_covered,
    }
    return {name: [value] for name, value in row.items()}


def covered_offers(
    plan_shapes: Sequence[Any], offers: Sequence[PricedOffer]
) -> tuple[dict[str, list[Any]], int]:
    """The offers of a run's shapes as columns, and how many have a shape the run did not evaluate."""
    columns = offer_columns(offers, plan_shapes)
    return columns, len(offers) - len(columns["offer"])
