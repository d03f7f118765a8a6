"""The command line as its user meets it: what it prints where, its exit codes, and no tracebacks."""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import io
import json
import math
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweep import cli, rerank
from sweep.cli import filters as cli_filters
from sweep.cli import speed
from sweep.plan import Plan
from sweep.progress import Progress
from sweep.ranking import Filters, rank
from sweep.report import words
from sweep.results import open_results
from sweep.spec import canonical, load_spec

ROOT = Path(__file__).parent.parent
SWEEPS = sorted((ROOT / "catalogs" / "sweeps").glob("*.toml"))
BAD_SPECS = Path(__file__).parent / "data" / "bad_specs"
PROGRAM = [sys.executable, "-c", "import sys; from sweep.cli import main; sys.exit(main())"]
COMMANDS = (
    "run", "finish", "plan", "top", "sql", "explain", "catalog", "catalog list", "catalog show",
    "catalog check", "schema", "warmup",
)  # fmt: skip
# Llama fits one GPU; DeepSeek-R1 has 671 G parameters and fits none of these machines; 100 GB in a
# day is too much for them.
SPEC = """
spec_version = 1
name = "made-up"
[axes]
models = ["Llama-3.1-8B", "DeepSeek-R1"]
methods = ["full", "lora"]
train_text_gb = [0.01, 100]
seq_lens = [2048]
[knobs]
checkpointing = ["none", "full"]
[hardware]
gpus = ["A100-SXM-40GB", "L4"]
node_counts = [1, 2]
catalogs = ["mine"]
[constraints]
deadline_hours = 24
[results]
top = 2
"""
ANSI = re.compile(r"\x1b\[")


def environment(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}
    return {**kept, "PYTHONPATH": str(ROOT), **changes}


Outcome = subprocess.CompletedProcess[str]


def apart(*arguments: object, cwd: Path | None = None, given: str = "", **env: str) -> Outcome:
    """Run the command in a process of its own."""
    found = subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        capture_output=True, text=True, input=given, cwd=cwd, env=environment(**env),
        timeout=120, check=False,
    )  # fmt: skip
    assert "Traceback" not in found.stderr, found.stderr
    return found


def sweep(*arguments: object, cwd: Path | None = None, given: str = "", **env: str) -> Outcome:
    """The same in this process, which spares half a second of imports. No exception may come out."""
    shown, said = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(shown),
        contextlib.redirect_stderr(said),
    ):
        patch.setattr(sys, "stdin", io.StringIO(given))
        for name in ("NO_COLOR", "COLUMNS", "FORCE_COLOR"):
            patch.delenv(name, raising=False)
        for name, value in env.items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        code = cli.main(list(map(str, arguments)))
    assert "Traceback" not in said.getvalue()
    return Outcome(list(map(str, arguments)), code, shown.getvalue(), said.getvalue())


def done(*arguments: object, **more: Any) -> str:
    """The stdout of a command that must succeed."""
    found = sweep(*arguments, **more)
    assert found.returncode == 0, found.stderr
    return found.stdout


def refused(*arguments: object, code: int = 2, how: Any = sweep, **more: Any) -> str:
    """The stderr of a command that must fail so, with nothing on stdout."""
    found = how(*arguments, **more)
    assert (found.returncode, found.stdout) == (code, ""), found
    return found.stderr


def refused_apart(*arguments: object, **more: Any) -> str:
    """The same in a process of its own."""
    return refused(*arguments, how=apart, **more)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a spec, a catalog folder of one's own, and the finished run of the spec."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "mine").mkdir()
    shutil.copy(ROOT / "catalogs" / "exchange_rates.csv", folder / "mine")
    (folder / "made-up.toml").write_text(SPEC)
    found = apart("run", "made-up.toml", "--out", "out", "--threads", 2, cwd=folder)
    assert found.returncode == 0, found.stderr
    (folder / "stdout").write_text(found.stdout)
    (folder / "stderr").write_text(found.stderr)
    return folder


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """The same, for a test to change."""
    shutil.copytree(home, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture(scope="session")
def rows(home: Path) -> list[dict[str, Any]]:
    """The two best of each question, as the database has them."""
    with open_results(home / "out") as results:
        return results.rows("SELECT * FROM cheapest WHERE rank <= 2 ORDER BY question, rank")


# Help and start-up


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    text = done(*command.split(), "--help")
    assert "Example: sweep " in text
    assert text.startswith(f"Usage: sweep {command} ")
    if command != "catalog":
        assert "--json" in text


def test_help_lists_every_command_and_starts_fast() -> None:
    times = []
    for _ in range(5):
        started = time.monotonic()
        text = apart("--help").stdout
        times.append(time.monotonic() - started)
    assert all(re.search(rf"^  {name} +\S", text, re.MULTILINE) for name in cli.COMMANDS)
    assert min(times) < 0.15, times


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["plan", str(SWEEPS[0])], ["catalog", "list", "gpus"]],
)
def test_nothing_heavy_is_imported_for_little(arguments: list[str]) -> None:
    code = (
        "import sys; from sweep.cli import main; main(sys.argv[1:]); "
        "print([m for m in ('numba', 'polars', 'pyarrow', 'duckdb') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, env=environment(), check=True,
    )  # fmt: skip
    assert found.stdout.splitlines()[-1] == "[]"


def test_version_names_the_program() -> None:
    assert re.fullmatch(r"sweep \d+\.\d+\.\d+\S*\n", done("--version"))


# run and plan


def test_run_says_what_was_decided_on_stderr_and_the_ranking_on_stdout(
    home: Path, rows: list[dict[str, Any]]
) -> None:
    said, shown = (home / "stderr").read_text(), (home / "stdout").read_text()
    manifest = json.loads((home / "out" / "manifest.json").read_text())
    assert f"made-up: {manifest['scenarios']:,} scenarios, 4 workloads on " in said
    assert f"{manifest['scenarios']:,} scenarios decided in " in said
    assert f"{manifest['rows']:,} rows (" in said
    assert "/s)" in said
    best = next(row for row in rows if row["rank"] == 1)
    assert words.rented(best) in shown
    assert words.money(best["usd"]) in shown


def test_a_finished_run_is_not_decided_again(copy: Path) -> None:
    before = (copy / "out" / "facts" / "part-00000.parquet").stat().st_mtime_ns
    found = sweep("run", "made-up.toml", "--out", "out", "--no-ranking", cwd=copy)
    assert (found.returncode, found.stdout) == (0, "")
    assert "scenarios were decided before; " in found.stderr
    assert (copy / "out" / "facts" / "part-00000.parquet").stat().st_mtime_ns == before


def test_run_quietly_prints_nothing_and_fresh_starts_over(copy: Path) -> None:
    found = sweep("run", "made-up.toml", "--out", "out", "--fresh", "--quiet", cwd=copy)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
    assert sweep("top", copy / "out").stderr == ""  # the prices are still known to be today's


def test_run_as_json_is_one_object(copy: Path) -> None:
    found = sweep("run", "made-up.toml", "--out", "o", "--keep", "feasible", "--json", cwd=copy)
    content = json.loads(found.stdout)
    manifest = json.loads((copy / "o" / "manifest.json").read_text())
    assert content["rows"] == manifest["rows"]
    assert content["scenarios"] == content["scenarios_decided_now"] == manifest["scenarios"]
    assert content["run"]["keep"] == "feasible"
    assert len(content["questions"]) == content["asked"] == 8


def test_plan_tells_sizes_without_running(home: Path) -> None:
    sizes = json.loads(done("plan", "made-up.toml", "--threads", 2, "--json", cwd=home))
    manifest = json.loads((home / "out" / "manifest.json").read_text())
    assert sizes["scenarios"] == manifest["scenarios"]
    assert sizes["rows"] == manifest["rows"]
    assert sizes["questions"] == 8
    assert sizes["seconds"] > 0
    text = done("plan", "made-up.toml", cwd=home)
    assert "2 models x 2 methods x 2 sizes of data" in text
    assert f"{manifest['scenarios']:,}  to decide" in text


def test_the_speed_of_the_last_run_is_what_plan_expects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert speed.known_speed("best") == speed.Speed(
        speed.SHIPPED_RATE_PER_S["best"], measured=False
    )
    speed.remember_speed("best", 9_000_000, 1.0, 1)  # too few to say anything
    assert not speed.known_speed("best").measured
    speed.remember_speed("best", 20_000_000, 5.0, 2)
    assert speed.known_speed("best") == speed.Speed(2e6, measured=True)
    assert not speed.known_speed("all").measured
    (tmp_path / "sweep" / "speed.json").write_text("[1")
    assert not speed.known_speed("best").measured


# top


def test_top_names_everything_of_the_winner_and_the_next(
    home: Path, rows: list[dict[str, Any]]
) -> None:
    row, other = (row for row in rows if row["question"] == rows[0]["question"])
    text = done("top", home / "out", "--model", row["model"], "--method", row["method"])
    band = f"{row['allocated_low_gib']:.1f} to {row['allocated_high_gib']:.1f}"
    for expected in (
        row["model"], row["provider"], row["instance_type"], row["region"],
        f"{row['gpu_count']} x {row['gpu']}, {words.count_of(row['node_count'], 'node')}",
        f"{words.money(row['usd'])}   {words.hours(row['hours'])} h",
        f"{words.money(row['usd_per_hour'])} a node-hour", f"seen {row['as_of']}",
        f"{row['allocated_gib']:.1f} GiB a GPU allocated at peak ({band})",
        f"{row['peak_gib']:.1f} needed, {row['usable_gib']:.1f} usable, ",
        f" usable, {row['headroom_gib']:.1f} free",
        f"{row['stack']}, {row['precision']}, {row['optimizer']}, zero {row['zero_stage']}, ",
        f"dp {row['dp']}",
        f"micro-batch {row['micro_batch']}, checkpointing {row['checkpointing']}",
        f"band    {words.money_band(row)}, {words.hours_band(row)}",
        f"{row['cpu_cores_needed']:g} CPU cores", f"{row['host_ram_needed_gib']:,.0f} GiB RAM",
        f"{row['disk_needed_gb']:,.0f} GB disk",
        words.rented(other), words.percent_more(other["usd"], row["usd"]),
    ):  # fmt: skip
        assert expected in text


def test_top_where_nothing_works_names_limit_miss_and_remedy(home: Path) -> None:
    with open_results(home / "out") as results:
        nearest = results.rows("SELECT * FROM nearest ORDER BY question, place")
    memory = next(
        row for row in nearest if (row["limit_name"], row["model"]) == ("gpu_memory", "DeepSeek-R1")
    )
    text = done("top", home / "out", "--model", memory["model"], "--method", memory["method"])
    assert (
        f"nothing works: GPU memory short by {memory['short']:.1f} GiB: {memory['need']:.1f} GiB "
        f"each, {memory['have']:.1f} allowed"
    ) in text
    assert f"closest: {words.machine(memory)}" in text
    late = next(row for row in nearest if row["closest_by"] == "usd")
    text = done("top", home / "out", "--question", late["question"])
    assert f"past the deadline by {words.hours_in_words(late['hours'] - 24)} (24 h allowed)" in text
    assert f"cheapest: {words.hours_in_words(late['hours'])}, {words.money(late['usd'])}" in text
    # Twice the GPUs take at least half the time: no fewer than this are in time.
    gpus = re.search(r"in time with about ([\d,]+) of them", text.replace("\n", " "))
    assert gpus
    assert int(gpus[1].replace(",", "")) >= late["gpu_count"] * late["hours"] / 24


@pytest.mark.parametrize("columns", [80, 120, 160])
@pytest.mark.parametrize("form", ["--list", "--full"])
def test_no_line_is_wider_than_asked(home: Path, columns: int, form: str) -> None:
    text = done("top", home / "out", form, COLUMNS=str(columns))
    assert max(map(len, text.splitlines())) <= columns
    assert not ANSI.search(text)


def test_a_list_gives_each_question_an_answer(home: Path, rows: list[dict[str, Any]]) -> None:
    lines = done("top", home / "out", "--list").splitlines()
    for row in (row for row in rows if row["rank"] == 1):
        start = lines.index(f"{row['model']}  {row['method']}")
        label = words.data_size(row["train_text_gb"])
        at = next(i for i in range(start, len(lines)) if lines[i].startswith(f" {label} "))
        for expected in (words.machine(row), words.rented(row), words.hours(row["hours"]),
                         words.money(row["usd"])):  # fmt: skip
            assert expected in lines[at]
        band = f"{words.hours_band(row)}{' late?' if row['may_be_late'] else ''}, "
        assert f" {band}{words.money_band(row)}" in lines[at + 1]
        assert words.needs(row) in lines[at + 2]
        assert f"price of {row['as_of']}" in lines[at + 2]


def write_bands(folder: Path, low: float, high: float) -> None:
    """Bands of one's own that hold for every stack, method and GPU."""
    header = "stack,method,gpu,low,high,points,sources,basis,source,checked"
    owners = [("hf", method) for method in ("full", "lora", "qlora", "*")] + [("*", "*")]
    rows = [
        f"{stack},{method},*,{low},{high},7,2,mine,sweep-assumed,2026-11-21"
        for stack, method in owners
    ]
    rows += [f"{stack},*,unmeasured,1,1,7,2,mine,sweep-assumed,2026-11-21" for stack in ("hf", "*")]
    (folder / "time_bands.csv").write_text("\n".join([header, *rows]) + "\n")


def test_bands_of_ones_own_say_what_is_no_winner_and_what_may_be_late(copy: Path) -> None:
    out = copy / "out"
    for low, high in ((1.0, 1.0), (0.2, 20.0)):
        write_bands(copy / "mine", low, high)
        said = apart("run", "made-up.toml", "--out", "out", "--no-ranking", cwd=copy).stderr
        assert "were decided before" in said
        found = json.loads(done("top", out, "--json", "--limit", 2))["questions"]
        ranked = [one["ranking"] for one in found if len(one["ranking"]) == 2]
        assert ranked
        first, second = ranked[0]
        unlike = (first["gpu"], first["stack"]) != (second["gpu"], second["stack"])
        question = ("--question", first["question"])
        text = " ".join(done("top", out, *question, "--limit", 2).split())
        listed = " ".join(done("top", out, "--list", *question).split())
        why = json.loads(done("explain", out, *question, "--json"))
        if high == 1.0:
            assert not first["tie"]
            assert not second["tie"]
            assert first["hours_low"] == first["hours"] == first["hours_high"]
            assert "not a winner" not in text
            assert "may miss the deadline" not in text
            assert f"next {words.percent_more(second['usd'], first['usd'])}: " in listed
            assert why["remarks"] == []
        else:
            assert unlike
            assert first["tie"]
            assert second["tie"]
            assert "places 1-2 lie within the band of the prediction: not a winner" in text
            assert f"{words.percent_more(second['usd'], first['usd'])}, tie" in text
            assert f"tie {words.percent_more(second['usd'], first['usd'])}: " in listed
            late = first["hours_high"] > 24
            assert first["may_be_late"] == late
            assert ("may miss the deadline" in text) == (late or second["may_be_late"])
            assert bool(why["remarks"]) == late
        sources = [term["source"] for term in why["terms"] if term["name"] == "whole job, high"]
        assert sources == [f"time_bands.csv: hf {first['method']}, 7 points of 2 sources"]


def test_a_bill_in_coarser_steps_ranks_anew_without_a_sweep(copy: Path) -> None:
    out = copy / "out"
    before = best_offer(out)
    header = "provider,instance_type,granularity_s,minimum_s,source,locator,checked,notes,assumed"
    row = f"{before['provider']},*,3600,3600,sweep-assumed,,2026-11-21,,granularity_s"
    (copy / "mine" / "billing.csv").write_text(f"{header}\n{row}\n")
    found = sweep("top", out, "--provider", before["provider"], "--json")
    assert "prices have changed since this run was last ranked" in found.stderr
    for question in json.loads(found.stdout)["questions"]:
        for one in question["ranking"]:
            assert one["billed_hours"] == max(1.0, math.ceil(one["hours"] - 1e-6))
            usd = one["billed_hours"] * one["node_count"] * one["usd_per_hour"]
            assert one["usd"] == pytest.approx(usd, rel=1e-12)
    assert best_offer(out)["usd"] >= before["usd"]


def test_top_as_json_is_what_the_database_has(home: Path, rows: list[dict[str, Any]]) -> None:
    found = json.loads(done("top", home / "out", "--json"))
    assert found["asked"] == len(found["questions"]) == 8
    assert found["answered"] == sum(bool(one["ranking"]) for one in found["questions"])
    ranked = [row for one in found["questions"] for row in one["ranking"]]
    assert [(r["question"], r["rank"], r["offer"], r["usd"]) for r in ranked] == [
        (r["question"], r["rank"], r["offer"], r["usd"]) for r in rows
    ]
    assert ranked[0]["as_of"] == rows[0]["as_of"].isoformat()
    assert all(bool(one["ranking"]) != bool(one["nearest"]) for one in found["questions"])


def test_the_spec_says_how_many_setups_are_shown_unless_the_limit_does(home: Path) -> None:
    for more, count in (([], 2), (["--limit", 1], 1), (["--limit", 5], 5)):
        found = json.loads(done("top", home / "out", "--question", 0, "--json", *more))
        assert len(found["questions"][0]["ranking"]) == count


def test_wide_has_a_column_for_every_figure(home: Path, rows: list[dict[str, Any]]) -> None:
    lines = done("top", home / "out", "--wide", "--model", "llama", COLUMNS="80").splitlines()
    assert {"usd", "peak_gib", "micro_batch", "as_of", "setup", "knob"} <= set(lines[0].split())
    assert len(lines) > 1 + sum(row["model"] == "Llama-3.1-8B" for row in rows) - 1
    assert str(rows[0]["as_of"]) in lines[1]


def test_all_offers_ranks_each_offer_once(home: Path, rows: list[dict[str, Any]]) -> None:
    question = rows[0]["question"]
    found = json.loads(
        done("top", home / "out", "--all-offers", "--question", question, "--limit", 9, "--json")
    )
    ranked = found["questions"][0]["ranking"]
    assert [row["rank"] for row in ranked] == list(range(1, 10))
    assert len({row["offer"] for row in ranked}) == 9
    assert [row["usd"] for row in ranked] == sorted(row["usd"] for row in ranked)
    assert ranked[0]["usd"] == rows[0]["usd"]


def test_a_filter_restarts_the_ranking(home: Path, rows: list[dict[str, Any]]) -> None:
    best = rows[0]
    (other,) = {"L4", "A100-SXM-40GB"} - {best["gpu"]}
    found = json.loads(
        done("top", home / "out", "--question", best["question"], "--gpu", other.lower(), "--json")
    )
    (answer,) = found["questions"]
    assert {row["gpu"] for row in answer["ranking"]} == {other}
    assert [row["rank"] for row in answer["ranking"]] == [1, 2]
    assert answer["ranking"][0]["usd"] > best["usd"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model", "Llama-3.1-8Bx"], "did you mean 'Llama-3.1-8B'?"),
        (["--model", "Mixtral*"], "which is not in this run"),
        (["--method", "loar"], "did you mean 'lora'?"),
        (["--gpu", "L44"], "did you mean 'L4'?"),
        (["--provider", "nobody"], "which is not in this run"),
        (["--text-gb", "3"], "this run has 0.01, 100"),
        (["--tokens", "-5"], "this run has"),
        (["--question", "8"], "this run has the questions 0 to 7"),
        (["--limit", "0"], "0 is not in the range"),
        (["--nonsense"], "No such option"),
    ],
)
def test_a_filter_that_matches_nothing_is_refused(home: Path, given: list[str], said: str) -> None:
    assert said in refused("top", home / "out", *given)


def test_names_are_found_by_part_glob_and_hub_id(home: Path) -> None:
    given = {option.name: () for option in ()}
    given |= dict.fromkeys(("models", "methods", "seq_lens", "text_gb", "tokens", "questions"), ())
    given |= dict.fromkeys(("gpu", "provider", "region", "price_model", "instance"))
    with open_results(home / "out") as results:

        def read(**changes: Any) -> Filters:
            return cli_filters.read_filters(results, {**given, **changes})

        for name in ("llama-3.1-8b", "llama", "*8B", "meta-llama/Llama-3.1-8B"):
            assert read(models=(name,)).models == ("Llama-3.1-8B",)
        assert read(models=("DeepSeek-R1",)).models == ("DeepSeek-R1",)
        assert read(gpu="a100").gpu == "*a100*"
        assert read(gpu="l4").gpu == "l4"
        assert rank(results, read(provider="A*")).answers[0].ranked


def test_nothing_feasible_exits_with_3_only_if_asked(home: Path) -> None:
    r1 = ("top", home / "out", "--model", "DeepSeek-R1")
    assert sweep(*r1).returncode == 0
    found = sweep(*r1, "--fail-infeasible")
    assert found.returncode == 3
    assert "nothing works" in found.stdout
    assert sweep("top", home / "out", "--fail-infeasible").returncode == 0


# Colours, terminals and pipes


def on_a_terminal(*arguments: object, **env: str) -> str:
    """What a command writes to a terminal of 80 columns, both streams."""
    main, side = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        stdin=side, stdout=side, stderr=side,
        env=environment(TERM="xterm-256color", **env),
    )  # fmt: skip
    os.close(side)
    found = b""
    while True:
        ready, _, _ = select.select([main], [], [], 60)
        try:
            piece = os.read(main, 65536) if ready else b""
        except OSError:  # Linux: the other side is closed
            break
        if not piece:
            break
        found += piece
    os.close(main)
    assert process.wait(60) == 0
    return found.decode().replace("\r\n", "\n")


def test_colours_on_a_terminal_only_and_never_with_no_color(home: Path) -> None:
    coloured = on_a_terminal("top", home / "out", "--list")
    assert ANSI.search(coloured)
    plain = on_a_terminal("top", home / "out", "--list", NO_COLOR="1")
    assert not ANSI.search(plain)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    assert max(map(len, plain.splitlines())) <= 80
    assert plain == done("top", home / "out", "--list", COLUMNS="80")


def test_a_closed_pipe_ends_silently(home: Path) -> None:
    for arguments in (["sql", "SELECT * FROM range(1000000)", "--csv"], ["top", "--wide"],
                      ["sql", "SELECT * FROM range(1000000)", "--json"]):  # fmt: skip
        command, *rest = arguments
        process = subprocess.Popen(
            [*PROGRAM, command, str(home / "out"), *rest],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
        )  # fmt: skip
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait(60) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_a_failure(home: Path) -> None:
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(
            [*PROGRAM, "catalog", "list", "offers", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False,
        )  # fmt: skip
    assert found.returncode == 1
    assert found.stderr == "Error: the output cannot be written: no space left on device\n"


def test_progress_without_a_terminal_is_now_and_then_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr("sweep.progress.time.monotonic", lambda: clock.now)
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress(1_000_000, 5_000_000)
        for second in range(1, 41):
            clock.now = float(second)
            progress(1_000_000 + second * 100_000, 5_000_000)
    lines = stream.getvalue().splitlines()
    assert lines[0] == " 40%  2,000,000 of 5,000,000 scenarios, 100 k/s, 30.0 s left"
    assert lines[-1] == "100%  5,000,000 of 5,000,000 scenarios, 100 k/s"
    assert len(lines) == 4
    assert (progress.seconds, progress.rate_per_s) == (40.0, 100_000.0)


# Signals


# Some seconds of work in many parts.
LONG_SPEC = """
spec_version = 1
[axes]
models = ["Qwen2.5-*B", "Llama-3*"]
methods = ["full", "lora", "qlora"]
train_tokens = [1e9]
seq_lens = [512, 1024, 1536, 2048, 3072, 4096, 6144, 8192]
[knobs]
micro_batches = [1, 2, 4, 8, 16, 32]
checkpointing = ["none", "selective", "full"]
optimizers = ["adamw-fused", "adamw-8bit", "sgd", "lion"]
zero_stages = [0, 1, 2, 3]
tp = [1, 2, 4, 8]
pp = [1, 2, 4, 8]
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that has finished its first part and has many to go."""
    (tmp_path / "long.toml").write_text(LONG_SPEC)
    process = subprocess.Popen(
        [*PROGRAM, "run", "long.toml", "--out", "out", "--threads", "1"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    until = time.monotonic() + 60
    while not list((tmp_path / "out").glob("facts/*.parquet")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_leaves_a_run_that_goes_on(
    running: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    running.send_signal(number)
    shown, said = running.communicate(timeout=60)
    assert (running.returncode, shown) == (130, ""), said
    assert "finishing the parts at hand" in said
    assert "to go on: sweep " in said
    assert "Traceback" not in said
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "facts").iterdir()}
    assert kept
    assert not (tmp_path / "out" / "manifest.json").exists()
    said = refused("top", tmp_path / "out", code=1)
    assert "the run is not finished" in said
    if number == signal.SIGINT:
        done("run", "long.toml", "--out", "out", "--quiet", cwd=tmp_path)
        facts = tmp_path / "out" / "facts"
        assert all((facts / name).stat().st_mtime_ns == then for name, then in kept.items())
        assert (tmp_path / "out" / "manifest.json").exists()


def test_the_second_signal_ends_it_at_once(running: subprocess.Popen[str], tmp_path: Path) -> None:
    running.send_signal(signal.SIGINT)
    time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, said = running.communicate(timeout=60)
    assert time.monotonic() - started < 1.0
    assert running.returncode == 130
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "manifest.json").exists()


# sql


def test_sql_as_table_csv_and_json_say_the_same(home: Path) -> None:
    query = "SELECT question, model, usd, as_of, cpu_ok FROM cheapest WHERE rank = 1 ORDER BY 1"
    as_json = json.loads(done("sql", home / "out", query, "--json"))
    as_csv = list(csv.DictReader(io.StringIO(done("sql", home / "out", query, "--csv"))))
    table = done("sql", home / "out", query).splitlines()
    assert [row["usd"] for row in as_json] == [float(row["usd"]) for row in as_csv]
    assert [row["as_of"] for row in as_json] == [row["as_of"] for row in as_csv]
    assert table[0].split() == list(as_json[0])
    assert len(table) - 1 == len(as_json) == len(as_csv)
    for line, row in zip(table[1:], as_json, strict=True):
        assert line.split()[1] == row["model"]
        assert f"{row['usd']:.6g}" in line


def test_sql_from_a_file_from_stdin_and_by_name(home: Path, tmp_path: Path) -> None:
    (tmp_path / "q.sql").write_text("SELECT 42 AS answer")
    out = home / "out"
    assert done("sql", out, "--file", tmp_path / "q.sql", "--csv") == "answer\n42\n"
    assert done("sql", out, "--file", "-", "--csv", given="SELECT 7 AS n") == "n\n7\n"
    named = json.loads(
        done(
            "sql", out, "--name", "cheapest", "--set", "model=llama*", "--set", "places=1", "--json"
        )
    )
    assert {row["model"] for row in named} == {"Llama-3.1-8B"}
    assert {row["rank"] for row in named} == {1}


def test_every_named_query_is_listed_and_runs(home: Path) -> None:
    listed = json.loads(done("sql", "--list", "--json"))
    assert len(listed) >= 5
    text = done("sql", "--list")
    for query in listed:
        assert query["name"] in text
        found = sweep("sql", home / "out", "--name", query["name"], "--json")
        assert found.returncode == 0, found.stderr
        json.loads(found.stdout)


def test_values_json_cannot_hold_are_null(home: Path) -> None:
    query = "SELECT 'nan'::DOUBLE AS a, 'infinity'::DOUBLE AS b, NULL AS c, [1, 2] AS d"
    (row,) = json.loads(done("sql", home / "out", query, "--json"))
    assert row == {"a": None, "b": None, "c": None, "d": [1, 2]}
    assert json.loads(done("sql", home / "out", "SELECT 1 WHERE false", "--json")) == []


def test_a_long_table_says_that_it_is_cut(home: Path) -> None:
    found = sweep("sql", home / "out", "SELECT * FROM range(201)")
    assert len(found.stdout.splitlines()) == 201
    assert found.stderr == "the first 200 rows; --csv and --json write all\n"
    assert sweep("sql", home / "out", "SELECT * FROM range(200)").stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["SELEC 1"], 2, "syntax error"),
        (["SELECT nope FROM cheapest"], 2, '"nope" not found'),
        (["SELECT * FROM cheapes"], 2, "cheapest"),
        (["DELETE FROM offers"], 1, "read-only"),
        (["--name", "cheapst"], 2, "did you mean 'cheapest'?"),
        (["--name", "cheapest", "--set", "modle=x"], 2, "did you mean 'model'?"),
        (["--name", "cheapest", "--set", "model"], 2, "allowed NAME=VALUE"),
        (["--file", "/nowhere.sql"], 2, "no such file"),
        ([], 2, "give one of QUERY, --file and --name"),
        (["SELECT 1", "--name", "cheapest"], 2, "give one of QUERY, --file and --name"),
        (["SELECT 1", "--json", "--csv"], 2, "give one of --csv and --json"),
    ],
)
def test_sql_refuses(home: Path, arguments: list[str], code: int, said: str) -> None:
    assert said in refused("sql", home / "out", *arguments, code=code)


# explain


def test_explain_adds_up_to_what_top_says(home: Path, rows: list[dict[str, Any]]) -> None:
    best = rows[0]
    found = json.loads(done("explain", home / "out", "--question", best["question"], "--json"))
    assert found["scenario"]["offer"] == best["offer"]
    value = {(t["section"], t["name"]): t["value"] for t in found["terms"]}
    assert value["device", "device"] == pytest.approx(best["peak_gib"] * 2**30, rel=1e-5)
    assert value["job", "whole job"] == pytest.approx(best["hours"], rel=1e-5)
    assert value["job", "cost"] == pytest.approx(best["usd"], rel=1e-5)
    text = done("explain", home / "out", "--question", best["question"], COLUMNS="80")
    assert max(map(len, text.splitlines())) <= 80
    for term in found["terms"]:
        assert re.search(rf"^  {re.escape(term['name'])} +\S", text, re.MULTILINE)
        assert " ".join(term["formula"].split()[:3]) in " ".join(text.split())
    short = done("explain", home / "out", "--question", best["question"], "--short")
    assert "[" not in short
    assert len(short.splitlines()) == len(
        [line for line in text.splitlines() if line[:6].strip() or not line]
    )


def test_explain_a_setup_that_does_not_fit(home: Path) -> None:
    with open_results(home / "out") as results:
        (row,) = results.rows(
            "SELECT * FROM rejected WHERE limit_name = 'gpu_memory' AND model = 'DeepSeek-R1' "
            "ORDER BY short LIMIT 1"
        )
    arguments = ("explain", home / "out", "--question", row["question"], "--setup", row["setup"])
    found = json.loads(done(*arguments, "--knob", row["knob"], "--json"))
    value = {(t["section"], t["name"]): t["value"] for t in found["terms"]}
    assert value["device", "free below the limit"] < 0
    assert value["device", "device"] == pytest.approx(row["need"] * 2**30, rel=1e-5)


def test_explain_refuses_what_there_is_not(home: Path) -> None:
    assert "--knob goes with --setup" in refused("explain", home / "out", "--knob", 3)
    said = refused("explain", home / "out", "--model", "DeepSeek-R1", "--method", "full", code=1)
    assert "no scenario matches" in said
    refused("explain", home / "out", "--setup", 10**6, code=1)


# catalog, schema, warmup


@pytest.mark.parametrize(
    ("kind", "least"),
    [("models", 150), ("gpus", 45), ("instances", 100), ("offers", 2000), ("rates", 3), ("billing", 20),
     ("stacks", 2), ("sources", 30)],
)  # fmt: skip
def test_catalogs_are_listed(kind: str, least: int) -> None:
    found = sweep("catalog", "list", kind)
    entries = json.loads(done("catalog", "list", kind, "--json"))
    assert len(entries) >= least
    assert len(found.stdout.splitlines()) - 1 == min(len(entries), 500)
    assert bool(found.stderr) == (len(entries) > 500)


def test_a_list_is_narrowed_by_words() -> None:
    entries = json.loads(done("catalog", "list", "offers", "aws", "h100", "on_demand", "--json"))
    assert entries
    assert {(e["provider"].startswith("aws"), e["price_model"]) for e in entries} == {
        (True, "on_demand")
    }
    found = sweep("catalog", "list", "gpus", "abacus")
    assert (found.returncode, found.stdout) == (0, "")
    assert "no entry of gpus holds 'abacus'" in found.stderr


def test_entries_are_shown_by_name_alias_and_case() -> None:
    (gpu,) = json.loads(done("catalog", "show", "gpus", "h100-sxm5", "--json"))
    assert gpu["key"] == "H100-SXM-80GB"
    (model,) = json.loads(done("catalog", "show", "models", "deepseek-ai/DeepSeek-R1", "--json"))
    assert model["total_parameters"] == 671_026_404_352
    assert "usable_gib" in done("catalog", "show", "gpus", "L4")
    assert "hf" in done("catalog", "show", "stacks", "hf")
    assert "did you mean" in refused("catalog", "show", "gpus", "H1000")
    assert "which of the" in refused("catalog", "show", "models")
    assert "is not one of" in refused("catalog", "list", "gpuz")


def test_check_passes_the_shipped_catalogs_and_finds_planted_faults(copy: Path) -> None:
    found = sweep("catalog", "check")
    assert (found.returncode, found.stdout) == (0, ""), found.stdout
    rates = (ROOT / "catalogs" / "exchange_rates.csv").read_text().splitlines()
    (copy / "mine" / "exchange_rates.csv").write_text(
        "\n".join([rates[0], "EUR,-1,2026-01-01,nowhere,,,2026-01-01,"])
    )
    found = sweep("catalog", "check", copy / "mine")
    assert found.returncode == 2
    assert "exchange_rates.csv:2, usd_per_unit: value: found '-1'" in found.stdout
    assert "'nowhere', allowed a key of sources.csv" in found.stdout
    again = sweep("catalog", "check", copy / "mine", "--json")
    assert again.returncode == 2
    assert len(json.loads(again.stdout)) == len(found.stdout.splitlines())
    assert "problems" in found.stderr
    assert sweep("catalog", "check", copy / "nothing-here").returncode == 2
    # The same file stops a plan, with the same words.
    said = refused("plan", "made-up.toml", cwd=copy)
    assert "exchange_rates.csv:2, usd_per_unit: value: found '-1'" in said


def test_warmup_leaves_nothing_to_compile() -> None:
    found = json.loads(done("warmup", "--json"))
    folder = Path(found["cache_folder"])
    assert list(folder.rglob("*.nbi"))
    again = json.loads(done("warmup", "--json"))
    assert again["seconds"] < 3.0
    found = sweep("warmup")
    assert found.stdout == ""
    assert str(folder) in found.stderr


def test_schema_is_the_shipped_one() -> None:
    shipped = json.loads((ROOT / "catalogs" / "sweeps" / "sweep.schema.json").read_text())
    assert json.loads(done("schema")) == shipped


# Bad input


def changed(old: str, new: str) -> str:
    assert old in SPEC
    return SPEC.replace('catalogs = ["mine"]\n', "").replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"Llama-3.1-8B"', '"Llama-3.1-8C"', "did you mean 'Llama-3.1-8B'?"),
        ('"A100-SXM-40GB"', '"A100-SXM-41GB"', "did you mean 'A100-SXM-40GB'?"),
        ('"lora"', '"lorra"', "lora"),
        ("seq_lens", "seq_lenz", "did you mean seq_lens?"),
        ("deadline_hours = 24", "deadline_hours = -1", "deadline_hours"),
        ("deadline_hours = 24", "deadline_hours = nan", "deadline_hours"),
        ("seq_lens = [2048]", "seq_lens = [2e18]", "seq_lens"),
        ('checkpointing = ["none", "full"]', 'stacks = ["megatron"]\nprecisions = ["fp16-mixed"]',
         "no stack of megatron supports"),
        ('checkpointing = ["none", "full"]', "tp = [3]", "no scenario is left"),
        ('gpus = ["A100-SXM-40GB", "L4"]', 'providers = ["nobody"]', "which no offer matches"),
        ("node_counts = [1, 2]", "max_gpus = 1\nproviders = [\"coreweave\"]", "left"),
        ('"Llama-3.1-8B"', '"./no-such-model/config.json"', "no-such-model"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_spec_that_cannot_be_is_refused(
    tmp_path: Path, command: str, old: str, new: str, said: str
) -> None:
    (tmp_path / "bad.toml").write_text(changed(old, new))
    more = ["--out", "out"] if command == "run" else []
    text = refused(command, "bad.toml", *more, cwd=tmp_path)
    assert "bad.toml" in text
    assert said in text
    assert not (tmp_path / "out").exists()


def test_five_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = refused_apart("run", BAD_SPECS / "five_mistakes.toml", "--out", tmp_path / "out")
    lines = text.splitlines()
    assert len(lines) == 5
    assert all(re.match(r"\S+five_mistakes\.toml:\d+:\d+: ", line) for line in lines)


@pytest.mark.parametrize("command", ["plan", "run", "finish", "top", "sql", "explain"])
def test_a_file_or_folder_that_is_not_there(tmp_path: Path, command: str) -> None:
    out = ["--out", "out"]
    more = {"run": out, "finish": out, "sql": ["SELECT 1"]}.get(command, [])
    code = 2 if command in ("plan", "run", "finish") else 1
    text = refused(command, "nowhere", *more, code=code, cwd=tmp_path)
    assert "nowhere" in text
    assert "no such" in text


@pytest.mark.parametrize(
    "arguments", [["tup"], ["run"], ["run", "a.toml"], ["plan", "a", "b"], ["top", "--threads"]]
)
def test_bad_usage_is_2_with_the_way_to_help(arguments: list[str]) -> None:
    text = refused_apart(*arguments)
    assert "--help" in text
    if arguments == ["tup"]:
        assert "did you mean 'top'?" in text


def test_an_out_folder_that_is_a_file(copy: Path) -> None:
    (copy / "file").write_text("precious")
    said = refused_apart("run", "made-up.toml", "--out", "file", code=1, cwd=copy)
    assert "is a file" in said
    assert (copy / "file").read_text() == "precious"


def test_an_out_folder_that_cannot_be_written(copy: Path) -> None:
    # Root may write anywhere but there.
    folder = "/sys/sweep-out" if os.geteuid() == 0 else str(copy / "locked" / "out")
    (copy / "locked").mkdir(mode=0o500)
    said = refused_apart("run", "made-up.toml", "--out", folder, code=1, cwd=copy)
    assert "cannot be written" in said


def test_an_out_folder_with_other_files(copy: Path) -> None:
    (copy / "thesis").mkdir()
    (copy / "thesis" / "chapter-1.tex").write_text("precious")
    said = refused_apart("run", "made-up.toml", "--out", "thesis", "--fresh", code=1, cwd=copy)
    assert "holds files that are no run of sweep (chapter-1.tex)" in said
    assert (copy / "thesis" / "chapter-1.tex").read_text() == "precious"


def test_an_out_folder_of_another_spec(copy: Path) -> None:
    before = sweep("top", copy / "out").stdout
    (copy / "made-up.toml").write_text(SPEC.replace("seq_lens = [", "seq_lens = [1024, "))
    said = refused_apart("run", "made-up.toml", "--out", "out", code=1, cwd=copy)
    assert "holds a finished run of another spec" in said
    assert sweep("top", copy / "out").stdout == before


def test_another_deadline_needs_no_new_run(copy: Path) -> None:
    (copy / "made-up.toml").write_text(SPEC.replace("deadline_hours = 24", "deadline_hours = 9"))
    done("run", "made-up.toml", "--out", "out", "--quiet", cwd=copy)
    assert "within 9 h" in sweep("top", copy / "out").stdout


def test_a_corrupt_part_is_found_and_mended(copy: Path) -> None:
    before = done("top", copy / "out")
    part = copy / "out" / "facts" / "part-00000.parquet"
    (copy / "out" / "results.duckdb").unlink()
    content = bytearray(part.read_bytes())
    content[4 : len(content) - 200] = bytes(len(content) - 204)
    part.write_bytes(content)
    said = refused_apart("top", copy / "out", code=1)
    assert "part-00000.parquet: does not hold the bytes that were written" in said
    part.write_bytes(content[:100])
    said = refused_apart("sql", copy / "out", "SELECT 1", code=1)
    assert "part-00000.parquet: holds 100 bytes" in said
    done("run", "made-up.toml", "--out", "out", "--quiet", cwd=copy)
    assert done("top", copy / "out") == before


def test_a_folder_without_a_run_and_a_damaged_manifest(copy: Path) -> None:
    assert "no run was written here" in refused_apart("top", copy / "mine", code=1)
    (copy / "out" / "manifest.json").write_text("{")
    assert "is damaged" in refused_apart("top", copy / "out", code=1)


def test_an_unexpected_error_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_path: Path) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr("sweep.spec.load_spec", broken)
    assert cli.main(["plan", "a.toml"]) == 1
    shown, said = capsys.readouterr()
    assert shown == ""
    assert said.startswith("Error: unexpected ZeroDivisionError: a fault of ours\n")
    assert "--debug" in said
    assert "Traceback" not in said
    for arguments in (["--debug", "plan", "a.toml"], ["plan", "a.toml", "--debug"]):
        assert cli.main(arguments) == 1
        assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_interrupt_outside_a_run_is_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sweep.spec.load_spec", interrupted)
    assert cli.main(["plan", "a.toml"]) == 130
    assert capsys.readouterr().err == "Error: interrupted\n"


# New prices


_OFFER_NAMES = ("provider", "instance_type", "region", "price_model", "as_of", "source")


def write_offers(folder: Path, *changes: tuple[dict[str, Any], dict[str, str]]) -> None:
    """Offers of one's own: rows of the shipped file, each with something changed."""
    with (ROOT / "catalogs" / "offers.csv").open(newline="") as handle:
        shipped = list(csv.DictReader(handle))
    with (folder / "offers.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(shipped[0]))
        writer.writeheader()
        for known, to in changes:
            (row,) = (row for row in shipped if all(row[n] == str(known[n]) for n in _OFFER_NAMES))
            writer.writerow({**row, **to})


def best_offer(out: Path, question: int = 0) -> dict[str, Any]:
    found = json.loads(done("top", out, "--question", question, "--json"))
    offer: dict[str, Any] = found["questions"][0]["ranking"][0]
    return offer


def test_an_edited_price_ranks_anew_without_a_sweep(copy: Path) -> None:
    question = json.loads((copy / "out" / "manifest.json").read_text())
    assert question["scenarios"]
    out = copy / "out"
    facts = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    ranked = json.loads(done("top", out, "--model", "llama", "--json"))["questions"]
    number = next(one["question"] for one in ranked if len(one["ranking"]) > 1)
    first, second = next(one["ranking"] for one in ranked if one["question"] == number)
    # The runner-up for a tenth of its price.
    price = f"{second['price_per_hour'] / 10:.4f}"
    write_offers(copy / "mine", (second, {"price_per_hour": price, "confirmed": "ours"}))
    found = sweep("top", out, "--question", number, "--json")
    assert found.stderr.startswith("prices have changed since this run was last ranked (1 changed)")
    now = json.loads(found.stdout)["questions"][0]["ranking"][0]
    assert (now["provider"], now["instance_type"]) == (second["provider"], second["instance_type"])
    assert now["usd"] == pytest.approx(second["usd"] / 10, rel=1e-3)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == facts
    # From now on without a word, wherever the folder is; the old price comes back with the file.
    moved = copy / "moved"
    out.rename(moved)
    again = sweep("top", moved, "--question", number, "--json")
    assert (json.loads(again.stdout)["questions"][0]["ranking"][0], again.stderr) == (now, "")
    (copy / "mine" / "offers.csv").unlink()
    assert sweep("top", moved, "--keep-prices").stderr == ""
    assert best_offer(moved, number)["offer"] == first["offer"]


def test_an_exchange_rate_of_ones_own_counts(copy: Path) -> None:
    with open_results(copy / "out") as results:
        (known,) = results.rows(
            "SELECT * FROM offers WHERE instance_type = 'p4d.24xlarge' AND rankable LIMIT 1"
        )
    write_offers(copy / "mine", (known, {"price_per_hour": "2", "currency": "EUR"}))
    assert "1 changed" in sweep("top", copy / "out").stderr
    first = best_offer(copy / "out")
    assert (first["instance_type"], first["currency"]) == ("p4d.24xlarge", "EUR")
    rates = copy / "mine" / "exchange_rates.csv"
    rates.write_text(rates.read_text() + "\n")  # another file, the same rates
    assert sweep("top", copy / "out").stderr == ""
    with rates.open("a") as handle:
        handle.write("EUR,0.5,2026-11-20,ecb-reference-rates,,,2026-11-20,\n")
    assert "1 changed" in sweep("top", copy / "out").stderr
    now = best_offer(copy / "out")
    assert (now["price_per_hour"], now["usd_per_hour"]) == (2.0, 1.0)
    assert "(2.00 EUR)" in done("top", copy / "out", "--question", "0")


def test_a_new_seller_of_a_known_machine_ranks_and_of_an_unknown_does_not(copy: Path) -> None:
    with open_results(copy / "out") as results:
        (known,) = results.rows(
            "SELECT * FROM offers WHERE instance_type = 'p4d.24xlarge' AND rankable LIMIT 1"
        )
    (machine,) = json.loads(done("catalog", "show", "instances", "p4d.24xlarge", "--json"))
    facts = ("vcpus", "host_ram_gib", "local_nvme_gb", "network_gbps")
    host = {name: "" if machine[name] is None else str(machine[name]) for name in facts}
    cousin = {
        "provider": "cousin",
        "price_per_hour": "0.01",
        "rdma": "y" if machine["rdma"] else "",
    }
    stranger = {**cousin, "provider": "stranger"}
    write_offers(
        copy / "mine", (known, {**cousin, **host}), (known, {**stranger, **host, "vcpus": "3"})
    )
    found = sweep("top", copy / "out", "--question", "0")
    assert "(1 new)" in found.stderr
    assert "1 offer is of a machine this run did not evaluate" in found.stderr
    assert sweep("top", copy / "out").stderr == ""
    assert best_offer(copy / "out")["provider"] == "cousin"
    # Nothing to rank anew, but something to know.
    farther = {**stranger, **host, "vcpus": "7", "region": "elsewhere"}
    write_offers(
        copy / "mine",
        (known, {**cousin, **host}),
        (known, {**stranger, **host, "vcpus": "3"}),
        (known, farther),
    )
    assert sweep("top", copy / "out").stderr == (
        "2 offers are of machines this run did not evaluate; `sweep run` would\n"
    )


def test_a_fault_in_a_price_file_is_told_and_can_be_passed_by(copy: Path) -> None:
    before = done("top", copy / "out")
    first = best_offer(copy / "out")
    write_offers(copy / "mine", (first, {"price_per_hour": "-3"}))
    said = refused("top", copy / "out")
    assert re.match(r"\S+offers\.csv:2, price_per_hour: value: found '-3'", said)
    assert done("top", copy / "out", "--keep-prices") == before
    shutil.rmtree(copy / "mine")
    found = sweep("top", copy / "out")
    assert (found.returncode, found.stdout) == (0, before)
    assert "ranked by the prices the run last used" in found.stderr


def test_a_rebuilt_database_is_brought_up_to_date_again(copy: Path) -> None:
    first = best_offer(copy / "out")
    write_offers(copy / "mine", (first, {"price_per_hour": "0.02", "confirmed": "ours"}))
    cheap = best_offer(copy / "out")
    assert cheap["usd"] < first["usd"]
    (copy / "out" / "results.duckdb").unlink()  # built anew, it holds the run's own offers
    assert best_offer(copy / "out") == cheap


def test_prices_age_with_the_day_where_the_spec_says_so(tmp_path: Path) -> None:
    text = SPEC.replace('catalogs = ["mine"]', "max_price_age_days = 400")
    (tmp_path / "a.toml").write_text(text)
    spec = load_spec(tmp_path / "a.toml")
    day = dt.date(2026, 11, 21)
    assert rerank.prices_sha256(spec, day) != rerank.prices_sha256(spec, day + dt.timedelta(1))
    (tmp_path / "a.toml").write_text(text + "")
    plain = load_spec(SWEEPS[0])
    assert rerank.prices_sha256(plain, day) == rerank.prices_sha256(plain, day + dt.timedelta(1))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_hardware_and_rates_survive_the_manifest(path: Path) -> None:
    spec = load_spec(path)
    found = rerank.spec_of_run(json.loads(canonical(spec)), path)
    assert found.hardware == spec.hardware
    assert found.exchange_rates == spec.exchange_rates


def test_the_offers_of_the_same_prices_are_the_same(
    small_plan: Plan, small_run: Path, tmp_path: Path
) -> None:
    """A run ranked again by the prices it was made with has the very offers it was made with."""
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    rerank.remember_prices(run, small_plan.spec.path, "not yet known", 3)
    found = rerank.reprice(run, dt.date(2026, 11, 21))
    assert found is not None
    assert (found.differs, found.not_covered) == (False, 0)
    assert found.offers == len(small_plan.offers)
    assert rerank.reprice(run, dt.date(2026, 11, 21)) is None


# Words


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (words.money(0.4), "$0.40"),
        (words.money(999.994), "$999.99"),
        (words.money(12345.6), "$12,346"),
        (words.hours(0.5), "0.50"),
        (words.hours(9.996), "10.0"),
        (words.hours(99.96), "100"),
        (words.hours_in_words(24.0), "24 h"),
        (words.hours_in_words(77.3), "3.22 days"),
        (words.hours_in_words(24.0 * 432), "432 days"),
        (words.hours_in_words(24.0 * 3652.5), "10 years"),
        (words.data_size(0.001), "1 MB"),
        (words.data_size(1.5), "1.5 GB"),
        (words.data_size(1000.0), "1 TB"),
        (words.data_size(0.0000005), "0.5 kB"),
        (words.count_of(1, "node"), "1 node"),
        (words.count_of(1200, "node"), "1,200 nodes"),
        (words.percent_more(1.06, 1.0), "+6%"),
        (words.percent_more(3.0, 1.0), "x 3.0"),
        (words.money_band({"usd_low": 3.456, "usd_high": 131.4}), "$3.46 to $131"),
        (words.hours_band({"hours_low": 0.5, "hours_high": 12.34}), "0.50 to 12.3 h"),
        (words.disk(999.0), "999 GB"),
        (words.disk(20130.0), "20.1 TB"),
        (words.gbps(0.0731), "0.073 Gbit/s"),
        (words.gbps(653.3), "653 Gbit/s"),
    ],
)
def test_figures_in_words(found: str, expected: str) -> None:
    assert found == expected


@pytest.mark.parametrize(
    ("step", "least", "said"),
    [
        (1.0, 60.0, "billed by the second"),
        (60.0, 0.0, "billed by the minute"),
        (3600.0, 3600.0, "billed by the hour"),
        (1.0, 3600.0, "billed by the second, at least 3,600 s"),
        (600.0, 0.0, "billed in steps of 600 s"),
    ],
)
def test_bills_in_words(step: float, least: float, said: str) -> None:
    assert words.billing({"billing_granularity_s": step, "billing_minimum_s": least}) == said


@pytest.mark.parametrize(
    ("ties", "said"),
    [
        ([False, False], ""),
        ([True], "a place not shown lies within the band of the prediction: not a winner by evidence"),
        ([True, False, True],
         "places 1, 3 lie within the band of the prediction: not a winner by evidence"),
        ([True, True, True, False, True],
         "places 1-3, 5 lie within the band of the prediction: not a winner by evidence"),
    ],
)  # fmt: skip
def test_ties_in_words(ties: list[bool], said: str) -> None:
    assert words.ties([{"rank": i + 1, "tie": tie} for i, tie in enumerate(ties)]) == said


def test_what_a_machine_lacks_or_nobody_states_is_marked() -> None:
    row = {
        "node_count": 2, "cpu_cores_needed": 16.0, "cpu_cores": 8.0, "cpu_ok": False,
        "host_ram_needed_gib": 24.0, "host_ram_gib": None, "host_ram_ok": None,
        "disk_needed_gb": 300.0, "local_nvme_gb": 100.0, "disk_ok": False,
        "network_needed_gbps": 3.0, "network_gbps": 10.0, "network_assumed": True,
        "network_ok": None,
    }  # fmt: skip
    assert words.needs(row) == "16 cores!, 24 GiB RAM, 300 GB disk!, 3 Gbit/s?"
    assert words.needs_and_has(row) == [
        "16 CPU cores (has 8 only)", "24 GiB RAM (has ?)",
        "300 GB disk (has 100 GB only: attach a volume)", "3 Gbit/s network (has 10 assumed)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"limit_name": "past_deadline", "need": 30.0, "have": 24.0, "short": 6.0},
         "past the deadline by 6 h (24 h allowed)"),
        ({"limit_name": "over_budget", "need": 700.0, "have": 500.0, "short": 200.0},
         "over the budget by $200.00 ($500.00 allowed)"),
        ({"limit_name": "gpu_memory", "need": 90.0, "have": 75.5, "short": 14.5},
         "GPU memory short by 14.5 GiB: 90.0 GiB each, 75.5 allowed"),
        ({"limit_name": "host_memory", "need": 900.0, "have": 500.0, "short": 400.0},
         "host memory short by 400.0 GiB: 900.0 GiB a node, 500.0 allowed"),
        ({"limit_name": "host_memory", "need": 900.0, "have": None, "short": None},
         "host memory: 900.0 GiB a node, unknown there"),
        ({"limit_name": "no_price"}, "fits, but no ranked offer sells it"),
        ({"limit_name": "unsupported"}, "the GPUs cannot do what was asked (data type or memory)"),
    ],
)  # fmt: skip
def test_limits_in_words(row: dict[str, Any], expected: str) -> None:
    assert words.limit_in_words(row) == expected
