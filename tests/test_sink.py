"""The sink: durable parts, resuming, refusing, and what each fault looks like to its user."""

from __future__ import annotations

import base64
import dataclasses
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from run_folders import IDENTITY, fact_columns, knob_columns, setup_columns, write_run

from sweep import columns, sink
from sweep.errors import RunError
from sweep.manifest import Manifest, load_manifest, require_intact
from sweep.sink.encode import pack_ids, unpack_ids

SETUPS = setup_columns(8, (1, 2, 4))


def facts(index: int) -> dict[str, np.ndarray]:
    """The facts of one part, always the same for an index."""
    workloads = np.arange(6 * index, 6 * index + 6)
    return fact_columns(workloads, SETUPS, np.random.default_rng(index), 40)


def write(run: sink.Run, index: int) -> None:
    part = facts(index)
    run.write_part(index, part, 500, np.bincount(part["verdict"], minlength=len(columns.VERDICTS)))


def files(folder: Path) -> dict[str, bytes]:
    """Bytes of every file whose bytes depend on nothing but the input."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*.parquet"))
    }


def no_partials(folder: Path) -> bool:
    return not list(folder.rglob("*.tmp"))


def test_a_finished_run_reads_back(tmp_path: Path) -> None:
    manifest = write_run(tmp_path / "run")
    assert load_manifest(tmp_path / "run") == manifest
    assert manifest.rows == 18 * 24
    assert manifest.scenarios == 10 * manifest.rows
    assert sum(manifest.verdicts.values()) == manifest.rows
    require_intact(tmp_path / "run", manifest, read=True)
    assert no_partials(tmp_path)
    assert not (tmp_path / "run" / "run.lock").exists()
    for entry in (*manifest.parts, *manifest.tables.values()):
        content = (tmp_path / "run" / entry.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry.sha256
        assert pq.read_metadata(tmp_path / "run" / entry.file).num_rows == entry.rows


def test_parts_hold_the_arrays_with_units_beside_them(tmp_path: Path) -> None:
    with sink.open_run(tmp_path, IDENTITY, part_count=1) as run:
        write(run, 0)
    table = pq.ParquetFile(tmp_path / sink.part_file(0)).read()
    wanted = facts(0)
    assert table.column_names == list(columns.TABLES["facts"])
    for name, array in wanted.items():
        assert (table[name].to_numpy() == array).all()
        assert table.schema.field(name).metadata[b"unit"].decode() == columns.COLUMNS[name].unit
    statistics = pq.read_metadata(tmp_path / sink.part_file(0)).row_group(0).column(0).statistics
    assert (statistics.min, statistics.max) == (0, 5)


def test_bytes_depend_on_neither_order_nor_threads_nor_time(tmp_path: Path) -> None:
    write_run(tmp_path / "one", parts=3)
    rng = np.random.default_rng(0)
    parts = [
        fact_columns(chunk, SETUPS, rng, 40)
        for chunk in np.array_split(np.arange(18, dtype=np.uint32), 3)
    ]

    def add(run: sink.Run, index: int) -> None:
        counts = np.bincount(parts[index]["verdict"], minlength=len(columns.VERDICTS))
        run.write_part(index, parts[index], 10 * len(parts[index]["verdict"]), counts)

    with (
        sink.open_run(tmp_path / "two", IDENTITY, part_count=3) as run,
        ThreadPoolExecutor(3) as pool,
    ):
        list(pool.map(lambda index: add(run, index), [2, 0, 1]))
    manifest = write_run(tmp_path / "two", parts=3)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert manifest.parts == load_manifest(tmp_path / "one").parts


def test_only_knobs_that_facts_mention_are_written(tmp_path: Path) -> None:
    write_run(tmp_path / "run", knobs=1000)
    table = pq.read_table(tmp_path / "run" / "facts")
    mentioned = set(table["knob"].to_pylist()) - {columns.NO_KNOB}
    assert pq.read_table(tmp_path / "run" / "knobs.parquet")["knob"].to_pylist() == sorted(
        mentioned
    )


@pytest.mark.parametrize("ids", [[], [columns.NO_KNOB], [7], [0, 3, 3, 900], [5, 3_000_000_000]])
def test_sets_of_ids_survive_a_receipt(ids: list[int]) -> None:
    text = pack_ids(np.array(ids, dtype=np.uint32))
    assert unpack_ids(text).tolist() == sorted(set(ids) - {columns.NO_KNOB})


def test_a_stopped_run_resumes_where_it_was(tmp_path: Path) -> None:
    with sink.open_run(tmp_path, IDENTITY, part_count=4) as run:
        assert run.finished_parts == set()
        write(run, 0)
        write(run, 2)
    (tmp_path / "facts" / "part-00001.parquet.tmp").write_bytes(b"half")
    # A part without its receipt is not believed: it may be older than the crash that cut it.
    (tmp_path / "facts" / "part-00003.parquet").write_bytes(b"whole?")
    with sink.open_run(tmp_path, IDENTITY, part_count=4) as run:
        assert run.finished_parts == {0, 2}
        assert run.finished_scenarios == 1000
        assert no_partials(tmp_path)
        with pytest.raises(RunError, match=r"2 of 4 parts are missing.*part-00001"):
            run.commit(knob_columns)


def test_a_finished_run_is_known_and_left_as_it_is(tmp_path: Path) -> None:
    first = write_run(tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()
    with sink.open_run(tmp_path, IDENTITY, part_count=3) as run:
        assert run.finished == first
        assert run.finished_parts == {0, 1, 2}
    write_run(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_new_prices_change_the_manifest_but_not_its_times(tmp_path: Path) -> None:
    first = write_run(tmp_path)
    second = write_run(tmp_path, offers=20)
    assert second.tables["offers"] != first.tables["offers"]
    changed = dataclasses.replace(second, tables=first.tables)
    assert changed == first
    require_intact(tmp_path, second, read=True)


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "short":
        path.write_bytes(content[:-7])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["missing", "short", "flipped"])
def test_a_damaged_part_of_a_finished_run_alone_is_computed_again(tmp_path: Path, how: str) -> None:
    manifest = write_run(tmp_path)
    before = files(tmp_path)
    damage(tmp_path / sink.part_file(1), how)
    with pytest.raises(RunError, match=r"part-00001\.parquet: .*\nrun the same command again"):
        require_intact(tmp_path, manifest, read=True)
    with sink.open_run(tmp_path, IDENTITY, part_count=3) as run:
        assert run.finished is None
        assert run.finished_parts == {0, 2}
    write_run(tmp_path)
    assert files(tmp_path) == before
    assert load_manifest(tmp_path).parts == manifest.parts


def test_a_flipped_bit_in_an_unfinished_run_is_found_before_the_manifest(tmp_path: Path) -> None:
    with sink.open_run(tmp_path, IDENTITY, part_count=3) as run:
        for index in range(3):
            write(run, index)
    damage(tmp_path / sink.part_file(2), "flipped")
    with (
        sink.open_run(tmp_path, IDENTITY, part_count=3) as run,
        pytest.raises(RunError, match=r"part-00002\.parquet.*SHA-256.*\n.*recomputes only"),
    ):
        run.commit(knob_columns)
    assert not (tmp_path / "manifest.json").exists()
    with sink.open_run(tmp_path, IDENTITY, part_count=3) as run:
        assert run.finished_parts == {0, 1}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 1, "parts": 3}'])
def test_a_damaged_manifest_costs_no_part(tmp_path: Path, content: str) -> None:
    manifest = write_run(tmp_path)
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(RunError, match=r"manifest\.json: "):
        load_manifest(tmp_path)
    with sink.open_run(tmp_path, IDENTITY, part_count=3) as run:
        assert run.finished is None
        assert run.finished_parts == {0, 1, 2}
    assert write_run(tmp_path).parts == manifest.parts


def test_a_damaged_identity_is_mended_from_the_manifest(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "identity.json").write_text("{")
    with sink.open_run(tmp_path, IDENTITY, part_count=3) as run:
        assert run.finished_parts == {0, 1, 2}
    (tmp_path / "manifest.json").unlink()
    with sink.open_run(tmp_path, IDENTITY, part_count=3) as run:
        assert run.finished_parts == {0, 1, 2}
    (tmp_path / "identity.json").write_text("{")
    with pytest.raises(RunError, match=r"identity\.json: is damaged.*--fresh"):
        sink.open_run(tmp_path, IDENTITY, part_count=3)


def test_starting_over_leaves_files_that_are_not_ours(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "plan.xlsx").write_text("mine")
    with sink.open_run(tmp_path, IDENTITY, part_count=2, resume=False) as run:
        assert run.finished_parts == set()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"plan.xlsx", "identity.json", "facts", "receipts"}


@pytest.mark.parametrize("content", ["", "{", "null", '{"sha256": 1}', '{"file": "x"}'])
def test_a_damaged_receipt_costs_only_its_part(tmp_path: Path, content: str) -> None:
    with sink.open_run(tmp_path, IDENTITY, part_count=2) as run:
        write(run, 0)
        write(run, 1)
    (tmp_path / sink.receipt_file(0)).write_text(content)
    with sink.open_run(tmp_path, IDENTITY, part_count=2) as run:
        assert run.finished_parts == {1}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spec": '{"other": 1}'}, "another spec"),
        ({"catalogs_sha256": "d" * 64}, "other catalogs"),
        ({"kernels_sha256": "l" * 64}, "another version of the formulas"),
        ({"versions": {"numpy": "3"}}, "other library versions"),
        ({"spec": "{}", "kernels_sha256": ""}, "another spec and another version of the formulas"),
    ],
)
def test_a_folder_of_another_run_is_refused(
    tmp_path: Path, change: dict[str, Any], words: str, finished: bool
) -> None:
    write_run(tmp_path)
    if not finished:
        (tmp_path / "manifest.json").unlink()
    before = files(tmp_path)
    other = dataclasses.replace(IDENTITY, **change)
    state = "a finished run" if finished else "an unfinished run"
    with pytest.raises(RunError, match=f"holds {state} of {words}.*--out.*--fresh"):
        sink.open_run(tmp_path, other, part_count=3)
    assert files(tmp_path) == before
    with sink.open_run(tmp_path, other, part_count=3, resume=False) as run:
        assert run.finished_parts == set()
    assert files(tmp_path) == {}


def test_other_parts_of_the_same_run_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path)
    with pytest.raises(RunError, match="3 parts where this one has 5"):
        sink.open_run(tmp_path, IDENTITY, part_count=5)


@pytest.mark.parametrize("name", ["manifest.json", "identity.json"])
def test_a_folder_of_a_newer_sweep_is_refused(tmp_path: Path, name: str) -> None:
    write_run(tmp_path)
    content = json.loads((tmp_path / name).read_text())
    content |= {"format": 2, "engine_version": "9.1"}
    (tmp_path / name).write_text(json.dumps(content))
    words = r"written in format 2 by sweep 9\.1.*upgrade sweep"
    with pytest.raises(RunError, match=words):
        sink.open_run(tmp_path, IDENTITY, part_count=3)
    if name == "manifest.json":
        with pytest.raises(RunError, match=words):
            load_manifest(tmp_path)


def test_folders_that_are_none_of_ours_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "other.tmp").write_text("")
    with pytest.raises(RunError, match="file: is a file"):
        sink.open_run(tmp_path / "file", IDENTITY, part_count=1)
    with pytest.raises(RunError, match="is a file"):
        sink.open_run(tmp_path / "file" / "below", IDENTITY, part_count=1)
    with pytest.raises(RunError, match=r"no run of sweep \(file, other\.tmp\)"):
        sink.open_run(tmp_path, IDENTITY, part_count=1)
    with pytest.raises(RunError, match="no run of sweep"):
        sink.open_run(tmp_path, IDENTITY, part_count=1, resume=False)
    assert (tmp_path / "file").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other.tmp"]


def test_a_second_process_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, time
        sys.path[:0] = sys.argv[2:]
        from pathlib import Path
        from run_folders import IDENTITY
        from sweep import sink
        run = sink.open_run(Path(sys.argv[1]), IDENTITY, part_count=2)
        print("held", flush=True)
        time.sleep(60)
        """
    )
    here = Path(__file__).parent
    command = [sys.executable, "-c", script, str(tmp_path), str(here), str(here.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(RunError, match=rf"process {holder.pid} on .* is writing here"):
                sink.open_run(tmp_path, IDENTITY, part_count=2)
        finally:
            holder.send_signal(signal.SIGKILL)
    assert (tmp_path / "run.lock").exists()
    with sink.open_run(tmp_path, IDENTITY, part_count=2) as run:
        write(run, 0)
    assert not (tmp_path / "run.lock").exists()


def test_killed_at_any_moment_the_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    write_run(tmp_path / "calm", workloads=300, parts=30)
    script = textwrap.dedent(
        """
        import sys
        sys.path[:0] = sys.argv[2:]
        from pathlib import Path
        import run_folders
        run_folders.write_run(Path(sys.argv[1]), workloads=300, parts=30)
        """
    )
    here = Path(__file__).parent
    rough = tmp_path / "rough"
    command = [sys.executable, "-c", script, str(rough), str(here), str(here.parent)]
    kills = 0
    for wait_s in (0.0, 0.01, 0.02, 0.03, 0.05, 0.08):
        seen = len(list(rough.glob("receipts/*.json")))
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 20
        # Wait until it has begun to write anew, so that the kill falls into the writing.
        while process.poll() is None and time.monotonic() < deadline:
            if list(rough.rglob("*.tmp")) or len(list(rough.glob("receipts/*.json"))) > seen:
                break
        time.sleep(wait_s)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills > 0
    write_run(rough, workloads=300, parts=30)
    assert files(rough) == files(tmp_path / "calm")
    assert no_partials(rough)


def test_two_threads_cannot_both_hold_a_folder(tmp_path: Path) -> None:
    taken: list[sink.Run] = []
    refused: list[RunError] = []
    barrier = threading.Barrier(4)

    def attempt() -> None:
        barrier.wait()
        try:
            taken.append(sink.open_run(tmp_path, IDENTITY, part_count=1))
        except RunError as error:
            refused.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 3)
    taken[0].close()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full; free some space there, then run the same command again"),
        (errno.EROFS, "cannot be written: .*choose another folder"),
        (errno.EIO, "cannot be written: input/output error"),
    ],
)
def test_a_failing_disk_is_told_and_costs_only_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    with sink.open_run(tmp_path, IDENTITY, part_count=2) as run:
        write(run, 0)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(RunError, match=words):
                write(run, 1)
        assert run.finished_parts == {0}
        assert no_partials(tmp_path)
        write(run, 1)
    with sink.open_run(tmp_path, IDENTITY, part_count=2) as run:
        assert run.finished_parts == {0, 1}


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A real disk of 256 KiB, where the system lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_keeps_the_finished_parts(small_disk: Path) -> None:
    ballast = small_disk / ".ballast"
    with sink.open_run(small_disk / "run", IDENTITY, part_count=2) as run:
        write(run, 0)
        free = os.statvfs(small_disk)
        ballast.write_bytes(bytes(free.f_bavail * free.f_bsize))
        with pytest.raises(RunError, match="the disk is full"):
            write(run, 1)
    ballast.unlink()
    with sink.open_run(small_disk / "run", IDENTITY, part_count=2) as run:
        assert run.finished_parts == {0}


def test_a_read_only_disk_is_told(small_disk: Path) -> None:
    write_run(small_disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(RunError, match="read-only file system; choose another folder"):
        sink.open_run(small_disk / "run", IDENTITY, part_count=3)
    with pytest.raises(RunError, match="read-only file system; choose another folder"):
        sink.open_run(small_disk / "new", IDENTITY, part_count=3)
    require_intact(small_disk / "run", load_manifest(small_disk / "run"), read=True)


def test_columns_other_than_declared_are_our_mistake(tmp_path: Path) -> None:
    with sink.open_run(tmp_path, IDENTITY, part_count=1) as run:
        part = facts(0)
        with pytest.raises(ValueError, match="verdict"):
            run.write_part(0, {k: v for k, v in part.items() if k != "verdict"}, 1, [0] * 5)
        with pytest.raises(ValueError, match=r"workloads\.model: has nulls"):
            run.write_table("workloads", _workloads_without_model())
        with pytest.raises(ValueError, match="part 1 of 1"):
            write(run, 1)
        write(run, 0)
        with pytest.raises(ValueError, match="tables not written: workloads"):
            run.commit(knob_columns)


def _workloads_without_model() -> dict[str, list[Any]]:
    names = columns.TABLES["workloads"]
    row: dict[str, Any] = {
        name: "x" if columns.COLUMNS[name].dtype == "text" else 0 for name in names
    }
    return {name: [value] for name, value in (row | {"model": None}).items()}


def test_manifest_text_is_stable(tmp_path: Path) -> None:
    manifest = write_run(tmp_path)
    text = (tmp_path / "manifest.json").read_text()
    assert text == manifest.to_json()
    assert isinstance(load_manifest(tmp_path), Manifest)
    content = json.loads(text)
    assert content["format"] == 1
    assert content["spec"] == {"made": "up"}
    assert content["hashes"] == IDENTITY.hashes()
    receipt = json.loads((tmp_path / sink.receipt_file(0)).read_text())
    assert base64.b64decode(receipt["knobs"])
    assert receipt["sha256"] == content["parts"][0]["sha256"]
