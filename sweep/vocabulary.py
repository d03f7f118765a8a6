"""The closed vocabularies shared by specs, catalogs, tables and SQL: one spelling for one thing."""

from __future__ import annotations

TASKS = ("train",)
METHODS = ("full", "lora", "qlora")
# How weights and arithmetic are held. Full training: "bf16" is pure bf16 (weights, gradients and
# states); "bf16-mixed" and "fp16-mixed" keep fp32 weights, masters or shards; "fp32" is fp32
# throughout. Adapters are fp32 on a 16-bit base: "bf16" runs without autocast, "-mixed" with it.
PRECISIONS = ("bf16", "bf16-mixed", "fp16-mixed", "fp32")
# How the frozen base of QLoRA is stored. "none" for other methods.
QUANTIZATIONS = ("none", "nf4", "nf4-double", "int8", "gptq-int4")
LORA_TARGETS = ("none", "attention-qv", "attention", "all-linear")
OPTIMIZERS = (
    "adamw-fused",
    "adamw-foreach",
    "adamw-loop",
    "adamw-8bit",
    "adamw-4bit",
    "paged-adamw",
    "paged-adamw-8bit",
    "adafactor",
    "lion",
    "sgd",
    "sgd-momentum",
    "none",
)
CHECKPOINTING = ("none", "selective", "full")
ATTENTION = ("eager", "flash")
CROSS_ENTROPY = ("plain", "fused", "fused-linear", "chunked")
ZERO_STAGES = (0, 1, 2, 3)
OFFLOADS = ("none", "optimizer-cpu", "params-cpu", "params-nvme")
PRICE_MODELS = ("on_demand", "spot", "reserved_1y", "reserved_3y", "owned")
OBJECTIVES = ("usd", "hours")
KEEPS = ("best", "feasible", "all")
