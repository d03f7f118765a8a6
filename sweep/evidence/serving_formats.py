"""What serving stacks keep: weight formats, caches by Transformers release, torch's allocator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sweep.units import KIB, MIB


@dataclass(frozen=True)
class WeightFormat:
    """How one linear is stored and multiplied; bytes are per element unless said otherwise.

    `group_bytes` are the scale and zero point of `group` elements, `row_bytes` those of an output
    row, `index_bytes` of an input column. `unpacked_bytes` stand beside the weights while
    `unpacked_from` tokens or more are multiplied; `buffer_bytes` are kept from loading on, for the
    largest linear. `head` says whether the output head is stored so too.
    """

    weight_bytes: float
    plain: float = 2.0
    group: int = 128
    group_bytes: float = 0.0
    row_bytes: float = 0.0
    index_bytes: float = 0.0
    unpacked_bytes: float = 0.0
    unpacked_from: int = 2
    buffer_bytes: float = 0.0
    head: bool = False


WEIGHT_FORMATS: Mapping[str, WeightFormat] = {
    "bf16": WeightFormat(2.0),
    "fp16": WeightFormat(2.0),
    "fp32": WeightFormat(4.0, plain=4.0),
    # bitsandbytes: fp32 absmax per 64 elements, itself in 8 bits (an fp32 per 256) when doubled;
    # a prompt is multiplied with the matrix dequantised to the compute dtype.
    "nf4": WeightFormat(0.5, group=64, group_bytes=4.0, unpacked_bytes=2.0),
    "nf4-double": WeightFormat(0.5, group=64, group_bytes=1 + 4 / 256, unpacked_bytes=2.0),
    "int8-bnb": WeightFormat(1.0, row_bytes=4.0),
    # AutoGPTQ 0.7: fp16 scale and packed zero per 128, int32 g_idx per input. 4 bits run in
    # exllama, which keeps an fp16 copy of the largest matrix (temp_dq); 8 bits in qlinear_cuda_old,
    # which unpacks in torch for 128 rows and more: int32 shifts beside their int16 copy.
    "gptq-int4": WeightFormat(0.5, group_bytes=2.5, index_bytes=4.0, buffer_bytes=2.0),
    "gptq-int8": WeightFormat(
        1.0, group_bytes=3.0, index_bytes=4.0, unpacked_bytes=6.0, unpacked_from=128
    ),
    # AutoAWQ 0.2 GEMM: fp16 scale and packed zero per 128; fp16 matrix from 1,024 tokens on.
    "awq-int4": WeightFormat(0.5, group_bytes=2.5, unpacked_bytes=2.0, unpacked_from=1024),
    # Transformers' fine-grained fp8: an fp32 scale per 128 x 128 block.
    "fp8-block": WeightFormat(1.0, group=128 * 128, group_bytes=4.0),
    # gpt-fast and torchao, head included: a bf16 scale per row, or bf16 scale and zero per group of
    # 32 (gpt-fast's README) or 64 (torchao's int4wo-64).
    "int8-gptfast": WeightFormat(1.0, row_bytes=2.0, head=True),
    "int4-gptfast": WeightFormat(0.5, group=32, group_bytes=4.0, head=True),
    "int4-torchao": WeightFormat(0.5, group=64, group_bytes=4.0, head=True),
    "fp6-torchao": WeightFormat(0.75, row_bytes=2.0, head=True),
    # lit-gpt quantises from fp16 and computes in bf16: a prompt meets the fp16 matrix and its bf16
    # copy (lightning 2.1 bitsandbytes plugin, bnb 0.41 MatMul4Bit). The head is a linear like any.
    "nf4-litgpt": WeightFormat(0.5, group=64, group_bytes=4.0, unpacked_bytes=4.0, head=True),
    "nf4-double-litgpt": WeightFormat(
        0.5, group=64, group_bytes=1 + 4 / 256, unpacked_bytes=4.0, head=True
    ),
    # int8: while a matrix is quantised at loading, its fp16 values and both int8 orders.
    "int8-litgpt": WeightFormat(1.0, row_bytes=4.0, unpacked_bytes=4.0, head=True),
}

# Last release whose attention modules each kept cos and sin of every position, by model type.
# Source: register_buffer("cos_cached") in the modeling files of 4.36.2, 4.38.2 ... 4.56.0.
ROTARY_CACHED_UNTIL: Mapping[str, tuple[int, int]] = {
    "llama": (4, 37),
    "mistral": (4, 41),
    "mixtral": (4, 47),
    "qwen2": (4, 44),
    "qwen2_moe": (4, 44),
    "phi": (4, 44),
    "falcon": (4, 44),
    "gpt_neox": (4, 44),
    "starcoder2": (4, 44),
    "stablelm": (4, 44),
}
# First release whose generate() computes the prompt's last logits only, where it is not 4.45 (GPT-2
# and Granite-MoE: between 4.52 and 4.55); None for never up to 4.56. The classes of the second table
# leave logits in the compute dtype.
LAST_LOGITS_SINCE: Mapping[str, tuple[int, int] | None] = {
    "falcon": (4, 47),
    "gpt_neox": (4, 48),
    "granite": (4, 48),
    "granitemoe": (4, 52),
    "gpt2": (4, 52),
    "opt": None,
    "bloom": None,
    "mpt": None,
}
LOGITS_AS_COMPUTED = ("falcon", "gpt_neox", "gpt2", "opt", "bloom", "mpt", "stablelm")
# generate() hands the model a DynamicCache since 4.42; before, each step's tuple of keys and values
# lived until the next was whole. Sliding layers forget what left their window since 4.56, when the
# token after the prompt comes; the hybrid caches of Gemma-2 and -3 were made whole before.
DYNAMIC_CACHE_SINCE = (4, 42)
SLIDING_CACHE_SINCE = (4, 56)
HYBRID_CACHES = ("gemma2", "gemma3_text")
FUSED_EXPERTS_SINCE = (5, 0)
BITSANDBYTES = ("nf4", "nf4-double", "int8-bnb")
TENSOR_PARALLEL = ("deepspeed", "gpt-fast")
STATIC_CACHE = ("litgpt", "gpt-fast")
# torch's default cuBLAS workspace, :4096:2:16:8 (aten/src/ATen/cuda/CUDABlas; 32 MiB on sm90).
CUBLAS_WORKSPACE_BYTES = 8320 * KIB
# torch's caching allocator gives tensors of 10 MiB and more segments of whole 2 MiB, and leaves a
# rest of up to 1 MiB with the tensor (kMinLargeAlloc, kRoundLarge, kSmallSize).
LARGE_BYTES, SEGMENT_BYTES, UNSPLIT_BYTES = 10 * MIB, 2 * MIB, 1 * MIB


def allocated_bytes(size_bytes: float) -> float:
    """What torch's allocator counts for one tensor of its own [bytes].

    Large tensors keep what is left of their segment where that is too small to be split off.
    """
    if size_bytes < LARGE_BYTES:
        return size_bytes
    segment = math.ceil(size_bytes / SEGMENT_BYTES) * SEGMENT_BYTES
    return segment if segment - size_bytes <= UNSPLIT_BYTES else size_bytes
