"""What one GPU holds during a training step: resident state, buffers, and the peak over its phases.

Formulas and their sources: docs/physics.md sections 2 to 4.
"""

from __future__ import annotations

from sweep.kernels.compile import scalar
from sweep.kernels.tables import (
    CACHED_BYTES,
    EMBED,
    END_PER_HIDDEN,
    EXPERT,
    EXPERT_ONLY,
    EXPERT_SPLIT,
    EXPERT_TOKENS,
    FIRST_LAYERS,
    HEAD,
    HEAD_GRADIENT,
    KEPT_FIRST,
    KEPT_PER_TOKEN,
    KEPT_SECOND,
    KV_SPLIT,
    LINEAR,
    LOCAL_VOCAB,
    OTHER,
    REPLICATED,
    ROOT_OWN,
    ROTARY,
    ROUTED_PER_TOKEN,
    SECOND_LAYERS,
    SETS_PER_TOKEN,
    SPLIT,
    VISION,
    CrossEntropy,
    Offload,
    Quantity,
)

# The pipeline stages that can need most: the first, the last, and the one after the first.
FIRST, LAST, SECOND = range(3)
# Columns of the two first layer lines, one a group: kept bytes per token and besides, bytes that a
# stage with such a layer caches all step long, the row after the group's working sets, and the part
# of kept bytes and of working sets per token that grows with the tokens sent to a rank's experts.
KEEP_A, KEEP_B, CACHED, SETS_END, ROUTED, ROUTED_SETS = range(6)

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
TRAINED = _Q["TRAINED"]
GRADIENT_SHARE = _Q["GRADIENT_SHARE"]
HELD = _Q["HELD"]
LOSS_BUFFER = _Q["LOSS_BUFFER"]
LAYER_BUFFER = _Q["LAYER_BUFFER"]
WHOLE_HIDDEN = _Q["WHOLE_HIDDEN"]
EXPERT_ROOM = _Q["EXPERT_ROOM"]


@scalar
def expert_split(tp, ep, shards):
    """Tensor-parallel ranks that split one expert.

    Source: Megatron-Core, expert tensor parallelism: tp, its default, or 1 where the experts' ranks
    reach over those of tensor parallelism (ep does not divide dp cp).
    """
    return tp if shards % ep == 0 else 1


@scalar
def feature_share(split, token, tp, etp, kv_heads, ep, sequence_parallel):
    """Share of a layer feature that one rank holds [1].

    Derivation: docs/physics.md section 1; heads and widths split over tensor-parallel ranks, key and
    value heads until there is one a rank, experts' weights over expert-parallel ranks and the `etp`
    ranks that split an expert.
    """
    if split == SPLIT:
        return 1.0 / tp
    if split == KV_SPLIT:
        return 1.0 / min(tp, kv_heads)
    if split == EXPERT_SPLIT:
        return 1.0 / (etp * ep)
    if split == EXPERT_TOKENS:
        return etp / tp
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
def stage_layers(model, pp, stage):
    """Layers of the first and of the second group that a pipeline stage holds.

    Derivation: docs/physics.md section 2. Groups follow one another unless they are interleaved; a
    stage that may be short counts as full, so that an uneven split is never called smaller.
    """
    first = 1.0 * model.group_count[0]
    second = 1.0 * model.group_count[1]
    if pp == 1:
        return first, second
    here = 1.0 * -(-model.layers // pp)
    if second == 0.0 or model.interleaved == 1:
        share = here / model.layers
        return first * share, second * share
    if stage == LAST:
        ending = min(second, here)
        return here - ending, ending
    begin = here if stage == SECOND else 0.0
    starting = min(max(first - begin, 0.0), here)
    return starting, here - starting


@scalar
def stage_elements(parts, groups, first, second, tied_embed, tp, etp, ep, pp, stage):
    """A quantity as one rank of a pipeline stage holds it: (outside, inside experts).

    `parts` gives it by part of the model, `groups` [2, 3] by part of one layer of each group, of
    which the stage has `first` and `second`. Derivation: docs/physics.md section 2.
    """
    dense = root_elements(parts, tied_embed, tp, pp, stage)
    dense += (first * groups[0, LINEAR] + second * groups[1, LINEAR]) / tp
    dense += first * groups[0, OTHER] + second * groups[1, OTHER]
    return dense, (first * groups[0, EXPERT] + second * groups[1, EXPERT]) / (etp * ep)


@scalar
def root_elements(parts, tied_embed, tp, pp, stage):
    """A quantity given by part, outside the layers, as one rank of a stage holds it.

    The first stage has the embedding and the vision tower, the last the head (and its own copy of a
    tied embedding).
    """
    root = 0.0
    if stage == FIRST:
        root += parts[EMBED] / tp + parts[VISION]
    if stage == LAST or pp == 1:
        root += parts[HEAD] / tp
        if tied_embed == 1 and pp > 1:
            root += parts[EMBED] / tp
    return root


@scalar
def loss_head_bytes(cross_entropy, tokens, hidden_tokens, hidden, vocab, local_vocab, head_trained,
                    hidden_forward, hidden_backward, logit_forward, logit_backward, logit_grad,
                    activation_bytes, head_gradient):  # fmt: skip
    """What the loss head adds in forward and in backward [bytes].

    Source: traced steps of the Hugging Face stack; Liger-Kernel for the chunked head
    (docs/physics.md section 3). `hidden_tokens` is h T, `local_vocab` V or its share.
    """
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
def layer_elements(parts, tp, etp, ep):
    """A quantity of one layer given by part, as one rank holds it."""
    return parts[LINEAR] / tp + parts[OTHER] + parts[EXPERT] / (etp * ep)


@scalar
def resting_terms(out, stage, model, program, case, stack, tp, pp, etp, ep, first, second,
                  shards):  # fmt: skip
    """Fill in what rests on the GPU all step long, what leaves it, and the step's temporaries [bytes].

    Derivation: docs/physics.md section 2; ZeRO 1910.02054 for what each stage shares.
    """
    zero = program.zero_stage
    offload = program.offload
    frozen, frozen_expert = stage_elements(
        case.frozen_bytes, case.group_frozen_bytes, first, second, model.tied, tp, etp, ep, pp,
        stage,
    )  # fmt: skip
    trained, trained_expert = stage_elements(
        case.trained, case.group_trained, first, second, model.tied, tp, etp, ep, pp, stage
    )
    whole = trained + trained_expert
    expert_shards = shards * tp / (etp * ep)
    sharded = trained / shards + trained_expert / expert_shards
    # A stack may leave the adapters of a quantised base, and its scales, whole on every rank.
    if stack.replicates_adapters == 1.0 and program.dequant_bytes > 0.0:
        sharded = whole
    local = whole if zero == 0 else sharded
    weights = program.weight_bytes * whole
    frozen_held = frozen + frozen_expert
    if zero == 3:
        weights = program.shard_weight_bytes * sharded
        frozen_held = frozen / shards + frozen_expert / expert_shards
        if stack.replicates_scales == 1.0:
            stage_share = (first + second) / model.layers
            frozen_held += case.scale_bytes * stage_share / tp * (1.0 - 1.0 / shards)
    out[TRAINED] = whole
    out[GRADIENT_SHARE] = 1.0 / shards if zero >= 2 else 1.0
    out[GRADIENTS] = program.grad_bytes * (sharded if zero >= 2 else whole)
    out[OPTIMIZER] = (program.master_bytes + program.state_bytes) * local
    out[STEP_TEMPORARY] = (
        program.temp_element_bytes * local + program.temp_tensor_bytes * case.largest_trained / tp
    )
    out[OFFLOADED] = 0.0
    if offload != 0:
        out[OFFLOADED] = stack.host_element_bytes * local
        if offload == _PARAMS_CPU:
            out[OFFLOADED] += weights + frozen_held
        elif offload == _PARAMS_NVME:
            out[OFFLOADED] = stack.nvme_buffer_bytes
        if stack.offloads_gradients == 1.0:
            out[GRADIENT_SHARE] = 0.0
            out[GRADIENTS] = 0.0
        out[OPTIMIZER] = 0.0
        out[STEP_TEMPORARY] = 0.0
    if offload >= _PARAMS_CPU:
        weights = 0.0
        frozen_held = 0.0
    out[WEIGHTS] = weights
    out[FROZEN] = frozen_held
    out[RESIDENT] = weights + frozen_held + out[OPTIMIZER]


@scalar
def buffer_terms(out, stage, model, program, case, stack, tp, pp, etp, ep, layers, shards):
    """Fill in what sharding keeps beside the states: buckets, gathered units, one being reduced [bytes].

    Source: torch DDP and DeepSpeed buckets; traced FSDP2 steps (docs/physics.md section 2).
    """
    zero = program.zero_stage
    out[BUCKETS] = 0.0
    out[ROOT_GATHER] = 0.0
    out[LAYER_GATHER] = 0.0
    out[LAYER_REDUCE] = 0.0
    if zero == 0 and shards > 1 and stack.bucket_elements > 0.0:
        out[BUCKETS] = program.grad_bytes * out[TRAINED]
    elif zero == 1 or zero == 2:
        out[BUCKETS] = min(stack.bucket_elements, out[TRAINED]) * 2.0 * stack.bucket_bytes
    elif zero == 3:
        gather = program.gather_bytes
        trained = layer_elements(case.layer_trained, tp, etp, ep)
        root_frozen = root_elements(case.frozen_bytes, model.tied, tp, pp, stage)
        root_trained = root_elements(case.trained, model.tied, tp, pp, stage)
        out[ROOT_GATHER] = stack.root_gather_copies * (root_frozen + gather * root_trained)
        out[LAYER_GATHER] = layer_elements(case.layer_frozen_bytes, tp, etp, ep) + gather * trained
        if stack.live_elements > 0.0:
            # Gathered parameters stay, up to a number of elements, whatever unit they are of.
            everything = out[ROOT_GATHER] + layers * out[LAYER_GATHER]
            live = min(everything, 2.0 * stack.live_elements)
            out[ROOT_GATHER] = max(out[ROOT_GATHER], live)
            out[BUCKETS] = min(stack.bucket_elements, out[TRAINED]) * 2.0 * stack.bucket_bytes
        out[LAYER_REDUCE] = program.reduce_bytes * trained


@scalar
def activation_rest(out, stage, lines, model, program, stack, seq_len, tp, pp, cp, first, second):
    """Fill in what kept activations and the loss head have that does not grow with tokens.

    Source: traced layer forms and loss heads (docs/physics.md section 3).
    """
    vocab = model.vocab
    cached = 0.0
    routed_sets = 0.0
    for group in range(2):
        if (first if group == 0 else second) > 0.0:
            cached += lines[group, CACHED]
            routed_sets = max(routed_sets, lines[group, ROUTED_SETS])
    out[CACHED_BYTES] = cached
    out[SETS_PER_TOKEN] = routed_sets
    out[ROUTED_PER_TOKEN] = first * lines[0, ROUTED] + second * lines[1, ROUTED]
    out[KEPT_PER_TOKEN] = first * lines[0, KEEP_A] + second * lines[1, KEEP_A]
    out[KEPT_FIRST] = first * lines[0, KEEP_B]
    out[KEPT_SECOND] = second * lines[1, KEEP_B]
    out[ROTARY] = program.rotary_bytes * 2.0 * (seq_len / cp) * model.rotary_dim
    out[HEAD_COPY] = 0.0
    out[HEAD_GRADIENT] = 0.0
    out[LOCAL_VOCAB] = vocab / tp if stack.vocab_parallel_loss == 1 else vocab
    if stage == LAST or pp == 1:
        out[HEAD_COPY] = program.head_copy_bytes * model.hidden * vocab / tp
        out[HEAD_GRADIENT] = (
            program.head_trained * program.head_grad_bytes * model.hidden * vocab / tp
        )


@scalar
def activation_terms(out, rest, stage, model, program, case, stack, seq_len, tokens, tp, pp, cp,
                     hidden_tokens):  # fmt: skip
    """Fill in kept activations and what the loss head adds [bytes].

    Source: traced layer forms and loss heads (docs/physics.md section 3). Copies of weights, the
    bytes beside those per token, live through backward only where layers are not recomputed.
    """
    hidden = model.hidden
    per_token = rest[KEPT_PER_TOKEN]
    kept = per_token * tokens + rest[KEPT_FIRST] + rest[KEPT_SECOND]
    out[KEPT] = kept
    out[KEPT_BACKWARD] = kept if program.checkpointed == 0 else per_token * tokens
    out[FIXED] = (
        rest[ROTARY]
        + 32.0 * tokens
        - case.first_layer_saving * tokens
        + case.vision_kept_bytes * tokens * cp / seq_len
        + rest[CACHED_BYTES]
    )
    out[RESIDUAL] = program.residual_bytes * hidden_tokens
    out[WHOLE_HIDDEN] = stack.whole_hidden_bytes * hidden * tokens if tp > 1 else 0.0
    out[LOSS_FORWARD] = 0.0
    out[LOSS_BACKWARD] = 0.0
    if stage == LAST or pp == 1:
        # One more copy of the logits, in the dtype of the arithmetic.
        softcap = model.softcap_bytes * program.activation_bytes / 2.0
        forward, backward = loss_head_bytes(
            program.cross_entropy, tokens, hidden_tokens, hidden, model.vocab, rest[LOCAL_VOCAB],
            program.head_trained, program.hidden_forward, program.hidden_backward,
            program.logit_forward + softcap,
            program.logit_backward + softcap, program.logit_grad,
            program.activation_bytes, rest[HEAD_GRADIENT],
        )  # fmt: skip
        out[LOSS_FORWARD] = forward
        out[LOSS_BACKWARD] = backward


@scalar
def root_rest(out, stage, model, program, case, tp, pp, etp, ep):
    """Fill in the gradients of embedding and head around the layers' backward [bytes].

    Source: traced steps. At stage 3 the root's gradient stays whole until its own backward ends,
    after all layers; a tied embedding meets the gradients of both its uses (docs/physics.md).
    """
    share = program.grad_bytes * out[GRADIENT_SHARE]
    embed = case.trained[EMBED] / tp
    head = 0.0
    if stage == LAST or pp == 1:
        head = case.trained[HEAD] / tp
        if model.tied == 1:
            head += embed
    out[LAYER_GRADIENT_LOCAL] = share * layer_elements(case.layer_trained, tp, etp, ep)
    out[EMBED_GRADIENT] = share * embed if (model.tied == 0 and stage == FIRST) else 0.0
    out[ROOT_OPEN] = 0.0
    out[ROOT_SHARD] = 0.0
    out[ROOT_OWN] = share * head
    gathered = program.gather_bytes
    if program.zero_stage == 3:
        out[ROOT_OPEN] = gathered * head
        out[ROOT_SHARD] = share * head
    end = 0.0
    out[END_PER_HIDDEN] = 0.0
    if embed > 0.0 and stage == FIRST:
        if program.zero_stage == 3:
            root = root_elements(case.trained, model.tied, tp, pp, stage)
            if model.tied == 1:
                both = 2.0 * gathered + max(program.reduce_bytes, 2.0 * gathered)
                end = both * root + out[LAYER_REDUCE]
            else:
                end = (gathered + program.reduce_bytes) * root
            end -= share * root
        elif model.tied == 1:
            end = 2.0 * program.grad_bytes * model.hidden * model.vocab / tp
        else:
            out[END_PER_HIDDEN] = program.activation_bytes
    out[EMBED_END] = end


@scalar
def held_terms(out, program, stack, hidden_tokens, layers, one_layer):
    """Fill in what finished layers still hold when backward reaches the first [bytes].

    Source: FSDP1 hooks the inputs of a unit with frozen weights, and under reentrant checkpointing
    that keeps each finished layer's input and its gradient until backward ends (PHYSICS, FSDP1).
    """
    out[HELD] = 0.0
    frozen = program.layers_trained == 0.0
    if program.zero_stage == 3 and frozen and program.checkpointed == 1:
        finished = max(0.0, layers - 2.0)
        gradients = 2.0 * hidden_tokens * finished
        held = max(0.0, out[KEPT_BACKWARD] - one_layer) + gradients
        out[HELD] = stack.holds_finished_layers * held


@scalar
def buffers_rest(out, stack):
    """Fill in the buffers that are there while the loss runs and while a layer runs backward [bytes].

    A layer's own gradient is in its working set; the stack says how many layers are gathered.
    """
    buffers = out[BUCKETS] + out[ROOT_GATHER]
    gathered = stack.backward_gathered_layers * out[LAYER_GATHER]
    reduced = stack.reduced_layers * out[LAYER_REDUCE]
    out[LOSS_BUFFER] = buffers + stack.loss_gathered_layers * out[LAYER_GATHER]
    out[LAYER_BUFFER] = buffers + gathered + reduced
    out[P_STEP] = out[RESIDENT] + out[GRADIENTS] + out[STEP_TEMPORARY]


@scalar
def phase_terms(out, rest, stage, program, stack, accumulation, pp, hidden_tokens, work, one_layer):
    """Fill in the bytes of each phase of the step, and their peak [bytes].

    Derivation: docs/physics.md section 3: nothing is summed that does not coexist.
    """
    gradients = rest[GRADIENTS]
    # Gradients of earlier micro-batches are there from the start, as are those of a pool of their own.
    kept_gradients = accumulation > 1 or stack.keeps_gradients == 1.0
    resting = rest[RESIDENT] + (gradients if kept_gradients else 0.0)
    during = 0.0 if kept_gradients else gradients
    in_flight = 1.0
    if stage != LAST and pp > 1:
        in_flight = min(accumulation, pp if stage == FIRST else pp - 1.0)
    root_gradient = 0.0 if kept_gradients else rest[ROOT_OWN]
    if program.zero_stage == 3:
        root_gradient = rest[ROOT_OPEN]
    out[ROOT_GRADIENT] = root_gradient
    kept = out[KEPT_BACKWARD]
    layers = resting + rest[LAYER_BUFFER] + out[FIXED] + out[RESIDUAL] + work
    layers += stack.keeps_head_copy * rest[HEAD_COPY]
    forward = 0.0
    in_loss = 0.0
    if stage == LAST or pp == 1:
        loss = resting + rest[LOSS_BUFFER] + out[FIXED] + rest[HEAD_COPY] + out[WHOLE_HIDDEN]
        forward = loss + out[KEPT] + out[LOSS_FORWARD]
        in_loss = loss + kept + out[LOSS_BACKWARD]
    below = rest[LAYER_GRADIENT_LOCAL] + rest[EMBED_GRADIENT] + rest[ROOT_SHARD]
    above = max(0.0, during - below) + rest[ROOT_OPEN]
    top = layers + in_flight * kept + root_gradient
    bottom = layers + above + (in_flight - 1.0) * kept + one_layer + out[HELD]
    embed_end = rest[EMBED_END] + rest[END_PER_HIDDEN] * hidden_tokens
    end = resting + during + embed_end if stage == FIRST else 0.0
    out[P_FORWARD] = forward
    out[P_LOSS] = in_loss
    out[P_TOP] = top
    out[P_BOTTOM] = bottom
    out[P_END] = end
    out[EMBED_END] = embed_end
    out[ALLOCATED] = max(
        max(max(0.0, forward), max(in_loss, top)), max(max(bottom, end), rest[P_STEP])
    )
    out[IN_FLIGHT] = in_flight
    out[WORK] = work
    out[ONE_LAYER] = one_layer


@scalar
def stage_device(allocated, room, program, stack, several):
    """What the device must hold: context, communicators, and blocks that cannot be given back [bytes].

    The allocated peak counts at the high end of its band; `room` is what the busiest rank of experts
    may hold above the mean.
    Source: which runs ended out of memory and which just fitted on A100s (stack_constants.csv).
    """
    high = allocated * program.memory_high + room
    if several:
        return high * (1.0 + stack.fragmentation_multi) + stack.context_bytes + stack.comm_bytes
    return high * (1.0 + stack.fragmentation_single) + stack.context_bytes


@scalar
def stage_rest(out, stage, lines, model, program, case, stack, seq_len, tp, pp, cp, ep, shards):
    """Fill in what a pipeline stage holds whatever the micro-batch, and what formulas of tokens share.

    Derivation: docs/physics.md sections 2 and 3.
    """
    first, second = stage_layers(model, pp, stage)
    etp = expert_split(tp, ep, shards)
    out[FIRST_LAYERS] = first
    out[SECOND_LAYERS] = second
    resting_terms(out, stage, model, program, case, stack, tp, pp, etp, ep, first, second, shards)
    buffer_terms(out, stage, model, program, case, stack, tp, pp, etp, ep, first + second, shards)
    activation_rest(out, stage, lines, model, program, stack, seq_len, tp, pp, cp, first, second)
    root_rest(out, stage, model, program, case, tp, pp, etp, ep)
    buffers_rest(out, stack)


@scalar
def stage_tokens(out, rest, stage, lines, model, program, case, stack, seq_len, tokens, accumulation,
                 tp, pp, cp, ep, sequence_parallel, several):  # fmt: skip
    """Fill in what a stage holds at a micro-batch, from what `stage_rest` left in `rest` (or in out).

    Derivation: docs/physics.md sections 3 and 4.
    """
    first = rest[FIRST_LAYERS]
    second = rest[SECOND_LAYERS]
    work = 0.0
    one_layer = 0.0
    for group in range(2):
        if (first if group == 0 else second) > 0.0:
            kept = lines[group, KEEP_A] * tokens
            if program.checkpointed == 0:
                kept += lines[group, KEEP_B]
            one_layer = max(one_layer, kept)
            begin = int(lines[0, SETS_END]) if group == 1 else 2
            for row in range(begin, int(lines[group, SETS_END])):
                work = max(work, lines[row, 0] * tokens + lines[row, 1])
    hidden_tokens = model.hidden * tokens / (tp if sequence_parallel == 1 else 1)
    activation_terms(
        out, rest, stage, model, program, case, stack, seq_len, tokens, tp, pp, cp, hidden_tokens
    )
    held_terms(out, program, stack, hidden_tokens, first + second, one_layer)
    phase_terms(out, rest, stage, program, stack, accumulation, pp, hidden_tokens, work, one_layer)
    out[STAGE] = stage
    out[EXPERT_ROOM] = 0.0
    if ep > 1:
        routed = out[IN_FLIGHT] * rest[ROUTED_PER_TOKEN]
        out[EXPERT_ROOM] = (stack.moe_imbalance - 1.0) * tokens * (routed + rest[SETS_PER_TOKEN])
    out[DEVICE] = stage_device(out[ALLOCATED], out[EXPERT_ROOM], program, stack, several)


@scalar
def stage_bytes(out, stage, lines, model, program, case, stack, seq_len, tokens, accumulation,
                tp, pp, cp, ep, sequence_parallel, shards, several):  # fmt: skip
    """Fill in one pipeline stage: residents, buffers, activations, phases, allocated and device.

    `lines` are those of `layer_lines`. Derivation: docs/physics.md sections 2 to 4.
    """
    stage_rest(out, stage, lines, model, program, case, stack, seq_len, tp, pp, cp, ep, shards)
    stage_tokens(
        out, out, stage, lines, model, program, case, stack, seq_len, tokens, accumulation, tp, pp,
        cp, ep, sequence_parallel, several,
    )  # fmt: skip
