"""Rules of thumb people size fine-tuning by today, as named estimators to put beside ours.

The arithmetic is in sizing_rules.py; here every rule has its name, its source with what was read of
it (on 2026-11-21), and its formula in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sweep.evidence import sizing_rules as rules
from sweep.evidence.sizing_rules import Estimate, Range, Subject

__all__ = ["ESTIMATORS", "Estimate", "Estimator", "Range", "Subject", "estimate_all"]


@dataclass(frozen=True)
class Estimator:
    """One rule: `source` says where it stands and what was read, `formula` what it computes.

    `function` answers (low, expected, high) in bytes per GPU, or why the rule says nothing.
    """

    key: str
    title: str
    source: str
    formula: str
    function: Callable[[Subject], Estimate]


_SPLIT = "on several GPUs total / GPUs + 10%"
# These circulate without one origin; what was found of them in public is named.
_FOLKLORE = "Folklore, as the project states it; no page with this range was found."

_ALL = (
    Estimator(
        "full_12_bytes",
        "Full training: 12 bytes a parameter",
        "https://2048ai.net/68944a97a6db534ba2bf9ed0.html (section 2: (2 + 2 + 8) x 14 GB = 168 GB, "
        "'12 x model size'); the same 84 GB of a 7B at https://apxml.com/courses/"
        "fine-tuning-small-language-model (chapter 4, limitations of full fine-tuning)",
        f"12 x parameters; 2 weights, 2 gradients, 8 Adam moments; no activations; {_SPLIT}",
        rules.full_12,
    ),
    Estimator(
        "full_14_to_20_bytes",
        "Full training: 14 to 20 bytes a parameter",
        f"{_FOLKLORE} Inside it: 16, https://modal.com/blog/how-much-vram-need-fine-tuning "
        "('16GB of GPU memory per 1B parameters'); 18, https://huggingface.co/docs/transformers/"
        "v5.14.0/model_memory_anatomy (6 weights, 8 Adam, 4 gradients)",
        f"14, 17, 20 x parameters; {_SPLIT}",
        rules.full_range,
    ),
    Estimator(
        "lora_2_5_to_4_bytes",
        "LoRA: 2.5 to 4 bytes a parameter",
        f"{_FOLKLORE} Near its low end: 2.4, https://bitbytecore.com/tools/"
        "fine-tuning-vram-calculator (about 2.4, frozen 16-bit base)",
        f"2.5, 3.25, 4 x parameters of the 16-bit base model; {_SPLIT}",
        rules.lora_range,
    ),
    Estimator(
        "qlora_0_7_to_1_5_bytes",
        "QLoRA: 0.7 to 1.5 bytes a parameter",
        f"{_FOLKLORE} Inside it: 0.85, https://bitbytecore.com/tools/"
        "fine-tuning-vram-calculator (about 0.85, 4-bit base)",
        f"0.7, 1.1, 1.5 x parameters of the 4-bit base model; {_SPLIT}",
        rules.qlora_range,
    ),
    Estimator(
        "activation_formula",
        "States by dtype + batch x seq x hidden x layers x bytes x f",
        "https://www.aichina360.com/jishujiedu/62er0ZJKodBXqL2GYp9zl5gPn43a81bE.html (part 2: the "
        "product without f, 32 x 1024 x 4096 x 32 x 2 = 9 GB); f from 2 to 3 as the project states "
        "it, no page with it was found",
        "parameters x (weight bytes + gradient bytes + state bytes of the optimizer), for LoRA of "
        "the adapters beside the frozen weights; + micro batch x sequence x hidden size x layers x "
        "(2 or 4 bytes) x f, f = 2, 2.5, 3; one GPU",
        rules.activation_formula,
    ),
    Estimator(
        "total_per_gpu_plus_10pct",
        "Total / GPUs + 10%",
        "Folklore, as the project states it; no page with the 10% was found. The total is that of "
        "activation_formula",
        "(states by dtype + activations of all GPUs' batches) / GPUs x 1.1; several GPUs",
        rules.total_per_gpu_plus_10pct,
    ),
    Estimator(
        "deployment_dtype",
        "Deployment: bytes of the dtype x parameters",
        "https://apxml.com/courses/llm-model-sizes-hardware (chapter 3, data types and precision: "
        "7B in fp32 28 GB, fp16 14 GB); https://ai-radar.it/llm-onpremise/glossary/fp16-fp32 (table "
        "of 1B, 7B, 70B in fp32, fp16, int8, int4)",
        f"parameters x 4 (fp32), 2 (fp16, bf16), 1 (int8), 0.5 (int4); no cache; {_SPLIT}",
        rules.deployment_dtype,
    ),
    Estimator(
        "coefficient_table",
        "Base by model size x method x precision + 20%",
        "Folklore, as the project states it; no page with this table was found",
        "base 70, 130, 320, 720 GB for 7B, 13B, 32B, 72B (named size, linear between; at all four "
        "10 GB per 1e9 parameters) x 1.0 full, 0.4 LoRA, 0.2 QLoRA x 1.0 fp32, 0.5 16-bit x 1.2; "
        f"up to a factor 1.5 beyond the ends; {_SPLIT}",
        rules.coefficient_table,
    ),
    Estimator(
        "accelerate_estimate_memory",
        "accelerate estimate-memory",
        "https://github.com/huggingface/accelerate (1.15.0: commands/estimate.py "
        "estimate_training_usage and gather_data, utils/modeling.py calculate_maximum_sizes and "
        "get_max_layer_size, utils/other.py convert_bytes: GB is 1024^3); docs/source/usage_guides/"
        "model_size_estimator.md: 'up to an additional 20%' for inference",
        "train: max of model, gradients, optimizer, step = 16 x parameters in float32, 8 in float16 "
        "or bfloat16, N/A in int8 and int4; serve: parameters x 4, 2, 1, 0.5, high + 20%; with "
        "weights off the GPU its largest layer; buffers of a few KB left out; one GPU",
        rules.accelerate_cli,
    ),
    Estimator(
        "deepspeed_zero2",
        "DeepSpeed estimate_zero2_model_states_mem_needs",
        "https://github.com/deepspeedai/DeepSpeed (deepspeed/runtime/zero/stage_1_and_2.py at "
        "02aa38c3a55174c87b33c4ad17a304389d037443; changed by pull request 5099 of 2024-04 from "
        "4P + 16P/N, which docs/code-docs/source/memory.rst still prints as 15.93GB)",
        "2P + int(18P / GPUs); with the optimizer on the CPU 2P; Adam, 16-bit mixed; its "
        "additional_buffer_factor 1.5 is for host memory alone; prints GB of 1024^3",
        rules.deepspeed_zero2,
    ),
    Estimator(
        "deepspeed_zero3",
        "DeepSpeed estimate_zero3_model_states_mem_needs",
        "https://github.com/deepspeedai/DeepSpeed (deepspeed/runtime/zero/stage3.py at "
        "007cca6a2ffe3ed9d393459f4a3081bd54341ba6, with model_to_params: its largest layer is the "
        "module that itself holds most parameters)",
        "4L + int(18P / GPUs); optimizer on the CPU 4L + int(2P / GPUs); parameters too 4L; "
        "L elements of the largest module; Adam, 16-bit mixed; prints GB of 1024^3",
        rules.deepspeed_zero3,
    ),
    Estimator(
        "llama_factory_table",
        "LLaMA-Factory hardware requirement",
        "https://github.com/hiyouga/LlamaFactory (README.md, Hardware Requirement, '* estimated', at "
        "142e1ce4a0f99a05e11f2b1f10fb384c7eb49892)",
        "x = named size in 1e9 parameters: full bf16/fp16 (32 bits) 18x GB, full pure_bf16 8x, LoRA "
        "2x, QLoRA 8-bit x, 4-bit x/2, 2-bit x/4 expected; the printed columns 7B, 14B, 30B, 70B, "
        f"linear between, are the other end; GB of 1e9; {_SPLIT}",
        rules.llama_factory,
    ),
)
ESTIMATORS: Mapping[str, Estimator] = MappingProxyType({rule.key: rule for rule in _ALL})


def estimate_all(subject: Subject) -> dict[str, Estimate]:
    """What every rule says of the subject: (low, expected, high) in bytes per GPU, or why nothing."""
    return {key: estimator.function(subject) for key, estimator in ESTIMATORS.items()}
