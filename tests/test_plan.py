"""From spec and catalogs to axis tables: layouts, axes and knobs, machines and prices, and messages."""

from __future__ import annotations

import csv
import dataclasses
import datetime as dt
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from conftest import DATA, TODAY

from sweep import engine
from sweep.catalogs import Catalogs, load_catalogs
from sweep.catalogs.architecture import count_parameters, lora_parameters
from sweep.catalogs.folder import catalog_folders
from sweep.catalogs.offers import Offer, load_offers
from sweep.errors import CatalogError, PlanError, SweepError
from sweep.kernels.tables import ATTENTION_S, EXPERT, LINEAR, MATMUL_BF16_S
from sweep.plan import Plan, build_plan, windows_beyond
from sweep.plan.cases import build_case
from sweep.plan.dimensions import knob_columns, question_columns, run_columns, workload_columns
from sweep.plan.programs import PROGRAM_COLUMNS, Program
from sweep.plan.setups import offer_columns, setup_columns
from sweep.plan.shapes import model_shape
from sweep.spec import parse_spec

MakePlan = Callable[..., Plan]

HARDWARE = """
offers = ["quotes.csv"]
providers = ["test-cloud"]
"""


def spec_text(axes: str = "", knobs: str = "", hardware: str = HARDWARE, rest: str = "") -> str:
    """A small spec with a test's own lines in each section."""
    if "models" not in axes:
        axes += '\nmodels = ["Qwen2.5-0.5B"]'
    return f"spec_version = 1\n[axes]\n{axes}\n[knobs]\n{knobs}\n[hardware]\n{hardware}\n{rest}"


def quotes(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    """A line of [hardware] that adds these quotes."""
    path = folder / "my.csv"
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, names)
        writer.writeheader()
        writer.writerows(rows)
    return f'offers = ["{path}"]\n'


QUOTE = {
    "provider": "my-cloud",
    "instance_type": "box",
    "gpu": "A100-SXM-80GB",
    "gpu_count": 8,
    "price_per_hour": 10,
}


def scenarios_of(plan: Plan, w: int, k: int) -> dict[str, np.ndarray]:
    """Every scenario of one workload on one class of setups, as the kernel writes them."""
    count = int(plan.candidates[w, k] * plan.class_sizes[k])
    return engine.decide_scenarios(plan, engine.Chunk(w, w + 1, k, k + 1, count))


def knobs_of(plan: Plan, w: int, k: int) -> list[dict[str, Any]]:
    """The knob combinations the kernel tries for one workload on the first setup of a class."""
    rows = scenarios_of(plan, w, k)
    mine = rows["setup"] == plan.tables.classes.first[k]
    columns = knob_columns(plan, rows["knob"][mine])
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


# -- layouts and counts --------------------------------------------------------------------------

LAYOUT_KNOBS = """
micro_batches = [3, 1]
checkpointing = ["full"]
stacks = ["hf", "megatron"]
zero_stages = [0, 1, 2, 3]
tp = [1, 2, 3, 4, 8]
pp = [1, 2, 5, 12, 26]
cp = [1, 2, 3]
ep = [1, 2, 3, 8]
sequence_parallel = [false, true]
offloads = ["none", "optimizer-cpu", "params-cpu", "params-nvme"]
"""
LAYOUT_NAMES = (
    "stack", "zero_stage", "offload", "tp", "pp", "cp", "ep", "sequence_parallel", "micro_batch"
)  # fmt: skip


@pytest.fixture(scope="module")
def layout_plan(make_plan: MakePlan, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Models that differ in heads, layers and experts, on nodes of odd and even sizes."""
    counts = (1, 2, 3, 6, 8, 13)
    machines = [
        QUOTE | {"instance_type": f"box-{n}", "gpu_count": n, "network_gbps": 400} for n in counts
    ]
    axes = """
    models = ["Llama-3-8B", "Qwen2.5-0.5B", "GPT-2", "Qwen3-30B-A3B"]
    methods = ["full", "lora"]
    precisions = ["bf16-mixed"]
    seq_lens = [1000, 3072]
    global_batches = [12, 16]
    """
    hardware = quotes(tmp_path_factory.mktemp("machines"), machines)
    hardware += 'providers = ["my-cloud"]\nnode_counts = [1, 2, 3, 5]\nmax_gpus = 30'
    return make_plan(spec_text(axes, LAYOUT_KNOBS, hardware))


def supported(catalogs: Catalogs, stack: str, method: str) -> dict[str, Any]:
    """What a stack offers a method, as the reference takes it; no ZeRO stage is nothing at all."""
    found = catalogs.stacks.stacks[stack]
    support: dict[str, Any] = {**found.flags, **found.supports}
    # Adapters are not split over tensor-parallel ranks by the Hugging Face stack.
    support["tensor_parallel"] &= method in found.supports["tensor_parallel_methods"]
    if method not in found.supports["methods"]:
        support["zero_stages"] = ()
    return support


def test_layouts_are_those_of_the_reference(layout_plan: Plan, catalogs: Catalogs) -> None:
    plan = layout_plan
    values = plan.spec.values
    classes = plan.tables.classes
    assert len(classes.gpus) > 8
    compared = 0
    for w, workload in enumerate(plan.workloads):
        model = plan.shapes[workload.model].model
        facts = {
            "layers": model.num_hidden_layers,
            "num_attention_heads": model.num_attention_heads,
            "experts": model.num_experts or 0,
        }
        batch = workload.fixed(["global_batch"])["global_batch"]
        for k in range(len(classes.gpus)):
            expected = []
            for stack in values("stack"):
                support = supported(catalogs, stack, workload.method)
                expected += [
                    (stack, *(layout[name] for name in LAYOUT_NAMES[1:]))
                    for layout in reference.layouts(
                        int(classes.gpus[k]),
                        int(classes.gpus_per_node[k]),
                        facts,
                        support,
                        *(values(name) for name in ("tp", "pp", "cp", "ep", "sequence_parallel")),
                        values("zero_stage"),
                        values("offload"),
                        sorted(values("micro_batch")),
                        batch,
                        workload.seq_len,
                    )
                ]
            found = [tuple(row[name] for name in LAYOUT_NAMES) for row in knobs_of(plan, w, k)]
            assert len(found) == plan.candidates[w, k]
            assert sorted(found) == sorted(expected), (workload, classes.gpus[k])
            compared += len(found)
    assert compared > 10_000


def test_the_layouts_compared_hold_every_degree(layout_plan: Plan) -> None:
    seen: dict[str, set[Any]] = {name: set() for name in LAYOUT_NAMES}
    for w in range(len(layout_plan.workloads)):
        for k in range(len(layout_plan.class_sizes)):
            for row in knobs_of(layout_plan, w, k):
                for name in LAYOUT_NAMES:
                    seen[name].add(row[name])
    wanted = {name: set(layout_plan.spec.values(name)) for name in LAYOUT_NAMES}
    wanted["ep"] -= {3}  # 128 experts do not split in three
    assert seen == wanted


def test_the_plan_counts_what_the_kernel_writes(small_plan: Plan) -> None:
    written = 0
    for w in range(len(small_plan.workloads)):
        for k in range(len(small_plan.class_sizes)):
            rows = scenarios_of(small_plan, w, k)
            knobs = rows["knob"].reshape(small_plan.class_sizes[k], -1)
            assert (np.diff(knobs.astype(np.int64), axis=1) > 0).all(), "each knob once, in order"
            assert (knobs == knobs[0]).all(), "the same for every setup of a class"
            written += len(rows["knob"])
    assert written == small_plan.scenarios > 30_000
    assert sum(chunk.scenarios for chunk in engine.chunks(small_plan)) == small_plan.scenarios
    assert small_plan.pairs == len(small_plan.workloads) * len(small_plan.setups)


# -- axes and knobs ------------------------------------------------------------------------------

SIDES = ("micro_batches = [1, 2, 8]", "tp = [1, 2]", "zero_stages = [0, 3]",
         "sequence_parallel = [false, true]", "stacks = ['hf', 'megatron']",
         "attention = ['eager', 'flash']")  # fmt: skip
ON_AXES = ("precisions = ['bf16', 'bf16-mixed', 'fp32']", "global_batches = [16, 24]",
           "lora_ranks = [8, 64]", "quantizations = ['nf4', 'int8']")  # fmt: skip


@pytest.mark.parametrize("line", SIDES + ON_AXES)
def test_a_variable_asks_for_the_same_on_either_side(make_plan: MakePlan, line: str) -> None:
    axes = "methods = ['full', 'lora', 'qlora']"
    key = line.split()[0]
    knobs = "\n".join(other for other in SIDES if not other.startswith(key))
    others = "\n".join(other for other in ON_AXES if not other.startswith(key))
    as_axis = make_plan(spec_text(f"{axes}\n{others}\n{line}", knobs))
    as_knob = make_plan(spec_text(f"{axes}\n{others}", f"{knobs}\n{line}"))
    assert len(as_axis.workloads) > len(as_knob.workloads)
    assert as_axis.scenarios == as_knob.scenarios
    column = next(column for column in as_axis.spec.axes if column not in as_knob.spec.axes)

    def asked(plan: Plan) -> set[tuple[Any, ...]]:
        """Every scenario by what is asked, the setup's class and the knobs' values."""
        found = set()
        for w, workload in enumerate(plan.workloads):
            free = tuple(sorted((name, v) for name, v in workload.axes if name != column))
            for k in range(len(plan.class_sizes)):
                for row in knobs_of(plan, w, k):
                    del row["knob"]
                    for name, value in workload.axes:
                        assert row[name] == value
                    found.add((workload.method, workload.seq_len, free, k, *row.values()))
        return found

    assert asked(as_axis) == asked(as_knob)


def test_adapter_axes_do_not_split_full_training(make_plan: MakePlan) -> None:
    axes = """
    methods = ["full", "lora", "qlora"]
    lora_ranks = [8, 16]
    quantizations = ["nf4", "int8"]
    """
    plan = make_plan(spec_text(axes))
    by_method = [workload.method for workload in plan.workloads]
    assert [by_method.count(method) for method in ("full", "lora", "qlora")] == [1, 2, 4]
    full = next(workload for workload in plan.workloads if workload.method == "full")
    assert {"lora_rank", "quantization"}.isdisjoint(name for name, _ in full.axes)


def test_micro_batches_are_tried_in_ascending_order(make_plan: MakePlan) -> None:
    plan = make_plan(spec_text(knobs="micro_batches = [8, 1, 2]"))
    assert plan.micro_batches == (1, 2, 8)
    assert {row["micro_batch"] for row in knobs_of(plan, 0, 0)} == {1, 2, 8}


def test_knob_numbers_stand_for_their_values(small_plan: Plan) -> None:
    ids = np.arange(small_plan.knob_count, dtype=np.uint32)[::97]
    columns = knob_columns(small_plan, ids)
    for at, number in enumerate(ids):
        rest, micro = divmod(int(number), len(small_plan.micro_batches))
        rest, layout = divmod(rest, len(small_plan.layouts))
        program, batch = divmod(rest, len(small_plan.global_batches))
        for name in PROGRAM_COLUMNS:
            assert columns[name][at] == getattr(small_plan.programs[program], name)
        for name, value in small_plan.layouts[layout]._asdict().items():
            assert columns[name][at] == value
        assert columns["micro_batch"][at] == small_plan.micro_batches[micro]
        assert columns["global_batch"][at] == small_plan.global_batches[batch]


def test_knobs_and_setups_say_which_band_of_time_holds(make_plan: MakePlan, tmp_path: Path) -> None:
    header = "stack,method,gpu,low,high,points,sources,basis,source,checked"
    bands = {("hf", "full", "*"): (0.9, 1.2), ("hf", "lora", "*"): (0.8, 1.3),
             ("*", "*", "unmeasured"): (0.5, 2.0)}  # fmt: skip
    (tmp_path / "time_bands.csv").write_text(
        "\n".join(
            [header]
            + [
                f"{','.join(key)},{low},{high},5,2,mine,sweep-assumed,2026-11-21"
                for key, (low, high) in bands.items()
            ]
        )
    )
    mine = load_catalogs([tmp_path])
    hardware = 'gpus = ["H100-SXM-80GB", "RTX-4090"]'
    axes = 'models = ["Llama-3-8B"]\nmethods = ["full", "lora"]'
    plan = make_plan(spec_text(axes, hardware=hardware), catalogs=mine)
    columns = knob_columns(plan, np.arange(plan.knob_count, dtype=np.uint32))
    per_program = plan.knob_count // len(plan.programs)
    assert {program.method for program in plan.programs} == {"full", "lora"}
    for number, program in enumerate(plan.programs):
        low, high = bands["hf", program.method, "*"]
        at = number * per_program
        assert columns["measured_time_low"][at] == low
        assert columns["measured_time_high"][at] == high
        assert columns["unmeasured_time_low"][at] == pytest.approx(low * 0.5)
        assert columns["unmeasured_time_high"][at] == pytest.approx(high * 2.0)
    setups = setup_columns(plan.setups, plan.hardware_shapes, plan.rates, plan.gpus)
    for gpu, measured in zip(setups["gpu"], setups["time_measured"], strict=True):
        assert measured == mine.stacks.time_measured(plan.gpus[gpu])


def test_a_job_says_what_it_spends_before_the_first_step(make_plan: MakePlan) -> None:
    text = spec_text(rest="[job]\nstartup_minutes = 30\ncompile_minutes = 6\neval_fraction = 0.3")
    spec = make_plan(text).spec
    columns = run_columns(spec, [], 0, "1")
    assert columns["provision_hours"] == [0.5]
    assert columns["compile_hours"] == [0.1]
    # Evaluation is the forward pass alone, a third of a step.
    assert columns["eval_fraction"] == [pytest.approx(0.1)]


# -- models and questions ------------------------------------------------------------------------


def test_models_by_key_glob_id_and_case(make_plan: MakePlan) -> None:
    axes = 'models = ["qwen2.5-0.5b", "Llama-3-8*", "openai-community/gpt2", "Llama-3-8B"]'
    plan = make_plan(spec_text(axes))
    assert list(plan.shapes) == ["Qwen2.5-0.5B", "Llama-3-8B", "GPT-2"]


def test_a_model_by_the_path_of_its_config(make_plan: MakePlan) -> None:
    plan = make_plan(spec_text('models = ["./configs/mistral-small-3.1-24b.json"]'))
    ((key, shape),) = plan.shapes.items()
    assert key == "mistral-small-3.1-24b"
    assert plan.spec.axes["model"] == (
        str((DATA / "configs/mistral-small-3.1-24b.json").resolve()),
    )
    assert shape.counts.total == pytest.approx(24.0e9, rel=0.01)
    assert plan.scenarios > 0


def test_two_models_of_one_name_are_refused(make_plan: MakePlan, tmp_path: Path) -> None:
    config = json.loads((DATA / "configs/mistral-small-3.1-24b.json").read_text())
    (tmp_path / "Llama-3-8B.json").write_text(json.dumps(config))
    path = tmp_path / "Llama-3-8B.json"
    for models in (f'["{path}", "Llama-3-8B"]', f'["Llama-3-8*", "{path}"]'):
        with pytest.raises(PlanError, match="two different models named Llama-3-8B"):
            make_plan(spec_text(f"models = {models}"))


def test_a_users_folder_overlays_models_and_gpus(make_plan: MakePlan, tmp_path: Path) -> None:
    shipped = catalog_folders()[0]
    for name, key, column, value in (
        ("models.csv", "Qwen2.5-0.5B", "key", "My-0.5B"),
        ("gpus.csv", "L4", "usable_mib", "20000"),
    ):
        with (shipped / name).open(newline="") as handle:
            reader = csv.DictReader(handle)
            row = next(row for row in reader if key in row.values())
            assert reader.fieldnames
            names = list(reader.fieldnames)
        row |= {column: value}
        if name == "models.csv":
            row |= {"hf_id": "", "aliases": ""}
        with (tmp_path / name).open("w", newline="") as handle:
            writer = csv.DictWriter(handle, names)
            writer.writeheader()
            writer.writerow(row)
    mine = load_catalogs([tmp_path])
    text = spec_text('models = ["My-0.5B", "Qwen2.5-0.5B"]', hardware=HARDWARE + 'gpus = ["L4"]')
    plan = make_plan(text, catalogs=mine)
    assert list(plan.shapes) == ["My-0.5B", "Qwen2.5-0.5B"]
    assert plan.shapes["My-0.5B"].counts == plan.shapes["Qwen2.5-0.5B"].counts
    assert {rates.usable_bytes for rates in plan.rates} == {20000 * 2.0**20}


def test_image_tokens_come_off_the_sequence(make_plan: MakePlan) -> None:
    # Qwen2.5-VL: patches of 14 pixels, 2 x 2 of them one token: 1008 x 980 is 72 x 70 / 4 = 1260.
    axes = """
    models = ["Qwen2.5-VL-7B-Instruct", "Qwen2.5-0.5B"]
    seq_lens = [1024, 2048, 8192]
    images_per_sample = [0, 1, 4]
    image_sizes = ["1008x980", "448x448"]
    """
    plan = make_plan(spec_text(axes))
    seeing = [w for w in plan.workloads if w.model == "Qwen2.5-VL-7B-Instruct"]
    found = {(w.seq_len, w.images_per_sample, w.image_size): w.image_tokens for w in seeing}
    assert len(found) == len(seeing), "no images are one workload, whatever their size"
    assert found == {
        **{(length, 0, None): 0 for length in (1024, 2048, 8192)},
        (2048, 1, "1008x980"): 1260,
        (8192, 1, "1008x980"): 1260,
        (8192, 4, "1008x980"): 5040,
        **{(length, 1, "448x448"): 256 for length in (1024, 2048, 8192)},
        # Four of 256 tokens fill 1024 and leave nothing to train on.
        **{(length, 4, "448x448"): 1024 for length in (2048, 8192)},
    }
    flop = {w.image_tokens: w.vision_flop for w in seeing}
    assert flop[0] == 0.0
    assert flop[5040] == pytest.approx(4 * flop[1260])
    # 2 x 5040 patches x the tower without its patch embedding: 0.63 G of its 0.68 G parameters.
    assert flop[1260] == pytest.approx(2 * 5040 * 0.63e9, rel=0.05)
    blind = [w for w in plan.workloads if w.model == "Qwen2.5-0.5B"]
    assert [w.image_tokens for w in blind] == [0, 0, 0], "a model without a tower sees no images"


def test_images_that_fill_every_sequence_leave_no_question(make_plan: MakePlan) -> None:
    axes = 'models = ["Qwen2.5-VL-7B-Instruct"]\nseq_lens = [1024]\nimages_per_sample = [2]'
    with pytest.raises(PlanError, match="images of every sample need more tokens"):
        make_plan(spec_text(axes))


def test_questions_hold_every_amount_of_data(make_plan: MakePlan) -> None:
    axes = "train_text_gb = [0.1, 2]\nmethods = ['lora', 'full']"
    plan = make_plan(spec_text(axes, rest="[data]\nbytes_per_token = 2.0"))
    columns = question_columns(plan)
    assert columns["question"] == [0, 1, 2, 3]
    assert columns["workload"] == [0, 0, 1, 1]
    assert columns["train_tokens"] == [5e7, 1e9] * 2
    assert columns["train_text_gb"] == pytest.approx([0.1, 2.0] * 2)
    assert columns["data_bytes"] == pytest.approx([1e8, 2e9] * 2)


def program(method: str, target: str = "all-linear", **changes: Any) -> Program:
    full = method == "full"
    base = Program(
        method=method, stack="hf", precision="bf16",
        quantization="nf4-double" if method == "qlora" else "none", lora_rank=0 if full else 16,
        lora_target="none" if full else target, lora_dropout=0.0, checkpointing="none",
        attention="flash", cross_entropy="plain", optimizer="adamw-fused", zero_stage=0,
        offload="none",
    )  # fmt: skip
    return base._replace(**changes)


def test_every_model_of_the_catalog_trains_what_it_has(catalogs: Catalogs) -> None:
    for key, model in catalogs.models.items():
        shape = model_shape(model)
        counts = count_parameters(model)
        tower = counts.vision.total if counts.vision else 0
        full = build_case(shape, program("full"), 2048, catalogs.stacks)
        assert sum(full.trained) == counts.total - tower, key
        assert sum(full.frozen_bytes) == 2.0 * tower, key
        for target in ("attention-qv", "attention", "all-linear"):
            case = build_case(shape, program("lora", target), 2048, catalogs.stacks)
            assert sum(case.frozen_bytes) == 2.0 * counts.total, key
            # Of the experts' adapters a token meets those of its k experts.
            share = (model.experts_per_token or 0) / (model.num_experts or 1)
            active = case.trained[LINEAR] + share * case.trained[EXPERT]
            assert case.adapter_active == pytest.approx(active), key
            if counts.root_linears:  # OPT-350m: the projections beside its layers get none here
                assert sum(case.trained) <= lora_parameters(counts, 16, target)
            else:
                assert sum(case.trained) == lora_parameters(counts, 16, target), (key, target)


def test_workload_columns_count_parameters(small_plan: Plan) -> None:
    columns = workload_columns(small_plan)
    at = columns["model"].index("Llama-3-8B")
    assert columns["method"][at] == "full"
    assert columns["total_parameters"][at] == columns["trained_parameters"][at] == 8_030_261_248
    assert columns["weights_bytes"][at] == 2 * 8_030_261_248
    # Weights in 16 bits, master and two states in 32: 14 bytes; adapters and two states: 12.
    assert columns["checkpoint_bytes"][at] == 14 * 8_030_261_248
    at = next(
        row
        for row, key in enumerate(zip(columns["model"], columns["method"], strict=True))
        if key == ("Llama-3-8B", "lora")
    )
    # PEFT prints 41,943,040 for rank 16 on every linear of Llama-3-8B.
    assert columns["trained_parameters"][at] == 41_943_040
    assert columns["checkpoint_bytes"][at] == 12 * 41_943_040
    assert json.loads(columns["axes"][at])["precision"] == "bf16-mixed"


def test_a_model_with_experts_has_a_wider_band_of_time(
    make_plan: MakePlan, catalogs: Catalogs
) -> None:
    plan = make_plan(spec_text('models = ["Qwen3-30B-A3B", "Llama-3-8B"]\nmethods = ["lora"]'))
    columns = workload_columns(plan)
    ends = {
        model: (low, high)
        for model, low, high in zip(
            columns["model"], columns["expert_time_low"], columns["expert_time_high"], strict=True
        )
    }
    factor = catalogs.stacks.time_bands.expert_factor()
    assert ends["Llama-3-8B"] == (1.0, 1.0)
    assert ends["Qwen3-30B-A3B"] == (factor.low, factor.high)
    assert factor.low < 1.0 < factor.high


def test_a_sequence_inside_the_window_is_not_beyond_it(catalogs: Catalogs) -> None:
    shape = model_shape(catalogs.models["Gemma-3-4B"])
    windows = sorted({group.window for group in shape.groups})
    assert windows[0] == 1024
    assert not any(windows_beyond(shape, 1024))
    assert sorted(windows_beyond(shape, 1025)) == [False, True]


# -- messages: what is asked for and is not there ------------------------------------------------


def owned(**changes: Any) -> str:
    machine = {
        "name": "rack", "gpu": "A100-SXM-80GB", "gpus_per_node": 8, "nodes": 2, "usd_per_hour": 9,
        "vcpus": 64, "host_ram_gib": 1024, "network_gbps": 400,
    }  # fmt: skip
    lines = [f"{name} = {json.dumps(value)}" for name, value in (machine | changes).items()]
    return "\n[[hardware.owned]]\n" + "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            spec_text('models = ["Lama-3-8B"]'),
            (
                "models: found 'Lama-3-8B', which names no model of the catalog; "
                "did you mean 'Llama-3-8B'"
            ),
        ),
        (spec_text('models = ["No-Such-*"]'), "models: found 'No-Such-*', which names no model"),
        (
            spec_text(hardware=HARDWARE + 'gpus = ["H100-SMX-80GB"]'),
            (
                "hardware.gpus: found 'H100-SMX-80GB', which no GPU of the catalog matches; "
                "did you mean 'H100-SXM-80GB'"
            ),
        ),
        (
            spec_text(hardware=HARDWARE + 'regions = ["eastt"]'),
            "hardware.regions: found 'eastt', which no offer matches; did you mean 'east'",
        ),
        (
            spec_text(hardware='offers = ["quotes.csv"]\nproviders = ["test-clod"]'),
            (
                "hardware.providers: found 'test-clod', which no offer matches; "
                "did you mean 'test-cloud'"
            ),
        ),
        (
            spec_text(hardware=HARDWARE + 'instances = ["gb200x44"]'),
            "hardware.instances: found 'gb200x44', which no offer matches; did you mean 'gb200x4'",
        ),
        (
            spec_text(knobs='stacks = ["megatrn"]'),
            "stacks: found 'megatrn', allowed hf, megatron, hf-fsdp1,",
        ),
        (
            spec_text(hardware=owned(gpu="A100-SXM-80")),
            (
                "hardware.owned 'rack': gpu: found 'A100-SXM-80', allowed a key of the GPU catalog; "
                "did you mean 'A100-SXM-80GB'"
            ),
        ),
        (
            spec_text(hardware=HARDWARE + 'price_models = ["reserved_3y"]'),
            "hardware: no offer is left; found gpus ['*'], providers ['test-cloud']",
        ),
        (
            spec_text(hardware=HARDWARE + 'gpus = ["B200*"]'),
            "hardware: no offer is left; found gpus ['B200*']",
        ),
        (spec_text(hardware=HARDWARE + "max_gpus = 1"), "no setup is left; every machine has more"),
        (
            spec_text(hardware=owned() + "\n", knobs='stacks = ["megatron"]\nzero_stages = [3]'),
            "no stack of megatron supports any combination of the methods, precisions",
        ),
        (
            spec_text("global_batches = [1]\nmethods = ['full']", "micro_batches = [2]"),
            "no scenario is left: no layout is valid for any model on any setup",
        ),
    ],
)
def test_what_cannot_be_is_said_with_its_remedy(
    make_plan: MakePlan, text: str, message: str
) -> None:
    with pytest.raises(PlanError) as caught:
        make_plan(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{DATA / 'made-up.toml'}: ")


# -- machines ------------------------------------------------------------------------------------


def nodes_of(plan: Plan) -> dict[str, list[int]]:
    """The node counts tried, by the instance types of each shape."""
    found: dict[str, list[int]] = {}
    for offer in plan.offers:
        shape = plan.hardware_shapes.index(offer.shape)
        found[offer.instance_type] = [s.node_count for s in plan.setups if s.shape == shape]
    return found


EVERY_CLOUD = 'offers = ["quotes.csv"]\nproviders = ["test-cloud", "lone-cloud", "rack-cloud"]\n'


def test_nodes_need_a_network_and_stay_within_max_gpus(make_plan: MakePlan) -> None:
    hardware = EVERY_CLOUD + "node_counts = [1, 2, 3, 8, 16, 64]\nmax_gpus = 64"
    assert nodes_of(make_plan(spec_text(hardware=hardware))) == {
        "h100x8": [1, 2, 3, 8],
        "h100x2": [1, 2, 3, 8, 16],
        "l4x4": [1, 2, 3, 8, 16],
        "t4x4": [1, 2, 3, 8, 16],
        # No source states a network: one at a time, although NVLink joins eight GPUs of a board.
        "a100x8": [1],
        "a100x1": [1],
        # NVLink of a rack joins 72 GPUs: 16 nodes of 4.
        "gb200x4": [1, 2, 3, 8, 16],
    }


def test_a_network_can_be_assumed(make_plan: MakePlan) -> None:
    hardware = EVERY_CLOUD + "node_counts = [1, 2, 32]\nmax_gpus = 512\nassume_network_gbps = 80"
    plan = make_plan(spec_text(hardware=hardware))
    nodes = nodes_of(plan)
    assert nodes["a100x8"] == nodes["a100x1"] == [1, 2, 32]
    assert nodes["gb200x4"] == [1, 2, 32]
    columns = setup_columns(plan.setups, plan.hardware_shapes, plan.rates, plan.gpus)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for row in rows:
        lone = row["gpu"] == "A100-SXM-80GB" and row["node_count"] > 1
        beyond = row["gpu"] == "GB200-186GB" and row["gpu_count"] > 72
        assert row["network_assumed"] == (lone or beyond)
        if lone or beyond:
            assert row["network_bytes_per_s"] == 80e9 / 8
    # Within the rack, nodes are joined by all the links of their GPUs.
    rack = next(row for row in rows if row["gpu"] == "GB200-186GB" and row["node_count"] == 2)
    assert rack["network_bytes_per_s"] == 4 * rack["link_bytes_per_s"]


def test_a_network_that_is_stated_is_not_replaced_by_the_assumed_one(make_plan: MakePlan) -> None:
    plan = make_plan(spec_text(hardware=HARDWARE + "assume_network_gbps = 5"))
    assert min(rates.network_bytes_per_s for rates in plan.rates) == 50e9 / 8
    assert not any(rates.network_assumed for rates in plan.rates)


def test_max_gpus_counts_the_devices_software_sees(make_plan: MakePlan, tmp_path: Path) -> None:
    machine = QUOTE | {"gpu": "MI250X", "gpu_count": 4, "network_gbps": 200}
    hardware = quotes(tmp_path, [machine]) + 'providers = ["my-cloud"]\nnode_counts = [1, 2]\n'
    plan = make_plan(spec_text(hardware=hardware + "max_gpus = 8"))
    assert nodes_of(plan) == {"box": [1]}
    assert list(plan.tables.classes.gpus) == [8]
    gpu = plan.gpus["MI250X"]
    assert plan.rates[0].usable_bytes == gpu.usable_bytes / 2
    assert plan.rates[0].hbm_bytes_per_s == gpu.hbm_bytes_per_s / 2


def test_peaks_go_by_dtype_and_attention_by_kernel(make_plan: MakePlan, tmp_path: Path) -> None:
    """Dense peaks of the H100's data sheet: 989 TFLOP/s in 16 bits, 1979 in 8, 67 in fp32, no fp4."""
    machine = QUOTE | {"gpu": "H100-SXM-80GB", "gpu_count": 8}
    plan = make_plan(spec_text(hardware=quotes(tmp_path, [machine]) + 'providers = ["my-cloud"]'))
    share = load_catalogs().stacks.efficiency(plan.gpus["H100-SXM-80GB"])
    assert share.matmul8_share is not None
    half, eighth = 989e12 * share.matmul_share, 1979e12 * share.matmul8_share
    rates, setups = plan.rates[0], plan.tables.setups[:, 0]
    assert rates.peaks == pytest.approx((half, half, 67e12 * share.matmul_share, eighth, None))
    kernels = (share.attention_share, share.attention_fa2_share, share.attention_fa1_share)
    assert rates.attention_flop_per_s == pytest.approx([989e12 * one for one in kernels])
    # What the kernels read: seconds a FLOP, of fp4 never.
    assert 1 / setups[MATMUL_BF16_S : MATMUL_BF16_S + 4] == pytest.approx(rates.peaks[:4])
    assert setups[MATMUL_BF16_S + 4] == np.inf
    assert 1 / setups[ATTENTION_S : ATTENTION_S + 3] == pytest.approx(rates.attention_flop_per_s)


def test_a_bridge_does_not_join_the_whole_node(make_plan: MakePlan, tmp_path: Path) -> None:
    machines = [QUOTE | {"instance_type": f"box-{n}", "gpu": "A30", "gpu_count": n} for n in (2, 4)]
    hardware = quotes(tmp_path, machines) + 'providers = ["my-cloud"]'
    plan = make_plan(spec_text(hardware=hardware))
    links = {plan.hardware_shapes[s.shape].gpus_per_node: r for s, r in zip(
        plan.setups, plan.rates, strict=True)}  # fmt: skip
    gpu = plan.gpus["A30"]
    assert links[2].link_bytes_per_s == gpu.link_bytes_per_s
    assert links[2].link == gpu.link
    # Over PCIe and through the host, at a share of the bus.
    assert links[4].link == "PCIe"
    assert links[4].link_bytes_per_s < gpu.pcie_bytes_per_s < gpu.link_bytes_per_s


def test_setups_of_a_class_stand_together(small_plan: Plan) -> None:
    classes = small_plan.tables.classes
    keys = set()
    for k in range(len(classes.gpus)):
        for setup in small_plan.setups[classes.first[k] : classes.last[k]]:
            per_node = small_plan.hardware_shapes[setup.shape].gpus_per_node
            assert per_node == classes.gpus_per_node[k]
            assert per_node * setup.node_count == classes.gpus[k]
        keys.add((int(classes.gpus[k]), int(classes.gpus_per_node[k])))
    assert len(keys) == len(classes.gpus), "each class once"
    assert classes.first[0] == 0
    assert classes.last[-1] == len(small_plan.setups)
    assert (classes.first[1:] == classes.last[:-1]).all()


def test_owned_machines_alone(make_plan: MakePlan) -> None:
    plan = make_plan(spec_text(hardware="node_counts = [1, 2, 4]" + owned(nodes=3)))
    assert nodes_of(plan) == {"rack": [1, 2]}
    (offer,) = plan.offers
    assert (offer.provider, offer.price_model, offer.usd_per_hour) == ("owned", "owned", 9.0)
    assert offer.rankable


def test_owned_and_rented_side_by_side(make_plan: MakePlan) -> None:
    hardware = HARDWARE + 'price_models = ["owned", "on_demand"]' + owned(usd_per_hour=0)
    plan = make_plan(spec_text(hardware=hardware))
    assert {offer.provider for offer in plan.offers} == {"owned", "test-cloud"}


def test_no_more_owned_machines_are_priced_than_there_are(
    make_plan: MakePlan, tmp_path: Path
) -> None:
    # The same machine three times: four of one's own, two of one's own, and for rent.
    rented = QUOTE | {"vcpus": 64, "host_ram_gib": 1024, "network_gbps": 400}
    hardware = quotes(tmp_path, [rented | {"local_nvme_gb": 1000}]) + 'providers = ["my-cloud"]\n'
    hardware += 'node_counts = [1, 2, 4, 8]\nprice_models = ["owned", "on_demand"]'
    machines = owned(nodes=4, local_nvme_gb=1000) + owned(
        nodes=3, local_nvme_gb=1000, name="few", usd_per_hour=1
    )
    plan = make_plan(spec_text(hardware=hardware + machines))
    assert nodes_of(plan) == {"box": [1, 2, 4, 8], "rack": [1, 2, 4], "few": [1, 2]}
    columns = offer_columns(plan.offers, plan.hardware_shapes)
    assert len(set(columns["shape"])) == 3
    # Where the limit does not bind they are one kind of node.
    plan = make_plan(spec_text(hardware=hardware.replace("2, 4, 8", "2") + machines))
    assert len(plan.hardware_shapes) == 1
    assert {offer.instance_type for offer in plan.offers} == {"box", "rack", "few"}


# -- prices --------------------------------------------------------------------------------------


def offers_of(plan: Plan) -> list[tuple[str, str, float, float]]:
    return [(o.instance_type, o.region, o.price_per_hour, o.usd_per_hour) for o in plan.offers]


def with_offers(catalogs: Catalogs, *offers: Offer) -> Catalogs:
    return dataclasses.replace(catalogs, offers=list(offers))


@pytest.fixture(scope="module")
def quoted(catalogs: Catalogs) -> Offer:
    """An offer to vary."""
    found, problems = load_offers(catalogs.folders, [DATA / "quotes.csv"])
    assert not problems
    return next(offer for offer in found if offer.instance_type == "h100x8")


ANY = ""  # a [hardware] without a line


def test_prices_of_a_day(make_plan: MakePlan, catalogs: Catalogs, quoted: Offer) -> None:
    days = [dt.date(2026, month, 1) for month in (3, 6, 9)]
    history = with_offers(
        catalogs,
        *(dataclasses.replace(quoted, as_of=day, price_per_hour=float(day.month)) for day in days),
    )
    for line, price in (
        (ANY, 9.0),
        ("offers_as_of = 2026-08-31", 6.0),
        ("offers_as_of = 2026-06-01", 6.0),
        ("offers_as_of = 2026-05-31", 3.0),
        ("offers_as_of = 2026-05-31\nmax_price_age_days = 91", 3.0),
    ):
        plan = make_plan(spec_text(hardware=line), catalogs=history)
        assert [offer.price_per_hour for offer in plan.offers] == [price], line
    for line in (
        "offers_as_of = 2026-02-01",
        "offers_as_of = 2026-05-31\nmax_price_age_days = 90",
        # Counted back from today without a day: 81 days since the first of September.
        "max_price_age_days = 80",
    ):
        with pytest.raises(PlanError, match="no offer is left"):
            make_plan(spec_text(hardware=line), catalogs=history)
    assert make_plan(spec_text(hardware="max_price_age_days = 81"), catalogs=history).offers


def test_undated_and_per_gpu_prices_only_on_request(
    make_plan: MakePlan, catalogs: Catalogs, quoted: Offer
) -> None:
    def unranked(name: str, reason: str, **changes: Any) -> Offer:
        return dataclasses.replace(
            quoted, instance_type=name, rankable=False, unrankable_reason=reason, **changes
        )

    listed = with_offers(
        catalogs,
        quoted,
        unranked("undated", "undated", as_of=None),
        unranked("list", "per_gpu_price_list", scope="per_gpu", gpu_count=1),
        unranked("gone", "withdrawn"),
        unranked("odd", "doubtful_listing"),
    )
    plan = make_plan(spec_text(hardware=ANY), catalogs=listed)
    assert [offer.instance_type for offer in plan.offers] == ["h100x8"]
    plan = make_plan(spec_text(hardware="include_per_gpu_prices = true"), catalogs=listed)
    assert [offer.instance_type for offer in plan.offers] == ["h100x8", "undated", "list"]


def test_prices_in_other_currencies(make_plan: MakePlan, catalogs: Catalogs) -> None:
    hardware = 'offers = ["quotes.csv"]\nproviders = ["east-cloud"]\n'
    newest = max((rate for rate in catalogs.rates if rate.currency == "CNY"), key=lambda r: r.as_of)
    ((_, _, price, usd),) = offers_of(make_plan(spec_text(hardware=hardware)))
    assert (price, usd) == (140.0, pytest.approx(140 * newest.usd_per_unit))
    own = make_plan(spec_text(hardware=hardware, rest="[exchange_rates]\nCNY = 0.2"))
    assert offers_of(own)[0][2:] == (140.0, pytest.approx(28.0))
    then = "offers_as_of = 2026-09-05"
    rate = max(
        (r for r in catalogs.rates if r.currency == "CNY" and r.as_of <= dt.date(2026, 9, 5)),
        key=lambda r: r.as_of,
    )
    assert rate.usd_per_unit != newest.usd_per_unit
    old = make_plan(spec_text(hardware=hardware + then))
    assert offers_of(old)[0][3] == pytest.approx(140 * rate.usd_per_unit)


def test_a_currency_without_a_rate(make_plan: MakePlan, catalogs: Catalogs, quoted: Offer) -> None:
    odd = with_offers(catalogs, dataclasses.replace(quoted, currency="XAU"))
    with pytest.raises(PlanError, match="currency XAU: no exchange rate; add it to"):
        make_plan(spec_text(hardware=ANY), catalogs=odd)
    text = spec_text(hardware=ANY, rest="[exchange_rates]\nXAU = 2500")
    assert make_plan(text, catalogs=odd).offers[0].usd_per_hour == 2500 * quoted.price_per_hour


def test_globs_of_machines_ignore_case(make_plan: MakePlan) -> None:
    hardware = 'offers = ["quotes.csv"]\nproviders = ["TEST-*"]\nregions = ["We?t"]'
    plan = make_plan(spec_text(hardware=hardware + '\ninstances = ["H100*"]\ngpus = ["h100-sxm"]'))
    assert offers_of(plan) == [("h100x8", "west", 20.0, 20.0)]


def test_price_models_are_kept_apart(make_plan: MakePlan) -> None:
    plan = make_plan(spec_text(hardware=HARDWARE + 'price_models = ["spot"]'))
    assert offers_of(plan) == [("h100x8", "east", 12.0, 12.0)]


# -- quotes of one's own -------------------------------------------------------------------------


def test_a_quote_needs_five_columns(make_plan: MakePlan, tmp_path: Path) -> None:
    hardware = quotes(tmp_path, [QUOTE]) + 'providers = ["my-cloud"]'
    (offer,) = make_plan(spec_text(hardware=hardware)).offers
    assert (offer.region, offer.price_model, offer.currency) == ("not stated", "on_demand", "USD")
    assert (offer.as_of, offer.scope, offer.source) == (TODAY, "instance", "user quote")
    assert offer.rankable
    assert offer.shape[:3] == ("A100-SXM-80GB", 8, None)
    # A quote without a day is as old as the prices asked for.
    then = make_plan(spec_text(hardware=hardware + "\noffers_as_of = 2026-01-31"))
    assert then.offers[0].as_of == dt.date(2026, 1, 31)


def test_quotes_stand_beside_the_catalog(
    make_plan: MakePlan, catalogs: Catalogs, tmp_path: Path
) -> None:
    theirs = next(
        offer
        for offer in catalogs.offers
        if offer.provider == "aws" and offer.rankable and offer.gpu_count == 8
        and offer.price_model == "on_demand" and offer.host_ram_gib
    )  # fmt: skip
    mine = {
        "provider": "aws",
        "instance_type": theirs.instance_type,
        "gpu": theirs.gpu,
        "gpu_count": 8,
        "price_per_hour": 1.25,
        "region": theirs.region,
    }
    hardware = f'providers = ["aws"]\ninstances = ["{theirs.instance_type}"]\n'
    before = make_plan(spec_text(hardware=hardware)).offers
    after = make_plan(spec_text(hardware=hardware + quotes(tmp_path, [mine]))).offers
    # A newer price of the same machine, region and price model takes the place of the catalog's;
    # the machine's host is filled in from the catalog.
    assert len(after) == len(before)
    changed = [offer for offer in after if offer.source == "user quote"]
    assert [offer.usd_per_hour for offer in changed] == [1.25]
    assert changed[0].shape.host_ram_gib == theirs.host_ram_gib
    assert {o.region for o in after} == {o.region for o in before}
    # An older one does not.
    old = quotes(tmp_path, [mine | {"as_of": "2020-01-01"}])
    again = make_plan(spec_text(hardware=hardware + old)).offers
    assert not any(offer.source == "user quote" for offer in again)


def test_load_offers_takes_files_of_quotes(catalogs: Catalogs) -> None:
    found, problems = load_offers(catalogs.folders, [DATA / "quotes.csv"])
    assert problems == []
    assert found[: len(catalogs.offers)] == catalogs.offers
    assert [offer.instance_type for offer in found[len(catalogs.offers) :]] == [
        "h100x8", "h100x8", "h100x8", "h100x2", "l4x4", "t4x4", "a100x8", "a100x1", "gb200x4",
        "h800x8",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpu": "A100-SMX-80GB"}, ("my.csv:2, gpu: GPU: found 'A100-SMX-80GB', allowed a GPU of "
         "gpus.csv; did you mean 'A100-SXM-80GB'?")),
        ({"price_per_hour": "cheap"}, ("my.csv:2, price_per_hour: value: found 'cheap', allowed a "
         "number per hour of the whole machine")),
        ({"price_per_hour": ""}, "my.csv:2, price_per_hour: value: found nothing, allowed a value"),
        ({"price_per_hour": 9e5}, "my.csv:2, price_per_hour: price: found 112500 USD per GPU-hour"),
        ({"gpu_count": 0.5}, "my.csv:2, gpu_count: value: found '0.5', allowed a whole number"),
        ({"gpu_count": 0}, "my.csv:2, gpu_count: value: found '0', allowed 1 to 128 GPUs"),
        ({"price_model": "spott"}, ("my.csv:2, price_model: value: found 'spott', allowed one of "
         "on_demand, spot, reserved_1y, reserved_3y, owned (did you mean 'spot'?)")),
        ({"prize": 3}, "my.csv:1: column prize: found an unknown column, allowed known names; "),
        ({"as_of": "01.02.2026"}, ("my.csv:2, as_of: value: found '01.02.2026', allowed a date as "
         "YYYY-MM-DD")),
        ({"provider": "aws", "instance_type": "p4d.24xlarge", "gpu_count": 4},
         ("my.csv:2, gpu_count: GPU count: found 4 GPUs in p4d.24xlarge, allowed 8, as "
         "instances.csv says")),
    ],
)  # fmt: skip
def test_a_wrong_quote_is_refused_where_it_stands(
    make_plan: MakePlan, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CatalogError) as caught:
        make_plan(spec_text(hardware=quotes(tmp_path, [QUOTE | change])))
    assert str(tmp_path) in str(caught.value)
    assert message in str(caught.value)


def test_a_quote_lacks_columns_or_its_file(make_plan: MakePlan, tmp_path: Path) -> None:
    hardware = quotes(tmp_path, [{"provider": "my-cloud", "gpu": "L4"}])
    with pytest.raises(CatalogError) as caught:
        make_plan(spec_text(hardware=hardware))
    for name in ("instance_type", "gpu_count", "price_per_hour"):
        assert f"my.csv:1: column {name}: found no such column" in str(caught.value)
    assert "region" not in str(caught.value)
    spec = parse_spec(spec_text(hardware=hardware), DATA / "made-up.toml")
    (tmp_path / "my.csv").unlink()
    with pytest.raises(SweepError, match=r"my\.csv: file: found No such file"):
        build_plan(spec, load_catalogs(), TODAY)


def test_the_same_quote_twice_is_refused(make_plan: MakePlan, tmp_path: Path) -> None:
    hardware = quotes(tmp_path, [QUOTE, QUOTE | {"price_per_hour": 11}])
    with pytest.raises(CatalogError, match=r"my\.csv:3, provider\+.*again \(first on line 2\)"):
        make_plan(spec_text(hardware=hardware))
