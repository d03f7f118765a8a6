"""What one layer keeps and works with as exact linear forms, traced or derived from traced ones."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sweep.catalogs.folder import read_catalog
from sweep.catalogs.tables import Column, read_rows
from sweep.errors import Problem

# Every product a form may use. A feature that begins with "T" grows with the tokens of a micro-batch;
# the others are bytes that do not (copies and gradients of weights).
FEATURES: tuple[str, ...] = (
    "T*h", "T*hq", "T*hkv", "T*f", "T*nq", "T*nkv", "T", "T*s*nq", "T*s", "T*d", "T*r",
    "T*k", "T*k*fe", "T*k*h", "T*fs", "T*E", "T*E*fe", "T*E*h", "T*fe",
    "T*rq", "T*rkv", "T*dr", "T*nq*dn", "T*nq*dr", "T*nq*dv",
    "h*hq", "h*hkv", "h*f", "h*h", "h", "1", "r*h", "r*hq", "r*hkv", "r*f", "s*d",
    "E*h", "E*fe", "E*fe*h", "h*fs", "h*dr", "h*nq*dv", "h*rkv", "h*rq",
    "r*dr", "r*nq*dn", "r*nq*dr", "r*nq*dv", "r*rkv", "r*rq",
    "rkv*nq*dn", "rkv*nq*dv", "rq*nq*dn", "rq*nq*dr", "h*fe",
    "T*hw",  # a hidden state that no parallelism divides
    "T*k*hw",  # hidden states at the experts: gathered over ranks that split an expert
)  # fmt: skip
FEATURE_INDEX: Mapping[str, int] = {name: index for index, name in enumerate(FEATURES)}
TOKEN_FEATURES = tuple(name.startswith("T") for name in FEATURES)

Form = Mapping[str, float]


class LayerVariant(NamedTuple):
    """What decides which form holds: the layer's family and how it is trained.

    `kernels` names, joined by "+", the rows of kernel_changes.csv that change the eager layer.
    """

    family: str
    method: str = "full"
    weight_dtype: str = "bf16"
    autocast: bool = False
    adapter_dtype: str = "none"
    lora_target: str = "none"
    dropout: bool = False
    kbit_prep: bool = False
    experts_quantized: bool = False
    attention: str = "flash"
    padding_mask: bool = False
    checkpointing: str = "none"
    kernels: str = ""


class KernelChange(NamedTuple):
    """What kernels make a layer keep more or less than the eager layer; "" fits any value.

    With `replaces` the layer keeps just `keep`. `checkpointing` "selective" changes what that mode
    keeps; "" what a layer keeps without checkpointing, and so what recomputing it makes live again.
    """

    name: str
    method: str
    mlp: str
    lora_target: str
    dropout: bool | None
    checkpointing: str
    replaces: bool
    keep: Form

    def fits(self, variant: LayerVariant, mlp: str) -> bool:
        """Whether it changes a variant whose MLP is `mlp` (gated, plain, experts)."""
        return (
            self.name in variant.kernels.split("+")
            and self.method in ("", variant.method)
            and self.mlp in ("", mlp)
            and self.lora_target in ("", variant.lora_target)
            and self.dropout in (None, variant.dropout)
        )


@dataclass(frozen=True)
class LayerForms:
    """One variant's forms: bytes kept for backward, and the working sets above the live bytes.

    `cached` is what a stage with such a layer holds all step long, once for all its layers;
    `forward` and `backward` are sets whose maximum is the working set while a middle layer runs.
    `basis` says where they come from: "traced", or how they were derived from traced ones.
    """

    keep: Form
    forward: tuple[Form, ...]
    backward: tuple[Form, ...]
    basis: str
    cached: Form = field(default_factory=dict)


def parse_form(text: str) -> dict[str, float]:
    """The coefficients of a form written like '16 T*h + 4 T*hq - 8 T*f + 3'."""
    form: dict[str, float] = {}
    sign = 1.0
    words = text.split()
    index = 0
    while index < len(words):
        word = words[index]
        if word in "+-":
            sign = -1.0 if word == "-" else 1.0
            index += 1
            continue
        coefficient = sign * float(word)
        feature = "1"
        if index + 1 < len(words) and words[index + 1] not in "+-":
            feature = words[index + 1]
            index += 1
        if feature not in FEATURE_INDEX:
            raise ValueError(f"unknown feature {feature!r}")
        form[feature] = form.get(feature, 0.0) + coefficient
        sign = 1.0
        index += 1
    return form


_COLUMNS = (
    Column("family", str, required=True),
    Column("method", str, required=True, vocabulary=("full", "lora", "qlora")),
    Column("weight_dtype", str, required=True, vocabulary=("bf16", "fp32", "nf4")),
    Column("autocast", bool, required=True),
    Column("adapter_dtype", str, required=True, vocabulary=("none", "fp32", "bf16")),
    Column("lora_target", str, required=True),
    Column("dropout", bool, required=True),
    Column("kbit_prep", bool, required=True),
    Column("experts_quantized", bool, required=True),
    Column("attention", str, required=True, vocabulary=("flash", "eager")),
    Column("padding_mask", bool, required=True),
    Column("checkpointing", str, required=True, vocabulary=("none", "selective", "full")),
    Column("phase", str, required=True, vocabulary=("keep", "forward", "backward", "cached")),
    Column("op", str),
    Column("form", str, required=True),
    Column("max_error_bytes", float, "bytes", required=True, low=0.0),
    Column("basis", str, required=True),
    Column("source", str, required=True),
    Column("locator", str),
    Column("checked", str, required=True),
)


_VARIANT_COLUMNS = tuple(name for name in LayerVariant._fields if name != "kernels")
_CHANGE_COLUMNS = (
    Column("kernels", str, required=True),
    Column("method", str, vocabulary=("full", "lora", "qlora")),
    Column("mlp", str, vocabulary=("gated", "plain", "experts")),
    Column("lora_target", str),
    Column("dropout", bool),
    Column("checkpointing", str, vocabulary=("selective", "full")),
    Column("replaces", bool, required=True),
    Column("keep", str, required=True),
    Column("source", str, required=True),
    Column("locator", str),
    Column("checked", dt.date, required=True),
    Column("notes", str),
)


def load_kernel_changes(
    folders: Sequence[Path],
) -> tuple[tuple[KernelChange, ...], list[Problem]]:
    """What kernels change in a layer's kept bytes (kernel_changes.csv), and every problem."""
    key = ("kernels", "method", "mlp", "lora_target", "dropout", "checkpointing")
    rows, problems = read_catalog(folders, "kernel_changes.csv", _CHANGE_COLUMNS, key)
    changes = []
    for row in rows:
        try:
            keep = parse_form(row["keep"])
        except ValueError as error:
            where = f"{row['_path']}:{row['_line']}, keep"
            allowed = "terms like '- 8 T*h' of " + ", ".join(FEATURES)
            problems.append(Problem(where, "form", str(error), allowed))
            continue
        changes.append(
            KernelChange(
                name=row["kernels"],
                method=row["method"] or "",
                mlp=row["mlp"] or "",
                lora_target=row["lora_target"] or "",
                dropout=row["dropout"],
                checkpointing=row["checkpointing"] or "",
                replaces=row["replaces"],
                keep=keep,
            )
        )
    return tuple(changes), problems


def load_layer_forms(
    folders: Sequence[Path],
) -> tuple[dict[LayerVariant, LayerForms], list[Problem]]:
    """All traced variants of the given catalog folders, later folders replacing earlier ones."""
    forms: dict[LayerVariant, LayerForms] = {}
    problems: list[Problem] = []
    for folder in folders:
        path = folder / "layer_forms.csv"
        if not path.exists():
            continue
        rows, found = read_rows(path, _COLUMNS)
        problems += found
        gathered: dict[LayerVariant, dict[str, list[Form]]] = {}
        basis: dict[LayerVariant, str] = {}
        for row in rows:
            variant = LayerVariant(**{name: row[name] for name in _VARIANT_COLUMNS})
            try:
                form = parse_form(row["form"])
            except ValueError as error:
                where = f"{path}:{row['_line']}, form"
                allowed = "terms like '16 T*h' joined by + and -, of " + ", ".join(FEATURES)
                problems.append(Problem(where, "form", str(error), allowed))
                continue
            gathered.setdefault(variant, {}).setdefault(row["phase"], []).append(form)
            basis[variant] = row["basis"]
        for variant, phases in gathered.items():
            if len(phases.get("keep", ())) != 1:
                found_keeps = str(len(phases.get("keep", ())))
                where = f"{path}: {variant}"
                problems.append(Problem(where, "keep forms", found_keeps, "exactly one"))
                continue
            cached = phases.get("cached", [])
            if len(cached) > 1 or any(name.startswith("T") for form in cached for name in form):
                where = f"{path}: {variant}"
                problems.append(Problem(where, "cached forms", str(cached), "one, without tokens"))
                continue
            forms[variant] = LayerForms(
                keep=phases["keep"][0],
                forward=tuple(phases.get("forward", ())),
                backward=tuple(phases.get("backward", ())),
                basis=basis[variant],
                cached=cached[0] if cached else {},
            )
    return forms, problems
