"""benchmarks/trace_memory.py: what it reads, says and writes; and one traced step where torch is at hand."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[1] / "benchmarks/trace_memory.py"
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trace_memory", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def traced(peak_bytes: int, **changes: object) -> dict[str, object]:
    """What a trace hands over, as far as a row of evidence reads it."""
    phases = ("fwd_loss", "bwd_loss", "bwd_layers", "step")
    return {
        "model": "some/model",
        "parameters": 8_030_261_248,
        "layers": 2,
        "params_bytes": 300,
        "grads_bytes": 200,
        "optstate_bytes": 100,
        "peak_bytes": peak_bytes,
        "peak_phase": "bwd_loss",
        "phases": {phase: {"bytes": peak_bytes - index} for index, phase in enumerate(phases)},
        "attention_kernels": {"_scaled_dot_product_flash_attention": 2},
        "versions": "torch 1 transformers 2 peft 3 accelerate 4",
        **changes,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which model?"),
        (["gpt2", "--method", "adapters"], "invalid choice: 'adapters'"),
        (["gpt2", "--layers", "0"], "0 is not positive"),
        (["gpt2", "--kbit-prep"], "needs --method qlora"),
        (["gpt2", "--method", "qlora", "--weight-dtype", "fp32"], "leave --weight-dtype out"),
    ],
)
def test_a_wrong_option_says_what_is_wrong(tool, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        tool.parse_args(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_defaults_are_a_full_bf16_step_of_one_sequence(tool):
    args = tool.parse_args(["gpt2"])
    assert (args.method, args.weight_dtype, args.autocast) == ("full", "bf16", False)
    assert (args.micro_batch, args.seq_len, args.grad_accum, args.layers) == (1, 2048, 1, None)


def test_a_list_of_names_needs_no_model_and_no_torch(tool, capsys):
    assert tool.main(["--list"]) == 0
    assert "llama-3-8b" in capsys.readouterr().out.split()


@pytest.mark.parametrize(("method", "wanted"), [("full", "torch"), ("qlora", "bitsandbytes")])
def test_without_its_packages_one_line_says_what_to_install(
    tool, monkeypatch, capsys, method, wanted
):
    monkeypatch.setattr(tool.importlib.util, "find_spec", lambda name: None)
    assert tool.main(["gpt2", "--method", method]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert wanted in said.partition("pip install")[2]


def test_an_unknown_model_names_the_known_ones(tool):
    with pytest.raises(SystemExit, match=r"no file llama-9.*known: .*llama-3-8b"):
        tool.read_config("llama-9")


def test_a_config_of_many_towers_is_traced_as_its_text(tool):
    config = tool.read_config(str(DATA / "configs/gemma-3-4b.json"))
    assert config["model_type"] == "gemma3_text"
    assert config["_name_or_path"] == "gemma-3-4b"


def test_a_file_that_is_no_config_is_refused(tool, tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}")
    with pytest.raises(SystemExit, match="has no model_type"):
        tool.read_config(str(path))


def test_rows_are_numbered_evidence(tool, tmp_path):
    path = tmp_path / "evidence.csv"
    args = tool.parse_args(["gpt2", "--method", "qlora", "--kbit-prep", "--layers", "2"])
    assert tool.append_row(path, args, traced(10 * 2**30)) == "sweeptrace-001"
    args = tool.parse_args(["gpt2", "--weight-dtype", "fp32", "--autocast"])
    assert tool.append_row(path, args, traced(3 * 2**30)) == "sweeptrace-002"
    with path.open(newline="") as handle:
        first, second = csv.DictReader(handle)
    assert tuple(first) == tool.COLUMNS
    assert {"kind": "traced", "engine": "none", "stack": "hf"}.items() <= first.items()
    assert first["model"] == "some/model truncated to 2 layers"
    assert (first["weight_dtype"], first["double_quant"], first["kbit_prep"]) == ("nf4", "y", "y")
    assert (first["lora_rank"], first["lora_targets"]) == ("16", "all")
    assert (first["peak_gib"], first["peak_phase"]) == ("10.0", "bwd_loss")
    assert (first["attention"], first["params_b"]) == ("flash", "8.0303")
    assert second["model"] == "some/model"
    assert (second["compute_dtype"], second["autocast"]) == ("bf16", "y")
    assert (second["lora_rank"], second["double_quant"], second["kbit_prep"]) == ("", "", "")


def test_a_file_of_other_columns_is_left_alone(tool, tmp_path):
    path = tmp_path / "evidence.csv"
    path.write_text("id,peak\n1,2\n")
    with pytest.raises(SystemExit, match="no evidence file"):
        tool.append_row(path, tool.parse_args(["gpt2"]), traced(2**30))
    assert path.read_text() == "id,peak\n1,2\n"


def test_rows_answer_to_the_names_the_traced_evidence_has(tool):
    with (DATA / "traced_memory.csv").open(newline="") as handle:
        assert set(csv.DictReader(handle).fieldnames or ()) <= set(tool.COLUMNS)


# Points of the shared evidence, with the options that make them.
KNOWN = {
    "traced-049": ("gpt2", "--seq-len", "1024", "--checkpointing", "full"),
    "traced-052": ("gpt2", "--seq-len", "1024", "--method", "lora"),
    "traced-003": ("llama-3-8b", "--method", "qlora", "--checkpointing", "full"),
}


@pytest.mark.slow
@pytest.mark.parametrize("key", KNOWN)
def test_a_traced_step_agrees_with_the_reference_to_the_byte(tool, tmp_path, key):
    for package in ("torch", "transformers", "peft", "accelerate", "bitsandbytes"):
        pytest.importorskip(package)
    with (DATA / "traced_memory.csv").open(newline="") as handle:
        known = next(row for row in csv.DictReader(handle) if row["id"] == key)
    path = tmp_path / "evidence.csv"
    command = [sys.executable, str(TOOL), *KNOWN[key], "--append", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["phases"]
    with path.open(newline="") as handle:
        (row,) = csv.DictReader(handle)
    for column in ("params_bytes", "grads_bytes", "optstate_bytes"):
        assert row[column] == known[column]
    for column in ("peak_gib", "fwd_loss_gib", "bwd_loss_gib", "bwd_layers_gib", "step_gib"):
        assert float(row[column]) == float(known[column])
    assert row["peak_phase"] == known["peak_phase"]
