"""The lightest checkpointing that fits: what a run must have used when its source does not say."""

from __future__ import annotations

from sweep.catalogs.hardware import Gpu
from sweep.scenario import Scenario

# Share of the usable memory that tuned runs fill.
_FILLED = 0.93
# Activations of a layer under 8-bit matmuls against 16-bit ones: the operands they keep are halved.
_NARROW_SHARE = 0.7
# Selective recomputation (norms, activations) brings a tuned Megatron run down to this share.
_SELECTIVE_SHARE = 1.6


def lightest_checkpointing(
    scenario: Scenario, gpu: Gpu, virtual_stages: float, narrow: bool
) -> str:
    """none or full: whether what the layers keep fits beside weights, gradients and states.

    Source: fused layers keep 8 h + 4 (hq + hkv) + 6 f bytes a token (docs/physics.md section 2); 18
    bytes a parameter with a sharded optimizer, 16 sharded throughout.
    """
    counts, program, layout = scenario.shape.counts, scenario.program, scenario.layout
    model = scenario.shape.model
    experts = float(
        sum(
            group.group.count * linear.weight_elements
            for group in scenario.shape.groups
            for linear in group.group.linears
            if linear.role == "expert"
        )
    )
    split = layout.tp * layout.pp
    rank = (counts.total - experts) / split + experts / (split * layout.ep)
    shards = scenario.dp * layout.cp
    if program.method != "full":
        states = (1.0 if narrow else 2.0) * rank / (shards if program.zero_stage == 3 else 1)
    elif program.zero_stage == 3:
        states = 16.0 * rank / shards
    else:
        states = 6.0 * rank + 12.0 * rank / shards
    kept = 0.0
    for group in scenario.shape.groups:
        values = group.values
        width = values["f"] + values["fs"] + values["k"] * values["fe"]
        kept += group.group.count * (
            8.0 * values["h"]
            + 4.0 * (values["hq"] + values["hkv"])
            + 6.0 * width
            + 4.0 * values["k"] * values["h"]
        )
    tokens = scenario.micro_batch * scenario.seq_len / layout.cp
    in_flight = 1.0
    if layout.pp > 1:
        accumulation = scenario.global_batch / (scenario.micro_batch * scenario.dp)
        in_flight = min(accumulation, layout.pp)
        if accumulation >= layout.pp:
            in_flight *= 1.0 + (layout.pp - 1.0) / (layout.pp * virtual_stages)
    divided = layout.tp if layout.sequence_parallel else 1
    share = _NARROW_SHARE if narrow else 1.0
    activations = share * tokens * kept / layout.pp / divided * in_flight
    logits = 4.0 * tokens * model.vocab_size / layout.tp
    limit = _FILLED * gpu.usable_bytes / gpu.logical_devices
    if program.stack == "megatron":
        limit *= _SELECTIVE_SHARE
    return "none" if states + activations + logits <= limit else "full"
