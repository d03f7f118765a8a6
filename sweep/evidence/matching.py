"""A point's words as a scenario the kernels evaluate, or the reason why it is none."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sweep.catalogs import Catalogs
from sweep.catalogs.models import Model
from sweep.catalogs.stacks import StackBook
from sweep.evidence.names import resolve_architecture
from sweep.evidence.point_book import point_book
from sweep.evidence.points import Point, Unpredictable
from sweep.evidence.program_words import program_of, trains_root
from sweep.evidence.stack_words import pipeline_micro_batches
from sweep.evidence.towers import tower_bytes
from sweep.kernels.memory import FIRST, LAST
from sweep.plan.layouts import Layout
from sweep.plan.shapes import ModelShape, model_shape
from sweep.scenario import Scenario

# Words by which a source says which stage of a pipeline it measured.
_STAGES = {"first pp stage": FIRST, "last pp stage": LAST}


@dataclass(frozen=True)
class Match:
    """A point as a scenario, with the stack catalog as it holds for that point.

    `stage` is the pipeline stage it was measured on (memory.FIRST or LAST), None the fullest.
    """

    scenario: Scenario
    book: StackBook
    stage: int | None = None


def settings_of(point: Point, catalogs: Catalogs) -> Mapping[str, str]:
    """What the catalog knows of a point's source beyond its columns (evidence_settings.csv)."""
    found: dict[str, str] = {}
    for row in catalogs.evidence_settings:
        if row.source_contains in point["source"]:
            found.setdefault(row.setting, row.value)
    return found


def match_point(point: Point, catalogs: Catalogs) -> Match:
    """The scenario of a training point; raises Unpredictable with the reason when there is none."""
    try:
        return _match(point, catalogs)
    except ValueError as error:
        raise Unpredictable(str(error)) from None


def _match(point: Point, catalogs: Catalogs) -> Match:
    model = resolve_architecture(point["model"], catalogs.models)
    if model is None:
        raise Unpredictable(f"no architecture in the catalog for model {point['model']!r}")
    settings = settings_of(point, catalogs)
    program = program_of(point, settings)
    book = point_book(point, program, model, settings, catalogs.stacks)
    layout = _layout(point)
    gpus = point.whole("gpu_count", 1)
    if gpus % (layout.tp * layout.pp * layout.cp):
        raise Unpredictable(f"{gpus} GPUs do not divide into tp x pp x cp")
    if gpus % (layout.pp * layout.ep):
        raise Unpredictable(f"{gpus} GPUs do not divide into pp x ep")
    dp = gpus // (layout.tp * layout.pp * layout.cp)
    pieces = pipeline_micro_batches(point)
    micro_batch = point.whole("micro_batch") // pieces
    accumulation = point.whole("grad_accum", 1) * pieces
    shape = _shape(point, model, program.method)
    scenario = Scenario(
        shape=shape,
        program=program,
        layout=layout,
        seq_len=point.whole("seq_len"),
        global_batch=micro_batch * accumulation * dp,
        micro_batch=micro_batch,
        gpus=gpus,
        gpus_per_node=min(gpus, 8),
        vision_kept_bytes=tower_bytes(point, shape, program, book) if shape.counts.vision else 0.0,
        vision_trained=point.flag("vision_trained"),
        root_trained=trains_root(point),
    )
    said = [stage for words, stage in _STAGES.items() if words in point["notes"].casefold()]
    return Match(scenario, book, said[0] if said else None)


# Stacks whose tensor parallelism is sequence parallel too unless one says otherwise.
_SEQUENCE_PARALLEL = ("torchtitan", "megatron")


def _layout(point: Point) -> Layout:
    tp, pp = point.whole("tp", 1), point.whole("pp", 1)
    cp, ep = point.whole("cp", 1), point.whole("ep", 1)
    words = point["parallelism"].casefold()
    said = "sequence parallel" in words or re.search(r"\bsp\b", words) is not None
    return Layout(tp, pp, cp, ep, tp > 1 and (said or point["stack"] in _SEQUENCE_PARALLEL))


def _shape(point: Point, model: Model, method: str) -> ModelShape:
    if point["stack"] == "litgpt" and model.tie_word_embeddings:
        # LitGPT keeps a head of its own.
        model = dataclasses.replace(model, tie_word_embeddings=False, published_total=None)
    shape = model_shape(model)
    if shape.counts.vision and not point["images"]:
        # A step on text alone: the published traces and measurements train the language model.
        shape = dataclasses.replace(shape, counts=dataclasses.replace(shape.counts, vision=None))
    if method != "full":
        # PEFT before 0.18 and the traced all-linear left fused experts alone.
        shape = dataclasses.replace(
            shape, counts=dataclasses.replace(shape.counts, experts_adapted=False)
        )
    return shape
