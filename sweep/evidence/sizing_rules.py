"""The arithmetic of the rules of thumb people size fine-tuning by; estimators.py names them.

Each rule is a pure function of one `Subject`. It answers (low, expected, high) in bytes per GPU, or
one sentence saying why the rule has nothing to say there. Decimal GB of a table is 1e9 bytes; tools
that print GB and mean GiB are followed in bytes, so nothing is rounded here.

Rules for one GPU that name a total are shared out by `_split`, total / GPUs + 10%: none of them
knows whether the GPUs share the model by ZeRO, by tensors or not at all. Bytes-a-parameter rules
take the exact count; the two tables, which people enter by a model's name, take the size it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sweep.catalogs.models import Model
from sweep.catalogs.parameters import ParameterCounts
from sweep.units import GB

Range = tuple[float, float, float]
Estimate = Range | str


@dataclass(frozen=True)
class Subject:
    """What a rule is asked about: one model, one way to run it, one layout.

    `weight_bits`: bits of a stored weight element; for full training 16 is pure 16-bit and 32 with
    `mixed` is 16-bit arithmetic on fp32 weights. `mixed`: 16-bit arithmetic (True) or fp32.
    `micro_batch` is per GPU; `lora_parameters` are trainable adapter elements.
    """

    model: Model
    counts: ParameterCounts
    method: str
    task: str
    weight_bits: float
    mixed: bool
    optimizer: str
    zero_stage: int
    offload: str
    gpus: int
    micro_batch: int
    seq_len: int
    lora_parameters: float


_FP32_ADAM = ("adamw-fused", "adamw-foreach", "adamw-loop")
_EVERY_METHOD = ("full", "lora", "qlora")
# Bytes of optimizer state a trained element keeps; Adafactor keeps rows and columns, no fixed number.
_STATE_BYTES = {
    "adamw-fused": 8.0,
    "adamw-foreach": 8.0,
    "adamw-loop": 8.0,
    "paged-adamw": 8.0,
    "adamw-4bit": 1.0,
    "adamw-8bit": 2.0,
    "paged-adamw-8bit": 2.0,
    "lion": 4.0,
    "sgd-momentum": 4.0,
    "sgd": 0.0,
    "none": 0.0,
}


def _outside(
    subject: Subject,
    methods: tuple[str, ...] = _EVERY_METHOD,
    *,
    bits: tuple[float, ...] = (),
    offload: tuple[str, ...] = ("none",),
    adam: bool = False,
    mixed: bool = False,
) -> str | None:
    """Why a training rule with these limits has nothing to say; None where it has."""
    if subject.task != "train":
        return f"a rule for training, not for {subject.task}"
    if subject.method not in methods:
        return f"says nothing of {subject.method}"
    if bits and subject.weight_bits not in bits:
        return f"says nothing of {subject.method} on {subject.weight_bits:g}-bit weights"
    if adam and subject.optimizer not in _FP32_ADAM:
        return f"counts the two fp32 moments of Adam, not {subject.optimizer}"
    if mixed and not subject.mixed:
        return "counts 16-bit weights and gradients, not fp32"
    if subject.offload not in offload:
        return f"says nothing of offload {subject.offload}"
    return None


def _split(total: Range, gpus: int) -> Range:
    """A total shared by GPUs: as it is on one, total / GPUs + 10% on several [bytes]."""
    share = 1.1 / gpus if gpus > 1 else 1.0
    return total[0] * share, total[1] * share, total[2] * share


def _per_parameter(subject: Subject, low: float, high: float) -> Range:
    """Bytes a parameter times all parameters, the middle of the range expected [bytes]."""
    total = float(subject.counts.total)
    return _split((low * total, (low + high) / 2.0 * total, high * total), subject.gpus)


def named_billions(subject: Subject) -> float:
    """The size a model is known by, in 1e9 parameters; counted where its name gives none."""
    return subject.model.nominal_b or subject.counts.total / 1e9


def _root_modules(counts: ParameterCounts) -> list[int]:
    """Elements of the modules outside decoder layers and vision tower."""
    return [counts.embedding, counts.lm_head, *(linear.params for linear in counts.root_linears)]


def largest_module_elements(counts: ParameterCounts) -> int:
    """Elements of the module that itself holds most parameters, as DeepSpeed looks for it.

    DeepSpeed's model_to_params: the maximum of `m.parameters(recurse=False)`, so one matrix, not
    one layer; routed experts held as bare tensors are one module with all of them.
    """
    vision = counts.vision
    sizes = _root_modules(counts)
    for group in counts.layers:
        bare = [linear for linear in group.linears if not linear.is_linear_module]
        sizes.append(sum(linear.params for linear in bare if linear.role == "expert"))
        sizes += [linear.params for linear in bare if linear.role != "expert"]
        modules = [linear for linear in group.linears if linear.is_linear_module]
        sizes += [linear.params // linear.copies for linear in modules]
    for linear in (*vision.block, *vision.projector) if vision else ():
        sizes.append(linear.params // linear.copies)
    return max(sizes)


def largest_layer_elements(counts: ParameterCounts) -> int:
    """Elements of the largest part accelerate does not split: a block, or a module outside blocks.

    accelerate's get_max_layer_size: leaf modules, and classes in `_no_split_modules`.
    """
    vision = counts.vision
    sizes = _root_modules(counts)
    sizes += [group.params for group in counts.layers]
    if vision:
        sizes += [vision.per_block_params, *(linear.params for linear in vision.projector)]
    return max(sizes)


def full_12(subject: Subject) -> Estimate:
    """12 bytes a parameter: 2 of weights, 2 of gradients, 8 of Adam [bytes]."""
    reason = _outside(subject, ("full",), adam=True, mixed=True)
    return reason or _per_parameter(subject, 12.0, 12.0)


def full_range(subject: Subject) -> Estimate:
    """14 to 20 bytes a parameter, 17 expected [bytes]."""
    return _outside(subject, ("full",)) or _per_parameter(subject, 14.0, 20.0)


def lora_range(subject: Subject) -> Estimate:
    """2.5 to 4 bytes a parameter of the frozen model [bytes]."""
    return _outside(subject, ("lora",), bits=(16,)) or _per_parameter(subject, 2.5, 4.0)


def qlora_range(subject: Subject) -> Estimate:
    """0.7 to 1.5 bytes a parameter of the frozen model in 4 bits [bytes]."""
    return _outside(subject, ("qlora",), bits=(4,)) or _per_parameter(subject, 0.7, 1.5)


def model_state_bytes(subject: Subject) -> float:
    """Weights, gradients and optimizer states by dtype, over all GPUs [bytes].

    Full: gradients have the dtype of the weights. LoRA: adapters and their gradients have the dtype
    of the arithmetic, frozen weights neither. No fp32 copy beside 16-bit weights.
    """
    weight_bytes = subject.weight_bits / 8.0
    states = _STATE_BYTES[subject.optimizer]
    if subject.method == "full":
        return subject.counts.total * (2.0 * weight_bytes + states)
    adapter_bytes = 2.0 if subject.mixed else 4.0
    adapters = subject.lora_parameters * (2.0 * adapter_bytes + states)
    return subject.counts.total * weight_bytes + adapters


def activation_bytes(subject: Subject, factor: float) -> float:
    """Batch x sequence x hidden size x layers x bytes of the arithmetic x factor, a GPU [bytes]."""
    tokens = subject.micro_batch * subject.seq_len
    model = subject.model
    element_bytes = 2.0 if subject.mixed else 4.0
    return tokens * model.hidden_size * model.num_hidden_layers * element_bytes * factor


def _states_and_activations(subject: Subject) -> Estimate:
    if reason := _outside(subject):
        return reason
    if subject.optimizer not in _STATE_BYTES:
        return f"has no fixed number of bytes for the states of {subject.optimizer}"
    # The batch of all GPUs makes the activations of the total, which the GPUs then share.
    low, expected, high = (
        model_state_bytes(subject) + subject.gpus * activation_bytes(subject, factor)
        for factor in (2.0, 2.5, 3.0)
    )
    return low, expected, high


def activation_formula(subject: Subject) -> Estimate:
    """Weights, gradients, states and 2 to 3 times the activation product on one GPU [bytes]."""
    total = _states_and_activations(subject)
    if subject.gpus > 1 and not isinstance(total, str):
        return "adds up one GPU; on several see total_per_gpu_plus_10pct"
    return total


def total_per_gpu_plus_10pct(subject: Subject) -> Estimate:
    """The same total of several GPUs, divided by them and 10% added [bytes]."""
    total = _states_and_activations(subject)
    if isinstance(total, str):
        return total
    if subject.gpus == 1:
        return "shares a total among GPUs; on one see activation_formula"
    return _split(total, subject.gpus)


def deployment_dtype(subject: Subject) -> Estimate:
    """Parameters times the bytes of a weight: 4, 2, 1 or 0.5 [bytes]."""
    if subject.task != "serve":
        return "a rule for deployment, not for training"
    if subject.offload != "none":
        return f"says nothing of offload {subject.offload}"
    if subject.weight_bits not in (32, 16, 8, 4):
        return f"says nothing of {subject.weight_bits:g}-bit weights"
    size = subject.counts.total * subject.weight_bits / 8.0
    return _split((size, size, size), subject.gpus)


_COEFFICIENT_BASES_GB = ((7.0, 70.0), (13.0, 130.0), (32.0, 320.0), (72.0, 720.0))
_COEFFICIENT_METHODS = {"full": 1.0, "lora": 0.4, "qlora": 0.2}


def _interpolated(points: tuple[tuple[float, float], ...], x: float) -> float:
    """The line through a table's points at x; its end pieces go on beyond the ends."""
    inner = [number for number in range(1, len(points) - 1) if points[number][0] <= x]
    (x0, y0), (x1, y1) = points[len(inner)], points[len(inner) + 1]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def coefficient_table(subject: Subject) -> Estimate:
    """Base of the model size x method x precision x 1.2 [bytes]."""
    if reason := _outside(subject):
        return reason
    size = named_billions(subject)
    smallest, largest = _COEFFICIENT_BASES_GB[0][0], _COEFFICIENT_BASES_GB[-1][0]
    if not smallest / 1.5 <= size <= largest * 1.5:
        return f"its table runs from 7B to 72B; {size:.3g}B is more than 1.5 times beyond"
    base_bytes = _interpolated(_COEFFICIENT_BASES_GB, size) * GB
    precision = 0.5 if subject.mixed else 1.0
    total = base_bytes * _COEFFICIENT_METHODS[subject.method] * precision * 1.2
    return _split((total, total, total), subject.gpus)


def accelerate_cli(subject: Subject) -> Estimate:
    """What `accelerate estimate-memory` prints: total size, or training with Adam [bytes]."""
    if subject.gpus > 1:
        return "prints one model's total; says nothing of several GPUs"
    total = float(subject.counts.total)
    if subject.task == "serve":
        if subject.weight_bits not in (32, 16, 8, 4):
            return f"knows float32, float16, int8 and int4, not {subject.weight_bits:g} bits"
        weight_bytes = subject.weight_bits / 8.0
        if subject.offload.startswith("params"):
            layer_bytes = largest_layer_elements(subject.counts) * weight_bytes
            return layer_bytes, layer_bytes, total * weight_bytes
        return total * weight_bytes, total * weight_bytes, 1.2 * total * weight_bytes
    if reason := _outside(subject, ("full",), adam=True):
        return reason
    # max of model, gradients, optimizer and step: 4, 6, 8, 8 bytes a parameter in float16.
    peak = total * (8.0 if subject.mixed else 16.0)
    return peak, peak, peak


def deepspeed_zero2(subject: Subject) -> Estimate:
    """estimate_zero2_model_states_mem_needs, its GPU part [bytes]."""
    offloads = ("none", "optimizer-cpu")
    if reason := _outside(subject, ("full",), offload=offloads, adam=True, mixed=True):
        return reason
    if subject.zero_stage != 2:
        return f"a rule for ZeRO stage 2, not {subject.zero_stage}"
    total = subject.counts.total
    gpu_bytes = 2.0 * total
    if subject.offload == "none":
        gpu_bytes += int(18 * total / subject.gpus)
    return gpu_bytes, gpu_bytes, gpu_bytes


def deepspeed_zero3(subject: Subject) -> Estimate:
    """estimate_zero3_model_states_mem_needs, its GPU part [bytes]."""
    offloads = ("none", "optimizer-cpu", "params-cpu")
    if reason := _outside(subject, ("full",), offload=offloads, adam=True, mixed=True):
        return reason
    if subject.zero_stage != 3:
        return f"a rule for ZeRO stage 3, not {subject.zero_stage}"
    parameter_bytes = {"none": 18, "optimizer-cpu": 2, "params-cpu": 0}[subject.offload]
    gpu_bytes = 4.0 * largest_module_elements(subject.counts)
    gpu_bytes += int(parameter_bytes * subject.counts.total / subject.gpus)
    return gpu_bytes, gpu_bytes, gpu_bytes


# By method and bits: bytes a parameter of the column for xB, and the columns 7B, 14B, 30B, 70B [GB].
LLAMA_FACTORY_GB: Mapping[tuple[str, float], tuple[float, tuple[float, ...]]] = {
    ("full", 32): (18.0, (120, 240, 600, 1200)),
    ("full", 16): (8.0, (60, 120, 300, 600)),
    ("lora", 16): (2.0, (16, 32, 64, 160)),
    ("qlora", 8): (1.0, (10, 20, 40, 80)),
    ("qlora", 4): (0.5, (6, 12, 24, 48)),
    ("qlora", 2): (0.25, (4, 8, 16, 24)),
}
LLAMA_FACTORY_SIZES_B = (7.0, 14.0, 30.0, 70.0)


def llama_factory(subject: Subject) -> Estimate:
    """LLaMA-Factory: column xB expected, the columns printed for sizes the other end [bytes]."""
    if reason := _outside(subject):
        return reason
    if subject.method == "full" and not subject.mixed:
        return "its full rows are bf16 or fp16, not fp32 throughout"
    row = LLAMA_FACTORY_GB.get((subject.method, subject.weight_bits))
    if row is None:
        return f"has no row for {subject.method} on {subject.weight_bits:g}-bit weights"
    size = named_billions(subject)
    formula_gb = printed_gb = row[0] * size
    if LLAMA_FACTORY_SIZES_B[0] <= size <= LLAMA_FACTORY_SIZES_B[-1]:
        columns = tuple(zip(LLAMA_FACTORY_SIZES_B, row[1], strict=True))
        printed_gb = _interpolated(columns, size)
    ends = sorted((formula_gb * GB, printed_gb * GB))
    return _split((ends[0], formula_gb * GB, ends[1]), subject.gpus)
