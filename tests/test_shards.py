"""Shards: shares of a run, computed beside each other, end as the run in one piece, byte for byte."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from run_folders import IDENTITY
from test_cli import LONG_SPEC, PROGRAM, ROOT, apart, done, environment, refused, sweep
from test_engine import contents, counting, in_parts, kept
from test_sink import damage, files, no_partials, write

from sweep import engine, sink
from sweep.cli import run
from sweep.errors import RunError, SpecError
from sweep.manifest import load_manifest
from sweep.plan import Plan
from sweep.shards import Shard, parse_shard, ranges

# How shards are written


def test_a_shard_is_read_as_it_is_written() -> None:
    assert parse_shard("0/1") == Shard(0, 1)
    assert parse_shard(" 7 / 8 ") == Shard(7, 8)
    assert str(Shard(3, 8)) == "3/8"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8/8", "shards are counted from 0, so 8 of them are 0/8 to 7/8"),
        ("0/0", "there is at least one shard"),
        ("1", "allowed i/n, such as 0/8"),
        ("-1/4", "allowed i/n"),
        ("/4", "allowed i/n"),
        ("1/٤", "allowed i/n"),
        ("", "allowed i/n"),
    ],
)
def test_a_shard_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse_shard(text)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 24, 40])
def test_every_part_is_of_one_shard_and_shards_are_alike(count: int) -> None:
    shares = [Shard(index, count).parts(24) for index in range(count)]
    assert sorted(part for share in shares for part in share) == list(range(24))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_numbers_in_a_row_are_a_range() -> None:
    assert ranges([9, 0, 1, 2, 5, 10]) == "0-2, 5, 9-10"
    assert ranges([]) == ""


# Locks


def test_shards_hold_a_folder_together_and_nobody_else(tmp_path: Path) -> None:
    first = sink.open_run(tmp_path, IDENTITY, part_count=4, shard=Shard(0, 2))
    with sink.open_run(tmp_path, IDENTITY, part_count=4, shard=Shard(1, 2)) as second:
        with pytest.raises(RunError, match=r"shard 1/2: process \d+ on .* is writing here"):
            sink.open_run(tmp_path, IDENTITY, part_count=4, shard=Shard(1, 2))
        with pytest.raises(RunError, match=r"shards \(0/2, 1/2\) are writing here"):
            sink.open_run(tmp_path, IDENTITY, part_count=4)
        write(second, 1)
        with pytest.raises(ValueError, match="part 2 of 4"):
            write(second, 2)
    with sink.open_run(tmp_path, IDENTITY, part_count=4, shard=Shard(1, 2)) as again:
        assert again.finished_parts == {1}
    first.close()
    with sink.open_run(tmp_path, IDENTITY, part_count=4) as whole:
        assert whole.finished_parts == {1}
        with pytest.raises(RunError, match=r"process \d+ on .* is writing here"):
            sink.open_run(tmp_path, IDENTITY, part_count=4, shard=Shard(0, 2))
    assert not list(tmp_path.glob("*.lock"))


def test_shards_that_start_at_once_all_get_their_share(tmp_path: Path) -> None:
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        barrier = threading.Barrier(8)

        def work(index: int, folder: Path = folder, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            with sink.open_run(folder, IDENTITY, part_count=16, shard=Shard(index, 8)) as run:
                for part in (index, index + 8):
                    write(run, part)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        with sink.open_run(folder, IDENTITY, part_count=16) as run:
            run.check_parts()
            assert run.finished_parts == set(range(16))
        assert no_partials(folder)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(_handle: int, _kind: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(RunError, match=r"no locks \(flock\).*local folder.*`sweep finish --from`"):
        sink.open_run(tmp_path, IDENTITY, part_count=2, shard=Shard(0, 2))
    assert not (tmp_path / "identity.json").exists()


def test_a_shard_removes_what_it_was_writing_and_leaves_that_of_others(tmp_path: Path) -> None:
    with sink.open_run(tmp_path, IDENTITY, part_count=4, shard=Shard(0, 2)):
        pass
    mine = tmp_path / "facts" / "part-00000.parquet.0-of-2.tmp"
    others = tmp_path / "facts" / "part-00001.parquet.1-of-2.tmp"
    for path in (mine, others):
        path.write_bytes(b"half")
    (tmp_path / "shard-1-of-2.lock").write_text("")  # of a shard that was killed
    with sink.open_run(tmp_path, IDENTITY, part_count=4, shard=Shard(0, 2)):
        assert (mine.exists(), others.exists()) == (False, True)
    with sink.open_run(tmp_path, IDENTITY, part_count=4):
        assert not others.exists()
        assert not (tmp_path / "shard-1-of-2.lock").exists()


@pytest.mark.parametrize("change", [{"spec": "{}"}, {"kernels_sha256": "other"}])
def test_parts_of_another_run_are_not_believed(tmp_path: Path, change: dict[str, Any]) -> None:
    other = dataclasses.replace(IDENTITY, **change)
    with sink.open_run(tmp_path / "other", other, part_count=2, shard=Shard(0, 2)) as run:
        write(run, 0)
    with sink.open_run(tmp_path / "mine", IDENTITY, part_count=2, shard=Shard(1, 2)) as run:
        write(run, 1)
    with pytest.raises(RunError, match="holds an unfinished run of another"):
        sink.open_run(tmp_path / "mine", other, part_count=2, shard=Shard(0, 2))
    # Copied over each other, the folders have one identity and parts of two runs.
    for name in ("facts", "receipts"):
        shutil.copytree(tmp_path / "other" / name, tmp_path / "mine" / name, dirs_exist_ok=True)
    with sink.open_run(tmp_path / "mine", IDENTITY, part_count=2) as run:
        assert run.finished_parts == {1}


def test_a_shard_refuses_files_that_are_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match=r"no run of sweep \(thesis\.tex\)"):
        sink.open_run(tmp_path, IDENTITY, part_count=2, shard=Shard(0, 2))
    assert [path.name for path in tmp_path.glob("*.tex")] == ["thesis.tex"]
    assert not (tmp_path / "identity.json").exists()


# The same bytes


@pytest.fixture
def plan(small_plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The small plan in parts of one workload each."""
    assert in_parts(monkeypatch, small_plan, 1, 1 << 20) == len(small_plan.workloads)
    return small_plan


@pytest.mark.parametrize("keep", ["best", "feasible", "all"])
def test_shards_and_threads_do_not_show_in_the_bytes(
    small_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    plan = kept(small_plan, keep)
    assert in_parts(monkeypatch, plan, 8_000, 6_000) > 4
    whole = engine.run(plan, tmp_path / "whole", threads=2)
    for count, threads in ((1, 2), (2, 1), (3, 4), (50, 1)):
        folder = tmp_path / f"{count}-{threads}"
        for index in reversed(range(count)):
            engine.run_shard(plan, folder, Shard(index, count), threads=threads)
        assert not (folder / "manifest.json").exists()
        manifest = engine.finish(plan, folder)
        assert contents(manifest) == contents(whole) == contents(load_manifest(folder))
        assert files(folder) == files(tmp_path / "whole")


def test_a_shard_says_what_it_has_and_goes_on_where_it_was(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = Shard(1, 3)
    mine = [engine.chunks(plan)[index] for index in shard.parts(len(plan.workloads))]
    seen: list[tuple[int, int]] = []
    first = engine.run_shard(
        plan, tmp_path, shard, threads=1, progress=lambda *numbers: seen.append(numbers)
    )
    total = sum(chunk.scenarios for chunk in mine)
    assert (first.parts, first.part_count) == (len(mine), len(plan.workloads))
    assert first.scenarios == total
    assert (seen[0], seen[-1]) == ((0, total), (total, total))
    damage(tmp_path / sink.part_file(4), "short")
    with monkeypatch.context() as patch:
        computed = counting(patch)
        assert engine.run_shard(plan, tmp_path, shard, threads=1) == first
    assert computed == [engine.chunks(plan)[4]]


def test_a_whole_run_finishes_what_shards_began(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine.run(plan, tmp_path / "whole", threads=2)
    engine.run_shard(plan, tmp_path / "run", Shard(0, 3), threads=1)
    engine.run_shard(plan, tmp_path / "run", Shard(0, 2), threads=1)
    with monkeypatch.context() as patch:
        computed = counting(patch)
        manifest = engine.run(plan, tmp_path / "run", threads=2)
    left = [index for index in range(len(plan.workloads)) if index % 3 and index % 2]
    assert sorted(computed, key=lambda chunk: chunk.first) == [
        engine.chunks(plan)[index] for index in left
    ]
    assert contents(manifest) == contents(whole)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


# Finishing


@pytest.mark.parametrize("how", ["copied", "fetched", "fetched into a new one"])
def test_folders_of_shards_come_together(plan: Plan, tmp_path: Path, how: str) -> None:
    whole = engine.run(plan, tmp_path / "whole", threads=2)
    folders = [tmp_path / str(index) for index in range(3)]
    for index, folder in enumerate(folders):
        engine.run_shard(plan, folder, Shard(index, 3), threads=1)
    before = [files(folder) for folder in folders]
    if how == "copied":
        target, sources = folders[0], []
        for folder in folders[1:]:
            shutil.copytree(folder, target, dirs_exist_ok=True)
    elif how == "fetched":
        target, sources = folders[0], folders[1:]
    else:
        target, sources = tmp_path / "new", folders
    manifest = engine.finish(plan, target, sources)
    assert contents(manifest) == contents(whole)
    assert files(target) == files(tmp_path / "whole")
    assert [files(folder) for folder in sources] == before[len(before) - len(sources) :]
    assert contents(engine.finish(plan, target)) == contents(whole)


@pytest.mark.parametrize("how", ["missing", "short", "flipped"])
def test_what_is_missing_and_what_is_damaged_is_told_apart(
    plan: Plan, tmp_path: Path, how: str
) -> None:
    for index in (0, 2):
        engine.run_shard(plan, tmp_path, Shard(index, 3), threads=1)
    damage(tmp_path / sink.part_file(3), how)
    with pytest.raises(sink.Incomplete) as found:
        engine.finish(plan, tmp_path)
    count = len(plan.workloads)
    assert found.value.missing == tuple(range(1, count, 3))
    assert found.value.damaged == (3,)
    assert (found.value.part_count, found.value.shard_count) == (count, 3)
    assert len(found.value.damage) == 1
    assert "part-00003.parquet: " in found.value.damage[0]
    for index in range(3):
        engine.run_shard(plan, tmp_path, Shard(index, 3), threads=1)
    assert engine.finish(plan, tmp_path).scenarios == plan.scenarios


def test_a_damaged_part_is_fetched_from_a_folder_that_has_it_whole(
    plan: Plan, tmp_path: Path
) -> None:
    whole = engine.run(plan, tmp_path / "whole", threads=2)
    shutil.copytree(tmp_path / "whole", tmp_path / "spoilt")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    (tmp_path / "run" / "manifest.json").unlink()
    for name in ("spoilt", "run"):
        damage(tmp_path / name / sink.part_file(2), "flipped")
    with pytest.raises(sink.Incomplete, match=r"run/facts/part-00002\.parquet: does not hold"):
        engine.finish(plan, tmp_path / "run", [tmp_path / "spoilt"])
    manifest = engine.finish(plan, tmp_path / "run", [tmp_path / "spoilt", tmp_path / "whole"])
    assert contents(manifest) == contents(whole)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_finishing_what_was_never_begun_is_refused_and_leaves_nothing(
    plan: Plan, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="there is no such folder"):
        engine.finish(plan, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="no run was begun here"):
        engine.finish(plan, tmp_path / "empty")
    engine.run_shard(kept(plan, "all"), tmp_path / "other", Shard(0, 2), threads=1)
    with pytest.raises(RunError, match=r"unfinished run of another spec.*give the spec"):
        engine.finish(plan, tmp_path / "new", [tmp_path / "other"])
    engine.run_shard(plan, tmp_path / "mine", Shard(0, 2), threads=1)
    with pytest.raises(RunError, match=r"other: holds an unfinished run of another spec.*give the"):
        engine.finish(plan, tmp_path / "other", [tmp_path / "mine"])
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["empty", "mine", "other"]
    assert list((tmp_path / "empty").iterdir()) == []


# The command line


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a spec of 24 parts and its finished run."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "long.toml").write_text(LONG_SPEC)
    found = apart("run", "long.toml", "--out", "out", cwd=folder)
    assert found.returncode == 0, found.stderr
    (folder / "stdout").write_text(found.stdout)
    return folder


def words_of(manifest: Path) -> dict[str, Any]:
    """What a manifest says but of time and threads."""
    found = json.loads(manifest.read_text())
    return {name: found[name] for name in found if name not in ("started", "seconds", "threads")}


def test_three_processes_in_one_folder_and_finish_are_the_run(whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole / "long.toml", tmp_path)
    command = [*PROGRAM, "run", "long.toml", "--out", "out", "--threads", "1", "--json", "--shard"]
    shards = [
        subprocess.Popen(
            [*command, f"{index}/3"], cwd=tmp_path, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for index in range(3)
    ]  # fmt: skip
    facts = []
    for shard in shards:
        shown, said = shard.communicate(timeout=120)
        assert shard.returncode == 0, said
        assert said.endswith("when all 3 shards are done: sweep finish long.toml --out out\n")
        facts.append(json.loads(shown))
    assert [fact["shard"] for fact in facts] == [0, 1, 2]
    assert not (tmp_path / "out" / "manifest.json").exists()
    found = sweep("finish", "long.toml", "--out", "out", cwd=tmp_path)
    assert (found.returncode, found.stdout) == (0, (whole / "stdout").read_text())
    manifest = tmp_path / "out" / "manifest.json"
    assert words_of(manifest) == words_of(whole / "out" / "manifest.json")
    assert files(tmp_path / "out") == files(whole / "out")
    for name in ("parts", "scenarios", "rows", "bytes"):
        parts = json.loads(manifest.read_text())["parts"]
        wanted = {
            "parts": len(parts),
            "scenarios": sum(part["scenarios"] for part in parts),
            "rows": sum(part["rows"] for part in parts),
            "bytes": sum(part["size_bytes"] for part in parts),
        }
        assert sum(fact[name] for fact in facts) == wanted[name]


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names a processor of another kind")
def test_the_processor_does_not_show_in_the_bytes(whole: Path, tmp_path: Path) -> None:
    """Shards may run on machines of several generations: here without AVX and fused multiply-add."""
    oldest = {
        "NUMBA_CPU_NAME": "x86-64",
        "NUMBA_CPU_FEATURES": "",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-FMA,-FMA4",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    words = ["run", whole / "long.toml", "--out", tmp_path / "out", "--shard", "3/12"]
    found = apart(*words, **oldest)
    assert found.returncode == 0, found.stderr
    assert "compiling the kernels" in found.stderr
    parts = files(tmp_path / "out")
    assert len(parts) == 2
    assert parts == {name: files(whole / "out")[name] for name in parts}


def test_finish_names_the_commands_that_compute_what_is_left(whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole / "long.toml", tmp_path)
    done("run", "long.toml", "--out", "a b", "--shard", "1/8", "--quiet", cwd=tmp_path)
    said = refused("finish", "long.toml", "--out", "a b", code=1, cwd=tmp_path)
    assert "of 24 parts 21 are missing (0, 2-8, 10-16, 18-23)" in said
    assert "shards to run again, which compute only that: 0, 2-7 of 8" in said
    assert "  sweep run long.toml --out 'a b' --shard 7/8\n" in said
    assert "--shard 1/8" not in said
    assert said.endswith("  sweep run long.toml --out 'a b'\n")
    shutil.copytree(whole / "out", tmp_path / "rest")
    shown = done("finish", "long.toml", "--out", "a b", "--from", "rest", "--json", cwd=tmp_path)
    assert json.loads(shown)["scenarios_decided_now"] == 0
    assert files(tmp_path / "a b") == files(whole / "out")
    said = refused("finish", "long.toml", "--out", "a b", "--keep", "all", code=1, cwd=tmp_path)
    assert "holds a finished run of another spec" in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--shard", "3/3"], "counted from 0, so 3 of them are 0/3 to 2/3"),
        (["--shard", "first"], "allowed i/n"),
        (["--shard", "0/2", "--fresh"], "would remove the parts of the other shards"),
        (["--shard", "0/2", "--fail-infeasible"], "goes with `sweep finish`"),
        (["--shard", "0/2", "--on", "ray"], "--shard does not go with --on"),
        (["--threads", "2", "--on", "ray"], "--threads does not go with --on"),
        (["--address", "auto"], "it goes with --on ray"),
    ],
)
def test_a_shard_that_cannot_be_run_is_bad_usage(
    whole: Path, tmp_path: Path, more: list[str], said: str
) -> None:
    found = refused("run", whole / "long.toml", "--out", tmp_path / "out", *more)
    assert said in " ".join(found.split())
    assert "--help" in found
    assert not (tmp_path / "out").exists()


def test_without_ray_it_says_how_to_install_it(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    said = refused("run", whole / "long.toml", "--out", tmp_path / "out", "--on", "ray", code=1)
    assert said.endswith("Error: Ray is not installed; install it with: pip install 'sweep[ray]'\n")
    assert not (tmp_path / "out").exists()


def test_more_shards_than_parts_leave_some_without(whole: Path, tmp_path: Path) -> None:
    found = sweep("run", whole / "long.toml", "--out", tmp_path / "out", "--shard", "30/40")
    assert (found.returncode, found.stdout) == (0, "")
    assert "shard 30/40: has nothing to do, the run has 24 parts" in found.stderr


@pytest.mark.parametrize(
    ("where", "given"),
    [
        ("slurm", {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "8"}),
        ("kubernetes", {"JOB_COMPLETION_INDEX": "7"}),
        ("aws batch", {"AWS_BATCH_JOB_ARRAY_INDEX": "7"}),
    ],
)
def test_the_recipes_give_each_task_its_shard(where: str, given: dict[str, str]) -> None:
    recipes = (ROOT / "README.md").read_text().partition("## On a cluster")[2].partition("\n## ")[0]
    first = next(iter(given))
    (line,) = [
        line for line in recipes.splitlines() if f"--shard ${first}" in line and "sweep run" in line
    ]
    (command,) = re.findall(r"(sweep run .* --shard [^'\"]+)", line)
    words = subprocess.run(
        ["sh", "-c", f"set -- {command}; printf '%s\\n' \"$@\""],
        env=given, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    arguments = run.command.make_context("run", words[2:-1]).params
    assert arguments["shard"] == Shard(7, 8)
