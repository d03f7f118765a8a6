"""Points in, predictions out: reading, matching, bands, and the errors on the shipped evidence."""

from __future__ import annotations

import csv
import io
import json
import random
import statistics
from pathlib import Path

import pytest
from click.testing import CliRunner

from sweep.catalogs import Catalogs, load_catalogs
from sweep.catalogs.architecture import adapter_rank, count_parameters
from sweep.catalogs.bands import Band, BandBook
from sweep.cli import main, root
from sweep.errors import CatalogError
from sweep.evidence.calibrate import calibrate
from sweep.evidence.matching import match_point
from sweep.evidence.names import resolve_architecture, truncate
from sweep.evidence.points import Point, Unpredictable, read_points
from sweep.evidence.predict import Prediction, predict_point
from sweep.evidence.program_words import lora_target
from sweep.evidence.summary import read_evidence
from sweep.evidence.tables import COLUMNS, rules_of, write_predictions
from sweep.evidence.validate import counts, errors_of, fit_rates, is_full_length
from sweep.kernels.memory import SECOND
from sweep.units import GIB

# One of the published rows: packed LoRA on one A100 (fms-acceleration, a100_80gb.csv).
LORA = {
    "id": "one", "kind": "measured", "grade": "A", "task": "train",
    "model": "mistralai/Mistral-7B-v0.1", "method": "lora", "stack": "hf", "engine": "none",
    "weight_dtype": "bf16", "compute_dtype": "bf16", "autocast": "n", "lora_rank": "16",
    "lora_targets": "q_proj,k_proj,v_proj,o_proj", "optimizer": "adamw", "checkpointing": "full",
    "attention": "flash", "cross_entropy": "none", "micro_batch": "8", "seq_len": "4096",
    "gpu": "A100-80GB", "gpu_memory_gb": "80", "gpu_count": "1", "zero_stage": "0",
    "measure": "peak_allocated", "peak_gib": "36.082", "unit_certainty": "certain",
    "source": "foundation-model-stack/fms-acceleration scripts/benchmarks/refs/a100_80gb.csv line 3",
}  # fmt: skip


@pytest.fixture(scope="module")
def catalogs() -> Catalogs:
    return load_catalogs()


@pytest.fixture(scope="module")
def predictions(catalogs: Catalogs) -> list[Prediction]:
    return [predict_point(point, catalogs) for point in read_evidence(None, catalogs)]


def point(**changes: str) -> Point:
    return Point({**LORA, **changes}, 2)


def write(path: Path, *rows: dict[str, str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(LORA))
        writer.writeheader()
        writer.writerows(rows)
    return path


# -- reading -------------------------------------------------------------------------------------


def test_rows_come_in_order_whatever_else_the_file_holds(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("\ufeffmodel,id,method,colour\nA,2,full,red\n\nB,1,lora,\n", encoding="utf-8")
    found = read_points(path)
    assert [one["id"] for one in found] == ["2", "1"]
    assert [one.line for one in found] == [2, 4]
    assert found[0]["colour"] == "red"
    assert found[0]["seq_len"] == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns missing: id, model, method"),
        ("ids,model,method\n", "id (found 'ids')"),
        ("id,model,method\n1,a\n", ":2: found 2 cells, allowed 3"),
        ('id,model,method\n1,"a,full\n', ":2: unexpected end of data"),
    ],
)
def test_a_file_that_is_no_table_says_where(tmp_path, text, message):
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(CatalogError, match=r"points\.csv") as caught:
        read_points(path)
    assert message in str(caught.value)


def test_a_file_that_is_not_there_says_so(tmp_path):
    with pytest.raises(CatalogError, match="cannot be read: No such file"):
        read_points(tmp_path / "nowhere.csv")


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen2.5-7B"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen2.5-7B"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "Qwen2.5-7B"),
        ("someone/qwen2.5-7b-chat-bnb-4bit", "Qwen2.5-7B"),
        ("TheBloke/Mistral-7B-v0.1-GPTQ", "Mistral-7B-v0.1"),
        ("NousResearch/Meta-Llama-3-8B", "Llama-3-8B"),
    ],
)
def test_variants_are_their_architecture(catalogs, name, key):
    found = resolve_architecture(name, catalogs.models)
    assert found is not None
    assert found.key == key


def test_names_of_nothing_are_none(catalogs):
    assert resolve_architecture("nobody/nothing-7b", catalogs.models) is None
    assert resolve_architecture("", catalogs.models) is None
    # A family alone is no architecture.
    assert resolve_architecture("Qwen/Qwen2.5-Instruct", catalogs.models) is None


@pytest.mark.parametrize(
    "name", ["Llama-3-70B shapes truncated to 12 layers", "meta-llama/Meta-Llama-3-70B (12 layers)"]
)
def test_truncated_shapes_are_the_architecture_with_fewer_layers(catalogs, name):
    found = resolve_architecture(name, catalogs.models)
    assert found is not None
    assert (found.num_hidden_layers, found.hidden_size, found.vocab_size) == (12, 8192, 128256)


def test_no_model_is_truncated_to_more_layers_than_it_has(catalogs):
    with pytest.raises(ValueError, match="has 32 layers, it cannot be truncated to 40"):
        truncate(catalogs.models["Llama-3-8B"], 40)


@pytest.mark.parametrize(
    ("words", "target"),
    [
        ("q_proj,k_proj,v_proj,o_proj", "attention"),
        ("query,value", "attention-qv"),
        ("gate_proj,down_proj,up_proj,q_proj,v_proj,k_proj,o_proj", "all-linear"),
        ("k,q,v,up,down,gate", "q+k+v+gate+up+down"),
        ("DEFAULT (qkv: c_attn / W_pack; q,k,v for llama-like)", "q+k+v"),
        ("query,key,value,projection,mlp,head", "all-linear"),
    ],
)
def test_lora_targets_in_words(words, target):
    assert lora_target(words) == target


# -- matching ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "nobody/nothing"}, "no architecture in the catalog for model 'nobody/nothing'"),
        ({"stack": "mystack"}, "no rule for stack 'mystack' with engine 'none'"),
        ({"seq_len": ""}, "seq_len is not known"),
        ({"seq_len": "4k"}, "seq_len: found '4k', allowed a number"),
        ({"micro_batch": "0"}, "micro_batch: found '0', allowed a positive whole number"),
        ({"method": "galore"}, "method: 'galore' is not known here"),
        ({"lora_targets": "elbow"}, "lora_targets: unknown projection 'elbow'"),
        ({"gpu_count": "3", "tp": "2"}, "3 GPUs do not divide into tp x pp x cp"),
        ({"autocast": "maybe"}, "autocast: found 'maybe', allowed y or n"),
        ({"optimizer": "shampoo"}, "optimizer: 'shampoo' is not known here"),
    ],
)
def test_what_cannot_be_predicted_says_why(catalogs, changes, reason):
    with pytest.raises(Unpredictable) as caught:
        match_point(point(**changes), catalogs)
    assert reason in str(caught.value)
    found = predict_point(point(**changes), catalogs)
    assert found.figures is None
    assert reason in found.reason


def test_a_full_step_under_fsdp1_holds_five_copies_of_the_shard(catalogs):
    # Weight, gradient, two states and AdamW's temporary, in fp32, over two GPUs: PyTorch's foreach
    # AdamW. The published peak of this run is 67.46 GiB (fms-253).
    found = predict_point(
        point(
            method="full", stack="hf_fused", engine="fsdp1", weight_dtype="fp32", autocast="y",
            gpu_count="2", zero_stage="3", micro_batch="4", cross_entropy="fused_ce",
        ),
        catalogs,
    )  # fmt: skip
    assert found.figures is not None
    assert found.figures.allocated_bytes == pytest.approx(5 * 4 * 7_241_732_096 / 2, rel=1e-3)


def test_an_older_transformers_holds_other_logits(catalogs):
    # Two bytes a logit more since 4.48, at a loss-bound step.
    older = predict_point(point(notes="transformers 4.45.2", source="mine"), catalogs)
    newer = predict_point(point(notes="transformers 4.48.0", source="mine"), catalogs)
    assert older.figures is not None
    assert newer.figures is not None
    difference = newer.figures.allocated_bytes - older.figures.allocated_bytes
    assert difference == pytest.approx(2 * 32000 * 8 * 4096)


def test_a_sum_over_gpus_is_predicted_as_one(catalogs):
    changes = {"gpu_count": "4", "engine": "fsdp1", "zero_stage": "3"}
    one = predict_point(point(**changes), catalogs)
    four = predict_point(point(**changes, scope="sum_all_gpus"), catalogs)
    assert one.expected_bytes is not None
    assert four.expected_bytes == pytest.approx(4 * one.expected_bytes)
    assert one.fits == four.fits


def test_the_verdict_follows_the_card(catalogs):
    big = predict_point(point(), catalogs)
    small = predict_point(point(gpu="A100-40GB", gpu_memory_gb="40"), catalogs)
    tiny = predict_point(point(gpu="", gpu_memory_gb="24"), catalogs)
    unknown = predict_point(point(gpu="", gpu_memory_gb=""), catalogs)
    assert (big.fits, small.fits, tiny.fits, unknown.fits) == (True, True, False, None)


def test_the_device_shows_more_than_is_reserved_and_that_more_than_is_allocated(predictions):
    known = [one.figures for one in predictions if one.figures is not None]
    assert len(known) > 900
    for figures in known:
        assert figures.allocated_bytes <= figures.reserved_bytes <= figures.device_bytes
        assert figures.allocated_bytes <= figures.needed_bytes


# -- bands ---------------------------------------------------------------------------------------


def test_the_nearest_band_is_found():
    bands = {
        name: Band(*name, 0.9, 1.1, 1, 1, "")
        for name in (("*", "*", "*"), ("hf", "*", "allocated"), ("hf-x", "lora", "allocated"))
    }
    book = BandBook(tuple(bands.values()))
    assert book.find(("hf-x", "hf"), "lora", "allocated").stack == "hf-x"
    assert book.find(("hf-x", "hf"), "full", "allocated") is bands["hf", "*", "allocated"]
    assert book.find(("hf-x", "hf"), "full", "device") is bands["*", "*", "*"]


def test_few_sources_widen_a_band(catalogs):
    def of(*pairs: tuple[str, float]) -> float:
        ones = []
        for source, ratio in pairs:
            one = predict_point(point(source=source), catalogs)
            assert one.expected_bytes is not None
            words = {**one.point.words, "peak_gib": str(ratio * one.expected_bytes / GIB)}
            ones.append(predict_point(Point(words, 2), catalogs))
        found = {(band.method, band.figure): band for band in calibrate(ones)}
        return found["lora", "allocated"].high

    single = of(("a", 1.02), ("a", 1.1), ("a", 1.1))
    several = of(("a", 1.02), ("b", 1.1), ("c", 1.1))
    assert single == pytest.approx(1.1**3, abs=0.001)
    assert several == pytest.approx(1.1 ** (1 + 2 / 3), abs=0.001)
    # Never narrower than the floor.
    assert of(("a", 1.0), ("b", 1.0), ("c", 1.0)) == pytest.approx(1.015)


def test_bands_hold_nine_in_ten_of_the_visible_points(predictions):
    judged = [one for one in predictions if is_full_length(one.point)]
    found = errors_of("all", judged)
    assert found is not None
    assert found.inside_band >= 0.9


# -- the shipped evidence ------------------------------------------------------------------------


def absolute(predictions: list[Prediction], *stacks: str) -> list[float]:
    return sorted(
        abs(one.error)
        for one in predictions
        if one.error is not None and counts(one.point) and (not stacks or one.stack in stacks)
    )


def test_traced_steps(predictions):
    found = sorted(
        abs(one.error)
        for one in predictions
        if one.point["kind"] == "traced" and one.error is not None
    )
    assert len(found) > 500
    assert statistics.median(found) <= 0.005
    assert found[int(0.95 * len(found))] <= 0.02


@pytest.mark.parametrize(
    ("stacks", "points", "median", "p90"),
    [
        (("hf", "hf-fused"), 50, 0.01, 0.03),
        (("hf-fsdp1", "hf-fused-fsdp1"), 70, 0.01, 0.03),
        (("megatron",), 9, 0.04, 0.12),
        (("transformers", "litgpt"), 100, 0.02, 0.05),
        (("torchtitan", "torchtitan-tp"), 30, 0.08, 0.3),
        (("torchtitan-graph", "torchtitan-graph-tp"), 13, 0.08, 0.12),
        (("fsdp-qlora",), 18, 0.08, 0.12),
        ((), 250, 0.025, 0.12),
    ],
)
def test_published_peaks(predictions, stacks, points, median, p90):
    published = [one for one in predictions if one.point["kind"] != "traced"]
    found = absolute(published, *stacks)
    assert len(found) >= points
    assert statistics.median(found) <= median
    assert found[int(0.9 * len(found))] <= p90


def test_false_and_missed_fits(predictions):
    rates = fit_rates(one for one in predictions if is_full_length(one.point))
    assert rates.failed > 20
    assert rates.ran > 500
    assert len(rates.false) <= 0.01 * rates.failed
    assert len(rates.missed) <= 0.1 * rates.ran


def test_rules_of_thumb_stand_beside_ours(catalogs):
    said = rules_of(predict_point(point(), catalogs))
    low, expected, high = said["lora_2_5_to_4_bytes"]
    assert (low, high) == pytest.approx((2.5 * 7_241_732_096, 4.0 * 7_241_732_096))
    assert low < expected < high
    assert isinstance(said["qlora_0_7_to_1_5_bytes"], str)


# -- the command line ----------------------------------------------------------------------------


def test_estimate_answers_every_row_in_order(tmp_path):
    rows = [{**LORA, "id": name} for name in ("b", "a", "b")]
    rows[1] |= {"model": "nobody/nothing"}
    out = tmp_path / "predictions.csv"
    assert main(["estimate", str(write(tmp_path / "p.csv", *rows)), "--out", str(out)]) == 0
    found = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [row["id"] for row in found] == ["b", "a", "b"]
    assert tuple(found[0]) == COLUMNS
    assert float(found[0]["low_gib"]) < 36.082 < float(found[0]["high_gib"])
    assert (found[0]["fits"], found[0]["reason"]) == ("y", "")
    assert found[1]["reason"].startswith("no architecture in the catalog")
    assert found[1]["peak_allocated_gib"] == found[1]["fits"] == ""


def test_estimate_adds_the_rules_of_thumb(tmp_path, catalogs):
    text = write_predictions([predict_point(point(), catalogs)], estimators=True)
    row = next(csv.DictReader(io.StringIO(text)))
    assert float(row["lora_2_5_to_4_bytes_gib"]) == pytest.approx(
        3.25 * 7_241_732_096 / GIB, rel=1e-3
    )
    assert row["qlora_0_7_to_1_5_bytes_gib"] == ""


def test_validate_of_ones_own_points(tmp_path):
    path = write(tmp_path / "p.csv", LORA, {**LORA, "id": "two", "model": "x"})
    result = CliRunner().invoke(root, ["validate", str(path), "--estimators"])
    assert result.exit_code == 0
    assert "2 points, 1 with a measured and a predicted peak" in result.stdout
    assert "farthest off" in result.stdout
    assert "lora_2_5_to_4_bytes" in result.stdout
    assert "without a prediction: 1 points" in result.stdout
    result = CliRunner().invoke(root, ["validate", str(path), "--json"])
    found = json.loads(result.stdout)
    assert [one["id"] for one in found["points"]] == ["one", "two"]


def test_a_missing_file_is_one_message(tmp_path, capsys):
    assert main(["estimate", str(tmp_path / "nowhere.csv")]) == 2
    assert "nowhere.csv: cannot be read" in capsys.readouterr().err


# -- laws ----------------------------------------------------------------------------------------


def test_no_mixture_of_known_words_breaks_it(catalogs):
    rows = [dict(one.words) for one in read_evidence(None, catalogs)]
    values = {name: sorted({row[name] for row in rows}) for name in rows[0]}
    names = [
        name
        for name in values
        if name not in ("id", "kind", "peak_gib", "grade", "unit_certainty", "resident_gib")
    ]
    draw = random.Random(20261121)
    predicted = 0
    for _ in range(1500):
        row = dict(draw.choice(rows))
        for name in draw.sample(names, draw.randint(1, 4)):
            row[name] = draw.choice(values[name])
        found = predict_point(Point(row, 1), catalogs)
        assert bool(found.reason) == (found.figures is None)
        predicted += found.figures is not None
    assert predicted > 500


def test_adapters_on_listed_projections_are_counted(catalogs):
    # Llama-2-7B, rank 64 on q, k, v, gate, up, down: (3 x 2 x 4096 + 3 x (4096 + 11008)) x 64 x 32.
    counts_ = count_parameters(catalogs.models["Llama-2-7B"])
    listed = sum(
        group.count
        * adapter_rank(linear, counts_, 64, "q+k+v+gate+up+down")
        * (linear.in_features + linear.out_features)
        for group in counts_.layers
        for linear in group.linears
    )
    assert listed == 64 * 32 * (3 * 2 * 4096 + 3 * (4096 + 11008))


def test_offloaded_checkpoints_leave_the_gpu(catalogs):
    kept = predict_point(point(), catalogs)
    offloaded = predict_point(point(checkpointing="full_offload"), catalogs)
    assert kept.figures is not None
    assert offloaded.figures is not None
    gone = kept.figures.allocated_bytes - offloaded.figures.allocated_bytes
    assert gone == pytest.approx(2 * 4096 * 32 * 8 * 4096, rel=0.01)


def test_a_step_as_one_graph_is_another_stack(catalogs):
    titan = {
        "model": "meta-llama/Llama-3.1-8B", "method": "full", "stack": "torchtitan",
        "engine": "fsdp2", "weight_dtype": "fp32", "autocast": "y", "optimizer": "adamw",
        "checkpointing": "selective_op", "micro_batch": "1", "seq_len": "8192", "gpu_count": "8",
        "zero_stage": "3", "measure": "peak_reserved", "gpu": "H100-80GB",
        "source": "pytorch/torchtitan commit 0 (#2000)",
    }  # fmt: skip
    eager = match_point(point(**titan), catalogs).scenario
    assert eager.program.stack == "torchtitan"
    for words in (
        {"engine": "simplefsdp"},
        {"parallelism": "fsdp x8 (graph trainer)"},
        {"source": "pytorch/torchtitan commit 27aa49077 (#3429) default policy FSDP8"},
    ):
        assert match_point(point(**titan | words), catalogs).scenario.program.stack == (
            "torchtitan-graph"
        ), words
    split = match_point(point(**titan | {"engine": "simplefsdp", "tp": "2"}), catalogs).scenario
    assert split.program.stack == "torchtitan-graph-tp"
    # Published: 28.28 GiB with every second matmul saved, 52.44 with all of them (titan-040, -050).
    some = predict_point(point(**titan | {"engine": "simplefsdp", "tp": "2"}), catalogs)
    every = predict_point(point(**titan | words), catalogs)
    assert some.expected_bytes == pytest.approx(28.28 * GIB, rel=0.04)
    assert every.expected_bytes == pytest.approx(52.44 * GIB, rel=0.04)


@pytest.mark.parametrize(("schedule", "gib"), [("1F1B", 82.5), ("interleaved 1F1B", 72.7)])
def test_a_torchtitan_pipeline_splits_its_batch_and_stays_gathered(catalogs, schedule, gib):
    # Published: arXiv 2410.06511, table 5 (405B on 512 H100, FSDP 8, TP 8, PP 8); no point of ours.
    paper = {
        "model": "meta-llama/Llama-3.1-405B", "method": "full", "stack": "torchtitan",
        "engine": "fsdp2", "weight_dtype": "fp32", "autocast": "y", "optimizer": "adamw",
        "checkpointing": "full", "micro_batch": "32", "seq_len": "8192", "gpu_count": "512",
        "tp": "8", "pp": "8", "zero_stage": "3", "measure": "peak_reserved", "gpu": "H100-80GB",
        "source": "torchtitan benchmarks of 202412", "parallelism": f"FSDP8 TP8 PP8 {schedule}",
    }  # fmt: skip
    found = predict_point(point(**paper), catalogs)
    assert found.expected_bytes == pytest.approx(gib * GIB, rel=0.13)
    # Microbatches of one sequence since: what the schedule holds falls with them.
    recent = predict_point(point(**paper | {"source": "pytorch/torchtitan (#1500)"}), catalogs)
    assert recent.expected_bytes < 0.95 * found.expected_bytes
    odd = predict_point(point(**paper | {"micro_batch": "33"}), catalogs)
    assert "does not divide into" in odd.reason


def test_a_pipeline_of_two_kinds_of_layers_holds_them_in_their_order(catalogs):
    pipeline = {
        "model": "deepseek-ai/DeepSeek-V3", "method": "full", "stack": "megatron",
        "engine": "megatron", "optimizer": "adam_distributed", "checkpointing": "full",
        "cross_entropy": "fused_ce", "micro_batch": "1", "gpu_count": "256", "pp": "16",
        "ep": "16", "grad_accum": "32",
    }  # fmt: skip
    found = {
        stage: predict_point(point(**pipeline, notes=f"{stage} PP stage"), catalogs).figures.terms
        for stage in ("first", "last")
    }
    # 61 layers in 16 stages of 4: three dense layers and one of experts first, experts alone last.
    model = resolve_architecture(pipeline["model"], catalogs.models)
    dense, routed = (group for group in count_parameters(model).layers)
    embedding = model.vocab_size * model.hidden_size
    assert (dense.count, routed.count) == (3, 58)
    outside = routed.params - routed.expert_params
    first = 3 * dense.params + outside + routed.expert_params / 16 + embedding
    assert found["first"]["weights"] == pytest.approx(2 * first)
    last = 4 * (outside + routed.expert_params / 16) + embedding + model.hidden_size
    assert found["last"]["weights"] == pytest.approx(2 * last)
    # Neither needs most without recomputation: the second has experts alone and 15 batches in flight.
    kept = predict_point(point(**pipeline | {"checkpointing": "none"}), catalogs)
    worst = kept.figures.terms
    assert worst["stage"] == SECOND
    assert worst["in_flight"] == 15


def test_experts_may_reach_over_tensor_parallel_ranks(catalogs):
    moe = {
        "model": "Qwen/Qwen3-30B-A3B", "method": "full", "stack": "megatron", "engine": "megatron",
        "optimizer": "adam_distributed", "checkpointing": "full", "cross_entropy": "fused_ce",
        "micro_batch": "1", "gpu_count": "8", "tp": "4", "ep": "4",
    }  # fmt: skip
    # Two data-parallel ranks, four of experts: an expert is whole on a rank.
    group = count_parameters(resolve_architecture(moe["model"], catalogs.models)).layers[0]
    terms = predict_point(point(**moe), catalogs).figures.terms
    split = predict_point(point(**moe | {"ep": "2"}), catalogs).figures.terms
    experts = 48 * group.expert_params
    assert terms["trained"] - split["trained"] == pytest.approx(experts / 4 - experts / 8)
    refused = predict_point(point(**moe | {"ep": "16"}), catalogs)
    assert "do not divide into pp x ep" in refused.reason


def test_a_pipeline_stage_is_predicted_by_its_place(catalogs):
    pipeline = {
        "model": "Llama-3-70B shapes truncated to 12 layers", "method": "full", "stack": "megatron",
        "engine": "megatron", "optimizer": "adam_distributed", "checkpointing": "none",
        "cross_entropy": "fused_ce", "micro_batch": "1", "gpu_count": "8", "pp": "2",
        "grad_accum": "4",
    }  # fmt: skip
    first = predict_point(point(**pipeline, notes="first PP stage"), catalogs)
    last = predict_point(point(**pipeline, notes="last PP stage"), catalogs)
    # Published: 66.552 and 62.968 GiB (simumax-001, -002).
    assert first.expected_bytes == pytest.approx(66.552 * GIB, rel=0.02)
    assert last.expected_bytes == pytest.approx(62.968 * GIB, rel=0.02)
