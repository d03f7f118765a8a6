"""What a vision tower keeps for backward over the images of one sequence."""

from __future__ import annotations

import re

from sweep.catalogs.layer_forms import LayerVariant
from sweep.catalogs.stacks import StackBook
from sweep.evidence.points import Point, Unpredictable
from sweep.plan.programs import Program, rule_of
from sweep.plan.shapes import ModelShape

# The traced block of a tower by its type in the models catalog.
_FAMILIES = {"qwen2_5_vl": "q25vis", "qwen3_vl": "q3vis"}
# Frozen blocks keep their input under checkpointing where it asks for a gradient, as these do.
_KEEPS_INPUTS_FROZEN = ("qwen2_5_vl",)
_IMAGES = re.compile(r"(?P<count>\d+)@(?P<width>\d+)x(?P<height>\d+)")


def tower_bytes(point: Point, shape: ModelShape, program: Program, book: StackBook) -> float:
    """Bytes the tower's blocks keep over one sequence's images (`images`: count@WIDTHxHEIGHT).

    A frozen tower keeps nothing, but for towers whose checkpointed blocks keep their inputs.
    Source: traced steps (hf-trace-2026).
    """
    tower = shape.counts.vision
    assert tower is not None
    found = _IMAGES.fullmatch(point["images"])
    if not found:
        raise Unpredictable(f"images: found {point['images']!r}, allowed COUNT@WIDTHxHEIGHT")
    patches = (int(found["width"]) // tower.patch) * (int(found["height"]) // tower.patch)
    patches *= int(found["count"])
    tower_type = shape.model.vision_type or ""
    checkpointed = program.checkpointing != "none"
    hidden = float(tower.block[0].in_features)
    if not point.flag("vision_trained") and not (
        checkpointed and tower_type in _KEEPS_INPUTS_FROZEN
    ):
        return 0.0
    if checkpointed:
        return 2.0 * hidden * patches * tower.depth
    rule = rule_of(program, book)
    assert rule is not None
    if tower_type not in _FAMILIES:
        raise Unpredictable(f"no layer form for the trained vision tower {tower_type}")
    forms = book.forms.resolve(
        LayerVariant(
            family=_FAMILIES[tower_type],
            method=program.method,
            weight_dtype=rule.weight_dtype,
            autocast=rule.autocast,
            adapter_dtype=rule.adapter_dtype,
            lora_target=program.lora_target,
            dropout=program.lora_dropout > 0.0,
        )
    )
    if forms is None:
        raise Unpredictable(f"no layer form for the trained vision tower {tower_type}")
    width = next(float(one.in_features) for one in reversed(tower.block) if one.role == "vision")
    values = {
        "T*h": hidden, "T*f": width, "T*nq": float(shape.model.vision_heads or 0), "T": 1.0,
        "T*r": float(program.lora_rank),
    }  # fmt: skip
    per_patch = sum(form * values.get(name, 0.0) for name, form in forms.keep.items())
    return per_patch * patches * tower.depth
