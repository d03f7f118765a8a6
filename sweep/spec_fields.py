"""What a spec may say: every variable and the rule its values obey, declared once.

The validator, the JSON Schema, the error messages and the defaults all read these declarations.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any, Literal

from sweep import vocabulary

Side = Literal["axes", "knobs"]
LONGEST_LIST = 10_000
NAME_PATTERN = r"^[A-Za-z0-9._+-]{1,100}$"
TEXT_PATTERN = r"^[^\x00-\x1f\x7f]{1,400}$"


@dataclass(frozen=True)
class Rule:
    """What one value may be; `above` and `below` exclude the bound, `low` and `high` include it."""

    kind: type
    unit: str = ""
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()
    pattern: str = TEXT_PATTERN
    example: str = "text"

    def allowed(self) -> str:
        """The rule in words, for a message."""
        if self.choices:
            return "one of " + ", ".join(str(choice) for choice in self.choices)
        if self.kind is bool:
            return "true or false"
        if self.kind is dt.date:
            return "a date such as 2026-08-01, without quotes"
        if self.kind is str:
            return self.example
        bounds = []
        if self.low is not None:
            bounds.append(f"from {_number(self.low)}")
        if self.above is not None:
            bounds.append(f"above {_number(self.above)}")
        if self.high is not None:
            bounds.append(f"{'up ' if self.above is not None else ''}to {_number(self.high)}")
        if self.below is not None:
            bounds.append(f"to below {_number(self.below)}")
        noun = "a whole number" if self.kind is int else "a number"
        unit = f" ({self.unit})" if self.unit else ""
        return " ".join([noun, *bounds]) + unit


def _number(value: float) -> str:
    if abs(value) >= 1e8 or 0 < abs(value) < 1e-3:
        return f"{value:g}".replace("e-0", "e-").replace("e+", "e")
    return f"{value:,.10g}"


@dataclass(frozen=True)
class Variable:
    """One variable: its key in the spec, its column in every table, its default and its side."""

    key: str
    column: str
    rule: Rule
    default: tuple[Any, ...]
    side: Side
    description: str
    axes_only: bool = False


def setting(
    default: Any, rule: Rule, description: str, *, many: bool = False, required: bool = False
) -> Any:
    """A dataclass field of a spec section, with the rule its value (or each value) obeys."""
    metadata = {"rule": rule, "many": many, "description": description}
    return field(metadata=metadata) if required else field(default=default, metadata=metadata)


def rule_of(section: type[Any], name: str) -> Rule:
    """The rule of a section's setting."""
    rule: Rule = section.__dataclass_fields__[name].metadata["rule"]
    return rule


def count(high: float, unit: str = "", low: float = 1) -> Rule:
    """A whole number from `low` to `high`."""
    return Rule(int, unit, low=low, high=high)


def choice(*words: Any) -> Rule:
    """One word or number of a closed vocabulary."""
    return Rule(type(words[0]), choices=words)


def _trained(words: tuple[str, ...]) -> tuple[str, ...]:
    # "none" is what the plan gives the methods to which the variable does not apply.
    return tuple(word for word in words if word != "none")


MODEL_RULE = Rule(
    str,
    example='a model\'s key, glob ("Qwen2.5-*") or Hugging Face id, or a path to a config.json '
    'that starts with "./", "../", "/" or "~" or ends in ".json"',
)
GLOB_RULE = Rule(str, example='a name or a glob such as "*" or "aws*"')
PATH_RULE = Rule(str, pattern=r"^[^\x00]{1,4096}$", example="a path, relative to the spec's folder")
NAME_RULE = Rule(
    str, pattern=NAME_PATTERN, example="1 to 100 letters, digits and the signs . _ + -"
)
IMAGE_SIZE_RULE = Rule(
    str,
    "pixels",
    pattern=r"^[1-9][0-9]{1,4}x[1-9][0-9]{1,4}$",
    example='width x height in pixels, 10 to 99999 each, such as "1008x980"',
)

# The largest values are far beyond any machine or model of 2026 (contexts of 10 million tokens,
# clusters of 100,000 GPUs) and close enough to catch a slipped unit or a stray zero.
_QUESTIONS = (
    Variable(
        "models",
        "model",
        MODEL_RULE,
        (),
        "axes",
        "Models to fine-tune: catalog keys, globs over keys, Hugging Face ids, or paths to a "
        "config.json (relative to the spec's folder). Required.",
        axes_only=True,
    ),
    Variable(
        "methods",
        "method",
        choice(*vocabulary.METHODS),
        ("lora",),
        "axes",
        "Fine-tuning methods: every weight (full), low-rank adapters (lora), low-rank adapters "
        "on a quantised base (qlora).",
    ),
    Variable(
        "precisions",
        "precision",
        choice(*vocabulary.PRECISIONS),
        ("bf16",),
        "axes",
        "How weights and arithmetic are held. Full training: bf16 is pure bf16, bf16-mixed and "
        "fp16-mixed keep fp32 weights under autocast (fp32 masters or shards with ZeRO), fp32 is "
        "fp32 throughout. Adapters are fp32 on a 16-bit base: bf16 without autocast, -mixed with it.",
    ),
    Variable(
        "quantizations",
        "quantization",
        choice(*_trained(vocabulary.QUANTIZATIONS)),
        ("nf4-double",),
        "axes",
        "How qlora stores the frozen base; other methods do not quantise.",
    ),
    Variable(
        "lora_ranks",
        "lora_rank",
        count(8192),
        (16,),
        "axes",
        "Rank of the adapters of lora and qlora.",
    ),
    Variable(
        "lora_targets",
        "lora_target",
        choice(*_trained(vocabulary.LORA_TARGETS)),
        ("all-linear",),
        "axes",
        "Which linear layers get an adapter.",
    ),
    Variable(
        "lora_dropouts",
        "lora_dropout",
        Rule(float, "share of activations", low=0.0, below=1.0),
        (0.0,),
        "axes",
        "Dropout before each adapter; any value above 0 keeps a mask per target.",
    ),
    Variable(
        "seq_lens",
        "seq_len",
        count(2**24, "tokens"),
        (2048,),
        "axes",
        "Tokens per training sequence, image tokens included; sequences are packed full.",
    ),
    Variable(
        "global_batches",
        "global_batch",
        count(2**20, "sequences"),
        (64,),
        "axes",
        "Sequences per optimizer step over all GPUs: micro_batch x data-parallel ranks x "
        "accumulation.",
    ),
    Variable(
        "train_tokens",
        "train_tokens",
        count(1e15, "tokens"),
        (1_000_000_000,),
        "axes",
        "Tokens of the training set, counted once (image tokens included); [data] epochs says "
        "how often it is read.",
        axes_only=True,
    ),
    Variable(
        "images_per_sample",
        "images_per_sample",
        count(1024, "images", low=0),
        (0,),
        "axes",
        "Images in each training sequence; used by models with a vision tower only.",
        axes_only=True,
    ),
    Variable(
        "image_sizes",
        "image_size",
        IMAGE_SIZE_RULE,
        ("1008x980",),
        "axes",
        "Size of every image in pixels, width x height; used where images_per_sample is above 0.",
        axes_only=True,
    ),
)
_KNOBS = (
    Variable(
        "micro_batches",
        "micro_batch",
        count(4096, "sequences"),
        (1, 2, 4, 8, 16, 32),
        "knobs",
        "Sequences per GPU in one forward and backward pass.",
    ),
    Variable(
        "checkpointing",
        "checkpointing",
        choice(*vocabulary.CHECKPOINTING),
        ("none", "selective", "full"),
        "knobs",
        "Activation checkpointing: keep all, recompute attention, recompute whole layers.",
    ),
    Variable(
        "optimizers",
        "optimizer",
        choice(*vocabulary.OPTIMIZERS),
        ("adamw-fused",),
        "knobs",
        "Optimizers.",
    ),
    Variable(
        "stacks",
        "stack",
        NAME_RULE,
        ("hf",),
        "knobs",
        "Training software, by its key in the stacks catalog.",
    ),
    Variable(
        "zero_stages",
        "zero_stage",
        choice(*vocabulary.ZERO_STAGES),
        (0, 2, 3),
        "knobs",
        "What data-parallel ranks share: 0 nothing, 1 optimizer states, 2 gradients too, "
        "3 weights too (FSDP full shard).",
    ),
    Variable(
        "tp",
        "tp",
        count(1024, "GPUs"),
        (1, 2, 4, 8),
        "knobs",
        "Tensor-parallel degree; stays inside a node.",
    ),
    Variable(
        "pp",
        "pp",
        count(1024, "GPUs"),
        (1, 2, 4, 8),
        "knobs",
        "Pipeline-parallel degree.",
    ),
    # Long sequences rather than large models need context parallelism, so it is off by default.
    Variable(
        "cp",
        "cp",
        count(1024, "GPUs"),
        (1,),
        "knobs",
        "Context-parallel degree: GPUs that share one sequence.",
    ),
    # 1 and a full node: only mixture-of-experts models use the second.
    Variable(
        "ep",
        "ep",
        count(1024, "GPUs"),
        (1, 8),
        "knobs",
        "Expert-parallel degree, carved from the data-parallel ranks; mixture-of-experts only.",
    ),
    # Saves memory at no extra traffic (arXiv 2205.05198) where a stack has it; not all have.
    Variable(
        "sequence_parallel",
        "sequence_parallel",
        Rule(bool),
        (False, True),
        "knobs",
        "Whether tensor-parallel ranks also share norms, residuals and checkpoints along the "
        "sequence; has no effect at tp = 1.",
    ),
    Variable(
        "offloads",
        "offload",
        choice(*vocabulary.OFFLOADS),
        ("none",),
        "knobs",
        "What moves to host RAM or NVMe between uses.",
    ),
    Variable(
        "attention",
        "attention",
        choice(*vocabulary.ATTENTION),
        ("flash",),
        "knobs",
        "Attention kernel.",
    ),
    Variable(
        "cross_entropy",
        "cross_entropy",
        choice(*vocabulary.CROSS_ENTROPY),
        ("plain",),
        "knobs",
        "Loss head: separate kernels, one kernel over the logits, or one that never holds them "
        "whole.",
    ),
)

VARIABLES: tuple[Variable, ...] = _QUESTIONS + _KNOBS
VARIABLE_BY_KEY = {variable.key: variable for variable in VARIABLES}
VARIABLE_BY_COLUMN = {variable.column: variable for variable in VARIABLES}

# An alternative way to say train_tokens; never a column of its own.
TRAIN_TEXT_GB = "train_text_gb"
TRAIN_TEXT_RULE = Rule(float, "GB of text, 1e9 bytes each", low=1e-6, high=1e6)
TRAIN_TEXT_DESCRIPTION = (
    "Size of the training text in GB (1e9 bytes), turned into train_tokens by [data] "
    "bytes_per_token. Give this or train_tokens, not both."
)
