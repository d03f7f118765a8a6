"""The models catalog: architecture facts of each model, checked row by row and by its totals."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.catalogs.folder import read_catalog
from sweep.catalogs.model_checks import check_model, check_names, check_sources
from sweep.catalogs.model_columns import MODEL_COLUMNS
from sweep.catalogs.sources import load_sources
from sweep.errors import Problem


@dataclass(frozen=True, slots=True)
class Model:
    """One model's architecture facts: a row of models.csv, or a Hugging Face config.json.

    Sizes are elements. None means the part is absent, or, for dates, dtypes and totals, not known.
    `model_type` names the Transformers module layout that trains it; `assumed` says which columns
    were not read from a source and why they stand.
    """

    key: str
    hf_id: str | None
    aliases: tuple[str, ...]
    family: str | None
    architecture: str | None
    model_type: str
    transformers_class: str | None
    class_is_equivalent: bool
    nominal_b: float | None
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int | None
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool
    lm_head_bias: bool
    max_position_embeddings: int | None
    position_embedding: str
    position_rows: int | None
    embedding_extra_rows: int | None
    embedding_norm: bool
    embedding_projection: int | None
    qkv_bias: bool
    o_bias: bool
    qk_norm: str
    attention_sinks: bool
    sliding_window: int | None
    sliding_pattern: str | None
    mlp_type: str
    mlp_bias: bool
    norm_type: str
    norms_per_layer: int
    final_norm: bool
    num_experts: int | None
    experts_per_token: int | None
    moe_intermediate_size: int | None
    num_shared_experts: int | None
    shared_intermediate_size: int | None
    shared_expert_gate: bool
    first_k_dense: int | None
    moe_layer_step: int | None
    dense_intermediate_size: int | None
    router: str | None
    router_bias: str
    expert_bias: bool
    q_lora_rank: int | None
    kv_lora_rank: int | None
    qk_nope_head_dim: int | None
    qk_rope_head_dim: int | None
    v_head_dim: int | None
    cross_attention_layers: tuple[int, ...]
    vision_type: str | None
    vision_depth: int | None
    vision_hidden: int | None
    vision_heads: int | None
    vision_intermediate: int | None
    vision_patch: int | None
    vision_merge: int | None
    vision_temporal_patch: int | None
    vision_out_hidden: int | None
    vision_image_size: int | None
    vision_positions: int | None
    vision_deepstack: int | None
    vision_window: int | None
    vision_full_attention_layers: tuple[int, ...]
    vision_global_layers: int | None
    vision_max_tiles: int | None
    vision_aspect_ratios: int | None
    vision_projector_in: int | None
    mtp_layers: int | None
    weights_dtype: str | None
    published_total: int | None
    published_kind: str | None
    published_source: str | None
    published_locator: str | None
    checkpoint_extras: tuple[str, ...]
    published_excess: int | None
    count_basis: str | None
    licence: str | None
    licence_source: str | None
    licence_locator: str | None
    release_date: str | None
    release_source: str | None
    release_locator: str | None
    source: str
    locator: str
    checked: dt.date
    assumed: str | None
    notes: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """Every name the model answers to: key, hub id, aliases."""
        return (self.key, *((self.hf_id,) if self.hf_id else ()), *self.aliases)


_LISTS = ("aliases", "checkpoint_extras")
_NUMBER_LISTS = ("cross_attention_layers", "vision_full_attention_layers")
_FLAGS = tuple(
    column.name for column in MODEL_COLUMNS if column.kind is bool and not column.required
)


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(part for raw in (text or "").split(";") if (part := raw.strip()))


def _parse_row(where: str, row: dict[str, Any]) -> tuple[Model | None, list[Problem]]:
    """A typed row as a Model; lists split, absent flags read as no."""
    problems = []
    for name in _NUMBER_LISTS:
        parts = _split(row[name])
        if all(part.isdigit() for part in parts):
            row[name] = tuple(int(part) for part in parts)
        else:
            problems.append(
                Problem(f"{where}, {name}", "value", repr(row[name]), "numbers between ;")
            )
    for name in _LISTS:
        row[name] = _split(row[name])
    for name in _FLAGS:
        row[name] = bool(row[name])
    row["router_bias"] = row["router_bias"] or "none"
    return (None, problems) if problems else (Model(**row), [])


def load_models(folders: Sequence[Path]) -> tuple[dict[str, Model], list[Problem]]:
    """The models of all folders by key, and every problem of their models.csv.

    A later folder's row replaces an earlier one of the same key. A row with a problem is left out.
    """
    rows, problems = read_catalog(folders, "models.csv", MODEL_COLUMNS, ("key",))
    sources = set(load_sources(folders)[0])
    models: dict[str, Model] = {}
    places: dict[str, str] = {}
    paths = [folder / "models.csv" for folder in folders]
    # Later folders last, so that a name taken twice is told of the row that came to it later.
    rows.sort(key=lambda row: paths.index(row["_path"]))
    for row in rows:
        where = f"{row.pop('_path')}:{row.pop('_line')}"
        model, faults = _parse_row(where, row)
        if model is not None:
            faults = [*check_model(model, where), *check_sources(model, where, sources)]
        problems += faults
        if model is not None and not faults:
            models[model.key] = model
            places[model.key] = where
    problems += check_names(models, places)
    return models, problems


def _folded(name: str) -> str:
    """Letters, digits, dots and slashes in lower case: "LLAMA3_8B" and "Llama-3-8B" are one."""
    return re.sub(r"[-_ ]+", "", name.casefold())


def resolve_model(name: str, models: Mapping[str, Model]) -> Model | None:
    """The model of that key, hub id or alias, whatever its case and separators; None if unknown.

    A hub id may lose its owner ("Qwen2.5-7B-Instruct"). A name that fits two models only after
    such folding is taken for neither.
    """
    if name in models:
        return models[name]
    wanted = name.casefold()
    for model in models.values():
        if any(known.casefold() == wanted for known in model.names):
            return model
    folded = _folded(name)
    found = [
        model
        for model in models.values()
        if any(folded in (_folded(known), _folded(known).split("/")[-1]) for known in model.names)
    ]
    return found[0] if len(found) == 1 else None
