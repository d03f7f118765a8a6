"""The columns of the stack catalogs: what each file must say, in which unit."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from sweep import vocabulary
from sweep.catalogs.tables import Column

# Every constant a stack must state, with its unit; a file that lacks or adds one is refused.
CONSTANTS: Mapping[str, str] = {
    "context_bytes": "bytes",
    "comm_bytes": "bytes",
    "fragmentation_single": "share",
    "fragmentation_multi": "share",
    "bucket_elements": "elements",
    "bucket_bytes": "bytes",
    "loss_gathered_layers": "layers",
    "backward_gathered_layers": "layers",
    "reduced_layers": "layers",
    "holds_finished_layers": "share",
    "replicates_scales": "share",
    "replicates_adapters": "share",
    "root_gather_copies": "copies",
    "keeps_gradients": "share",
    "keeps_head_copy": "share",
    "whole_hidden_bytes": "bytes",
    "reserved_logit_bytes": "bytes",
    "live_elements": "elements",
    "offloads_gradients": "share",
    "unshared_single": "share",
    "unshared_multi": "share",
    "process_bytes": "bytes",
    "nvme_buffer_bytes": "bytes",
    "host_element_bytes": "bytes",
    "host_traffic_bytes": "bytes",
    "transfer_bytes": "bytes",
    "latency_s": "s",
    "moe_efficiency": "share",
    "moe_imbalance": "ratio",
    "tp_exposed": "share",
    "dp_exposed": "share",
    "ep_exposed": "share",
    "step_exposed": "share",
    "network_share": "share",
    "link_share": "share",
    "memory_efficiency": "share",
    "host_adam_bytes_per_s": "bytes/s",
    "nvme_bytes_per_s": "bytes/s",
    "pcie_share": "share",
    "p2p_free_share": "share",
    "elementwise_passes": "ratio",
    "hidden_bytes": "bytes",
    "wide_residual_bytes": "bytes",
    "attention_bytes": "bytes",
    "gated_bytes": "bytes",
    "plain_bytes": "bytes",
    "cast_bytes": "bytes",
    "permute_bytes": "bytes",
    "adapter_passes": "passes",
    "attention_kernel": "kernel",
    "virtual_stages": "stages",
    "unit_s": "s",
    "adapter_unit_s": "s",
    "adapter_kernels": "kernels",
    "moe_kernels": "kernels",
    "loss_traffic_bytes": "bytes",
    "eager_attention_bytes": "bytes",
    "kernels_per_layer": "kernels",
    "kernel_s": "s",
    "warmup_s": "s",
}

_PROVENANCE = (
    Column("source", str, required=True),
    Column("locator", str),
    Column("checked", dt.date, required=True),
    Column("notes", str),
)
FLAGS = (
    "tensor_parallel",
    "sequence_parallel",
    "pipeline_parallel",
    "context_parallel",
    "expert_parallel",
    "vocab_parallel_loss",
    "fused_layers",
)
LISTS: Mapping[str, tuple[Any, ...]] = {
    "methods": vocabulary.METHODS,
    "tensor_parallel_methods": vocabulary.METHODS,
    "precisions": vocabulary.PRECISIONS,
    "quantizations": vocabulary.QUANTIZATIONS,
    "checkpointing": vocabulary.CHECKPOINTING,
    "attention": vocabulary.ATTENTION,
    "cross_entropy": vocabulary.CROSS_ENTROPY,
    "optimizers": vocabulary.OPTIMIZERS,
    "zero_stages": vocabulary.ZERO_STAGES,
    "offloads": vocabulary.OFFLOADS,
}
STACK_COLUMNS = (
    Column("stack", str, required=True),
    Column("title", str, required=True),
    Column("extends", str),
    Column("kernels", str),
    *(Column(name, str, required=True) for name in LISTS),
    *(Column(name, bool, required=True) for name in FLAGS),
    *_PROVENANCE,
)
CONSTANT_COLUMNS = (
    Column("stack", str, required=True),
    Column("name", str, required=True, vocabulary=tuple(CONSTANTS)),
    Column("value", float, required=True, low=0.0, high=1e13),
    Column("unit", str, required=True, vocabulary=tuple(sorted(set(CONSTANTS.values())))),
    Column("assumed", bool),
    *_PROVENANCE,
)
_BYTES = ("weight_bytes", "shard_weight_bytes", "master_bytes", "grad_bytes", "gather_bytes")
RULE_NUMBERS = (
    "frozen_bytes",
    *_BYTES,
    "reduce_bytes",
    "state_dtype_bytes",
    "hidden_forward",
    "hidden_backward",
    "logit_forward",
    "logit_backward",
    "logit_grad",
    "activation_bytes",
    "head_grad_bytes",
    "head_copy_bytes",
    "residual_bytes",
)
RULE_COLUMNS = (
    Column("stack", str, required=True),
    Column("method", str, required=True, vocabulary=vocabulary.METHODS),
    Column("precision", str, required=True, vocabulary=vocabulary.PRECISIONS),
    Column("zero_stages", str, required=True),
    Column("weight_dtype", str, required=True, vocabulary=("bf16", "fp32", "nf4")),
    Column("autocast", bool, required=True),
    Column("adapter_dtype", str, required=True, vocabulary=("none", "fp32", "bf16")),
    Column("kbit_prep", bool, required=True),
    Column("compute_dtype", str, required=True, vocabulary=("bf16", "fp16", "fp32", "fp8", "fp4")),
    *(Column(name, float, "bytes", required=True, low=0.0, high=64.0) for name in RULE_NUMBERS),
    *_PROVENANCE,
)
OPTIMIZER_COLUMNS = (
    Column("optimizer", str, required=True, vocabulary=vocabulary.OPTIMIZERS),
    Column("state_dtype_multiple", float, "states", required=True, low=0.0, high=4.0),
    Column("state_fixed_bytes", float, "bytes", required=True, low=0.0, high=16.0),
    Column("temp_weight_multiple", float, "copies", required=True, low=0.0, high=4.0),
    Column("temp_tensor_bytes", float, "bytes", required=True, low=0.0, high=64.0),
    Column("traffic_passes", float, "passes", required=True, low=0.0, high=64.0),
    *_PROVENANCE,
)
LOSS_COLUMNS = (
    Column("stack", str, required=True),
    Column("cross_entropy", str, required=True, vocabulary=vocabulary.CROSS_ENTROPY),
    Column("logit_forward", float, "bytes", low=0.0, high=64.0),
    Column("logit_backward", float, "bytes", low=0.0, high=64.0),
    Column("traffic_share", float, "share", required=True, low=0.0, high=4.0),
    *_PROVENANCE,
)
RELEASE_COLUMNS = (
    Column("stack", str, required=True),
    Column("before", str, required=True),
    Column("cross_entropy", str, required=True, vocabulary=vocabulary.CROSS_ENTROPY),
    Column("logit_forward", float, "bytes", low=0.0, high=64.0),
    Column("logit_backward", float, "bytes", low=0.0, high=64.0),
    Column("kernels", str),
    Column("model_types", str),
    *_PROVENANCE,
)
ARCHITECTURE_COLUMNS = (
    Column("model_type", str, required=True),
    Column("transformers_class", str, required=True),
    Column("kind", str, required=True),
    Column("family", str, required=True),
    Column("basis", str, required=True, vocabulary=("traced", "same layer", "derived")),
    Column("note", str),
    Column("source", str, required=True),
    Column("checked", dt.date, required=True),
)
FAMILY_COLUMNS = (
    Column("family", str, required=True),
    Column("mlp", str, required=True, vocabulary=("gated", "plain", "experts")),
    # torch's own LayerNorm: autocast runs it in fp32 and hands fp32 on. Others return their input's.
    Column("fp32_norm_output", bool, required=True),
    Column("like", str),
    Column("fused_family", str),
    Column("description", str, required=True),
    Column("source", str, required=True),
    Column("checked", dt.date, required=True),
)
EFFICIENCY_COLUMNS = (
    Column("gpu", str, required=True),
    Column("matmul_share", float, "share of dense peak", required=True, low=0.05, high=1.0),
    Column("matmul8_share", float, "share of dense peak", low=0.05, high=1.0),
    Column("matmul4_share", float, "share of dense peak", low=0.05, high=1.0),
    Column("attention_share", float, "share of dense peak", required=True, low=0.05, high=1.0),
    Column("attention_fa2_share", float, "share of dense peak", required=True, low=0.05, high=1.0),
    Column("attention_fa1_share", float, "share of dense peak", required=True, low=0.05, high=1.0),
    Column("assumed", str),
    *_PROVENANCE,
)
