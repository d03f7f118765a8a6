"""`python benchmarks/trace_memory.py MODEL`: peak memory of one training step, traced without a GPU.

MODEL is a config.json of the Hugging Face hub, or one of the names of `--list`. The step is a real
one of Transformers and PEFT, run on tensors without storage (traced_step.py); PyTorch takes its CUDA
decisions because a library that does nothing stands in for CUDA (trace_cuda.c, compiled on first use
with `cc`). Prints JSON; `--append FILE.csv` adds the step to a file of traced evidence.

Needs packages that sweep does not (REQUIREMENTS), Linux and a C compiler:

    python -m venv tracer && tracer/bin/pip install torch transformers peft accelerate bitsandbytes
    tracer/bin/python benchmarks/trace_memory.py llama-3-8b --method lora --checkpointing full
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REQUIREMENTS = ("torch", "transformers", "peft", "accelerate")
FOUR_BIT_REQUIREMENTS = ("bitsandbytes",)
GIB = 2**30

# The columns of an evidence file, in order; those a traced step leaves empty included.
COLUMNS = (
    "id", "kind", "grade", "task", "model", "params_b", "method", "stack", "engine", "weight_dtype",
    "double_quant", "compute_dtype", "autocast", "lora_rank", "lora_targets", "optimizer",
    "checkpointing", "attention", "cross_entropy", "micro_batch", "seq_len", "grad_accum", "gpu",
    "gpu_memory_gb", "gpu_count", "zero_stage", "tp", "pp", "cp", "ep", "offload", "measure", "scope",
    "peak_gib", "unit_certainty", "device_used_gib", "reserved_gib", "resident_gib", "source",
    "quoted", "framework", "parallelism", "precision_as_stated", "optimizer_as_stated", "packing",
    "notes", "grade_reason", "adapter_dtype", "lora_dropout", "kbit_prep", "master_weights",
    "keep_outputs", "use_cache", "fsdp_policy", "reshard_after_forward", "peak_phase",
    "fwd_loss_gib", "bwd_loss_gib", "bwd_layers_gib", "step_gib", "params_bytes", "grads_bytes",
    "optstate_bytes", "images", "vision_trained",
)  # fmt: skip
ID_PREFIX = "sweeptrace-"

# Models at hand without a file; any other is traced from its config.json.
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "tiny-llama": {
        "model_type": "llama", "vocab_size": 5000, "hidden_size": 1024, "intermediate_size": 2816,
        "num_hidden_layers": 2, "num_attention_heads": 16, "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "llama-3-8b": {
        "_name_or_path": "meta-llama/Meta-Llama-3-8B", "model_type": "llama", "vocab_size": 128256,
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
    "qwen2.5-7b": {
        "_name_or_path": "Qwen/Qwen2.5-7B", "model_type": "qwen2", "vocab_size": 152064,
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    "qwen3-8b": {
        "_name_or_path": "Qwen/Qwen3-8B", "model_type": "qwen3", "vocab_size": 151936,
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "gpt2": {"_name_or_path": "openai-community/gpt2", "model_type": "gpt2"},
}  # fmt: skip


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="trace_memory.py",
        description="Trace the peak memory of one training step, without a GPU.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("model", nargs="?", help="a config.json, or a name of --list")
    add("--list", action="store_true", help="print the names and end")
    add(
        "--name",
        help="the model's name in the evidence; the config's own or the file's if not given",
    )
    add("--layers", type=_positive, help="keep only so many layers")
    add("--method", choices=("full", "lora", "qlora"), default="full", help="what trains")
    add("--weight-dtype", choices=("bf16", "fp32"), default="bf16", help="of the 16-bit weights")
    add("--autocast", action="store_true", help="bf16 autocast around forward, as Accelerate does")
    add("--checkpointing", choices=("none", "full"), default="none", help="of every layer")
    add("--attention", choices=("sdpa", "eager"), default="sdpa", help="implementation")
    add("--experts", default="grouped_mm", help="implementation of routed experts")
    add("--padding-mask", action="store_true", help="pass an attention mask")
    add("--micro-batch", type=_positive, default=1, help="sequences")
    add("--seq-len", type=_positive, default=2048, help="tokens of a sequence")
    add("--grad-accum", type=_positive, default=1, help="micro-batches a step; the last is traced")
    add("--optimizer", choices=("adamw_fused", "adamw_foreach", "adamw_loop", "sgd", "sgdm", "adafactor"),
        default="adamw_fused", help="with its states in place")  # fmt: skip
    add("--lora-rank", type=_positive, default=16, help="r; alpha is twice that")
    add("--lora-targets", default="all", help="all linears, qkvo, qv, or module names with commas")
    add("--lora-dropout", type=float, default=0.0, help="of the adapters' input")
    add(
        "--adapter-dtype", choices=("fp32", "bf16"), default="fp32", help="of the adapters' weights"
    )
    add("--adapt-experts", action="store_true", help="let PEFT adapt fused experts too")
    add("--kbit-prep", action="store_true", help="call prepare_model_for_kbit_training first")
    add("--single-quant", action="store_true", help="4-bit constants in fp32, not quantised again")
    add("--capability", type=int, default=80, help="compute capability x 10 of the GPU played")
    add("--by-layer", action="store_true", help="print what each layer keeps and works with")
    add("--append", type=Path, metavar="FILE.csv", help="add the step as a row of traced evidence")
    args = parser.parse_args(arguments)
    if not args.list and args.model is None:
        parser.error("which model? Give a config.json, or a name of --list")
    if args.kbit_prep and args.method != "qlora":
        parser.error("--kbit-prep prepares a 4-bit model: it needs --method qlora")
    if args.method == "qlora" and args.weight_dtype != "bf16":
        parser.error("--method qlora keeps what is not quantised in bf16: leave --weight-dtype out")
    return args


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def read_config(model: str) -> dict[str, Any]:
    """The configuration of a model: that of its language tower where it has others."""
    if model in CONFIGS:
        return dict(CONFIGS[model])
    path = Path(model)
    if not path.is_file():
        known = ", ".join(CONFIGS)
        raise SystemExit(f"trace_memory.py: no file {model}, and no such name; known: {known}")
    config = json.loads(path.read_text())
    name = config.get("_name_or_path") or path.stem
    config = config.get("text_config", config)
    if "model_type" not in config:
        raise SystemExit(f"trace_memory.py: {path} has no model_type: not a config.json of the hub")
    return {**config, "_name_or_path": name}


def missing_packages(method: str) -> list[str]:
    needed = REQUIREMENTS + (FOUR_BIT_REQUIREMENTS if method == "qlora" else ())
    return [name for name in needed if importlib.util.find_spec(name) is None]


def compile_stand_in() -> Path:
    """The library that stands in for CUDA, compiled once for its source and torch's headers."""
    source = HERE / "trace_cuda.c"
    torch_file = importlib.util.find_spec("torch").origin  # type: ignore[union-attr]
    packages = Path(torch_file).parent.parent
    headers = [path.parent for path in packages.glob("**/driver_types.h")]
    usable = [folder for folder in headers if (folder / "crt/host_defines.h").exists()]
    if not usable:
        raise SystemExit(
            f"trace_memory.py: no driver_types.h of CUDA under {packages}: install torch's CUDA build"
        )
    key = hashlib.sha256(source.read_bytes() + str(usable[0]).encode()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    library = home / "sweep" / "tracer" / key / "libcuda.so.1"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")
        # The name under which PyTorch opens the driver, so that it finds this one already loaded.
        command = ["cc", "-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", f"-I{usable[0]}"]
        subprocess.run([*command, "-o", str(partial), str(source)], check=True)
        partial.rename(library)
    return library


def restart_with_stand_in(args: argparse.Namespace) -> None:
    """Run this command again with the stand-in loaded first: a process cannot load it afterwards."""
    environment = {
        **os.environ,
        "LD_PRELOAD": str(compile_stand_in()),
        "TRACE_CAPABILITY": str(args.capability),
        "TRACE_STAND_IN": "loaded",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def evidence_row(
    args: argparse.Namespace, traced: Mapping[str, Any], number: int
) -> dict[str, object]:
    """A traced step as a row of an evidence file; what does not apply is empty."""
    adapted, four_bit = args.method != "full", args.method == "qlora"
    phases = traced["phases"]
    gib = {phase: round(peak["bytes"] / GIB, 5) for phase, peak in phases.items()}
    kernels = " ".join(traced["attention_kernels"])
    attention = args.attention
    if args.padding_mask:
        attention += "_padding_mask"
    elif "flash" in kernels or "cudnn" in kernels:
        attention = "flash"
    truncated = f" truncated to {traced['layers']} layers" if args.layers else ""
    notes = ["PEFT's adapters on fused experts too"] if args.adapt_experts else []
    row: dict[str, object] = dict.fromkeys(COLUMNS, "")
    row |= {
        "id": f"{ID_PREFIX}{number:03d}", "kind": "traced", "grade": "A", "task": "train",
        "model": traced["model"] + truncated, "params_b": round(traced["parameters"] / 1e9, 4),
        "method": args.method, "stack": "hf", "engine": "none",
        "weight_dtype": "nf4" if four_bit else args.weight_dtype,
        "double_quant": ("n" if args.single_quant else "y") if four_bit else "",
        "compute_dtype": "fp32" if args.weight_dtype == "fp32" and not args.autocast else "bf16",
        "autocast": "y" if args.autocast else "n", "lora_rank": args.lora_rank if adapted else "",
        "lora_targets": args.lora_targets if adapted else "", "optimizer": args.optimizer,
        "checkpointing": args.checkpointing, "attention": attention, "cross_entropy": "none",
        "micro_batch": args.micro_batch, "seq_len": args.seq_len, "grad_accum": args.grad_accum,
        "gpu_count": 1, "zero_stage": 0, "tp": 1, "pp": 1, "cp": 1, "ep": 1, "offload": "none",
        "measure": "traced_allocated", "scope": "per_gpu",
        "peak_gib": round(traced["peak_bytes"] / GIB, 5), "unit_certainty": "certain",
        "source": f"own trace, sweep benchmarks/trace_memory.py, {traced['versions']}",
        "notes": "; ".join(notes), "adapter_dtype": args.adapter_dtype if adapted else "",
        "lora_dropout": args.lora_dropout if adapted else "",
        "kbit_prep": "y" if args.kbit_prep else "", "peak_phase": traced["peak_phase"],
        "fwd_loss_gib": gib["fwd_loss"], "bwd_loss_gib": gib["bwd_loss"],
        "bwd_layers_gib": gib.get("bwd_layers", ""), "step_gib": gib["step"],
        "params_bytes": traced["params_bytes"], "grads_bytes": traced["grads_bytes"],
        "optstate_bytes": traced["optstate_bytes"],
    }  # fmt: skip
    return row


def append_row(path: Path, args: argparse.Namespace, traced: Mapping[str, Any]) -> str:
    """Add a traced step to an evidence file, made if there is none; the id it got."""
    taken = 0
    if path.exists():
        with path.open(newline="") as handle:
            reader = csv.DictReader(handle)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise SystemExit(f"trace_memory.py: {path} is no evidence file: other columns")
            own = [row["id"] for row in reader if row["id"].startswith(ID_PREFIX)]
            taken = max((int(one.removeprefix(ID_PREFIX)) for one in own), default=0)
    row = evidence_row(args, traced, taken + 1)
    fresh = not path.exists()
    with path.open("a", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(row)
    return str(row["id"])


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    if args.list:
        print("\n".join(CONFIGS))
        return 0
    config = read_config(args.model)
    missing = missing_packages(args.method)
    if missing:
        print(
            f"trace_memory.py: {', '.join(missing)} not found: `pip install {' '.join(missing)}` "
            "in an environment of its own, and run this with its python",
            file=sys.stderr,
        )
        return 2
    if os.environ.get("TRACE_STAND_IN") != "loaded":
        restart_with_stand_in(args)
    import traced_step

    traced = {
        "model": args.name or config.get("_name_or_path") or args.model,
        **traced_step.trace(config, args),
    }
    print(json.dumps(traced, indent=1))
    if args.append:
        print(f"{args.append}: {append_row(args.append, args, traced)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
