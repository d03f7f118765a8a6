"""From a row of the evidence file to what was served, or why that cannot be said."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sweep.catalogs.architecture import count_parameters
from sweep.catalogs.models import Model
from sweep.evidence.names import QUANTISED_ENDING, resolve_architecture
from sweep.evidence.serving import Serving

ENGINES: Mapping[str, str] = {"hf": "transformers", "litgpt": "litgpt", "gpt_fast": "gpt-fast"}
WEIGHT_FORMATS: Mapping[tuple[str, str], str] = {
    ("transformers", "bf16"): "bf16",
    ("transformers", "fp16"): "fp16",
    ("transformers", "fp32"): "fp32",
    ("transformers", "gptq_int4"): "gptq-int4",
    # Of a name without a published quantised checkpoint, loaded by bitsandbytes.
    ("transformers", "int4"): "nf4",
    ("transformers", "int8"): "int8-bnb",
    ("transformers", "gptq_int8"): "gptq-int8",
    ("transformers", "awq_int4"): "awq-int4",
    ("transformers", "nf4"): "nf4",
    ("transformers", "fp8"): "fp8-block",
    ("deepspeed", "fp16"): "fp16",
    ("deepspeed", "bf16"): "bf16",
    ("litgpt", "bf16"): "bf16",
    ("litgpt", "fp16"): "fp16",
    ("litgpt", "fp32"): "fp32",
    ("litgpt", "nf4"): "nf4-litgpt",
    ("litgpt", "int8"): "int8-litgpt",
    ("gpt-fast", "bf16"): "bf16",
    ("gpt-fast", "int8"): "int8-gptfast",
    ("gpt-fast", "int4"): "int4-gptfast",
}
# Qwen publishes its Int4 and Int8 checkpoints in AutoGPTQ's format.
QWEN_FORMATS: Mapping[str, str] = {"int4": "gptq-int4", "int8": "gptq-int8"}
# max_position_embeddings of the checkpoints whose config.json says other than their base model's.
ROTARY_POSITIONS: Mapping[str, int] = {
    "qwen2-0.5b-instruct": 32768,
    "qwen2-1.5b-instruct": 32768,
    "qwen2-7b-instruct": 32768,
    "qwen2-72b-instruct": 32768,
    # The benchmark's name for the instruct model.
    "qwen2-57b-a14b": 32768,
    "qwen2-57b-a14b-instruct": 32768,
}
_LENGTHS = re.compile(r"input (\d+) \+ generate (\d+)")
_RELEASE = re.compile(r"transformers (\d+)\.(\d+)")
# lit-gpt's and gpt-fast's default prompt, "Hello, my name is": six Llama tokens with the first.
DEFAULT_PROMPT_TOKENS = 6
LITGPT_NEW_TOKENS = 50


def _lengths(row: Mapping[str, str], engine: str) -> tuple[int, int] | str:
    """Prompt and generated tokens of a row, or why they are not known."""
    stated = _LENGTHS.search(row["notes"])
    if stated:
        return int(stated[1]), int(stated[2])
    tokens = int(float(row["seq_len"] or 0))
    if engine == "litgpt":
        return DEFAULT_PROMPT_TOKENS, LITGPT_NEW_TOKENS
    if engine == "gpt-fast" and tokens:
        return DEFAULT_PROMPT_TOKENS, tokens - DEFAULT_PROMPT_TOKENS
    if engine == "transformers" and tokens and "generat" in row["notes"] + row["source"]:
        # Qwen's profile.py: one token in, seq_len out.
        return 1, tokens
    return "lengths of prompt and output not stated" if not tokens else "output length not stated"


def read_serving(row: Mapping[str, str], models: Mapping[str, Model]) -> Serving | str:
    """What a row served, or the reason why its peak cannot be predicted."""
    if row["task"] != "serve":
        return "not a serving row"
    model = resolve_architecture(row["model"], models)
    if model is None:
        return f"model {row['model']} is not in the catalog"
    engine = ENGINES.get(row["stack"])
    if row["engine"] == "deepspeed":
        engine = "deepspeed"
    if engine is None:
        return f"engine {row['stack']} is not modelled"
    weights = row["weight_dtype"].split()[0] if row["weight_dtype"] else ""
    weight_format = WEIGHT_FORMATS.get((engine, weights))
    if engine == "transformers" and row["model"].startswith("Qwen/"):
        weight_format = QWEN_FORMATS.get(weights, weight_format)
    if "torchao" in row["framework"] and weights not in ("bf16", "fp16"):
        return "reserved pool after quantising on the GPU: what its holes keep is not modelled"
    if weight_format is None:
        return f"weight format {row['weight_dtype'] or 'unknown'} of {engine} is not modelled"
    if row["double_quant"] == "y":
        weight_format = weight_format.replace("nf4", "nf4-double")
    gpus = int(float(row["gpu_count"] or 1))
    if gpus > 1 and engine == "litgpt":
        return "lit-gpt on several GPUs is not modelled"
    if gpus > 1 and engine == "transformers" and row["scope"] != "sum_all_gpus":
        return "one GPU's share of a device map whose split is not stated"
    if row["measure"] == "nvidia_smi":
        return "a device figure: context and cached blocks are not modelled"
    lengths = (0, 0) if engine == "deepspeed" else _lengths(row, engine)
    if isinstance(lengths, str):
        return lengths
    release = _RELEASE.search(row["framework"])
    original_qwen = bool(re.match(r"Qwen/Qwen-\d", row["model"]))
    name = QUANTISED_ENDING.sub("", row["model"].split("/")[-1]).casefold()
    positions = ROTARY_POSITIONS.get(name, model.max_position_embeddings or 0)
    stated_release = (int(release[1]), int(release[2])) if release else None
    return Serving(
        model=model,
        counts=count_parameters(model),
        engine=engine,
        # The first Qwen's own modeling file passes tuples; its README asks for 4.32.
        release=(4, 32) if original_qwen else stated_release,
        weight_format=weight_format,
        kv_dtype_bytes=1.0 if "int8 KV" in row["notes"] else 2.0,
        batch=int(float(row["micro_batch"] or 1)),
        prompt_tokens=lengths[0],
        generated_tokens=lengths[1],
        gpus=gpus,
        attention=row["attention"] or "flash",
        # One rotary table for all layers there, as long as the text.
        rotary_positions=0 if original_qwen else positions,
        head_in_checkpoint=weight_format == "awq-int4",
    )
