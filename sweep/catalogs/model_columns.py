"""The columns of models.csv: type, range, vocabulary and meaning of each."""

from __future__ import annotations

import datetime as dt

from sweep.catalogs.decoder import MODEL_TYPES
from sweep.catalogs.tables import Column
from sweep.catalogs.vision import VISION_TYPES

POSITION_EMBEDDINGS = ("rope", "rope-partial", "mrope", "learned", "alibi")
QK_NORMS = ("none", "head-rmsnorm", "width-rmsnorm", "head-l2", "own-head-layernorm")
MLP_TYPES = ("swiglu", "geglu", "gegelu", "gelu", "relu")
NORM_TYPES = ("rmsnorm", "layernorm", "layernorm-no-bias")
ROUTER_BIASES = ("none", "bias", "correction-buffer", "correction-parameter")


def _size(name: str, low: float, high: float, what: str, required: bool = False) -> Column:
    return Column(name, int, "", required, low, high, (), what)


def _word(name: str, what: str, allowed: tuple[str, ...] = (), required: bool = False) -> Column:
    return Column(name, str, "", required, vocabulary=allowed, description=what)


def _flag(name: str, what: str, required: bool = False) -> Column:
    return Column(name, bool, "", required, description=what)


MODEL_COLUMNS: tuple[Column, ...] = (
    _word("key", "name in specs and results", required=True),
    _word("hf_id", "repository on the Hugging Face hub"),
    _word("aliases", "other hub ids of the same shape, separated by ;"),
    _word("family", "release the model belongs to"),
    _word("architecture", "class named in its config.json"),
    _word("model_type", "Transformers module layout", MODEL_TYPES, True),
    _word("transformers_class", "Transformers class of that layout"),
    _flag("class_is_equivalent", "own code fuses projections otherwise; same elements"),
    Column("nominal_b", float, "1e9 parameters", False, 0.001, 20000.0, (), "size in its name"),
    _size("hidden_size", 16, 65536, "width of the residual stream", True),
    _size("num_hidden_layers", 1, 512, "decoder layers", True),
    _size("num_attention_heads", 1, 1024, "query heads", True),
    _size("num_key_value_heads", 1, 1024, "key and value heads", True),
    _size("head_dim", 4, 1024, "width of a head; none with latent attention"),
    _size("intermediate_size", 16, 262144, "MLP width", True),
    _size("vocab_size", 16, 2_000_000, "embedding rows that are tokens", True),
    _flag("tie_word_embeddings", "the head is the embedding", True),
    _flag("lm_head_bias", "the head has a bias"),
    _size("max_position_embeddings", 64, 100_000_000, "longest sequence"),
    _word("position_embedding", "how positions enter", POSITION_EMBEDDINGS, True),
    _size("position_rows", 1, 1_000_000, "rows of a learned position table"),
    _size("embedding_extra_rows", 1, 100_000, "embedding rows the head does not score"),
    _flag("embedding_norm", "a norm after the embedding"),
    _size("embedding_projection", 16, 65536, "embedding width where it is not hidden_size"),
    _flag("qkv_bias", "query, key, value projections have a bias", True),
    _flag("o_bias", "the output projection has a bias", True),
    _word("qk_norm", "norm of queries and keys", QK_NORMS, True),
    _flag("attention_sinks", "one learned sink per head"),
    _size("sliding_window", 16, 100_000_000, "tokens a local layer attends to"),
    _word("sliding_pattern", "all, or local:global layers in turn, local first"),
    _word("mlp_type", "activation, gated or not", MLP_TYPES, True),
    _flag("mlp_bias", "MLP matrices have a bias", True),
    _word("norm_type", "kind of norm", NORM_TYPES, True),
    _size("norms_per_layer", 1, 4, "norms of hidden_size in a layer", True),
    _flag("final_norm", "a norm before the head", True),
    _size("num_experts", 2, 4096, "routed experts of a layer"),
    _size("experts_per_token", 1, 256, "routed experts a token goes to"),
    _size("moe_intermediate_size", 16, 262144, "width of one routed expert"),
    _size("num_shared_experts", 0, 64, "experts every token goes to"),
    _size("shared_intermediate_size", 16, 262144, "their width together"),
    _flag("shared_expert_gate", "a gate scales the shared expert"),
    _size("first_k_dense", 0, 512, "leading layers without experts"),
    _size("moe_layer_step", 1, 16, "every so many layers routes"),
    _size("dense_intermediate_size", 16, 262144, "MLP width of layers without experts"),
    _word("router", "how experts are chosen"),
    _word("router_bias", "what the router adds to its scores", ROUTER_BIASES),
    _flag("expert_bias", "expert matrices have a bias"),
    _size("q_lora_rank", 16, 65536, "latent rank of queries"),
    _size("kv_lora_rank", 16, 65536, "latent rank of keys and values"),
    _size("qk_nope_head_dim", 1, 4096, "head width without positions"),
    _size("qk_rope_head_dim", 1, 4096, "head width with rotary positions"),
    _size("v_head_dim", 1, 4096, "head width of values"),
    _word("cross_attention_layers", "layers that attend to the image, separated by ;"),
    _word("vision_type", "kind of vision tower", VISION_TYPES),
    _size("vision_depth", 1, 512, "its blocks"),
    _size("vision_hidden", 16, 65536, "its width"),
    _size("vision_heads", 1, 1024, "its heads"),
    _size("vision_intermediate", 16, 262144, "its MLP width"),
    _size("vision_patch", 2, 128, "patch edge in pixels"),
    _size("vision_merge", 1, 16, "patches merged along each edge"),
    _size("vision_temporal_patch", 1, 16, "frames in a patch"),
    _size("vision_out_hidden", 16, 65536, "width it hands on"),
    _size("vision_image_size", 32, 8192, "image edge its positions were made for"),
    _size("vision_positions", 1, 1_000_000, "rows of its position table"),
    _size("vision_deepstack", 0, 64, "blocks that feed decoder layers directly"),
    _size("vision_window", 14, 4096, "window edge in pixels"),
    _word("vision_full_attention_layers", "blocks without a window, separated by ;"),
    _size("vision_global_layers", 0, 512, "further gated blocks"),
    _size("vision_max_tiles", 1, 64, "tiles an image is cut into"),
    _size("vision_aspect_ratios", 1, 64, "tile layouts"),
    _size("vision_projector_in", 16, 262144, "inner width of the adapter"),
    _size("mtp_layers", 0, 8, "multi-token prediction layers, not part of the count"),
    _word("weights_dtype", "dtype of the published weights"),
    _size("published_total", 1000, 1e14, "elements the checkpoint's publisher states"),
    _word("published_kind", "where such a total comes from"),
    _word("published_source", "source key of published_total"),
    _word("published_locator", "where in that source"),
    _word("checkpoint_extras", "what the checkpoint stores beyond its modules, separated by ;"),
    _size("published_excess", -1e12, 1e12, "elements of published_total no rule explains"),
    _word("count_basis", "why published_excess is let stand"),
    _word("licence", "licence of the weights"),
    _word("licence_source", "source key of licence"),
    _word("licence_locator", "where in that source"),
    _word("release_date", "YYYY-MM or YYYY-MM-DD"),
    _word("release_source", "source key of release_date"),
    _word("release_locator", "where in that source"),
    _word("source", "source keys of the facts, separated by ;", required=True),
    _word("locator", "where in those sources", required=True),
    Column("checked", dt.date, "", True, description="day the row was checked"),
    _word("assumed", "columns not read from a source, and why they stand"),
    _word("notes", "anything else"),
)
