"""What can happen to the real program: killed, crowded out, out of disk, damaged, told to stop."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_cli import LONG_SPEC, PROGRAM, apart, done, environment, refused
from test_shards import words_of
from test_sink import damage, files, no_partials

RUN = ["run", "long.toml", "--out", "out", "--no-ranking"]
PARTS = 24
Stamps = dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a spec of 24 parts and its run, which nothing disturbed."""
    folder = tmp_path_factory.mktemp("calm")
    (folder / "long.toml").write_text(LONG_SPEC)
    found = apart(*RUN, cwd=folder)
    assert found.returncode == 0, found.stderr
    assert len(files(folder / "out" / "facts")) == PARTS
    return folder


@pytest.fixture
def place(calm: Path, tmp_path: Path) -> Path:
    """A folder with the spec alone."""
    shutil.copy(calm / "long.toml", tmp_path)
    return tmp_path


@pytest.fixture
def start(place: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the program there; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def launch(*arguments: str, threads: int = 1) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*PROGRAM, *arguments, "--threads", str(threads)], cwd=place, env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield launch
    for process in started:
        process.kill()
        process.communicate()


def receipts(out: Path) -> set[str]:
    """Names of the parts with a receipt."""
    return {path.stem for path in out.glob("receipts/*.json")}


def finished(out: Path) -> Stamps:
    """Which file each finished part is, and when it was written: it changes if it is written anew."""
    found = {}
    for name in receipts(out):
        stat = (out / "facts" / f"{name}.parquet").stat()
        found[name] = (stat.st_ino, stat.st_mtime_ns)
    return found


def await_parts(process: subprocess.Popen[str], out: Path, count: int) -> None:
    """Wait until so many parts are finished, or the process is."""
    until = time.monotonic() + 60
    while process.poll() is None and len(receipts(out)) < count:
        assert time.monotonic() < until
        time.sleep(0.001)


def is_calm(place: Path, calm: Path) -> None:
    """The run is finished, and byte for byte the one that nothing disturbed."""
    out = place / "out"
    assert files(out) == files(calm / "out")
    assert words_of(out / "manifest.json") == words_of(calm / "out" / "manifest.json")
    assert no_partials(out)
    assert not list(out.glob("*.lock"))


# Killed


def has_begun(out: Path, process: subprocess.Popen[str]) -> bool:
    """Whether a process has taken the folder; the lock file of a killed one names that one."""
    try:
        return f'"pid": {process.pid},' in (out / "run.lock").read_text()
    except FileNotFoundError:
        return False


def state(out: Path, process: subprocess.Popen[str]) -> str:
    """Where a process was when it was killed, by what it left."""
    if (out / "manifest.json").exists():
        return "after the manifest"
    if not has_begun(out, process):
        return "starting"
    if len(receipts(out)) == PARTS:
        return "in tables and manifest"
    writing = list(out.glob("facts/*.tmp")) + list(out.glob("receipts/*.tmp"))
    return "writing a part" if writing else "computing parts"


def await_moment(
    process: subprocess.Popen[str], out: Path, before: int, dice: random.Random
) -> None:
    """Wait for a random moment of a run that found so many parts finished."""
    kind = dice.choice(["any", "part", "part", "writing", "writing", "end", "end", "end"])
    if kind == "any":
        time.sleep(dice.uniform(0.0, 2.0))
        return
    until = time.monotonic() + 30
    while process.poll() is None and not has_begun(out, process) and time.monotonic() < until:
        time.sleep(0.001)
    if kind == "end":
        await_parts(process, out, PARTS)
        time.sleep(dice.choice([0.0, dice.uniform(0.0, 0.05), dice.uniform(0.0, 1.0)]))
        return
    await_parts(process, out, min(PARTS, before + dice.randint(1, 6)))
    time.sleep(dice.uniform(0.0, 0.15))
    until = time.monotonic() + 1.0
    while kind == "writing" and time.monotonic() < until and not list(out.glob("facts/*.tmp")):
        pass


def kill_often(
    place: Path,
    calm: Path,
    start: Callable[..., subprocess.Popen[str]],
    kills: int,
    dice: random.Random,
) -> Counter[str]:
    """Kill runs at random moments until there were so many kills; what the processes were at."""
    out = place / "out"
    seen: Counter[str] = Counter()
    while seen.total() < kills:
        before = finished(out)
        process = start(*RUN, threads=dice.choice([1, 2]))
        await_moment(process, out, len(before), dice)
        process.send_signal(signal.SIGKILL)
        if process.wait(60) == -signal.SIGKILL:
            seen[state(out, process)] += 1
        now = finished(out)
        assert {name: now[name] for name in before} == before, "finished parts were written anew"
        # The end of a run is interrupted once or twice, then it is let go.
        if len(now) < PARTS or (dice.random() < 0.5 and seen.total() < kills):
            continue
        again = apart(*RUN, cwd=place)
        assert again.returncode == 0, again.stderr
        last = finished(out)
        assert {name: last[name] for name in now} == now
        is_calm(place, calm)
        shutil.rmtree(out)
    if out.exists():
        done(*RUN, cwd=place)
        is_calm(place, calm)
    return seen


def test_killed_at_a_few_moments_it_ends_with_the_same_bytes(
    place: Path, calm: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    seen = kill_often(place, calm, start, 6, random.Random(3))
    assert len(seen) > 1, seen


@pytest.mark.faults
def test_killed_at_50_moments_it_ends_with_the_same_bytes(
    place: Path, calm: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    seen = kill_often(place, calm, start, 50, random.Random(50))
    print(f"\nkilled {dict(seen)}")
    assert {"writing a part", "computing parts", "in tables and manifest"} <= set(seen), seen


def test_a_killed_shard_starts_again_beside_the_others(
    place: Path, calm: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    out = place / "out"
    shards = [start(*RUN, "--shard", f"{index}/3") for index in range(3)]
    await_parts(shards[1], out, 4)
    shards[1].kill()
    shards[1].wait(60)
    before = finished(out)
    second = start(*RUN, "--shard", "1/3")
    for process in (shards[0], shards[2], second):
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    after = finished(out)
    assert {name: after[name] for name in before} == before
    done("finish", *RUN[1:], cwd=place)
    is_calm(place, calm)


# Crowded out


def test_one_run_at_a_time_and_a_dead_one_is_no_obstacle(
    place: Path, calm: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    out = place / "out"
    first = start(*RUN)
    await_parts(first, out, 1)
    first.send_signal(signal.SIGSTOP)  # alive, and holding still while others knock
    try:
        before = finished(out)
        for more in ([], ["--fresh"], ["--shard", "0/2"]):
            said = refused(*RUN, *more, code=1, cwd=place)
            assert re.search(rf"out: process {first.pid} on .* is writing here; wait", said), said
        said = refused("finish", *RUN[1:], code=1, cwd=place)
        assert f"process {first.pid} on" in said
        assert finished(out) == before
    finally:
        first.kill()
        first.wait(60)
    assert (out / "run.lock").exists()
    done(*RUN, cwd=place)
    is_calm(place, calm)


def test_a_shard_at_work_keeps_the_same_shard_runs_and_finish_out(
    place: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    first = start(*RUN, "--shard", "1/2")
    await_parts(first, place / "out", 1)
    first.send_signal(signal.SIGSTOP)
    said = refused(*RUN, "--shard", "1/2", code=1, cwd=place)
    assert f"shard 1/2: process {first.pid} on" in said
    for command in (RUN, ["finish", *RUN[1:]]):
        said = refused(*command, code=1, cwd=place)
        assert "out: shards (1/2) are writing here; wait until that is done" in said
    done(*RUN, "--shard", "0/2", cwd=place)


# The disk


@pytest.fixture
def disk(place: Path) -> Iterator[Callable[[str], None]]:
    """Mounts a file system at `out`, and then changes its options, where the system lets us."""
    out = place / "out"
    out.mkdir()
    mounted = False

    def mount(options: str) -> None:
        nonlocal mounted
        again = ["-o", f"remount,{options}"] if mounted else ["-t", "tmpfs", "-o", options, "tmpfs"]
        try:
            found = subprocess.run(["mount", *again, str(out)], capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount")
        if found.returncode:
            pytest.skip("mounting a small file system needs root")
        mounted = True

    yield mount
    if mounted:
        subprocess.run(["umount", str(out)], check=True)


def kib_of(path: Path) -> int:
    """What a file, or the files of a folder, take on a disk of pages of 4 KiB [KiB]."""
    found = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(-(-each.stat().st_size // 4096) * 4 for each in found)


@pytest.mark.parametrize("when", ["among the parts", "after the last part"])
def test_a_full_disk_is_told_and_the_same_command_goes_on(
    place: Path, calm: Path, disk: Callable[[str], None], when: str
) -> None:
    parts = kib_of(calm / "out" / "facts") + kib_of(calm / "out" / "receipts")
    disk(f"size={parts // 2 if when == 'among the parts' else parts + 32}k")
    said = refused(*RUN, code=1, cwd=place)
    assert re.search(r"out/\S+: the disk is full; free some space there, then run the same", said)
    assert no_partials(place / "out")
    assert not (place / "out" / "manifest.json").exists()
    before = finished(place / "out")
    assert (0 < len(before) < PARTS) == (when == "among the parts")
    disk("size=64m")
    done(*RUN, cwd=place)
    after = finished(place / "out")
    assert {name: after[name] for name in before} == before
    is_calm(place, calm)


def test_a_disk_too_full_for_the_database_still_gives_the_ranking(
    place: Path, calm: Path, disk: Callable[[str], None]
) -> None:
    files_kib = kib_of(calm / "out") - kib_of(calm / "out" / "results.duckdb")
    disk(f"size={files_kib + 200}k")
    shown = done(*RUN[:-1], cwd=place)
    assert shown == done("top", calm / "out")
    assert not (place / "out" / "results.duckdb").exists()
    is_calm(place, calm)


def test_a_folder_that_can_only_be_read(
    place: Path, calm: Path, disk: Callable[[str], None]
) -> None:
    disk("size=64m")
    done(*RUN, "--shard", "0/2", cwd=place)
    disk("ro")
    for command in (RUN, [*RUN, "--shard", "1/2"], ["finish", *RUN[1:]]):
        said = refused(*command, code=1, cwd=place)
        assert "read-only file system; choose another folder, or make this one writable" in said
    # What is there can still be brought into another.
    done(*RUN[:3], "other", *RUN[4:], "--shard", "1/2", cwd=place)
    done("finish", "long.toml", "--out", "other", "--from", "out", cwd=place)
    assert files(place / "other") == files(calm / "out")
    disk("rw")


# What is in the folder


@pytest.mark.parametrize("how", ["missing", "short", "flipped"])
@pytest.mark.parametrize("kind", ["finished", "unfinished"])
def test_a_damaged_part_alone_is_computed_again(
    place: Path, calm: Path, how: str, kind: str
) -> None:
    out = place / "out"
    shutil.copytree(calm / "out", out)
    if kind == "unfinished":
        (out / "manifest.json").unlink()
    damage(out / "facts" / "part-00007.parquet", how)
    said = refused("finish", *RUN[1:], code=1, cwd=place)
    assert "out/facts/part-00007.parquet: " in said
    assert "of 24 parts 1 is damaged (7)" in said
    before = finished(out) if how != "missing" else {}
    done(*RUN, cwd=place)
    after = finished(out)
    for name, stamp in before.items():
        assert (after[name] == stamp) == (name != "part-00007"), name
    is_calm(place, calm)


@pytest.mark.parametrize("name", ["manifest.json", "identity.json"])
def test_a_folder_of_a_newer_sweep_is_left_alone(place: Path, calm: Path, name: str) -> None:
    out = place / "out"
    shutil.copytree(calm / "out", out)
    content = json.loads((out / name).read_text()) | {"format": 99, "engine_version": "9.1"}
    (out / name).write_text(json.dumps(content))
    commands = [RUN, [*RUN, "--shard", "0/2"], ["finish", *RUN[1:]]]
    if name == "manifest.json":
        commands.append(["top", "out"])
    for command in commands:
        said = refused(*command, code=1, cwd=place)
        assert "written in format 99 by sweep 9.1" in said
        assert "upgrade sweep" in said
    assert files(out) == files(calm / "out")


def test_a_folder_of_other_inputs_is_left_alone(place: Path, calm: Path) -> None:
    out = place / "out"
    shutil.copytree(calm / "out", out)
    (place / "long.toml").write_text(LONG_SPEC.replace("[512, ", "[256, "))
    for command in (RUN, [*RUN, "--shard", "0/2"], ["finish", *RUN[1:]]):
        said = refused(*command, code=1, cwd=place)
        assert "holds a finished run of another spec" in said
    assert files(out) == files(calm / "out")


# The clock


@pytest.mark.parametrize("year", [1980, 2100])
def test_a_clock_that_jumped_changes_nothing(place: Path, calm: Path, year: int) -> None:
    out = place / "out"
    shutil.copytree(calm / "out", out)
    (out / "manifest.json").unlink()
    damage(out / "facts" / "part-00003.parquet", "short")
    then = (year - 1970) * 365.25 * 86400
    for path in (place / "long.toml", *out.rglob("*")):
        os.utime(path, (then, then))
    before = finished(out)
    done(*RUN, cwd=place)
    after = finished(out)
    assert [name for name in after if after[name] != before[name]] == ["part-00003"]
    is_calm(place, calm)
    assert done("top", "out", cwd=place) == done("top", calm / "out")


# Signals and pipes (`run` itself: test_cli.py)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_shard_told_to_stop_names_the_command_that_goes_on(
    place: Path, start: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    process = start(*RUN, "--shard", "0/2")
    await_parts(process, place / "out", 1)
    process.send_signal(number)
    shown, said = process.communicate(timeout=60)
    assert (process.returncode, shown) == (130, "")
    assert "Traceback" not in said
    assert re.search(r"to go on: sweep run .*--shard 0/2", said)
    assert not list((place / "out").glob("shard-*.lock"))


@pytest.mark.parametrize("command", ["run", "finish", "top"])
def test_a_reader_of_the_ranking_may_leave_after_a_line(
    place: Path, calm: Path, command: str
) -> None:
    shutil.copytree(calm / "out", place / "out")
    words = ["top", "out"] if command == "top" else [command, "long.toml", "--out", "out", "--json"]
    process = subprocess.Popen(
        [*PROGRAM, *words], cwd=place, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 0
    assert "Traceback" not in said
    assert "Error" not in said
