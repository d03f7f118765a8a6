"""What a point's words say of its stack beyond the columns: compiled steps, releases, chunked heads."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from sweep.catalogs.models import Model
from sweep.catalogs.stacks import StackBook
from sweep.evidence.points import Point, Unpredictable
from sweep.plan.programs import Program, rule_key

# torchtitan wraps the embedding apart from norm and head, and compiles its loss with the model, since
# the middle of 2025; its points name a pull request or a month.
_TITAN_CHANGED_PULL = 1250
_TITAN_CHANGED_MONTH = 202505
# Its graph trainer traces the whole step and saves every matmul since this pull request; before, the
# loss ran outside the graph under tensor parallelism, where Python kept one more copy of the logits.
_TITAN_TRACED_PULL = 2788
_GRAPH_EAGER_LOGIT_BYTES = 16.0
_GRAPH_WORDS = (
    "graph trainer",
    "graph_trainer",
    "compiler toolkit",
    "compiler_toolkit",
    "simplefsdp",
)
_PULL = re.compile(r"\(#(\d+)\)")
_MONTH = re.compile(r"\b(20\d\d)(0[1-9]|1[0-2])\b|(20\d\d)(0[1-9]|1[0-2])_")
_WRITTEN_MONTH = re.compile(
    r"\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]* (20\d\d)\b", re.IGNORECASE
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
# Rows of logits LitGPT's chunked cross-entropy takes at a time.
_LITGPT_CHUNK_ROWS = 128

# Bytes a logit of torchtune's compiled LinearCrossEntropyLoss: one of eight chunks in fp32.
_COMPILED_CHUNK = 4.0 / 8.0


def _words(point: Point) -> str:
    return f"{point['source']} {point['notes']} {point['framework']}"


def is_compiled(point: Point) -> bool:
    """Whether a point's step ran under torch.compile."""
    words = _words(point).casefold()
    return "compile" in words and "no compile" not in words


def is_recent_titan(point: Point) -> bool:
    """Whether a torchtitan point is of the code since the middle of 2025."""
    words = _words(point)
    if found := _PULL.search(words):
        return int(found[1]) >= _TITAN_CHANGED_PULL
    if found := _MONTH.search(words):
        parts = [part for part in found.groups() if part]
        return int(parts[0] + parts[1]) >= _TITAN_CHANGED_MONTH
    if found := _WRITTEN_MONTH.search(words):
        month = _MONTHS.index(found[1][:3].casefold()) + 1
        return int(found[2]) * 100 + month >= _TITAN_CHANGED_MONTH
    return True


def is_graph_titan(point: Point) -> bool:
    """Whether a torchtitan point says that its step ran as one graph."""
    # Notes may name it as what a row is compared with.
    said = (point[name] for name in ("engine", "parallelism", "framework", "source"))
    words = " ".join(said).casefold()
    return any(word in words for word in _GRAPH_WORDS)


def _is_traced_titan(point: Point) -> bool:
    """Whether a graph step is of the code that traces all of it (the default since 2026-04)."""
    found = _PULL.search(_words(point))
    return found is not None and int(found[1]) >= _TITAN_TRACED_PULL


def pipeline_micro_batches(point: Point) -> int:
    """Micro-batches a pipeline splits a GPU's batch into: torchtitan's schedules do it themselves.

    One sequence each since the middle of 2025, before as many as there are stages. Raises
    Unpredictable where those do not divide the batch.
    """
    pp, batch = point.whole("pp", 1), point.whole("micro_batch")
    if point["stack"] != "torchtitan" or pp == 1:
        return 1
    if is_recent_titan(point):
        return batch
    words = f"{_words(point)} {point['parallelism']}".casefold()
    stages = min(batch, 2 * pp if "interleaved" in words else pp)
    if batch % stages:
        raise Unpredictable(f"a batch of {batch} does not divide into {stages} micro-batches")
    return stages


def compiles_loss(point: Point) -> bool:
    """Whether a torchtitan point's loss was compiled, which makes one pass over the logits."""
    return is_compiled(point) and is_recent_titan(point)


def with_words(
    book: StackBook, point: Point, program: Program, model: Model, settings: Mapping[str, str]
) -> StackBook:
    """The catalog as it holds for a point, from what its words and its source say of its stack."""
    stack = book.stacks[program.stack]
    kernels = [name for name in (stack.kernels,) if name]
    constants = dict(stack.constants)
    heads = dict(book.loss_heads)
    key = (program.stack, program.cross_entropy)
    if "torchtitan-graph" in stack.lineage:
        if _is_traced_titan(point):
            kernels = ["titan-graph-all" if program.checkpointing == "selective" else "titan-graph"]
        elif program.stack == "torchtitan-graph-tp":
            logits = dict.fromkeys(("logit_forward", "logit_backward"), _GRAPH_EAGER_LOGIT_BYTES)
            book = book.with_rule_bytes(rule_key(program), logits)
    elif "torchtitan" in stack.lineage:
        if is_compiled(point):
            kernels.append("compiled-tp" if program.stack == "torchtitan-tp" else "compiled")
        if not is_recent_titan(point):
            # Embedding, norm and head were one unit: twice the elements gathered and buffered.
            constants["root_gather_copies"] = 2.0
    elif "litgpt" in stack.lineage:
        if model.num_key_value_heads == model.num_attention_heads:
            kernels.append("mha")
        if "2023" in point["source"]:
            kernels.append("litgpt-2023")
        # One chunk's logits and their gradients come on top of the whole logits.
        head = heads[key]
        share = 1.0 + _LITGPT_CHUNK_ROWS / point.whole("seq_len")
        heads[key] = dataclasses.replace(
            head,
            logit_forward=(head.logit_forward or 0.0) * share,
            logit_backward=(head.logit_backward or 0.0) * share,
        )
    if "torchtune" in stack.lineage:
        if is_compiled(point) or settings.get("compile") == "y":
            if program.checkpointing == "none":
                kernels.append("torchtune-compiled")
            if program.cross_entropy == "chunked":
                heads[key] = dataclasses.replace(
                    heads[key], logit_forward=_COMPILED_CHUNK, logit_backward=_COMPILED_CHUNK
                )
        if program.cross_entropy == "chunked" and program.method == "full":
            # The head's gradient and the chunk's share of it, 2 bytes each.
            gradient = {"head_copy_bytes": 4.0, "logit_grad": 0.0, "head_grad_bytes": 0.0}
            book = book.with_rule_bytes(rule_key(program), gradient)
    if "optimizer_in_bwd" in point["optimizer_as_stated"].casefold():
        # Each gradient is used and freed as it comes; none waits for a step.
        book = book.with_rule_bytes(rule_key(program), {"grad_bytes": 0.0})
        constants["keeps_gradients"] = 0.0
    changed = dataclasses.replace(stack, kernels="+".join(kernels), constants=constants)
    return dataclasses.replace(book, loss_heads=heads).with_stack(changed)
