"""The models catalog: counts to the element, adapters, quantised bytes, names, planted faults."""

from __future__ import annotations

import csv
import dataclasses
import datetime as dt
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.catalogs.architecture import (
    count_parameters,
    lora_parameters,
    quantizable_elements,
)
from sweep.catalogs.checkpoints import checkpoint_extras
from sweep.catalogs.folder import shipped_folder
from sweep.catalogs.models import Model, load_models, resolve_model

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    found, problems = load_models([shipped_folder()])
    assert problems == []
    return found


def published() -> list[dict[str, str]]:
    with (DATA / "published_parameters.csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


PUBLISHED = published()


def test_the_catalog_has_at_least_150_models_and_no_problem(models: dict[str, Model]) -> None:
    assert len(models) >= 150
    assert {row["model"] for row in PUBLISHED} <= set(models)


@pytest.mark.parametrize("row", PUBLISHED, ids=[row["model"] for row in PUBLISHED])
def test_counts_to_the_element(row: dict[str, str], models: dict[str, Model]) -> None:
    """Module trees counted on their classes, and closed formulas, as the row's verdict says."""
    counts = count_parameters(models[row["model"]])
    assert counts.total == int(row["total"])
    assert counts.embedding == int(row["embedding"])
    assert counts.lm_head == int(row["lm_head"])
    assert (counts.vision.total if counts.vision else 0) == int(row["vision"])
    assert sum(checkpoint_extras(models[row["model"]]).values()) == int(row["checkpoint_extras"])
    if row["active_per_token"] and row["model"] != "OPT-350m":
        assert counts.active_per_token == int(row["active_per_token"])


def test_opt_350m_multiplies_its_head_at_the_embedding_width(models: dict[str, Model]) -> None:
    """The one carried-over active count not reproduced: it took the head to be 1024 wide.

    OPT-350m's tied head is 512 wide, between projections of 2 x 512 x 1024 (word_embed_proj_dim).
    """
    counts = count_parameters(models["OPT-350m"])
    looked_up = (2048 + 2) * 1024
    assert counts.active_per_token == counts.total - looked_up
    (row,) = (row for row in PUBLISHED if row["model"] == "OPT-350m")
    projections = 2 * 512 * 1024
    widened = counts.active_per_token - projections + 50272 * 512
    assert widened == int(row["active_per_token"])


@pytest.mark.parametrize(
    "row",
    [row for row in PUBLISHED if row["published_total"]],
    ids=[row["model"] for row in PUBLISHED if row["published_total"]],
)
def test_published_total(row: dict[str, str], models: dict[str, Model]) -> None:
    model = models[row["model"]]
    reproduced = count_parameters(model).total + sum(checkpoint_extras(model).values())
    assert model.published_total == int(row["published_total"])
    assert model.published_total - reproduced == (model.published_excess or 0)


def test_two_published_totals_are_not_reproduced_and_say_why(models: dict[str, Model]) -> None:
    odd = {key: model for key, model in models.items() if model.published_excess}
    assert {key: model.published_excess for key, model in odd.items()} == {
        "Kimi-K2-Instruct": 61 * 56,
        "Moonlight-16B-A3B": 27 * 64,
    }
    assert all(model.count_basis for model in odd.values())
    assert sum(1 for model in models.values() if model.published_total) >= 165 + 2


def test_parts_add_up_to_the_total(models: dict[str, Model]) -> None:
    for model in models.values():
        counts = count_parameters(model)
        assert counts.num_layers == model.num_hidden_layers
        vision = counts.vision.total if counts.vision else 0
        assert counts.root + counts.layers_total + vision == counts.total
        assert 0 < counts.active_per_token <= counts.total
        for group in counts.layers:
            assert group.active_params <= group.params
            assert (group.experts_per_token is None) == (group.expert_params == 0)
        if counts.vision:
            tower = counts.vision
            blocks = tower.depth * tower.per_block_params
            assert blocks + tower.merger_params + tower.other_params == tower.total
            assert sum(linear.params for linear in tower.block) < tower.per_block_params


# A published size on the tin, for models without a published element count (llm-foundry's
# benchmark table, sequence 2048; fms-acceleration's benchmark references).
@pytest.mark.parametrize(
    ("key", "billions"),
    [
        ("MPT-125m", 0.125),
        ("MPT-350m", 0.356),
        ("MPT-760m", 0.760),
        ("MPT-1b", 1.316),
        ("MPT-3b", 2.652),
        ("MPT-7b", 6.659),
        ("MPT-13b", 12.854),
        ("PowerLM-3b", 3.511),
    ],
)
def test_stated_size(key: str, billions: float, models: dict[str, Model]) -> None:
    assert round(count_parameters(models[key]).total / 1e9, 3) == billions


# --- adapters -------------------------------------------------------------------------------------

# Gradient bytes of fp32 adapters / 4 in traced training steps of Transformers 5.23 with PEFT 0.21.2
# (all-linear there without the fused experts, unless said).
TRACED_ADAPTERS = [
    ("meta-llama/Meta-Llama-3-8B", 16, "all-linear", 41_943_040),
    ("meta-llama/Llama-2-7b-hf", 16, "all-linear", 39_976_960),
    ("Qwen/Qwen2.5-0.5B", 16, "all-linear", 8_798_208),
    ("Qwen/Qwen2.5-32B", 16, "all-linear", 134_217_728),
    ("Qwen/Qwen3-8B", 16, "all-linear", 43_646_976),
    ("google/gemma-2-2b", 16, "all-linear", 20_766_720),
    ("google/gemma-3-4b-it", 16, "all-linear", 29_802_496),
    ("openai-community/gpt2", 16, "all-linear", 2_359_296),
    ("EleutherAI/gpt-neox-20b", 16, "all-linear", 69_206_016),
    ("facebook/opt-6.7b", 16, "all-linear", 37_748_736),
    ("bigscience/bloom-7b1", 16, "all-linear", 31_457_280),
    ("tiiuae/falcon-7b", 16, "all-linear", 32_636_928),
    ("THUDM/glm-4-9b", 16, "all-linear", 47_595_520),
    ("allenai/OLMo-2-1124-7B", 16, "all-linear", 39_976_960),
    ("CohereForAI/c4ai-command-r-v01", 16, "all-linear", 100_925_440),
    ("ibm/PowerLM-3b", 16, "all-linear", 33_914_880),
    ("deepseek-ai/DeepSeek-V3", 16, "all-linear", 126_350_336),
    ("deepseek-ai/DeepSeek-V3", 16, "attention", 97_006_592),
    ("deepseek-ai/DeepSeek-V2-Lite", 16, "all-linear", 13_799_424),
    ("openai/gpt-oss-20b", 16, "all-linear", 7_962_624),
    ("mistralai/Mixtral-8x7B-v0.1", 16, "attention", 13_631_488),
    ("meta-llama/Llama-3.2-1B", 8, "attention-qv", 851_968),
    ("meta-llama/Llama-3.2-1B", 64, "attention", 13_631_488),
]


@pytest.mark.parametrize(("name", "rank", "targets", "elements"), TRACED_ADAPTERS)
def test_adapters_of_traced_runs(
    name: str, rank: int, targets: str, elements: int, models: dict[str, Model]
) -> None:
    model = resolve_model(name, models)
    assert model is not None
    assert lora_parameters(count_parameters(model), rank, targets, experts=False) == elements


def test_adapters_on_the_vision_tower_of_traced_qwen3_vl(models: dict[str, Model]) -> None:
    counts = count_parameters(models["Qwen3-VL-8B-Instruct"])
    assert lora_parameters(counts, 16, "all-linear") == 43_646_976
    assert lora_parameters(counts, 16, "all-linear", vision=True) == 52_493_824


def test_all_linear_reaches_mixtrals_experts(models: dict[str, Model]) -> None:
    """Traced with PEFT's rewrite of expert names on: gate and up keep a rank each."""
    counts = count_parameters(models["Mixtral-8x7B-v0.1"])
    assert lora_parameters(counts, 16, "all-linear") == 359_665_664
    assert lora_parameters(counts, 16, "all-linear", experts=False) == 13_631_488


# get_peft_model(..., LoraConfig(r=4, target_modules="all-linear")) on the meta device, PEFT 0.21.2
# with Transformers 5.23.0: fused experts and, of models that see, the tower adapted.
PEFT_ADAPTERS = [
    ("Aya-23-8B", 10_485_760),
    ("BLOOM-7B1", 7_864_320),
    ("Command-R+-104B", 54_788_096),
    ("DeepSeek-V2-Lite", 89_748_736),
    ("DeepSeek-V3", 1_911_313_664),
    ("Falcon-40B", 27_770_880),
    ("Falcon-7B", 8_159_232),
    ("Gemma-2-9B", 13_504_512),
    ("Gemma-3-1B", 3_261_440),
    ("Gemma-3-4B", 9_624_448),
    ("Gemma-7B", 12_500_992),
    ("GLM-4-9B-0414", 11_898_880),
    ("GLM-4-9B", 11_898_880),
    ("GLM-4.5-Air", 453_990_912),
    ("GLM-4.5", 1_331_572_352),
    ("gpt-oss-20b", 1_990_656),
    ("GPT-2-XL", 4_915_200),
    ("Granite-3.0-1B-A400M", 688_128),
    ("Granite-3.3-8B", 12_369_920),
    ("Kimi-K2-Instruct", 2_942_596_352),
    ("Llama-2-7B", 9_994_240),
    ("Llama-3.1-8B", 10_485_760),
    ("Llama-3.2-11B-Vision-Instruct", 16_840_704),
    ("MiniCPM3-4B", 11_943_680),
    ("Mistral-7B-v0.1", 10_485_760),
    ("Mistral-Nemo-12B-2407", 14_254_080),
    ("Mistral-Small-3.1-24B-Instruct-2503", 25_448_448),
    ("Mixtral-8x7B-v0.1", 89_916_416),
    ("OLMo-2-7B", 9_994_240),
    ("OPT-1.3b", 3_538_944),
    ("OPT-350m", 1_781_760),
    ("Phi-2", 5_898_240),
    ("Phi-4", 13_926_400),
    ("Pythia-6.9b", 8_388_608),
    ("Qwen1.5-MoE-A2.7B", 3_981_408),
    ("Qwen2.5-7B", 10_092_544),
    ("Qwen2.5-VL-7B-Instruct", 12_956_160),
    ("Qwen3-30B-A3B", 249_126_912),
    ("Qwen3-8B", 10_911_744),
    ("Qwen3-VL-30B-A3B-Instruct", 5_521_280),
    ("Qwen3-VL-8B-Instruct", 13_123_456),
    ("SmolLM3-3B", 7_557_120),
    ("StarCoder2-7b", 9_568_256),
]


@pytest.mark.parametrize(("key", "elements"), PEFT_ADAPTERS)
def test_adapters_of_real_peft_models(key: str, elements: int, models: dict[str, Model]) -> None:
    counts = count_parameters(models[key])
    assert lora_parameters(counts, 4, "all-linear", vision=True) == elements


def test_adapters_grow_with_rank_and_reach(models: dict[str, Model]) -> None:
    for model in models.values():
        counts = count_parameters(model)
        query_value = lora_parameters(counts, 8, "attention-qv")
        attention = lora_parameters(counts, 8, "attention")
        everything = lora_parameters(counts, 8, "all-linear")
        assert 0 < query_value <= attention <= everything
        assert lora_parameters(counts, 16, "attention") == 2 * attention
        assert lora_parameters(counts, 8, "none") == 0


# --- quantised loading ----------------------------------------------------------------------------

# Parameter bytes less adapter bytes of traced QLoRA runs: nf4 with double quantisation, and the
# dtype of what stays (2 bytes, 4 after prepare_model_for_kbit_training).
TRACED_NF4 = [
    ("meta-llama/Meta-Llama-3-8B", 2, 5_870_412_800 - 167_772_160),
    ("meta-llama/Meta-Llama-3-8B", 4, 7_972_291_584 - 167_772_160),
    ("Qwen/Qwen2.5-0.5B", 2, 492_583_936 - 35_192_832),
    ("Qwen/Qwen2.5-32B", 4, 22_868_710_400 - 536_870_912),
    ("google/gemma-2-2b", 2, 2_307_819_520 - 83_066_880),
    ("facebook/opt-6.7b", 2, 3_906_797_568 - 150_994_944),
    ("EleutherAI/gpt-neox-20b", 2, 11_805_524_992 - 276_824_064),
    ("mistralai/Mixtral-8x7B-v0.1", 2, 91_468_342_272 - 54_525_952),
    ("deepseek-ai/DeepSeek-V2-Lite", 2, 30_149_574_144 - 55_197_696),
    ("deepseek-ai/DeepSeek-V3", 2, 1_320_064_283_136 - 505_401_344),
    ("openai/gpt-oss-20b", 2, 40_916_171_776 - 31_850_496),
    ("Qwen/Qwen1.5-MoE-A2.7B", 2, 26_865_427_456 - 63_713_280),
    ("Qwen/Qwen2.5-VL-7B-Instruct", 2, 6_061_050_368 - 161_480_704),
    ("Qwen/Qwen3-VL-8B-Instruct", 2, 6_552_919_040 - 174_587_904),
]


@pytest.mark.parametrize(("name", "kept", "size_bytes"), TRACED_NF4)
def test_quantised_bytes_of_traced_runs(
    name: str, kept: int, size_bytes: int, models: dict[str, Model]
) -> None:
    model = resolve_model(name, models)
    assert model is not None
    counts = count_parameters(model)
    quantised = quantizable_elements(counts)
    predicted = quantised * (0.5 + 1 / 64 + 4 / 16384) + kept * (counts.total - quantised)
    assert predicted == pytest.approx(size_bytes, rel=1e-3)


# --- the naive twin -------------------------------------------------------------------------------

BLANK: dict[str, object] = dict.fromkeys(field.name for field in dataclasses.fields(Model))
PLAIN: dict[str, object] = {
    **BLANK,
    "key": "plain",
    "aliases": (),
    "model_type": "llama",
    "class_is_equivalent": False,
    "lm_head_bias": False,
    "position_embedding": "rope",
    "embedding_norm": False,
    "qkv_bias": False,
    "o_bias": False,
    "qk_norm": "none",
    "attention_sinks": False,
    "mlp_type": "swiglu",
    "mlp_bias": False,
    "norm_type": "rmsnorm",
    "norms_per_layer": 2,
    "final_norm": True,
    "shared_expert_gate": False,
    "router_bias": "none",
    "expert_bias": False,
    "cross_attention_layers": (),
    "vision_full_attention_layers": (),
    "checkpoint_extras": (),
    "source": "test",
    "locator": "test",
    "checked": dt.date(2026, 11, 21),
}


def plain(**facts: object) -> Model:
    return Model(**{**PLAIN, **facts})  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(
    layers=st.integers(1, 6),
    groups=st.integers(1, 4),
    per_group=st.integers(1, 4),
    head_dim=st.integers(4, 64),
    hidden=st.integers(16, 300),
    width=st.integers(16, 500),
    vocab=st.integers(16, 2000),
    experts=st.integers(2, 9),
    tied=st.booleans(),
    bias=st.booleans(),
    routed=st.booleans(),
)
def test_counts_equal_a_naive_sum_over_tensors(
    layers: int,
    groups: int,
    per_group: int,
    head_dim: int,
    hidden: int,
    width: int,
    vocab: int,
    experts: int,
    tied: bool,
    bias: bool,
    routed: bool,
) -> None:
    heads = groups * per_group
    model = plain(
        model_type="mixtral" if routed else "qwen2",
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        intermediate_size=width,
        vocab_size=vocab,
        tie_word_embeddings=tied,
        qkv_bias=bias,
        num_experts=experts if routed else None,
        experts_per_token=2 if routed else None,
        moe_intermediate_size=width if routed else None,
    )
    tensors: list[tuple[int, ...]] = [(vocab, hidden), (hidden,)]
    if not tied:
        tensors.append((vocab, hidden))
    for _ in range(layers):
        for out in (heads * head_dim, groups * head_dim, groups * head_dim):
            tensors.append((out, hidden))
            if bias:
                tensors.append((out,))
        tensors += [(hidden, heads * head_dim), (hidden,), (hidden,)]
        mlp = [(width, hidden), (width, hidden), (hidden, width)]
        if routed:
            tensors.append((experts, hidden))
        for _ in range(experts if routed else 1):
            tensors += mlp
    total = 0
    for shape in tensors:
        elements = 1
        for edge in shape:
            elements *= edge
        total += elements
    counts = count_parameters(model)
    assert counts.total == total
    idle = (experts - 2) * 3 * hidden * width * layers if routed else 0
    looked_up = 0 if tied else vocab * hidden
    assert counts.active_per_token == total - idle - looked_up


# --- structure ------------------------------------------------------------------------------------


def test_layer_groups_follow_the_depth(models: dict[str, Model]) -> None:
    def kinds(key: str) -> list[tuple[str, int, int, int | None]]:
        groups = count_parameters(models[key]).layers
        return [(group.kind, group.first_layer, group.count, group.window) for group in groups]

    assert kinds("Llama-3-8B") == [("dense", 0, 32, None)]
    assert kinds("Mistral-7B-v0.1") == [("dense", 0, 32, 4096)]
    assert kinds("DeepSeek-V3") == [("dense", 0, 3, None), ("moe", 3, 58, None)]
    assert kinds("Gemma-2-9B") == [("sliding", 0, 21, 4096), ("global", 1, 21, None)]
    assert kinds("Gemma-3-4B") == [("sliding", 0, 29, 1024), ("global", 5, 5, None)]
    assert kinds("gpt-oss-20b") == [("sliding", 0, 12, 128), ("global", 1, 12, None)]
    assert kinds("Llama-4-Maverick-17B-128E") == [("dense", 0, 24, None), ("moe", 1, 24, None)]
    assert kinds("Llama-3.2-11B-Vision-Instruct") == [
        ("dense", 0, 32, None),
        ("cross_attention", 3, 8, None),
    ]
    interleaved = {key for key, model in models.items() if count_parameters(model).interleaved}
    assert "Gemma-3-4B" in interleaved
    assert "DeepSeek-V3" not in interleaved


def test_fused_experts_are_no_linear_modules(models: dict[str, Model]) -> None:
    for model in models.values():
        for group in count_parameters(model).layers:
            for linear in group.linears:
                if linear.role == "expert":
                    assert not linear.is_linear_module
                    assert linear.copies == model.num_experts
                elif linear.role in ("attention", "mlp", "shared_expert"):
                    assert linear.is_linear_module


def test_names_of_matrices_follow_hugging_face(models: dict[str, Model]) -> None:
    def names(key: str, role: str) -> list[str]:
        layer = count_parameters(models[key]).layers[0]
        return [linear.name for linear in layer.linears if linear.role == role]

    assert names("Phi-4", "attention") == ["qkv_proj", "o_proj"]
    assert names("Phi-4", "mlp") == ["gate_up_proj", "down_proj"]
    assert names("GPT-2", "attention") == ["c_attn", "c_proj"]
    assert names("Pythia-1b", "mlp") == ["dense_h_to_4h", "dense_4h_to_h"]
    assert names("OPT-1.3b", "mlp") == ["fc1", "fc2"]
    assert names("DeepSeek-R1", "attention") == [
        "q_a_proj",
        "q_b_proj",
        "kv_a_proj_with_mqa",
        "kv_b_proj",
        "o_proj",
    ]


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Llama-3-8B", "Llama-3-8B"),
        ("llama-3-8b", "Llama-3-8B"),
        ("meta-llama/Meta-Llama-3-8B", "Llama-3-8B"),
        ("NousResearch/Meta-Llama-3-8B", "Llama-3-8B"),
        ("LLAMA3_8B", "Llama-3-8B"),
        ("LLAMA3.1_405B", "Llama-3.1-405B"),
        ("Qwen2.5-7B-Instruct", "Qwen2.5-7B"),
        ("Qwen2-57B-A14B", "Qwen2-57B-A14B"),
        ("qwen-7b-chat", "Qwen1.5-7B"),
        ("gpt2", "GPT-2"),
        ("TheBloke/Mistral-7B-v0.1-GPTQ", "Mistral-7B-v0.1"),
        ("DeepSeek-R1", "DeepSeek-R1"),
    ],
)
def test_resolve(name: str, key: str, models: dict[str, Model]) -> None:
    found = resolve_model(name, models)
    assert found is not None
    assert found.key == key


@pytest.mark.parametrize("name", ["", "Llama", "no-such-model", "Qwen2-57B", "meta-llama/"])
def test_unknown_names_resolve_to_none(name: str, models: dict[str, Model]) -> None:
    assert resolve_model(name, models) is None


# --- planted faults -------------------------------------------------------------------------------


def planted(folder: Path, origin: str, **cells: str) -> tuple[dict[str, Model], list[str]]:
    """The shipped catalog under a user's folder whose copy of one row has other cells."""
    with (shipped_folder() / "models.csv").open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        (row,) = (row for row in reader if row["key"] == origin)
        names = list(reader.fieldnames or ())
    row |= {"notes": "planted"} | cells
    with (folder / "models.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, names)
        writer.writeheader()
        writer.writerow(row)
    found, problems = load_models([shipped_folder(), folder])
    return found, [str(problem) for problem in problems]


FAULTS = [
    ("Llama-3-8B", {"num_key_value_heads": "7"}, "num_key_value_heads", "a divisor of"),
    ("Llama-3-8B", {"hidden_size": "-4096"}, "hidden_size", "16 to 65536"),
    ("Llama-3-8B", {"hidden_size": "4096.5"}, "hidden_size", "a whole number"),
    ("Llama-3-8B", {"hidden_size": "nan"}, "hidden_size", "a finite number"),
    ("Llama-3-8B", {"hidden_size": "4 k"}, "hidden_size", "a number"),
    ("Llama-3-8B", {"hidden_size": ""}, "hidden_size", "required"),
    ("Llama-3-8B", {"num_hidden_layers": "320"}, "nominal_b", "a size near the count"),
    ("Llama-3-8B", {"vocab_size": "128000"}, "published_total", "8,028,164,096"),
    ("Llama-3-8B", {"published_excess": "5"}, "published_total", "published_excess"),
    ("Llama-3-8B", {"model_type": "lama"}, "model_type", "did you mean 'llama'"),
    ("Llama-3-8B", {"mlp_type": "gelu"}, "mlp_type", "what the layout llama has"),
    ("Llama-3-8B", {"tie_word_embeddings": "maybe"}, "tie_word_embeddings", "y or n"),
    ("Llama-3-8B", {"head_dim": ""}, "head_dim", "a width"),
    ("Llama-3-8B", {"checked": "21.11.2026"}, "checked", "YYYY-MM-DD"),
    ("Llama-3-8B", {"source": "model-litgtp"}, "source", "did you mean 'model-litgpt'"),
    ("Llama-3-8B", {"source": ""}, "source", "required"),
    ("Llama-3-8B", {"aliases": "Qwen/Qwen3-8B"}, "aliases", "each name for one model"),
    ("Llama-3-8B", {"sliding_pattern": "5:1"}, "sliding_pattern", "with sliding_window"),
    ("Llama-3-8B", {"release_date": "last year"}, "release_date", "YYYY-MM"),
    ("Llama-3-8B", {"checkpoint_extras": "inv_frq"}, "checkpoint_extras", "did you mean"),
    ("Llama-3-8B", {"cross_attention_layers": "3;x"}, "cross_attention_layers", "numbers"),
    ("Llama-3-8B", {"cross_attention_layers": "3;99"}, "cross_attention_layers", "below"),
    ("GPT-2", {"position_rows": ""}, "position_rows", "a learned table"),
    ("Gemma-3-4B", {"sliding_pattern": "often"}, "sliding_pattern", "5:1"),
    ("DeepSeek-V3", {"kv_lora_rank": ""}, "head_dim", "latent attention"),
    ("DeepSeek-V3", {"v_head_dim": ""}, "v_head_dim", "latent attention"),
    ("DeepSeek-V3", {"head_dim": "128"}, "head_dim", "nothing with latent attention"),
    ("DeepSeek-V3", {"first_k_dense": "61"}, "first_k_dense", "below num_hidden_layers"),
    ("Qwen3-30B-A3B", {"experts_per_token": "200"}, "experts_per_token", "at most num_experts"),
    ("Qwen3-30B-A3B", {"moe_intermediate_size": ""}, "moe_intermediate_size", "experts"),
    ("Llama-4-Maverick-17B-128E", {"moe_layer_step": "5"}, "moe_layer_step", "a divisor"),
    ("Qwen2.5-VL-7B-Instruct", {"vision_heads": "7"}, "vision_heads", "a divisor"),
    ("Qwen2.5-VL-7B-Instruct", {"vision_merge": ""}, "vision_merge", "qwen2_5_vl tower"),
    ("Qwen2.5-VL-7B-Instruct", {"vision_type": ""}, "vision_type", "a vision tower"),
    ("Kimi-K2-Instruct", {"count_basis": ""}, "count_basis", "differs by"),
    ("Kimi-K2-Instruct", {"published_excess": ""}, "published_total", "difference +3,416"),
    ("GLM-4.5", {"num_shared_experts": "1", "shared_intermediate_size": ""}, "shared_", "width"),
]


@pytest.mark.parametrize(("key", "cells", "column", "words"), FAULTS)
def test_planted_fault(
    key: str, cells: dict[str, str], column: str, words: str, tmp_path: Path
) -> None:
    found, problems = planted(tmp_path, key, **cells)
    assert problems
    (message,) = (text for text in problems if f", {column}" in text)
    assert message.startswith(str(tmp_path / "models.csv") + ":2")
    assert words in message
    if column != "aliases":
        assert all(model.notes != "planted" for model in found.values())


def test_every_fault_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    _, problems = planted(
        tmp_path, "Llama-3-8B", hidden_size="none", vocab_size="-1", source="nowhere"
    )
    assert len(problems) == 2
    _, problems = planted(tmp_path, "Llama-3-8B", num_key_value_heads="7", source="nowhere")
    assert len(problems) == 2


def test_a_users_row_replaces_the_shipped_one_and_a_new_key_is_added(tmp_path: Path) -> None:
    found, problems = planted(tmp_path, "Llama-3-8B", notes="mine", aliases="my/llama")
    assert problems == []
    assert found["Llama-3-8B"].notes == "mine"
    assert found["Llama-3-8B"].aliases == ("my/llama",)
    found, problems = planted(tmp_path, "Llama-3-8B", key="My-8B", hf_id="", aliases="")
    assert problems == []
    assert {"My-8B", "Llama-3-8B"} <= set(found)


def test_a_key_with_a_space_is_refused(tmp_path: Path) -> None:
    found, problems = planted(tmp_path, "Llama-3-8B", key="My 8B", hf_id="", aliases="")
    assert "letters, digits" in problems[0]
    assert "My 8B" not in found


def test_folders_without_a_models_file(tmp_path: Path) -> None:
    found, problems = load_models([tmp_path])
    assert found == {}
    assert "models.csv" in str(problems[0])
