"""What a model's facts must satisfy together: shapes that divide, parts that are whole, totals."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from sweep.catalogs.architecture import count_parameters
from sweep.catalogs.checkpoints import EXTRAS, checkpoint_extras
from sweep.catalogs.decoder import GATED, WIRING
from sweep.catalogs.vision import VISION_NEEDS
from sweep.errors import Problem, nearest

if TYPE_CHECKING:
    from sweep.catalogs.models import Model

_KEY = re.compile(r"[A-Za-z0-9._+-]+")
_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")
_LATENT = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_EXPERTS = ("num_experts", "experts_per_token", "moe_intermediate_size")
# A name's size is rounded, and some count active or vision-less parameters; a slipped unit or a
# mistyped width misses by more than this.
_NOMINAL_FACTOR = 1.7


def _whole(model: Model, columns: tuple[str, ...], what: str) -> Iterator[tuple[str, str, str]]:
    """A part is described in full or not at all."""
    missing = [name for name in columns if getattr(model, name) is None]
    if 0 < len(missing) < len(columns):
        for name in missing:
            yield name, "nothing", f"a value, as the row describes {what}"


def _shape_faults(model: Model) -> Iterator[tuple[str, str, str]]:
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    if heads % kv_heads:
        yield "num_key_value_heads", str(kv_heads), f"a divisor of num_attention_heads {heads}"
    latent = model.kv_lora_rank is not None
    if model.head_dim is None and not latent:
        yield "head_dim", "nothing", "a width, or the columns of latent attention"
    if model.head_dim is not None and latent:
        yield "head_dim", str(model.head_dim), "nothing with latent attention"
    yield from _whole(model, _LATENT, "latent attention")
    if model.q_lora_rank is not None and not latent:
        yield "q_lora_rank", str(model.q_lora_rank), "nothing without kv_lora_rank"
    if (model.position_embedding == "learned") != (model.position_rows is not None):
        yield "position_rows", str(model.position_rows), "rows of a learned table, and only then"
    gates = model.mlp_type in GATED
    if gates != (len(WIRING[model.model_type].mlp) == 3) and model.model_type not in _FUSED_GATE:
        yield "mlp_type", model.mlp_type, f"what the layout {model.model_type} has"
    pattern = model.sliding_pattern
    if pattern is not None and pattern != "all" and not re.fullmatch(r"[1-9]\d?:1", pattern):
        yield "sliding_pattern", repr(pattern), "all, or local:1 such as 5:1"
    if (pattern is None) != (model.sliding_window is None):
        yield "sliding_pattern", str(pattern), "a pattern with sliding_window, and only then"
    layers = model.cross_attention_layers
    if list(layers) != sorted(set(layers)) or any(at >= model.num_hidden_layers for at in layers):
        yield "cross_attention_layers", str(layers), "rising layer numbers below num_hidden_layers"


_FUSED_GATE = ("phi3", "glm", "glm4", "phi3small")


def _expert_faults(model: Model) -> Iterator[tuple[str, str, str]]:
    yield from _whole(model, _EXPERTS, "experts")
    experts, per_token = model.num_experts, model.experts_per_token
    if experts is not None and per_token is not None and per_token > experts:
        yield "experts_per_token", str(per_token), f"at most num_experts {experts}"
    if model.first_k_dense and model.first_k_dense >= model.num_hidden_layers:
        yield "first_k_dense", str(model.first_k_dense), "below num_hidden_layers"
    if model.first_k_dense and (model.moe_layer_step or 1) > 1:
        yield "moe_layer_step", str(model.moe_layer_step), "1 where first_k_dense is given"
    step = model.moe_layer_step or 1
    if model.num_hidden_layers % step:
        yield "moe_layer_step", str(step), f"a divisor of {model.num_hidden_layers} layers"
    if model.num_shared_experts and model.shared_intermediate_size is None:
        yield "shared_intermediate_size", "nothing", "the shared experts' width together"


def _vision_faults(model: Model) -> Iterator[tuple[str, str, str]]:
    if model.vision_type is None:
        if model.vision_depth is not None:
            yield "vision_type", "nothing", "a kind, as the row describes a vision tower"
        return
    for name in VISION_NEEDS[model.vision_type]:
        if getattr(model, name) is None:
            yield name, "nothing", f"a value for a {model.vision_type} tower"
    hidden, heads = model.vision_hidden, model.vision_heads
    if hidden and heads and hidden % heads:
        yield "vision_heads", str(heads), f"a divisor of vision_hidden {hidden}"


def _total_faults(model: Model) -> Iterator[tuple[str, str, str]]:
    """The published total must be the count, what the checkpoint adds, and a declared excess."""
    counted = count_parameters(model).total
    if model.nominal_b is not None:
        nominal = model.nominal_b * 1e9
        if not nominal / _NOMINAL_FACTOR < counted < nominal * _NOMINAL_FACTOR:
            yield (
                "nominal_b",
                f"{model.nominal_b:g} but the shapes count {counted:,}",
                "a size near the count",
            )
    if model.published_total is None:
        return
    expected = counted + sum(checkpoint_extras(model).values())
    excess = model.published_total - expected
    if excess != (model.published_excess or 0):
        yield (
            "published_total",
            f"{model.published_total:,}",
            f"{expected:,}, what the shapes and checkpoint_extras count (difference {excess:+,}); "
            + "or that difference in published_excess, with its reason in count_basis",
        )
    elif excess and not model.count_basis:
        yield "count_basis", "nothing", f"why the published total differs by {excess:+,}"


def check_model(model: Model, where: str) -> list[Problem]:
    """Every fault of one model's facts; `where` is file:line."""
    faults: list[tuple[str, str, str]] = []
    if not _KEY.fullmatch(model.key):
        faults.append(("key", repr(model.key), "letters, digits and . _ + - only"))
    faults += _shape_faults(model)
    faults += _expert_faults(model)
    faults += _vision_faults(model)
    if model.release_date and not _DATE.fullmatch(model.release_date):
        faults.append(("release_date", repr(model.release_date), "YYYY, YYYY-MM or YYYY-MM-DD"))
    for extra in model.checkpoint_extras:
        if extra not in EXTRAS:
            close = nearest(extra, EXTRAS)
            hint = f" (did you mean {close!r}?)" if close else ""
            faults.append(("checkpoint_extras", repr(extra), ", ".join(EXTRAS) + hint))
    if not faults:
        # Counting asks that the parts are whole; a broken row would only repeat itself here.
        faults += _total_faults(model)
    return [
        Problem(f"{where}, {column}", f"model {model.key}", found, allowed)
        for column, found, allowed in faults
    ]


def check_sources(model: Model, where: str, sources: set[str]) -> list[Problem]:
    """Source keys that sources.csv does not list."""
    problems = []
    for column in ("source", "published_source", "licence_source", "release_source"):
        for key in (getattr(model, column) or "").split(";"):
            if key.strip() and key.strip() not in sources:
                close = nearest(key.strip(), sources)
                hint = f"did you mean {close!r}?" if close else "add it to sources.csv"
                problems.append(
                    Problem(
                        f"{where}, {column}",
                        f"model {model.key}",
                        repr(key.strip()),
                        "a key of sources.csv",
                        hint,
                    )
                )
    return problems


def check_names(models: Mapping[str, Model], places: Mapping[str, str]) -> list[Problem]:
    """Names two models answer to, whatever their case."""
    owner: dict[str, str] = {}
    problems = []
    for key, model in models.items():
        for name in {name.casefold() for name in model.names}:
            if name in owner:
                problems.append(
                    Problem(
                        f"{places[key]}, aliases",
                        f"model {key}",
                        f"{name!r}, a name of {owner[name]} too",
                        "each name for one model",
                        "remove it from one of them",
                    )
                )
            owner.setdefault(name, key)
    return problems
