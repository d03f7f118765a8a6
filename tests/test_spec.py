"""The spec: what it accepts, what it means, and exactly what it says about every mistake."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import math
import os
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sweep import schema, vocabulary
from sweep.errors import SpecError
from sweep.spec import (
    LARGEST_SPEC_BYTES,
    Constraints,
    Data,
    Hardware,
    Job,
    Owned,
    Results,
    Spec,
    canonical,
    is_model_path,
    json_schema,
    load_spec,
    parse_spec,
)
from sweep.spec_check import EXAMPLE
from sweep.spec_fields import LONGEST_LIST, VARIABLES
from sweep.spec_findings import MOST_PROBLEMS
from sweep.spec_locations import locate

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "catalogs" / "sweeps").glob("*.toml"))
BAD = sorted((Path(__file__).parent / "data" / "bad_specs").glob("*.toml"))
MODELS = '[axes]\nmodels = ["Qwen2.5-7B"]\n'


def spec_of(text: str, path: str = "a.toml") -> Spec:
    return parse_spec(text, Path(path))


def error_of(text: str, path: str = "a.toml") -> str:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, Path(path))
    return str(caught.value)


# What a spec means


def test_the_example_shown_for_an_empty_spec_is_six_lines_and_valid() -> None:
    assert len(EXAMPLE.splitlines()) == 6
    spec = spec_of(EXAMPLE)
    assert spec.axes["model"] == ("Qwen2.5-7B",)
    assert spec.axes["method"] == ("lora", "qlora")
    assert spec.axes["train_tokens"] == (250_000_000,)
    assert spec.constraints.deadline_hours == 24.0


def test_defaults() -> None:
    spec = spec_of(MODELS, "runs/one day.toml")
    assert spec.name == "one-day"
    assert spec.path == Path("runs/one day.toml")
    assert dict(spec.axes) == {
        "model": ("Qwen2.5-7B",),
        "method": ("lora",),
        "precision": ("bf16",),
        "quantization": ("nf4-double",),
        "lora_rank": (16,),
        "lora_target": ("all-linear",),
        "lora_dropout": (0.0,),
        "seq_len": (2048,),
        "global_batch": (64,),
        "train_tokens": (1_000_000_000,),
        "images_per_sample": (0,),
        "image_size": ("1008x980",),
    }
    assert dict(spec.knobs) == {
        "micro_batch": (1, 2, 4, 8, 16, 32),
        "checkpointing": ("none", "selective", "full"),
        "optimizer": ("adamw-fused",),
        "stack": ("hf",),
        "zero_stage": (0, 2, 3),
        "tp": (1, 2, 4, 8),
        "pp": (1, 2, 4, 8),
        "cp": (1,),
        "ep": (1, 8),
        "sequence_parallel": (False, True),
        "offload": ("none",),
        "attention": ("flash",),
        "cross_entropy": ("plain",),
    }
    assert spec.hardware == Hardware()
    assert spec.hardware.max_gpus == 512
    assert spec.hardware.price_models == ("on_demand",)
    assert spec.constraints == Constraints(None, None, 0.05)
    assert spec.data == Data(bytes_per_token=4.0, epochs=1.0)
    assert spec.job == Job()
    assert spec.results == Results("usd", "best", 3)
    assert spec.exchange_rates == {}
    assert spec.spec_version == 1


def test_every_default_obeys_its_own_rule() -> None:
    lines = {"axes": ['models = ["*"]'], "knobs": []}
    for variable in VARIABLES:
        if variable.default:
            lines[variable.side].append(f"{variable.key} = {json.dumps(variable.default)}")
    text = "\n".join(["[axes]", *lines["axes"], "[knobs]", *lines["knobs"]])
    for name, section in schema.SECTION_TYPES.items():
        text += f"\n[{name}]"
        for field in dataclasses.fields(section):
            if field.default not in (None, ()):
                text += f"\n{field.name} = {json.dumps(field.default)}"
    assert canonical(spec_of(text)) == canonical(spec_of('[axes]\nmodels = ["*"]'))


def test_each_variable_stands_on_the_side_it_is_given() -> None:
    text = '[axes]\nmodels = "a"\nmicro_batches = [1, 2]\n[knobs]\nglobal_batches = [64, 256]\n'
    spec = spec_of(text + 'methods = ["lora", "qlora"]')
    assert spec.axes["micro_batch"] == (1, 2)
    assert "micro_batch" not in spec.knobs
    assert spec.knobs["global_batch"] == (64, 256)
    assert "global_batch" not in spec.axes
    assert spec.values("method") == ("lora", "qlora")
    assert spec.values("micro_batch") == (1, 2)
    assert {*spec.axes, *spec.knobs} == {variable.column for variable in VARIABLES}


def test_any_variable_may_be_a_knob_except_what_describes_the_question() -> None:
    refused = set()
    for variable in VARIABLES:
        value = json.dumps(variable.default or ["*"])
        try:
            spec_of(f"{MODELS}[knobs]\n{variable.key} = {value}")
        except SpecError:
            refused.add(variable.key)
    assert refused == {"models", "train_tokens", "images_per_sample", "image_sizes"}


def test_a_value_alone_is_a_list_of_one() -> None:
    alone = spec_of('[axes]\nmodels = "a"\nseq_lens = 4096\n[knobs]\nsequence_parallel = false')
    listed = spec_of(
        '[axes]\nmodels = ["a"]\nseq_lens = [4096]\n[knobs]\nsequence_parallel = [false]'
    )
    assert alone == listed
    assert alone.axes["seq_len"] == (4096,)


def test_counts_may_be_written_as_floats_and_stay_integers() -> None:
    spec = spec_of(
        MODELS + "train_tokens = [1e6, 25e9]\nseq_lens = [4096.0]\n[hardware]\nmax_gpus = 64.0"
    )
    assert spec.axes["train_tokens"] == (1_000_000, 25_000_000_000)
    assert all(type(value) is int for value in spec.axes["train_tokens"] + spec.axes["seq_len"])
    assert type(spec.hardware.max_gpus) is int


def test_text_size_becomes_tokens() -> None:
    spec = spec_of(
        MODELS + "train_text_gb = [0.001, 1, 100]\n[data]\nbytes_per_token = 3.2\nepochs = 3"
    )
    # One pass: epochs are counted by the job, not by the size of the data.
    assert spec.axes["train_tokens"] == (312_500, 312_500_000, 31_250_000_000)
    assert spec.data.epochs == 3.0


def test_sections_arrive_typed() -> None:
    spec = spec_of(
        MODELS
        + """
[hardware]
gpus = "H100*"
node_counts = [1, 2]
offers_as_of = 2026-08-01
max_price_age_days = 90
include_per_gpu_prices = true
offers = []
[constraints]
deadline_hours = 24
max_usd = 20000
memory_headroom = 0
[exchange_rates]
CNY = 0.14
USD = 1
[results]
objective = "hours"
keep = "all"
top = 10
"""
    )
    assert spec.hardware.gpus == ("H100*",)
    assert spec.hardware.offers_as_of == dt.date(2026, 8, 1)
    assert spec.hardware.max_price_age_days == 90
    assert spec.constraints == Constraints(24.0, 20000.0, 0.0)
    assert type(spec.constraints.max_usd) is float
    assert spec.exchange_rates == {"CNY": 0.14, "USD": 1.0}
    assert spec.results == Results("hours", "all", 10)


OWNED = """[[hardware.owned]]
name = "dgx"
gpu = "A100-SXM-80GB"
gpus_per_node = 8
nodes = 1
usd_per_hour = 0
vcpus = 256
host_ram_gib = 2048
"""


def test_owned_machines_are_the_only_ones_unless_renting_is_asked_for() -> None:
    spec = spec_of(MODELS + OWNED)
    assert spec.hardware.price_models == ("owned",)
    assert spec.hardware.owned == (Owned("dgx", "A100-SXM-80GB", 8, 1, 0.0, 256, 2048.0),)
    both = spec_of(MODELS + '[hardware]\nprice_models = ["owned", "on_demand"]\n' + OWNED)
    assert both.hardware.price_models == ("owned", "on_demand")
    assert both.hardware.owned == spec.hardware.owned


def test_owned_machines_of_several_nodes_need_a_network() -> None:
    several = OWNED.replace("nodes = 1", "nodes = 2")
    assert "hardware.owned[0].network_gbps: found nothing" in error_of(MODELS + several)
    assert spec_of(MODELS + several + "network_gbps = 200").hardware.owned[0].network_gbps == 200.0


def test_paths_start_at_the_folder_of_the_spec(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "quotes.csv").write_text("")
    (tmp_path / "overlay").mkdir()
    (tmp_path / "sweeps").mkdir()
    file = tmp_path / "sweeps" / "a.toml"
    file.write_text(
        '[axes]\nmodels = ["../model/config.json", "../model", "Qwen/Qwen2.5-7B", "Qwen*"]\n'
        '[hardware]\noffers = "../quotes.csv"\ncatalogs = ["../overlay"]\n'
    )
    spec = load_spec(file)
    folder = tmp_path.resolve()
    assert spec.axes["model"] == (
        str(folder / "model" / "config.json"),
        str(folder / "model"),
        "Qwen/Qwen2.5-7B",
        "Qwen*",
    )
    assert [is_model_path(entry) for entry in spec.axes["model"]] == [True, True, False, False]
    assert spec.hardware.offers == (str(folder / "quotes.csv"),)
    assert spec.hardware.catalogs == (str(folder / "overlay"),)


def test_paths_hold_from_any_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.toml").write_text('[axes]\nmodels = "./config.json"')
    absolute = load_spec(tmp_path / "a.toml")
    monkeypatch.chdir(tmp_path)
    relative = load_spec("a.toml")
    assert relative.axes["model"] == absolute.axes["model"]
    assert canonical(relative) == canonical(absolute)


def test_a_spec_is_frozen_and_travels_between_processes() -> None:
    spec = spec_of(MODELS + OWNED)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "other"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(spec)) == spec


# The canonical text


@pytest.mark.parametrize(
    "text",
    [
        '# a comment\nspec_version = 1\nname = "other"\n[axes]\nmodels = "Qwen2.5-7B"',
        '[axes]\nmodels = ["Qwen2.5-7B"]\nseq_lens = [2048.0]\n[results]\ntop = 50',
        "[knobs]\ntp = [1, 2, 4, 8]\n" + MODELS,
        MODELS + "train_text_gb = 4",
        MODELS + "train_tokens = [500e6]\n[exchange_rates]\n[job]\nstartup_minutes = 10",
        'axes = { models = ["Qwen2.5-7B"] }\nhardware = { gpus = "*" }',
    ],
)
def test_the_same_meaning_has_the_same_text(text: str) -> None:
    plain = spec_of(MODELS)
    if "500e6" in text:
        plain = spec_of(MODELS + "train_text_gb = 2")
    assert canonical(spec_of(text, "elsewhere/b.toml")) == canonical(plain)


def _changes() -> list[str]:
    """One spec text for each key, with a value that is not its default."""
    texts = []
    for variable in VARIABLES:
        others = [word for word in variable.rule.choices if (word,) != variable.default]
        if variable.rule.kind is bool:
            others = [False]
        fallback: dict[type, object] = {int: 3, float: 0.5, str: "77x77"}
        value = others[0] if others else fallback[variable.rule.kind]
        if variable.key == "models":
            texts.append('[axes]\nmodels = "other"')
        elif variable.side == "axes":
            texts.append(f"{MODELS}{variable.key} = {json.dumps(value)}")
        else:
            texts.append(f"{MODELS}[knobs]\n{variable.key} = {json.dumps(value)}")
    values = {
        "price_models": '"spot"', "offers": '"a.csv"', "catalogs": '"data"', "keep": '"all"',
        "offers_as_of": "2026-01-01", "objective": '"hours"', "include_per_gpu_prices": "true",
        "gpus": '"a*"', "providers": '"a*"', "regions": '"a*"', "instances": '"a*"',
        "memory_headroom": "0.5",
    }  # fmt: skip
    for name, section in schema.SECTION_TYPES.items():
        for field in dataclasses.fields(section):
            if field.name not in ("owned", "top"):
                texts.append(f"{MODELS}[{name}]\n{field.name} = {values.get(field.name, 7)}")
    texts += [MODELS + OWNED, MODELS + "[exchange_rates]\nCNY = 0.14"]
    texts += [MODELS + "micro_batches = [1, 2, 4, 8, 16, 32]"]  # the default, as an axis
    return texts


def test_every_other_meaning_has_another_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "data").mkdir()
    specs = [spec_of(text, str(tmp_path / "a.toml")) for text in [MODELS, *_changes()]]
    assert len({canonical(spec) for spec in specs}) == len(specs)


def test_the_canonical_text_moves_with_its_folder(tmp_path: Path) -> None:
    texts = []
    for name in ("here", "there"):
        folder = tmp_path / name
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "config.json").write_text("{}")
        (folder / "a.toml").write_text('[axes]\nmodels = ["./model"]')
        texts.append(canonical(load_spec(folder / "a.toml")))
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["axes"]["model"] == ["model"]


def test_the_canonical_text_is_one_line_of_json_whose_hash_can_be_kept() -> None:
    text = canonical(spec_of(MODELS + "[hardware]\noffers_as_of = 2026-08-01"))
    assert "\n" not in text
    meaning = json.loads(text)
    assert meaning["hardware"]["offers_as_of"] == "2026-08-01"
    assert json.dumps(meaning, sort_keys=True, separators=(",", ":")) == text


# Mistakes


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_spec_says_exactly(path: Path) -> None:
    """The lines of a fixture that start with `#! ` are its whole message."""
    lines = path.read_text(encoding="utf-8").splitlines()
    expected = "\n".join(line[3:] for line in lines if line.startswith("#! "))
    assert expected
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    folder = str(path.parent.absolute())
    assert str(caught.value).replace(str(path), "FILE").replace(folder, "FOLDER") == expected


def test_messages_point_at_what_they_name() -> None:
    """In fixtures with an offending value, the text at line:column is what `found` shows."""
    seen = 0
    for path in BAD:
        lines = path.read_text(encoding="utf-8").splitlines()
        for line in lines:
            if line.startswith("#! FILE:") and ': found "' in line and "again" not in line:
                _, row, column, *_ = line.split(":")
                found = line.split(": found ")[1].split('"')[1]
                text = lines[int(row) - 1][int(column) - 1 :]
                if "\\x" not in found and "owned" not in found:
                    assert found in text[: len(found) + 1], line
                    seen += 1
    assert seen > 15


def test_five_mistakes_are_told_at_once_in_the_order_of_their_lines() -> None:
    message = error_of((ROOT / "tests/data/bad_specs/five_mistakes.toml").read_text())
    rows = [int(line.split(":")[1]) for line in message.splitlines()]
    assert len(rows) == 5
    assert rows == sorted(rows)


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "spec_version = 1"])
def test_an_empty_spec_is_told_what_a_whole_one_looks_like(text: str) -> None:
    message = error_of(text)
    assert message.startswith("a.toml:1:1: axes.models: found nothing, allowed at least one model")
    assert message.endswith(EXAMPLE)


def test_a_newer_version_is_refused_alone() -> None:
    assert error_of("spec_version = 3\n[unheard]\nof = 1") == (
        "a.toml:1:16: spec_version: found 3, allowed 1; "
        "the file is newer than this sweep: update sweep"
    )


def test_a_list_may_be_long_but_not_endless() -> None:
    longest = ", ".join(str(number) for number in range(1, LONGEST_LIST + 1))
    assert len(spec_of(f"{MODELS}seq_lens = [{longest}]").axes["seq_len"]) == LONGEST_LIST
    assert error_of(f"{MODELS}seq_lens = [{longest}, 10001]") == (
        "a.toml:3:12: axes.seq_lens: found 10,001 values, allowed 1 to 10,000 values, "
        "each a whole number from 1 to 16,777,216 (tokens)"
    )


def test_a_flood_of_mistakes_is_cut() -> None:
    lines = error_of(f"{MODELS}seq_lens = [{', '.join(['-1', *map(str, range(-2, -2000, -1))])}]")
    assert len(lines.splitlines()) == MOST_PROBLEMS + 1
    assert lines.endswith("a.toml: and 1,949 more")


def test_a_list_of_very_many_wrong_values_is_refused_at_once() -> None:
    message = error_of(f"{MODELS}seq_lens = [{'-1,' * 300_000}]")
    assert "found 300,000 values, allowed 1 to 10,000" in message


@pytest.mark.parametrize("depth", [60, 500, 100_000])
def test_brackets_nested_too_deep(depth: int) -> None:
    message = error_of(f"[axes]\nmodels = {'[' * depth}{']' * depth}")
    assert message.splitlines()[0].startswith("a.toml")


def test_an_integer_longer_than_python_reads() -> None:
    message = error_of(f"{MODELS}seq_lens = [{'9' * 5000}]")
    assert message.startswith("a.toml: syntax: found ")


def test_an_integer_too_long_to_print() -> None:
    message = error_of(f"{MODELS}seq_lens = [0x{'F' * 9000}]")
    assert "found a whole number of 36,000 bits" in message


def test_two_million_bit_number_as_usd() -> None:
    message = error_of(f"{MODELS}[constraints]\nmax_usd = 0x{'F' * 500_000}")
    assert message.startswith("a.toml:4:11: constraints.max_usd: found a whole number of")


# Files


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "no.toml")
    assert str(caught.value) == (
        f"{tmp_path}/no.toml: spec: found no such file or directory, allowed a readable TOML file"
    )


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path)
    assert str(caught.value) == f"{tmp_path}: spec: found a folder, allowed a readable TOML file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(MODELS)
    file.chmod(0)
    with pytest.raises(SpecError, match="permission denied"):
        load_spec(file)


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(b'[axes]\nmodels = ["\xc3\xa9", "caf\xe9"]')
    with pytest.raises(SpecError) as caught:
        load_spec(file)
    assert str(caught.value) == (
        f"{file}:2:20: spec: found byte 0xe9, which is not UTF-8, allowed UTF-8 text"
    )


def test_a_file_that_is_not_utf8_after_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(b"\xef\xbb\xbf# caf\xe9")
    with pytest.raises(SpecError, match=r"a\.toml:1:6: spec: found byte 0xe9"):
        load_spec(file)


def test_a_name_longer_than_the_file_system_takes(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="file name too long"):
        load_spec(tmp_path / ("a" * 5000))
    message = error_of(f'[axes]\nmodels = "./{"a" * 390}/config.json"')
    assert message.startswith("a.toml:2:10: axes.models: found")


def test_a_file_of_utf16(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(MODELS, encoding="utf-16")
    with pytest.raises(SpecError, match=":1:1: spec: found byte 0xff, which is not UTF-8"):
        load_spec(file)


def test_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(b"\xef\xbb\xbf[axes]\r\nmodels = 'a'\r\nseq_lens = 0\r\n")
    with pytest.raises(SpecError) as caught:
        load_spec(file)
    assert str(caught.value).startswith(f"{file}:3:12: axes.seq_lens: found 0")


def test_a_file_too_large_for_a_spec(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(b"#" * (LARGEST_SPEC_BYTES + 1))
    with pytest.raises(SpecError, match="found more than 4 MiB, allowed a spec of at most 4 MiB"):
        load_spec(file)


def test_a_device_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(SpecError, match="more than 4 MiB"):
        load_spec("/dev/zero")


# Nothing but a SpecError, whatever the text

_VALUES = st.recursive(
    st.one_of(
        st.integers(),
        st.floats(),
        st.booleans(),
        st.dates(),
        st.text(max_size=8),
        st.sampled_from(["lora", "*", "owned", "1x1", "./x", "~", "hf", "usd"]),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "gpu", "nodes", "USD"]), inner, max_size=3)
    ),
    max_leaves=6,
)
_KEYS = [variable.key for variable in VARIABLES] + [
    field.name for section in schema.SECTION_TYPES.values() for field in dataclasses.fields(section)
]
_TREES = st.dictionaries(
    st.sampled_from(["axes", "knobs", *schema.SECTION_TYPES, "exchange_rates", "name", "else"]),
    st.dictionaries(st.sampled_from([*_KEYS, "train_text_gb", "", "a b"]), _VALUES, max_size=5)
    | _VALUES,
    max_size=5,
)


def toml_of(value: object) -> str:
    """A value as inline TOML; the tests' own writer, since the standard library has none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(toml_of(item) for item in value) + "]"
    if isinstance(value, dict):
        pairs = (f"{toml_of(key)} = {toml_of(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    return str(value)


def document_of(tree: dict[str, object]) -> str:
    """A tree as a TOML document: its values inline, its tables under headers."""
    lines = [f"{toml_of(key)} = {toml_of(v)}" for key, v in tree.items() if not isinstance(v, dict)]
    for key, table in tree.items():
        if isinstance(table, dict):
            lines.append(f"[{toml_of(key)}]")
            lines += [f"{toml_of(name)} = {toml_of(value)}" for name, value in table.items()]
    return "\n".join(lines)


@settings(deadline=None, derandomize=True)
@given(_TREES)
def test_any_tree_is_a_spec_or_a_spec_error(tree: dict[str, object]) -> None:
    text = document_of(tree)
    with contextlib.suppress(SpecError):
        canonical(spec_of(text))


@settings(deadline=None, derandomize=True)
@given(st.text())
@example("[[")
@example('a = "\\')
@example("a = '''")
@example("a = {b")
@example("[a]\n[a.b]\na.b.c = 1")
def test_any_text_is_a_spec_or_a_spec_error(text: str) -> None:
    with contextlib.suppress(SpecError):
        spec_of(text)


@settings(deadline=None, derandomize=True)
@given(st.sampled_from(SHIPPED), st.data())
def test_a_damaged_spec_is_a_spec_or_a_spec_error(path: Path, data: st.DataObject) -> None:
    text = path.read_text()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 12, len(text))))
    damaged = text[:start] + data.draw(st.text('[]{}"=.,\n#a1-', max_size=3)) + text[end:]
    try:
        spec_of(damaged)
    except SpecError as error:
        first = str(error).splitlines()[0]
        assert first.startswith("a.toml:"), first


# Positions


def _paths(node: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    below: list[tuple[str | int, ...]] = [path] if path else []
    if isinstance(node, dict):
        for key, value in node.items():
            below += _paths(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            below += _paths(value, (*path, index))
    return below


@settings(deadline=None, derandomize=True)
@given(_TREES)
def test_positions_cover_the_same_paths_as_tomllib(tree: dict[str, object]) -> None:
    text = document_of(tree)
    located = locate(text)
    assert set(located.values) == set(_paths(tomllib.loads(text)))
    for path, offset in located.values.items():
        value: object = tree
        for part in path:
            value = value[part]  # type: ignore[index]
        written = "[" if len(path) == 1 and isinstance(value, dict) else toml_of(value)
        assert text.startswith(written, offset)
    assert located.repeated is None


TOUR = '''title = "a \\"quoted\\" [title] # no comment" # a comment = 1
a.b.c = 1
"q.k" = [ # comment, with ] and "
  1, 2, # more
  { x = 'lit\\', y.z = [true] },
]
multi = """
[not.a.table]
a = "still text" \\""" """""
literal = \'\'\'
[no]\'\'\'\'
when = 1979-05-27 07:32:00
[table . "with space"]
key = inf
[[list]]
name = 'one'
[list.sub]
deep = -1
[[list]]
name = 'two'
[[list.inner]]
n = 1
[[list.inner]]
n = 2
'''


def test_positions_in_a_tour_of_toml() -> None:
    located = locate(TOUR)
    assert set(located.values) | set(located.keys) >= set(_paths(tomllib.loads(TOUR)))
    expected = {
        ("title",): (1, 9),
        ("a", "b", "c"): (2, 9),
        ("q.k", 0): (4, 3),
        ("q.k", 1): (4, 6),
        ("q.k", 2, "x"): (5, 9),
        ("q.k", 2, "y", "z", 0): (5, 24),
        ("multi",): (7, 9),
        ("literal",): (10, 11),
        ("when",): (12, 8),
        ("table", "with space", "key"): (14, 7),
        ("list", 0, "name"): (16, 8),
        ("list", 0, "sub", "deep"): (18, 8),
        ("list", 1, "name"): (20, 8),
        ("list", 1, "inner", 1, "n"): (24, 5),
    }
    assert {path: located.of_value(path) for path in expected} == expected
    assert located.of_key(("list", 1, "inner", 1)) == (23, 1)
    assert located.of_key(("a", "b", "c")) == (2, 5)
    assert located.of_value(("list", 1, "absent")) == (19, 1)
    assert located.of_value(("absent",)) == (1, 1)
    assert located.repeated is None


# What ships


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_spec(path: Path) -> None:
    assert path.read_text().startswith("#:schema sweep.schema.json\n")
    spec = load_spec(path)
    assert spec.name == path.stem


def test_the_shipped_specs_are_those_promised() -> None:
    assert [path.stem for path in SHIPPED] == [
        "deepseek-r1-one-day",
        "everything",
        "my-cluster",
        "qwen2.5-72b-lora",
        "qwen2.5-vl-32b",
    ]


def test_the_default_sweep_asks_the_question_of_the_readme() -> None:
    spec = load_spec(ROOT / "catalogs/sweeps/deepseek-r1-one-day.toml")
    assert spec.axes["method"] == ("full", "lora", "qlora")
    # 1 MB, 1 GB, 10 GB and 100 GB at 4 bytes a token.
    assert spec.axes["train_tokens"] == (250_000, 250_000_000, 2_500_000_000, 25_000_000_000)
    assert spec.constraints.deadline_hours == 24.0
    assert spec.hardware.max_gpus == 512
    # A batch is part of the recipe; with tensor parallelism inside a node it can use every GPU.
    assert spec.axes["global_batch"] == (128,)
    most = spec.axes["global_batch"][0] * max(spec.values("tp")) * max(spec.values("pp"))
    assert most >= spec.hardware.max_gpus


def test_the_committed_schema_is_what_the_code_generates() -> None:
    committed = (ROOT / "catalogs" / "sweeps" / "sweep.schema.json").read_text(encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "sweep.schema"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout == committed
    assert json.loads(committed) == json_schema()


def test_the_schema_describes_every_key_and_its_unit() -> None:
    sections = json_schema()["$defs"]
    for variable in VARIABLES:
        described = sections["Axes"]["properties"][variable.key]
        assert variable.rule.unit in described["description"]
        assert (variable.key in sections["Knobs"]["properties"]) is not variable.axes_only
        home = sections[variable.side.capitalize()]["properties"][variable.key]
        assert home.get("default", []) == list(variable.default)
    for name, section in schema.SECTION_TYPES.items():
        properties = sections[name.capitalize()]["properties"]
        assert list(properties) == [field.name for field in dataclasses.fields(section)]
        assert all(entry["description"] for entry in properties.values())
    assert sections["Axes"]["required"] == ["models"]
    assert sections["Axes"]["properties"]["methods"]["anyOf"][1]["enum"] == list(vocabulary.METHODS)
    assert all(sections[name]["additionalProperties"] is False for name in sections)


def test_importing_the_spec_waits_for_nothing_heavy() -> None:
    code = (
        "import sys, sweep.spec\n"
        "print(*{'pydantic', 'numba', 'numpy', 'polars', 'pyarrow', 'duckdb'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == ""


def test_bytes_per_token_is_the_cited_figure_rounded() -> None:
    """Llama 3 paper, section 3.2: 3.94 characters of English a token; one byte or more each."""
    assert math.isclose(Data().bytes_per_token, 3.94, rel_tol=0.02)
    assert Data().bytes_per_token >= 3.94
