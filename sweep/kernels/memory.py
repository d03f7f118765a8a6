"""What one GPU holds during a training step: resident state, buffers, and the peak over its phases.

Formulas and their sources: docs/physics.md sections 2 to 4.
"""

from __future__ import annotations

from sweep.kernels.compile import scalar
from sweep.kernels.tables import (
    EMBED,
    EXPERT,
    EXPERT_ONLY,
    EXPERT_SPLIT,
    HEAD,
    KV_SPLIT,
    LINEAR,
    OTHER,
    REPLICATED,
    SPLIT,
    VISION,
    CrossEntropy,
    Offload,
    Quantity,
)

# Plain ints: enum members are not constants to the compiler.
_FUSED_LINEAR = int(CrossEntropy.FUSED_LINEAR)
_OPTIMIZER_CPU, _PARAMS_CPU, _PARAMS_NVME = (
    int(Offload.OPTIMIZER_CPU),
    int(Offload.PARAMS_CPU),
    int(Offload.PARAMS_NVME),
)
_Q = {name: int(member) for name, member in Quantity.__members__.items()}
(
    WEIGHTS, FROZEN, OPTIMIZER, GRADIENTS, BUCKETS, ROOT_GATHER, LAYER_GATHER, LAYER_REDUCE, KEPT,
    KEPT_BACKWARD, FIXED, HEAD_COPY, LOSS_FORWARD, LOSS_BACKWARD, WORK, ONE_LAYER, RESIDUAL,
    ROOT_GRADIENT, EMBED_END, STEP_TEMPORARY, P_FORWARD, P_LOSS, P_TOP, P_BOTTOM, P_END, P_STEP,
    IN_FLIGHT, RESIDENT, STAGE, ALLOCATED, DEVICE, HOST, OFFLOADED,
) = range(33)  # fmt: skip
EMBED_GRADIENT = _Q["EMBED_GRADIENT"]
LAYER_GRADIENT_LOCAL = _Q["LAYER_GRADIENT_LOCAL"]
ROOT_OPEN = _Q["ROOT_OPEN"]
ROOT_SHARD = _Q["ROOT_SHARD"]


@scalar
def feature_share(split, token, tp, kv_heads, ep, sequence_parallel):
    """Share of a layer feature that one rank holds [1].

    Derivation: docs/physics.md section 1; heads and widths split over tensor-parallel ranks, key and
    value heads until there is one a rank, experts' weights over expert-parallel ranks.
    """
    if split == SPLIT:
        return 1.0 / tp
    if split == KV_SPLIT:
        return 1.0 / min(tp, kv_heads)
    if split == EXPERT_SPLIT:
        return 1.0 / (tp * ep)
    if split == EXPERT_ONLY:
        return 1.0 / ep
    if split == REPLICATED and token == 1 and sequence_parallel == 1:
        return 1.0 / tp
    return 1.0


@scalar
def fused_linear_chunk(tokens, vocab, hidden):
    """Rows of logits a fused linear cross-entropy computes at a time [tokens].

    Source: Liger-Kernel fused_linear_cross_entropy: next power of two of T / ceil(V / h), at most T.
    """
    increments = -(-vocab // hidden)
    rows = -(-tokens // increments)
    chunk = 1.0
    while chunk < rows:
        chunk *= 2.0
    return min(tokens, chunk)


@scalar
def stage_elements(parts, tied_embed, tp, ep, stage_share, pp, stage):
    """A quantity given by part, as one rank of a pipeline stage holds it: (outside, inside experts).

    Derivation: docs/physics.md section 2. Stage 0 has the embedding and the vision tower, the last
    the head (and its own copy of a tied embedding).
    """
    dense = parts[LINEAR] * stage_share / tp + parts[OTHER] * stage_share
    expert = parts[EXPERT] * stage_share / (tp * ep)
    if stage == 0:
        dense += parts[EMBED] / tp + parts[VISION]
    if stage == 1 or pp == 1:
        dense += parts[HEAD] / tp
        if tied_embed == 1 and pp > 1:
            dense += parts[EMBED] / tp
    return dense, expert


@scalar
def root_elements(parts, tied_embed, tp, pp, stage):
    """A quantity given by part, outside the layers, as one rank of a stage holds it."""
    root = 0.0
    if stage == 0:
        root += parts[EMBED] / tp + parts[VISION]
    if stage == 1 or pp == 1:
        root += parts[HEAD] / tp
        if tied_embed == 1 and pp > 1:
            root += parts[EMBED] / tp
    return root


@scalar
def loss_head_bytes(cross_entropy, tokens, hidden_tokens, hidden, vocab, local_vocab, tp, head_trained,
                    hidden_forward, hidden_backward, logit_forward, logit_backward, logit_grad,
                    activation_bytes, head_grad_bytes):  # fmt: skip
    """What the loss head adds in forward and in backward [bytes].

    Source: traced steps of the Hugging Face stack; Liger-Kernel for the chunked head
    (docs/physics.md section 3). `hidden_tokens` is h T, `local_vocab` V or its share.
    """
    head_gradient = head_trained * head_grad_bytes * hidden * vocab / tp
    if cross_entropy == _FUSED_LINEAR:
        chunk = fused_linear_chunk(tokens, vocab, hidden)
        both = (hidden_forward + activation_bytes) * hidden_tokens + 8.0 * chunk * local_vocab
        return both + head_gradient, both + head_gradient
    forward = hidden_forward * hidden_tokens + logit_forward * local_vocab * tokens
    head = 0.0
    if head_trained == 1:
        head = logit_grad * local_vocab * tokens + activation_bytes * hidden_tokens + head_gradient
    return forward, hidden_backward * hidden_tokens + max(
        logit_backward * local_vocab * tokens, head
    )


@scalar
def stage_bytes(out, stage, model, program, case, stack, seq_len, tokens, accumulation,
                tp, pp, cp, ep, sequence_parallel, shards, several, keep_a, keep_b, work,
                one_layer):  # fmt: skip
    """Fill in one pipeline stage's quantities: residents, buffers, phases, allocated, device, host.

    Derivation: docs/physics.md sections 2 to 4; `work` and `one_layer` are the largest working set
    and kept bytes of one layer, `keep_a` and `keep_b` what all layers keep per token and besides.
    """
    zero = program.zero_stage
    offload = program.offload
    tied = model.tied
    hidden = model.hidden
    vocab = model.vocab
    layers = model.layers
    stage_share = -(-layers // pp) / layers
    expert_shards = shards / ep
    frozen, frozen_expert = stage_elements(case.frozen_bytes, tied, tp, ep, stage_share, pp, stage)
    trained, trained_expert = stage_elements(case.trained, tied, tp, ep, stage_share, pp, stage)
    sharded = trained / shards + trained_expert / expert_shards
    local = trained + trained_expert if zero == 0 else sharded

    if zero == 3:
        weights = program.shard_weight_bytes * sharded
        frozen_held = frozen / shards + frozen_expert / expert_shards
    else:
        weights = program.weight_bytes * (trained + trained_expert)
        frozen_held = frozen + frozen_expert
    optimizer = (program.master_bytes + program.state_bytes) * local
    gradients = program.grad_bytes * (sharded if zero >= 2 else trained + trained_expert)
    grad_share = 1.0 / shards if zero >= 2 else 1.0

    offloaded = 0.0
    step_temporary = (
        program.temp_element_bytes * local + program.temp_tensor_bytes * case.largest_trained / tp
    )
    if offload != 0:
        offloaded = stack.host_element_bytes * local
        if offload == _PARAMS_CPU:
            offloaded += weights + frozen_held
        elif offload == _PARAMS_NVME:
            offloaded = stack.nvme_buffer_bytes
        optimizer = 0.0
        gradients = 0.0
        grad_share = 0.0
        step_temporary = 0.0
    if offload >= _PARAMS_CPU:
        weights = 0.0
        frozen_held = 0.0
    resident = weights + frozen_held + optimizer

    buckets = 0.0
    root_gather = 0.0
    layer_gather = 0.0
    layer_reduce = 0.0
    layer_trained = (
        case.layer_trained[LINEAR] / tp
        + case.layer_trained[OTHER]
        + case.layer_trained[EXPERT] / (tp * ep)
    )
    if zero == 0 and shards > 1:
        buckets = program.grad_bytes * (trained + trained_expert)
    elif zero == 1 or zero == 2:
        buckets = min(stack.bucket_elements, trained + trained_expert) * 2.0 * stack.bucket_bytes
    elif zero == 3:
        gather = program.gather_bytes
        root_gather = root_elements(
            case.frozen_bytes, tied, tp, pp, stage
        ) + gather * root_elements(case.trained, tied, tp, pp, stage)
        layer_gather = (
            case.layer_frozen_bytes[LINEAR] / tp
            + case.layer_frozen_bytes[OTHER]
            + case.layer_frozen_bytes[EXPERT] / (tp * ep)
            + gather * layer_trained
        )
        layer_reduce = program.reduce_bytes * layer_trained
    loss_buffer = buckets + root_gather + layer_gather
    # The layer's own unsharded gradient is in its working set already.
    layer_buffer = buckets + root_gather + 2.0 * layer_gather + layer_reduce

    hidden_tokens = hidden * tokens / (tp if sequence_parallel == 1 else 1)
    kept = stage_share * (keep_a * tokens + keep_b)
    kept_backward = stage_share * keep_a * tokens
    if program.checkpointed == 0:
        kept_backward = kept
    fixed = (
        program.rotary_bytes * 2.0 * (seq_len / cp) * model.rotary_dim
        + 32.0 * tokens
        - case.first_layer_saving * tokens
    )
    local_vocab = vocab / tp if stack.vocab_parallel_loss == 1 else vocab
    head_copy = program.head_copy_bytes * hidden * vocab / tp
    residual = program.residual_bytes * hidden_tokens
    forward, backward = loss_head_bytes(
        program.cross_entropy, tokens, hidden_tokens, hidden, vocab, local_vocab, tp,
        program.head_trained, program.hidden_forward, program.hidden_backward,
        program.logit_forward + model.softcap_bytes, program.logit_backward + model.softcap_bytes,
        program.logit_grad,
        program.activation_bytes, program.head_grad_bytes,
    )  # fmt: skip

    has_loss = stage == 1 or pp == 1
    in_flight = min(accumulation, pp) if (stage == 0 and pp > 1) else 1.0
    before = gradients if accumulation > 1 else 0.0
    during = 0.0 if accumulation > 1 else gradients
    resting = resident + before
    embed_trained = case.trained[EMBED]
    layer_gradient_local = program.grad_bytes * layer_trained * grad_share
    embed_gradient = 0.0
    if tied == 0 and stage == 0:
        embed_gradient = program.grad_bytes * embed_trained / tp * grad_share
    # At stage 3 the root's gradient stays unsharded until its own backward ends, after all layers.
    head_trained = 0.0
    if has_loss:
        head_trained = case.trained[HEAD] / tp
        if tied == 1:
            head_trained += embed_trained / tp
    root_gradient = 0.0
    root_open = 0.0
    root_shard = 0.0
    if zero == 3:
        root_open = program.gather_bytes * head_trained
        root_gradient = root_open
        root_shard = program.grad_bytes * head_trained * grad_share
    elif accumulation <= 1:
        root_gradient = program.grad_bytes * head_trained * grad_share
    embed_end = 0.0
    if embed_trained > 0.0 and stage == 0:
        if zero == 3:
            root_trained = root_elements(case.trained, tied, tp, pp, stage)
            gathered = program.gather_bytes
            if tied == 1:
                each = 2.0 * gathered + max(program.reduce_bytes, 2.0 * gathered)
                embed_end = each * root_trained + layer_reduce
            else:
                embed_end = (gathered + program.reduce_bytes) * root_trained
            embed_end -= program.grad_bytes * root_trained * grad_share
        elif tied == 1:
            embed_end = 2.0 * program.grad_bytes * hidden * vocab / tp
        else:
            embed_end = program.activation_bytes * hidden_tokens

    p_forward = 0.0
    p_loss = 0.0
    if has_loss:
        p_forward = resting + loss_buffer + kept + fixed + head_copy + forward
        p_loss = resting + loss_buffer + kept_backward + fixed + head_copy + backward
    p_top = (
        resting + layer_buffer + in_flight * kept_backward + fixed + residual + root_gradient + work
    )
    p_bottom = (
        resting
        + layer_buffer
        + max(0.0, during - layer_gradient_local - embed_gradient - root_shard)
        + root_open
        + (in_flight - 1.0) * kept_backward
        + one_layer
        + fixed
        + residual
        + work
    )
    p_end = resting + during + embed_end if stage == 0 else 0.0
    p_step = resident + gradients + step_temporary
    peak = max(max(p_forward, p_loss), max(max(p_top, p_bottom), max(p_end, p_step)))
    fragmentation = stack.fragmentation_multi if several else stack.fragmentation_single
    device = peak + stack.context_bytes + fragmentation * (peak - resident)
    if several:
        device += stack.comm_bytes

    out[OFFLOADED] = max(out[OFFLOADED], offloaded)
    if device <= out[DEVICE]:
        return
    out[WEIGHTS] = weights
    out[FROZEN] = frozen_held
    out[OPTIMIZER] = optimizer
    out[GRADIENTS] = gradients
    out[BUCKETS] = buckets
    out[ROOT_GATHER] = root_gather
    out[LAYER_GATHER] = layer_gather
    out[LAYER_REDUCE] = layer_reduce
    out[KEPT] = kept
    out[KEPT_BACKWARD] = kept_backward
    out[FIXED] = fixed
    out[HEAD_COPY] = head_copy if has_loss else 0.0
    out[LOSS_FORWARD] = forward if has_loss else 0.0
    out[LOSS_BACKWARD] = backward if has_loss else 0.0
    out[WORK] = work
    out[ONE_LAYER] = one_layer
    out[RESIDUAL] = residual
    out[ROOT_GRADIENT] = root_gradient
    out[EMBED_END] = embed_end
    out[STEP_TEMPORARY] = step_temporary
    out[P_FORWARD] = p_forward
    out[P_LOSS] = p_loss
    out[P_TOP] = p_top
    out[P_BOTTOM] = p_bottom
    out[P_END] = p_end
    out[P_STEP] = p_step
    out[IN_FLIGHT] = in_flight
    out[RESIDENT] = resident
    out[STAGE] = stage
    out[ALLOCATED] = peak
    out[DEVICE] = device
    out[EMBED_GRADIENT] = embed_gradient
    out[LAYER_GRADIENT_LOCAL] = layer_gradient_local
    out[ROOT_OPEN] = root_open
    out[ROOT_SHARD] = root_shard
