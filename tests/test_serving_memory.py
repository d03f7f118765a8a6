"""Memory of serving: published peaks, caches from published configs, and what releases changed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.catalogs import Catalogs
from sweep.catalogs.architecture import count_parameters
from sweep.evidence.names import resolve_architecture
from sweep.evidence.serving import (
    Serving,
    kv_cache_bytes,
    kv_token_bytes,
    serving_peak_bytes,
    serving_phases,
    serving_terms,
    weight_terms,
)
from sweep.evidence.serving_formats import WEIGHT_FORMATS, allocated_bytes
from sweep.evidence.serving_points import read_serving
from sweep.units import GB, GIB, MIB

COLUMNS = (
    "task", "model", "stack", "engine", "weight_dtype", "double_quant", "micro_batch", "seq_len",
    "gpu_count", "scope", "measure", "notes", "source", "framework", "attention", "quoted",
)  # fmt: skip
BENCH_46 = {"framework": "transformers 4.46.0", "source": "Qwen2.5 speed_benchmark.rst @a912d23"}
BENCH_38 = {"framework": "transformers 4.38.2", "source": "Qwen2.5 speed_benchmark.rst @66fea61"}
LITGPT = {"stack": "litgpt", "framework": "litgpt", "source": "litgpt tutorials/resource-tables.md"}
PROFILE = {"framework": "transformers generate", "source": "QwenLM/Qwen README.md (generate 2048)"}


def make_row(model: str, weights: str, **fields: str) -> dict[str, str]:
    """A row of the evidence file, other columns empty."""
    row = {
        **dict.fromkeys(COLUMNS, ""),
        "task": "serve",
        "model": model,
        "stack": "hf",
        "engine": "none",
    }
    row |= {"weight_dtype": weights, "micro_batch": "1", "gpu_count": "1", "scope": "per_gpu"}
    return row | {"measure": "peak_allocated"} | fields


def said(prompt: int, gpus: int = 1) -> dict[str, str]:
    """Lengths, and the sum a device map's peaks are printed as."""
    scope = "sum_all_gpus" if gpus > 1 else "per_gpu"
    return {"notes": f"input {prompt} + generate 2048", "gpu_count": str(gpus), "scope": scope}


# Published peaks in GiB, as printed (lit-gpt's in GB), with how near the formulas come.
POINTS: list[tuple[dict[str, str], float, float]] = [
    (make_row("Qwen/Qwen2.5-7B-Instruct", "bf16", **said(30720), **BENCH_46), 19.97, 0.003),
    (make_row("Qwen/Qwen2.5-14B-Instruct", "bf16", **said(1), **BENCH_46), 28.08, 0.003),
    (make_row("Qwen/Qwen2.5-32B-Instruct", "gptq_int4", **said(1), **BENCH_46), 18.94, 0.003),
    # Unpacking the 8-bit matrix is the peak here: 0.16 GiB above what other lengths foretell.
    (make_row("Qwen/Qwen2.5-32B-Instruct", "int8", **said(6144), **BENCH_46), 35.86, 0.003),
    # The head stored beside the tied embedding is the peak here, at loading.
    (make_row("Qwen/Qwen2.5-1.5B-Instruct", "awq_int4", **said(1), **BENCH_46), 1.51, 0.01),
    (make_row("Qwen/Qwen2.5-72B-Instruct", "bf16", **said(30720, 3), **BENCH_46), 164.79, 0.003),
    (make_row("Qwen/Qwen2-7B-Instruct", "awq_int4", **said(1), **BENCH_38), 5.93, 0.01),
    (make_row("Qwen/Qwen2-0.5B-Instruct", "bf16", **said(30720), **BENCH_38), 27.61, 0.005),
    (make_row("Qwen/Qwen2-72B-Instruct", "gptq_int4", **said(14336), **BENCH_38), 57.79, 0.01),
    (make_row("Qwen/Qwen2-57B-A14B", "gptq_int4", **said(14336), **BENCH_38), 43.11, 0.01),
    (make_row("Qwen/Qwen-72B-Chat", "bf16", seq_len="2048", gpu_count="2", **PROFILE)
     | {"scope": "sum_all_gpus"}, 144.69, 0.005),
    (make_row("stabilityai/stablelm-base-alpha-3b", "bf16", **LITGPT), 7.30 * GB / GIB, 0.003),
    (make_row("codellama/CodeLlama-34b-hf", "nf4", **LITGPT), 20.52 * GB / GIB, 0.003),
    (make_row("microsoft/phi-1_5", "nf4", double_quant="y", **LITGPT), 1.33 * GB / GIB, 0.005),
]  # fmt: skip


def name_of(point: Any) -> str:
    """A test's name from its row."""
    if not isinstance(point, dict):
        return ""
    return "-".join((point["model"].split("/")[1], point["weight_dtype"], point["notes"][:11]))


@pytest.mark.parametrize(("row", "peak_gib", "tolerance"), POINTS, ids=name_of)
def test_published_peaks(
    catalogs: Catalogs, row: dict[str, str], peak_gib: float, tolerance: float
) -> None:
    serving = read_serving(row, catalogs.models)
    assert isinstance(serving, Serving)
    # Half a unit of the last printed digit is not ours to explain.
    assert serving_peak_bytes(serving) / GIB == pytest.approx(peak_gib, rel=tolerance, abs=0.005)


def make_serving(catalogs: Catalogs, name: str, **fields: Any) -> Serving:
    """One call of a recent Transformers in bf16, with other fields as given."""
    model = resolve_architecture(name, catalogs.models)
    assert model is not None
    values: dict[str, Any] = {
        "engine": "transformers", "release": (4, 51), "weight_format": "bf16",
        "kv_dtype_bytes": 2.0, "batch": 1, "prompt_tokens": 512, "generated_tokens": 128, "gpus": 1,
    }  # fmt: skip
    return Serving(model=model, counts=count_parameters(model), **(values | fields))


# Layers x 2 x key-value heads x head_dim x 2 bytes, from each model's config.json.
@pytest.mark.parametrize(
    ("name", "token_bytes"),
    [
        ("meta-llama/Llama-2-7b-hf", 32 * 2 * 32 * 128 * 2),  # multi-head: 512 KiB
        ("meta-llama/Meta-Llama-3-8B", 32 * 2 * 8 * 128 * 2),  # grouped: 128 KiB
        ("Qwen/Qwen2.5-0.5B", 24 * 2 * 2 * 64 * 2),
        ("Qwen/Qwen3-8B", 36 * 2 * 8 * 128 * 2),
        ("tiiuae/falcon-7b", 32 * 2 * 1 * 64 * 2),  # one head for all queries
        # Latent attention: 128 heads' keys of 128 + 64 and values of 128, expanded, in 61 layers.
        ("deepseek-ai/DeepSeek-V3", 61 * 128 * (192 + 128) * 2),
    ],
)
def test_cache_of_a_token(catalogs: Catalogs, name: str, token_bytes: int) -> None:
    serving = make_serving(catalogs, name)
    assert kv_cache_bytes(serving, 1, windowed=True) == token_bytes
    assert kv_cache_bytes(serving, 1000, windowed=True) == 1000 * token_bytes


def test_latent_cache_is_expanded(catalogs: Catalogs) -> None:
    """The latent of 512 + 64 elements would be 71 times smaller; other engines keep it."""
    model = catalogs.models["DeepSeek-V3"]
    assert kv_token_bytes(model, 2.0) / (2 * (512 + 64)) == pytest.approx(71.1, abs=0.1)


def test_windows_bound_the_cache_from_4_56(catalogs: Catalogs) -> None:
    old = make_serving(catalogs, "mistralai/Mistral-7B-v0.1", release=(4, 51))
    new = dataclasses.replace(old, release=(4, 56))
    assert kv_cache_bytes(old, 10_000, windowed=True) == 10_000 * 32 * 2 * 8 * 128 * 2
    assert kv_cache_bytes(new, 10_000, windowed=True) == 4_096 * 32 * 2 * 8 * 128 * 2


# Checkpoint layouts: torchao prints the model's size without the embedding (README, Nov 2024); it
# pads 4-bit inputs to multiples of 1,024, which Llama-2's down projection is not.
@pytest.mark.parametrize(
    ("name", "weight_format", "printed_gb", "tolerance"),
    [
        ("meta-llama/Llama-2-7b-hf", "int8-gptfast", 6.62, 0.002),
        ("meta-llama/Llama-2-7b-hf", "int4-torchao", 3.74, 0.007),
        ("meta-llama/Llama-2-7b-hf", "fp6-torchao", 4.96, 0.002),
        ("meta-llama/Meta-Llama-3-8B", "int8-gptfast", 7.52, 0.002),
        ("meta-llama/Meta-Llama-3-8B", "int4-torchao", 4.22, 0.002),
        ("meta-llama/Meta-Llama-3-8B", "fp6-torchao", 5.63, 0.002),
    ],
)
def test_torchao_model_sizes(
    catalogs: Catalogs, name: str, weight_format: str, printed_gb: float, tolerance: float
) -> None:
    serving = make_serving(catalogs, name, engine="gpt-fast", weight_format=weight_format)
    terms = weight_terms(serving)
    embedding = serving.counts.embedding * 2
    size = terms["weights"] + terms["scales"] + terms["unquantised"] - embedding
    assert size / GB == pytest.approx(printed_gb, rel=tolerance, abs=0.005)


# DeepSpeed, docs/_tutorials/automatic-tensor-parallelism.md: OPT-13b, fp16, GiB per GPU.
@pytest.mark.parametrize(("gpus", "printed"), [(1, 23.94), (2, 12.23), (4, 6.36)])
def test_tensor_parallel_weights(catalogs: Catalogs, gpus: int, printed: float) -> None:
    row = make_row(
        "facebook/opt-13b", "fp16", engine="deepspeed", gpu_count=str(gpus), measure="allocated"
    )
    serving = read_serving(row, catalogs.models)
    assert isinstance(serving, Serving)
    assert serving_peak_bytes(serving) / GIB == pytest.approx(printed, abs=0.01)


def test_whole_prompt_logits_until_4_45(catalogs: Catalogs) -> None:
    old = make_serving(catalogs, "Qwen/Qwen2-7B", release=(4, 44), prompt_tokens=10_000)
    new = dataclasses.replace(old, release=(4, 45))
    vocab = old.model.vocab_size
    assert serving_phases(old)["logits"]["prefill_logits"] == 6 * vocab * 10_000
    assert serving_phases(new)["logits"]["prefill_logits"] == 6 * vocab


def test_tuples_keep_two_caches_until_4_42(catalogs: Catalogs) -> None:
    old = make_serving(catalogs, "Qwen/Qwen2-7B", release=(4, 41), generated_tokens=4096)
    last = serving_phases(old)["last_token"]
    assert last["previous_kv_cache"] == last["kv_cache"]
    last = serving_phases(dataclasses.replace(old, release=(4, 42)))["last_token"]
    assert last["previous_kv_cache"] == last["kv_cache"] / 56


def test_rotary_tables_of_every_layer(catalogs: Catalogs) -> None:
    """Two bf16 tables of 32,768 x 128 in each of 28 layers: 0.4375 GiB, gone with 4.45."""
    old = make_serving(catalogs, "Qwen/Qwen2-7B-Instruct", release=(4, 38), rotary_positions=32_768)
    assert serving_terms(old)["rotary_cache"] == 0.4375 * GIB
    assert serving_terms(dataclasses.replace(old, release=(4, 45)))["rotary_cache"] == 0.0


def test_small_rests_stay_with_large_tensors() -> None:
    """Qwen2.5-14B's 135 MiB matrices are counted as 136, Qwen2.5-32B's 270 MiB as they are."""
    assert allocated_bytes(135 * MIB) == 136 * MIB
    assert allocated_bytes(270 * MIB) == 270 * MIB
    assert allocated_bytes(24.5 * MIB) == 24.5 * MIB
    assert allocated_bytes(9.9 * MIB) == 9.9 * MIB


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model": "nobody/nothing"}, "is not in the catalog"),
        ({"stack": "elsewhere"}, "is not modelled"),
        ({"weight_dtype": "int3"}, "weight format int3"),
        ({"seq_len": "1000"}, "output length not stated"),
        ({}, "lengths of prompt and output not stated"),
        ({"gpu_count": "2", "scope": "max of GPUs"}, "one GPU's share"),
        ({"gpu_count": "2", "stack": "litgpt"}, "lit-gpt on several GPUs"),
        ({"measure": "nvidia_smi"}, "device figure"),
        ({"framework": "torchao", "stack": "gpt_fast", "weight_dtype": "int8"}, "reserved pool"),
        ({"task": "train"}, "not a serving row"),
    ],
)
def test_reasons(catalogs: Catalogs, fields: dict[str, str], reason: str) -> None:
    row = make_row("Qwen/Qwen2.5-7B-Instruct", "bf16") | fields
    found = read_serving(row, catalogs.models)
    assert isinstance(found, str)
    assert reason in found


def test_endings_of_quantised_checkpoints(catalogs: Catalogs) -> None:
    for ending in ("-GPTQ-Int4", "-AWQ", "-GPTQ", "-Int8", "-bnb-4bit"):
        model = resolve_architecture(f"Qwen/Qwen2.5-7B-Instruct{ending}", catalogs.models)
        assert model is catalogs.models["Qwen2.5-7B"]


@given(
    name=st.sampled_from(
        ("Qwen2.5-7B", "Mixtral-8x7B-v0.1", "OPT-13b", "DeepSeek-V3", "Gemma-2-9B")
    ),
    weight_format=st.sampled_from(sorted(WEIGHT_FORMATS)),
    release=st.sampled_from((None, (4, 36), (4, 41), (4, 44), (4, 51), (4, 56), (5, 0))),
    prompt=st.integers(1, 40_000),
)
def test_more_never_takes_less(
    catalogs: Catalogs, name: str, weight_format: str, release: tuple[int, int], prompt: int
) -> None:
    fields = {"weight_format": weight_format, "release": release, "prompt_tokens": prompt}
    serving = make_serving(catalogs, name, **fields)
    peak = serving_peak_bytes(serving)
    assert peak > sum(weight_terms(serving).values())
    changes: list[dict[str, Any]] = [
        {"prompt_tokens": 2 * prompt}, {"generated_tokens": 4096}, {"batch": 3}
    ]  # fmt: skip
    for more in changes:
        assert serving_peak_bytes(dataclasses.replace(serving, **more)) >= peak
    assert all(size >= 0.0 for terms in serving_phases(serving).values() for size in terms.values())
