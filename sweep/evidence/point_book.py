"""The stack catalog as it holds for one point: its dtypes, release, kernels and extras."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from sweep.catalogs.models import Model
from sweep.catalogs.stacks import StackBook, parse_release
from sweep.evidence.points import Point, Unpredictable
from sweep.evidence.stack_words import is_recent_titan, pipeline_micro_batches, with_words
from sweep.plan.programs import Program, rule_key, rule_of


def point_book(
    point: Point, program: Program, model: Model, settings: Mapping[str, str], book: StackBook
) -> StackBook:
    """The catalog changed to what a point states beyond a program's words.

    Raises Unpredictable for a program whose stack has no rule or loss head.
    """
    if program.stack not in book.stacks:
        raise Unpredictable(f"stack {program.stack} is not in the catalog")
    if (program.stack, program.cross_entropy) not in book.loss_heads:
        raise Unpredictable(f"stack {program.stack} has no {program.cross_entropy} cross-entropy")
    book = _with_dtypes(point, program, book)
    book = _with_extras(book, point, program, model, settings)
    if release := _release(point, settings):
        book = _with_release(book, program, model, release)
    return book


_SMALL_ADAPTERS = dict.fromkeys(
    ("weight_bytes", "shard_weight_bytes", "grad_bytes", "state_dtype_bytes"), 2.0
)


def _with_dtypes(point: Point, program: Program, book: StackBook) -> StackBook:
    """The catalog with the dtype rule changed to what the point states beyond a program's words."""
    rule = rule_of(program, book)
    if rule is None:
        raise Unpredictable(
            f"stack {program.stack} has no rule for {program.method} at {program.precision}, "
            f"zero_stage {program.zero_stage}"
        )
    changed = rule
    if program.method == "qlora" and rule.kbit_prep and not _kbit_prepared(point):
        # Without k-bit preparation the residual stream, the norms and the head stay in 16 bits.
        lora = book.rules[program.stack, "lora", program.precision, program.zero_stage]
        changed = dataclasses.replace(lora, method="qlora", weight_dtype="nf4")
    elif program.method == "qlora" and rule.kbit_prep and "SFTTrainer" in point["framework"]:
        # TRL casts embedding and head back to 16 bits after the preparation; norms stay fp32.
        cast = {**rule.bytes, "frozen_bytes": 2.0, "head_copy_bytes": 0.0, "hidden_forward": 6.0}
        changed = dataclasses.replace(rule, bytes=cast)
    if program.method != "full" and point["adapter_dtype"] == "bf16":
        changed = dataclasses.replace(
            changed, adapter_dtype="bf16", bytes={**changed.bytes, **_SMALL_ADAPTERS}
        )
    if changed is rule:
        return book
    return book.with_rule(rule_key(program), changed)


def _release(point: Point, settings: Mapping[str, str]) -> tuple[int, ...] | None:
    """The release of Transformers a point ran, from its words or its source's; None if unknown."""
    words = f"{point['framework']} {point['notes']}".casefold()
    found = re.search(r"transformers[ =v]*(\d+(?:\.\d+)+)", words)
    text = found[1] if found else settings.get("transformers", "")
    return parse_release(text) if text else None


def _with_release(
    book: StackBook, program: Program, model: Model, release: tuple[int, ...]
) -> StackBook:
    """The catalog as it held for an older release of the stack's framework."""
    older = book.release(program.stack, program.cross_entropy, release)
    if older is None:
        return book
    key = (program.stack, program.cross_entropy)
    head = book.loss_heads[key]
    heads = {
        **book.loss_heads,
        key: dataclasses.replace(
            head, logit_forward=older.logit_forward, logit_backward=older.logit_backward
        ),
    }
    stack = book.stacks[program.stack]
    if older.kernels and model.model_type in older.model_types:
        kernels = "+".join(name for name in (stack.kernels, older.kernels) if name)
        stack = dataclasses.replace(stack, kernels=kernels)
    return dataclasses.replace(book, loss_heads=heads).with_stack(stack)


def _with_kernels(book: StackBook, program: Program, name: str) -> StackBook:
    """The catalog with one more change of kernels for the program's stack."""
    stack = book.stacks[program.stack]
    kernels = "+".join(one for one in (stack.kernels, name) if one)
    return book.with_stack(dataclasses.replace(stack, kernels=kernels))


def _with_extras(
    book: StackBook, point: Point, program: Program, model: Model, settings: Mapping[str, str]
) -> StackBook:
    """The catalog with what a point does beyond a program: masters, kept outputs, no resharding."""
    if point.flag("master_weights"):
        # fp32 masters and states; at the step fp32 copies of the gradients replace 16-bit ones.
        masters = {"master_bytes": 4.0, "state_dtype_bytes": 4.0}
        optimizer = book.optimizers[program.optimizer]
        optimizer = dataclasses.replace(
            optimizer,
            temp_weight_multiple=optimizer.temp_weight_multiple + 1.0,
            temp_tensor_bytes=optimizer.temp_tensor_bytes + 2.0,
        )
        book = dataclasses.replace(
            book.with_rule_bytes(rule_key(program), masters),
            optimizers={**book.optimizers, program.optimizer: optimizer},
        )
    if point.flag("keep_outputs"):
        head_key = (program.stack, program.cross_entropy)
        head = book.loss_heads[head_key]
        backward = head.logit_backward or book.rules[rule_key(program)].bytes["logit_backward"]
        head = dataclasses.replace(head, logit_backward=backward + 2.0)
        book = dataclasses.replace(book, loss_heads={**book.loss_heads, head_key: head})
    never_reshards = program.zero_stage == 3 and (
        point["zero_stage"] == "2" or not point.flag("reshard_after_forward", default=True)
    )
    if "padding" in point["attention"]:
        book = _with_kernels(book, program, "padding-mask")
    if point["checkpointing"] == "full_offload":
        book = _with_kernels(book, program, "offloaded-checkpoints")
    book = with_words(book, point, program, model, settings)
    if point["stack"] == "torchtitan" and point.whole("pp", 1) > 1:
        return _with_pipeline(book, point, program, model)
    if never_reshards:
        stack = book.stacks[program.stack]
        layers = float(model.num_hidden_layers)
        # What a prefetching stack counts beyond the layers themselves stays counted.
        prefetched = max(0.0, stack.constants["loss_gathered_layers"] - 2.0)
        constants = {
            **stack.constants,
            "loss_gathered_layers": layers + prefetched,
            "backward_gathered_layers": layers + prefetched,
        }
        book = book.with_stack(dataclasses.replace(stack, constants=constants))
    return book


def _with_pipeline(book: StackBook, point: Point, program: Program, model: Model) -> StackBook:
    """torchtitan's pipeline: weights stay gathered, gradients whole and in fp32, all step long.

    Source: its fsdp.py (reshard_after_forward only without a pipeline), torch's pipelining/stage.py
    (no gradient sync before the last micro-batch; of torch 2.6, where every stage keeps the outputs
    of all micro-batches until the step ends: on the first 2 x 2 bytes a hidden element).
    """
    stack = book.stacks[program.stack]
    layers = float(-(-model.num_hidden_layers // point.whole("pp", 1)))
    constants = {
        **stack.constants,
        # In gathered layers of 2 bytes an element: the weights, and the fp32 gradients beside them.
        "loss_gathered_layers": 3.0 * layers + 1.0,
        "backward_gathered_layers": layers + 1.0,
        "reduced_layers": layers + 1.0,
    }
    book = book.with_stack(dataclasses.replace(stack, constants=constants))
    if is_recent_titan(point):
        return book
    key = rule_key(program)
    outputs = 4.0 * pipeline_micro_batches(point)
    residual = book.rules[key].bytes["residual_bytes"] + outputs
    return book.with_rule_bytes(key, {"residual_bytes": residual})


def _kbit_prepared(point: Point) -> bool:
    if point["kbit_prep"]:
        return point.flag("kbit_prep")
    if point["kind"] == "traced":
        return False
    words = (point["notes"] + " " + point["framework"]).casefold()
    return not ("no fp32 upcast" in words or "autogptq" in words)
