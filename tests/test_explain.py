"""One scenario taken apart: the terms add up to what the kernels wrote, whatever the scenario."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import DATA, TODAY

from sweep import engine
from sweep.catalogs import Catalogs, load_catalogs
from sweep.errors import RunError
from sweep.explain import Explanation, Term, explain_row, explain_scenario, remarks_of
from sweep.kernels.tables import Verdict
from sweep.plan import Plan, build_plan
from sweep.rerank import prices_sha256, remember_prices
from sweep.results import Results, open_results
from sweep.spec import load_spec, parse_spec

PHASES = (
    "forward",
    "loss",
    "top layer backward",
    "bottom layer backward",
    "end of backward",
    "optimizer step",
)
# What `explain_row` adds to a row of `scenarios` from its setup.
SETUP_COLUMNS = (
    "t.usable_bytes, t.link_bytes_per_s, t.network_bytes_per_s, t.host_ram_bytes, t.vcpus"
)


@pytest.fixture(scope="module")
def everything(small_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    """The small plan with every scenario written, open."""
    results = dataclasses.replace(small_plan.spec.results, keep="all")
    plan = dataclasses.replace(
        small_plan, spec=dataclasses.replace(small_plan.spec, results=results)
    )
    folder = tmp_path_factory.mktemp("runs") / "everything"
    engine.run(plan, folder, threads=2)
    with open_results(folder) as found:
        yield found


@pytest.fixture(scope="module")
def rows(everything: Results) -> list[dict[str, Any]]:
    """Every so many scenarios of one amount of data."""
    found = everything.rows(
        f"""
        SELECT s.*, {SETUP_COLUMNS} FROM scenarios AS s JOIN setups AS t USING (setup)
        WHERE s.train_tokens = 1e7 ORDER BY workload, setup, knob
        """
    )
    return found[::61]


def explained(row: dict[str, Any], results: Results, catalogs: Catalogs) -> Explanation:
    return explain_scenario(row, results.manifest.spec, 0.05, catalogs)


def of(found: Explanation, section: str) -> dict[str, Term]:
    """The terms of a section by name: each name once."""
    terms = [term for term in found.terms if term.section == section]
    names = [term.name for term in terms]
    assert len(set(names)) == len(names), names
    return {term.name: term for term in terms}


def parts_and_total(terms: dict[str, Term], total: str) -> tuple[float, float]:
    return math.fsum(t.value for name, t in terms.items() if name != total), terms[total].value


def test_the_rows_explained_are_of_every_kind(rows: list[dict[str, Any]]) -> None:
    assert len(rows) > 500
    for name, values in {
        "method": {"full", "lora", "qlora"},
        "stack": {"hf", "megatron"},
        "zero_stage": {0, 1, 3},
        "offload": {"none", "optimizer-cpu", "params-cpu"},
        "attention": {"eager", "flash"},
        "cross_entropy": {"plain", "fused-linear"},
        "checkpointing": {"none", "selective", "full"},
        "tp": {1, 2},
        "pp": {1, 2},
        "cp": {1, 2},
        "node_count": {1, 2, 4},
        "verdict_text": {"fits", "gpu_memory", "host_memory", "unsupported"},
    }.items():
        assert {row[name] for row in rows} >= values, name


def test_bytes_add_up_phase_by_phase(
    rows: list[dict[str, Any]], everything: Results, catalogs: Catalogs
) -> None:
    for row in rows:
        found = explained(row, everything, catalogs)
        resting = of(found, "resting")
        held, resident = parts_and_total(resting, "resident")
        assert held == pytest.approx(resident, rel=1e-12, abs=1.0)
        totals = []
        for phase in PHASES:
            terms = of(found, phase)
            if not terms:
                # The first of several pipeline stages has no loss, the last no embedding; with all
                # of the weights on the host, nothing rests on the GPU at the end.
                no_such_phase = row["pp"] > 1 and phase in ("forward", "loss", "end of backward")
                empty = row["offload"] == "params-cpu" and phase in PHASES[-2:]
                assert no_such_phase or empty, (phase, row)
                continue
            assert terms["resident"].value == resident
            parts, total = parts_and_total(terms, "total")
            assert parts == pytest.approx(total, rel=1e-9), (phase, row)
            totals.append(total)
            for name, term in terms.items():
                assert term.unit == "bytes"
                # A frozen base keeps less of its first layer than of the others.
                assert term.value >= 0.0 or name == "rotary, ids, caches", (phase, name, row)
        assert len(totals) >= 4
        device = of(found, "device")
        assert device["allocated peak"].value == max(totals)
        assert max(totals) == pytest.approx(row["allocated_bytes"], rel=1e-6)
        over = device["context and fragmentation"].value
        assert max(totals) + over == pytest.approx(device["device"].value, rel=1e-12)
        assert device["device"].value == pytest.approx(row["device_bytes"], rel=1e-6)
        limit = device["limit"].value
        assert limit == pytest.approx(row["limit_gib"] * 2**30, rel=1e-9)
        free = device["free below the limit"].value
        assert free == pytest.approx(limit - device["device"].value, abs=1.0)
        if row["verdict"] in (Verdict.FITS, Verdict.HOST_MEMORY):
            assert free >= 0.0
        elif row["verdict"] == Verdict.GPU_MEMORY:
            assert free < 0.0
        host = of(found, "host")
        assert host["per node"].value == pytest.approx(row["host_bytes"], rel=1e-6)
        assert (host["offloaded per GPU"].value > 0.0) == (row["offload"] != "none")


def test_seconds_add_up_to_the_step(
    rows: list[dict[str, Any]], everything: Results, catalogs: Catalogs
) -> None:
    supported = 0
    for row in rows:
        found = explained(row, everything, catalogs)
        micro, step = of(found, "micro-batch"), of(found, "step")
        if row["verdict"] == Verdict.UNSUPPORTED:
            assert not micro
            assert not step
            assert row["seconds_per_token"] == 0.0
            continue
        supported += 1
        busy = micro["GPU busy"].value
        names = list(micro)
        work = [micro[name].value for name in names[: names.index("GPU busy")]]
        assert math.fsum(work) == pytest.approx(busy, rel=1e-9)
        assert ("eager attention" in micro) == (row["attention"] == "eager")
        assert ("dequantisation" in micro) == (row["method"] == "qlora")
        assert ("adapters" in micro) == (row["method"] != "full")
        assert "casts" not in micro
        experts = catalogs.models[row["model"]].num_experts
        assert ("permutation" in micro) == bool(experts)
        alone = row["gpu_count"] == row["tp"] * row["pp"]
        assert ("sharded units" in micro) == (row["zero_stage"] == 3 and not alone)
        assert ("offloaded parameters" in micro) == (row["offload"] == "params-cpu")
        crossing = "tensor, pipeline, context, expert" in micro
        assert crossing == (row["tp"] * row["pp"] * row["cp"] > 1)
        launches, shard = micro["kernel launches"].value, micro["shard collectives"].value
        assert micro["overlapped"].value == pytest.approx(
            (busy**4 + launches**4 + shard**4) ** 0.25, rel=1e-12
        )
        rest = names[names.index("overlapped") : names.index("total")]
        parts = math.fsum(micro[name].value for name in rest)
        assert parts == pytest.approx(micro["total"].value, rel=1e-9)
        virtual_stages = catalogs.stacks.stacks[row["stack"]].constants["virtual_stages"]
        repeats = row["gradient_accumulation"] + (row["pp"] - 1) / virtual_stages
        assert step["micro-batches"].value == pytest.approx(repeats * micro["total"].value)
        parts, total = parts_and_total(step, "total")
        assert parts == pytest.approx(total, rel=1e-9)
        tokens = row["global_batch"] * row["seq_len"]
        assert total == pytest.approx(row["seconds_per_token"] * tokens, rel=1e-6)
        assert all(t.unit == "s" and t.value >= 0.0 for t in (*micro.values(), *step.values()))
    assert supported > 300


def test_hours_and_dollars_add_up_to_the_job(everything: Results, catalogs: Catalogs) -> None:
    rows = everything.rows(
        f"""
        SELECT s.*, {SETUP_COLUMNS} FROM priced AS s JOIN setups AS t USING (setup)
        WHERE s.price_model = 'spot' OR s.setup % 3 = 0
        ORDER BY question, setup, knob, offer
        """
    )[::331]
    (run,) = everything.rows("SELECT * FROM run")
    assert {row["price_model"] for row in rows} == {"spot", "on_demand"}
    assert len(rows) > 20
    for row in rows:
        job = of(explained(row, everything, catalogs), "job")
        steps = math.ceil(
            row["train_tokens"] * run["epochs"] / row["global_batch"] / row["seq_len"]
        )
        assert job["steps"].value == steps
        training = job["training"].value
        assert training == pytest.approx(row["train_hours"], rel=1e-6)
        saving_s = (
            run["checkpoints_per_job"]
            * row["checkpoint_bytes"]
            / (run["storage_bytes_per_s"] * row["node_count"])
        )
        reading_s = row["weights_bytes"] / run["storage_bytes_per_s"]
        assert job["reading the weights"].value == pytest.approx(reading_s / 3600, rel=1e-6)
        fixed = run["provision_hours"] + run["compile_hours"] + (reading_s + saving_s) / 3600
        spot = 1 + run["spot_overhead"] if row["price_model"] == "spot" else 1
        assert ("interruptions" in job) == (spot != 1)
        names = ("nodes, images, compilation", "reading the weights", "training", "evaluation",
                 "saving", "interruptions")  # fmt: skip
        parts = math.fsum(job[name].value for name in names if name in job)
        assert job["whole job"].value == pytest.approx(parts, rel=1e-6)
        band = catalogs.stacks.time_band(row["stack"], row["method"], catalogs.gpus[row["gpu"]])
        for end, ratio in (("", 1.0), (", low", band.low), (", high", band.high)):
            hours = (fixed + training * (1 + run["eval_fraction"]) * ratio) * spot
            assert job[f"whole job{end}"].value == pytest.approx(hours, rel=1e-6)
            usd = hours * row["node_count"] * row["usd_per_hour"]
            # The quotes of these tests are billed by the minute: a minute more at most.
            more = row["node_count"] * row["usd_per_hour"] / 60 * (1 + 1e-6)
            assert usd * (1 - 1e-6) <= job[f"cost{end}"].value <= usd * (1 + 1e-6) + more
        assert job["whole job, low"].source == band.provenance
        assert job["billed"].value * 60 == pytest.approx(round(job["billed"].value * 60))
        assert job["cost"].source == "user quote"


def test_only_an_answer_at_its_high_end_past_a_limit_is_in_doubt() -> None:
    row = {"verdict_text": "fits", "hours_high": 30.4, "usd_high": 510.0, "deadline_hours": 24.0,
           "max_usd": 500.0}  # fmt: skip
    late, dear = remarks_of(row)
    assert late == "may miss the deadline: up to 30.4 h, 24 h allowed"
    assert dear == "may exceed the budget: up to 510.00 USD, 500.00 allowed"
    assert remarks_of({**row, "deadline_hours": 30.4, "max_usd": 510.0}) == ()
    assert remarks_of({**row, "deadline_hours": None, "max_usd": None}) == ()
    # A setup without an offer has hours, but no bill.
    assert remarks_of({**row, "usd_high": None}) == (late,)
    # What misses the limit as expected needs no doubt.
    assert remarks_of({**row, "verdict_text": "past_deadline"}) == ()


def test_the_best_row_is_explained_without_saying_which(
    small_run: Path, catalogs: Catalogs
) -> None:
    found = explain_row(small_run, question=0)
    assert found.row["rank"] == 1
    assert found.verdict == "fits"
    with open_results(small_run) as results:
        (best,) = results.rows("SELECT * FROM cheapest WHERE question = 0 AND rank = 1")
    assert found.row["setup"] == best["setup"]
    assert found.row["knob"] == best["knob"]
    assert found.value("job", "cost") == pytest.approx(best["usd"])
    assert all(basis for basis in found.basis)
    text = json.dumps(found.to_dict(), default=str)
    assert json.loads(text)["verdict"] == "fits"
    assert len(found.lines()) == len(found.terms)
    shown = {(section, name): value for section, name, value, _, _ in found.lines()}
    gib = found.value("device", "device") / 2**30
    assert shown["device", "device"] == f"{gib:,.3f} GiB"


def test_filters_choose_what_is_explained(small_run: Path) -> None:
    filters = {"model": "qwen*", "gpu": "l4", "train_tokens": 1e9, "seq_len": 4096}
    row = explain_row(small_run, filters=filters).row
    assert (row["model"], row["gpu"], row["train_tokens"]) == ("Qwen2.5-0.5B", "L4", 1e9)
    assert row["seq_len"] == 4096
    row = explain_row(small_run, filters={"region": "west", "method": "full"}).row
    assert (row["region"], row["method"]) == ("west", "full")


def test_a_rejected_row_says_what_is_too_much(everything: Results) -> None:
    (miss,) = everything.rows(
        "SELECT * FROM scenarios WHERE verdict = 1 ORDER BY question, setup, knob LIMIT 1"
    )
    found = explain_row(
        everything.folder, question=miss["question"], setup=miss["setup"], knob=miss["knob"]
    )
    assert (found.row["setup"], found.row["knob"]) == (miss["setup"], miss["knob"])
    assert found.verdict == "gpu_memory"
    assert found.value("device", "free below the limit") < 0.0
    assert found.value("step", "total") > 0.0
    assert "cost" not in of(found, "job")


def test_a_setup_is_explained_by_its_best_row(everything: Results) -> None:
    found = explain_row(everything.folder, question=0, setup=0)
    (best,) = everything.rows(
        "SELECT min(seconds_per_token) AS s FROM scenarios "
        "WHERE question = 0 AND setup = 0 AND verdict = 0"
    )
    assert found.row["seconds_per_token"] == best["s"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"filters": {"model": "no-such"}}, "no scenario matches"),
        ({"question": 99_999}, "no scenario matches"),
        ({"question": 0, "setup": 99_999}, "no scenario matches"),
        ({"filters": {"modle": "x"}}, "filter: found 'modle', allowed .*did you mean 'model'"),
        ({"setup": 0, "filters": {"region": "east"}}, "filter region: found it beside a setup"),
    ],
)
def test_what_cannot_be_explained_is_said(
    small_run: Path, wanted: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        explain_row(small_run, **wanted)


def test_a_pair_without_a_layout_has_nothing_to_take_apart(
    catalogs: Catalogs, tmp_path: Path
) -> None:
    text = """
    spec_version = 1
    [axes]
    models = ["GPT-2"]
    global_batches = [3]
    [knobs]
    tp = [1]
    pp = [1]
    [hardware]
    offers = ["quotes.csv"]
    providers = ["lone-cloud"]
    """
    plan = build_plan(parse_spec(text, DATA / "made-up.toml"), catalogs, TODAY)
    engine.run(plan, tmp_path / "run", threads=1)
    eight = next(j for j, s in enumerate(plan.setups) if plan.hardware_shapes[s.shape][1] == 8)
    with pytest.raises(RunError, match=f"setup {eight} has no valid layout for this question"):
        explain_row(tmp_path / "run", question=0, setup=eight)


def test_what_has_left_the_catalogs_is_named(
    rows: list[dict[str, Any]], everything: Results, catalogs: Catalogs
) -> None:
    row = rows[0]
    for name, key in (("models", row["model"]), ("gpus", row["gpu"])):
        left = {k: value for k, value in getattr(catalogs, name).items() if k != key}
        lacking = dataclasses.replace(catalogs, **{name: left})
        with pytest.raises(RunError, match=f"{key}: no longer in the catalogs"):
            explained(row, everything, lacking)
    stacks = dataclasses.replace(catalogs.stacks, rules={})
    with pytest.raises(RunError, match="no longer has the dtype rule"):
        explained(row, everything, dataclasses.replace(catalogs, stacks=stacks))


def test_images_cost_the_tower_its_forward_pass(catalogs: Catalogs, tmp_path: Path) -> None:
    text = """
    spec_version = 1
    [axes]
    models = ["Qwen2.5-VL-7B-Instruct"]
    seq_lens = [4096]
    images_per_sample = [0, 2]
    global_batches = [8]
    [knobs]
    micro_batches = [1]
    checkpointing = ["full"]
    tp = [1]
    pp = [1]
    zero_stages = [3]
    [hardware]
    offers = ["quotes.csv"]
    providers = ["test-cloud"]
    instances = ["h100x8"]
    node_counts = [1]
    """
    plan = build_plan(parse_spec(text, DATA / "made-up.toml"), catalogs, TODAY)
    engine.run(plan, tmp_path / "run", threads=1)
    blind, seeing = (explain_row(tmp_path / "run", question=w, setup=0) for w in (0, 1))
    assert [found.row["images_per_sample"] for found in (blind, seeing)] == [0, 2]
    more_s = seeing.value("micro-batch", "head, adapters, tower")
    more_s -= blind.value("micro-batch", "head, adapters, tower")
    assert more_s == pytest.approx(plan.workloads[1].vision_flop / plan.rates[0].peaks[0])
    for found in (blind, seeing):
        tokens = found.row["global_batch"] * found.row["seq_len"]
        step_s = found.row["seconds_per_token"] * tokens
        assert found.value("step", "total") == pytest.approx(step_s, rel=1e-6)


def test_paths_of_a_run_start_where_its_spec_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "together/home"
    mine = home / "my-catalogs"
    mine.mkdir(parents=True)
    config = json.loads((DATA / "configs/mistral-small-3.1-24b.json").read_text())
    (home / "my-model").mkdir()
    (home / "my-model/config.json").write_text(json.dumps(config))
    shipped = load_catalogs()
    lines = (shipped.folders[0] / "gpus.csv").read_text().splitlines()
    l40s = next(line for line in lines if line.startswith("L40S,"))
    rest = l40s.split(",")[3:]
    (mine / "gpus.csv").write_text("\n".join([lines[0], ",".join(["My-GPU", "", "", *rest])]))
    (home / "prices.csv").write_text(
        "provider,instance_type,gpu,gpu_count,price_per_hour\nmy-cloud,box,My-GPU,8,10\n"
    )
    (home / "spec.toml").write_text(
        'spec_version = 1\n[axes]\nmodels = ["./my-model"]\n'
        '[hardware]\ncatalogs = ["my-catalogs"]\noffers = ["prices.csv"]\ngpus = ["My-GPU"]\n'
    )
    spec = load_spec(home / "spec.toml")
    catalogs = load_catalogs([Path(folder) for folder in spec.hardware.catalogs])
    plan = build_plan(spec, catalogs, TODAY)
    folder = tmp_path / "together/run"
    engine.run(plan, folder, threads=1)
    remember_prices(folder, home / "spec.toml", prices_sha256(spec, dt.date.today()), 3)
    monkeypatch.chdir(DATA)
    found = explain_row(folder)
    assert (found.row["model"], found.row["gpu"]) == ("my-model", "My-GPU")
    assert found.value("job", "cost") == pytest.approx(found.row["usd"])
    # Moved together, the spec and its run still find each other.
    moved = (tmp_path / "together").rename(tmp_path / "elsewhere")
    again = explain_row(moved / "run", setup=found.row["setup"])
    assert again.value("step", "total") == found.value("step", "total")
    (moved / "home/my-model/config.json").unlink()
    with pytest.raises(RunError, match="model my-model: no longer in the catalogs, nor at a path"):
        explain_row(moved / "run")
