"""How long does a whole sweep take, in how much memory, and what do its parts after the kernel cost?"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
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
from sweep.kernels.decide import (
    ALLOCATED,
    DEVICE,
    HOST,
    MEASURES,
    NETWORK_PER_TOKEN,
    SECONDS_PER_TOKEN,
)
from sweep.manifest import write_durably
from sweep.plan import Plan, build_plan
from sweep.sink.encode import encode, pack_ids, unpack_ids
from sweep.spec import load_spec

THREADS = 2
# Two models of the `everything` plan, one of them of experts: some 34 million scenarios.
TWO_MODELS = '["Llama-3-8B", "Qwen3-30B-A3B"]'
GIB = 2.0**30


@pytest.fixture
def new_folders(tmp_path: Path) -> Iterator[Path]:
    return (tmp_path / f"run{number}" for number in itertools.count())


def run_of(ended: Ended) -> dict[str, Any]:
    """What `sweep run --json` printed."""
    found = json.loads(ended.stdout)
    assert sum(found["verdicts"].values()) > 0
    assert found["scenarios_decided_now"] == found["scenarios"]
    return found


@pytest.mark.benchmark(group="whole runs")
def test_default_sweep(sweep, new_folders, timed, figures):
    ended, median_s = timed(
        lambda: sweep(
            "run", SPECS / "deepseek-r1-one-day.toml", "--out", next(new_folders), "--json",
            "--threads", THREADS,
        ),
        rounds=7,
    )  # fmt: skip
    found = run_of(ended)
    assert found["scenarios"] > 5_000_000
    assert found["ranking"]
    figures.seconds("default sweep, whole process", median_s, below=30.0)
    figures.seconds("  its engine", found["seconds"])
    figures.text("  scenarios", f"{found['scenarios']:,}")


@pytest.mark.benchmark(group="whole runs")
def test_everything(sweep, everything_folder, timed, figures):
    ended, wall_s = timed(
        lambda: sweep(
            "run", SPECS / "everything.toml", "--out", everything_folder, "--json", "--quiet",
            "--threads", THREADS,
        ),
        rounds=1,
        warmup_rounds=0,
    )  # fmt: skip
    found = run_of(ended)
    assert found["scenarios"] > 1_000_000_000
    assert found["rows"] == sum(found["verdicts"].values())
    figures.seconds("everything, whole process", wall_s)
    figures.seconds("  its engine", found["seconds"])
    figures.rate("  its engine", found["scenarios"] / found["seconds"], "scenarios")
    figures.text("  scenarios; rows", f"{found['scenarios']:,}; {found['rows']:,}")
    figures.text(f"  cores it got of {THREADS}", f"{ended.cpu_s / wall_s:.2f}")
    figures.memory("everything, peak resident memory", ended.peak_bytes, below_bytes=GIB)


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
def test_peak_memory(sweep, two_models, new_folders, timed, figures, keep: str):
    ended, _ = timed(
        lambda: sweep(
            "run", two_models, "--out", next(new_folders), "--keep", keep, "--json", "--quiet",
            "--threads", THREADS,
        ),
        rounds=1,
        warmup_rounds=0,
    )  # fmt: skip
    assert run_of(ended)["rows"] > 5_000_000
    figures.memory(f"keep = {keep!r}, peak resident memory", ended.peak_bytes, below_bytes=GIB)


@pytest.fixture(scope="module")
def plan(two_models: Path) -> Plan:
    return build_plan(load_spec(two_models), load_catalogs())


@pytest.mark.benchmark(group="keep = all")
def test_keep_all(plan, new_folders, timed, figures, rows_per_s):
    def run() -> tuple[Any, Path]:
        folder = next(new_folders)
        return engine.run(plan, folder, threads=THREADS), folder

    (manifest, folder), median_s = timed(run, rounds=5)
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

    folder, median_s = timed(write, rounds=5)
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
@pytest.mark.parametrize("step", ["decide", "convert", "encode", "list knobs", "write"])
def test_step(plan, ready, tmp_path, timed, figures, step: str):
    """What each step of a part costs, on one thread; `decide` includes `convert`."""
    parts = [columns for _, columns in ready]
    raw = [kernel_output(columns) for columns in parts]
    encoded = [encode(FACTS, "part", columns)[0] for columns in parts]
    path = tmp_path / "part"
    steps = {
        "decide": lambda: [engine.decide(plan, chunk) for chunk, _ in ready],
        "convert": lambda: [engine._columns(*output) for output in raw],
        "encode": lambda: [encode(FACTS, "part", columns)[0] for columns in parts],
        "list knobs": lambda: [pack_ids(columns["knob"]) for columns in parts],
        "write": lambda: [write_durably(path, data) for data in encoded],
    }
    results, median_s = timed(steps[step], rounds=7)
    if step in ("decide", "convert"):
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


def kernel_output(columns: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Columns as a kernel leaves them: knobs in 64 bits, the measures side by side in 64 bits."""
    measures = np.empty((len(columns["knob"]), MEASURES))
    measures[:, SECONDS_PER_TOKEN] = columns["seconds_per_token"]
    measures[:, ALLOCATED] = columns["allocated_bytes"]
    measures[:, DEVICE] = columns["device_bytes"]
    measures[:, HOST] = columns["host_bytes"]
    measures[:, NETWORK_PER_TOKEN] = columns["network_bytes_per_token"]
    knobs = columns["knob"].astype(np.int64)
    return columns["workload"], columns["setup"], columns["verdict"], knobs, measures
