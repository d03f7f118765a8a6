"""What is chosen without evaluating everything is what evaluating everything says, bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, TODAY
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import OFFLOAD_ONLY

from sweep import engine
from sweep.catalogs import Catalogs
from sweep.kernels.best import choose_best
from sweep.kernels.decide import MEASURES, decide_best
from sweep.kernels.tables import (
    DEVICE_INVERSE,
    DEVICE_LIMIT,
    HOST_INVERSE,
    HOST_LIMIT,
    LINK_S,
    NETWORK_S,
    OFFLOAD_INVERSE,
    OFFLOAD_LIMIT,
    SETUP_ROWS,
    Verdict,
)
from sweep.plan import Plan, build_plan
from sweep.plan.setups import kind_table
from sweep.spec import load_spec, parse_spec

EVERYTHING = Path(__file__).parent.parent / "catalogs/sweeps/everything.toml"
Best = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def everything(catalogs: Catalogs) -> Plan:
    return build_plan(load_spec(EVERYTHING), catalogs, TODAY)


@pytest.fixture(scope="module")
def twin(catalogs: Catalogs) -> Plan:
    """Every offload, attention kernel, cross-entropy and parallelism."""
    return build_plan(load_spec(DATA / "twin.toml"), catalogs, TODAY)


@pytest.fixture(scope="module")
def offloads(catalogs: Catalogs) -> Plan:
    """Every scenario offloads, and the RAM of some machines is unknown."""
    return build_plan(parse_spec(OFFLOAD_ONLY, DATA / "made-up.toml"), catalogs, TODAY)


def room(plan: Plan, first: int, last: int) -> Best:
    rows = (last - first) * len(plan.setups)
    return np.empty(rows, np.uint8), np.empty(rows, np.int64), np.empty((rows, MEASURES))


def plain(plan: Plan, first: int, last: int) -> Best:
    """Every scenario of the workloads evaluated."""
    found = room(plan, first, last)
    decide_best(first, last, *engine._kernel_tables(plan), plan.candidates[first:last], *found)
    return found


def chosen(plan: Plan, first: int, last: int) -> Best:
    found = room(plan, first, last)
    choose_best(
        first, last, *engine._kernel_tables(plan), plan.tables.kinds, plan.candidates[first:last],
        *found,
    )  # fmt: skip
    return found


def compare(plan: Plan, first: int, last: int) -> Best:
    found = chosen(plan, first, last)
    for ours, theirs in zip(found, plain(plan, first, last), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    return found


@settings(max_examples=60)
@given(where=st.floats(0, 1, exclude_max=True))
def test_the_same_on_the_whole_catalog(everything: Plan, where: float) -> None:
    first = int(where * len(everything.workloads))
    assert everything.candidates[first].sum() > 0
    compare(everything, first, first + 1)


def test_the_same_where_all_is_tuned(catalogs: Catalogs) -> None:
    """Two batches a workload, and the lightest checkpointing last or in the middle."""
    plan = build_plan(load_spec(DATA / "best.toml"), catalogs, TODAY)
    workloads = plan.tables.workloads
    assert (workloads.last_batch - workloads.first_batch == 2).all()
    assert (plan.tables.kinds.rival >= 0).any()
    compare(plan, 0, len(plan.workloads))


def test_a_rival_is_never_slower(everything: Plan) -> None:
    """The order of rounded seconds: what recomputes less is first, on every setup of a class."""
    tables = everything.tables
    rival, workloads = tables.kinds.rival, tables.workloads
    assert (rival >= 0).mean() > 0.5
    compared = 0
    for w in range(0, len(everything.workloads), 1500):
        k = int(np.argmax((everything.candidates[w] > 0) * (everything.class_sizes > 5)))
        size = int(everything.candidates[w, k] * everything.class_sizes[k])
        rows = engine.decide_scenarios(everything, engine.Chunk(w, w + 1, k, k + 1, size))
        per_program = len(everything.global_batches) * len(everything.layouts)
        per_program *= len(everything.micro_batches)
        program, rest = np.divmod(rows["knob"].astype(np.int64), per_program)
        seconds = dict(
            zip(
                zip(program, rest, rows["setup"], strict=True),
                rows["seconds_per_token"],
                strict=True,
            )
        )
        first, last = workloads.first_case[w], workloads.last_case[w]
        of_place = tables.cases["program"][workloads.case_list[first:last]]
        rivals = {
            int(of_place[place]): int(of_place[rival[first + place]])
            for place in range(last - first)
            if rival[first + place] >= 0
        }
        for (one, knob, setup), one_s in seconds.items():
            if int(one) in rivals:
                assert seconds[rivals[int(one)], knob, setup] <= one_s
                compared += 1
    assert compared > 1000


def test_the_same_with_every_knob(twin: Plan) -> None:
    verdicts, _, _ = compare(twin, 0, len(twin.workloads))
    assert {Verdict.FITS, Verdict.GPU_MEMORY} <= set(verdicts)


def test_the_same_where_host_memory_decides(offloads: Plan) -> None:
    verdicts, _, _ = compare(offloads, 0, len(offloads.workloads))
    assert {Verdict.FITS, Verdict.HOST_MEMORY} < set(verdicts)
    rams = {rates.host_ram_bytes for rates in offloads.rates}
    assert None in rams
    assert len(rams) > 2


def test_the_same_when_every_limit_is_tight(twin: Plan) -> None:
    """Limits drawn at random: the fastest often fits one setup and not its neighbour."""
    draw = np.random.default_rng(5)
    setups = twin.tables.setups.copy()
    size = setups.shape[1]
    setups[DEVICE_LIMIT] = np.exp(draw.uniform(np.log(2e9), np.log(2e11), size))
    setups[HOST_LIMIT] = np.exp(draw.uniform(np.log(2e9), np.log(2e12), size))
    setups[OFFLOAD_LIMIT] = setups[HOST_LIMIT]
    for limit, inverse in (
        (DEVICE_LIMIT, DEVICE_INVERSE),
        (HOST_LIMIT, HOST_INVERSE),
        (OFFLOAD_LIMIT, OFFLOAD_INVERSE),
    ):
        setups[inverse] = 1.0 / setups[limit]
    kinds = kind_table(setups, twin.tables.classes, twin.tables.kinds.rival)
    tables = dataclasses.replace(twin.tables, setups=setups, kinds=kinds)
    plan = dataclasses.replace(twin, tables=tables)
    verdicts, _, _ = compare(plan, 0, len(plan.workloads))
    assert set(verdicts) >= {Verdict.FITS, Verdict.GPU_MEMORY, Verdict.HOST_MEMORY}


def test_kinds_leave_out_host_memory_and_what_is_sent_nowhere(everything: Plan) -> None:
    tables = everything.tables
    kinds, classes = tables.kinds, tables.classes
    assert kinds.rates.shape[1] < 0.7 * len(everything.setups)
    host = [HOST_LIMIT, OFFLOAD_LIMIT, HOST_INVERSE, OFFLOAD_INVERSE]
    for k in range(len(classes.first)):
        left_out = list(host)
        if classes.gpus[k] == classes.gpus_per_node[k]:
            left_out.append(NETWORK_S)
        if classes.gpus[k] == 1:
            left_out.append(LINK_S)
        counted = np.setdiff1d(np.arange(SETUP_ROWS), left_out)
        own = kinds.rates[:, kinds.first[k] : kinds.last[k]]
        assert (np.diff(own[DEVICE_LIMIT]) <= 0).all()
        assert np.unique(own[counted], axis=1).shape[1] == own.shape[1]
        here = slice(classes.first[k], classes.last[k])
        np.testing.assert_array_equal(
            kinds.rates[counted][:, kinds.of_setup[here]], tables.setups[counted, here]
        )
        assert (kinds.least_host[k] <= tables.setups[[HOST_LIMIT, OFFLOAD_LIMIT], here].T).all()
        assert (kinds.most_host[k] >= tables.setups[[HOST_LIMIT, OFFLOAD_LIMIT], here].T).all()
