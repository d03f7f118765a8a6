"""A point's words as a program: method, stack, precision and the other knobs, or why not."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sweep.evidence.points import Point, Unpredictable
from sweep.evidence.stack_words import compiles_loss, is_graph_titan
from sweep.plan.programs import Program

# Our stack by the words (stack, engine) of a point; "*" is any engine.
_STACKS: Mapping[tuple[str, str], str] = {
    ("hf", "none"): "hf",
    ("hf", "ddp"): "hf",
    ("hf", "fsdp2"): "hf",
    ("hf", "fsdp1"): "hf-fsdp1",
    ("hf", "deepspeed"): "hf-deepspeed",
    ("megatron", "*"): "megatron",
    ("llm_foundry", "fsdp1"): "llm-foundry",
    ("torchtitan", "fsdp2"): "torchtitan",
    ("torchtitan", "simplefsdp"): "torchtitan-graph",
    ("litgpt", "none"): "litgpt",
    ("torchtune", "none"): "torchtune",
    ("torchtune", "fsdp2"): "torchtune",
    ("fsdp_qlora", "fsdp1"): "fsdp-qlora",
    ("fsdp_qlora", "none"): "fsdp-qlora",
    ("fsdp_qlora", "ddp"): "fsdp-qlora",
    # Trainers that run Transformers models under the same engines.
    ("axolotl", "none"): "axolotl",
    ("llamafactory", "none"): "hf",
    ("llamafactory", "deepspeed"): "hf-deepspeed",
    ("trl", "none"): "hf",
    ("nemo_automodel", "none"): "nemo-automodel",
    ("nemo_automodel", "fsdp2"): "nemo-automodel",
    ("xtuner", "fsdp2"): "xtuner",
    ("hf_liger", "none"): "hf-liger",
    ("hf_liger", "ddp"): "hf-liger",
    ("unsloth", "none"): "unsloth",
    ("hf_fused", "none"): "hf-fused",
    ("hf_fused", "ddp"): "hf-fused",
    ("hf_fused", "fsdp1"): "hf-fused-fsdp1",
    ("hf_fused_liger", "none"): "hf-fused",
    ("hf_fused_liger", "ddp"): "hf-fused",
    ("hf_fused_liger", "fsdp1"): "hf-fused-fsdp1",
}
_METHODS = {
    "full": "full", "lora": "lora", "qlora": "qlora", "lora (8-bit base)": "qlora",
    "lora+train_embed_lmhead": "lora",
}  # fmt: skip
_OPTIMIZERS: Mapping[str, str] = {
    "adamw": "adamw-foreach",
    "adamw_torch": "adamw-foreach",
    "adamw_foreach": "adamw-foreach",
    "adamw_fused": "adamw-fused",
    "adamw_torch_fused": "adamw-fused",
    "adamw_loop": "adamw-loop",
    "adam_distributed": "adamw-fused",
    "adamw_8bit": "adamw-8bit",
    "adamw_bnb_8bit": "adamw-8bit",
    "paged_adamw_8bit": "paged-adamw-8bit",
    "paged_adamw": "paged-adamw",
    "adamw_4bit": "adamw-4bit",
    "adafactor": "adafactor",
    "lion": "lion",
    "sgd": "sgd",
    "sgdm": "sgd-momentum",
    "none": "none",
}
_CHECKPOINTING = {
    "none": "none", "full": "full", "full_offload": "full", "selective": "selective",
    "selective_op": "selective",
}  # fmt: skip
_CROSS_ENTROPY = {
    "none": "plain", "fused_ce": "fused", "fused_linear": "fused-linear",
    "chunked": "chunked",
}  # fmt: skip
_QUANTIZATIONS = {
    "nf4": "nf4", "fp4": "nf4", "int8": "int8", "gptq_int4": "gptq-int4", "awq_int4": "gptq-int4",
    "hqq_int4": "nf4",
}  # fmt: skip
_OFFLOADS = {
    "": "none", "none": "none", "optimizer cpu offload": "optimizer-cpu",
    "cpu optimizer offload": "optimizer-cpu", "optimizer-cpu": "optimizer-cpu",
    "fsdp cpu offload": "params-cpu",
}  # fmt: skip
# Words of a list of LoRA targets, by the kind of projection they name.
_TARGET_WORDS: Mapping[str, str] = {
    "q": "q", "q_proj": "q", "query": "q", "k": "k", "k_proj": "k", "key": "k", "v": "v",
    "v_proj": "v", "value": "v", "o": "o", "o_proj": "o", "output_proj": "o", "projection": "o",
    "gate": "gate", "gate_proj": "gate", "up": "up", "up_proj": "up", "down": "down",
    "down_proj": "down", "mlp": "mlp", "linear_qkv": "qkv", "linear_proj": "o", "c_attn": "qkv",
    "query_key_value": "qkv", "qkv_proj": "qkv", "w_pack": "qkv", "wqkv": "qkv", "dense": "o",
    "c_proj": "o+down", "w1": "gate", "w2": "up", "head": "head", "lm_head": "head",
}  # fmt: skip


def lora_target(words: str) -> str:
    """The LoRA target of a point's words: one of the vocabulary, or projections joined by '+'."""
    text = words.casefold().strip()
    if not text:
        raise Unpredictable("lora_targets is empty: which matrices are adapted is not known")
    if text in ("all", "all-linear") or text.startswith("all linear"):
        return "all-linear"
    if text == "qv":
        return "attention-qv"
    if text == "qkvo":
        return "attention"
    if text.startswith("default (qkv"):
        return "q+k+v"
    text = re.sub(r"\(.*?\)", "", text)
    found: set[str] = set()
    for word in re.split(r"[,+;\s]+", text):
        if not word:
            continue
        if word not in _TARGET_WORDS:
            raise Unpredictable(f"lora_targets: unknown projection {word!r}")
        kind = _TARGET_WORDS[word]
        if kind == "mlp":
            found |= {"gate", "up", "down"}
        elif kind == "qkv":
            found |= {"q", "k", "v"}
        else:
            found |= set(kind.split("+"))
    found.discard("head")
    if found == {"q", "v"}:
        return "attention-qv"
    if found == {"q", "k", "v", "o"}:
        return "attention"
    if found == {"q", "k", "v", "o", "gate", "up", "down"}:
        return "all-linear"
    order = ("q", "k", "v", "o", "gate", "up", "down")
    return "+".join(name for name in order if name in found)


def _word(point: Point, column: str, known: Mapping[str, str]) -> str:
    text = point[column].casefold().strip()
    if text not in known:
        raise Unpredictable(
            f"{column}: {point[column]!r} is not known here; known: "
            + ", ".join(sorted(one for one in known if one))
        )
    return known[text]


# The loss head of a stack whose points do not name one, because it has only that.
_DEFAULT_CROSS_ENTROPY = {"llm-foundry": "fused", "megatron": "plain", "torchtitan": "plain"}


def _stack_variant(point: Point, stack: str, settings: Mapping[str, str]) -> str:
    if stack == "torchtitan" and (settings.get("trainer") == "graph" or is_graph_titan(point)):
        stack = "torchtitan-graph"
    if stack in ("torchtitan", "torchtitan-graph") and point.whole("tp", 1) > 1:
        return f"{stack}-tp"
    return stack


def _checkpointing(point: Point, stack: str) -> str:
    found = _word(point, "checkpointing", _CHECKPOINTING)
    # Megatron's selective mode recomputes the attention core, which a flash kernel does anyway.
    return "none" if stack == "megatron" and found == "selective" else found


def _optimizer(point: Point, stack: str) -> str:
    found = _word(point, "optimizer", _OPTIMIZERS)
    # torchtitan asks for the fused implementation by default, DeepSpeed brings its own.
    fused = stack.startswith("torchtitan") or stack == "hf-deepspeed"
    return "adamw-fused" if fused and found == "adamw-foreach" else found


def _cross_entropy(point: Point, stack: str) -> str:
    if stack.startswith("torchtitan") and compiles_loss(point):
        return "chunked"
    if not point["cross_entropy"]:
        if stack in _DEFAULT_CROSS_ENTROPY:
            return _DEFAULT_CROSS_ENTROPY[stack]
        raise Unpredictable("cross_entropy is not known: whole or fused logits decide the peak")
    return _word(point, "cross_entropy", _CROSS_ENTROPY)


def trains_root(point: Point) -> bool:
    """Whether embedding and head train beside the adapters."""
    return "embed" in point["method"].casefold()


def stack_of(point: Point) -> str:
    """Our stack for a point's stack and engine."""
    stack = point["stack"] or "hf"
    engine = point["engine"] or "none"
    for key in ((stack, engine), (stack, "*")):
        if key in _STACKS:
            return _STACKS[key]
    raise Unpredictable(f"no rule for stack {stack!r} with engine {engine!r}")


def _zero_stage(point: Point) -> int:
    if point["engine"] in ("fsdp1", "fsdp2", "simplefsdp"):
        # Never resharding (SHARD_GRAD_OP, stage 2) is stage 3 with all layers left gathered.
        return 3 if point.whole("zero_stage", 3) in (2, 3) else point.whole("zero_stage")
    if point["engine"] == "megatron":
        return 1 if point["optimizer"] == "adam_distributed" else 0
    if point["zero_stage"]:
        return point.whole("zero_stage")
    return 0


def _precision(point: Point, method: str, zero_stage: int) -> str:
    weight, autocast = point["weight_dtype"], point.flag("autocast")
    if method != "full" and point["engine"] == "deepspeed":
        return "bf16-mixed"
    if method != "full":
        return "bf16-mixed" if autocast else "bf16"
    if weight == "fp32":
        sharded = zero_stage == 3 and "bf16" in (point["compute_dtype"] + point["fsdp_policy"])
        return "bf16-mixed" if autocast or sharded else "fp32"
    if weight in ("bf16", "fp16", ""):
        if point["engine"] in ("deepspeed", "megatron"):
            return "bf16-mixed"
        return "bf16"
    raise Unpredictable(f"full training with {weight} weights is not modelled")


def program_of(point: Point, settings: Mapping[str, str]) -> Program:
    """The program of a training point; `settings` is what is known of its source.

    Raises Unpredictable for words without a meaning here, ValueError for cells that are no numbers.
    """
    method = _word(point, "method", _METHODS)
    if point["stack"] == "litgpt" and point.flag("autocast"):
        raise Unpredictable("litgpt under bf16-mixed (fp32 weights) is not modelled")
    stack = _stack_variant(point, stack_of(point), settings)
    zero_stage = _zero_stage(point)
    for column in ("micro_batch", "seq_len", "checkpointing"):
        if not point[column]:
            raise Unpredictable(f"{column} is not known")
    quantization = "none"
    if method == "qlora":
        quantization = _word(point, "weight_dtype", _QUANTIZATIONS)
        if quantization == "nf4" and point.flag("double_quant"):
            quantization = "nf4-double"
    return Program(
        method=method,
        stack=stack,
        precision=_precision(point, method, zero_stage),
        quantization=quantization,
        lora_rank=point.whole("lora_rank") if method != "full" else 0,
        lora_target=lora_target(point["lora_targets"]) if method != "full" else "none",
        lora_dropout=point.number("lora_dropout", float(settings.get("lora_dropout", "0"))),
        checkpointing=_checkpointing(point, stack),
        attention="eager" if point["attention"] == "eager" else "flash",
        cross_entropy=_cross_entropy(point, stack),
        optimizer=_optimizer(point, stack),
        zero_stage=zero_stage,
        offload=_word(point, "offload", _OFFLOADS),
    )
