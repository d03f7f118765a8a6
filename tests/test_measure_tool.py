"""benchmarks/measure_gpu.py: its matrix and its rows without torch, and a real tiny run with it."""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "benchmarks" / "measure_gpu.py"
sys.path.insert(0, str(TOOL.parent))

import measure_gpu as tool  # noqa: E402

# The headers of the evidence files, letter by letter.
MEMORY_HEADER = (
    "id,kind,grade,task,model,params_b,method,stack,engine,weight_dtype,double_quant,compute_dtype,autocast,"
    "lora_rank,lora_targets,optimizer,checkpointing,attention,cross_entropy,micro_batch,seq_len,grad_accum,"
    "gpu,gpu_memory_gb,gpu_count,zero_stage,tp,pp,cp,ep,offload,measure,scope,peak_gib,unit_certainty,"
    "device_used_gib,reserved_gib,resident_gib,source,quoted,framework,parallelism,precision_as_stated,"
    "optimizer_as_stated,packing,notes,grade_reason"
)
THROUGHPUT_HEADER = (
    "id,source,gpu_type,gpu_count,gpus_per_node,interconnect,framework,model,params_b,method,precision,"
    "seq_len,micro_batch,global_batch,grad_accum,tp,pp,dp,cp,ep,zero_or_fsdp,activation_checkpointing,"
    "attention,metric,value,unit,peak_memory_gb,derived_tokens_per_s_per_gpu,notes,completeness,"
    "also_tflops_per_gpu,also_mfu_pct,also_s_per_iter,flops_convention,flags,lora_rank,active_params_b,"
    "source_ref,check_6N_or_4N_tflops_per_gpu,check_pct_of_dense_peak"
)
H200 = tool.Machine("H200", "torch 2.15.0, peft 0.21.2, driver 580.1", True, 143771, "700.00")
MEASURED = {
    "kind": "measured",
    "step_s": [0.3, 0.1, 0.2],
    "notes": ["a note, with a comma"],
    "peak_allocated_bytes": 3 * 2**30,
    "peak_reserved_bytes": 4 * 2**30,
    "device_used_bytes": 5 * 2**30,
    "resident_bytes": 2**30,
}
OOM = {"kind": "oom", "message": "CUDA out of memory. Tried to allocate 2 GiB", "notes": ["step 1"]}
FAILED = {"kind": "failed", "message": "exit status -9: it said nothing"}


class Runner:
    """Stands in for the processes: an outcome by configuration, and which were asked for."""

    def __init__(self, **outcomes: dict[str, Any]) -> None:
        self.outcomes, self.asked = outcomes, list[tool.Cell]()

    def __call__(self, cell: tool.Cell, *_: object) -> dict[str, Any]:
        self.asked.append(cell)
        key = f"b{cell.micro_batch}_s{cell.seq_len}"
        return self.outcomes.get(key, MEASURED)


def parse(tmp_path: Path, *words: str) -> argparse.Namespace:
    return tool.parse([*words, "--out", str(tmp_path / "memory.csv")])


def one_model(tmp_path: Path, *words: str) -> argparse.Namespace:
    chosen = ("--models", "llama-3.2-1b", "--methods", "lora", "--checkpointing", "full")
    return parse(tmp_path, *chosen, *words)


def measure(args: argparse.Namespace, run: Runner, machine: tool.Machine = H200) -> int:
    return tool.measure(tool.list_cells(args, machine.memory_mib), machine, args, run)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run_tool(*words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *settings.pop("python", ()), str(TOOL), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, **settings)


# The matrix ---------------------------------------------------------------------------------------


def test_the_plan_lists_the_matrix_in_the_order_it_runs(tmp_path: Path) -> None:
    done = run_tool("--plan", "--out", str(tmp_path / "memory.csv"))
    assert done.returncode == 0, done.stderr
    *lines, total = done.stdout.splitlines()
    # 4 dense models with 4 methods, one of experts with 3, both checkpointings, 4 batch shapes.
    assert len(lines) == (4 * 4 + 3) * 2 * 4
    assert [int(line.split()[0]) for line in lines] == list(range(1, len(lines) + 1))
    assert len({line.split()[1] for line in lines}) == len(lines)
    minutes = [float(line.split()[2]) for line in lines]
    assert minutes == sorted(minutes)
    assert minutes[0] > 0
    assert total.startswith("152 configurations, about 1.")
    assert not list(tmp_path.iterdir())


def test_every_model_and_method_comes_before_a_second_batch_shape(tmp_path: Path) -> None:
    args = parse(tmp_path)
    cells = tool.list_cells(args, 0)
    shapes = [(cell.micro_batch, cell.seq_len) for cell in cells]
    assert list(dict.fromkeys(shapes)) == [(1, 4096), (4, 4096), (1, 1024), (4, 1024)]
    assert shapes == sorted(shapes, key=list(dict.fromkeys(shapes)).index)
    first = [cell for cell in cells if (cell.micro_batch, cell.seq_len) == (1, 4096)]
    assert {cell.model for cell in first} == set(args.known)
    assert first[0].model == "llama-3.2-1b"


def test_what_cannot_fit_by_its_states_alone_comes_last(tmp_path: Path) -> None:
    args = parse(tmp_path, "--models", "llama-3-8b", "--seq-len", "1024")
    cells = tool.list_cells(args, 81920)
    late = [cell for cell in cells if cell.recipe == "full-autocast"]  # 16 bytes a parameter
    assert cells[-len(late) :] == late
    assert tool.list_cells(args, 0)[-len(late) :] != late


def test_experts_are_not_loaded_in_4_bits(tmp_path: Path) -> None:
    args = parse(tmp_path)
    recipes = {cell.recipe for cell in tool.list_cells(args, 0) if "moe" in cell.model}
    assert recipes == {"full-bf16", "lora", "full-autocast"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device", "cpu"), "goes with --tiny"),
        (("--steps", "0"), "positive"),
        (("--methods", "lorra"), "invalid choice: 'lorra'"),
    ],
)
def test_wrong_arguments_are_told(words: tuple[str, ...], said: str) -> None:
    done = run_tool(*words)
    assert done.returncode == 2
    assert said in done.stderr


def test_without_torch_it_says_in_one_line_what_to_install(tmp_path: Path) -> None:
    # -S -I: no site-packages, so no torch, whatever this environment has.
    done = run_tool("--out", str(tmp_path / "memory.csv"), python=("-S", "-I"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "torch, transformers, peft, accelerate missing: pip install torch" in done.stderr
    assert not list(tmp_path.iterdir())


# Rows ---------------------------------------------------------------------------------------------


def test_rows_have_the_columns_of_the_evidence_files(tmp_path: Path) -> None:
    args = one_model(tmp_path, "--micro-batch", "1", "--seq-len", "1024")
    assert measure(args, Runner()) == 0
    assert args.out.read_text(encoding="utf-8").splitlines()[0] == MEMORY_HEADER
    header = args.throughput_out.read_text(encoding="utf-8").splitlines()[0]
    assert header == THROUGHPUT_HEADER


def test_a_measured_row_says_what_was_measured(tmp_path: Path) -> None:
    args = one_model(tmp_path, "--micro-batch", "4", "--seq-len", "1024")
    measure(args, Runner())
    (row,) = rows_of(args.out)
    wanted = {
        "kind": "measured", "grade": "A", "model": "meta-llama/Llama-3.2-1B", "params_b": "1.2358",
        "method": "lora", "stack": "hf", "engine": "none", "weight_dtype": "bf16", "double_quant": "",
        "autocast": "y", "lora_rank": "16", "lora_targets": "all-linear", "micro_batch": "4",
        "seq_len": "1024", "gpu": "H200", "gpu_memory_gb": "141", "measure": "peak_allocated",
        "peak_gib": "3.000000", "reserved_gib": "4.000000", "device_used_gib": "5.000000",
        "resident_gib": "1.000000", "quoted": "3221225472 bytes", "unit_certainty": "certain",
        "framework": "torch 2.15.0, peft 0.21.2, driver 580.1",
    }  # fmt: skip
    assert {name: row[name] for name in wanted} == wanted
    assert row["source"].startswith("measured by us, benchmarks/measure_gpu.py, H200, 20")
    command = row["notes"].split("command: ")[1].split()
    again = tool.parse(command[1:])
    assert tool.list_cells(again, 0) == tool.list_cells(args, 0)
    (speed,) = rows_of(args.throughput_out)
    assert speed["value"] == speed["derived_tokens_per_s_per_gpu"] == "20480.0"  # 4096 in 0.2 s
    assert speed["also_s_per_iter"] == "0.200000"
    assert speed["peak_memory_gb"] == "3.2212"
    assert speed["global_batch"] == "4"
    assert speed["flags"] == "random_weights"
    assert speed["id"] == row["id"]


def test_out_of_memory_is_a_row_without_a_peak(tmp_path: Path) -> None:
    args = one_model(tmp_path, "--micro-batch", "1", "--seq-len", "1024")
    assert measure(args, Runner(b1_s1024=OOM)) == 0
    (row,) = rows_of(args.out)
    assert (row["kind"], row["grade"], row["quoted"]) == ("oom", "A", OOM["message"])
    empty = ("peak_gib", "reserved_gib", "device_used_gib", "resident_gib", "unit_certainty")
    assert [row[name] for name in empty] == [""] * 5
    assert not args.throughput_out.exists()


def test_a_peak_that_was_not_measured_stays_empty(tmp_path: Path) -> None:
    args = one_model(tmp_path, "--micro-batch", "1", "--seq-len", "1024")
    measure(args, Runner(b1_s1024={"kind": "measured", "step_s": [0.5], "notes": []}))
    assert (rows_of(args.out)[0]["peak_gib"], rows_of(args.out)[0]["quoted"]) == (
        "",
        "not measured",
    )
    assert rows_of(args.throughput_out)[0]["peak_memory_gb"] == ""


def test_simulated_4_bit_layers_are_called_so_and_give_no_speed(tmp_path: Path) -> None:
    args = one_model(tmp_path, "--methods", "qlora", "--micro-batch", "1", "--seq-len", "1024")
    measure(args, Runner(), H200._replace(real_4bit=False))
    (row,) = rows_of(args.out)
    assert (row["grade"], row["weight_dtype"], row["double_quant"]) == ("B", "nf4 (simulated)", "y")
    assert "SIMULATED" in row["grade_reason"]
    assert "simulated" in row["id"]
    assert "--simulate-4bit" in row["notes"]
    assert not args.throughput_out.exists()
    measure(args, Runner())
    assert rows_of(args.out)[1]["weight_dtype"] == "nf4"
    assert len(rows_of(args.throughput_out)) == 1


@pytest.mark.parametrize(
    ("gpu", "gb"),
    [
        ("H200", "141"), ("A100-SXM4-80GB", "80"), ("H100 80GB HBM3", "80"), ("A100 80GB PCIe", "80"),
        ("GH200 480GB", "96"), ("GeForce RTX 4090", "24"), ("Some new GPU", ""),
    ],
)  # fmt: skip
def test_marketed_memory_comes_from_the_drivers_name(gpu: str, gb: str) -> None:
    assert tool.marketed_gb(gpu) == gb


# Running ------------------------------------------------------------------------------------------


def test_resume_leaves_out_what_is_there_and_a_new_run_is_numbered(tmp_path: Path) -> None:
    measure(one_model(tmp_path, "--micro-batch", "1", "--seq-len", "1024"), Runner())
    run = Runner()
    measure(one_model(tmp_path, "--micro-batch", "1", "2", "--seq-len", "1024", "--resume"), run)
    assert [cell.micro_batch for cell in run.asked] == [2]
    args = one_model(tmp_path, "--micro-batch", "1", "--seq-len", "1024")
    measure(args, Runner())
    measure(args, Runner())
    ids = [row["id"] for row in rows_of(args.out)]
    assert len(ids) == len(set(ids)) == 4
    assert [name.removeprefix(ids[0]) for name in ids[2:]] == ["-run2", "-run3"]


def test_a_failure_leaves_no_row_and_is_tried_again(tmp_path: Path) -> None:
    args = one_model(tmp_path, "--micro-batch", "1", "2", "--seq-len", "1024", "--resume")
    assert measure(args, Runner(b1_s1024=FAILED)) == 1
    assert [row["micro_batch"] for row in rows_of(args.out)] == ["2"]
    run = Runner()
    assert measure(args, run) == 0
    assert [cell.micro_batch for cell in run.asked] == [1]


def test_what_is_larger_than_an_out_of_memory_is_left_out(tmp_path: Path) -> None:
    args = one_model(tmp_path, "--resume")
    run = Runner(b1_s4096=OOM)
    measure(args, run)
    asked = [(cell.micro_batch, cell.seq_len) for cell in run.asked]
    assert asked == [(1, 4096), (1, 1024), (4, 1024)]
    again = Runner()
    measure(args, again)  # known from the file
    assert not again.asked


def test_nothing_is_started_that_would_end_after_the_budget(tmp_path: Path) -> None:
    run = Runner()
    assert measure(one_model(tmp_path, "--budget-s", "5"), run) == 0
    assert not run.asked
    measure(one_model(tmp_path, "--budget-s", "3600"), run)
    assert len(run.asked) == 4


def test_a_file_with_other_columns_is_not_touched(tmp_path: Path) -> None:
    args = one_model(tmp_path)
    args.out.write_text("id,peak\na,1\n", encoding="utf-8")
    run = Runner()
    with pytest.raises(ValueError, match="its header is not that of memory rows"):
        measure(args, run)
    assert not run.asked
    assert args.out.read_text(encoding="utf-8") == "id,peak\na,1\n"


def test_a_configuration_that_takes_too_long_fails(tmp_path: Path) -> None:
    args = parse(tmp_path, "--device", "cpu", "--tiny", "--timeout-s", "0.01")
    outcome = tool.run_cell(tool.list_cells(args, 0)[0], tool.Machine("CPU", "", False), args)
    assert outcome == {"kind": "failed", "message": "not done after 0.01 s"}


def test_a_crash_is_told_by_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = tmp_path / "crash.py"
    crash.write_text("raise SystemError('the machine is on fire')", encoding="utf-8")
    args = parse(tmp_path, "--device", "cpu", "--tiny")
    cell = tool.list_cells(args, 0)[0]
    monkeypatch.setattr(tool, "HERE", crash)
    outcome = tool.run_cell(cell, tool.Machine("CPU", "", False), args)
    assert outcome["message"] == "exit status 1: SystemError: the machine is on fire"


# With torch ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["full-bf16", "full-autocast", "lora", "qlora"])
def test_a_tiny_run_on_the_cpu_end_to_end(tmp_path: Path, recipe: str) -> None:
    for package in tool.NEEDED:
        pytest.importorskip(package)
    words = ["--device", "cpu", "--tiny", "--methods", recipe, "--simulate-4bit", "--steps", "2"]
    words += ["--models", "tiny-qwen2", "--micro-batch", "2", "--seq-len", "64"]
    done = run_tool(*words, "--out", str(tmp_path / "memory.csv"))
    assert done.returncode == 0, done.stdout + done.stderr
    by_checkpointing = {row["checkpointing"]: row for row in rows_of(tmp_path / "memory.csv")}
    peak, resident = (
        {key: float(row[f"{name}_gib"]) * 2**30 for key, row in by_checkpointing.items()}
        for name in ("peak", "resident")
    )
    params, loss = 202_304, 12 * 2000 * 128  # the backward of the loss: 12 bytes a logit
    assert peak["none"] > peak["full"] > resident["full"] + loss
    states = {"full-bf16": 6, "full-autocast": 12}.get(recipe)
    if states:  # weights and two AdamW states; within what six decimals of a GiB show
        assert resident["none"] == pytest.approx(states * params, abs=2000)
    row = by_checkpointing["full"]
    assert (row["kind"], row["grade"], row["gpu"]) == ("measured", "C", "CPU")
    assert row["device_used_gib"] == row["reserved_gib"] == ""
    assert (tmp_path / "test_throughput.csv").exists() == (recipe != "qlora")


def test_only_running_out_of_memory_is_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    args = parse(tmp_path, "--device", "cpu", "--tiny")

    def fail_with(error: Exception) -> None:
        def train(_args: object, _cell: object, phase: list[str]) -> None:
            phase.append("step 1")
            raise error

        monkeypatch.setattr(tool, "train", train)

    for error in (
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to\nallocate"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ):
        fail_with(error)
        outcome = tool.measured_or_oom(args)
        assert (outcome["kind"], outcome["message"]) == ("oom", str(error).split("\n")[0])
        assert outcome["notes"][0].startswith("out of memory while step 1, ")
    fail_with(RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal"):
        tool.measured_or_oom(args)
