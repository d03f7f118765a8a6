"""Training stacks as data: every fault with its message, derived layer forms, and published bytes."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweep.catalogs import Catalogs, load_catalogs
from sweep.catalogs.check import check_catalogs
from sweep.catalogs.folder import shipped_folder
from sweep.catalogs.form_book import FormBook
from sweep.catalogs.layer_forms import (
    FEATURES,
    LayerForms,
    LayerVariant,
    load_layer_forms,
    parse_form,
)
from sweep.catalogs.stack_columns import CONSTANTS
from sweep.catalogs.stacks import StackBook, load_stacks
from sweep.errors import CatalogError
from sweep.plan.cases import variant_of
from sweep.plan.layouts import Layout
from sweep.plan.programs import Program, list_programs
from sweep.plan.shapes import feature_values, model_shape
from sweep.scenario import Evaluation, Scenario, evaluate_scenario

Row = dict[str, str]
FILES = (
    "stacks.csv", "stack_constants.csv", "dtype_rules.csv", "optimizers.csv", "loss_heads.csv",
    "architectures.csv", "layer_families.csv", "efficiencies.csv", "layer_forms.csv",
)  # fmt: skip


@pytest.fixture(scope="module")
def book(catalogs: Catalogs) -> StackBook:
    return catalogs.stacks


def rewrite(folder: Path, name: str, change: Callable[[list[Row]], list[Row]]) -> None:
    """A catalog file of the shipped ones with its rows changed."""
    with (shipped_folder() / name).open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        rows = list(reader)
    with (folder / name).open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, reader.fieldnames or ())
        writer.writeheader()
        writer.writerows(change(rows))


def setting(where: Row, **to: str) -> Callable[[list[Row]], list[Row]]:
    """Change the first row that has these values; there must be one."""

    def change(rows: list[Row]) -> list[Row]:
        found = next(row for row in rows if where.items() <= row.items())
        found.update(to)
        return rows

    return change


def without(**where: str) -> Callable[[list[Row]], list[Row]]:
    def change(rows: list[Row]) -> list[Row]:
        kept = [row for row in rows if not where.items() <= row.items()]
        assert len(kept) < len(rows)
        return kept

    return change


def repeated(where: Row, **to: str) -> Callable[[list[Row]], list[Row]]:
    """The first row that has these values once more, changed."""

    def change(rows: list[Row]) -> list[Row]:
        return [*rows, {**next(row for row in rows if where.items() <= row.items()), **to}]

    return change


KEPT = {"family": "llama", "phase": "keep", "checkpointing": "none", "method": "full"}

# -- every fault with its message ----------------------------------------------------------------

FAULTS = {
    "a constant is missing": (
        "stack_constants.csv",
        without(stack="hf", name="kernel_s"),
        "stack hf: found no kernel_s, allowed a row in stack_constants.csv",
    ),
    "every constant of a stack is missing": (
        "stack_constants.csv",
        without(stack="megatron"),
        "stack megatron: found no context_bytes",
    ),
    "a constant in another unit": (
        "stack_constants.csv",
        setting({"stack": "hf", "name": "context_bytes"}, unit="s"),
        "stack_constants.csv:2, unit: unit: found 's', allowed bytes",
    ),
    "a unit there is not": (
        "stack_constants.csv",
        setting({"stack": "hf", "name": "context_bytes"}, unit="GiB"),
        "stack_constants.csv:2, unit: value: found 'GiB', allowed one of bytes, bytes/s",
    ),
    "a constant there is not": (
        "stack_constants.csv",
        setting({"stack": "hf", "name": "kernel_s"}, name="kernels_s"),
        "(did you mean 'kernel_s'?)",
    ),
    "a negative constant": (
        "stack_constants.csv",
        setting({"stack": "hf", "name": "latency_s"}, value="-1e-5"),
        "value: value: found '-1e-5', allowed 0 to 1e+13",
    ),
    "a constant twice": (
        "stack_constants.csv",
        repeated({"stack": "hf", "name": "latency_s"}),
        "key: found ('hf', 'latency_s') again",
    ),
    "an optimizer there is not": (
        "stacks.csv",
        setting({"stack": "megatron"}, optimizers="adamw-fussed"),
        "stacks.csv:3, optimizers: word: found 'adamw-fussed', allowed adamw-fused, adamw-foreach",
    ),
    "a ZeRO stage there is not": (
        "dtype_rules.csv",
        setting({"stack": "hf", "method": "lora"}, zero_stages="0;4"),
        "zero_stages: word: found '4', allowed 0, 1, 2, 3",
    ),
    "a precision there is not": (
        "dtype_rules.csv",
        setting({"stack": "hf", "precision": "bf16-mixed"}, precision="bf16-mix"),
        (
            "precision: value: found 'bf16-mix', allowed one of bf16, bf16-mixed, fp16-mixed, fp32 "
            "(did you mean 'bf16-mixed'?)"
        ),
    ),
    "bytes an element cannot have": (
        "dtype_rules.csv",
        setting({"stack": "hf", "method": "full"}, grad_bytes="2048"),
        "grad_bytes: value: found '2048', allowed 0 to 64 bytes",
    ),
    "an optimizer's states without a number": (
        "optimizers.csv",
        setting({"optimizer": "lion"}, state_dtype_multiple=""),
        "state_dtype_multiple: value: found nothing, allowed a value (the column is required)",
    ),
    "a loss head there is not": (
        "loss_heads.csv",
        setting({"stack": "hf", "cross_entropy": "fused"}, cross_entropy="liger"),
        "cross_entropy: value: found 'liger', allowed one of plain, fused, fused-linear",
    ),
    "a share above one": (
        "efficiencies.csv",
        setting({"gpu": "arch:Hopper"}, matmul_share="70"),
        "matmul_share: value: found '70', allowed 0.05 to 1 share of dense peak",
    ),
    "an architecture of an unknown family": (
        "architectures.csv",
        setting({"model_type": "mistral", "kind": "dense"}, family="lama"),
        "architectures.csv:3, family: family: found lama, allowed llama, qwen3",
    ),
    "a family like an unknown one": (
        "layer_families.csv",
        setting({"family": "qwen3"}, like="lama"),
        "layer_families.csv:3, like: family: found lama, allowed llama, qwen3",
    ),
    "forms of an unknown family": (
        "layer_forms.csv",
        repeated(KEPT, family="lama"),
        "layer_forms.csv: family: found lama, allowed llama, qwen3",
    ),
    "a feature there is not": (
        "layer_forms.csv",
        setting(KEPT, form="16 T*h + 2 T*q"),
        "form: form: found unknown feature 'T*q', allowed terms like '16 T*h'",
    ),
    "a coefficient that is no number": (
        "layer_forms.csv",
        setting(KEPT, form="16 T*h + two T*f"),
        "form: form: found could not convert string to float: 'two', allowed terms like",
    ),
    "two keep forms": (
        "layer_forms.csv",
        repeated(KEPT),
        "keep forms: found 2, allowed exactly one",
    ),
    "no keep form": (
        "layer_forms.csv",
        without(**KEPT, weight_dtype="bf16", autocast="n", attention="flash", padding_mask="n"),
        "keep forms: found 0, allowed exactly one",
    ),
    "a phase there is not": (
        "layer_forms.csv",
        setting(KEPT, phase="kept"),
        "phase: value: found 'kept', allowed one of keep, forward, backward, cached (did you mean 'keep'?)",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The stack catalogs, to be spoilt."""
    for name in FILES:
        shutil.copy(shipped_folder() / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_where_it_stands(folder: Path, fault: str) -> None:
    name, change, message = FAULTS[fault]
    rewrite(folder, name, change)
    _, problems = load_stacks((folder,))
    text = "\n".join(str(problem) for problem in problems)
    assert message in text
    assert str(folder) in text or "layer_forms.csv" in message


def test_the_shipped_stacks_have_no_fault() -> None:
    book, problems = load_stacks((shipped_folder(),))
    assert problems == []
    assert set(book.stacks) >= {
        "hf", "hf-fsdp1", "hf-deepspeed", "hf-fused", "hf-liger", "unsloth", "torchtune", "litgpt",
        "torchtitan", "torchtitan-tp", "megatron",
    }  # fmt: skip
    for stack in book.stacks.values():
        assert stack.constants.keys() == CONSTANTS.keys()


@pytest.mark.parametrize("name", FILES[:-1])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    _, problems = load_stacks((folder,))
    assert any(f"file {name}: found no such file" in str(problem) for problem in problems)


def test_faults_reach_whoever_loads_or_checks_a_folder(tmp_path: Path) -> None:
    rewrite(tmp_path, "stack_constants.csv", lambda rows: [{**rows[0], "unit": "s"}])
    rewrite(tmp_path, "layer_forms.csv", lambda rows: [{**rows[0], "form": "8 T*q"}])
    for wanted in ("unit: unit: found 's', allowed bytes", "found unknown feature 'T*q'"):
        assert any(wanted in str(problem) for problem in check_catalogs(tmp_path))
        with pytest.raises(CatalogError, match=wanted.replace("*", r"\*")):
            load_catalogs([tmp_path])


def test_a_users_row_takes_the_place_of_the_shipped_one(
    tmp_path: Path, catalogs: Catalogs, book: StackBook
) -> None:
    rewrite(
        tmp_path,
        "stack_constants.csv",
        lambda rows: [{**row, "value": "3e9"} for row in rows if row["name"] == "context_bytes"],
    )
    rewrite(
        tmp_path,
        "layer_forms.csv",
        lambda rows: [
            {**row, "form": "1 T*h", "basis": "mine"}
            for row in rows
            if row["family"] == "llama" and row["phase"] == "keep"
        ][:1],
    )
    mine = load_catalogs([tmp_path]).stacks
    for key, stack in mine.stacks.items():
        theirs = dict(book.stacks[key].constants)
        assert stack.constants == theirs | {"context_bytes": 3e9}
    shipped, problems = load_layer_forms((shipped_folder(),))
    overlaid, more = load_layer_forms((shipped_folder(), tmp_path))
    assert not problems
    assert not more
    changed = [variant for variant in shipped if overlaid[variant] != shipped[variant]]
    assert [overlaid[variant].keep for variant in changed] == [{"T*h": 1.0}]
    # More bytes of context are more bytes of the device, and nothing else.
    before = evaluate(catalogs, "Qwen2.5-0.5B").quantities
    after = evaluate(
        dataclasses.replace(catalogs, stacks=dataclasses.replace(book, stacks=mine.stacks)),
        "Qwen2.5-0.5B",
    ).quantities
    more_bytes = 3e9 - book.stacks["hf"].constants["context_bytes"]
    assert after["device"] - before["device"] == pytest.approx(more_bytes)
    assert after["allocated"] == before["allocated"]


# -- forms ---------------------------------------------------------------------------------------


def test_forms_are_read_as_written() -> None:
    assert parse_form("16 T*h - 8 T*f + 2.5 h*f + 3") == {
        "T*h": 16.0, "T*f": -8.0, "h*f": 2.5, "1": 3.0
    }  # fmt: skip
    assert parse_form("- 4 T*h + 1 T*h") == {"T*h": -3.0}
    with pytest.raises(ValueError, match="unknown feature 'T\\*x'"):
        parse_form("2 T*x")


def test_every_name_of_a_feature_has_a_value(catalogs: Catalogs) -> None:
    """With one token, one position and rank 1, a feature is the product of the model's widths."""
    (group,) = model_shape(catalogs.models["Llama-3-8B"]).groups
    values = dict(zip(FEATURES, feature_values(group.values), strict=True))
    assert values["T*h"] == values["h"] == 4096
    assert values["T*hq"] == 32 * 128
    assert values["T*hkv"] == 8 * 128
    assert values["h*f"] == 4096 * 14336
    assert values["T*s*nq"] == 32
    assert values["r*hkv"] == 1024
    assert values["1"] == 1
    assert values["T*k*fe"] == values["E*h"] == 0


GATED = LayerVariant("gated")
PLAIN = LayerVariant("plain")
SPARSE = LayerVariant("sparse")
ADAPTED: dict[str, Any] = {"method": "lora", "adapter_dtype": "fp32", "lora_target": "all-linear"}


@pytest.fixture
def small_book() -> FormBook:
    """A reference family traced four ways, and two that were traced in full training alone."""

    def forms(keep: str, *backward: str) -> LayerForms:
        return LayerForms(parse_form(keep), (), tuple(map(parse_form, backward)), "traced")

    return FormBook(
        {
            GATED: forms("10 T*h + 4 T*f", "6 T*f + 2 h*f", "8 T*h"),
            GATED._replace(**ADAPTED): forms("14 T*h + 6 T*f + 4 r*f", "5 T*f"),
            GATED._replace(checkpointing="full"): forms("2 T*h", "20 T*h + 9 T*f", "7 T*h"),
            GATED._replace(checkpointing="full", **ADAPTED): forms("3 T*h", "21 T*h + 9 T*f"),
            PLAIN: forms("8 T*h + 2 T*f"),
            SPARSE: forms("9 T*h + 3 T*k*fe", "1 T*k*fe"),
        },
        {"gated": "gated", "plain": "plain", "sparse": "experts", "lost": "gated"},
        {"gated": "", "plain": "gated", "sparse": "gated", "lost": "gated"},
    )


def test_a_traced_variant_is_given_as_traced(small_book: FormBook) -> None:
    found = small_book.resolve(GATED)
    assert found is not None
    assert found.keep == {"T*h": 10.0, "T*f": 4.0}
    assert found.basis == "traced"
    assert small_book.resolve(GATED) is found
    assert small_book.families == {"gated", "plain", "sparse"}


def test_a_missing_method_follows_the_change_of_the_family_it_is_like(
    small_book: FormBook,
) -> None:
    # LoRA makes the reference keep 4 T*h + 2 T*f + 4 r*f more. A plain MLP has two matrices for the
    # reference's three, so two thirds of what hangs on their ranks.
    found = small_book.resolve(PLAIN._replace(**ADAPTED))
    assert found is not None
    assert found.basis == "derived by gated's change"
    assert found.keep == {"T*h": 12.0, "T*f": 4.0, "r*f": pytest.approx(8 / 3)}
    assert found.backward == ({"T*f": 5.0},)
    # k experts see a token, and shared ones beside them; experts have no adapters.
    found = small_book.resolve(SPARSE._replace(**ADAPTED))
    assert found is not None
    assert found.keep == {"T*h": 13.0, "T*k*fe": 5.0, "T*fs": 2.0}
    assert found.backward == ({"T*k*fe": 1.0},), "its own working set, where one was traced"


def test_recomputing_takes_the_like_ones_working_set_shifted_by_what_is_kept(
    small_book: FormBook,
) -> None:
    found = small_book.resolve(PLAIN._replace(checkpointing="full"))
    assert found is not None
    assert found.basis == "derived from gated's working set"
    assert found.keep == {"T*h": 2.0}
    # Kept by the plain layer less kept by the reference: -2 T*h - 2 T*f, while all of it is live.
    assert found.backward == ({"T*h": 18.0, "T*f": 7.0}, {"T*h": 7.0})


def test_selective_keeps_what_the_policy_says(small_book: FormBook) -> None:
    found = small_book.resolve(GATED._replace(checkpointing="selective"))
    assert found is not None
    assert found.basis == "derived: selective-op policy"
    policy = {"T*h": 4.0, "T*hq": 4.0, "T*hkv": 2.0, "T*f": 2.0, "T*nq": 4.0}
    assert found.keep == policy
    extra = {**policy, "T*h": 2.0}
    # What is kept need not be rebuilt: the working set with all of the layer live is smaller by it.
    assert found.backward[0] == {
        "T*h": 18.0, "T*f": 7.0, **{name: -extra[name] for name in ("T*hq", "T*hkv", "T*nq")}
    }  # fmt: skip
    assert found.backward[1] == {"T*h": 7.0}


def test_nothing_is_derived_from_nothing(small_book: FormBook, book: StackBook) -> None:
    assert small_book.resolve(LayerVariant("nowhere")) is None
    assert small_book.resolve(LayerVariant("lost")) is None, "in the catalog, but never traced"
    for checkpointing in ("none", "selective", "full"):
        assert book.forms.resolve(LayerVariant("nonesuch", checkpointing=checkpointing)) is None


PROGRAM_VALUES: dict[str, tuple[Any, ...]] = {
    "stack": ("hf", "megatron"),
    "precision": ("bf16", "bf16-mixed", "fp32"),
    "quantization": ("nf4-double",),
    "lora_rank": (16,),
    "lora_target": ("attention-qv", "attention", "all-linear"),
    "lora_dropout": (0.0, 0.05),
    "checkpointing": ("none", "selective", "full"),
    "attention": ("eager", "flash"),
    "cross_entropy": ("plain",),
    "optimizer": ("adamw-fused",),
    "zero_stage": (0, 3),
    "offload": ("none",),
}


def test_every_layer_of_every_model_has_forms_under_every_program(
    catalogs: Catalogs, book: StackBook
) -> None:
    programs = [
        program
        for method in ("full", "lora", "qlora")
        for program in list_programs(method, PROGRAM_VALUES, book)
    ]
    traced, _ = load_layer_forms((shipped_folder(),))
    # One model for each of the families stands for the others.
    examples = {}
    for model in catalogs.models.values():
        for group in model_shape(model).groups:
            key = (model.model_type, model.transformers_class, group.group.kind)
            examples.setdefault(key, (model_shape(model), group.group))
    seen: dict[LayerVariant, str] = {}
    for (shape, group), program in itertools.product(examples.values(), programs):
        variant = variant_of(shape, group, program, 4096, book)
        if variant in seen:
            continue
        found = book.forms.resolve(variant)
        assert found is not None, variant
        assert found.keep, variant
        assert found.backward, variant
        assert found.keep.get("T*h", 0.0) > 0.0, variant
        seen[variant] = found.basis
        if variant not in traced:
            assert found.basis.startswith("derived"), (variant, found.basis)
    assert len(seen) > 2000
    assert {"traced", "derived: selective-op policy"} <= set(seen.values())
    assert any(variant.family == "gpt2" and variant.method == "lora" for variant in seen)


def test_opt_lora_on_attention_was_not_traced_and_yet_has_forms(book: StackBook) -> None:
    full = LayerVariant("opt")
    adapted = full._replace(method="lora", adapter_dtype="bf16", lora_target="attention")
    traced, _ = load_layer_forms((shipped_folder(),))
    assert full in traced
    assert adapted not in traced
    found, known = book.forms.resolve(adapted), book.forms.resolve(full)
    assert found is not None
    assert known is not None
    assert found.basis == "derived by llama's change"
    assert found.keep["T*h"] > 0.0
    # Frozen weights need no input of theirs for a gradient, adapters a copy of it instead.
    assert found.keep != known.keep
    assert any(name.startswith(("T*r", "r*")) for name in found.keep)


def test_the_family_of_a_layer_goes_from_the_particular_to_the_general(book: StackBook) -> None:
    some = dataclasses.replace(
        book,
        family_of={
            ("llama", "*", "dense"): "llama",
            ("llama", "OddForCausalLM", "dense"): "olmo2",
            ("Odd-7B", "*", "dense"): "opt",
        },
    )
    assert some.family("hf", "Some-7B", "llama", "LlamaForCausalLM", "dense") == "llama"
    assert some.family("hf", "Some-7B", "llama", "OddForCausalLM", "dense") == "olmo2"
    assert some.family("hf", "Odd-7B", "llama", "OddForCausalLM", "dense") == "opt"
    assert some.family("hf", "Some-7B", "llama", "LlamaForCausalLM", "moe") is None
    # Fused stacks have layers of their own.
    assert some.family("megatron", "Some-7B", "llama", "LlamaForCausalLM", "dense") == "te-gated"
    assert some.family("megatron", "Odd-7B", "llama", "", "dense") == "te-plain"


def test_sustained_rates_go_from_the_gpu_to_its_kind_to_any(
    catalogs: Catalogs, book: StackBook
) -> None:
    gpus = catalogs.gpus
    assert book.efficiency(gpus["B200-SXM-180GB"]) is book.efficiencies["B200-SXM-180GB"]
    assert book.efficiency(gpus["H100-SXM-80GB"]) is book.efficiencies["H100-SXM-80GB"]
    assert book.efficiency(gpus["GH200-96GB"]) is book.efficiencies["arch:Hopper"]
    odd = dataclasses.replace(gpus["L4"], key="X1", arch="Unheard-of")
    assert book.efficiency(odd) is book.efficiencies["arch:*"]
    for gpu in gpus.values():
        share = book.efficiency(gpu)
        assert 0.0 < share.matmul_share <= 1.0
        # The first FlashAttention is no faster than the second, nor that than the best there is.
        assert 0.0 < share.attention_fa1_share <= share.attention_fa2_share
        assert share.attention_fa2_share <= share.attention_share <= 1.0
        for has, one in ((gpu.fp8, share.matmul8_share), (gpu.fp4_flop_per_s, share.matmul4_share)):
            assert one is not None or not has, gpu.key
    for stack in book.stacks.values():
        assert stack.constants["attention_kernel"] in (0, 1, 2)
        assert stack.constants["virtual_stages"] >= 1


def test_a_working_set_releases_no_more_than_its_layer_keeps(catalogs: Catalogs) -> None:
    peaks = [
        evaluate(
            catalogs, "Falcon-180B", zero_stage=3, gpus=2, micro_batch=micro, seq_len=512,
            cross_entropy="fused-linear", optimizer="adafactor",
        ).quantities["allocated"]
        for micro in (1, 2, 4, 8)
    ]  # fmt: skip
    assert peaks == sorted(peaks)


def test_selective_recomputation_keeps_no_more_than_none(catalogs: Catalogs) -> None:
    kept = [
        evaluate(
            catalogs, "Falcon-7B", method="lora", precision="bf16-mixed", lora_rank=16,
            lora_target="attention-qv", checkpointing=mode, seq_len=512,
        ).quantities["kept"]
        for mode in ("full", "selective", "none")
    ]  # fmt: skip
    assert kept == sorted(kept)


# -- published figures ---------------------------------------------------------------------------


def evaluate(
    catalogs: Catalogs,
    model: str,
    *,
    gpus: int = 1,
    seq_len: int = 1,
    micro_batch: int = 1,
    tp: int = 1,
    **changes: Any,
) -> Evaluation:
    """A step with one micro-batch; full training in pure bf16 unless said otherwise."""
    program = Program(
        method="full", stack="hf", precision="bf16", quantization="none", lora_rank=0,
        lora_target="none", lora_dropout=0.0, checkpointing="none", attention="flash",
        cross_entropy="plain", optimizer="adamw-fused", zero_stage=0, offload="none",
    )._replace(**changes)  # fmt: skip
    shape = model_shape(catalogs.models[model])
    dp = gpus // tp
    scenario = Scenario(
        shape, program, Layout(tp, 1, 1, 1, False), seq_len, micro_batch * dp, micro_batch, gpus, 8
    )
    return evaluate_scenario(scenario, catalogs.stacks)


LLAMA = 8_030_261_248


@pytest.mark.parametrize(
    ("precision", "optimizer", "per_parameter"),
    [
        ("bf16", "adamw-fused", 8.0),  # weight, gradient and two states in bf16
        ("bf16", "adamw-foreach", 10.0),  # and a copy of the weights while the step runs
        ("bf16-mixed", "adamw-fused", 16.0),  # the same four in fp32
        ("fp32", "adamw-fused", 16.0),
        ("bf16", "sgd", 4.0),
        ("bf16", "sgd-momentum", 6.0),
        ("bf16", "lion", 6.0),
        ("bf16", "adamw-8bit", 6.03125),  # two 8-bit states and their block scales
    ],
)
def test_bytes_of_a_parameter_over_a_whole_traced_step(
    catalogs: Catalogs, precision: str, optimizer: str, per_parameter: float
) -> None:
    found = evaluate(catalogs, "Llama-3-8B", precision=precision, optimizer=optimizer)
    peak = found.quantities["allocated"]
    assert peak / LLAMA == pytest.approx(per_parameter, rel=1e-4)


def test_autocast_holds_a_16_bit_copy_of_every_matrix_in_forward(catalogs: Catalogs) -> None:
    """Weights and states in fp32 are 12 bytes a parameter, the copies of the matrices 2 more."""
    q = evaluate(catalogs, "Llama-3-8B", precision="bf16-mixed").quantities
    embedding_and_norms = 128_256 * 4096 + 65 * 4096
    copies = 2 * (LLAMA - embedding_and_norms)
    assert q["resident"] == 12 * LLAMA
    assert q["kept"] + q["head_copy"] == pytest.approx(copies, rel=2e-3)
    # Recomputing layers, they are gone when backward begins.
    full = evaluate(catalogs, "Llama-3-8B", precision="bf16-mixed", checkpointing="full").quantities
    assert full["kept_backward"] < 0.01 * full["kept"]


def test_adafactor_holds_four_fp32_copies_of_the_largest_tensor(catalogs: Catalogs) -> None:
    found = evaluate(catalogs, "Llama-3-8B", optimizer="adafactor")
    embedding = 128_256 * 4096
    assert found.case.largest_trained == embedding
    # Its states are rows and columns: under a thousandth of two bytes a parameter.
    assert found.quantities["optimizer"] < 0.002 * LLAMA
    assert found.quantities["allocated"] == pytest.approx(4 * LLAMA + 16 * embedding, rel=1e-3)


@pytest.mark.parametrize(
    ("quantization", "linear_bytes"), [("nf4", 0.5625), ("nf4-double", 0.515869140625), ("int8", 1)]
)
def test_llama_3_8b_in_4_bits_is_over_5_gib(
    catalogs: Catalogs, quantization: str, linear_bytes: float
) -> None:
    """Embedding, head and norms stay in 16 bits: 5.3 to 5.6 GiB in nf4, not 3.7 (N / 2)."""
    found = evaluate(
        catalogs, "Llama-3-8B", method="qlora", quantization=quantization, lora_rank=16,
        lora_target="all-linear",
    )  # fmt: skip
    stored = sum(found.case.frozen_bytes)
    matrices = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert sum(found.case.quantized_elements) == matrices
    assert stored == matrices * linear_bytes + 2 * (LLAMA - matrices)
    if quantization != "int8":
        assert 5.3 < stored / 2**30 < 5.62
    assert found.quantities["frozen"] == stored


def test_preparing_a_4_bit_model_turns_its_embeddings_to_fp32(catalogs: Catalogs) -> None:
    plain, prepared = (
        evaluate(
            catalogs, "Llama-3-8B", method="qlora", quantization="nf4-double", lora_rank=16,
            lora_target="all-linear", precision=precision,
        ).quantities["frozen"]
        for precision in ("bf16", "bf16-mixed")
    )  # fmt: skip
    outside = 2 * 128_256 * 4096 + 65 * 4096
    assert prepared - plain == 2 * outside


# Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", arXiv
# 1910.02054, figure 1: 7.5 billion parameters on 64 GPUs, mixed-precision Adam (2 + 2 + 12 bytes).
ZERO_PAPER_GB = {0: 120.0, 1: 31.4, 2: 16.6, 3: 1.9}


@pytest.mark.parametrize("stage", ZERO_PAPER_GB)
def test_model_states_are_those_of_the_zero_paper(catalogs: Catalogs, stage: int) -> None:
    """Stages 1 and 2 hold the paper's 16-bit weights and gradients with fp32 master and states.

    Stages 0 and 3 (autocast, FSDP2) hold all four in fp32 instead: 16 bytes a parameter as well.
    """
    q = evaluate(
        catalogs, "Llama-3-8B", precision="bf16-mixed", zero_stage=stage, gpus=64
    ).quantities
    states_bytes = q["weights"] + q["gradients"] + q["optimizer"]
    assert states_bytes / LLAMA * 7.5 == pytest.approx(ZERO_PAPER_GB[stage], abs=0.05)


def test_pure_bf16_at_stage_3_is_half_of_the_papers(catalogs: Catalogs) -> None:
    """FSDP2 on bf16 parameters keeps no fp32 anywhere: 8 bytes a parameter, not the paper's 16."""
    q = evaluate(catalogs, "Llama-3-8B", zero_stage=3, gpus=64).quantities
    states_bytes = q["weights"] + q["gradients"] + q["optimizer"]
    assert states_bytes / LLAMA * 64 == pytest.approx(8.0)


@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (0, 64), (1, 8), (1, 64)])
def test_megatron_holds_6_and_12_bytes_over_the_ranks(
    catalogs: Catalogs, stage: int, ranks: int
) -> None:
    """Megatron-Core's page on its distributed optimizer: 18 bytes a parameter, or 6 + 12 / d.

    (bf16 weights and fp32 gradients on each rank, fp32 master and two states shared out.)
    """
    q = evaluate(
        catalogs, "Llama-3-8B", stack="megatron", precision="bf16-mixed", zero_stage=stage,
        gpus=ranks,
    ).quantities  # fmt: skip
    states_bytes = q["weights"] + q["gradients"] + q["optimizer"]
    per_parameter = 18.0 if stage == 0 else 6.0 + 12.0 / ranks
    assert states_bytes / LLAMA == pytest.approx(per_parameter)


def test_zero_paper_traffic_grows_by_half_at_stage_3_only(catalogs: Catalogs) -> None:
    """Section 7 of the ZeRO paper: stages 1 and 2 send what data parallelism does, stage 3 half more."""
    sent = {}
    for stage in (0, 1, 2, 3):
        q = evaluate(catalogs, "Llama-3-8B", zero_stage=stage, gpus=8).quantities
        sent[stage] = q["shard_link_bytes"] + q["once_link_bytes"]
    assert sent[1] == sent[2] == sent[0]
    assert sent[3] == pytest.approx(1.5 * sent[0])
    # A ring all-reduce over eight GPUs: 2 x 7/8 of the gradients through each link.
    share = catalogs.stacks.stacks["hf"].constants["link_share"]
    assert sent[0] * share == pytest.approx(2 * 7 / 8 * 2 * LLAMA)


def test_a_trained_token_takes_six_flop_a_parameter(catalogs: Catalogs) -> None:
    """2 forward, 4 backward (Kaplan et al., arXiv 2001.08361); recomputing all adds 2 of the layers.

    Looked-up embeddings and norms take none; attention is counted apart.
    """
    tokens = 2048
    used = LLAMA - 128_256 * 4096 - 65 * 4096
    flop = {}
    for mode in ("none", "full"):
        q = evaluate(catalogs, "Llama-3-8B", seq_len=tokens, checkpointing=mode).quantities
        flop[mode] = (q["matmul_flop"] + q["half_flop"]) / tokens
    assert flop["none"] == 6 * used
    assert flop["full"] - flop["none"] == 2 * (used - 128_256 * 4096)
    # Causal attention is half of 12 L h s a token (Chowdhery et al., arXiv 2204.02311, appendix B),
    # but that a flash kernel's backward computes the scores again: 3.5 instead of 3 passes.
    q = evaluate(catalogs, "Llama-3-8B", seq_len=tokens).quantities
    assert q["attention_flop"] / tokens == pytest.approx(12 * 32 * 4096 * tokens / 2 * 3.5 / 3)


def test_lora_takes_a_third_less_work_than_full_training(catalogs: Catalogs) -> None:
    """Frozen weights need no gradient: 4 FLOP a parameter in place of 6, and the adapters' own."""
    tokens = 2048
    used = LLAMA - 128_256 * 4096 - 65 * 4096
    q = evaluate(
        catalogs, "Llama-3-8B", seq_len=tokens, method="lora", lora_rank=16,
        lora_target="all-linear",
    ).quantities  # fmt: skip
    # Head and adapters are not narrowed with the layers: 4 of the head, 6 of the adapters.
    head = 128_256 * 4096
    assert q["matmul_flop"] / tokens == 4 * (used - head)
    assert q["half_flop"] / tokens == 4 * head + 6 * 41_943_040
