"""From a spec's text to a Spec: every mistake found, each with its line and column."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from sweep import spec
from sweep.errors import Problem, SpecError, nearest
from sweep.schema import RATE_RULE, SECTION_TYPES, spec_model
from sweep.spec_fields import (
    LONGEST_LIST,
    NAME_RULE,
    TRAIN_TEXT_GB,
    TRAIN_TEXT_RULE,
    VARIABLE_BY_KEY,
    VARIABLES,
    Rule,
    Variable,
    rule_of,
)
from sweep.spec_findings import Findings, key_name, shown
from sweep.spec_locations import Location, locate
from sweep.spec_rules import check_rules, resolved

EXAMPLE = """\
[axes]
models = ["Qwen2.5-7B"]
methods = ["lora", "qlora"]
train_text_gb = [1]
[constraints]
deadline_hours = 24"""
_TOP_LEVEL = ("spec_version", "name", "axes", "knobs", *SECTION_TYPES, "exchange_rates")
_SYNTAX_POSITION = re.compile(r" \((?:at line (\d+), column (\d+)|at end of document)\)$")


def check_text(text: str, path: Path) -> spec.Spec:
    """The Spec a text holds; raises SpecError with every mistake in the order of the text."""
    findings = _parse(text, path)
    _check_version(findings)
    model: BaseModel | None = None
    try:
        model = spec_model().model_validate(findings.tree)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            _translate(findings, detail)
    check_rules(findings)
    findings.raise_if_any()
    assert model is not None
    return _build(findings, model)


def _parse(text: str, path: Path) -> Findings:
    try:
        return Findings(path, tomllib.loads(text), locate(text))
    except RecursionError:
        problem = Problem(f"{path}", "syntax", "brackets nested too deep", "TOML 1.0")
    except ValueError as error:
        # TOMLDecodeError, or what int() and datetime say of a literal they cannot hold.
        problem = _syntax_problem(error, text, path)
    raise SpecError(str(problem))


def _syntax_problem(error: ValueError, text: str, path: Path) -> Problem:
    message = str(error)
    locations = locate(text)
    if locations.repeated is not None and message.startswith("Cannot"):
        key, first, second = locations.repeated
        line, column = locations.line_column(second)
        first_line, first_column = locations.line_column(first)
        return Problem(
            f"{path}:{line}:{column}",
            key_name(key, {}),
            f"the same key again (first at {first_line}:{first_column})",
            "each key once",
            "merge the two",
        )
    match = _SYNTAX_POSITION.search(message)
    where = f"{path}"
    if match is not None:
        line, column = locations.line_column(len(text))
        where += f":{match[1]}:{match[2]}" if match[1] else f":{line}:{column}"
    reason = _SYNTAX_POSITION.sub("", message)
    fix = "text needs quotes" if reason == "Invalid value" else ""
    return Problem(where, "syntax", reason[:1].lower() + reason[1:], "TOML 1.0", fix)


def _check_version(findings: Findings) -> None:
    """A newer file is refused alone: what else looks wrong in it is likely right in its version."""
    version = findings.tree.get("spec_version", spec.SPEC_VERSION)
    if isinstance(version, int | float) and version > spec.SPEC_VERSION:
        findings.at_value(
            ("spec_version",),
            shown(version),
            str(spec.SPEC_VERSION),
            "the file is newer than this sweep: update sweep",
        )
        findings.raise_if_any()


def _translate(findings: Findings, detail: Any) -> None:
    """Note one pydantic error in our words."""
    path: Location = tuple(part for part in detail["loc"] if part != "[key]")
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        _unknown_key(findings, path)
    elif kind == "missing":
        _missing(findings, path)
    elif kind in ("too_short", "too_long"):
        # pydantic counts the values that passed; those that did not are told one by one.
        if not 1 <= len(value) <= LONGEST_LIST:
            found = f"{len(value):,} values" if value else "an empty list"
            allowed = f"1 to {LONGEST_LIST:,} values, each {_allowed(path)}"
            findings.at_value(path, found, allowed)
    elif "[key]" in detail["loc"]:
        allowed = "a currency's three capital letters, such as CNY"
        findings.at_key(path, shown(value), allowed)
    else:
        rule = _rule(path)
        words = [word for word in rule.choices if isinstance(word, str)] if rule else []
        close = nearest(value, words) if isinstance(value, str) else None
        fix = f'did you mean "{close}"?' if close else ""
        findings.at_value(path, shown(value), _allowed(path), fix)


def _missing(findings: Findings, path: Location) -> None:
    if path in (("axes",), ("axes", "models")):
        fix = f"a whole spec can be:\n{EXAMPLE}"
        findings.at_key(("axes", "models"), "nothing", "at least one model", fix)
    else:
        findings.at_key(path, "nothing", _allowed(path), "the key is required")


def _unknown_key(findings: Findings, path: Location) -> None:
    key, top = str(path[-1]), len(path) == 1
    if top:
        owner, known = "a spec", list(_TOP_LEVEL)
    elif path[1:2] == ("owned",):
        owner, known = "[[hardware.owned]]", _setting_names(spec.Owned)
    else:
        owner, known = f"[{path[0]}]", _section_keys(str(path[0]))
    everywhere = [name for section in _TOP_LEVEL for name in _section_keys(section)]
    if key in everywhere and owner != "[[hardware.owned]]":
        fix = f"it stands under {_homes(key)}"
    elif close := nearest(key, known):
        fix = f"did you mean {close}?"
    elif close := nearest(key, everywhere):
        fix = f"did you mean {close} under {_homes(close)}?"
    else:
        fix = ""
    # With a better name at hand the whole list would only bury it.
    allowed = f"a key of {owner}" if fix else "one of " + ", ".join(known)
    is_section = top and isinstance(findings.tree.get(key), dict)
    findings.at_key(path, "an unknown section" if is_section else "an unknown key", allowed, fix)


def _homes(key: str) -> str:
    homes = [f"[{section}]" for section in _TOP_LEVEL if key in _section_keys(section)]
    return " or ".join(homes)


def _section_keys(section: str) -> list[str]:
    if section == "axes":
        return [*(variable.key for variable in VARIABLES), TRAIN_TEXT_GB]
    if section == "knobs":
        return [variable.key for variable in VARIABLES if not variable.axes_only]
    return _setting_names(SECTION_TYPES[section]) if section in SECTION_TYPES else []


def _setting_names(section: type[Any]) -> list[str]:
    return [declared.name for declared in dataclasses.fields(section)]


def _rule(path: Location) -> Rule | None:
    """The rule of the value at a path, or None for a section or a table."""
    head, *rest = path
    if head == "name":
        return NAME_RULE
    if not rest:
        return None
    if head == "exchange_rates":
        return RATE_RULE
    if head in ("axes", "knobs"):
        if rest[0] == TRAIN_TEXT_GB:
            return TRAIN_TEXT_RULE
        return VARIABLE_BY_KEY[str(rest[0])].rule
    if rest[0] == "owned":
        return rule_of(spec.Owned, str(rest[2])) if len(rest) > 2 else None
    return rule_of(SECTION_TYPES[str(head)], str(rest[0]))


def _allowed(path: Location) -> str:
    if path == ("spec_version",):
        return str(spec.SPEC_VERSION)
    if rule := _rule(path):
        return rule.allowed()
    return "tables headed [[hardware.owned]]" if len(path) > 1 else f"a table headed [{path[0]}]"


def _build(findings: Findings, model: BaseModel) -> spec.Spec:
    """The Spec of a model that passed every check."""
    given: Any = model
    folder = findings.path.parent
    data = _section(spec.Data, given.data)
    axes: dict[str, tuple[Any, ...]] = {}
    knobs: dict[str, tuple[Any, ...]] = {}
    for variable in VARIABLES:
        side, values = _side_and_values(given, variable)
        (axes if side == "axes" else knobs)[variable.column] = values
    if given.axes.train_text_gb is not None:
        axes["train_tokens"] = _tokens(findings, given.axes.train_text_gb, data)
    axes["model"] = tuple(
        str(resolved(entry, folder).resolve()) if spec.is_model_path(entry) else entry
        for entry in axes["model"]
    )
    name = re.sub(r"[^A-Za-z0-9._+-]", "-", findings.path.stem)[:100] or "sweep"
    return spec.Spec(
        name=given.name or name,
        path=findings.path,
        axes=axes,
        knobs=knobs,
        hardware=_hardware(given.hardware, folder),
        constraints=_section(spec.Constraints, given.constraints),
        data=data,
        job=_section(spec.Job, given.job),
        results=_section(spec.Results, given.results),
        exchange_rates=dict(given.exchange_rates or {}),
    )


def _side_and_values(given: Any, variable: Variable) -> tuple[str, tuple[Any, ...]]:
    for side, section in (("axes", given.axes), ("knobs", given.knobs)):
        values = getattr(section, variable.key, None)
        if values is not None:
            return side, values
    return variable.side, variable.default


def _tokens(findings: Findings, sizes_gb: tuple[float, ...], data: spec.Data) -> tuple[int, ...]:
    tokens = tuple(round(size_gb * 1e9 / data.bytes_per_token) for size_gb in sizes_gb)
    for index, count in enumerate(tokens):
        if count in tokens[:index]:
            findings.at_value(
                ("axes", TRAIN_TEXT_GB, index),
                f"{shown(sizes_gb[index])}, the same {count:,} tokens as another value",
                "sizes that differ by a token or more",
            )
    findings.raise_if_any()
    return tokens


def _section(section: type[Any], given: Any) -> Any:
    if given is None:
        return section()
    return section(**{name: getattr(given, name) for name in _setting_names(section)})


def _hardware(given: Any, folder: Path) -> spec.Hardware:
    if given is None:
        return spec.Hardware()
    hardware: spec.Hardware = _section(spec.Hardware, given)
    changes: dict[str, Any] = {
        key: tuple(str(resolved(entry, folder).resolve()) for entry in getattr(hardware, key))
        for key in ("offers", "catalogs")
    }
    changes["owned"] = tuple(_section(spec.Owned, table) for table in given.owned)
    if changes["owned"] and "price_models" not in given.model_fields_set:
        changes["price_models"] = ("owned",)
    return dataclasses.replace(hardware, **changes)
