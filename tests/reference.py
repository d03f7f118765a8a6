"""The engine's definition (docs/physics.md) in plain Python: slow, scalar, independent of `sweep`.

The functions stand in the order of that page and carry its names. A scenario is a nested dict of
the page's quantities (SI); `evaluate` decides one, `layouts` lists the valid ones, `best` tunes
the knobs.
"""

# Scenarios are nested dicts of numbers.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Scenario = dict[str, Any]
Form = Mapping[str, float]

REPLICATED = frozenset({"h", "k", "r", "s", "d", "dn", "dr", "dv", "rq", "rkv", "E"})
DIVIDED_BY_TP = frozenset({"hq", "nq", "f", "fe", "fs"})
KEY_VALUE = frozenset({"hkv", "nkv"})
# Dtypes of fewer than 16 bits that matmuls can be computed in.
NARROW = frozenset({"fp8", "fp4"})


# -- 1. inputs ---------------------------------------------------------------------------------


def name_value(
    name: str, feature: str, values: Mapping[str, float], knobs: Mapping[str, Any]
) -> float:
    """What one name of a feature stands for on one GPU."""
    if name == "1":
        return 1.0
    if name == "s":
        return values.get("s", knobs["seq_len"])
    if name == "E":
        return values["E"] if is_token_feature(feature) else values["E"] / knobs["ep"]
    if name in DIVIDED_BY_TP:
        return values[name] / knobs["tp"]
    if name in KEY_VALUE:
        return values[name] / min(knobs["tp"], values["nkv"])
    return values[name]


def is_token_feature(feature: str) -> bool:
    return feature.split("*")[0] == "T"


def feature_value(feature: str, values: Mapping[str, float], knobs: Mapping[str, Any]) -> float:
    """A feature on one GPU; a token feature per token."""
    names = [name for name in feature.split("*") if name != "T"]
    value = math.prod(name_value(name, feature, values, knobs) for name in names)
    if feature == "T*k*hw":
        # At the experts, tokens are gathered over the ranks that split one.
        return value * expert_split(knobs) / knobs["tp"]
    replicated = is_token_feature(feature) and REPLICATED.issuperset(names)
    return value / knobs["tp"] if replicated and knobs["sequence_parallel"] else value


class Line(NamedTuple):
    """a T + b."""

    a: float
    b: float

    def at(self, tokens: float) -> float:
        return self.a * tokens + self.b


def line(form: Form, values: Mapping[str, float], knobs: Mapping[str, Any]) -> Line:
    """A form as bytes per token and bytes."""
    a = b = 0.0
    for feature, coefficient in form.items():
        amount = coefficient * feature_value(feature, values, knobs)
        if is_token_feature(feature):
            a += amount
        else:
            b += amount
    return Line(a, b)


def tokens(sc: Scenario) -> float:
    """T, the tokens of one micro-batch on one GPU."""
    k = sc["knobs"]
    return k["micro_batch"] * k["seq_len"] / k["cp"]


def expert_split(knobs: Mapping[str, Any]) -> int:
    """Tensor-parallel ranks that split one expert."""
    divides = (knobs["dp"] * knobs["cp"]) % knobs["ep"] == 0
    return int(knobs["tp"]) if divides else 1


def shards(sc: Scenario) -> int:
    """w, the GPUs that share one rank's parameters outside the experts."""
    return int(sc["knobs"]["dp"] * sc["knobs"]["cp"])


def expert_shards(sc: Scenario) -> float:
    """w_e."""
    k = sc["knobs"]
    return shards(sc) * k["tp"] / (expert_split(k) * k["ep"])


def accumulation(sc: Scenario) -> float:
    """m, the micro-batches of one step."""
    k = sc["knobs"]
    return k["global_batch"] / (k["micro_batch"] * k["dp"])


# -- 2. division over GPUs -----------------------------------------------------------------------


class Stage(NamedTuple):
    """One pipeline stage before sharding: n_g, F, Fe, t, te of the page, and its gathered root."""

    name: str
    first: bool
    last: bool
    layers: tuple[float, ...]
    frozen: float
    frozen_expert: float
    trained: float
    trained_expert: float
    root_gather: float


def stage_share(sc: Scenario) -> float:
    layers, pp = sc["model"]["layers"], sc["knobs"]["pp"]
    return math.ceil(layers / pp) / layers


def layers_of_stage(sc: Scenario, name: str) -> tuple[float, ...]:
    """n_g, the layers of each group on a stage: the layers in their order, counted one by one."""
    groups, pp = sc["model"]["groups"], sc["knobs"]["pp"]
    counts = tuple(float(group["count"]) for group in groups)
    if pp == 1:
        return counts
    if len(groups) == 1 or sc["model"]["interleaved"]:
        return tuple(count * stage_share(sc) for count in counts)
    order = [0] * groups[0]["count"] + [1] * groups[1]["count"]
    each = math.ceil(sc["model"]["layers"] / pp)
    begin = {"first": 0, "second": each, "last": len(order) - each}[name]
    held = (order + [1] * each)[begin : begin + each]
    return float(held.count(0)), float(held.count(1))


def layer_part(sc: Scenario, group: Mapping[str, Any], part: str, quantity: str) -> float:
    """A part of one layer of a group; of a model with one group, an equal share of all layers."""
    if "parts" in group:
        return float(group["parts"][part][quantity])
    return float(sc["model"]["parts"][part][quantity]) / group["count"]


def layers_outside_experts(sc: Scenario, quantity: str, layers: Sequence[float]) -> float:
    """linear_rank + other_rank, in frozen bytes or trained elements."""
    total = 0.0
    for n, group in zip(layers, sc["model"]["groups"], strict=True):
        total += n * layer_part(sc, group, "linear", quantity) / sc["knobs"]["tp"]
        total += n * layer_part(sc, group, "other", quantity)
    return total


def experts_of_rank(sc: Scenario, quantity: str, layers: Sequence[float]) -> float:
    k, groups = sc["knobs"], sc["model"]["groups"]
    held = (
        n * layer_part(sc, group, "expert", quantity)
        for n, group in zip(layers, groups, strict=True)
    )
    return sum(held) / (expert_split(k) * k["ep"])


def root_of_stage(sc: Scenario, quantity: str, first: bool, last: bool) -> float:
    """Embedding, head and vision tower of a stage, in frozen bytes or trained elements."""
    parts, k = sc["model"]["parts"], sc["knobs"]
    amount = 0.0
    if first:
        amount += parts["embed"][quantity] / k["tp"] + parts["vision"][quantity]
    if last:
        amount += parts["head"][quantity] / k["tp"]
        if sc["model"]["tied"] and k["pp"] > 1:
            amount += parts["embed"][quantity] / k["tp"]
    return amount


def stage(
    sc: Scenario, name: str, first: bool, last: bool, layers: tuple[float, ...] | None = None
) -> Stage:
    layers = layers_of_stage(sc, name) if layers is None else layers
    root_frozen = root_of_stage(sc, "frozen_bytes", first, last)
    root_trained = root_of_stage(sc, "trained", first, last)
    return Stage(
        name=name,
        first=first,
        last=last,
        layers=layers,
        frozen=layers_outside_experts(sc, "frozen_bytes", layers) + root_frozen,
        frozen_expert=experts_of_rank(sc, "frozen_bytes", layers),
        trained=layers_outside_experts(sc, "trained", layers) + root_trained,
        trained_expert=experts_of_rank(sc, "trained", layers),
        root_gather=root_frozen + sc["rule"]["gather_bytes"] * root_trained,
    )


def stages(sc: Scenario) -> list[Stage]:
    """The stages that are evaluated: the only one, or the first, the last and maybe the second."""
    if sc["knobs"]["pp"] == 1:
        return [stage(sc, "only", True, True)]
    ends = [stage(sc, "first", True, False), stage(sc, "last", False, True)]
    apart = len(sc["model"]["groups"]) > 1 and not sc["model"]["interleaved"]
    if sc["knobs"]["pp"] > 2 and apart:
        return [*ends, stage(sc, "second", False, False)]
    return ends


def mean_stage(sc: Scenario) -> Stage:
    """The first stage with layers of the mean kind, as full as the fullest: the time model moves it."""
    layers = tuple(group["count"] * fullest_share(sc) for group in sc["model"]["groups"])
    return stage(sc, "mean", True, sc["knobs"]["pp"] == 1, layers)


def replicates_adapters(sc: Scenario) -> bool:
    """Whether the adapters of a quantised base stay whole at stage 3."""
    return bool(sc["stack"]["replicates_adapters"]) and sc["rule"]["dequant_bytes"] > 0


def sharded_elements(sc: Scenario, st: Stage) -> float:
    if replicates_adapters(sc):
        return whole_elements(st)
    return st.trained / shards(sc) + st.trained_expert / expert_shards(sc)


def whole_elements(st: Stage) -> float:
    return st.trained + st.trained_expert


def weights(sc: Scenario, st: Stage) -> float:
    if sc["knobs"]["zero_stage"] == 3:
        return sc["rule"]["shard_weight_bytes"] * sharded_elements(sc, st)
    return sc["rule"]["weight_bytes"] * whole_elements(st)


def frozen(sc: Scenario, st: Stage) -> float:
    if sc["knobs"]["zero_stage"] == 3:
        held = st.frozen / shards(sc) + st.frozen_expert / expert_shards(sc)
        if sc["stack"]["replicates_scales"]:
            share = sum(st.layers) / sc["model"]["layers"]
            scales = sc["model"]["scale_bytes"] * share / sc["knobs"]["tp"]
            held += scales * (1 - 1 / shards(sc))
        return held
    return st.frozen + st.frozen_expert


def local_elements(sc: Scenario, st: Stage) -> float:
    """n_local, the elements this GPU's optimizer steps."""
    if sc["knobs"]["zero_stage"] == 0:
        return whole_elements(st)
    return sharded_elements(sc, st)


def optim(sc: Scenario, st: Stage) -> float:
    rule = sc["rule"]
    return (rule["master_bytes"] + rule["state_bytes"]) * local_elements(sc, st)


def grads(sc: Scenario, st: Stage) -> float:
    elements = sharded_elements(sc, st) if sc["knobs"]["zero_stage"] >= 2 else whole_elements(st)
    return sc["rule"]["grad_bytes"] * elements


def optimizer_offloaded(sc: Scenario) -> bool:
    return sc["knobs"]["offload"] != "none"


def params_offloaded(sc: Scenario) -> bool:
    return sc["knobs"]["offload"] in ("params-cpu", "params-nvme")


def resident(sc: Scenario, st: Stage) -> float:
    held = 0.0
    if not params_offloaded(sc):
        held += weights(sc, st) + frozen(sc, st)
    if not optimizer_offloaded(sc):
        held += optim(sc, st)
    return held


def gradients_offloaded(sc: Scenario) -> bool:
    return optimizer_offloaded(sc) and bool(sc["stack"]["offloads_gradients"])


def resident_grads(sc: Scenario, st: Stage) -> float:
    """G."""
    return 0.0 if gradients_offloaded(sc) else grads(sc, st)


def layer_trained_rank(sc: Scenario) -> float:
    layer, k = sc["model"]["layer"], sc["knobs"]
    return (
        layer["trained_linear"] / k["tp"]
        + layer["trained_other"]
        + layer["trained_expert"] / (expert_split(k) * k["ep"])
    )


def buckets(sc: Scenario, st: Stage) -> float:
    zero = sc["knobs"]["zero_stage"]
    if zero == 0 and shards(sc) > 1 and sc["stack"]["bucket_elements"] > 0:
        return sc["rule"]["grad_bytes"] * whole_elements(st)
    if zero in (1, 2) or (zero == 3 and sc["stack"]["live_elements"] > 0):
        elements = min(sc["stack"]["bucket_elements"], whole_elements(st))
        return elements * 2 * sc["stack"]["bucket_bytes"]
    return 0.0


def root_gather(sc: Scenario, st: Stage) -> float:
    if sc["knobs"]["zero_stage"] != 3:
        return 0.0
    live = 2 * sc["stack"]["live_elements"]
    everything = st.root_gather + sum(st.layers) * layer_gather(sc)
    return max(sc["stack"]["root_gather_copies"] * st.root_gather, min(everything, live))


def layer_gather(sc: Scenario) -> float:
    """The largest layer, gathered."""
    if sc["knobs"]["zero_stage"] != 3:
        return 0.0
    layer, k, gather_bytes = sc["model"]["layer"], sc["knobs"], sc["rule"]["gather_bytes"]
    linear, other, expert = (
        layer[f"frozen_{part}_bytes"] + gather_bytes * layer[f"trained_{part}"]
        for part in ("linear", "other", "expert")
    )
    return linear / k["tp"] + other + expert / (expert_split(k) * k["ep"])


def layer_reduce(sc: Scenario) -> float:
    """The reduce-scatter input: a zero 3 term like the gathers beside it."""
    if sc["knobs"]["zero_stage"] != 3:
        return 0.0
    return sc["rule"]["reduce_bytes"] * layer_trained_rank(sc)


def loss_buffer(sc: Scenario, st: Stage) -> float:
    layers = sc["stack"]["loss_gathered_layers"] * layer_gather(sc)
    return buckets(sc, st) + root_gather(sc, st) + layers


def layer_buffer(sc: Scenario, st: Stage) -> float:
    stack = sc["stack"]
    layers = stack["backward_gathered_layers"] * layer_gather(sc)
    reduced = stack["reduced_layers"] * layer_reduce(sc)
    return buckets(sc, st) + root_gather(sc, st) + layers + reduced


# -- 3. the step as a timeline -------------------------------------------------------------------


def keep_lines(sc: Scenario, st: Stage, prime: bool) -> list[tuple[float, Line]]:
    """The layers and keep line of each group on a stage; `prime` drops b if recomputed (kb')."""
    lines = []
    for n, group in zip(st.layers, sc["model"]["groups"], strict=True):
        kept = line(group["keep"], group["values"], sc["knobs"])
        if prime and sc["rule"]["checkpointing"] != "none":
            kept = Line(kept.a, 0.0)
        lines.append((n, kept))
    return lines


def keep(sc: Scenario, st: Stage, prime: bool) -> float:
    """keep, or keep' when `prime`."""
    return sum(n * kept.at(tokens(sc)) for n, kept in keep_lines(sc, st, prime))


def one_layer(sc: Scenario, st: Stage) -> float:
    return max(kept.at(tokens(sc)) for n, kept in keep_lines(sc, st, prime=True) if n)


def groups_of_stage(sc: Scenario, st: Stage) -> list[Mapping[str, Any]]:
    return [group for n, group in zip(st.layers, sc["model"]["groups"], strict=True) if n]


def working_set(sc: Scenario, st: Stage) -> float:
    """W(T)."""
    return max(
        line(form, group["values"], sc["knobs"]).at(tokens(sc))
        for group in groups_of_stage(sc, st)
        for form in group["backward"]
    )


def cached(sc: Scenario, st: Stage) -> float:
    """Bytes that a stage holds all step long for each kind of layer it has."""
    found = groups_of_stage(sc, st)
    return sum(line(g.get("cached", {}), g["values"], sc["knobs"]).b for g in found)


def hidden_tokens(sc: Scenario) -> float:
    """hT, elements of one hidden state."""
    k = sc["knobs"]
    elements = sc["model"]["hidden_size"] * tokens(sc)
    return elements / k["tp"] if k["sequence_parallel"] else elements


def fixed(sc: Scenario, st: Stage) -> float:
    rule, k = sc["rule"], sc["knobs"]
    rotary = rule["rotary_bytes"] * 2 * (k["seq_len"] / k["cp"]) * sc["model"]["rotary_dim"]
    images = sc["model"]["vision_kept_bytes"] * tokens(sc) * k["cp"] / k["seq_len"]
    return rotary + (32 - rule["first_layer_saving"]) * tokens(sc) + images + cached(sc, st)


def softcap_bytes(sc: Scenario) -> float:
    """One more copy of soft-capped logits, in the dtype of the arithmetic."""
    return sc["model"]["softcap_bytes"] * sc["rule"]["activation_bytes"] / 2


def local_vocab(sc: Scenario) -> float:
    """V'."""
    vocab = sc["model"]["vocab_size"]
    return vocab / sc["knobs"]["tp"] if sc["stack"]["vocab_parallel_loss"] else vocab


def head_elements(sc: Scenario) -> float:
    """h V / tp."""
    return sc["model"]["hidden_size"] * sc["model"]["vocab_size"] / sc["knobs"]["tp"]


def head_copy(sc: Scenario) -> float:
    return sc["rule"]["head_copy_bytes"] * head_elements(sc)


def inflight(sc: Scenario, st: Stage) -> float:
    pp = sc["knobs"]["pp"]
    if st.last:
        return 1
    return min(accumulation(sc), pp if st.first else pp - 1)


def grads_before(sc: Scenario, st: Stage) -> float:
    return resident_grads(sc, st) if gradients_stay(sc) else 0.0


def gradients_stay(sc: Scenario) -> bool:
    """Whether gradients are there from the start of a micro-batch."""
    return accumulation(sc) > 1 or bool(sc["stack"]["keeps_gradients"])


def grads_during(sc: Scenario, st: Stage) -> float:
    return 0.0 if gradients_stay(sc) else resident_grads(sc, st)


def next_pow2(number: int) -> int:
    power = 1
    while power < number:
        power *= 2
    return power


def chunk_rows(sc: Scenario) -> float:
    """C, the rows of logits a fused linear cross-entropy holds at a time."""
    ratio = math.ceil(sc["model"]["vocab_size"] / sc["model"]["hidden_size"])
    return min(tokens(sc), next_pow2(math.ceil(tokens(sc) / ratio)))


def fused_linear_loss(sc: Scenario) -> float:
    rule = sc["rule"]
    held = (rule["hidden_forward"] + rule["activation_bytes"]) * hidden_tokens(sc)
    held += 8 * chunk_rows(sc) * local_vocab(sc)
    if rule["head_trained"]:
        held += rule["head_grad_bytes"] * head_elements(sc)
    return held


def loss_forward(sc: Scenario) -> float:
    rule = sc["rule"]
    if rule["cross_entropy"] == "fused-linear":
        return fused_linear_loss(sc)
    logits = local_vocab(sc) * tokens(sc)
    return (
        rule["hidden_forward"] * hidden_tokens(sc)
        + (rule["logit_forward"] + softcap_bytes(sc)) * logits
    )


def loss_backward(sc: Scenario) -> float:
    rule = sc["rule"]
    if rule["cross_entropy"] == "fused-linear":
        return fused_linear_loss(sc)
    logits = local_vocab(sc) * tokens(sc)
    through_head = 0.0
    if rule["head_trained"]:
        through_head = (
            rule["logit_grad"] * logits
            + rule["activation_bytes"] * hidden_tokens(sc)
            + rule["head_grad_bytes"] * head_elements(sc)
        )
    held = max((rule["logit_backward"] + softcap_bytes(sc)) * logits, through_head)
    return rule["hidden_backward"] * hidden_tokens(sc) + held


def grad_division(sc: Scenario) -> int:
    return shards(sc) if sc["knobs"]["zero_stage"] >= 2 else 1


def layer_grad_local(sc: Scenario) -> float:
    if gradients_offloaded(sc):
        return 0.0
    return sc["rule"]["grad_bytes"] * layer_trained_rank(sc) / grad_division(sc)


def embed_grad(sc: Scenario, st: Stage) -> float:
    if sc["model"]["tied"] or not st.first or gradients_offloaded(sc):
        return 0.0
    trained = sc["model"]["parts"]["embed"]["trained"] / sc["knobs"]["tp"]
    return sc["rule"]["grad_bytes"] * trained / grad_division(sc)


def head_trained_rank(sc: Scenario, st: Stage) -> float:
    """Trained elements of the head (the embedding, if tied) on the stage with the loss."""
    if not st.last:
        return 0.0
    parts = sc["model"]["parts"]
    trained = parts["head"]["trained"]
    if sc["model"]["tied"]:
        trained += parts["embed"]["trained"]
    elements: float = trained / sc["knobs"]["tp"]
    return elements


def root_open(sc: Scenario, st: Stage) -> float:
    """The root's unsharded gradient at stage 3: there until all layers are done."""
    if sc["knobs"]["zero_stage"] != 3:
        return 0.0
    return sc["rule"]["gather_bytes"] * head_trained_rank(sc, st)


def root_shard(sc: Scenario, st: Stage) -> float:
    if sc["knobs"]["zero_stage"] != 3 or gradients_offloaded(sc):
        return 0.0
    return sc["rule"]["grad_bytes"] * head_trained_rank(sc, st) / shards(sc)


def root_grad(sc: Scenario, st: Stage) -> float:
    """Gradients the head has left when the layers' backward begins."""
    if sc["knobs"]["zero_stage"] == 3:
        return root_open(sc, st)
    if gradients_stay(sc) or gradients_offloaded(sc):
        return 0.0
    return sc["rule"]["grad_bytes"] * head_trained_rank(sc, st) / grad_division(sc)


def embed_end(sc: Scenario, st: Stage) -> float:
    if not sc["model"]["parts"]["embed"]["trained"]:
        return 0.0
    rule, tied = sc["rule"], sc["model"]["tied"]
    if sc["knobs"]["zero_stage"] == 3:
        elements = root_of_stage(sc, "trained", st.first, st.last)
        gather, reduce = rule["gather_bytes"], rule["reduce_bytes"]
        if tied:
            held = (2 * gather + max(reduce, 2 * gather)) * elements + layer_reduce(sc)
        else:
            held = (gather + reduce) * elements
        sharded = 0.0 if gradients_offloaded(sc) else rule["grad_bytes"] * elements / shards(sc)
        return held - sharded
    if tied:
        return 2 * rule["grad_bytes"] * head_elements(sc)
    return rule["activation_bytes"] * hidden_tokens(sc)


def step_temporaries(sc: Scenario, st: Stage) -> float:
    if optimizer_offloaded(sc):
        return 0.0
    rule = sc["rule"]
    tensor = rule["temp_tensor_bytes"] * sc["model"]["largest_trained"] / sc["knobs"]["tp"]
    return rule["temp_element_bytes"] * local_elements(sc, st) + tensor


def held_by_finished(sc: Scenario, st: Stage) -> float:
    """`held`: inputs and their gradients that FSDP1's hooks on frozen units keep."""
    rule = sc["rule"]
    frozen_layers = not rule["layers_trained"]
    checkpointed = rule["checkpointing"] != "none"
    if sc["knobs"]["zero_stage"] != 3 or not (frozen_layers and checkpointed):
        return 0.0
    layers = max(0.0, sum(st.layers) - 2)
    inputs = max(0.0, keep(sc, st, prime=True) - one_layer(sc, st))
    return sc["stack"]["holds_finished_layers"] * (inputs + 2 * hidden_tokens(sc) * layers)


def phases(sc: Scenario, st: Stage) -> dict[str, float]:
    """The allocated bytes of each phase that a stage goes through."""
    held = resident(sc, st) + grads_before(sc, st)
    at_loss = held + loss_buffer(sc, st) + fixed(sc, st) + head_copy(sc)
    if sc["knobs"]["tp"] > 1:
        whole = sc["model"]["hidden_size"] * tokens(sc)
        at_loss += sc["stack"]["whole_hidden_bytes"] * whole
    at_layers = held + layer_buffer(sc, st) + fixed(sc, st) + working_set(sc, st)
    if st.last:
        at_layers += sc["stack"]["keeps_head_copy"] * head_copy(sc)
    at_layers += sc["rule"]["residual_bytes"] * hidden_tokens(sc)
    in_flight, kept = inflight(sc, st), keep(sc, st, prime=True)
    finished = grads_during(sc, st) - layer_grad_local(sc) - embed_grad(sc, st)
    finished = max(0.0, finished - root_shard(sc, st)) + root_open(sc, st)

    bytes_of = {}
    if st.last:
        bytes_of["forward"] = at_loss + keep(sc, st, prime=False) + loss_forward(sc)
        bytes_of["loss"] = at_loss + kept + loss_backward(sc)
    bytes_of["top"] = at_layers + in_flight * kept + root_grad(sc, st)
    bytes_of["bottom"] = at_layers + finished + (in_flight - 1) * kept + one_layer(sc, st)
    bytes_of["bottom"] += held_by_finished(sc, st)
    if st.first:
        bytes_of["end"] = held + grads_during(sc, st) + embed_end(sc, st)
    bytes_of["step"] = resident(sc, st) + resident_grads(sc, st) + step_temporaries(sc, st)
    return bytes_of


ROUTED = ("T*k*fe", "T*k*h", "T*k*hw")


def expert_room(sc: Scenario, st: Stage) -> float:
    """Routed activations that the busiest expert-parallel rank holds above the mean."""
    if sc["knobs"]["ep"] == 1:
        return 0.0

    def routed(form: Form, group: Mapping[str, Any]) -> float:
        part = {feature: form[feature] for feature in form if feature in ROUTED}
        return line(part, group["values"], sc["knobs"]).at(tokens(sc))

    groups = sc["model"]["groups"]
    kept = sum(n * routed(g["keep"], g) for n, g in zip(st.layers, groups, strict=True))
    here = groups_of_stage(sc, st)
    sets = max(0.0, *(routed(form, g) for g in here for form in g["backward"]), 0.0)
    return (sc["stack"]["moe_imbalance"] - 1) * (inflight(sc, st) * kept + sets)


def device_bytes(sc: Scenario, st: Stage) -> float:
    """What the device must hold for one stage."""
    stack, several = sc["stack"], sc["setup"]["gpus"] > 1
    peak = max(phases(sc, st).values())
    fragmentation = stack["fragmentation_multi" if several else "fragmentation_single"]
    comm = stack["comm_bytes"] if several else 0.0
    highest = peak * sc["rule"]["memory_high"] + expert_room(sc, st)
    return highest * (1 + fragmentation) + stack["context_bytes"] + comm


def allowed_device_bytes(sc: Scenario) -> float:
    return sc["setup"]["usable_bytes"] * (1 - sc["setup"]["memory_headroom"])


# -- 4. host -------------------------------------------------------------------------------------


def offloaded(sc: Scenario, st: Stage) -> float:
    """Host bytes one GPU's offload takes."""
    offload = sc["knobs"]["offload"]
    if offload == "none":
        return 0.0
    if offload == "params-nvme":
        return sc["stack"]["nvme_buffer_bytes"]
    states = sc["rule"]["host_element_bytes"] * local_elements(sc, st)
    if offload == "params-cpu":
        states += weights(sc, st) + frozen(sc, st)
    return states


def host_bytes(sc: Scenario) -> float:
    """Per node; the stage that offloads more counts for every GPU."""
    each = sc["stack"]["process_bytes"] + max(offloaded(sc, st) for st in stages(sc))
    return sc["setup"]["gpus_per_node"] * each


# -- 5. time of one step -------------------------------------------------------------------------


def over(amount: float, rate: float) -> float:
    """Seconds for an amount at a rate: nothing takes none, and what has no rate never ends."""
    if amount == 0:
        return 0.0
    return amount / rate if rate > 0 else math.inf


def over_groups(sc: Scenario, quantity: Callable[[Mapping[str, Any]], float]) -> float:
    """sum_g count_g quantity(group)."""
    return sum(g["count"] * quantity(g) for g in sc["model"]["groups"])


def virtual_stages(sc: Scenario) -> float:
    """v, the chunks of layers that a pipeline stage holds."""
    return sc["stack"]["virtual_stages"] if sc["knobs"]["pp"] > 1 else 1


def fullest_share(sc: Scenario) -> float:
    """L_s, the layers of the fullest stage over all layers: chunks are cut as evenly as they can be."""
    layers, v = sc["model"]["layers"], virtual_stages(sc)
    return v * math.ceil(layers / (sc["knobs"]["pp"] * v)) / layers


def head_here(sc: Scenario) -> bool:
    """Whether the fullest stage has the head: not where the last one is left short of a layer."""
    k = sc["knobs"]
    return k["pp"] == 1 or sc["model"]["layers"] % (k["pp"] * virtual_stages(sc)) == 0


def busiest(sc: Scenario) -> float:
    """Routed tokens of the busiest expert-parallel rank over the mean."""
    return sc["stack"]["moe_imbalance"] if sc["knobs"]["ep"] > 1 else 1


def layer_tokens(sc: Scenario) -> float:
    """T L_s."""
    return tokens(sc) * fullest_share(sc)


def causal(group: Mapping[str, Any], seq_len: int) -> float:
    """Mean tokens a query attends to."""
    window = group["window"]
    return seq_len / 2 if seq_len <= window else window - window**2 / (2 * seq_len)


def layer_passes(sc: Scenario) -> float:
    """2 + wg + R, the matmuls of a layer's matrix over those of its forward pass."""
    return 2 + sc["rule"]["layers_trained"] + sc["rule"]["recompute_matmul"]


def matmul_flop(sc: Scenario) -> float:
    """Of the layers' matrices and the vision tower."""
    experts = busiest(sc) / sc["stack"]["moe_efficiency"]
    active = over_groups(sc, lambda g: g["linear_active"] + g["expert_active"] * experts)
    return 2 * layer_tokens(sc) / sc["knobs"]["tp"] * layer_passes(sc) * active


def adapter_flop(sc: Scenario) -> float:
    passes = 3 + sc["rule"]["recompute_matmul"]
    return 2 * layer_tokens(sc) / sc["knobs"]["tp"] * passes * sc["model"]["adapter_active"]


def head_flop(sc: Scenario) -> float:
    if not head_here(sc):
        return 0.0
    return 2 * tokens(sc) * (2 + sc["rule"]["head_trained"]) * head_elements(sc)


def tower_flop(sc: Scenario) -> float:
    """A frozen vision tower, forward."""
    return sc["knobs"]["micro_batch"] * sc["model"]["vision_flop"]


def attention_flop(sc: Scenario) -> float:
    seq_len = sc["knobs"]["seq_len"]
    width = over_groups(sc, lambda g: g["attention_width"] * causal(g, seq_len))
    passes = 3.5 + sc["rule"]["recompute_attention"]
    return 2 * layer_tokens(sc) / sc["knobs"]["tp"] * passes * width


def elementwise_traffic(sc: Scenario) -> float:
    k, model, stack = sc["knobs"], sc["model"], sc["stack"]
    wide = not sc["rule"]["layers_trained"] and sc["rule"]["residual_bytes"] > 2
    each = stack["hidden_bytes"] + (stack["wide_residual_bytes"] if wide else 0)
    hidden = each * model["hidden_size"]
    hidden /= k["tp"] if k["sequence_parallel"] else 1
    mlp_bytes = stack["gated_bytes" if model["gated"] else "plain_bytes"]

    def forward(g: Mapping[str, Any]) -> float:
        """Bytes a token moves forward through one layer."""
        attention = stack["attention_bytes"] * (g["values"]["hq"] + g["values"]["hkv"])
        return hidden + (attention + mlp_bytes * g["mlp_width"]) / k["tp"]

    passes = 3 + sc["rule"]["recompute_elementwise"]
    return stack["elementwise_passes"] * layer_tokens(sc) * passes * over_groups(sc, forward)


def eager_traffic(sc: Scenario) -> float:
    if sc["rule"]["attention"] != "eager":
        return 0.0
    k = sc["knobs"]
    scores = (
        layer_tokens(sc) * k["seq_len"] / k["tp"] * over_groups(sc, lambda g: g["values"]["nq"])
    )
    passes = 1 + sc["rule"]["recompute_attention"] / 3
    return sc["stack"]["eager_attention_bytes"] * scores * passes


def adapter_traffic(sc: Scenario) -> float:
    passes = sc["stack"]["adapter_passes"] * (1 + sc["rule"]["recompute_matmul"] / 3)
    return passes * 2 * layer_tokens(sc) / sc["knobs"]["tp"] * sc["model"]["adapter_io"]


def permute_traffic(sc: Scenario) -> float:
    """Sorting tokens to their experts and back."""
    model = sc["model"]
    routed = layer_tokens(sc) / sc["knobs"]["tp"] * model["experts_per_token"] * busiest(sc)
    passes = 1 + sc["rule"]["recompute_elementwise"] / 3
    elements = routed * model["hidden_size"] * model["moe_layers"]
    return sc["stack"]["permute_bytes"] * passes * elements


def loss_traffic(sc: Scenario) -> float:
    if not head_here(sc):
        return 0.0
    return sc["stack"]["loss_traffic_bytes"] * local_vocab(sc) * tokens(sc)


def matrices_of_rank(sc: Scenario, elements: Mapping[str, float]) -> float:
    """Linear and expert elements on this GPU (gathered ones count: they are read whole)."""
    k, share = sc["knobs"], fullest_share(sc)
    experts = elements["expert"] * share / (expert_split(k) * k["ep"])
    return elements["linear"] * share / k["tp"] + experts


def activations_of_rank(sc: Scenario) -> float:
    """Elements that go in and out of the layers' matrices."""
    return layer_tokens(sc) / sc["knobs"]["tp"] * over_groups(sc, lambda g: g["io_width"])


def operand_traffic(sc: Scenario) -> float:
    stored = matrices_of_rank(sc, sc["model"]["matrix_elements"])
    layers = 2 * layer_passes(sc) * (stored + activations_of_rank(sc))
    head = 2 * (2 + sc["rule"]["head_trained"]) * head_elements(sc) if head_here(sc) else 0.0
    return layers + head


def cast_traffic(sc: Scenario) -> float:
    """Bringing operands to 8 or 4 bits, where the layers compute in them."""
    if sc["rule"]["compute_dtype"] not in NARROW:
        return 0.0
    return sc["stack"]["cast_bytes"] * layer_passes(sc) * activations_of_rank(sc)


def dequant_traffic(sc: Scenario) -> float:
    rule = sc["rule"]
    elements = matrices_of_rank(sc, sc["model"]["quantized_elements"])
    return rule["dequant_bytes"] * elements * (2 + rule["recompute_matmul"])


def matmul_rate(sc: Scenario) -> float:
    return sc["setup"]["matmul_rates"][sc["rule"]["compute_dtype"]]


def half_rate(sc: Scenario) -> float:
    """Of head and adapters, which stay at 16 bits where the layers have fewer."""
    dtype = sc["rule"]["compute_dtype"]
    return sc["setup"]["matmul_rates"]["bf16" if dtype in NARROW else dtype]


def attention_rate(sc: Scenario) -> float:
    """By the generation of the stack's kernel: the GPU's best, FlashAttention 2, FlashAttention 1."""
    return sc["setup"]["attention_rates"][int(sc["stack"]["attention_kernel"])]


def compute_seconds(sc: Scenario) -> dict[str, float]:
    """The terms of gpu_s."""
    memory_rate = sc["setup"]["memory_rate"]
    return {
        "matmul": over(matmul_flop(sc), matmul_rate(sc)),
        "half": over(adapter_flop(sc) + head_flop(sc) + tower_flop(sc), half_rate(sc)),
        "attention": over(attention_flop(sc), attention_rate(sc)),
        "elementwise": over(elementwise_traffic(sc), memory_rate),
        "eager": over(eager_traffic(sc), memory_rate),
        "adapters": over(adapter_traffic(sc), memory_rate),
        "permute": over(permute_traffic(sc), memory_rate),
        "loss": over(loss_traffic(sc), memory_rate),
        "operands": over(operand_traffic(sc), memory_rate),
        "casts": over(cast_traffic(sc), memory_rate),
        "dequant": over(dequant_traffic(sc), memory_rate),
    }


def host_launch_s(sc: Scenario) -> float:
    """host_s, the time the host needs to launch the layers' kernels."""
    stack, model = sc["stack"], sc["model"]
    kernels = stack["kernels_per_layer"] * model["layers"]
    kernels += stack["moe_kernels"] * model["moe_layers"]
    kernels += stack["adapter_kernels"] * model["adapted"]
    passes = 3 + sc["rule"]["recompute_elementwise"]
    return stack["kernel_s"] * kernels * passes * fullest_share(sc)


def norm4(a: float, b: float) -> float:
    return (a**4 + b**4) ** 0.25


def shards_inside(sc: Scenario) -> float:
    """wi."""
    return min(shards(sc), max(1, sc["setup"]["gpus_per_node"] // sc["knobs"]["tp"]))


def inside_bytes(sc: Scenario, volume: float) -> float:
    """Bytes of a shard volume through one GPU's link."""
    wi = shards_inside(sc)
    return volume * (wi - 1) / wi


def between_bytes(sc: Scenario, volume: float) -> float:
    """Bytes of a shard volume through one node's network."""
    wi = shards_inside(sc)
    wn = shards(sc) / wi
    streams = min(sc["setup"]["gpus_per_node"], sc["knobs"]["tp"] * wi) / wi
    return volume * (wn - 1) / wn * streams


def gathered_bytes(sc: Scenario, st: Stage) -> float:
    """gather."""
    return st.frozen + st.frozen_expert + sc["rule"]["gather_bytes"] * whole_elements(st)


def volume_of_stage(sc: Scenario, st: Stage) -> tuple[float, float]:
    """Shard volume of each micro-batch, and once a step."""
    reduce = sc["rule"]["reduce_bytes"] * whole_elements(st)
    gather_trained = sc["rule"]["gather_bytes"] * whole_elements(st)
    zero = sc["knobs"]["zero_stage"]
    if zero == 3:
        return 2 * gathered_bytes(sc, st) + reduce, 0.0
    if zero == 2:
        return reduce, gather_trained
    if zero == 1:
        return 0.0, reduce + gather_trained
    return 0.0, 2 * reduce if shards(sc) > 1 else 0.0


def shard_volumes(sc: Scenario) -> tuple[float, float]:
    """Of the first stage."""
    return volume_of_stage(sc, mean_stage(sc))


def ring_s(sc: Scenario) -> float:
    """Latency of one ring over the shard group, inside its nodes and then between them."""
    wi = shards_inside(sc)
    return sc["stack"]["latency_s"] * ((wi - 1) + (shards(sc) / wi - 1))


def layers_of_rank(sc: Scenario) -> float:
    """L L_s."""
    return sc["model"]["layers"] * fullest_share(sc)


def micro_rings(sc: Scenario) -> float:
    """Rings of one micro-batch: at stage 3 each layer is gathered twice and reduced once."""
    return {3: 3 * layers_of_rank(sc), 2: 1.0}.get(sc["knobs"]["zero_stage"], 0.0)


def once_rings(sc: Scenario) -> float:
    """Rings once a step: a reduction and a gather, together an all-reduce; at stage 2 a gather."""
    return {3: 0.0, 2: 1.0}.get(sc["knobs"]["zero_stage"], 2.0)


def shard_s(sc: Scenario, volume: float, rings: float) -> float:
    if shards(sc) == 1 or volume == 0:
        return 0.0
    inside = over(inside_bytes(sc, volume), sc["setup"]["link_rate"])
    between = over(between_bytes(sc, volume), sc["setup"]["network_rate"])
    return max(inside, between) + rings * ring_s(sc)


def unit_overhead_s(sc: Scenario) -> float:
    """What the collectives of sharded units cost beside their transfer: three a unit."""
    if sc["knobs"]["zero_stage"] != 3 or shards(sc) == 1:
        return 0.0
    stack, model = sc["stack"], sc["model"]
    adapters = 0 if replicates_adapters(sc) else model["adapted"]
    units = stack["unit_s"] * model["layers"] + stack["adapter_unit_s"] * adapters
    return 3 * fullest_share(sc) * units


def tensor_parallel_s(sc: Scenario) -> float:
    k, stack = sc["knobs"], sc["stack"]
    volume = 2 * (k["tp"] - 1) / k["tp"] * 2 * sc["model"]["hidden_size"] * tokens(sc)
    each = over(volume, sc["setup"]["link_rate"]) + 2 * (k["tp"] - 1) * stack["latency_s"]
    times = (4 + 2 * sc["rule"]["recompute_matmul"]) * layers_of_rank(sc)
    return stack["tp_exposed"] * times * each


def context_bytes(sc: Scenario) -> float:
    """Ring bytes of one GPU and micro-batch with context parallelism."""
    k = sc["knobs"]
    widths = over_groups(sc, lambda g: g["values"]["hkv"])
    return 3 * (k["cp"] - 1) * 2 * 2 * layer_tokens(sc) * widths / k["tp"]


def copy_bytes(sc: Scenario) -> float:
    """Bytes of one copy of the hidden states that the busiest GPU sends to experts and takes back."""
    k, model = sc["knobs"], sc["model"]
    times = (4 + 2 * sc["rule"]["recompute_matmul"]) * model["moe_layers"] * fullest_share(sc)
    return busiest(sc) * times * 2 * tokens(sc) * model["hidden_size"] / k["tp"]


def expert_nodes(sc: Scenario) -> tuple[float, float]:
    """near and apart: the ranks of one expert exchange that are in a node, and the nodes it spans."""
    in_a_node = max(1, sc["setup"]["gpus_per_node"] // expert_split(sc["knobs"]))
    near = min(sc["knobs"]["ep"], in_a_node)
    return near, sc["knobs"]["ep"] / near


def expert_link_bytes(sc: Scenario) -> float:
    """Bytes of one GPU and micro-batch to experts in the node: a copy for each expert of a token."""
    if sc["knobs"]["ep"] == 1:
        return 0.0
    near, _ = expert_nodes(sc)
    return copy_bytes(sc) * sc["model"]["experts_per_token"] * (near - 1) / near


def expert_network_bytes(sc: Scenario) -> float:
    """Bytes of one GPU and micro-batch to experts elsewhere: a copy for each node that has any."""
    if sc["knobs"]["ep"] == 1:
        return 0.0
    _, apart = expert_nodes(sc)
    # Experts are drawn evenly over the nodes; one of them is the token's own.
    with_an_expert = apart * (1 - (1 - 1 / apart) ** sc["model"]["experts_per_token"])
    return copy_bytes(sc) * with_an_expert * (apart - 1) / apart


def pipeline_bytes(sc: Scenario) -> float:
    """Ring bytes of one GPU and micro-batch with pipeline parallelism."""
    if sc["knobs"]["pp"] == 1:
        return 0.0
    return 2 * 2 * sc["model"]["hidden_size"] * tokens(sc) / sc["knobs"]["tp"]


def ring_inside(sc: Scenario, dimension: str) -> bool:
    """Whether what cp or pp exchange stays inside a node."""
    k = sc["knobs"]
    reach = {"cp": k["tp"] * k["cp"], "pp": sc["setup"]["gpus"]}[dimension]
    return reach <= sc["setup"]["gpus_per_node"]


def ring_rate(sc: Scenario, dimension: str) -> float:
    setup = sc["setup"]
    if ring_inside(sc, dimension):
        return setup["link_rate"]
    return setup["network_rate"] / setup["gpus_per_node"]


def context_parallel_s(sc: Scenario) -> float:
    return sc["stack"]["dp_exposed"] * over(context_bytes(sc), ring_rate(sc, "cp"))


def expert_parallel_s(sc: Scenario) -> float:
    setup = sc["setup"]
    inside = over(expert_link_bytes(sc), setup["link_rate"])
    between = over(expert_network_bytes(sc), setup["network_rate"] / setup["gpus_per_node"])
    return sc["stack"]["ep_exposed"] * (inside + between)


def pipeline_s(sc: Scenario) -> float:
    if sc["knobs"]["pp"] == 1:
        return 0.0
    return over(pipeline_bytes(sc), ring_rate(sc, "pp")) + 2 * sc["stack"]["latency_s"]


def optimizer_s(sc: Scenario) -> float:
    elements, setup, stack = local_elements(sc, mean_stage(sc)), sc["setup"], sc["stack"]
    if not optimizer_offloaded(sc):
        return over(sc["rule"]["traffic_bytes"] * elements, setup["memory_rate"])
    host_traffic = stack["host_traffic_bytes"] * elements * setup["gpus_per_node"]
    transfer = over(stack["transfer_bytes"] * elements, setup["pcie_rate"])
    return over(host_traffic, setup["host_rate"]) + transfer


def fetch_s(sc: Scenario) -> float:
    """Bringing offloaded parameters in, each micro-batch."""
    setup = sc["setup"]
    first = mean_stage(sc)
    stored = weights(sc, first) + frozen(sc, first)
    if sc["knobs"]["offload"] == "params-cpu":
        return over(2 * stored, setup["pcie_rate"])
    if sc["knobs"]["offload"] == "params-nvme":
        return over(2 * stored * setup["gpus_per_node"], setup["nvme_rate"])
    return 0.0


def rounds(sc: Scenario) -> float:
    """Micro-batches and pipeline bubble: m + (pp - 1) / v."""
    return accumulation(sc) + (sc["knobs"]["pp"] - 1) / virtual_stages(sc)


def step_seconds(sc: Scenario) -> dict[str, float]:
    """Every term of the step; those above `micro` are of one micro-batch."""
    per_micro, once = shard_volumes(sc)
    stack = sc["stack"]
    seconds = compute_seconds(sc)
    seconds["gpu"] = sum(seconds.values())
    seconds["host"] = host_launch_s(sc)
    seconds["compute"] = norm4(seconds["gpu"], seconds["host"])
    seconds["shard"] = shard_s(sc, per_micro, micro_rings(sc))
    seconds["units"] = unit_overhead_s(sc)
    seconds["tp"] = tensor_parallel_s(sc)
    seconds["cp"] = context_parallel_s(sc)
    seconds["ep"] = expert_parallel_s(sc)
    seconds["pp"] = pipeline_s(sc)
    seconds["fetch"] = fetch_s(sc)
    seconds["micro"] = (
        norm4(seconds["compute"], seconds["shard"])
        + stack["dp_exposed"] * seconds["shard"]
        + sum(seconds[term] for term in ("units", "tp", "cp", "ep", "pp", "fetch"))
    )
    seconds["shard_once"] = shard_s(sc, once, once_rings(sc))
    seconds["optimizer"] = optimizer_s(sc)
    seconds["step"] = (
        rounds(sc) * seconds["micro"]
        + stack["step_exposed"] * seconds["shard_once"]
        + seconds["optimizer"]
    )
    return seconds


def network_bytes(sc: Scenario) -> float:
    """Bytes through one node's network in one step."""
    per_micro, once = shard_volumes(sc)
    rings = {"cp": context_bytes(sc), "pp": pipeline_bytes(sc)}
    crossing = sum(volume for name, volume in rings.items() if not ring_inside(sc, name))
    crossing += expert_network_bytes(sc)
    each = between_bytes(sc, per_micro) + sc["setup"]["gpus_per_node"] * crossing
    return rounds(sc) * each + between_bytes(sc, once)


# -- 6. verdicts ---------------------------------------------------------------------------------


def host_excess(sc: Scenario) -> float:
    """Host bytes over host RAM; an unknown RAM refuses every offload and nothing else."""
    ram = sc["setup"]["host_ram_bytes"]
    if ram is None:
        return math.inf if optimizer_offloaded(sc) else 0.0
    return host_bytes(sc) / ram if ram > 0 else math.inf


def verdict(sc: Scenario) -> str:
    if matmul_rate(sc) == 0:
        return "unsupported"
    if not max(device_bytes(sc, st) for st in stages(sc)) <= allowed_device_bytes(sc):
        return "gpu_memory"
    ram = sc["setup"]["host_ram_bytes"]
    refused = optimizer_offloaded(sc) if ram is None else not host_bytes(sc) <= ram
    return "host_memory" if refused else "fits"


def evaluate(scenario: Scenario) -> dict[str, Any]:
    """Decides one scenario; times of an unsupported one are 0."""
    sc = scenario
    by_stage = {st.name: phases(sc, st) for st in stages(sc)}
    decisive = max(stages(sc), key=lambda st: device_bytes(sc, st))
    result: dict[str, Any] = {
        "verdict": verdict(sc),
        "seconds_per_token": 0.0,
        "step_s": 0.0,
        "allocated_bytes": max(by_stage[decisive.name].values()),
        "device_bytes": max(device_bytes(sc, st) for st in stages(sc)),
        "host_bytes": host_bytes(sc),
        "network_bytes_per_step": network_bytes(sc),
        "phases": by_stage,
        "resident_bytes": {st.name: resident(sc, st) for st in stages(sc)},
        "seconds": {},
    }
    if result["verdict"] != "unsupported":
        k = sc["knobs"]
        result["seconds"] = step_seconds(sc)
        result["step_s"] = result["seconds"]["step"]
        result["seconds_per_token"] = result["step_s"] / (k["global_batch"] * k["seq_len"])
    return result


def excess(sc: Scenario) -> float:
    """How near a miss is: what is needed over what is allowed, the worse of device and host."""
    device = max(device_bytes(sc, st) for st in stages(sc)) / allowed_device_bytes(sc)
    return max(device, host_excess(sc))


def best(scenarios: Sequence[Scenario]) -> dict[str, Any]:
    """The scenario that answers for one question on one setup, given in knob order.

    Returns what `evaluate` does and `index`: the fastest that fits, else the nearest miss among the
    supported, else the first. Ties go to the first.
    """
    decided = [{"index": i, **evaluate(sc)} for i, sc in enumerate(scenarios)]
    fitting = [d for d in decided if d["verdict"] == "fits"]
    if fitting:
        return min(fitting, key=lambda d: d["seconds_per_token"])
    supported = [d for d in decided if d["verdict"] != "unsupported"]
    if supported:
        return min(supported, key=lambda d: excess(scenarios[d["index"]]))
    return decided[0]


def valid_parallelism(
    knobs: Mapping[str, Any], gpus: int, gpus_per_node: int, model: Mapping[str, Any]
) -> bool:
    """The rules of a layout (tp, pp, cp, ep, sp); dp follows from them."""
    tp, pp, cp, ep = knobs["tp"], knobs["pp"], knobs["cp"], knobs["ep"]
    if tp > gpus_per_node or gpus_per_node % tp or model["num_attention_heads"] % tp:
        return False
    if pp > model["layers"] or gpus % (tp * pp * cp) or knobs["seq_len"] % cp:
        return False
    experts_fit = model["experts"] % ep == 0 if model["experts"] else ep == 1
    if not experts_fit or gpus // (tp * pp) % ep:
        return False
    return tp > 1 or not knobs["sequence_parallel"]


def valid_sharding(knobs: Mapping[str, Any]) -> bool:
    """The rules of ZeRO stage, offload and accumulation."""
    zero, offload = knobs["zero_stage"], knobs["offload"]
    if zero > 0 and knobs["dp"] * knobs["cp"] == 1 and offload == "none":
        return False
    least = {"none": 0, "optimizer-cpu": 1, "params-cpu": 3, "params-nvme": 3}[offload]
    return zero >= least and knobs["global_batch"] % (knobs["micro_batch"] * knobs["dp"]) == 0


def supported_by_stack(knobs: Mapping[str, Any], support: Mapping[str, Any]) -> bool:
    return (
        (knobs["tp"] == 1 or support["tensor_parallel"])
        and (knobs["pp"] == 1 or support["pipeline_parallel"])
        and (knobs["cp"] == 1 or support["context_parallel"])
        and (knobs["ep"] == 1 or support["expert_parallel"])
        and (not knobs["sequence_parallel"] or support["sequence_parallel"])
        and knobs["zero_stage"] in support["zero_stages"]
        and knobs["offload"] in support["offloads"]
    )


def layouts(
    gpus: int,
    gpus_per_node: int,
    model: Mapping[str, Any],
    stack_support: Mapping[str, Any],
    tps: Sequence[int],
    pps: Sequence[int],
    cps: Sequence[int],
    eps: Sequence[int],
    sps: Sequence[bool],
    zero_stages: Sequence[int],
    offloads: Sequence[str],
    micro_batches: Sequence[int],
    global_batch: int,
    seq_len: int,
) -> list[dict[str, Any]]:
    """The valid knob combinations, the last list varying fastest.

    `model` needs layers, num_attention_heads and experts; `stack_support` the booleans
    tensor_parallel, sequence_parallel, pipeline_parallel, context_parallel and expert_parallel, and
    the collections zero_stages and offloads.
    """
    found = []
    for tp in tps:
        for pp in pps:
            for cp in cps:
                for ep in eps:
                    for sp in sps:
                        layout = {"tp": tp, "pp": pp, "cp": cp, "ep": ep, "sequence_parallel": sp}
                        layout |= {"global_batch": global_batch, "seq_len": seq_len}
                        if not valid_parallelism(layout, gpus, gpus_per_node, model):
                            continue
                        layout["dp"] = gpus // (tp * pp * cp)
                        for zero in zero_stages:
                            for offload in offloads:
                                for micro in micro_batches:
                                    knobs = layout | {
                                        "zero_stage": zero,
                                        "offload": offload,
                                        "micro_batch": micro,
                                    }
                                    if valid_sharding(knobs) and supported_by_stack(
                                        knobs, stack_support
                                    ):
                                        found.append(knobs)
    return found
