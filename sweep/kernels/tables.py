"""The axis tables kernels read, and the names of the quantities they fill in."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np

# The six parts of a model, in the order of every array that ends in a part axis.
PARTS = ("linear", "other", "expert", "embed", "head", "vision")
LINEAR, OTHER, EXPERT, EMBED, HEAD, VISION = range(6)

# How a feature's value divides over tensor-parallel and expert-parallel ranks.
REPLICATED, SPLIT, KV_SPLIT, EXPERT_SPLIT, EXPERT_ONLY, FIXED, EXPERT_TOKENS = range(7)


class Verdict(IntEnum):
    """What became of a scenario."""

    FITS = 0
    GPU_MEMORY = 1
    HOST_MEMORY = 2
    UNSUPPORTED = 3
    NO_LAYOUT = 4


class Offload(IntEnum):
    """What leaves the GPU between uses."""

    NONE = 0
    OPTIMIZER_CPU = 1
    PARAMS_CPU = 2
    PARAMS_NVME = 3


class CrossEntropy(IntEnum):
    """How the loss head is computed."""

    PLAIN = 0
    FUSED = 1
    FUSED_LINEAR = 2
    CHUNKED = 3  # held as plain, with fewer bytes a logit


class Models(NamedTuple):
    """One row a model; [M] unless said. Group axes are 2 long, the second count 0 if there is one group."""

    layers: np.ndarray
    hidden: np.ndarray
    vocab: np.ndarray
    tied: np.ndarray  # 0 or 1
    rotary_dim: np.ndarray
    kv_heads: np.ndarray
    softcap_bytes: np.ndarray  # more bytes a logit where logits are soft-capped
    experts_per_token: np.ndarray
    moe_layers: np.ndarray
    gated: np.ndarray  # 1 where the MLP is gated
    interleaved: np.ndarray  # 1 where the groups' layers alternate
    group_count: np.ndarray  # [M, 2] layers
    linear_active: np.ndarray  # [M, 2] elements
    expert_active: np.ndarray  # [M, 2] elements
    attention_width: np.ndarray  # [M, 2] elements
    io_width: np.ndarray  # [M, 2] elements
    window: np.ndarray  # [M, 2] tokens, inf without
    mlp_width: np.ndarray  # [M, 2] MLP width a token sees
    qkv_width: np.ndarray  # [M, 2] hq + hkv
    kv_width: np.ndarray  # [M, 2] hkv
    heads: np.ndarray  # [M, 2]


def pack(table: NamedTuple) -> np.ndarray:
    """The rows of a table as records [rows], fields by name.

    Kernels read one row at a time and hand it on: a record travels as one pointer, where a tuple of
    arrays costs a copy of every array header at each call (measured: 2.2 against 0.4 us a candidate).
    """
    columns = table._asdict()
    dtype = np.dtype(
        [(name, column.dtype, column.shape[1:]) for name, column in columns.items()], align=True
    )
    rows = np.empty(len(next(iter(columns.values()))), dtype)
    for name, column in columns.items():
        rows[name] = column
    return rows


class Forms(NamedTuple):
    """Layer forms by variant [V]; coefficients over the features, backward sets padded to [V, B, F]."""

    keep: np.ndarray  # [V, F]
    cached: np.ndarray  # [V, F] of a stage with such a layer, all step long; no token features
    backward: np.ndarray  # [V, B, F]
    backward_count: np.ndarray  # [V]
    token: np.ndarray  # [F] 1 where the feature grows with tokens
    split: np.ndarray  # [F] how it divides
    by_seq: np.ndarray  # [F] 1 where it is multiplied with seq_len
    by_rank: np.ndarray  # [F] 1 where it is multiplied with lora_rank
    routed: np.ndarray  # [F] 1 where it grows with the tokens that come to a rank's experts


class Programs(NamedTuple):
    """How a step is run but for its layout: one row a combination of the non-layout knobs [P]."""

    stack: np.ndarray
    dtype: np.ndarray  # row of the setup table: MATMUL_BF16_S and on
    zero_stage: np.ndarray
    offload: np.ndarray
    cross_entropy: np.ndarray
    checkpointed: np.ndarray  # 1 unless checkpointing is none
    eager: np.ndarray
    lora_rank: np.ndarray
    layers_trained: np.ndarray
    head_trained: np.ndarray
    recompute_matmul: np.ndarray
    recompute_attention: np.ndarray
    recompute_elementwise: np.ndarray
    weight_bytes: np.ndarray
    shard_weight_bytes: np.ndarray
    master_bytes: np.ndarray
    grad_bytes: np.ndarray
    gather_bytes: np.ndarray
    reduce_bytes: np.ndarray
    state_bytes: np.ndarray
    hidden_forward: np.ndarray
    hidden_backward: np.ndarray
    logit_forward: np.ndarray
    logit_backward: np.ndarray
    logit_grad: np.ndarray
    activation_bytes: np.ndarray
    head_grad_bytes: np.ndarray
    head_copy_bytes: np.ndarray
    residual_bytes: np.ndarray
    rotary_bytes: np.ndarray
    temp_element_bytes: np.ndarray
    temp_tensor_bytes: np.ndarray
    traffic_bytes: np.ndarray
    dequant_bytes: np.ndarray
    cast_bytes: np.ndarray  # per operand element and pass
    loss_traffic_bytes: np.ndarray
    memory_high: np.ndarray  # high end of the band of allocated peaks over the predicted one


class Cases(NamedTuple):
    """A model under a program [C]."""

    program: np.ndarray
    variant: np.ndarray  # [C, 2] row of Forms for each group
    frozen_bytes: np.ndarray  # [C, 6]
    trained: np.ndarray  # [C, 6] elements
    group_frozen_bytes: np.ndarray  # [C, 2, 3] of one layer of each group
    group_trained: np.ndarray  # [C, 2, 3] elements
    layer_frozen_bytes: np.ndarray  # [C, 3] of the largest layer
    layer_trained: np.ndarray  # [C, 3] elements
    matrix_elements: np.ndarray  # [C, 2] linear, expert
    quantized_elements: np.ndarray  # [C, 2] linear, expert
    adapter_active: np.ndarray
    adapter_io: np.ndarray
    adapted: np.ndarray  # matrices with an adapter
    largest_trained: np.ndarray
    first_layer_saving: np.ndarray  # bytes per token
    scale_bytes: np.ndarray  # of the quantised matrices' scales
    vision_kept_bytes: np.ndarray  # of one sequence's images, by the tower's blocks


class Stacks(NamedTuple):
    """Constants of a stack [S]; meanings and units in the stacks catalog."""

    vocab_parallel_loss: np.ndarray
    context_bytes: np.ndarray
    comm_bytes: np.ndarray
    fragmentation_single: np.ndarray
    fragmentation_multi: np.ndarray
    bucket_elements: np.ndarray
    bucket_bytes: np.ndarray
    loss_gathered_layers: np.ndarray
    backward_gathered_layers: np.ndarray
    reduced_layers: np.ndarray
    holds_finished_layers: np.ndarray
    replicates_scales: np.ndarray
    replicates_adapters: np.ndarray
    root_gather_copies: np.ndarray
    keeps_gradients: np.ndarray
    keeps_head_copy: np.ndarray
    whole_hidden_bytes: np.ndarray
    live_elements: np.ndarray
    offloads_gradients: np.ndarray
    process_bytes: np.ndarray
    nvme_buffer_bytes: np.ndarray
    host_element_bytes: np.ndarray
    host_traffic_bytes: np.ndarray
    transfer_bytes: np.ndarray
    latency_s: np.ndarray
    moe_efficiency: np.ndarray
    moe_imbalance: np.ndarray
    tp_exposed: np.ndarray
    dp_exposed: np.ndarray
    ep_exposed: np.ndarray
    step_exposed: np.ndarray
    network_share: np.ndarray
    link_share: np.ndarray
    memory_efficiency: np.ndarray
    host_adam_bytes_per_s: np.ndarray
    nvme_bytes_per_s: np.ndarray
    pcie_share: np.ndarray
    elementwise_passes: np.ndarray
    hidden_bytes: np.ndarray
    wide_residual_bytes: np.ndarray
    attention_bytes: np.ndarray
    gated_bytes: np.ndarray
    plain_bytes: np.ndarray
    permute_bytes: np.ndarray
    attention_kernel: np.ndarray
    virtual_stages: np.ndarray
    unit_s: np.ndarray
    adapter_unit_s: np.ndarray
    adapter_kernels: np.ndarray
    moe_kernels: np.ndarray
    adapter_passes: np.ndarray
    eager_attention_bytes: np.ndarray
    kernels_per_layer: np.ndarray
    kernel_s: np.ndarray


class Layouts(NamedTuple):
    """Parallel layouts [Y]; dp follows from the GPUs of a setup. `split` numbers its (tp, sp, ep)."""

    tp: np.ndarray
    pp: np.ndarray
    cp: np.ndarray
    ep: np.ndarray
    sequence_parallel: np.ndarray
    split: np.ndarray


class Splits(NamedTuple):
    """Distinct (tp, sequence_parallel, ep) of the layouts [X]: what layer forms depend on."""

    tp: np.ndarray
    sequence_parallel: np.ndarray
    ep: np.ndarray


# Rows of the setup table [SETUP_ROWS, J]: what one unit takes on each setup, and its limits. Setups of
# one class (GPUs, GPUs a node) stand side by side. Rates are inverted so that the loop multiplies; inf
# says the setup lacks it. One array, because the compiler must prove that no output overlaps an input.
(
    MATMUL_BF16_S,  # s/flop
    MATMUL_FP16_S,
    MATMUL_FP32_S,
    MATMUL_FP8_S,
    MATMUL_FP4_S,
    ATTENTION_S,  # the best kernel of the GPU
    ATTENTION_FA2_S,
    ATTENTION_FA1_S,
    MEMORY_S,  # s/byte
    LINK_S,
    NETWORK_S,  # one node's network
    PCIE_S,
    DEVICE_LIMIT,  # bytes: usable x (1 - headroom)
    HOST_LIMIT,  # bytes a node, inf where unknown
    OFFLOAD_LIMIT,  # the same, 0 where unknown
    DEVICE_INVERSE,
    HOST_INVERSE,
    OFFLOAD_INVERSE,  # 1 where unknown, finite: see _UNKNOWN_RAM_INVERSE in plan/setups.py
) = range(18)
SETUP_ROWS = 18
# Of the dtypes of matmuls the first ones are not narrower than 16 bits.
FULL_DTYPES = 3


class Classes(NamedTuple):
    """Runs of equal (GPUs, GPUs a node) among the setups [K]."""

    first: np.ndarray
    last: np.ndarray  # one past
    gpus: np.ndarray
    gpus_per_node: np.ndarray


class Kinds(NamedTuple):
    """What tells the setups of a class apart but for host RAM: one column for all that are equal.

    Within a class the kind with most GPU memory comes first, so that the kinds a candidate fits are
    the first ones. Where a class is one node the network does not count, nor the link of one GPU.
    """

    rates: (
        np.ndarray
    )  # [SETUP_ROWS, N] as the setup table; limits and inverses of hosts mean nothing
    first: np.ndarray  # [K]
    last: np.ndarray  # one past
    of_setup: np.ndarray  # [J]
    least_host: np.ndarray  # [K, 2] bytes: least HOST_LIMIT and OFFLOAD_LIMIT among the class
    most_host: np.ndarray  # [K, 2] bytes
    # Beside case_list: the place in the same list of an earlier case that is never slower at the same
    # layout and micro-batch (it recomputes less, all else that takes time is equal), or -1.
    rival: np.ndarray


class Workloads(NamedTuple):
    """What is asked [W]: a model, a length, the cases (programs) and batches tried."""

    model: np.ndarray
    seq_len: np.ndarray
    vision_flop: np.ndarray  # forward of the frozen tower, per sequence
    signature: np.ndarray  # row of Choices
    first_case: np.ndarray  # CSR into case_list
    last_case: np.ndarray
    case_list: np.ndarray
    first_batch: np.ndarray  # CSR into batch_list
    last_batch: np.ndarray
    batch_list: np.ndarray  # global_batch
    batch_index: np.ndarray  # its number among all global batches
    first_micro: np.ndarray  # range of Choices.micro_batches
    last_micro: np.ndarray


class Choices(NamedTuple):
    """Valid layouts by (signature, class, layout rule), and micro-batches by nothing but arithmetic.

    A signature is what validity depends on in a model and a length; a layout rule is what it depends
    on in a program (which parallelisms its stack has, ZeRO stage, offload).
    """

    first: np.ndarray  # [G, K, U] CSR into layout_list
    last: np.ndarray
    layout_list: np.ndarray
    rule: np.ndarray  # [P] rule of a program
    micro_batches: np.ndarray  # [B] ascending


class Quantity(IntEnum):
    """Index of each number `evaluate` fills in for one candidate (knobs without the setup's rates)."""

    WEIGHTS = 0  # bytes on the GPU of the deciding stage
    FROZEN = 1
    OPTIMIZER = 2
    GRADIENTS = 3
    BUCKETS = 4
    ROOT_GATHER = 5
    LAYER_GATHER = 6
    LAYER_REDUCE = 7
    KEPT = 8
    KEPT_BACKWARD = 9
    FIXED = 10
    HEAD_COPY = 11
    LOSS_FORWARD = 12
    LOSS_BACKWARD = 13
    WORK = 14
    ONE_LAYER = 15
    RESIDUAL = 16
    ROOT_GRADIENT = 17
    EMBED_END = 18
    STEP_TEMPORARY = 19
    P_FORWARD = 20
    P_LOSS = 21
    P_TOP = 22
    P_BOTTOM = 23
    P_END = 24
    P_STEP = 25
    IN_FLIGHT = 26
    RESIDENT = 27
    STAGE = 28  # 0 first, 1 last
    ALLOCATED = 29
    DEVICE = 30
    HOST = 31  # bytes per node
    OFFLOADED = 32  # bytes per GPU on the host
    TOKENS = 33  # tokens of a micro-batch on one GPU
    ACCUMULATION = 34
    MATMUL_FLOP = 35  # per micro-batch and GPU
    ATTENTION_FLOP = 36
    ELEMENTWISE_BYTES = 37
    EAGER_BYTES = 38
    ADAPTER_BYTES = 39
    LOSS_BYTES = 40
    OPERAND_BYTES = 41
    DEQUANT_BYTES = 42
    MEMORY_BYTES = 43  # their sum over the memory efficiency
    HOST_S = 44
    SHARD_LINK_BYTES = 45
    SHARD_NETWORK_BYTES = 46
    SHARD_LATENCY_S = 47
    DP_EXPOSED = 48
    TP_LINK_BYTES = 49
    RING_LINK_BYTES = 50
    RING_NETWORK_BYTES = 51
    LATENCY_S = 52
    FETCH_PCIE_BYTES = 53
    FETCH_S = 54
    REPEATS = 55  # m + (pp - 1) / virtual stages
    ONCE_LINK_BYTES = 56
    ONCE_NETWORK_BYTES = 57
    ONCE_LATENCY_S = 58
    OPTIMIZER_BYTES = 59
    TRANSFER_PCIE_BYTES = 60
    OPTIMIZER_S = 61
    TOKENS_PER_STEP = 62
    NETWORK_BYTES_PER_STEP = 63
    EMBED_GRADIENT = 64
    LAYER_GRADIENT_LOCAL = 65
    ROOT_OPEN = 66  # the root's unsharded gradient at stage 3
    ROOT_SHARD = 67
    TRAINED = 68  # elements of the rank
    GRADIENT_SHARE = 69  # of a rank's gradients that rest on the GPU
    HELD = 70  # what finished layers still hold at the end of backward
    LOSS_BUFFER = 71  # buckets and gathered units while the loss runs
    LAYER_BUFFER = 72  # the same while a layer runs backward
    WHOLE_HIDDEN = 73  # hidden states of the head that tensor parallelism gathers whole
    EXPERT_ROOM = 74  # routed activations of the busiest expert-parallel rank above the mean
    HALF_FLOP = 75  # head, adapters and vision tower: never below 16 bits
    CAST_BYTES = 76
    PERMUTE_BYTES = 77
    STEP_EXPOSED = 78
    UNIT_S = 79  # part of LATENCY_S: collectives of sharded units beside their transfer


QUANTITIES = len(Quantity)
# Beyond the quantities an array of them has room for what their formulas share among micro-batches: the
# parts that do not grow with tokens, computed once a layout.
(
    FIRST_LAYERS,  # layers of the first and of the second group on the stage
    SECOND_LAYERS,
    KEPT_PER_TOKEN,
    KEPT_FIRST,  # bytes kept beside those per token, by group
    KEPT_SECOND,
    CACHED_BYTES,
    SETS_PER_TOKEN,  # routed working sets
    ROUTED_PER_TOKEN,
    ROTARY,
    HEAD_GRADIENT,
    LOCAL_VOCAB,
    ROOT_OWN,  # the root's gradient where it is not counted with all others
    END_PER_HIDDEN,
    STAGE_SHARE,  # of the layers, on the fullest stage
    BUSIEST,  # tokens of the busiest expert-parallel rank over the mean
    HEAD_ELEMENTS,
    ACTIVE_ELEMENTS,
    ATTENTION_LENGTHS,
    TRAFFIC_PER_TOKEN,
    HEADS,
    OPERAND_WIDTH,
    OPERAND_ELEMENTS,
    OPERAND_HEAD,
    LOSS_PER_TOKEN,
    TP_PER_TOKEN,
    NEAR,  # ranks of an expert exchange in a node
    REACHED,  # other nodes a token's experts are on
    MICRO_SENT,  # network bytes of sharding a micro-batch, and a step
    ONCE_SENT,
) = range(QUANTITIES, QUANTITIES + 29)
ROOM = QUANTITIES + 29
