"""A model from a Hugging Face config.json: read by family, checked like a row of the catalog."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import re
from pathlib import Path
from typing import Any

from sweep.catalogs.config_experts import EXPERTS
from sweep.catalogs.config_families import GATED_FAMILIES, Facts
from sweep.catalogs.config_plain import PLAIN_FAMILIES
from sweep.catalogs.config_reader import ConfigReader, Findings
from sweep.catalogs.config_vision import SEEING
from sweep.catalogs.model_checks import check_model
from sweep.catalogs.models import Model
from sweep.errors import CatalogError, Problem, format_problems, nearest

_READING = GATED_FAMILIES | PLAIN_FAMILIES | EXPERTS
KNOWN_MODEL_TYPES = tuple(sorted({*_READING, *SEEING}))

# What a config.json says nothing about, and what holds unless a family says otherwise.
_USUAL: Facts = {
    "class_is_equivalent": False,
    "lm_head_bias": False,
    "position_embedding": "rope",
    "embedding_norm": False,
    "qkv_bias": False,
    "o_bias": False,
    "qk_norm": "none",
    "attention_sinks": False,
    "mlp_type": "swiglu",
    "mlp_bias": False,
    "norm_type": "rmsnorm",
    "norms_per_layer": 2,
    "final_norm": True,
    "shared_expert_gate": False,
    "router_bias": "none",
    "expert_bias": False,
    "aliases": (),
    "cross_attention_layers": (),
    "vision_full_attention_layers": (),
    "checkpoint_extras": (),
}


def _fail(where: str, what: str, found: str, allowed: str, fix: str = "") -> CatalogError:
    return CatalogError(str(Problem(where, what, found, allowed, fix)))


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a fault names file, line and column."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise _fail(
            str(path), "file", error.strerror or str(error), "a readable config.json"
        ) from error
    except UnicodeDecodeError as error:
        raise _fail(str(path), "file", f"byte {error.start} is no UTF-8", "UTF-8 JSON") from error
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}:{error.colno}"
        raise _fail(where, "JSON", error.msg, "valid JSON") from error
    except RecursionError as error:
        raise _fail(str(path), "JSON", "objects nested too deeply", "a config.json") from error
    if not isinstance(values, dict):
        raise _fail(str(path), "JSON", f"a {type(values).__name__}", "an object of keys")
    return values


def _locate(path: Path) -> Path:
    if path.is_dir():
        path = path / "config.json"
    if not path.exists():
        raise _fail(str(path), "file", "no such file", "a config.json or the folder that holds it")
    return path


def _name(path: Path) -> str:
    """A key from the folder's name, or the file's where it is not called config.json."""
    absolute = path.resolve()
    name = absolute.parent.name if absolute.name == "config.json" else absolute.stem
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-") or "config"


def _refuse_unknown(path: Path, model_type: object, architectures: object) -> CatalogError:
    known = ", ".join(KNOWN_MODEL_TYPES)
    if model_type is None:
        return _fail(f"{path}: model_type", "architecture", "nothing", f"one of {known}")
    named = architectures if isinstance(architectures, list) else []
    suffix = f" ({', '.join(str(name) for name in named)})" if named else ""
    close = nearest(model_type, KNOWN_MODEL_TYPES) if isinstance(model_type, str) else None
    fix = f"nearest is {close!r}, which may lay out its parameters otherwise; " if close else ""
    return _fail(
        f"{path}: model_type",
        "architecture",
        f"{model_type!r}{suffix}, whose layers are not described",
        f"one of {known}",
        f"{fix}a row of models.csv in a catalog folder of your own can describe the model",
    )


def _facts(values: dict[str, Any], path: Path, findings: Findings) -> Facts:
    """The Model fields the config gives, by its model_type."""
    model_type = values.get("model_type")
    config = ConfigReader(values, "", findings)
    if isinstance(model_type, str):
        if family := _READING.get(model_type):
            return {"model_type": family[0]} | family[1](config)
        if seeing := SEEING.get(model_type):
            return {"model_type": seeing[0], "vision_type": seeing[1]} | seeing[2](config)
    raise _refuse_unknown(path, model_type, values.get("architectures"))


def model_from_config(path: Path) -> Model:
    """The model a Hugging Face config.json (or the folder holding it) describes.

    Shapes only: quantization_config and whatever else does not change them is passed over. Raises
    CatalogError naming the file and every key that is missing or wrong, the line and column where
    the JSON breaks off, or the architecture that is not known.
    """
    path = _locate(Path(path))
    values = _read_json(path)
    findings = Findings()
    facts = _facts(values, path, findings)
    problems = []
    if findings.missing:
        missing = list(dict.fromkeys(findings.missing))
        problems.append(
            Problem(
                str(path),
                f"model_type {values['model_type']!r}",
                f"no {', '.join(missing)}",
                "these keys with their values",
            )
        )
    problems += [
        Problem(f"{path}: {fault.key}", "value", fault.found, fault.allowed)
        for fault in findings.faults
    ]
    if problems:
        raise CatalogError(format_problems(problems))
    model = _assemble(facts, values, path)
    if faults := check_model(model, str(path)):
        raise CatalogError(format_problems(faults))
    return model


def _assemble(facts: Facts, values: dict[str, Any], path: Path) -> Model:
    architectures = values.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    dtype = values.get("torch_dtype") or values.get("dtype")
    fields: Facts = {field.name: None for field in dataclasses.fields(Model)}
    fields |= _USUAL | facts
    fields |= {
        "key": _name(path),
        "architecture": str(first) if first else None,
        "transformers_class": str(first) if first else None,
        "weights_dtype": dtype if isinstance(dtype, str) else None,
        "source": "config.json",
        "locator": str(path),
        # The day the file was last written, so that the same file always gives the same model.
        "checked": dt.date.fromtimestamp(path.stat().st_mtime),
    }
    return Model(**fields)
