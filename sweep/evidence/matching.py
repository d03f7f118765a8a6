"""A point's words as a scenario the kernels evaluate, or the reason why it is none."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sweep.catalogs import Catalogs
from sweep.catalogs.models import Model
from sweep.catalogs.stacks import StackBook, parse_release
from sweep.evidence.names import resolve_architecture
from sweep.evidence.points import Point, Unpredictable
from sweep.evidence.stack_words import compiles_loss
from sweep.evidence.stack_words import with_words as _with_words
from sweep.evidence.towers import tower_bytes
from sweep.plan.layouts import Layout
from sweep.plan.programs import Program, rule_of
from sweep.plan.shapes import ModelShape, model_shape
from sweep.scenario import Scenario


@dataclass(frozen=True)
class Match:
    """A point as a scenario, with the stack catalog as it holds for that point."""

    scenario: Scenario
    book: StackBook
    stage: int | None = None


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


def lora_target(words: str, stack: str) -> str:
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


def settings_of(point: Point, catalogs: Catalogs) -> Mapping[str, str]:
    """What the catalog knows of a point's source beyond its columns (evidence_settings.csv)."""
    found: dict[str, str] = {}
    for row in catalogs.evidence_settings:
        if row.source_contains in point["source"]:
            found.setdefault(row.setting, row.value)
    return found


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


def _stack_variant(point: Point, stack: str) -> str:
    if stack == "torchtitan" and point.whole("tp", 1) > 1:
        return "torchtitan-tp"
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


def _trains_root(point: Point) -> bool:
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


def match_point(point: Point, catalogs: Catalogs) -> Match:
    """The scenario of a training point; raises Unpredictable with the reason when there is none."""
    try:
        return _match(point, catalogs)
    except ValueError as error:
        raise Unpredictable(str(error)) from None


def _match(point: Point, catalogs: Catalogs) -> Match:
    model = resolve_architecture(point["model"], catalogs.models)
    if model is None:
        raise Unpredictable(f"no architecture in the catalog for model {point['model']!r}")
    method = _word(point, "method", _METHODS)
    if point["stack"] == "litgpt" and point.flag("autocast"):
        raise Unpredictable("litgpt under bf16-mixed (fp32 weights) is not modelled")
    stack = stack_of(point)
    settings = settings_of(point, catalogs)
    zero_stage = _zero_stage(point)
    for column in ("micro_batch", "seq_len", "checkpointing"):
        if not point[column]:
            raise Unpredictable(f"{column} is not known")
    quantization = "none"
    if method == "qlora":
        quantization = _word(point, "weight_dtype", _QUANTIZATIONS)
        if quantization == "nf4" and point.flag("double_quant"):
            quantization = "nf4-double"
    stack = _stack_variant(point, stack)
    program = Program(
        method=method,
        stack=stack,
        precision=_precision(point, method, zero_stage),
        quantization=quantization,
        lora_rank=point.whole("lora_rank") if method != "full" else 0,
        lora_target=lora_target(point["lora_targets"], stack) if method != "full" else "none",
        lora_dropout=point.number("lora_dropout", float(settings.get("lora_dropout", "0"))),
        checkpointing=_checkpointing(point, stack),
        attention="eager" if point["attention"] == "eager" else "flash",
        cross_entropy=_cross_entropy(point, stack),
        optimizer=_optimizer(point, stack),
        zero_stage=zero_stage,
        offload=_word(point, "offload", _OFFLOADS),
    )
    if stack not in catalogs.stacks.stacks:
        raise Unpredictable(f"stack {stack} is not in the catalog")
    if (stack, program.cross_entropy) not in catalogs.stacks.loss_heads:
        raise Unpredictable(f"stack {stack} has no {program.cross_entropy} cross-entropy")
    book = _book_for(point, program, catalogs.stacks)
    book = _with_extras(book, point, program, model, settings)
    if release := _release(point, settings):
        book = _with_release(book, program, model, release)
    layout = _layout(point)
    gpus = point.whole("gpu_count", 1)
    if gpus % (layout.tp * layout.pp * layout.cp):
        raise Unpredictable(f"{gpus} GPUs do not divide into tp x pp x cp")
    dp = gpus // (layout.tp * layout.pp * layout.cp)
    micro_batch = point.whole("micro_batch")
    accumulation = point.whole("grad_accum", 1)
    shape = _shape(point, model, method)
    scenario = Scenario(
        shape=shape,
        program=program,
        layout=layout,
        seq_len=point.whole("seq_len"),
        global_batch=micro_batch * accumulation * dp,
        micro_batch=micro_batch,
        gpus=gpus,
        gpus_per_node=min(gpus, 8),
        vision_kept_bytes=tower_bytes(point, shape, program, book) if shape.counts.vision else 0.0,
        vision_trained=point.flag("vision_trained"),
        root_trained=_trains_root(point),
    )
    stages = {"first pp stage": 0, "last pp stage": 1}
    said = [stage for words, stage in stages.items() if words in point["notes"].casefold()]
    return Match(scenario, book, said[0] if said else None)


def _layout(point: Point) -> Layout:
    tp, pp = point.whole("tp", 1), point.whole("pp", 1)
    cp, ep = point.whole("cp", 1), point.whole("ep", 1)
    words = point["parallelism"].casefold()
    said = "sequence parallel" in words or re.search(r"\bsp\b", words) is not None
    return Layout(tp, pp, cp, ep, tp > 1 and (said or point["stack"] == "torchtitan"))


def _shape(point: Point, model: Model, method: str) -> ModelShape:
    if point["stack"] == "litgpt" and model.tie_word_embeddings:
        # LitGPT keeps a head of its own.
        model = dataclasses.replace(model, tie_word_embeddings=False, published_total=None)
    shape = model_shape(model)
    if shape.counts.vision and not point["images"]:
        # A step on text alone: the published traces and measurements train the language model.
        shape = dataclasses.replace(shape, counts=dataclasses.replace(shape.counts, vision=None))
    if method != "full":
        # PEFT before 0.18 and the traced all-linear left fused experts alone.
        shape = dataclasses.replace(
            shape, counts=dataclasses.replace(shape.counts, experts_adapted=False)
        )
    return shape


_SMALL_ADAPTERS = dict.fromkeys(
    ("weight_bytes", "shard_weight_bytes", "grad_bytes", "state_dtype_bytes"), 2.0
)


def _book_for(point: Point, program: Program, book: StackBook) -> StackBook:
    """The catalog with the dtype rule changed to what the point states beyond a program's words."""
    rule = rule_of(program, book)
    if rule is None:
        raise Unpredictable(
            f"stack {program.stack} has no rule for {program.method} at {program.precision}, "
            f"zero_stage {program.zero_stage}"
        )
    changed = rule
    if program.method == "qlora" and rule.kbit_prep and not _kbit_prepared(point):
        # Without k-bit preparation the residual stream, the norms and the head stay in 16 bits.
        lora = book.rules[program.stack, "lora", program.precision, program.zero_stage]
        changed = dataclasses.replace(lora, method="qlora", weight_dtype="nf4")
    elif program.method == "qlora" and rule.kbit_prep and "SFTTrainer" in point["framework"]:
        # TRL casts embedding and head back to 16 bits after the preparation; norms stay fp32.
        cast = {**rule.bytes, "frozen_bytes": 2.0, "head_copy_bytes": 0.0, "hidden_forward": 6.0}
        changed = dataclasses.replace(rule, bytes=cast)
    if program.method != "full" and point["adapter_dtype"] == "bf16":
        changed = dataclasses.replace(
            changed, adapter_dtype="bf16", bytes={**changed.bytes, **_SMALL_ADAPTERS}
        )
    if changed is rule:
        return book
    key = (program.stack, program.method, program.precision, program.zero_stage)
    return dataclasses.replace(book, rules={**book.rules, key: changed})


def _release(point: Point, settings: Mapping[str, str]) -> tuple[int, ...] | None:
    """The release of Transformers a point ran, from its words or its source's; None if unknown."""
    words = f"{point['framework']} {point['notes']}".casefold()
    found = re.search(r"transformers[ =v]*(\d+(?:\.\d+)+)", words)
    text = found[1] if found else settings.get("transformers", "")
    return parse_release(text) if text else None


def _with_release(
    book: StackBook, program: Program, model: Model, release: tuple[int, ...]
) -> StackBook:
    """The catalog as it held for an older release of the stack's framework."""
    older = book.release(program.stack, program.cross_entropy, release)
    if older is None:
        return book
    key = (program.stack, program.cross_entropy)
    head = book.loss_heads[key]
    heads = {
        **book.loss_heads,
        key: dataclasses.replace(
            head, logit_forward=older.logit_forward, logit_backward=older.logit_backward
        ),
    }
    stack = book.stacks[program.stack]
    if older.kernels and model.model_type in older.model_types:
        kernels = "+".join(name for name in (stack.kernels, older.kernels) if name)
        stack = dataclasses.replace(stack, kernels=kernels)
    return dataclasses.replace(book, loss_heads=heads, stacks={**book.stacks, stack.key: stack})


def _with_kernels(book: StackBook, program: Program, name: str) -> StackBook:
    """The catalog with one more change of kernels for the program's stack."""
    stack = book.stacks[program.stack]
    kernels = "+".join(one for one in (stack.kernels, name) if one)
    stack = dataclasses.replace(stack, kernels=kernels)
    return dataclasses.replace(book, stacks={**book.stacks, program.stack: stack})


def _with_extras(
    book: StackBook, point: Point, program: Program, model: Model, settings: Mapping[str, str]
) -> StackBook:
    """The catalog with what a point does beyond a program: masters, kept outputs, no resharding."""
    if point.flag("master_weights"):
        key = (program.stack, program.method, program.precision, program.zero_stage)
        rule = book.rules[key]
        # fp32 masters and states; at the step fp32 copies of the gradients replace 16-bit ones.
        bytes_ = {**rule.bytes, "master_bytes": 4.0, "state_dtype_bytes": 4.0}
        optimizer = book.optimizers[program.optimizer]
        optimizer = dataclasses.replace(
            optimizer,
            temp_weight_multiple=optimizer.temp_weight_multiple + 1.0,
            temp_tensor_bytes=optimizer.temp_tensor_bytes + 2.0,
        )
        book = dataclasses.replace(
            book,
            rules={**book.rules, key: dataclasses.replace(rule, bytes=bytes_)},
            optimizers={**book.optimizers, program.optimizer: optimizer},
        )
    if point.flag("keep_outputs"):
        head_key = (program.stack, program.cross_entropy)
        head = book.loss_heads[head_key]
        rule = book.rules[program.stack, program.method, program.precision, program.zero_stage]
        backward = head.logit_backward or rule.bytes["logit_backward"]
        head = dataclasses.replace(head, logit_backward=backward + 2.0)
        book = dataclasses.replace(book, loss_heads={**book.loss_heads, head_key: head})
    never_reshards = program.zero_stage == 3 and (
        point["zero_stage"] == "2" or not point.flag("reshard_after_forward", default=True)
    )
    if "padding" in point["attention"]:
        book = _with_kernels(book, program, "padding-mask")
    if point["checkpointing"] == "full_offload":
        book = _with_kernels(book, program, "offloaded-checkpoints")
    book = _with_words(book, point, program, model, settings)
    if never_reshards:
        stack = book.stacks[program.stack]
        layers = float(model.num_hidden_layers)
        # What a prefetching stack counts beyond the layers themselves stays counted.
        prefetched = max(0.0, stack.constants["loss_gathered_layers"] - 2.0)
        constants = {
            **stack.constants,
            "loss_gathered_layers": layers + prefetched,
            "backward_gathered_layers": layers + prefetched,
        }
        stack = dataclasses.replace(stack, constants=constants)
        book = dataclasses.replace(book, stacks={**book.stacks, program.stack: stack})
    return book


def _kbit_prepared(point: Point) -> bool:
    if point["kbit_prep"]:
        return point.flag("kbit_prep")
    if point["kind"] == "traced":
        return False
    words = (point["notes"] + " " + point["framework"]).casefold()
    return not ("no fp32 upcast" in words or "autogptq" in words)
