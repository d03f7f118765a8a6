"""Runs on a Ray cluster of several nodes on this machine: the same bytes, also when a node dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TODAY
from test_cli import LONG_SPEC, PROGRAM, ROOT, done, environment, refused, sweep
from test_engine import contents
from test_sink import files

from sweep import engine, on_ray
from sweep.catalogs import Catalogs
from sweep.manifest import Manifest
from sweep.plan import Plan, build_plan
from sweep.spec import parse_spec

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'sweep[ray]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray warns of its own


@pytest.fixture(scope="module")
def plan(catalogs: Catalogs, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan of 24 parts."""
    path = tmp_path_factory.mktemp("spec") / "long.toml"
    path.write_text(LONG_SPEC)
    return build_plan(parse_spec(LONG_SPEC, path), catalogs, TODAY)


@pytest.fixture(scope="module")
def calm(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, dict[str, bytes]]:
    """What a run in one piece makes of it."""
    folder = tmp_path_factory.mktemp("calm") / "out"
    return engine.run(plan, folder, threads=2), files(folder)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A cluster of a head without processors for tasks and two nodes of one each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    made.workers = [made.add_node(num_cpus=1) for _ in range(2)]
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_node_that_dies_costs_nothing_but_time(
    plan: Plan, calm: tuple[Manifest, dict[str, bytes]], cluster: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    found: list[Manifest] = []
    seen: list[tuple[int, int]] = []

    def note(decided: int, total: int) -> None:
        seen.append((decided, total))

    def work() -> None:
        found.append(on_ray.run_on_ray(plan, folder, address=cluster.address, progress=note))

    thread = threading.Thread(target=work)
    thread.start()
    until = time.monotonic() + 120
    while len(list(folder.glob("receipts/*.json"))) < 3 and time.monotonic() < until:
        time.sleep(0.005)
    early = len(list(folder.glob("receipts/*.json")))
    cluster.remove_node(cluster.workers[0], allow_graceful=False)
    before = {path.name: path.stat().st_ino for path in folder.glob("facts/*.parquet")}
    thread.join(180)
    assert not thread.is_alive()
    assert 3 <= early < 24
    manifest, wanted = calm
    assert contents(found[0]) == contents(manifest)
    assert files(folder) == wanted
    after = {path.name: path.stat().st_ino for path in folder.glob("facts/*.parquet")}
    assert {name: after[name] for name in before} == before
    assert seen[-1] == (plan.scenarios, plan.scenarios)


def test_a_stop_keeps_what_is_finished(plan: Plan, cluster: Any, tmp_path: Path) -> None:
    stop = threading.Event()

    def note(decided: int, _total: int) -> None:
        if decided:
            stop.set()

    with pytest.raises(engine.Interrupted):
        on_ray.run_on_ray(plan, tmp_path / "out", address=cluster.address, progress=note, stop=stop)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert 0 < len(list((tmp_path / "out").glob("receipts/*.json"))) < 24


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_run_that_goes_on(
    calm: tuple[Manifest, dict[str, bytes]], tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "long.toml").write_text(LONG_SPEC)
    out = tmp_path / "out"
    path = os.environ.get("PYTHONPATH", str(ROOT))  # Ray may lie in a folder of its own
    with subprocess.Popen(
        [*PROGRAM, "run", "long.toml", "--out", "out", "--no-ranking", "--on", "ray"],
        cwd=tmp_path, env=environment(PYTHONPATH=path), stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while process.poll() is None and not list(out.glob("receipts/*.json")):
            time.sleep(0.005)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "to go on: sweep run long.toml --out out --no-ranking --on ray" in said
    assert "Traceback" not in said
    assert not (out / "manifest.json").exists()
    done("run", "long.toml", "--out", "out", "--no-ranking", cwd=tmp_path)
    facts = {name: data for name, data in calm[1].items() if name.startswith("facts")}
    assert {name: files(out)[name] for name in facts} == facts


def test_what_fails_in_a_task_is_told_as_it_is_here(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text(LONG_SPEC)
    words = ["run", "long.toml", "--out", "out", "--no-ranking"]
    done(*words, "--shard", "23/24", cwd=tmp_path)
    (tmp_path / "out" / "facts" / "part-00001.parquet").mkdir()
    said = refused(*words, "--on", "ray", "--address", cluster.address, code=1, cwd=tmp_path)
    assert "out/facts/part-00001.parquet: cannot be written: is a directory\n" in said
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_address_where_nothing_answers_is_told_soon(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening: whoever connects is refused
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        (tmp_path / "long.toml").write_text(LONG_SPEC)
        words = ["run", "long.toml", "--out", "out", "--on", "ray", "--address", address]
        said = refused(*words, code=1, cwd=tmp_path)
    assert f"Ray: nothing answers at {address}: connection refused" in said
    assert not (tmp_path / "out").exists()


def test_the_command_gives_the_run_and_goes_on_with_one_begun(
    calm: tuple[Manifest, dict[str, bytes]], cluster: Any, tmp_path: Path
) -> None:
    (tmp_path / "long.toml").write_text(LONG_SPEC)
    words = ["run", "long.toml", "--out", "out", "--no-ranking"]
    done(*words, "--shard", "0/2", cwd=tmp_path)
    before = {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("facts/*")}
    assert len(before) == 12
    found = sweep(*words, "--on", "ray", "--address", cluster.address, "--json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["scenarios"] == calm[0].scenarios
    after = {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("facts/*")}
    assert {name: after[name] for name in before} == before
    facts = {name: data for name, data in calm[1].items() if name.startswith("facts")}
    assert {name: files(tmp_path / "out")[name] for name in facts} == facts
    (tmp_path / "long.toml").write_text(LONG_SPEC.replace("[512, ", "[256, "))
    said = refused(*words, "--on", "ray", "--address", cluster.address, code=1, cwd=tmp_path)
    assert "holds a finished run of another spec" in said
