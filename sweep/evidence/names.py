"""Model names as published points spell them, resolved to an architecture of the catalog."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from sweep.catalogs.models import Model, resolve_model

# Words of a name that do not change the architecture: how it was tuned, stored or re-uploaded.
_VARIANT_WORDS = frozenset({
    "instruct", "chat", "it", "sft", "dpo", "rl", "rlhf", "thinking", "reasoning", "base", "hf",
    "pt", "gptq", "awq", "int4", "int8", "fp8", "nf4", "bnb", "4bit", "8bit", "bf16", "fp16",
    "fp32", "quantized", "gguf", "dynamic", "preview", "2405", "2407", "2409", "2410", "2501",
    "2503", "2505", "2506", "2507", "2509", "2512",
})  # fmt: skip
# How a name ends that says how the weights are stored.
QUANTISED_ENDING = re.compile(
    r"[-_](GPTQ-Int[48]|GPTQ|AWQ|Int[48]|FP8|bnb-4bit|4bit|8bit)$", re.IGNORECASE
)
_TRUNCATED = re.compile(
    r"^(?P<name>.+?)[\s,]*(?:\bshapes?\b)?[\s,(]*"
    r"(?:truncated to (?P<count>\d+) layers?|(?P<short>\d+) layers?(?: only)?)\)?\s*$",
    re.IGNORECASE,
)


def _core(name: str) -> str:
    """A name without owner and variant words, in lower case: 'qwen2.5-7b'."""
    last = name.strip().rstrip("/").split("/")[-1].casefold()
    words = [word for word in re.split(r"[-_ ]+", last) if word and word not in _VARIANT_WORDS]
    return "-".join(words)


def _architecture(model: Model) -> tuple[object, ...]:
    """What two models must share to be one architecture to the physics."""
    return (
        model.model_type, model.hidden_size, model.num_hidden_layers, model.num_attention_heads,
        model.num_key_value_heads, model.head_dim, model.intermediate_size, model.vocab_size,
        model.tie_word_embeddings, model.num_experts, model.moe_intermediate_size,
    )  # fmt: skip


def truncate(model: Model, layers: int) -> Model:
    """A model of the same shapes with its first `layers` layers."""
    if not 1 <= layers <= model.num_hidden_layers:
        raise ValueError(
            f"{model.key} has {model.num_hidden_layers} layers, it cannot be truncated to {layers}"
        )
    return dataclasses.replace(
        model,
        num_hidden_layers=layers,
        first_k_dense=None if model.first_k_dense is None else min(model.first_k_dense, layers),
        cross_attention_layers=tuple(one for one in model.cross_attention_layers if one < layers),
        mtp_layers=None,
        published_total=None,
    )


def resolve_architecture(name: str, models: Mapping[str, Model]) -> Model | None:
    """The architecture a published name stands for, None when the catalog has none.

    Instruct, chat, quantised and re-uploaded variants are the architecture they were made from;
    "... truncated to n layers" is it with n layers. A name that fits two architectures is neither.
    """
    cut = _TRUNCATED.match(name)
    if cut:
        whole = resolve_architecture(cut["name"], models)
        return truncate(whole, int(cut["count"] or cut["short"])) if whole else None
    if found := resolve_model(name, models):
        return found
    wanted = _core(name)
    if not wanted:
        return None
    fits = [model for model in models.values() if any(_core(one) == wanted for one in model.names)]
    if fits and len({_architecture(model) for model in fits}) == 1:
        return fits[0]
    # The name without the ending may be one of the catalog where the words alone fit several.
    plain = QUANTISED_ENDING.sub("", name)
    return resolve_architecture(plain, models) if plain != name else None
