"""The spec file as pydantic models built from its declarations, and as a JSON Schema.

`python -m sweep.schema` prints the schema; catalogs/sweeps/sweep.schema.json is that text.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticCustomError

from sweep import spec
from sweep.spec_fields import (
    LONGEST_LIST,
    NAME_PATTERN,
    TRAIN_TEXT_DESCRIPTION,
    TRAIN_TEXT_GB,
    TRAIN_TEXT_RULE,
    VARIABLES,
    Rule,
    Side,
)

SECTION_TYPES: dict[str, type[Any]] = {
    "hardware": spec.Hardware,
    "constraints": spec.Constraints,
    "data": spec.Data,
    "job": spec.Job,
    "results": spec.Results,
}
CURRENCY_PATTERN = r"^[A-Z]{3}$"
RATE_RULE = Rule(float, "usd for one unit of the currency", above=0.0, high=1e4)
_CLOSED = ConfigDict(extra="forbid", frozen=True)


def _whole(value: Any) -> Any:
    """1e9 as an integer: TOML writes it as a float, people mean a count."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _listed(value: Any) -> Any:
    if not isinstance(value, list):
        return [value]
    if len(value) > LONGEST_LIST:
        # Before its values are looked at: a million wrong ones took 22 s to report.
        raise PydanticCustomError("too_long", "too many values")
    return value


def _value_type(rule: Rule) -> Any:
    if rule.choices:
        words: Any = Literal[rule.choices]
        # 1 == True in Python: without this, zero_stages = [true] would pass for 1.
        return Annotated[words, BeforeValidator(_not_bool)] if rule.kind is int else words
    if rule.kind is bool:
        return Annotated[bool, Field(strict=True)]
    if rule.kind is dt.date:
        return Annotated[dt.date, Field(strict=True)]
    if rule.kind is str:
        return Annotated[str, Field(strict=True, pattern=rule.pattern)]
    if rule.kind is int:
        low, high = _as_int(rule.low), _as_int(rule.high)
        return Annotated[int, Field(strict=True, ge=low, le=high), BeforeValidator(_whole)]
    bounds: dict[str, Any] = {"ge": rule.low, "gt": rule.above, "le": rule.high, "lt": rule.below}
    return Annotated[float, Field(strict=True, allow_inf_nan=False, **bounds)]


def _as_int(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number, not a truth value")
    return _whole(value)


def _list_type(rule: Rule, shortest: int = 1) -> Any:
    """A list of values; a value alone stands for a list of one."""
    item = _value_type(rule)
    unique = {"uniqueItems": True}  # checked in spec_check, which can name both places
    written = Annotated[
        list[item],  # type: ignore[valid-type]
        Field(min_length=shortest, max_length=LONGEST_LIST, json_schema_extra=unique),
    ]
    return Annotated[
        tuple[item, ...],  # type: ignore[valid-type]
        Field(min_length=shortest, max_length=LONGEST_LIST),
        BeforeValidator(_listed, json_schema_input_type=written | item),
    ]


def _described(description: str, rule: Rule) -> str:
    return f"{description} Unit: {rule.unit}." if rule.unit else description


def _variables_model(side: Side) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for variable in VARIABLES:
        if variable.axes_only and side == "knobs":
            continue
        description = _described(variable.description, variable.rule)
        if side != variable.side:
            description += f" Stands under [{variable.side}] unless given here."
        info: Any = {"default": list(variable.default)} if side == variable.side else {}
        if variable.key == "models":
            fields[variable.key] = (_list_type(variable.rule), Field(description=description))
            continue
        fields[variable.key] = (
            _list_type(variable.rule),
            Field(default=None, description=description, json_schema_extra=info or _no_default),
        )
    extra: dict[str, Any] = {}
    if side == "axes":
        fields[TRAIN_TEXT_GB] = (
            _list_type(TRAIN_TEXT_RULE),
            Field(default=None, description=TRAIN_TEXT_DESCRIPTION, json_schema_extra=_no_default),
        )
        extra = {"not": {"required": [TRAIN_TEXT_GB, "train_tokens"]}}
    description = {
        "axes": "Variables reported value by value.",
        "knobs": "Variables tuned away: the best feasible combination is kept.",
    }[side]
    config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=extra)
    return create_model(side.capitalize(), __config__=config, __doc__=description, **fields)


def _no_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def _section_model(section: type[Any]) -> type[BaseModel]:
    """The pydantic model of a section dataclass."""
    fields: dict[str, Any] = {}
    for declared in dataclasses.fields(section):
        if declared.name == "owned":
            fields["owned"] = (
                tuple[_section_model(spec.Owned), ...],  # type: ignore[misc]
                Field(default=(), description="Machines you have, one table for each kind."),
            )
            continue
        rule: Rule = declared.metadata["rule"]
        info: dict[str, Any] = {"description": _described(declared.metadata["description"], rule)}
        if declared.default is not dataclasses.MISSING:
            info["default"] = declared.default
            if declared.default in (None, ()):
                info["json_schema_extra"] = _no_default
        if declared.metadata["many"]:
            kind = _list_type(rule, shortest=0 if declared.default == () else 1)
        else:
            kind = _value_type(rule)
        fields[declared.name] = (kind, FieldInfo(**info))
    text = (section.__doc__ or "").split("\n\n")[0]
    return create_model(section.__name__, __config__=_CLOSED, __doc__=text, **fields)


@functools.cache
def spec_model() -> type[BaseModel]:
    """The pydantic model of a whole spec file."""
    name = Field(
        default=None,
        pattern=NAME_PATTERN,
        strict=True,
        description="Name of the sweep and of its output folder; the file's name if absent.",
        json_schema_extra=_no_default,
    )
    version = Field(
        default=spec.SPEC_VERSION, description="Version of this file format: 1. 1 if absent."
    )
    fields: dict[str, Any] = {
        "spec_version": (Annotated[Literal[1], BeforeValidator(_not_bool)], version),
        "name": (str, name),
        "axes": (_variables_model("axes"), Field()),
        "knobs": (_variables_model("knobs"), Field(default=None, json_schema_extra=_no_default)),
    }
    for key, section in SECTION_TYPES.items():
        fields[key] = (
            _section_model(section),
            Field(default=None, json_schema_extra=_no_default),
        )
    fields["exchange_rates"] = (
        dict[Annotated[str, Field(pattern=CURRENCY_PATTERN)], _value_type(RATE_RULE)],  # type: ignore[misc]
        Field(
            default=None,
            description="US dollars for one unit of each currency, by its three-letter code; "
            "replaces the shipped rates.",
            json_schema_extra=_no_default,
        ),
    )
    return create_model(
        "Sweep", __config__=_CLOSED, __doc__="A sweep: what is asked, of what hardware.", **fields
    )


class _Untitled(GenerateJsonSchema):
    """Leaves out titles that only repeat the key: editors show them in place of descriptions."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a spec file (draft 2020-12), descriptions and units included."""
    schema = spec_model().model_json_schema(schema_generator=_Untitled)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """The schema as committed: the bytes of catalogs/sweeps/sweep.schema.json."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
