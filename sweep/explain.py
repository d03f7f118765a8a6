"""One scenario taken apart: bytes by term and phase, seconds by term, each with formula and source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.catalogs import Catalogs, load_catalogs
from sweep.catalogs.stacks import DtypeRule, StackBook
from sweep.catalogs.time_bands import TimeBand
from sweep.errors import RunError, nearest
from sweep.evidence.estimators import ESTIMATORS, estimate_all
from sweep.evidence.tables import subject_of_scenario
from sweep.kernels.decide import half_dtype
from sweep.plan.layouts import Layout
from sweep.plan.programs import COMPUTE_DTYPES, PROGRAM_COLUMNS, Program, rule_of
from sweep.plan.questions import image_tokens, named_model, vision_forward_flop
from sweep.plan.setups import Setup, SetupRates, Shape, setup_rates
from sweep.plan.shapes import model_shape
from sweep.scenario import Evaluation, Scenario, evaluate_scenario
from sweep.units import GBIT_PER_S_BYTES, GIB, HOUR_S

_PAGE = "docs/physics.md"
_WEIGHT_BITS = {"bf16": 16.0, "fp32": 32.0, "nf4": 4.0}
_TRACE = "hf-trace-2026: traced steps, layer_forms.csv"


@dataclass(frozen=True)
class Term:
    """One line: what it is, its value and unit, how it is computed and where that is from."""

    section: str
    name: str
    value: float
    unit: str
    formula: str
    source: str


@dataclass(frozen=True)
class Explanation:
    """One scenario taken apart; `row` is what the run says of it, `verdict` that in words.

    `remarks` say what the verdict does not: that the high end of a band is past a limit.
    """

    row: Mapping[str, Any]
    terms: tuple[Term, ...]
    verdict: str
    basis: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    def value(self, section: str, name: str) -> float:
        """The value of one term."""
        return next(t.value for t in self.terms if (t.section, t.name) == (section, name))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for --json."""
        return {
            "scenario": {key: value for key, value in self.row.items() if value is not None},
            "verdict": self.verdict,
            "remarks": list(self.remarks),
            "form_basis": list(self.basis),
            "terms": [
                {
                    "section": term.section,
                    "name": term.name,
                    "value": term.value,
                    "unit": term.unit,
                    "formula": term.formula,
                    "source": term.source,
                }
                for term in self.terms
            ],
        }

    def lines(self) -> list[tuple[str, str, str, str, str]]:
        """(section, name, value as text, formula, source) of every term."""
        return [
            (term.section, term.name, _shown(term), term.formula, term.source)
            for term in self.terms
        ]


def _shown(term: Term) -> str:
    if term.unit == "bytes":
        return f"{term.value / GIB:,.3f} GiB"
    if term.unit == "s":
        return f"{term.value * 1e3:,.2f} ms" if abs(term.value) < 1.0 else f"{term.value:,.3f} s"
    if term.unit == "hours":
        return f"{term.value:,.2f} h" if abs(term.value) >= 0.1 else f"{term.value * 60.0:,.2f} min"
    if term.unit == "usd":
        return f"{term.value:,.2f} USD"
    return f"{term.value:,.4g} {term.unit}".rstrip()


def band_terms(found: Evaluation, scenario: Scenario, book: StackBook) -> list[Term]:
    """The band of the allocated peak: where about nine in ten measured ones lie."""
    band = book.memory_band(scenario.program.stack, scenario.program.method)
    peak = found.quantities["allocated"]
    source = f"memory_bands.csv: {band.points} points of {band.stack}"
    return [
        Term("band", "low", peak * band.low, "bytes", "allocated peak x low", source),
        Term("band", "expected", peak, "bytes", "allocated peak", source),
        Term("band", "high", peak * band.high, "bytes", "allocated peak x high", source),
    ]


def rule_terms(scenario: Scenario, rule: DtypeRule) -> list[Term]:
    """What rules of thumb say of the same scenario, the middle of each range."""
    subject = subject_of_scenario(scenario, _WEIGHT_BITS[rule.weight_dtype])
    terms = []
    for key, said in estimate_all(subject).items():
        if isinstance(said, tuple):
            formula, source = ESTIMATORS[key].formula, "evidence/estimators.py"
            terms.append(Term("rules of thumb", key, said[1], "bytes", formula, source))
    return terms


def scenario_of(
    row: Mapping[str, Any], spec: Mapping[str, Any], catalogs: Catalogs, spec_folder: Path = Path()
) -> Scenario:
    """The scenario a row of the `scenarios` view describes; raises RunError for a lost model."""
    entries = spec.get("axes", {}).get("model", ())
    model = named_model(str(row["model"]), entries, catalogs.models, spec_folder)
    if model is None:
        raise RunError(
            f"model {row['model']}: no longer in the catalogs, nor at a path the run's spec names; "
            "give the run's catalogs folder or run the sweep again"
        )
    shape = model_shape(model)
    flop = 0.0
    if row.get("images_per_sample"):
        patches, _ = image_tokens(shape, str(row["image_size"]))
        flop = row["images_per_sample"] * vision_forward_flop(shape, patches)
    program = Program(str(row["method"]), *(row[name] for name in PROGRAM_COLUMNS))
    return Scenario(
        shape=shape,
        program=program,
        layout=Layout(row["tp"], row["pp"], row["cp"], row["ep"], bool(row["sequence_parallel"])),
        seq_len=row["seq_len"],
        global_batch=row["global_batch"],
        micro_batch=row["micro_batch"],
        gpus=row["gpu_count"],
        gpus_per_node=row["gpus_per_node"],
        vision_flop=flop,
    )


def rates_of(row: Mapping[str, Any], catalogs: Catalogs) -> SetupRates:
    """The rates of the setup of a row, links and network as the run had them."""
    gpu = catalogs.gpus.get(str(row["gpu"]))
    if gpu is None:
        raise RunError(f"GPU {row['gpu']}: no longer in the catalogs; run the sweep again")
    shape = Shape(
        gpu.key,
        row["gpus_per_node"] // gpu.logical_devices,
        row["network_bytes_per_s"] / GBIT_PER_S_BYTES,
        bool(row["rdma"]),
        None if row["host_ram_bytes"] is None else row["host_ram_bytes"] / GIB,
        row["vcpus"],
        None,
    )
    rates = setup_rates(Setup(0, row["node_count"]), shape, gpu, catalogs.stacks)
    return rates._replace(
        network_bytes_per_s=row["network_bytes_per_s"], link_bytes_per_s=row["link_bytes_per_s"]
    )


def memory_terms(found: Evaluation, headroom: float, usable_bytes: float) -> list[Term]:
    """Bytes of the deciding pipeline stage: what rests, what each phase adds, what the device shows."""
    q = found.quantities
    stay = q["accumulation"] > 1 or found.stack["keeps_gradients"] == 1.0
    before, during = (q["gradients"], 0.0) if stay else (0.0, q["gradients"])
    head_copy = q["head_copy"] * found.stack["keeps_head_copy"]
    loss_buffer, layer_buffer = q["loss_buffer"], q["layer_buffer"]
    below = q["layer_gradient_local"] + q["embed_gradient"] + q["root_shard"]
    above = max(0.0, during - below) + q["root_open"]
    waiting = (q["in_flight"] - 1.0) * q["kept_backward"]
    terms: list[Term] = []

    def add(section: str, name: str, value: float, formula: str, source: str = _PAGE) -> None:
        terms.append(Term(section, name, value, "bytes", formula, source))

    add(
        "resting",
        "trained weights",
        q["weights"],
        "bytes per element x elements of the rank, / w at ZeRO 3",
        "dtype_rules.csv",
    )
    add(
        "resting",
        "frozen weights",
        q["frozen"],
        "stored bytes (quantised linears, 16-bit rest), / w at ZeRO 3",
        "dtype_rules.csv",
    )
    add(
        "resting",
        "optimizer states",
        q["optimizer"],
        "(master + states) x elements, / w from ZeRO 1",
        "optimizers.csv",
    )
    add("resting", "resident", q["resident"], "sum of the above")
    phases = (
        ("forward", "p_forward", (
            ("resident", q["resident"], "as above"),
            ("gradients", before, "of earlier micro-batches, or buffers that stay"),
            ("communication buffers", loss_buffer, "buckets, gathered root and layers"),
            ("kept activations", q["kept"], "sum over layers of the keep forms"),
            ("rotary, ids, caches", q["fixed"], "rotary + 32 T + caches - first-layer saving"),
            ("16-bit copy of the head", q["head_copy"], "head_copy_bytes h V"),
            ("gathered hidden states", q["whole_hidden"], "whole_hidden_bytes h T, tp > 1"),
            ("logits and loss", q["loss_forward"], "hidden_forward h T + logit_forward V T"),
        )),
        ("loss", "p_loss", (
            ("resident", q["resident"], "as above"),
            ("gradients", before, "of earlier micro-batches, or buffers that stay"),
            ("communication buffers", loss_buffer, "buckets, gathered root and layers"),
            ("kept activations", q["kept_backward"], "without weight copies once forward is over"),
            ("rotary, ids, caches", q["fixed"], "rotary + 32 T + caches - first-layer saving"),
            ("16-bit copy of the head", q["head_copy"], "head_copy_bytes h V"),
            ("gathered hidden states", q["whole_hidden"], "whole_hidden_bytes h T, tp > 1"),
            ("logits and loss", q["loss_backward"], "hidden_backward h T + max(logits, head gradient)"),
        )),
        ("top layer backward", "p_top", (
            ("resident", q["resident"], "as above"),
            ("gradients", before, "of earlier micro-batches, or buffers that stay"),
            ("communication buffers", layer_buffer, "buckets, gathered root and layers, one reduced"),
            ("kept activations", q["in_flight"] * q["kept_backward"], "micro-batches in flight x kept"),
            ("rotary, ids, caches", q["fixed"], "rotary + 32 T + caches - first-layer saving"),
            ("16-bit copy of the head", head_copy, "where it stays for the layers"),
            ("residual gradient", q["residual"], "residual_bytes h T"),
            ("head gradient", q["root_gradient"], "of the head, already there"),
            ("layer working set", q["work"], "max over the backward forms"),
        )),
        ("bottom layer backward", "p_bottom", (
            ("resident", q["resident"], "as above"),
            ("gradients", before + above, "of the layers above"),
            ("communication buffers", layer_buffer, "buckets, gathered root and layers, one reduced"),
            ("kept activations", waiting + q["one_layer"], "one layer, and waiting micro-batches"),
            ("rotary, ids, caches", q["fixed"], "rotary + 32 T + caches - first-layer saving"),
            ("16-bit copy of the head", head_copy, "where it stays for the layers"),
            ("residual gradient", q["residual"], "residual_bytes h T"),
            ("layer working set", q["work"], "max over the backward forms"),
            ("held by finished layers", q["held"], "FSDP1: inputs of frozen units and their gradients"),
        )),
        ("end of backward", "p_end", (
            ("resident", q["resident"], "as above"),
            ("gradients", before + during, "all of them"),
            ("embedding gradient", q["embed_end"], "2 e h V if tied, else that of its input"),
        )),
        ("optimizer step", "p_step", (
            ("resident", q["resident"], "as above"),
            ("gradients", q["gradients"], "all of them"),
            ("step temporaries", q["step_temporary"], "copies the optimizer makes"),
        )),
    )  # fmt: skip
    for section, total, parts in phases:
        if q[total] == 0.0:
            continue
        for name, value, formula in parts:
            add(section, name, value, formula, _TRACE)
        add(section, "total", q[total], "sum of the above")
    limit = usable_bytes * (1.0 - headroom)
    add("device", "allocated peak", q["allocated"], "largest phase total")
    add(
        "device",
        "context and fragmentation",
        q["device"] - q["allocated"] - q["expert_room"],
        "context + communicators + high end of the band + share of it all",
        "stack_constants.csv",
    )
    add(
        "device",
        "room for busy experts",
        q["expert_room"],
        "(moe_imbalance - 1) x routed activations, ep > 1",
        "stack_constants.csv",
    )
    add("device", "device", q["device"], "sum of the above")
    add("device", "limit", limit, "usable memory x (1 - memory_headroom)", "gpus.csv")
    add("device", "free below the limit", limit - q["device"], "limit - device")
    add("host", "per node", q["host"], "GPUs a node x (process + offloaded)", "stack_constants.csv")
    add(
        "host",
        "offloaded per GPU",
        q["offloaded"],
        "host_element_bytes x elements, + weights if they leave too",
        "stack_constants.csv",
    )
    return terms


def time_terms(found: Evaluation, rates: SetupRates, dtype: int) -> list[Term]:
    """Seconds of one step, term by term; the parts of the 4-norm are shown beside their result."""
    q = found.quantities
    peak, half = rates.peaks[dtype], rates.peaks[half_dtype(dtype)]
    if peak is None or half is None:
        return []
    kernel = int(found.stack["attention_kernel"])
    bandwidth = rates.hbm_bytes_per_s
    efficiency = q["memory_bytes"] and (sum(q[name] for name in _MEMORY_TERMS) / q["memory_bytes"])
    terms: list[Term] = []

    def add(section: str, name: str, value: float, formula: str, source: str = _PAGE) -> None:
        terms.append(Term(section, name, value, "s", formula, source))

    matmul = q["matmul_flop"] / peak
    head = q["half_flop"] / half
    attention = q["attention_flop"] / rates.attention_flop_per_s[kernel]
    section = "micro-batch"
    add(
        section,
        "matmul of layers",
        matmul,
        "2 T params x (2 + weight gradient + recomputation) / sustained rate",
        "efficiencies.csv",
    )
    add(
        section,
        "head, adapters, tower",
        head,
        "head, adapters x (3 + recomputation), vision tower forward / 16-bit or wider rate",
        "efficiencies.csv",
    )
    add(
        section,
        "attention",
        attention,
        f"2 T width causal length x (3.5 + recomputation) / rate of {_ATTENTION_KERNELS[kernel]}",
        "efficiencies.csv",
    )
    for name, (label, formula) in _MEMORY_TERMS.items():
        if q[name]:
            add(section, label, q[name] / efficiency / bandwidth, formula, "stack_constants.csv")
    compute = matmul + head + attention + q["memory_bytes"] / bandwidth
    shard = (
        max(
            q["shard_link_bytes"] / rates.link_bytes_per_s,
            q["shard_network_bytes"] / rates.network_bytes_per_s,
        )
        + q["shard_latency_s"]
    )
    add(section, "GPU busy", compute, "sum of the above")
    add(
        section,
        "kernel launches",
        q["host_s"],
        "kernels of layers, experts and adapters x passes x seconds a launch",
        "stack_constants.csv",
    )
    add(
        section,
        "shard collectives",
        shard,
        "gathers and reductions of ZeRO or FSDP: max(link, network)",
        "stack_constants.csv",
    )
    norm = (compute**4 + q["host_s"] ** 4 + shard**4) ** 0.25
    add(section, "overlapped", norm, "(GPU^4 + launches^4 + shard^4)^(1/4)")
    add(
        section,
        "exposed shard",
        q["dp_exposed"] * shard,
        "share of shard traffic that nothing hides",
        "stack_constants.csv",
    )
    parallel = (
        (q["tp_link_bytes"] + q["ring_link_bytes"]) / rates.link_bytes_per_s
        + q["ring_network_bytes"] / rates.network_bytes_per_s
        + (q["latency_s"] - q["unit_s"])
    )
    fetch = q["fetch_pcie_bytes"] / rates.pcie_bytes_per_s + q["fetch_s"]
    if q["unit_s"]:
        add(
            section,
            "sharded units",
            q["unit_s"],
            "3 collectives of each layer and adapter unit x exposed seconds of one",
            "stack_constants.csv",
        )
    if parallel:
        add(
            section,
            "tensor, pipeline, context, expert",
            parallel,
            "their collectives, link or network",
        )
    if fetch:
        add(section, "offloaded parameters", fetch, "read back for forward and backward")
    micro = norm + q["dp_exposed"] * shard + q["unit_s"] + parallel + fetch
    add(section, "total", micro, "overlapped + exposed + units + parallel + fetch")
    once = (
        max(
            q["once_link_bytes"] / rates.link_bytes_per_s,
            q["once_network_bytes"] / rates.network_bytes_per_s,
        )
        + q["once_latency_s"]
    )
    optimizer = (
        q["optimizer_bytes"] / bandwidth
        + q["transfer_pcie_bytes"] / rates.pcie_bytes_per_s
        + q["optimizer_s"]
    )
    add(
        "step",
        "micro-batches",
        q["repeats"] * micro,
        f"(accumulation + (pp - 1) / virtual_stages = {q['repeats']:g}) x micro-batch",
    )
    add(
        "step",
        "gradient reduction",
        q["step_exposed"] * once,
        "once a step, and the gather of weights: exposed share",
        "stack_constants.csv",
    )
    add("step", "optimizer", optimizer, "bytes of the step / bandwidth", "optimizers.csv")
    add(
        "step",
        "total",
        q["repeats"] * micro + q["step_exposed"] * once + optimizer,
        "sum of the above",
    )
    return terms


_ATTENTION_KERNELS = ("the GPU's best kernel", "FlashAttention 2", "FlashAttention 1")
_MEMORY_TERMS = {
    "elementwise_bytes": ("elementwise", "ratio x T x forward bytes of a layer x (3 + recomputation)"),
    "eager_bytes": ("eager attention", "scores read and written"),
    "adapter_bytes": ("adapters", "passes over the targets' inputs and outputs"),
    "permute_bytes": ("permutation", "tokens sorted to their experts and back"),
    "loss_bytes": ("loss head", "bytes of each logit read and written"),
    "operand_bytes": ("matmul operands", "weights and activations read"),
    "cast_bytes": ("casts", "operands brought to 8 or 4 bits"),
    "dequant_bytes": ("dequantisation", "every quantised linear, each pass"),
}  # fmt: skip


def job_terms(row: Mapping[str, Any], step_s: float, band: TimeBand) -> list[Term]:
    """From the step to the job: its parts, its band, and the bill where the row has an offer."""
    terms: list[Term] = []

    def add(name: str, value: float, unit: str, formula: str, source: str = "spec: job") -> None:
        terms.append(Term("job", name, value, unit, formula, source))

    training = row["steps"] * step_s / HOUR_S
    loading, saving = row["load_hours"], row["saving_hours"]
    preparing = row["startup_hours"] - loading
    add("steps", float(row["steps"]), "steps", "ceil(tokens x epochs / tokens a step)", _PAGE)
    add("nodes, images, compilation", preparing, "hours", "startup_minutes + compile_minutes")
    add("reading the weights", loading, "hours", "on each node: weights / storage_gb_per_s")
    add("training", training, "hours", "steps x step", _PAGE)
    add("evaluation", row["eval_hours"], "hours", "training x eval_fraction / 3: forward only")
    add("saving", saving, "hours", "checkpoints_per_job x bytes / (storage_gb_per_s x nodes)")
    parts = preparing + loading + training + row["eval_hours"] + saving
    if row.get("price_model") == "spot":
        add("interruptions", row["hours"] - parts, "hours", "spot_overhead x the above")
    add("whole job", float(row["hours"]), "hours", "sum of the above")
    same = (row["time_low"], row["time_high"]) == (band.low, band.high)
    source = band.provenance if same else "time_bands.csv as it was when the run was written"
    for end, ratio in (("low", row["time_low"]), ("high", row["time_high"])):
        formula = f"training and evaluation x {ratio:.3g}"
        add(f"whole job, {end}", row[f"hours_{end}"], "hours", formula, source)
    if row.get("usd") is None:
        return terms
    step = row["billing_granularity_s"]
    least = f", at least {row['billing_minimum_s']:g} s" if row["billing_minimum_s"] > step else ""
    by = f"steps of {step:g} s{least}, each node"
    add("billed", row["billed_hours"], "hours", by, "billing.csv or the offer")
    formula, source = "billed x nodes x usd_per_hour", str(row["source"])
    add("cost", row["usd"], "usd", formula, source)
    for end in ("low", "high"):
        add(f"cost, {end}", row[f"usd_{end}"], "usd", f"the bill of the {end} end", source)
    return terms


def remarks_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What the high end of the band puts in doubt of a row that fits: the deadline, the budget."""
    if row["verdict_text"] != "fits":
        return ()
    found = []
    deadline, budget = row.get("deadline_hours"), row.get("max_usd")
    if deadline is not None and row["hours_high"] > deadline:
        found.append(
            f"may miss the deadline: up to {row['hours_high']:,.3g} h, {deadline:g} h allowed"
        )
    if budget is not None and row.get("usd_high") is not None and row["usd_high"] > budget:
        found.append(
            f"may exceed the budget: up to {row['usd_high']:,.2f} USD, {budget:,.2f} allowed"
        )
    return tuple(found)


# Filters of `explain_row` that the ranking macro takes, by its parameter's name.
_RANKING_FILTERS = {
    "model": "models",
    "method": "methods",
    "gpu": "gpus",
    "provider": "providers",
    "region": "regions",
    "price_model": "price_models",
    "instance_type": "instance_types",
}
_OFFER_FILTERS = ("provider", "region", "price_model", "instance_type")
_SETUP_FIGURES = """
    s.usable_bytes, s.link_bytes_per_s, s.network_bytes_per_s, s.rdma, s.host_ram_bytes, s.vcpus,
    r.deadline_hours, r.max_usd
"""


def explain_row(
    folder: Path,
    *,
    question: int | None = None,
    filters: Mapping[str, Any] | None = None,
    setup: int | None = None,
    knob: int | None = None,
) -> Explanation:
    """Explain one scenario of a finished run.

    With `setup` (and `question`): that pair's row, or the given `knob`'s; else the best-ranked row
    under the filters (model, method, gpu, provider, region, price_model, instance_type as globs;
    train_tokens, train_text_gb, seq_len as numbers). Raises RunError when nothing matches.
    """
    from sweep.manifest import load_manifest
    from sweep.rerank import spec_place
    from sweep.results import open_results

    chosen = dict(filters or {})
    _refuse_filters(chosen, with_setup=setup is not None)
    manifest = load_manifest(folder)
    conditions, values = [], []
    for name in ("train_tokens", "train_text_gb", "seq_len"):
        if name in chosen:
            conditions.append(f"c.{name} = ?")
            values.append(chosen.pop(name))
    if question is not None:
        conditions.append("c.question = ?")
        values.append(question)
    if setup is None:
        arguments = {_RANKING_FILTERS[name]: value for name, value in chosen.items()}
        named = ", ".join(f"{name} := ?" for name in arguments)
        values = [*arguments.values(), *values]
        rows, order = f"cheapest_among({named})", "c.rank, c.question"
    else:
        conditions.append("c.setup = ?")
        values.append(setup)
        if knob is not None:
            conditions.append("c.knob = ?")
            values.append(knob)
        for name, value in chosen.items():
            conditions.append(f"lower(c.{name}) GLOB lower(?)")
            values.append(value)
        rows, order = "scenarios", "c.question, c.verdict, c.seconds_per_token"
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    query = (
        f"SELECT c.*, {_SETUP_FIGURES} FROM {rows} AS c JOIN setups AS s USING (setup) "
        f"CROSS JOIN run AS r {where} ORDER BY {order} LIMIT 1"
    )
    with open_results(folder) as results:
        found = results.rows(query, values)
        headroom = results.rows("SELECT memory_headroom FROM run")[0]["memory_headroom"]
    if not found:
        raise RunError(
            f"{folder}: no scenario matches; a question without a feasible setup has no ranked row: "
            "name one with --setup (see `sweep top` and the view rejected)"
        )
    if found[0]["stack"] is None:
        raise RunError(
            f"{folder}: setup {found[0]['setup']} has no valid layout for this question; there is "
            "nothing to take apart"
        )
    return explain_scenario(
        found[0], manifest.spec, headroom, spec_folder=spec_place(Path(folder)).parent
    )


def _refuse_filters(filters: Mapping[str, Any], *, with_setup: bool) -> None:
    """Raise RunError for a filter there is none of, or that a setup's row has no column for."""
    known = ("train_tokens", "train_text_gb", "seq_len", *_RANKING_FILTERS)
    for name in filters:
        if name not in known:
            close = nearest(name, known)
            hint = f"; did you mean {close!r}?" if close else ""
            raise RunError(f"filter: found {name!r}, allowed {', '.join(known)}{hint}")
        if with_setup and name in _OFFER_FILTERS:
            raise RunError(
                f"filter {name}: found it beside a setup, whose rows are of no offer; leave one of "
                "the two out"
            )


def explain_scenario(
    row: Mapping[str, Any],
    spec: Mapping[str, Any],
    headroom: float,
    catalogs: Catalogs | None = None,
    spec_folder: Path = Path(),
) -> Explanation:
    """Take a row of `scenarios` (or `cheapest`, with its offer) apart; `spec` is the manifest's.

    Its relative paths start at `spec_folder`.
    """
    catalogs = catalogs or load_catalogs(
        [spec_folder / one for one in spec.get("hardware", {}).get("catalogs", ())]
    )
    book: StackBook = catalogs.stacks
    scenario = scenario_of(row, spec, catalogs, spec_folder)
    rule = rule_of(scenario.program, book)
    if rule is None:
        raise RunError("the stacks catalog no longer has the dtype rule of this row; run again")
    found = evaluate_scenario(scenario, book)
    rates = rates_of(row, catalogs)
    dtype = COMPUTE_DTYPES.index(rule.compute_dtype)
    terms = memory_terms(found, headroom, rates.usable_bytes)
    terms += band_terms(found, scenario, book)
    terms += rule_terms(scenario, rule)
    terms += time_terms(found, rates, dtype)
    step_s = found.step_seconds(rates, dtype)
    if row.get("steps") is not None and rates.peaks[dtype] is not None:
        gpu = catalogs.gpus[str(row["gpu"])]
        experts = bool(scenario.shape.model.num_experts)
        band = book.time_band(scenario.program.stack, scenario.program.method, gpu, experts)
        terms += job_terms(row, step_s, band)
    return Explanation(
        dict(row), tuple(terms), str(row["verdict_text"]), found.basis, remarks_of(row)
    )
