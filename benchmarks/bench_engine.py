"""How long does a whole sweep take, in how much memory, and what do its parts after the kernel cost?"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from processes import SPECS, Ended

from sweep import engine, sink
from sweep.catalogs import load_catalogs
from sweep.columns import FACTS, VERDICTS
from sweep.manifest import Manifest, write_durably
from sweep.plan import Plan, build_plan
from sweep.sink.encode import encode, pack_ids, unpack_ids
from sweep.spec import load_spec

THREADS = 2
# Two models of the `everything` plan, one of them of experts: some 34 million scenarios.
TWO_MODELS = '["Llama-3-8B", "Qwen3-30B-A3B"]'
GIB = 2.0**30
# Runs a spec into a folder; gives the process that has ended and its manifest.
Run = Callable[..., tuple[Ended, dict[str, Any]]]


@pytest.fixture
def new_folders(tmp_path: Path) -> Iterator[Path]:
    return (tmp_path / f"run{number}" for number in itertools.count())


@pytest.fixture
def run(sweep) -> Run:
    def run_into(folder: Path, spec: Path, *options: object) -> tuple[Ended, dict[str, Any]]:
        ended = sweep("run", spec, "--out", folder, "--threads", THREADS, *options)
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["rows"] == sum(manifest["verdicts"].values())
        return ended, manifest

    return run_into


@pytest.mark.benchmark(group="whole runs")
def test_default_sweep(run, new_folders, timed, figures):
    spec = SPECS / "deepseek-r1-one-day.toml"
    (ended, manifest), median_s = timed(lambda: run(next(new_folders), spec), rounds=7)
    assert manifest["scenarios"] > 1_000_000
    assert "DeepSeek-R1-Distill-Qwen-7B" in ended.stdout
    figures.seconds("default sweep, whole process", median_s, below=30.0)
    figures.seconds("  its engine", manifest["seconds"])
    figures.text("  scenarios", f"{manifest['scenarios']:,}")
    figures.text("  share of the processors it got", share_got(ended))


@pytest.mark.benchmark(group="whole runs")
def test_everything(run, everything_folder, timed, figures):
    (ended, manifest), wall_s = timed(
        lambda: run(everything_folder, SPECS / "everything.toml"), rounds=1, warmup_rounds=0
    )
    assert manifest["scenarios"] > 1_000_000_000
    assert manifest["verdicts"]["fits"] > 1_000_000
    figures.seconds("everything, whole process", wall_s)
    figures.seconds("  its engine", manifest["seconds"])
    figures.rate("  its engine", manifest["scenarios"] / manifest["seconds"], "scenarios")
    figures.text("  scenarios", f"{manifest['scenarios']:,}")
    figures.text("  rows", f"{manifest['rows']:,}")
    figures.text("  share of the processors it got", share_got(ended))
    figures.memory("everything, peak resident memory", ended.peak_bytes, below_bytes=GIB)


@pytest.mark.benchmark(group="whole runs")
def test_plan_of_everything(timed, figures):
    spec, catalogs = load_spec(SPECS / "everything.toml"), load_catalogs()
    plan, median_s = timed(lambda: build_plan(spec, catalogs), rounds=5)
    assert plan.scenarios > 1_000_000_000
    figures.seconds("  its plan, once more", median_s)


def share_got(ended: Ended) -> str:
    """How much of the processors a process had: low where others wanted them too."""
    return f"{ended.cpu_s / (THREADS * ended.wall_s):.0%}"


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec that keeps every scenario of two models of the `everything` plan."""
    text = (SPECS / "everything.toml").read_text()
    assert 'models = ["*"]' in text
    path = tmp_path_factory.mktemp("spec") / "two-models.toml"
    path.write_text(
        text.replace('models = ["*"]', f"models = {TWO_MODELS}") + '\n[results]\nkeep = "all"\n'
    )
    return path


@pytest.mark.benchmark(group="memory")
@pytest.mark.parametrize("keep", ["feasible", "all"])
def test_peak_memory(run, two_models, new_folders, timed, figures, keep: str):
    (ended, manifest), _ = timed(
        lambda: run(next(new_folders), two_models, "--keep", keep), rounds=1, warmup_rounds=0
    )
    assert manifest["rows"] > 1_000_000
    figures.memory(f"keep = {keep!r}, peak resident memory", ended.peak_bytes, below_bytes=GIB)


@pytest.fixture(scope="module")
def plan(two_models: Path) -> Plan:
    return build_plan(load_spec(two_models), load_catalogs())


@pytest.mark.benchmark(group="keep = all")
def test_keep_all(plan, new_folders, timed, figures, rows_per_s):
    def keep_all() -> tuple[Manifest, Path]:
        folder = next(new_folders)
        return engine.run(plan, folder, threads=THREADS), folder

    (manifest, folder), median_s = timed(keep_all, rounds=7)
    assert manifest.rows == manifest.scenarios == plan.scenarios
    written = pq.read_table(folder / "facts", columns=["verdict"])["verdict"].to_numpy()
    counts = np.bincount(written, minlength=len(VERDICTS))
    assert dict(zip(VERDICTS, counts, strict=True)) == manifest.verdicts
    rows_per_s["whole"] = manifest.rows / median_s
    figures.rate("keep = 'all', engine to Parquet", rows_per_s["whole"], "rows", at_least=5e6)
    size = sum(part.size_bytes for part in manifest.parts)
    figures.text("  rows; bytes a row", f"{manifest.rows:,}; {size / manifest.rows:.2f}")


@pytest.fixture(scope="module")
def rows_per_s() -> dict[str, float]:
    return {}


@pytest.fixture(scope="module")
def ready(plan: Plan) -> list[tuple[engine.Chunk, dict[str, np.ndarray]]]:
    """Columns of parts spread over the plan."""
    parts = engine.chunks(plan)
    return [(chunk, engine.decide(plan, chunk)) for chunk in parts[:: len(parts) // 8]]


@pytest.mark.benchmark(group="keep = all")
def test_writer_on_ready_columns(plan, ready, new_folders, timed, figures, rows_per_s):
    parts = [ready[index % len(ready)] for index in range(len(engine.chunks(plan)))]
    identity = engine.identity(plan)

    def write() -> Path:
        folder = next(new_folders)
        with (
            sink.open_run(folder, identity, part_count=len(parts)) as output,
            ThreadPoolExecutor(THREADS) as pool,
        ):

            def one(index: int) -> None:
                chunk, columns = parts[index]
                verdicts = np.bincount(columns["verdict"], minlength=len(VERDICTS))
                output.write_part(index, columns, chunk.scenarios, verdicts)

            list(pool.map(one, range(len(parts))))
        return folder

    folder, median_s = timed(write, rounds=7)
    last = pq.read_table(folder / sink.part_file(len(parts) - 1))
    for name, column in parts[-1][1].items():
        assert np.array_equal(last[name].to_numpy(), column), name
    rows = sum(chunk.scenarios for chunk, _ in parts)
    rows_per_s["writer"] = rows / median_s
    figures.rate("  the writer on ready-made columns", rows_per_s["writer"], "rows")
    if "whole" in rows_per_s:
        share = rows_per_s["whole"] / rows_per_s["writer"]
        figures.text("  the run, of what the writer does", f"{share:.0%}")


@pytest.mark.benchmark(group="steps")
@pytest.mark.parametrize("step", ["decide", "encode", "list knobs", "write"])
def test_step(plan, ready, tmp_path, timed, figures, step: str):
    """What each step of a part costs, on one thread."""
    parts = [columns for _, columns in ready]
    encoded = [encode(FACTS, "part", columns)[0] for columns in parts]
    path = tmp_path / "part"
    steps = {
        "decide": lambda: [engine.decide(plan, chunk) for chunk, _ in ready],
        "encode": lambda: [encode(FACTS, "part", columns)[0] for columns in parts],
        "list knobs": lambda: [pack_ids(columns["knob"]) for columns in parts],
        "write": lambda: [write_durably(path, data) for data in encoded],
    }
    results, median_s = timed(steps[step], rounds=7)
    if step == "decide":
        for result, columns in zip(results, parts, strict=True):
            assert all(np.array_equal(result[name], columns[name]) for name in columns)
    elif step == "encode":
        assert results == encoded
    elif step == "list knobs":
        for text, columns in zip(results, parts, strict=True):
            assert np.array_equal(unpack_ids(text), np.unique(columns["knob"]))
    else:
        assert path.read_bytes() == encoded[-1]
    rows = sum(len(columns["knob"]) for columns in parts)
    figures.text(f"  {step}, 1 thread", f"{median_s / rows * 1e9:.1f} ns a row")
