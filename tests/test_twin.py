"""The compiled kernels against the plain twin of docs/physics.md, scenario by scenario."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from scenarios import reference_scenario

from sweep import engine
from sweep.catalogs import Catalogs, load_catalogs
from sweep.kernels.tables import Verdict
from sweep.plan import Plan, build_plan
from sweep.spec import load_spec

# Of the whole catalog; SWEEP_TWIN_SCENARIOS=100000 takes a minute and a half.
DRAWN = int(os.environ.get("SWEEP_TWIN_SCENARIOS", "2000"))
VERDICTS = {
    "fits": Verdict.FITS,
    "gpu_memory": Verdict.GPU_MEMORY,
    "host_memory": Verdict.HOST_MEMORY,
    "unsupported": Verdict.UNSUPPORTED,
}


@pytest.fixture(scope="module")
def catalogs() -> Catalogs:
    return load_catalogs()


@pytest.fixture(scope="module")
def plan(catalogs: Catalogs) -> Plan:
    return build_plan(load_spec(Path(__file__).parent / "data/twin.toml"), catalogs)


@pytest.fixture(scope="module")
def unusual(catalogs: Catalogs) -> Catalogs:
    """Stacks no shipped row describes: 8- and 4-bit matmuls, interleaved stages, costly units."""
    book = catalogs.stacks
    changes = {"virtual_stages": 2.0, "unit_s": 3e-3, "adapter_unit_s": 2e-3, "cast_bytes": 9.0}
    for number, stack in enumerate(catalogs.stacks.stacks.values()):
        constants = {**stack.constants, **changes, "attention_kernel": float(number % 3)}
        book = book.with_stack(dataclasses.replace(stack, constants=constants))
    narrow = {"bf16": "fp8", "fp16": "fp4"}
    rules = {
        key: dataclasses.replace(rule, compute_dtype=narrow.get(rule.compute_dtype, "fp32"))
        for key, rule in book.rules.items()
    }
    return dataclasses.replace(catalogs, stacks=dataclasses.replace(book, rules=rules))


@pytest.fixture(scope="module")
def unusual_plan(unusual: Catalogs) -> Plan:
    """Few programs, so that many of the scenarios drawn have several stages or split experts."""
    spec = load_spec(Path(__file__).parent / "data/twin.toml")
    axes = {**spec.axes, "model": ("Qwen3-30B-A3B", "Gemma-2-2B", "GPT-2")}
    axes |= {"method": ("full", "lora")}
    knobs = {**spec.knobs, "stack": ("hf-fsdp1", "megatron"), "offload": ("none",)}
    knobs |= {"attention": ("flash",), "checkpointing": ("full",), "optimizer": ("adamw-fused",)}
    knobs |= {"lora_dropout": (0.0,), "cross_entropy": ("plain",)}
    hardware = dataclasses.replace(spec.hardware, gpus=("H100-SXM-80GB", "B200*", "A100-SXM-80GB"))
    return build_plan(dataclasses.replace(spec, axes=axes, knobs=knobs, hardware=hardware), unusual)


def scenarios_of(plan: Plan, w: int, k: int) -> dict[str, np.ndarray]:
    """Every scenario of one workload on one class of setups."""
    count = int(plan.candidates[w, k] * plan.class_sizes[k])
    return engine.decide_scenarios(plan, engine.Chunk(w, w + 1, k, k + 1, count))


def compare(plan: Plan, catalogs: Catalogs, rows: dict[str, np.ndarray], at: int) -> None:
    scenario = reference_scenario(
        plan,
        catalogs.stacks,
        int(rows["workload"][at]),
        int(rows["setup"][at]),
        int(rows["knob"][at]),
    )
    expected = reference.evaluate(scenario)
    for name in ("allocated_bytes", "device_bytes", "host_bytes", "seconds_per_token"):
        assert float(rows[name][at]) == pytest.approx(expected[name], rel=1e-5), name
    tokens = scenario["knobs"]["global_batch"] * scenario["knobs"]["seq_len"]
    network = expected["network_bytes_per_step"] / tokens
    assert float(rows["network_bytes_per_token"][at]) == pytest.approx(network, rel=1e-5)
    assert rows["verdict"][at] == VERDICTS[expected["verdict"]]


def drawable(plan: Plan) -> list[tuple[int, int]]:
    """Workloads and classes with scenarios, few enough to evaluate all of them."""
    small = (plan.candidates > 0) & (plan.candidates * plan.class_sizes < 400_000)
    return [(int(w), int(k)) for w, k in np.argwhere(small)][:: 1 if small.sum() < 300 else 7]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(pair=st.floats(0, 1, exclude_max=True), row=st.floats(0, 1, exclude_max=True))
def test_kernel_equals_the_twin_on_drawn_scenarios(plan: Plan, catalogs: Catalogs, pair, row):
    pairs = drawable(plan)
    assert len(pairs) > 50
    rows = scenarios_of(plan, *pairs[int(pair * len(pairs))])
    compare(plan, catalogs, rows, int(row * len(rows["knob"])))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(pair=st.floats(0, 1, exclude_max=True), row=st.floats(0, 1, exclude_max=True))
def test_kernel_equals_the_twin_on_stacks_nobody_has(
    unusual_plan: Plan, unusual: Catalogs, pair, row
):
    pairs = drawable(unusual_plan)
    assert len(pairs) > 50
    rows = scenarios_of(unusual_plan, *pairs[int(pair * len(pairs))])
    compare(unusual_plan, unusual, rows, int(row * len(rows["knob"])))


def test_kernel_equals_the_twin_over_the_whole_catalog(catalogs: Catalogs):
    """Scenarios drawn from the `everything` plan, DRAWN of them: the twin takes 0.6 ms each."""
    spec = Path(__file__).parent.parent / "catalogs/sweeps/everything.toml"
    plan = build_plan(load_spec(spec), catalogs)
    draw = np.random.default_rng(7)
    pairs = np.argwhere(plan.candidates > 0)
    per_pair = 40
    seen: set[int] = set()
    for w, k in draw.permutation(pairs)[: DRAWN // per_pair]:
        rows = scenarios_of(plan, int(w), int(k))
        for at in draw.integers(0, len(rows["knob"]), per_pair):
            compare(plan, catalogs, rows, int(at))
            seen.add(int(rows["verdict"][at]))
    assert seen >= {Verdict.FITS, Verdict.GPU_MEMORY, Verdict.UNSUPPORTED}


def test_every_verdict_and_program_kind_occurs_in_what_is_drawn_from(plan: Plan):
    kinds = {(p.stack, p.method, p.zero_stage, p.offload) for p in plan.programs}
    assert len(kinds) > 20
    seen: set[int] = set()
    for w, k in drawable(plan)[::5]:
        seen |= {int(verdict) for verdict in np.unique(scenarios_of(plan, w, k)["verdict"])}
    assert seen == {
        Verdict.FITS,
        Verdict.GPU_MEMORY,
        Verdict.HOST_MEMORY,
        Verdict.UNSUPPORTED,
    }


@pytest.mark.parametrize("index", [0, 9, 20])
def test_best_is_the_fastest_that_fits_among_all_scenarios(plan: Plan, index: int):
    w, k = drawable(plan)[index]
    pairs = engine.decide_pairs(plan, w, w + 1)
    rows = scenarios_of(plan, w, k)
    for setup in range(plan.tables.classes.first[k], plan.tables.classes.last[k]):
        mine = rows["setup"] == setup
        fits = mine & (rows["verdict"] == Verdict.FITS)
        if not fits.any():
            assert pairs["verdict"][setup] != Verdict.FITS
            continue
        fastest = rows["seconds_per_token"][fits].min()
        assert pairs["verdict"][setup] == Verdict.FITS
        assert pairs["seconds_per_token"][setup] == pytest.approx(fastest, rel=1e-6)
        chosen = mine & (rows["knob"] == pairs["knob"][setup])
        assert rows["seconds_per_token"][chosen] == pytest.approx(fastest, rel=1e-6)


def test_exactly_full_fits_and_one_byte_less_does_not():
    from sweep.kernels.decide import memory_verdict
    from sweep.kernels.tables import (
        DEVICE_LIMIT,
        HOST_LIMIT,
        OFFLOAD_LIMIT,
        ROOM,
        SETUP_ROWS,
        Quantity,
    )

    out = np.zeros(ROOM)
    out[Quantity.DEVICE] = 64.0 * 2**30
    out[Quantity.HOST] = 100.0 * 2**30
    limits = np.zeros((SETUP_ROWS, 3))
    limits[DEVICE_LIMIT] = [64.0 * 2**30, 64.0 * 2**30 - 1.0, 64.0 * 2**30]
    limits[HOST_LIMIT] = [100.0 * 2**30, 100.0 * 2**30, 100.0 * 2**30 - 1.0]
    limits[OFFLOAD_LIMIT] = 0.0
    assert [memory_verdict(out, 0, limits, i) for i in range(3)] == [
        Verdict.FITS,
        Verdict.GPU_MEMORY,
        Verdict.HOST_MEMORY,
    ]
    assert memory_verdict(out, 1, limits, 0) == Verdict.HOST_MEMORY


def test_the_race_and_the_plain_step_agree_and_keep_the_boundary(plan: Plan):
    from sweep.kernels import decide
    from sweep.kernels.tables import DEVICE_INVERSE, DEVICE_LIMIT

    tables = plan.tables
    k = int(np.argmax(plan.class_sizes))
    lo, hi = int(tables.classes.first[k]), int(tables.classes.last[k])
    counts = plan.candidates[0:1]
    table, identity, lines, line_count = decide.scratch(
        0, 1, tables.workloads, tables.splits, tables.forms, counts
    )
    found = decide.fill_candidates(
        0, k, tables.workloads, plan.choices.table, tables.layouts, tables.splits, tables.models,
        tables.features, tables.forms, tables.programs, tables.cases, tables.stacks,
        tables.classes, len(plan.global_batches), lines, line_count, table, identity,
    )  # fmt: skip
    assert found == plan.candidates[0, k]
    out = table[0].copy()
    dtype, offload, attention = (int(number) for number in identity[0, 1:])
    setups = tables.setups.copy()
    for limit, fits in ((out[decide._c.DEVICE], True), (out[decide._c.DEVICE] - 1.0, False)):
        setups[DEVICE_LIMIT] = limit
        setups[DEVICE_INVERSE] = 1.0 / limit
        state = np.array([[math.inf], [-1.0], [math.inf], [0.0], [-1.0]]).repeat(hi - lo, axis=1)
        decide.race(out, 0, dtype, offload, attention, setups, lo, hi, state)
        for j in range(hi - lo):
            plain = decide.seconds_per_token(out, dtype, attention, setups, lo + j)
            if math.isinf(plain):
                assert state[1, j] == -1.0
            elif fits:
                assert state[0, j] == pytest.approx(plain, rel=1e-12)
                assert state[1, j] == 0.0
            else:
                assert state[1, j] == -1.0
                assert state[4, j] == 0.0
                assert state[2, j] > 1.0


def test_candidates_side_by_side_are_the_plain_step_to_the_bit(plan: Plan):
    from sweep.kernels import decide, every
    from sweep.kernels.tables import MATMUL_BF16_S

    tables = plan.tables
    seen = set()
    for w in range(0, len(plan.workloads), max(1, len(plan.workloads) // 5)):
        for k in np.flatnonzero(plan.candidates[w]):
            table, identity, lines, line_count = decide.scratch(
                w, w + 1, tables.workloads, tables.splits, tables.forms, plan.candidates[w : w + 1]
            )
            found = decide.fill_candidates(
                w, k, tables.workloads, plan.choices.table, tables.layouts, tables.splits,
                tables.models, tables.features, tables.forms, tables.programs, tables.cases,
                tables.stacks, tables.classes, len(plan.global_batches), lines, line_count, table,
                identity,
            )  # fmt: skip
            terms, answers = np.empty((every.TERMS, found)), np.empty((2, found))
            every.turn(table, found, terms)
            ends = np.empty(found, np.int64)
            kinds = every.kinds_of(identity, found, ends)
            setup = int(tables.classes.first[k])
            begin = 0
            for end in ends[:kinds]:
                dtype, offload, attention = (int(number) for number in identity[begin, 1:])
                assert (identity[begin:end, 1:] == identity[begin, 1:]).all()
                every.time_kind(
                    terms, answers, begin, end, dtype, offload, attention, tables.setups, setup
                )
                unsupported = tables.setups[MATMUL_BF16_S + dtype, setup] == math.inf
                for n in range(begin, end):
                    plain_s, verdict = 0.0, int(Verdict.UNSUPPORTED)
                    if not unsupported:
                        plain_s = decide.seconds_per_token(
                            table[n], dtype, attention, tables.setups, setup
                        )
                        verdict = decide.memory_verdict(table[n], offload, tables.setups, setup)
                    assert (answers[0, n], answers[1, n]) == (plain_s, verdict)
                    seen.add(verdict)
                begin = end
            assert begin == found
    assert {Verdict.FITS, Verdict.GPU_MEMORY} <= seen


def test_a_stage_without_a_head_takes_for_ever_where_the_dtype_is_lacking():
    """No FLOP at no rate are no number (0 x inf), and what is no number is not slower than anything."""
    from sweep.kernels import decide
    from sweep.kernels.tables import MATMUL_BF16_S, ROOM, SETUP_ROWS, Quantity

    out = np.ones(ROOM)
    out[Quantity.HALF_FLOP] = 0.0
    setups = np.ones((SETUP_ROWS, 2))
    setups[MATMUL_BF16_S] = [math.inf, 1.0]
    seconds = [decide.seconds_per_token(out, 0, 0, setups, i) for i in range(2)]
    state = np.array([[math.inf], [-1.0], [math.inf], [0.0], [-1.0]]).repeat(2, axis=1)
    decide.race(out, 0, 0, 0, 0, setups, 0, 2, state)
    assert seconds[0] == state[3, 0] == math.inf
    assert state[0] == pytest.approx(seconds)
    assert list(state[1]) == [-1.0, 0.0]
