"""Programs: every way a step can be run but for its layout, as the stacks support it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sweep.catalogs.stack_columns import CONSTANTS
from sweep.catalogs.stacks import DtypeRule, StackBook
from sweep.errors import PlanError, nearest
from sweep.kernels.tables import CrossEntropy, Offload, Programs, Stacks
from sweep.vocabulary import CROSS_ENTROPY, OFFLOADS

# In the order of the setup table's rows; the last two only for the layers' matrices.
COMPUTE_DTYPES = ("bf16", "fp16", "fp32", "fp8", "fp4")
NARROW_DTYPES = ("fp8", "fp4")
# Recomputed share of matmuls, attention and elementwise work by checkpointing mode. Selective keeps
# every second matmul and attention itself (torchtitan's selective-op policy, docs/physics.md).
RECOMPUTE: Mapping[str, tuple[float, float, float]] = {
    "none": (0.0, 0.0, 0.0),
    "selective": (0.5, 0.0, 1.0),
    "full": (1.0, 1.0, 1.0),
}
# Bytes a stored element costs each time it is dequantised: read, written in 16 bits, read again.
DEQUANT_BYTES: Mapping[str, float] = {
    "none": 0.0,
    "nf4": 4.5,
    "nf4-double": 4.5,
    "gptq-int4": 4.5,
    "int8": 5.0,
}
# Stored bytes of a quantised element: 4 bits and an fp32 absmax per 64 (quantised itself to 8 bits,
# with an fp32 per 256 of those, under double quantisation); int8 rows have one fp32 scale each.
SCALE_BYTES: Mapping[str, float] = {
    "nf4": 4 / 64,
    "nf4-double": 1 / 64 + 4 / 16384,
    # For each group of 128 inputs a 16-bit scale and a 4-bit zero.
    "gptq-int4": (2 + 0.5) / 128,
    "int8": 0.0,
}
_ELEMENT_BYTES = {"nf4": 0.5, "nf4-double": 0.5, "gptq-int4": 0.5, "int8": 1.0}
QUANTIZED_BYTES: Mapping[str, float] = {
    name: size + SCALE_BYTES[name] for name, size in _ELEMENT_BYTES.items()
}
PROGRAM_COLUMNS = (
    "stack",
    "precision",
    "quantization",
    "lora_rank",
    "lora_target",
    "lora_dropout",
    "checkpointing",
    "attention",
    "cross_entropy",
    "optimizer",
    "zero_stage",
    "offload",
)


class Program(NamedTuple):
    """One program: the method and the non-layout knobs, in the order of PROGRAM_COLUMNS."""

    method: str
    stack: str
    precision: str
    quantization: str
    lora_rank: int
    lora_target: str
    lora_dropout: float
    checkpointing: str
    attention: str
    cross_entropy: str
    optimizer: str
    zero_stage: int
    offload: str


@dataclass(frozen=True)
class LayoutRule:
    """What the layouts of a program may use: its stack's parallelisms, and whether it must shard."""

    tensor: bool
    sequence: bool
    pipeline: bool
    context: bool
    expert: bool
    needs_shards: bool


def check_stacks(names: Sequence[str], book: StackBook, spec_path: Path) -> None:
    """Raise PlanError for a stack the catalog does not have."""
    for name in names:
        if name not in book.stacks:
            close = nearest(name, book.stacks)
            hint = f"; did you mean {close!r}?" if close else ""
            known = ", ".join(book.stacks)
            raise PlanError(f"{spec_path}: stacks: found {name!r}, allowed {known}{hint}")


def list_programs(
    method: str, values: Mapping[str, tuple[Any, ...]], book: StackBook
) -> list[Program]:
    """Every program of a method the stacks support, in knob order; `values` by column name."""
    adapted = method != "full"
    choices = dict(values)
    choices["quantization"] = values["quantization"] if method == "qlora" else ("none",)
    choices["lora_rank"] = values["lora_rank"] if adapted else (0,)
    choices["lora_target"] = values["lora_target"] if adapted else ("none",)
    choices["lora_dropout"] = values["lora_dropout"] if adapted else (0.0,)
    found = []
    for combination in itertools.product(*(choices[name] for name in PROGRAM_COLUMNS)):
        program = Program(method, *combination)
        if supports(program, book):
            found.append(program)
    return found


# What a stack's lists are called where a program has one value of them.
_LISTED = {
    "precision": "precisions",
    "checkpointing": "checkpointing",
    "attention": "attention",
    "cross_entropy": "cross_entropy",
    "optimizer": "optimizers",
    "zero_stage": "zero_stages",
    "offload": "offloads",
}


def unmet_wishes(
    methods: Sequence[str], values: Mapping[str, tuple[Any, ...]], book: StackBook
) -> list[str]:
    """For each stack asked for, what it offers where nothing asked for is among it."""
    found = []
    for name in values["stack"]:
        offered = book.stacks[name].supports
        asked = {"methods": tuple(methods)} | {
            listed: values[column] for column, listed in _LISTED.items()
        }
        for listed, wanted in asked.items():
            if not set(wanted) & set(offered[listed]):
                has = ", ".join(str(one) for one in offered[listed])
                found.append(f"; {name} has {listed} {has}")
    return found


def supports(program: Program, book: StackBook) -> bool:
    """Whether a stack offers a program; offload needs sharded states (docs/physics.md section 6)."""
    stack = book.stacks[program.stack].supports
    offload_needs = {"none": 0, "optimizer-cpu": 1, "params-cpu": 3, "params-nvme": 3}
    return (
        program.method in stack["methods"]
        and program.precision in stack["precisions"]
        and program.quantization in stack["quantizations"]
        and program.checkpointing in stack["checkpointing"]
        and program.attention in stack["attention"]
        and program.cross_entropy in stack["cross_entropy"]
        and (program.stack, program.cross_entropy) in book.loss_heads
        and program.optimizer in stack["optimizers"]
        and program.zero_stage in stack["zero_stages"]
        and program.offload in stack["offloads"]
        and program.zero_stage >= offload_needs[program.offload]
        and rule_of(program, book) is not None
        # DeepSpeed's CPU optimizer is the only one that runs on offloaded states.
        and (program.offload == "none" or program.optimizer == "adamw-fused")
    )


def rule_key(program: Program) -> tuple[str, str, str, int]:
    """What a program's dtype rule is filed under in a StackBook."""
    return program.stack, program.method, program.precision, program.zero_stage


def rule_of(program: Program, book: StackBook) -> DtypeRule | None:
    """The dtype rule a program follows."""
    return book.rules.get(rule_key(program))


def layout_rule(program: Program, book: StackBook) -> LayoutRule:
    """What the layouts of a program may use."""
    stack = book.stacks[program.stack]
    flags = stack.flags
    return LayoutRule(
        tensor=flags["tensor_parallel"]
        and program.method in stack.supports["tensor_parallel_methods"],
        sequence=flags["sequence_parallel"],
        pipeline=flags["pipeline_parallel"],
        context=flags["context_parallel"],
        expert=flags["expert_parallel"],
        needs_shards=program.zero_stage > 0 and program.offload == "none",
    )


def stack_table(names: Sequence[str], book: StackBook) -> Stacks:
    """The kernels' table of stack constants, one row a name."""
    columns = {}
    for field in Stacks._fields:
        if field == "vocab_parallel_loss":
            rows = [float(book.stacks[name].flags[field]) for name in names]
        else:
            assert field in CONSTANTS, field
            rows = [book.stacks[name].constants[field] for name in names]
        columns[field] = np.array(rows)
    return Stacks(**columns)


def _row(program: Program, stack_index: int, book: StackBook) -> dict[str, float]:
    rule = rule_of(program, book)
    assert rule is not None
    head = book.loss_heads[program.stack, program.cross_entropy]
    optimizer = book.optimizers[program.optimizer]
    constants = book.stacks[program.stack].constants
    per = rule.bytes
    matmul, attention, elementwise = RECOMPUTE[program.checkpointing]
    full = program.method == "full"
    weight = per["shard_weight_bytes"] if program.zero_stage == 3 else per["weight_bytes"]
    state_dtype = per["state_dtype_bytes"]
    return {
        "stack": stack_index,
        "dtype": COMPUTE_DTYPES.index(rule.compute_dtype),
        "zero_stage": program.zero_stage,
        "offload": int(Offload(OFFLOADS.index(program.offload))),
        "cross_entropy": int(CrossEntropy(CROSS_ENTROPY.index(program.cross_entropy))),
        "checkpointed": int(program.checkpointing != "none"),
        "eager": int(program.attention == "eager"),
        "lora_rank": program.lora_rank,
        "layers_trained": float(full),
        "head_trained": int(full),
        "recompute_matmul": matmul,
        "recompute_attention": attention,
        "recompute_elementwise": elementwise,
        **{name: per[name] for name in _RULE_COLUMNS},
        "state_bytes": optimizer.state_dtype_multiple * state_dtype + optimizer.state_fixed_bytes,
        "logit_forward": per["logit_forward"] if head.logit_forward is None else head.logit_forward,
        "logit_backward": (
            per["logit_backward"] if head.logit_backward is None else head.logit_backward
        ),
        "rotary_bytes": 4.0 if per["residual_bytes"] == 4.0 else 2.0,
        "temp_element_bytes": optimizer.temp_weight_multiple * weight,
        "temp_tensor_bytes": optimizer.temp_tensor_bytes,
        "traffic_bytes": optimizer.traffic_passes * state_dtype,
        "dequant_bytes": DEQUANT_BYTES[program.quantization],
        "cast_bytes": constants["cast_bytes"] if rule.compute_dtype in NARROW_DTYPES else 0.0,
        "loss_traffic_bytes": constants["loss_traffic_bytes"] * head.traffic_share,
        "memory_high": book.memory_band(program.stack, program.method).high,
    }


_RULE_COLUMNS = (
    "weight_bytes",
    "shard_weight_bytes",
    "master_bytes",
    "grad_bytes",
    "gather_bytes",
    "reduce_bytes",
    "hidden_forward",
    "hidden_backward",
    "logit_grad",
    "activation_bytes",
    "head_grad_bytes",
    "head_copy_bytes",
    "residual_bytes",
)
_WHOLE = {
    "stack", "dtype", "zero_stage", "offload", "cross_entropy", "checkpointed", "eager",
    "head_trained",
}  # fmt: skip


def program_table(
    programs: Sequence[Program], stack_names: Sequence[str], book: StackBook
) -> Programs:
    """The kernels' program table, one row a program."""
    rows = [_row(program, stack_names.index(program.stack), book) for program in programs]
    return Programs(
        **{
            field: np.array(
                [row[field] for row in rows], np.int64 if field in _WHOLE else np.float64
            )
            for field in Programs._fields
        }
    )
