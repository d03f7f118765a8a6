"""Models from config.json files: the shapes they give, and what a broken one is told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sweep.catalogs.architecture import count_parameters
from sweep.catalogs.checkpoints import checkpoint_extras
from sweep.catalogs.folder import shipped_folder
from sweep.catalogs.hf_config import KNOWN_MODEL_TYPES, model_from_config
from sweep.catalogs.models import Model, load_models
from sweep.errors import CatalogError

CONFIGS = Path(__file__).parent / "data" / "configs"

# Each config with the catalog's row of the same model: keys and defaults as files of the hub have.
SAME = [
    ("aya-23-8b", "Aya-23-8B"),
    ("bloom-7b1", "BLOOM-7B1"),
    ("command-r-plus", "Command-R+-104B"),
    ("deepseek-v2-lite", "DeepSeek-V2-Lite"),
    ("deepseek-v3", "DeepSeek-V3"),
    ("falcon-40b", "Falcon-40B"),
    ("falcon-7b", "Falcon-7B"),
    ("gemma-2-9b", "Gemma-2-9B"),
    ("gemma-3-1b", "Gemma-3-1B"),
    ("gemma-3-4b", "Gemma-3-4B"),
    ("gemma-7b", "Gemma-7B"),
    ("glm-4-9b-0414", "GLM-4-9B-0414"),
    ("glm-4-9b", "GLM-4-9B"),
    ("glm-4.5-air", "GLM-4.5-Air"),
    ("glm-4.5", "GLM-4.5"),
    ("gpt-oss-20b", "gpt-oss-20b"),
    ("gpt2-xl", "GPT-2-XL"),
    ("granite-3.0-1b-a400m", "Granite-3.0-1B-A400M"),
    ("granite-3.3-8b", "Granite-3.3-8B"),
    ("kimi-k2", "Kimi-K2-Instruct"),
    ("llama-2-7b-gptq", "Llama-2-7B"),
    ("llama-3.1-8b", "Llama-3.1-8B"),
    ("llama-3.2-11b-vision", "Llama-3.2-11B-Vision-Instruct"),
    ("llama-4-maverick", "Llama-4-Maverick-17B-128E"),
    ("llama-4-scout", "Llama-4-Scout-17B-16E"),
    ("minicpm3-4b", "MiniCPM3-4B"),
    ("mistral-7b-v0.1", "Mistral-7B-v0.1"),
    ("mistral-nemo-12b", "Mistral-Nemo-12B-2407"),
    ("mistral-small-3.1-24b", "Mistral-Small-3.1-24B-Instruct-2503"),
    ("mixtral-8x7b", "Mixtral-8x7B-v0.1"),
    ("olmo-2-7b", "OLMo-2-7B"),
    ("opt-1.3b", "OPT-1.3b"),
    ("opt-350m", "OPT-350m"),
    ("phi-2", "Phi-2"),
    ("phi-4", "Phi-4"),
    ("pythia-6.9b", "Pythia-6.9b"),
    ("qwen1.5-moe-a2.7b", "Qwen1.5-MoE-A2.7B"),
    ("qwen2.5-7b", "Qwen2.5-7B"),
    ("qwen2.5-vl-7b", "Qwen2.5-VL-7B-Instruct"),
    ("qwen3-30b-a3b", "Qwen3-30B-A3B"),
    ("qwen3-8b", "Qwen3-8B"),
    ("qwen3-vl-30b-a3b", "Qwen3-VL-30B-A3B-Instruct"),
    ("qwen3-vl-8b", "Qwen3-VL-8B-Instruct"),
    ("smollm3-3b", "SmolLM3-3B"),
    ("starcoder2-7b", "StarCoder2-7b"),
]

# What a config.json does not say, or says in other words.
OUTSIDE = {
    "key",
    "hf_id",
    "aliases",
    "family",
    "architecture",
    "transformers_class",
    "class_is_equivalent",
    "nominal_b",
    "max_position_embeddings",
    "num_shared_experts",
    "router",
    "mtp_layers",
    "weights_dtype",
    "published_total",
    "published_kind",
    "published_source",
    "published_locator",
    "checkpoint_extras",
    "published_excess",
    "count_basis",
    "licence",
    "licence_source",
    "licence_locator",
    "release_date",
    "release_source",
    "release_locator",
    "source",
    "locator",
    "checked",
    "assumed",
    "notes",
}


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return load_models([shipped_folder()])[0]


def config(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    return values


def written(folder: Path, values: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CatalogError) as caught:
        model_from_config(path)
    return str(caught.value)


def test_every_config_has_its_row() -> None:
    assert {path.stem for path in CONFIGS.glob("*.json")} == {name for name, _ in SAME}


def test_every_known_model_type_has_a_config() -> None:
    top = {config(name)["model_type"] for name, _ in SAME}
    nested = {
        values["text_config"]["model_type"]
        for name, _ in SAME
        if "text_config" in (values := config(name))
    }
    assert set(KNOWN_MODEL_TYPES) <= top | nested


@pytest.mark.parametrize(("name", "key"), SAME)
def test_config_gives_the_catalogs_facts(name: str, key: str, models: dict[str, Model]) -> None:
    read, row = model_from_config(CONFIGS / f"{name}.json"), models[key]
    different = {
        field.name: (getattr(read, field.name), getattr(row, field.name))
        for field in dataclasses.fields(Model)
        if field.name not in OUTSIDE and getattr(read, field.name) != getattr(row, field.name)
    }
    assert different == {}


@pytest.mark.parametrize(("name", "key"), SAME)
def test_config_gives_the_published_total(name: str, key: str, models: dict[str, Model]) -> None:
    row = models[key]
    counted = count_parameters(model_from_config(CONFIGS / f"{name}.json")).total
    if row.published_total is not None:
        stored = sum(checkpoint_extras(row).values()) + (row.published_excess or 0)
        assert counted + stored == row.published_total
    else:
        assert counted == count_parameters(row).total


def test_a_folder_stands_for_its_config_and_names_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "my model (v2)"
    folder.mkdir()
    written(folder, config("qwen2.5-7b"))
    model = model_from_config(folder)
    assert model.key == "my-model-v2"
    assert model == model_from_config(folder / "config.json")
    assert model.source == "config.json"
    assert model_from_config(CONFIGS / "phi-4.json").key == "phi-4"


def test_missing_keys_fall_back_to_class_defaults(tmp_path: Path) -> None:
    """No key-value heads, head width or tie: as many heads, hidden / heads, untied for Llama."""
    model = model_from_config(CONFIGS / "llama-2-7b-gptq.json")
    assert (model.num_key_value_heads, model.head_dim, model.tie_word_embeddings) == (
        32,
        128,
        False,
    )
    values = config("gemma-7b")
    del values["head_dim"]
    assert model_from_config(written(tmp_path, values)).head_dim == 256
    assert model_from_config(written(tmp_path, values)).tie_word_embeddings


def test_quantization_config_changes_no_shape(tmp_path: Path) -> None:
    values = config("llama-2-7b-gptq")
    quantised = count_parameters(model_from_config(written(tmp_path, values)))
    del values["quantization_config"]
    assert count_parameters(model_from_config(written(tmp_path, values))) == quantised


def test_a_null_window_is_no_window_and_an_absent_one_mistrals_default(tmp_path: Path) -> None:
    values = config("mistral-7b-v0.1")
    values["sliding_window"] = None
    assert model_from_config(written(tmp_path, values)).sliding_window is None
    del values["sliding_window"]
    assert model_from_config(written(tmp_path, values)).sliding_window == 4096


def test_a_nested_text_config_of_newer_qwen_vl_files(tmp_path: Path) -> None:
    """Transformers 5 saves Qwen2.5-VL's text sizes under text_config."""
    values = config("qwen2.5-vl-7b")
    vision = values.pop("vision_config")
    nested = {"model_type": "qwen2_5_vl", "text_config": values, "vision_config": vision}
    text = {key: value for key, value in values.items() if key != "model_type"}
    nested["text_config"] = text
    moved = model_from_config(written(tmp_path, nested))
    flat = model_from_config(CONFIGS / "qwen2.5-vl-7b.json")
    assert count_parameters(moved) == count_parameters(flat)


def test_layer_types_rule_over_the_pattern(tmp_path: Path) -> None:
    values = config("gemma-3-1b")
    values["layer_types"] = ["full_attention"] * 26
    assert model_from_config(written(tmp_path, values)).sliding_window is None
    values["layer_types"] = ["sliding_attention", "full_attention"] * 13
    assert model_from_config(written(tmp_path, values)).sliding_pattern == "1:1"
    values["layer_types"] = ["sliding_attention"] * 26
    assert model_from_config(written(tmp_path, values)).sliding_pattern == "all"
    for odd in (
        ["full_attention"] + ["sliding_attention"] * 25,
        ["chunked_attention"] * 26,
        ["full_attention"] * 25,
        [],
    ):
        values["layer_types"] = odd
        assert "layer_types" in refusal(written(tmp_path, values))


# --- what is refused ------------------------------------------------------------------------------


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    values = {"model_type": "mamba2", "architectures": ["Mamba2ForCausalLM"], "hidden_size": 2560}
    message = refusal(written(tmp_path, values))
    assert "'mamba2' (Mamba2ForCausalLM)" in message
    assert "deepseek_v3" in message
    assert "models.csv" in message
    message = refusal(written(tmp_path, {"model_type": "qwen3_next"}))
    assert "nearest is 'qwen3" in message


def test_a_config_without_model_type(tmp_path: Path) -> None:
    assert "model_type" in refusal(written(tmp_path, {"hidden_size": 4096}))
    assert "model_type" in refusal(written(tmp_path, {"model_type": 5}))


def test_missing_keys_are_listed_together(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, {"model_type": "llama", "hidden_size": 4096}))
    assert "no num_attention_heads, num_hidden_layers, intermediate_size, vocab_size" in message
    assert len(message.splitlines()) == 1
    message = refusal(written(tmp_path, {"model_type": "qwen3_vl"}))
    assert "text_config" in message
    assert "vision_config" in message


def test_missing_keys_of_a_vision_tower_carry_their_section(tmp_path: Path) -> None:
    values = config("qwen3-vl-8b")
    del values["vision_config"]["depth"]
    del values["text_config"]["vocab_size"]
    message = refusal(written(tmp_path, values))
    assert "vision_config.depth" in message
    assert "text_config.vocab_size" in message


WRONG = [
    ("llama-3.1-8b", "hidden_size", -4096),
    ("llama-3.1-8b", "hidden_size", "4096"),
    ("llama-3.1-8b", "hidden_size", 4096.0),
    ("llama-3.1-8b", "hidden_size", True),
    ("llama-3.1-8b", "hidden_size", [4096]),
    ("llama-3.1-8b", "num_hidden_layers", 0),
    ("llama-3.1-8b", "vocab_size", 10**9),
    ("llama-3.1-8b", "tie_word_embeddings", "no"),
    ("llama-3.1-8b", "attention_bias", 1),
    ("gemma-2-9b", "layer_types", "full_attention"),
    ("gpt2-xl", "n_embd", -1),
    ("gpt2-xl", "add_cross_attention", True),
    ("phi-2", "qk_layernorm", True),
    ("mixtral-8x7b", "num_local_experts", 1),
    ("deepseek-v3", "moe_layer_freq", 2),
    ("qwen3-30b-a3b", "decoder_sparse_step", 2),
    ("qwen3-30b-a3b", "mlp_only_layers", [5]),
    ("gemma-3-4b", "text_config", []),
    ("gemma-3-4b", "mm_tokens_per_image", 250),
    ("qwen2.5-7b", "use_sliding_window", "yes"),
]


@pytest.mark.parametrize(("name", "key", "value"), WRONG)
def test_wrong_values_are_refused_with_file_and_key(
    name: str, key: str, value: object, tmp_path: Path
) -> None:
    values = config(name)
    values[key] = value
    message = refusal(written(tmp_path, values))
    assert str(tmp_path / "config.json") in message
    assert key in message
    assert repr(value) in message


def test_nested_wrong_values_carry_their_section(tmp_path: Path) -> None:
    values = config("llama-4-scout")
    values["vision_config"]["pixel_shuffle_ratio"] = 0.25
    values["text_config"]["moe_layers"] = [1, 2]
    message = refusal(written(tmp_path, values))
    assert "vision_config.pixel_shuffle_ratio" in message
    assert "text_config.moe_layers" in message


def test_all_wrong_values_are_told_at_once(tmp_path: Path) -> None:
    values = config("llama-3.1-8b") | {"hidden_size": -1, "vocab_size": "many"}
    del values["intermediate_size"]
    message = refusal(written(tmp_path, values))
    assert len(message.splitlines()) == 3


def test_a_config_goes_through_the_catalogs_checks(tmp_path: Path) -> None:
    values = config("llama-3.1-8b") | {"num_key_value_heads": 7}
    message = refusal(written(tmp_path, values))
    assert "num_key_value_heads" in message
    assert "a divisor of num_attention_heads 32" in message
    values = config("deepseek-v3") | {"num_experts_per_tok": 250, "n_routed_experts": 16}
    assert "at most num_experts 16" in refusal(written(tmp_path, values))


def test_broken_json_names_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{\n  "model_type": "llama",\n  "hidden_size": ,\n}', encoding="utf-8")
    assert f"{path}:3:18" in refusal(path)
    path.write_text("", encoding="utf-8")
    assert f"{path}:1:1" in refusal(path)


@pytest.mark.parametrize("text", ["[]", "4096", '"llama"', "null"])
def test_json_that_is_no_object(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    assert "an object of keys" in refusal(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "nothing.json")
    assert "no such file" in refusal(tmp_path)
    path = tmp_path / "config.json"
    path.write_bytes(b'{"model_type": "\xff"}')
    assert "UTF-8" in refusal(path)
    path.write_text("[" * 100_000, encoding="utf-8")
    assert str(path) in refusal(path)
