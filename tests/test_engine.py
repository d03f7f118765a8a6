"""The conductor: same bytes whatever the threads and parts, every way to stop and go on; laws of a step."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import DATA, TODAY
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sweep import engine
from sweep.catalogs import Catalogs, load_catalogs
from sweep.columns import FACTS, NO_KNOB, arrow_schema
from sweep.errors import RunError
from sweep.kernels.tables import Verdict
from sweep.manifest import Manifest, load_manifest
from sweep.plan import Plan, build_plan
from sweep.plan.dimensions import knob_columns
from sweep.plan.layouts import Layout
from sweep.plan.programs import Program, supports
from sweep.plan.shapes import model_shape
from sweep.scenario import Scenario, evaluate_scenario
from sweep.spec import Spec, parse_spec

Facts = dict[str, np.ndarray]
KEEPS = ("best", "feasible", "all")


def kept(plan: Plan, keep: str) -> Plan:
    """The plan with another `keep`."""
    results = dataclasses.replace(plan.spec.results, keep=keep)
    return dataclasses.replace(plan, spec=dataclasses.replace(plan.spec, results=results))


def in_parts(monkeypatch: pytest.MonkeyPatch, plan: Plan, scenarios: int, rows: int) -> int:
    """Cut runs into parts of this size from here on; returns how many the plan then has."""
    monkeypatch.setattr(engine, "PART_SCENARIOS", scenarios)
    monkeypatch.setattr(engine, "PART_ROWS", rows)
    return len(engine.chunks(plan))


def contents(manifest: Manifest) -> dict[str, Any]:
    """What a manifest says but of time and threads."""
    found = dataclasses.asdict(manifest)
    return {name: found[name] for name in found if name not in ("started", "seconds", "threads")}


def read_facts(folder: Path) -> pa.Table:
    files = sorted((folder / "facts").glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files])


def all_facts(plan: Plan) -> Facts:
    """Every row of a plan, part after part."""
    parts = [engine.decide(plan, chunk) for chunk in engine.chunks(plan)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# -- the same bytes ------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", KEEPS)
def test_threads_do_not_show_in_the_bytes(
    small_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    plan = kept(small_plan, keep)
    assert in_parts(monkeypatch, plan, 8_000, 6_000) > 4
    found = {}
    for threads in (1, 2, 4):
        folder = tmp_path / str(threads)
        manifest = engine.run(plan, folder, threads=threads)
        assert manifest.threads == threads
        assert contents(load_manifest(folder)) == contents(manifest)
        found[threads] = contents(manifest)
    assert found[1] == found[2] == found[4]
    hashes = [part["sha256"] for part in found[1]["parts"]]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("keep", KEEPS)
def test_parts_do_not_show_in_the_rows(
    small_plan: Plan, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    plan = kept(small_plan, keep)
    whole = all_facts(plan)
    assert len(engine.chunks(plan)) == 1
    for scenarios, rows in ((20_000, 20_000), (1, 1 << 20), (1, 500), (1, 1)):
        count = in_parts(monkeypatch, plan, scenarios, rows)
        assert count > 1
        found = all_facts(plan)
        for name, column in whole.items():
            np.testing.assert_array_equal(found[name], column, err_msg=name)
        chunks = engine.chunks(plan)
        assert sum(chunk.scenarios for chunk in chunks) == plan.scenarios
        if keep != "best" and rows == 500:
            # A workload too large for a part is cut by classes of setups.
            assert any(chunk.first_class > 0 for chunk in chunks)
            sizes = plan.candidates.max() * plan.class_sizes.max()
            assert max(chunk.scenarios for chunk in chunks) <= max(500, sizes)


def test_facts_are_ordered_by_what_identifies_them(small_plan: Plan) -> None:
    for keep in KEEPS:
        facts = all_facts(kept(small_plan, keep))
        keys = list(zip(facts["workload"], facts["setup"], facts["knob"], strict=True))
        assert keys == sorted(keys)
        assert len(set(keys)) == len(keys)


def test_facts_have_the_types_of_the_column_dictionary(small_plan: Plan, small_run: Path) -> None:
    table = read_facts(small_run)
    schema = arrow_schema(FACTS)
    assert table.schema.equals(schema)
    assert table.num_rows == small_plan.pairs
    facts = all_facts(small_plan)
    for field in schema:
        assert facts[field.name].dtype == field.type.to_pandas_dtype(), field.name
        assert facts[field.name].tolist() == table[field.name].to_pylist()
    for name in ("seconds_per_token", "allocated_bytes", "device_bytes", "host_bytes"):
        assert np.isfinite(facts[name]).all()


# -- keep ----------------------------------------------------------------------------------------

OFFLOAD_ONLY = """
spec_version = 1
[axes]
models = ["Qwen2.5-0.5B", "Llama-3-70B"]
methods = ["full", "lora"]
precisions = ["bf16-mixed"]
global_batches = [8, 48]
[knobs]
zero_stages = [1, 3]
offloads = ["optimizer-cpu", "params-cpu"]
tp = [1]
pp = [1]
ep = [1]
[hardware]
offers = ["quotes.csv"]
providers = ["test-cloud", "lone-cloud"]
max_gpus = 32
"""


@pytest.fixture(scope="module")
def offload_plan(catalogs: Catalogs) -> Plan:
    """Every scenario offloads, and the RAM of some machines is unknown; some fit nowhere."""
    return build_plan(parse_spec(OFFLOAD_ONLY, DATA / "made-up.toml"), catalogs, TODAY)


@pytest.fixture(params=["small", "offload"])
def any_plan(request: pytest.FixtureRequest, small_plan: Plan, offload_plan: Plan) -> Plan:
    return small_plan if request.param == "small" else offload_plan


def need_over_limit(plan: Plan, facts: Facts) -> np.ndarray:
    """How far each scenario is from fitting: docs/physics.md section 6."""
    headroom = 1.0 - plan.spec.constraints.memory_headroom
    limits = np.array([rates.usable_bytes * headroom for rates in plan.rates])[facts["setup"]]
    ram = np.array([rates.host_ram_bytes or np.inf for rates in plan.rates])[facts["setup"]]
    return np.maximum(facts["device_bytes"] / limits, facts["host_bytes"] / ram)


def test_best_is_the_fastest_that_fits_or_the_nearest_miss(any_plan: Plan) -> None:
    everything = all_facts(kept(any_plan, "all"))
    best = all_facts(kept(any_plan, "best"))
    assert len(best["setup"]) == any_plan.pairs
    needs = need_over_limit(any_plan, everything)
    seen = set()
    for row in range(any_plan.pairs):
        mine = (everything["workload"] == best["workload"][row]) & (
            everything["setup"] == best["setup"][row]
        )
        if not mine.any():
            assert best["verdict"][row] == Verdict.NO_LAYOUT
            assert best["knob"][row] == NO_KNOB
            continue
        verdicts = everything["verdict"][mine]
        (at,) = np.flatnonzero(mine & (everything["knob"] == best["knob"][row]))
        assert best["verdict"][row] == everything["verdict"][at]
        for name in ("allocated_bytes", "device_bytes", "host_bytes", "network_bytes_per_token"):
            assert best[name][row] == everything[name][at]
        assert best["seconds_per_token"][row] == pytest.approx(
            everything["seconds_per_token"][at], rel=1e-6
        )
        if (verdicts == Verdict.FITS).any():
            fitting = everything["seconds_per_token"][mine][verdicts == Verdict.FITS]
            assert best["verdict"][row] == Verdict.FITS
            assert best["seconds_per_token"][row] == pytest.approx(fitting.min(), rel=1e-6)
        elif (verdicts != Verdict.UNSUPPORTED).any():
            # Never one the GPU cannot run at all while there is another.
            assert best["verdict"][row] != Verdict.UNSUPPORTED
            possible = verdicts != Verdict.UNSUPPORTED
            if any_plan.rates[best["setup"][row]].host_ram_bytes is not None:
                assert needs[at] == pytest.approx(needs[mine][possible].min(), rel=1e-6)
        seen.add(int(best["verdict"][row]))
    assert Verdict.FITS in seen
    assert Verdict.UNSUPPORTED in seen or any_plan.spec.name != "small"


@pytest.mark.parametrize(
    ("model", "knob", "values", "verdict"),
    [
        # As many bytes read and written: as fast as each other.
        ("Qwen2.5-0.5B", "optimizer", ("adamw-8bit", "paged-adamw-8bit"), Verdict.FITS),
        # Gemma-2 runs eager kernels whatever is asked for: as large as each other.
        ("Gemma-2-27B", "attention", ("eager", "flash"), Verdict.GPU_MEMORY),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_ties_go_to_the_first_in_knob_order(
    catalogs: Catalogs,
    model: str,
    knob: str,
    values: tuple[str, str],
    verdict: Verdict,
    turned: bool,
) -> None:
    order = values[::-1] if turned else values
    text = f"""
    spec_version = 1
    [axes]
    models = ["{model}"]
    methods = ["full"]
    [knobs]
    {"optimizers" if knob == "optimizer" else knob} = {json.dumps(order)}
    zero_stages = [3]
    [hardware]
    offers = ["quotes.csv"]
    providers = ["test-cloud"]
    gpus = ["L4"]
    node_counts = [1]
    """
    plan = build_plan(parse_spec(text, DATA / "made-up.toml"), catalogs, TODAY)
    best = all_facts(plan)
    assert best["verdict"].tolist() == [verdict]
    assert knob_columns(plan, best["knob"])[knob] == [order[0]]


def test_unknown_ram_takes_no_offload(offload_plan: Plan) -> None:
    best = all_facts(offload_plan)
    lone = [j for j, rates in enumerate(offload_plan.rates) if rates.host_ram_bytes is None]
    assert lone
    mine = np.isin(best["setup"], lone) & (best["verdict"] != Verdict.NO_LAYOUT)
    assert set(best["verdict"][mine]) == {Verdict.GPU_MEMORY, Verdict.HOST_MEMORY}
    assert (best["seconds_per_token"][mine] > 0).all()
    # The same machine is not refused what stays on its GPUs.
    text = OFFLOAD_ONLY.replace('["optimizer-cpu", "params-cpu"]', '["none", "optimizer-cpu"]')
    catalogs = load_catalogs()
    plan = build_plan(parse_spec(text, DATA / "made-up.toml"), catalogs, TODAY)
    facts = all_facts(plan)
    fits = np.isin(facts["setup"], lone) & (facts["verdict"] == Verdict.FITS)
    assert fits.any()


def test_feasible_is_what_fits_of_all_and_one_miss_where_nothing_does(any_plan: Plan) -> None:
    everything = all_facts(kept(any_plan, "all"))
    best = all_facts(kept(any_plan, "best"))
    feasible = all_facts(kept(any_plan, "feasible"))
    fits = everything["verdict"] == Verdict.FITS
    misses = best["verdict"] != Verdict.FITS
    expected = {
        name: np.concatenate([everything[name][fits], best[name][misses]]) for name in everything
    }
    order = np.lexsort((expected["knob"], expected["setup"], expected["workload"]))
    for name, column in expected.items():
        np.testing.assert_array_equal(feasible[name], column[order], err_msg=name)
    assert fits.any()
    assert misses.any()


def test_pairs_without_a_layout_have_no_knob(catalogs: Catalogs, tmp_path: Path) -> None:
    text = """
    spec_version = 1
    [axes]
    models = ["GPT-2"]
    methods = ["full"]
    global_batches = [3]
    [knobs]
    micro_batches = [1]
    tp = [1]
    pp = [1]
    [hardware]
    offers = ["quotes.csv"]
    providers = ["lone-cloud"]
    """
    plan = build_plan(parse_spec(text, DATA / "made-up.toml"), catalogs, TODAY)
    # Three sequences do not split over eight GPUs, nor heads over them without tensor parallelism.
    facts = all_facts(plan)
    classes = {
        plan.hardware_shapes[setup.shape].gpus_per_node: j for j, setup in enumerate(plan.setups)
    }
    row = facts["setup"].tolist().index(classes[8])
    assert facts["verdict"].tolist() == [Verdict.FITS, Verdict.NO_LAYOUT]
    assert facts["knob"][row] == NO_KNOB
    assert facts["knob"][1 - row] != NO_KNOB
    for name in facts.keys() - {"workload", "setup", "knob", "verdict"}:
        assert facts[name][row] == 0
    manifest = engine.run(plan, tmp_path / "run", threads=1)
    assert manifest.verdicts["no_layout"] == 1
    knobs = pq.read_table(tmp_path / "run/knobs.parquet")["knob"].to_pylist()
    assert knobs == [facts["knob"][1 - row]]
    # With keep = "all" there is nothing to say of such a pair.
    assert len(all_facts(kept(plan, "all"))["setup"]) == plan.scenarios


# -- stopping and going on -----------------------------------------------------------------------


class Crash(Exception):
    """Stands in for a process that dies."""


@pytest.fixture
def cut(small_plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The small plan in parts of its own."""
    assert in_parts(monkeypatch, small_plan, 1, 1 << 20) == len(small_plan.workloads)
    return small_plan


@pytest.fixture(scope="module")
def uninterrupted(small_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the manifest of the plan in those parts says."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_parts(monkeypatch, small_plan, 1, 1 << 20)
        folder = tmp_path_factory.mktemp("whole")
        return contents(engine.run(small_plan, folder, threads=2))


def counting(monkeypatch: pytest.MonkeyPatch, crash_at: int | None = None) -> list[engine.Chunk]:
    """Note each part that is computed; crash at the one of this number."""
    computed: list[engine.Chunk] = []
    decide = engine.decide
    guard = threading.Lock()

    def watched(plan: Plan, chunk: engine.Chunk) -> Facts:
        with guard:
            computed.append(chunk)
            if len(computed) == crash_at:
                raise Crash
        return decide(plan, chunk)

    monkeypatch.setattr(engine, "decide", watched)
    return computed


@pytest.mark.parametrize("threads", [1, 3])
def test_after_a_crash_only_missing_parts_are_computed(
    cut: Plan, uninterrupted: dict[str, Any], tmp_path: Path, threads: int
) -> None:
    folder = tmp_path / "run"
    total = len(engine.chunks(cut))
    with pytest.MonkeyPatch.context() as monkeypatch:
        counting(monkeypatch, crash_at=6)
        with pytest.raises(Crash):
            engine.run(cut, folder, threads=threads)
    assert not (folder / "manifest.json").exists()
    done = len(list((folder / "receipts").glob("*.json")))
    assert 5 <= done < total - threads
    with pytest.MonkeyPatch.context() as monkeypatch:
        computed = counting(monkeypatch)
        manifest = engine.run(cut, folder, threads=threads)
    assert len(computed) == total - done
    assert contents(manifest) == uninterrupted
    with pytest.MonkeyPatch.context() as monkeypatch:
        computed = counting(monkeypatch)
        again = engine.run(cut, folder, threads=threads)
    assert computed == []
    assert again == manifest


@pytest.mark.parametrize("threads", [1, 2])
def test_a_stop_keeps_what_is_finished(
    cut: Plan, uninterrupted: dict[str, Any], tmp_path: Path, threads: int
) -> None:
    folder = tmp_path / "run"
    stop = threading.Event()
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if done:
            stop.set()

    with pytest.raises(engine.Interrupted):
        engine.run(cut, folder, threads=threads, progress=progress, stop=stop)
    assert not (folder / "manifest.json").exists()
    assert seen[0] == (0, cut.scenarios)
    assert 0 < seen[-1][0] < cut.scenarios
    later: list[tuple[int, int]] = []
    manifest = engine.run(
        cut, folder, threads=threads, progress=lambda *numbers: later.append(numbers)
    )
    assert later[0] == seen[-1], "what was decided before counts as decided"
    assert later[-1] == (cut.scenarios, cut.scenarios)
    assert [done for done, _ in later] == sorted(done for done, _ in later)
    assert contents(manifest) == uninterrupted


def test_a_stop_before_the_start_decides_nothing(cut: Plan, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(engine.Interrupted):
        engine.run(cut, tmp_path / "run", threads=2, stop=stop)
    assert list((tmp_path / "run/facts").iterdir()) == []


def test_a_damaged_part_is_computed_again(
    cut: Plan, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    engine.run(cut, folder, threads=2)
    part = sorted((folder / "facts").iterdir())[3]
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(bytes(data))
    with pytest.MonkeyPatch.context() as monkeypatch:
        computed = counting(monkeypatch)
        assert contents(engine.run(cut, folder, threads=2)) == uninterrupted
    assert computed == [engine.chunks(cut)[3]]


def test_starting_afresh_replaces_another_run(
    small_plan: Plan, offload_plan: Plan, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    first = engine.run(small_plan, folder, threads=2)
    with pytest.raises(RunError, match="holds a finished run of another spec"):
        engine.run(offload_plan, folder, threads=2)
    assert load_manifest(folder) == first
    engine.run(offload_plan, folder, threads=2, resume=False)
    manifest = engine.run(small_plan, folder, threads=2, resume=False)
    assert contents(manifest) == contents(first)


# -- what a run is the same run by ---------------------------------------------------------------


def replanned(small_spec: Spec, catalogs: Catalogs) -> Plan:
    return build_plan(small_spec, catalogs, TODAY)


def cheaper(catalogs: Catalogs, tmp_path: Path, small_spec: Spec, factor: float) -> Spec:
    """The small spec with other prices of the same machines."""
    lines = (DATA / "quotes.csv").read_text().splitlines()
    at = lines[0].split(",").index("price_per_hour")
    rows = [line.split(",") for line in lines[1:]]
    for row in rows:
        row[at] = str(float(row[at]) * factor)
    path = tmp_path / "quotes.csv"
    path.write_text("\n".join([lines[0], *(",".join(row) for row in rows)]))
    return dataclasses.replace(
        small_spec,
        path=tmp_path / "small.toml",
        hardware=dataclasses.replace(small_spec.hardware, offers=(str(path),)),
    )


def test_prices_do_not_make_another_run(
    small_plan: Plan, small_spec: Spec, catalogs: Catalogs, tmp_path: Path
) -> None:
    plan = replanned(cheaper(catalogs, tmp_path, small_spec, 0.5), catalogs)
    assert plan.offers != small_plan.offers
    assert engine.identity(plan) == engine.identity(small_plan)
    folder = tmp_path / "run"
    before = engine.run(small_plan, folder, threads=1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        computed = counting(monkeypatch)
        after = engine.run(plan, folder, threads=1)
    assert computed == []
    changed = {name for name in after.tables if after.tables[name] != before.tables[name]}
    assert changed == {"offers"}
    assert after.parts == before.parts
    prices = pq.read_table(folder / "offers.parquet")["usd_per_hour"].to_pylist()
    assert sorted(prices) == sorted(offer.usd_per_hour for offer in plan.offers)


def with_gpu(catalogs: Catalogs, **changes: Any) -> Catalogs:
    gpu = dataclasses.replace(catalogs.gpus["L4"], **changes)
    return dataclasses.replace(catalogs, gpus={**catalogs.gpus, "L4": gpu})


@pytest.mark.parametrize(
    "changes",
    [
        {"usable_bytes": 23.0e9},
        {"bf16_flop_per_s": 100e12},
        {"hbm_bytes_per_s": 310e9},
        {"pcie_bytes_per_s": 16e9},
    ],
)
def test_a_fact_about_a_gpu_makes_another_run(
    small_plan: Plan, small_spec: Spec, small_run: Path, catalogs: Catalogs, changes: dict[str, Any]
) -> None:
    plan = replanned(small_spec, with_gpu(catalogs, **changes))
    before, after = engine.identity(small_plan).hashes(), engine.identity(plan).hashes()
    assert {name for name in before if before[name] != after[name]} == {"catalogs"}
    with pytest.raises(RunError, match="holds a finished run of other catalogs"):
        engine.run(plan, small_run, threads=1)


def test_a_name_or_a_note_makes_no_other_run(
    small_plan: Plan, small_spec: Spec, catalogs: Catalogs
) -> None:
    renamed = dataclasses.replace(small_spec, name="renamed")
    noted = with_gpu(catalogs, notes="seen again", tdp_w=1.0)
    assert engine.identity(replanned(renamed, noted)) == engine.identity(small_plan)
    # Limits and amounts of data do not decide facts either; memory and what is kept do.
    for section, name, value, hashed in (
        ("constraints", "memory_headroom", 0.1, {"catalogs"}),
        ("results", "keep", "all", {"spec"}),
        ("data", "epochs", 2.0, set()),
        ("constraints", "deadline_hours", 3.0, set()),
    ):
        changed = dataclasses.replace(getattr(small_spec, section), **{name: value})
        spec = dataclasses.replace(small_spec, **{section: changed})
        found = engine.identity(replanned(spec, catalogs)).hashes()
        before = engine.identity(small_plan).hashes()
        assert {name for name in before if before[name] != found[name]} == hashed


def test_the_manifest_holds_what_the_run_was_of(small_plan: Plan, small_run: Path) -> None:
    manifest = load_manifest(small_run)
    assert manifest.hashes == engine.identity(small_plan).hashes()
    assert manifest.scenarios == small_plan.scenarios
    assert manifest.rows == small_plan.pairs == sum(manifest.verdicts.values())
    assert manifest.engine_version == engine.version()
    assert manifest.spec["axes"]["method"] == ["full", "lora", "qlora"]
    json.dumps(manifest.spec)


# -- laws of one step, whatever the model and the knobs ------------------------------------------

# Families whose working sets were traced themselves, dense and sparse, tied and not, with windows
# and latent attention; the smallest and the largest kinds.
MODELS = (
    "Llama-3-8B", "Llama-3-70B", "Qwen2.5-0.5B", "Qwen3-8B", "Gemma-3-4B", "Phi-3-mini-4k-instruct",
    "Mixtral-8x7B-v0.1", "Qwen3-30B-A3B", "DeepSeek-V2-Lite", "OLMo-2-7B", "GLM-4-9B-0414",
)  # fmt: skip


class Steps:
    """Evaluates drawn steps; what no stack runs it lets hypothesis leave out."""

    def __init__(self, catalogs: Catalogs):
        self._book = catalogs.stacks
        self._shapes = {key: model_shape(catalogs.models[key]) for key in MODELS}

    def offered(self, program: Program) -> bool:
        return supports(program, self._book)

    def assume_offered(self, step: dict[str, Any]) -> None:
        assume(self.offered(step["program"]))
        assume(step["program"].zero_stage == 0 or step["dp"] > 1)

    def __call__(self, step: dict[str, Any], **changes: Any) -> dict[str, float]:
        """Every quantity of a drawn step, some of it changed; the global batch follows."""
        c = {**step, **changes}
        scenario = Scenario(
            shape=self._shapes[c["model"]],
            program=c["program"],
            layout=Layout(c["tp"], c["pp"], 1, 1, c["sequence_parallel"]),
            seq_len=c["seq_len"],
            global_batch=c["micro_batch"] * c["dp"] * c["accumulation"],
            micro_batch=c["micro_batch"],
            gpus=c["dp"] * c["tp"] * c["pp"],
            gpus_per_node=8,
        )
        return dict(evaluate_scenario(scenario, self._book).quantities)


@pytest.fixture(scope="module")
def evaluate(catalogs: Catalogs) -> Steps:
    return Steps(catalogs)


OPTIMIZERS = ("adamw-fused", "adamw-foreach", "adamw-8bit", "adafactor", "sgd-momentum")


@st.composite
def steps(draw: st.DrawFn, **fixed: Any) -> dict[str, Any]:
    """A model, a program and a layout, some of which a stack may not offer."""
    stack = draw(st.sampled_from(["hf", "hf", "hf", "megatron"]))
    method = draw(st.sampled_from(["full"] if stack == "megatron" else ["full", "lora", "qlora"]))
    full = method == "full"
    megatron = stack == "megatron"
    program = Program(
        method=method,
        stack=stack,
        precision=draw(st.sampled_from(["bf16-mixed"] if megatron else ["bf16", "bf16-mixed", "fp32"])),
        quantization=draw(st.sampled_from(["nf4", "nf4-double", "int8"])) if method == "qlora" else "none",
        lora_rank=0 if full else draw(st.sampled_from([4, 16, 128])),
        lora_target="none" if full else draw(st.sampled_from(["attention-qv", "all-linear"])),
        lora_dropout=0.0 if full else draw(st.sampled_from([0.0, 0.05])),
        checkpointing=draw(st.sampled_from(["none", "full"] if megatron else ["none", "selective", "full"])),
        attention="flash" if megatron else draw(st.sampled_from(["eager", "flash"])),
        cross_entropy="plain" if megatron else draw(st.sampled_from(["plain", "fused", "fused-linear"])),
        optimizer="adamw-fused" if megatron else draw(st.sampled_from(OPTIMIZERS)),
        zero_stage=draw(st.sampled_from([0, 1] if megatron else [0, 1, 2, 3])),
        offload="none",
    )  # fmt: skip
    tp = draw(st.sampled_from([1, 2, 4])) if megatron else 1
    step = {
        "model": draw(st.sampled_from(MODELS)),
        "program": program,
        "tp": tp,
        "pp": draw(st.sampled_from([1, 2, 4])) if megatron else 1,
        "sequence_parallel": tp > 1 and draw(st.booleans()),
        "dp": draw(st.sampled_from([1, 2, 8])),
        "seq_len": draw(st.sampled_from([64, 512, 1024, 4096, 16384])),
        "micro_batch": draw(st.sampled_from([1, 2, 8])),
        "accumulation": draw(st.sampled_from([1, 2, 8])),
    }
    step.update(fixed)
    return step


# Sums of bytes in other orders differ in the last digits.
SLACK = 1 + 1e-12


@settings(max_examples=150)
@given(case=steps(), factor=st.sampled_from([2, 4]))
def test_more_tokens_never_take_less_memory(
    case: dict[str, Any], factor: int, evaluate: Steps
) -> None:
    # At the same accumulation: with fewer micro-batches, gradients need not wait for the next.
    evaluate.assume_offered(case)
    before = evaluate(case)
    for name in ("micro_batch", "seq_len"):
        after = evaluate(case, **{name: case[name] * factor})
        for quantity in ("allocated", "device", "kept"):
            assert after[quantity] * SLACK >= before[quantity], (name, quantity)
        if case["pp"] == 1:  # else another stage may decide
            assert after["resident"] == before["resident"]


@settings(max_examples=150)
@given(case=steps(accumulation=2, pp=1), factor=st.sampled_from([2, 4]))
def test_more_shards_never_hold_more(case: dict[str, Any], factor: int, evaluate: Steps) -> None:
    evaluate.assume_offered(case)
    before, after = evaluate(case), evaluate(case, dp=case["dp"] * factor)
    stage = case["program"].zero_stage
    for quantity, first_stage in (
        ("optimizer", 1), ("gradients", 2), ("weights", 3), ("frozen", 3),
    ):  # fmt: skip
        expected = before[quantity] / (factor if stage >= first_stage else 1)
        assert after[quantity] == pytest.approx(expected, rel=1e-12), quantity
    assert after["resident"] <= before["resident"] * SLACK
    # Tokens of one GPU are the same, so is what they keep.
    assert after["kept"] == before["kept"]


@settings(max_examples=100)
@given(case=steps())
def test_more_micro_batches_never_take_less_memory(case: dict[str, Any], evaluate: Steps) -> None:
    evaluate.assume_offered(case)
    before = evaluate(case)
    after = evaluate(case, accumulation=2 * case["accumulation"])
    assert after["allocated"] * SLACK >= before["allocated"]


@settings(max_examples=150)
@given(case=steps(tp=1, sequence_parallel=False))
def test_recomputing_more_keeps_no_more(case: dict[str, Any], evaluate: Steps) -> None:
    evaluate.assume_offered(case)
    kept_bytes = []
    for mode in ("full", "selective", "none"):
        program = case["program"]._replace(checkpointing=mode)
        if evaluate.offered(program):
            kept_bytes.append(evaluate(case, program=program)["kept"])
    assert len(kept_bytes) >= 2
    assert kept_bytes == sorted(kept_bytes)


@settings(max_examples=150)
@given(case=steps())
def test_quantised_holds_less_than_frozen_less_than_trained(
    case: dict[str, Any], evaluate: Steps
) -> None:
    # In plain bf16: preparing a 4-bit model under autocast turns its embeddings to fp32, which can
    # outweigh the rest of a small model (Gemma-3-270M takes a third more that way).
    adapter = case["program"]._replace(
        stack="hf", precision="bf16", optimizer="adamw-fused", cross_entropy="plain",
        zero_stage=min(case["program"].zero_stage, 3),
    )  # fmt: skip
    one = {**case, "tp": 1, "pp": 1, "sequence_parallel": False}
    if adapter.zero_stage and one["dp"] == 1:
        one["dp"] = 2
    rank = adapter.lora_rank or 16
    target = "all-linear" if adapter.lora_target == "none" else adapter.lora_target
    resident = []
    for method, quantization, lora in (
        ("qlora", "nf4-double", (rank, target)),
        ("qlora", "nf4", (rank, target)),
        ("qlora", "int8", (rank, target)),
        ("lora", "none", (rank, target)),
        ("full", "none", (0, "none")),
    ):
        program = adapter._replace(
            method=method, quantization=quantization, lora_rank=lora[0], lora_target=lora[1]
        )
        resident.append(evaluate(one, program=program)["resident"])
    assert resident == sorted(resident)
    assert len(set(resident)) == len(resident)


@settings(max_examples=150)
@given(case=steps())
def test_every_amount_is_finite_and_not_negative(case: dict[str, Any], evaluate: Steps) -> None:
    evaluate.assume_offered(case)
    quantities = evaluate(case)
    for name, value in quantities.items():
        assert np.isfinite(value), name
        # With a frozen base, the first layer keeps less than the others: `fixed` takes that off.
        if name != "fixed":
            assert value >= 0, (name, value)
    assert quantities["allocated"] >= quantities["resident"]
    assert quantities["device"] > quantities["allocated"]
    phases = ("p_forward", "p_loss", "p_top", "p_bottom", "p_end", "p_step")
    assert quantities["allocated"] == max(quantities[name] for name in phases)


@settings(max_examples=150)
@given(case=steps(pp=1), factor=st.sampled_from([2, 4]))
def test_a_step_takes_its_micro_batches_and_its_optimizer(
    case: dict[str, Any], factor: int, evaluate: Steps
) -> None:
    """Time is a multiple of the micro-batches plus what comes once: linear in the tokens."""
    evaluate.assume_offered(case)
    steps_s = []
    for accumulation in (1, 1 + factor, 1 + 2 * factor):
        steps_s.append(seconds(evaluate(case, accumulation=accumulation)))
    assert steps_s[2] - steps_s[1] == pytest.approx(steps_s[1] - steps_s[0], rel=1e-9)
    assert steps_s[0] > 0


def seconds(q: dict[str, float]) -> float:
    """Seconds of a step on round figures: 400 TFLOP/s, 3 TB/s, links of 400, 50 and 30 GB/s."""
    compute = (q["matmul_flop"] + q["half_flop"]) / 400e12
    compute += q["attention_flop"] / 300e12 + q["memory_bytes"] / 3e12
    shard = max(q["shard_link_bytes"] / 400e9, q["shard_network_bytes"] / 50e9)
    shard += q["shard_latency_s"]
    once = max(q["once_link_bytes"] / 400e9, q["once_network_bytes"] / 50e9) + q["once_latency_s"]
    micro = (compute**4 + q["host_s"] ** 4 + shard**4) ** 0.25 + q["dp_exposed"] * shard
    micro += (q["tp_link_bytes"] + q["ring_link_bytes"]) / 400e9 + q["latency_s"]
    micro += q["ring_network_bytes"] / 50e9
    return q["repeats"] * micro + q["step_exposed"] * once + q["optimizer_bytes"] / 3e12


@settings(max_examples=100)
@given(case=steps(), factor=st.sampled_from([2, 4]))
def test_work_is_linear_in_the_sequences(
    case: dict[str, Any], factor: int, evaluate: Steps
) -> None:
    evaluate.assume_offered(case)
    before = evaluate(case)
    after = evaluate(case, micro_batch=factor * case["micro_batch"])
    linear = (
        "matmul_flop", "half_flop", "attention_flop", "elementwise_bytes", "eager_bytes",
        "adapter_bytes", "permute_bytes", "loss_bytes", "cast_bytes", "tp_link_bytes",
        "ring_link_bytes", "ring_network_bytes",
    )  # fmt: skip
    for name in linear:
        assert after[name] == pytest.approx(factor * before[name], rel=1e-12), name
    # What the weights alone decide stays.
    for name in (
        "dequant_bytes",
        "shard_link_bytes",
        "once_link_bytes",
        "optimizer_bytes",
        "host_s",
        "unit_s",
    ):
        assert after[name] == before[name], name
    assert before["operand_bytes"] < after["operand_bytes"] < factor * before["operand_bytes"]


@settings(max_examples=100)
@given(case=steps())
def test_attention_grows_with_the_square_of_the_length(
    case: dict[str, Any], evaluate: Steps
) -> None:
    evaluate.assume_offered(case)
    before, after = evaluate(case), evaluate(case, seq_len=2 * case["seq_len"])
    ratio = after["attention_flop"] / before["attention_flop"]
    windowed = case["model"] == "Gemma-3-4B" or case["model"] == "Phi-3-mini-4k-instruct"
    if windowed:
        assert 2 <= ratio <= 4 * SLACK
    else:
        assert ratio == pytest.approx(4)
    for name in ("matmul_flop", "half_flop"):
        assert after[name] == pytest.approx(2 * before[name])


@settings(max_examples=150)
@given(case=steps())
def test_only_stage_3_gathers_weights(case: dict[str, Any], evaluate: Steps) -> None:
    evaluate.assume_offered(case)
    stage = case["program"].zero_stage
    q = evaluate(case)
    if stage < 3:
        assert q["root_gather"] == q["layer_gather"] == q["layer_reduce"] == 0.0
    else:
        assert q["root_gather"] > 0.0
        assert q["layer_gather"] > 0.0
        assert q["once_link_bytes"] == q["once_network_bytes"] == 0.0
    # Stages 2 and 3 reduce gradients with each micro-batch, the others once a step.
    assert (q["shard_link_bytes"] > 0.0) == (stage >= 2 and case["dp"] > 1)
    assert (q["once_link_bytes"] > 0.0) == (stage < 3 and case["dp"] > 1 and case["tp"] < 8)
    assert (q["shard_latency_s"] > 0.0) == (stage >= 2 and case["dp"] > 1)
    assert (q["unit_s"] > 0.0) == (stage == 3 and case["dp"] > 1)
    assert q["unit_s"] <= q["latency_s"]
    if case["dp"] == case["tp"] == case["pp"] == 1:
        communication = [name for name in q if "link_bytes" in name or "network_bytes" in name]
        assert len(communication) >= 7
        assert all(q[name] == 0.0 for name in communication)
