"""How much memory and time do real training steps take on this machine's GPU? Rows of evidence.

    python benchmarks/measure_gpu.py --plan                # what it would run, about how long
    python benchmarks/measure_gpu.py --resume --budget-s 1500
    python benchmarks/measure_gpu.py --device cpu --tiny   # a test of the tool, without a GPU

Needs an NVIDIA GPU, PyTorch, Transformers and PEFT; bitsandbytes for real 4-bit weights. Downloads
nothing: the models of measure_gpu.json get random weights and random tokens at full length. Every
configuration is a process of its own, so that neither a crash nor a fragmented allocator spoils the
next. Out of memory is a result; a failure is printed and leaves no row, --resume tries it again.
This process never imports torch, whose context would count as device memory. sweep is not needed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime as dt
import importlib.util
import itertools
import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve()
FACTS = json.loads(HERE.with_suffix(".json").read_text(encoding="utf-8"))
RECIPES, FORMATS = FACTS["recipes"], FACTS["formats"]
COLUMNS = {name: found["columns"].split() for name, found in FORMATS.items()}
GIB, GB, MIB = 2**30, 10**9, 2**20
LORA_RANK = 16
# What others may hold of the GPU before running out of memory no longer tells about our step.
SHARED_LIMIT_MIB = 1024
# For the estimate of time alone: imports, and a rate between an A100's and an H200's.
START_S, ASSUMED_FLOP_PER_S = 30.0, 2e14
SEES_GPU = "import torch; assert torch.cuda.is_available()"
NEEDED = ("torch", "transformers", "peft", "accelerate")
Outcome = dict[str, Any]


class Cell(NamedTuple):
    """One configuration of the matrix."""

    model: str
    recipe: str
    checkpointing: str
    micro_batch: int
    seq_len: int

    def covers(self, other: Cell) -> bool:
        """Whether this is the other with at least its batch, and so with at least its memory."""
        return self[:3] == other[:3] and self[3] >= other[3] and self[4] >= other[4]


class Machine(NamedTuple):
    """Where the rows come from, as its driver and its packages report it."""

    gpu: str
    packages: str
    real_4bit: bool
    memory_mib: int = 0
    power_limit_w: str = "unknown"


# The matrix ---------------------------------------------------------------------------------------


def by_information(batches: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Batch shapes: a middle one first, then the ends, which give the slope, then the rest."""
    ordered = sorted(batches, key=lambda batch: (math.prod(batch), batch[1]))
    return list(dict.fromkeys([ordered[len(ordered) // 2], ordered[-1], *ordered]))


def list_cells(args: argparse.Namespace, memory_mib: int) -> list[Cell]:
    """The matrix in the order it runs: everything at one batch shape, then at the next.

    Last come those whose weights and states alone exceed the GPU: that they fail is no news.
    """
    batches = by_information(itertools.product(args.micro_batch, args.seq_len))
    names = [name for name in args.known if name in args.models]
    every = itertools.product(batches, names, args.methods, args.checkpointing)
    cells = [Cell(name, recipe, kept, *batch) for batch, name, recipe, kept in every]

    def is_hopeless(cell: Cell) -> bool:
        per_param = RECIPES[cell.recipe]["state_bytes_per_param"]
        return 0 < memory_mib * MIB < per_param * args.known[cell.model]["params"]

    known = [one for one in cells if one.recipe in args.known[one.model].get("recipes", RECIPES)]
    return sorted(known, key=is_hopeless)


def estimated_s(cell: Cell, args: argparse.Namespace) -> float:
    """About how long a configuration takes, start included [s]."""
    model = args.known[cell.model]
    flop = RECIPES[cell.recipe]["flop_per_param_tok"] * model.get("active_params", model["params"])
    passes = 4 / 3 if cell.checkpointing == "full" else 1.0
    step_s = passes * flop * cell.micro_batch * cell.seq_len / ASSUMED_FLOP_PER_S
    return START_S + model["params"] / 1e9 + (args.warmup + args.steps) * step_s


def cell_id(cell: Cell, machine: Machine, args: argparse.Namespace) -> str:
    """A row's id: equal for the same configuration on the same kind of GPU."""
    simulated = ["simulated"] * is_simulated(cell, machine)
    parts = [machine.gpu, cell.model, cell.recipe, *simulated, f"ckpt-{cell.checkpointing}"]
    batch = f"b{cell.micro_batch}-s{cell.seq_len}"
    words = "-".join(["ours", *parts, args.optimizer, batch]).casefold()
    return re.sub(r"[^a-z0-9.]+", "-", words)


def cell_flags(cell: Cell, machine: Machine, args: argparse.Namespace) -> list[str]:
    """The arguments that measure one configuration alone."""
    chosen = f"--models {cell.model} --methods {cell.recipe} --checkpointing {cell.checkpointing}"
    batch = f"--micro-batch {cell.micro_batch} --seq-len {cell.seq_len} --device {args.device}"
    how = f"--optimizer {args.optimizer} --warmup {args.warmup} --steps {args.steps}"
    simulated = ["--simulate-4bit"] * is_simulated(cell, machine)
    return [*f"{chosen} {batch} {how}".split(), *["--tiny"] * args.tiny, *simulated]


def is_simulated(cell: Cell, machine: Machine) -> bool:
    """Whether a configuration's 4-bit layers only look like bitsandbytes'."""
    return RECIPES[cell.recipe]["weight_dtype"] == "nf4" and not machine.real_4bit


# Rows ---------------------------------------------------------------------------------------------


def gib(value_bytes: float | None) -> str:
    """Bytes as GiB, empty where nothing was measured."""
    return "" if value_bytes is None else f"{value_bytes / GIB:.6f}"


def evidence_row(
    form: str, cell: Cell, outcome: Outcome, machine: Machine, args: argparse.Namespace
) -> dict[str, str]:
    """A configuration's outcome as a row of measured_memory.csv or measured_throughput.csv."""
    model, values = args.known[cell.model], dict.fromkeys(COLUMNS[form], "")
    peak, times = outcome.get("peak_allocated_bytes"), outcome.get("step_s")
    values |= {"grade": "A", "grade_reason": "every parameter set by the tool; all at full length"}
    flags = ["random_weights"] + ["proxy_fewer_layers"] * ("truncated" in model["model"])
    notes = ["random weights; own loop: forward with labels, backward, clip at 1.0, step; no cache"]
    values |= RECIPES[cell.recipe]
    if values["method"] != "full":
        values |= {"lora_rank": LORA_RANK, "lora_targets": model["lora_targets"]}
        notes.append(f"LoRA alpha {2 * LORA_RANK}, dropout 0, fp32 adapters")
    if values["method"] == "qlora":
        values["double_quant"] = "y"
        notes.append("prepare_model_for_kbit_training")
    if is_simulated(cell, machine):
        values |= {"grade": "B", "weight_dtype": "nf4 (simulated)"}
        values["grade_reason"] = "4-bit layers SIMULATED, as many bytes, by others: no bitsandbytes"
    if args.tiny:
        values |= {"grade": "C", "grade_reason": "a test of the tool, model made up: no evidence"}
        flags.append("tool_test")
    if "active_params" in model:
        values["active_params_b"] = f"{model['active_params'] / 1e9:.4f}"
    if peak is None:
        values["quoted"] = outcome.get("message", "not measured")
    else:
        values |= {"quoted": f"{peak} bytes", "unit_certainty": "certain"}
        values["peak_memory_gb"] = f"{peak / GB:.4f}"
    if times:
        step_s = statistics.median(times)
        values["tokens_per_s"] = f"{cell.micro_batch * cell.seq_len / step_s:.1f}"
        values["step_s"] = f"{step_s:.6f}"
        notes.append(f"{len(times)} timed steps, {min(times):.5f} to {max(times):.5f} s")
    notes += [
        *outcome["notes"],
        f"driver: {machine.memory_mib or 'no'} MiB, power limit {machine.power_limit_w} W",
        "command: " + shlex.join([f"benchmarks/{HERE.name}", *cell_flags(cell, machine, args)]),
    ]
    values |= {
        "id": cell_id(cell, machine, args), "kind": outcome["kind"], "model": model["model"],
        "params_b": f"{model['params'] / 1e9:.4f}", "optimizer": args.optimizer,
        "checkpointing": cell.checkpointing, "micro_batch": cell.micro_batch,
        "seq_len": cell.seq_len, "gpu": machine.gpu, "gpu_memory_gb": marketed_gb(machine.gpu),
        "peak_gib": gib(peak), "device_used_gib": gib(outcome.get("device_used_bytes")),
        "reserved_gib": gib(outcome.get("peak_reserved_bytes")),
        "resident_gib": gib(outcome.get("resident_bytes")), "framework": machine.packages,
        "origin": f"benchmarks/{HERE.name}, {machine.gpu}, {dt.date.today()}",
        "notes": "; ".join(notes), "flags": ";".join(flags),
    }  # fmt: skip
    values |= {name: text.format(**values) for name, text in FORMATS[form]["row"].items()}
    return {name: str(values[name]) for name in COLUMNS[form]}


def read_rows(path: Path, form: str) -> list[dict[str, str]]:
    """The rows of an output so far; raises ValueError when the file has other columns."""
    if not path.exists() or not path.stat().st_size:
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or ()) != COLUMNS[form]:
            raise ValueError(f"{path}: its header is not that of {form} rows; name another file")
        return list(reader)


def append_row(path: Path, form: str, row: Mapping[str, str]) -> None:
    """Append a row, numbered where its id is taken, and the header to a new file."""
    runs = sum(found["id"].split("-run")[0] == row["id"] for found in read_rows(path, form))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS[form], lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        writer.writerow({**row, "id": row["id"] + f"-run{runs + 1}" * bool(runs)})


# The machine --------------------------------------------------------------------------------------


def call(*words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """A command's exit status and what it said."""
    return subprocess.run(words, capture_output=True, text=True, check=False, **settings)


def query_gpu(fields: str) -> list[str]:
    """What the driver says of the first visible GPU, empty without one."""
    index = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    form = (f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        found = call("nvidia-smi", "-i", index, *form, timeout=60)
        return [] if found.returncode else [word.strip() for word in found.stdout.split(",")]
    return []


def marketed_gb(gpu: str) -> str:
    """Marketed memory of a GPU by the driver's name, empty where neither that nor we know it."""
    named = re.search(r"(\d+)\s?GB", gpu)
    return FACTS["marketed_gb"].get(gpu, named[1] if named else "")


def describe_machine(args: argparse.Namespace) -> Machine:
    """The machine the steps run on; its GPU is "" where the driver knows none."""
    found = [name for name in (*NEEDED, "bitsandbytes") if importlib.util.find_spec(name)]
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in found)
    real_4bit = "bitsandbytes" in found and not args.simulate_4bit
    if real_4bit and not args.plan:
        real_4bit = call(sys.executable, "-c", "import bitsandbytes").returncode == 0
    if args.device == "cpu":
        return Machine("CPU", packages, real_4bit)
    values = query_gpu("name,memory.total,driver_version,power.limit")
    if not values:
        return Machine("", packages, real_4bit)
    name, memory_mib, driver, limit_w = values
    packages += f", driver {driver}"
    return Machine(name.removeprefix("NVIDIA "), packages, real_4bit, int(memory_mib), limit_w)


# Running ------------------------------------------------------------------------------------------


def run_cell(cell: Cell, machine: Machine, args: argparse.Namespace) -> Outcome:
    """One configuration in a process of its own: its outcome, or why it has none (kind failed)."""
    used = query_gpu("memory.used") if args.device == "cuda" else []
    if used and float(used[0]) > SHARED_LIMIT_MIB:
        return {"kind": "failed", "message": f"others hold {used[0]} MiB of the GPU"}
    command = [sys.executable, str(HERE), *cell_flags(cell, machine, args), "--child"]
    try:
        done = call(*command, timeout=args.timeout_s, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    except subprocess.TimeoutExpired:
        return {"kind": "failed", "message": f"not done after {args.timeout_s:g} s"}
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        return {"kind": "failed", "message": f"exit status {done.returncode}: {said[-1]}"}
    outcome = dict(json.loads(done.stdout.splitlines()[-1]))
    outcome["notes"] += [f"others held {found} MiB of the GPU before" for found in used]
    return outcome


def measure(
    cells: Sequence[Cell], machine: Machine, args: argparse.Namespace,
    run: Callable[[Cell, Machine, argparse.Namespace], Outcome] = run_cell,
) -> int:  # fmt: skip
    """Run the cells in order and append their rows; how many failed.

    Left out: cells done before (with --resume), cells with at least the batch of one that was out of
    memory, and all that follow once the budget is used up.
    """
    kinds = {row["id"]: row["kind"] for row in read_rows(args.out, "memory") if args.resume}
    read_rows(args.throughput_out, "throughput")
    too_large = [cell for cell in cells if kinds.get(cell_id(cell, machine, args)) == "oom"]
    start_s, failed = time.monotonic(), 0
    for number, cell in enumerate(cells, 1):
        name = cell_id(cell, machine, args)
        label = f"[{number}/{len(cells)}] {name}:"
        if name in kinds:
            print(label, "done before")
            continue
        if any(cell.covers(other) for other in too_large):
            print(label, "left out, a smaller batch was out of memory")
            continue
        if time.monotonic() - start_s + estimated_s(cell, args) > args.budget_s:
            print(label, f"not started, nor what follows: {args.budget_s:g} s are used up")
            break
        outcome = run(cell, machine, args)
        print(label, describe_outcome(outcome), flush=True)
        if outcome["kind"] == "failed":
            failed += 1
            continue
        append_row(args.out, "memory", evidence_row("memory", cell, outcome, machine, args))
        if outcome["kind"] == "oom":
            too_large.append(cell)
        elif not is_simulated(cell, machine):  # its time tells nothing
            row = evidence_row("throughput", cell, outcome, machine, args)
            append_row(args.throughput_out, "throughput", row)
    return failed


def describe_outcome(outcome: Outcome) -> str:
    """An outcome in a few words."""
    if outcome["kind"] != "measured":
        return f"{outcome['kind']}, {outcome['message']}"
    peak, step_s = gib(outcome.get("peak_allocated_bytes")), statistics.median(outcome["step_s"])
    return f"{peak or 'not measured,'} GiB, {step_s:.4f} s a step"


# The process of one configuration, the only one that imports torch --------------------------------


def simulated_4bit(linear: Any, device: str) -> Any:
    """The layer with as many bytes as nf4 with double quantisation holds; the values mean nothing.

    Half a byte a weight, one byte a block of 64, a bf16 copy for each product, forward and backward.
    """
    import torch

    shape, count = linear.weight.shape, linear.weight.numel()
    packed = torch.randint(256, (count // 2, 1), dtype=torch.uint8, device=device)
    linear.weight = torch.nn.Parameter(packed, requires_grad=False)
    scales = torch.full((count // 64, 1), 64, dtype=torch.uint8, device=device)
    linear.register_buffer("scales", scales)

    def unpack() -> Any:
        weight = torch.empty(count // 2, 2, dtype=torch.bfloat16, device=device)
        weight.copy_(linear.weight).sub_(127.5).view(-1, 64).mul_(linear.scales.float() / 2.5e5)
        return weight.view(shape)

    def drop(saved: Any) -> Any:  # the one tensor kept for backward, unpacked again there
        assert saved.numel() == count
        return saved.size(), saved.stride()

    def forward(x: Any) -> Any:
        bias = None if linear.bias is None else linear.bias.to(torch.bfloat16)
        with torch.autograd.graph.saved_tensors_hooks(
            drop, lambda kept: unpack().as_strided(*kept)
        ):
            return torch.nn.functional.linear(x.to(torch.bfloat16), unpack(), bias).to(x.dtype)

    linear.forward = forward
    return linear


def real_4bit(linear: Any, device: str) -> Any:
    """bitsandbytes' layer with random weights: nf4, double quantisation, bf16 products."""
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    weight = torch.empty(linear.weight.shape, dtype=torch.bfloat16, device=device)
    with torch.device("meta"):
        layer = Linear4bit(*reversed(weight.shape), False, torch.bfloat16, quant_type="nf4")
    layer.weight = Params4bit(weight.normal_(std=0.02), quant_type="nf4").to(device)
    layer.bias = linear.bias
    return layer


def build_network(args: argparse.Namespace, cell: Cell) -> Any:
    """The model on the device with random weights and, where asked for, adapters; ready to train.

    Built empty and filled matrix by matrix, so that a 4-bit model never exists in 16 bits.
    """
    import accelerate
    import peft
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    recipe, model = RECIPES[cell.recipe], args.known[cell.model]
    dtype = torch.float32 if recipe["weight_dtype"] == "fp32" else torch.bfloat16
    config = AutoConfig.for_model(**model["config"])
    with accelerate.init_empty_weights(include_buffers=False):
        network = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    network.tie_weights()
    count = sum(one.numel() for one in network.parameters())
    if count != model["params"]:
        raise ValueError(f"{cell.model} has {count} parameters, written down {model['params']}")
    if recipe["method"] == "qlora":
        head = network.get_output_embeddings()
        four_bit = simulated_4bit if args.simulate_4bit else real_4bit
        for name, module in list(network.named_modules()):
            if type(module) is torch.nn.Linear and module is not head:
                network.set_submodule(name, four_bit(module, args.device))
        network.is_loaded_in_4bit = True
    filled: dict[Any, Any] = {}
    for module in network.modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            if empty.is_meta and empty not in filled:
                new = torch.empty(empty.shape, dtype=empty.dtype, device=args.device)
                new = new.normal_(std=0.02) if new.dim() > 1 else new.fill_(name == "weight")
                filled[empty] = torch.nn.Parameter(new)
            setattr(module, name, filled.get(empty, empty))
    network.to(args.device)
    checkpointed, way = cell.checkpointing == "full", {"use_reentrant": False}
    if recipe["method"] == "qlora":
        network = peft.prepare_model_for_kbit_training(network, checkpointed, way)
    elif checkpointed:
        network.gradient_checkpointing_enable(way)
    if recipe["method"] != "full":
        words = model["lora_targets"]
        targets = words if words == "all-linear" else words.split(",")
        sizes = {"r": LORA_RANK, "lora_alpha": 2 * LORA_RANK, "target_modules": targets}
        network = peft.get_peft_model(network, peft.LoraConfig(task_type="CAUSAL_LM", **sizes))
    return network.train()


def profiled_peak(profiler: Any) -> dict[str, Any]:
    """What steps held of the CPU's memory at most and in the end, as torch's profiler has it."""
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    start = next(one["ts"] for one in events if one.get("name") == "warm-up")
    found = [one for one in events if one.get("name") == "[memory]" and one["ts"] >= start]
    held = [one["args"]["Total Allocated"] for one in sorted(found, key=lambda one: one["ts"])]
    notes = ["peak of the warm-up steps by torch's profiler"]
    return {"peak_allocated_bytes": max(held), "resident_bytes": held[-1], "notes": notes}


def train(args: argparse.Namespace, cell: Cell, phase: list[str]) -> dict[str, Any]:
    """Build, warm up, time: the outcome of a configuration; `phase` ends with what it is doing."""
    import torch

    cuda, device, on_gpu = torch.cuda, args.device, args.device == "cuda"
    torch.manual_seed(0)
    profiler: Any = contextlib.nullcontext()
    if not on_gpu:
        activities = [torch.profiler.ProfilerActivity.CPU]
        profiler = torch.profiler.profile(activities=activities, profile_memory=True)

    def step() -> float:
        phase.append(f"step {len(phase)}")
        start_s = time.perf_counter()
        tokens = torch.randint(vocabulary, (cell.micro_batch, cell.seq_len), device=device)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = network(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if not math.isfinite(loss.item()):  # .item() waits for the forward pass alone
            raise ValueError("the loss is not finite, so this was no real training step")
        if on_gpu:
            cuda.synchronize()
        return time.perf_counter() - start_s

    autocast = RECIPES[cell.recipe]["autocast"] == "y"
    with profiler:
        network = build_network(args, cell)
        vocabulary = network.config.vocab_size
        trained = [one for one in network.parameters() if one.requires_grad]
        kind = {args.optimizer.split("_")[1]: True}
        optimizer = torch.optim.AdamW(trained, lr=1e-5, **kind)
        if on_gpu:
            cuda.empty_cache()
            cuda.reset_peak_memory_stats()
            loaded_bytes = cuda.memory_allocated()
        with torch.profiler.record_function("warm-up"):
            for _ in range(args.warmup):
                step()
    if not on_gpu:
        outcome = profiled_peak(profiler)
        return outcome | {"kind": "measured", "step_s": [step() for _ in range(args.steps)]}
    warm_bytes = cuda.max_memory_allocated()
    cuda.reset_peak_memory_stats()
    times = [step() for _ in range(args.steps)]
    steady_bytes = cuda.max_memory_allocated()
    free_bytes, total_bytes = cuda.mem_get_info()
    notes = [
        f"{gib(loaded_bytes)} GiB after loading, peak {gib(steady_bytes)} after the warm-up",
        f"{cuda.memory_stats()['num_alloc_retries']} allocator retries",
        *(f"{name}={value}" for name, value in os.environ.items() if name.endswith("ALLOC_CONF")),
        f"experts {getattr(network.config, '_experts_implementation', 'unknown')}",
    ]
    return {
        "kind": "measured", "step_s": times, "notes": notes,
        "peak_allocated_bytes": max(warm_bytes, steady_bytes),
        "peak_reserved_bytes": cuda.max_memory_reserved(),
        "device_used_bytes": total_bytes - free_bytes, "resident_bytes": cuda.memory_allocated(),
    }  # fmt: skip


def measured_or_oom(args: argparse.Namespace) -> Outcome:
    """The outcome of the one configuration that the arguments name; other errors are raised."""
    import torch

    phase = ["building"]
    try:
        return train(args, list_cells(args, 0)[0], phase)
    except RuntimeError as error:
        words = str(error).strip().split("\n")[0][:300]
        told = "CUBLAS_STATUS_ALLOC_FAILED" in words or "CUDA error: out of memory" in words
        if not isinstance(error, torch.cuda.OutOfMemoryError) and not told:
            raise
        held = gib(torch.cuda.max_memory_allocated())
        notes = [f"out of memory while {phase[-1]}, {held} GiB allocated at most"]
        return {"kind": "oom", "message": words, "notes": notes}


# The command line ---------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; `known` are the models there are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--plan", action="store_true", help="print what would run and about how long, then stop")
    add("--resume", action="store_true", help="leave out configurations that --out has already")
    add("--budget-s", type=float, default=math.inf, help="start nothing that would end after this")
    add("--timeout-s", type=float, default=600.0, help="end a configuration after this")
    add("--out", type=Path, help="rows of memory; default: outputs/measured_memory.csv")
    add("--throughput-out", type=Path, help="rows of step times; default: beside the others")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--tiny", action="store_true", help="made-up models, to test the tool")
    add("--models", nargs="+", choices=(*FACTS["models"], *FACTS["tiny"]), help="default: all")
    add("--methods", nargs="+", choices=RECIPES, default=list(RECIPES))
    add("--checkpointing", nargs="+", choices=("full", "none"), default=["full", "none"])
    add("--micro-batch", nargs="+", type=int, help="default: 1 4")
    add("--seq-len", nargs="+", type=int, help="default: 1024 4096, of --tiny 64 128")
    add("--optimizer", choices=("adamw_fused", "adamw_foreach"), default="adamw_fused")
    add("--warmup", type=int, default=2, help="steps before the timed ones")
    add("--steps", type=int, default=5, help="timed steps")
    add("--simulate-4bit", action="store_true", help="as if bitsandbytes were missing")
    add("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.device == "cpu" and not args.tiny:
        parser.error("--device cpu is a test of the tool and goes with --tiny")
    if min(args.warmup, args.steps, *(args.micro_batch or [1]), *(args.seq_len or [1])) < 1:
        parser.error("steps and batches are positive")
    args.known = FACTS["tiny" if args.tiny else "models"]
    args.models = args.models or list(args.known)
    args.micro_batch = args.micro_batch or [1, 4]
    args.seq_len = args.seq_len or ([64, 128] if args.tiny else [1024, 4096])
    prefix = "test" if args.tiny else "measured"
    args.out = args.out or HERE.parents[1] / "outputs" / f"{prefix}_memory.csv"
    args.throughput_out = args.throughput_out or args.out.with_name(f"{prefix}_throughput.csv")
    return args


def print_plan(cells: Sequence[Cell], machine: Machine, args: argparse.Namespace) -> None:
    """The matrix in its order, with estimates that add up."""
    total_s = 0.0
    for number, cell in enumerate(cells, 1):
        total_s += estimated_s(cell, args)
        late = "  after --budget-s" * (total_s > args.budget_s)
        print(f"{number:4} {cell_id(cell, machine, args):75} {total_s / 60:6.1f} min{late}")
    assumed = f"{START_S:g} s a start and {ASSUMED_FLOP_PER_S / 1e12:g} TFLOP/s assumed"
    print(f"{len(cells)} configurations, about {total_s / 3600:.1f} h at most, {assumed}")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 when configurations failed, 2 when nothing could be measured."""
    args = parse(argv)
    if args.child:
        print(json.dumps(measured_or_oom(args)))
        return 0
    machine = describe_machine(args)
    cells = list_cells(args, machine.memory_mib)
    if args.plan:
        print_plan(cells, machine, args)
        return 0
    problem = ""
    if missing := [name for name in NEEDED if not importlib.util.find_spec(name)]:
        problem = f"{', '.join(missing)} missing: pip install {' '.join(NEEDED)} bitsandbytes"
    elif args.device == "cuda" and call(sys.executable, "-c", SEES_GPU).returncode:
        problem = "torch sees no NVIDIA GPU here; --device cpu --tiny tests the tool without one"
    elif not cells:
        problem = "no configuration fits these arguments; --plan lists those of the defaults"
    if not problem:
        try:
            return min(measure(cells, machine, args), 1)
        except ValueError as error:
            problem = str(error)
    print(f"measure_gpu.py: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
