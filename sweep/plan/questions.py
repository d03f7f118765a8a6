"""Questions: the models, lengths and axis values a spec asks about, as workloads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sweep.catalogs.models import Model, resolve_model
from sweep.errors import PlanError, nearest
from sweep.plan.programs import PROGRAM_COLUMNS
from sweep.plan.shapes import ModelShape
from sweep.spec import Spec, is_model_path

LAYOUT_COLUMNS = ("tp", "pp", "cp", "ep", "sequence_parallel")
_AXES_ONLY = ("method", "seq_len")
# Adapter columns say nothing about full training, nor quantisation about an unquantised base.
_ADAPTER_COLUMNS = ("lora_rank", "lora_target", "lora_dropout")


@dataclass(frozen=True)
class Workload:
    """Everything asked but the amount of data; `axes` are the axis values beside the named fields."""

    model: str
    method: str
    seq_len: int
    images_per_sample: int
    image_size: str | None
    image_tokens: int
    vision_flop: float
    axes: tuple[tuple[str, Any], ...]

    def fixed(self, columns: Sequence[str]) -> dict[str, Any]:
        """The axis values among some columns."""
        return {name: value for name, value in self.axes if name in columns}


def choose_models(spec: Spec, catalog: Mapping[str, Model]) -> dict[str, Model]:
    """The models a spec names, in its order: globs, keys, ids, or paths of a config.json."""
    chosen: dict[str, Model] = {}
    for entry in spec.axes["model"]:
        for model in _models_of(entry, spec, catalog):
            if chosen.setdefault(model.key, model) != model:
                raise PlanError(
                    f"{spec.path}: models: found two different models named {model.key}; rename the "
                    "folder of one of them"
                )
    return chosen


def _models_of(entry: str, spec: Spec, catalog: Mapping[str, Model]) -> list[Model]:
    if is_model_path(entry):
        from sweep.catalogs.hf_config import model_from_config

        return [model_from_config(Path(entry))]
    resolved = resolve_model(entry, catalog)
    if resolved is not None:
        return [resolved]
    folded = entry.casefold()
    found = [model for key, model in catalog.items() if fnmatchcase(key.casefold(), folded)]
    if not found:
        known = [*catalog, *(model.hf_id for model in catalog.values() if model.hf_id)]
        close = nearest(entry, known)
        hint = f"; did you mean {close!r}?" if close else ""
        raise PlanError(
            f"{spec.path}: models: found {entry!r}, which names no model of the catalog{hint}; "
            "see `sweep catalog list models`, or give the path of its config.json"
        )
    return found


def named_model(
    key: str, entries: Sequence[str], catalog: Mapping[str, Model], folder: Path = Path()
) -> Model | None:
    """The model of a key: from a config.json among a spec's entries, or from the catalog.

    Relative entries start at `folder`; a run's manifest holds them without the "./" of a spec.
    """
    for entry in entries:
        path = folder / entry
        if path.is_file() or (path / "config.json").is_file():
            from sweep.catalogs.hf_config import model_from_config

            model = model_from_config(path)
            if model.key == key:
                return model
    return catalog.get(key)


def image_tokens(shape: ModelShape, size: str) -> tuple[int, int]:
    """Patches of one image and the decoder tokens they become; size like '1008x980' [pixels]."""
    vision = shape.counts.vision
    assert vision is not None
    width, height = (int(part) for part in size.split("x"))
    patches = (width // vision.patch) * (height // vision.patch)
    return patches, patches // vision.merge


def vision_forward_flop(shape: ModelShape, patches: int) -> float:
    """FLOP of the tower's forward pass over so many patches: 2 x elements of its matrices.

    Attention among patches is left out (windowed in most towers; under a tenth of the tower's work).
    """
    vision = shape.counts.vision
    assert vision is not None
    block = sum(linear.weight_elements for linear in vision.block)
    projector = sum(linear.weight_elements for linear in vision.projector)
    return 2.0 * patches * (vision.depth * block + projector / vision.merge)


def _images(spec: Spec, shape: ModelShape) -> Iterator[tuple[int, str | None, int, float]]:
    """(images per sample, their size, tokens, tower FLOP per sequence) for one model."""
    if shape.counts.vision is None:
        yield 0, None, 0, 0.0
        return
    seen = set()
    for count in spec.values("images_per_sample"):
        for size in spec.values("image_size"):
            key = (count, size if count else "")
            if key in seen:
                continue
            seen.add(key)
            patches, tokens = image_tokens(shape, size)
            shown = size if count else None
            yield count, shown, count * tokens, count * vision_forward_flop(shape, patches)


def _other_axes(spec: Spec, method: str) -> list[tuple[tuple[str, Any], ...]]:
    """Combinations of the remaining axes that mean something for a method."""
    columns = (*PROGRAM_COLUMNS, *LAYOUT_COLUMNS, "micro_batch", "global_batch")
    used = []
    for column in columns:
        if column not in spec.axes:
            continue
        if column in _ADAPTER_COLUMNS and method == "full":
            continue
        if column == "quantization" and method != "qlora":
            continue
        used.append([(column, value) for value in spec.axes[column]])
    return [tuple(combination) for combination in itertools.product(*used)]


def list_workloads(spec: Spec, shapes: Mapping[str, ModelShape]) -> list[Workload]:
    """Every workload of a spec; raises PlanError when lengths and images leave none."""
    for column in _AXES_ONLY:
        if column in spec.knobs:
            raise PlanError(
                f"{spec.path}: knobs: found {column}s; what is asked can only stand under [axes]"
            )
    found = []
    for key, shape in shapes.items():
        for method, seq_len in itertools.product(spec.axes["method"], spec.axes["seq_len"]):
            for images, size, tokens, flop in _images(spec, shape):
                if tokens >= seq_len:
                    continue
                for axes in _other_axes(spec, method):
                    found.append(Workload(key, method, seq_len, images, size, tokens, flop, axes))
    if not found:
        raise PlanError(
            f"{spec.path}: no question is left: the images of every sample need more tokens than "
            "seq_lens offers"
        )
    return found
