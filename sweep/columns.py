"""The one dictionary of result columns: name, type, unit and meaning, wherever a column appears.

It makes the Arrow schemas of the files, the comments in the database and `docs/columns.md`
(`python -m sweep.columns > docs/columns.md`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

# Codes of facts.verdict, in the order of the kernels' Verdict.
VERDICTS = ("fits", "gpu_memory", "host_memory", "unsupported", "no_layout")
# What the views add, because it depends on tokens and prices.
DERIVED_VERDICTS = ("past_deadline", "over_budget")
# facts.knob where no knob combination came close to anything: the hardware lacks what was asked.
NO_KNOB = 2**32 - 1


@dataclass(frozen=True)
class Column:
    """A column: Arrow type by short name, unit ("" for none), meaning, whether it may be null."""

    name: str
    dtype: str
    unit: str
    description: str
    nullable: bool = False

    def comment(self) -> str:
        """Meaning and unit in one line, for SQL comments and file metadata."""
        return f"{self.description} [{self.unit}]" if self.unit else self.description


def _column(name: str, dtype: str, unit: str, description: str) -> Column:
    return Column(name, dtype.rstrip("?"), unit, description, dtype.endswith("?"))


_ALL = (
    # keys
    _column("workload", "u32", "", "What is asked but for the amount of data: row of workloads."),
    _column("question", "u32", "", "A workload with an amount of data: row of questions."),
    _column("setup", "u32", "", "Hardware a job runs on: row of setups."),
    _column("shape", "u32", "", "Kind of node: setups that differ in node_count share it."),
    _column("knob", "u32", "", "How the job is run: row of knobs; 4294967295 where none applies."),
    _column("offer", "u32?", "", "Dated price of a shape: row of offers."),
    # facts
    _column(
        "verdict", "u8", "", "0 fits, 1 gpu_memory, 2 host_memory, 3 unsupported, 4 no_layout."
    ),
    _column("seconds_per_token", "f32", "s", "Job time per trained token; 0 if unsupported."),
    _column("allocated_bytes", "f32", "bytes", "Peak of the fullest GPU's allocated tensors."),
    _column("device_bytes", "f32", "bytes", "Peak of the fullest GPU: tensors, caches, context."),
    _column("host_bytes", "f32", "bytes", "Peak host memory of one node."),
    _column(
        "network_bytes_per_token",
        "f32",
        "bytes",
        "Through one node's network per trained token, averaged over a step.",
    ),
    # workloads
    _column("task", "text", "", "What is done: train."),
    _column("model", "text", "", "Model, by its key in the catalog."),
    _column("method", "text", "", "Fine-tuning method: full, lora, qlora."),
    _column("seq_len", "u32", "tokens", "Tokens per training sequence, image tokens included."),
    _column("images_per_sample", "u32", "images", "Images in each training sequence."),
    _column("image_size", "text?", "pixels", "Width x height of each image."),
    _column("image_tokens", "u32", "tokens", "Of seq_len, tokens that stand for images."),
    _column("axes", "text", "", "Variables this workload fixes that are otherwise tuned, as JSON."),
    _column("weights_bytes", "f64", "bytes", "The model's checkpoint in bf16."),
    _column("checkpoint_bytes", "f64", "bytes", "One training checkpoint, optimizer included."),
    _column("total_parameters", "f64", "parameters", "Parameters of the model."),
    _column("active_parameters", "f64", "parameters", "Parameters a token passes through."),
    _column("trained_parameters", "f64", "parameters", "Parameters that are trained."),
    _column(
        "expert_time_low",
        "f64",
        "ratio",
        "What the low end of the band of step times is multiplied by: below 1 with experts.",
    ),
    _column("expert_time_high", "f64", "ratio", "The same of its high end."),
    # questions
    _column("train_tokens", "f64", "tokens", "Size of the training set, read epochs times."),
    _column("train_text_gb", "f64?", "GB", "Text the tokens were said to come from."),
    _column("data_bytes", "f64", "bytes", "Size of the training set on disk."),
    # setups
    _column("gpu", "text", "", "GPU, by its key in the catalog."),
    _column("gpus_per_node", "u32", "GPUs", "GPUs in one node."),
    _column("node_count", "u32", "nodes", "Nodes in the job."),
    _column("gpu_count", "u32", "GPUs", "GPUs in the job."),
    _column("usable_bytes", "i64", "bytes", "Memory of one GPU that a process can use."),
    _column("link", "text", "", "Fastest link between the GPUs of a node."),
    _column("link_bytes_per_s", "f64", "bytes/s", "That link, one direction, per GPU."),
    _column("network_bytes_per_s", "f64", "bytes/s", "Network of one node, one direction."),
    _column("network_assumed", "bool", "", "The network's rate is assumed, not from a source."),
    _column("rdma", "bool", "", "A source states that the network has RDMA."),
    _column("time_measured", "bool", "", "The share of its peak this GPU sustains is measured."),
    _column("host_ram_bytes", "i64?", "bytes", "RAM of one node; null if unknown."),
    _column("vcpus", "f64?", "vCPUs", "vCPUs of one node; null if unknown."),
    _column("local_nvme_bytes", "i64?", "bytes", "Local disk of one node; null if unknown."),
    # knobs
    _column("stack", "text", "", "Training software, by its key in the stacks catalog."),
    _column("precision", "text", "", "How trained weights and arithmetic are held."),
    _column("quantization", "text", "", "How qlora stores the frozen base."),
    _column("lora_rank", "u32", "", "Rank of the adapters; 0 without adapters."),
    _column("lora_target", "text", "", "Which linear layers have an adapter."),
    _column("lora_dropout", "f64", "", "Dropout before each adapter."),
    _column("checkpointing", "text", "", "Activation checkpointing: none, selective, full."),
    _column("attention", "text", "", "Attention kernel: eager, flash."),
    _column("cross_entropy", "text", "", "Loss head: plain, fused, fused-linear."),
    _column("optimizer", "text", "", "Optimizer."),
    _column("memory_low", "f64", "ratio", "Low end of the band of allocated peaks over predicted."),
    _column("memory_high", "f64", "ratio", "High end of that band: verdicts are judged on it."),
    _column(
        "measured_time_low",
        "f64",
        "ratio",
        "Low end of the band of step times over predicted, on a GPU that is time_measured.",
    ),
    _column("measured_time_high", "f64", "ratio", "High end of that band."),
    _column("unmeasured_time_low", "f64", "ratio", "Low end of that band on any other GPU."),
    _column("unmeasured_time_high", "f64", "ratio", "High end of that band on any other GPU."),
    _column("global_batch", "u32", "sequences", "Sequences per optimizer step."),
    _column("zero_stage", "u8", "", "What data-parallel ranks share: ZeRO or FSDP stage 0 to 3."),
    _column("offload", "text", "", "What moves to host RAM or NVMe between uses."),
    _column("tp", "u32", "GPUs", "Tensor-parallel degree."),
    _column("cp", "u32", "GPUs", "Context-parallel degree."),
    _column("pp", "u32", "GPUs", "Pipeline-parallel degree."),
    _column("ep", "u32", "GPUs", "Expert-parallel degree."),
    _column("sequence_parallel", "bool", "", "Tensor-parallel ranks share the sequence too."),
    _column("micro_batch", "u32", "sequences", "Sequences per GPU in one pass."),
    # offers
    _column("provider", "text", "", "Who sells it."),
    _column("instance_type", "text", "", "The provider's name for the machine."),
    _column("region", "text", "", "Where it is sold."),
    _column("price_model", "text", "", "on_demand, spot, reserved_1y, reserved_3y or owned."),
    _column("price_per_hour", "f64", "currency", "Price of one whole node per hour, as quoted."),
    _column("currency", "text", "", "Currency of price_per_hour, ISO 4217."),
    _column("usd_per_hour", "f64", "usd", "Price of one whole node per hour in USD."),
    _column("billing_granularity_s", "f64", "s", "Each node is billed by whole steps of this."),
    _column("billing_minimum_s", "f64", "s", "The least that is billed for a node."),
    _column("as_of", "date?", "", "Day the price was seen."),
    _column("source", "text", "", "Where the price is from, a key of the sources catalog."),
    _column("scope", "text", "", "instance: price of a known machine; per_gpu: of one GPU in it."),
    _column("rankable", "bool", "", "Whether the price takes part in rankings."),
    _column("unrankable_reason", "text", "", "Why not."),
    _column("notes", "text", "", "What else the source says."),
    # models
    _column("family", "text?", "", "Release the model belongs to."),
    _column("hf_id", "text?", "", "Its repository on the Hugging Face hub."),
    _column("num_hidden_layers", "u32", "layers", "Decoder layers."),
    _column("hidden_size", "u32", "", "Width of the residual stream."),
    _column("max_position_embeddings", "u32?", "tokens", "Longest sequence it was made for."),
    _column("licence", "text?", "", "Licence of the weights."),
    # run
    _column("name", "text", "", "Name of the sweep."),
    _column("spec_path", "text", "", "The spec, as given."),
    _column("engine_version", "text", "", "Version of the engine."),
    _column("objective", "text", "", "What the ranking minimises: usd or hours."),
    _column("keep", "text", "", "Rows written: best, feasible, all."),
    _column("deadline_hours", "f64?", "hours", "Longest job; null without a deadline."),
    _column("max_usd", "f64?", "usd", "Most one job may cost; null without a budget."),
    _column("memory_headroom", "f64", "share", "Share of usable GPU memory that stays free."),
    _column("provision_hours", "f64", "hours", "Paid time before the weights are read."),
    _column("compile_hours", "f64", "hours", "Paid time of compilation and warm-up."),
    _column("eval_fraction", "f64", "share", "Evaluation's share of the training time, on top."),
    _column("spot_overhead", "f64", "share", "Extra time of a job on spot machines."),
    _column("epochs", "f64", "passes", "How often the training set is read."),
    _column("bytes_per_token", "f64", "bytes", "Text behind one token."),
    _column("checkpoints_per_job", "u32", "checkpoints", "Checkpoints written during a job."),
    _column("checkpoints_kept", "u32", "checkpoints", "Checkpoints on disk at once."),
    _column("storage_bytes_per_s", "f64", "bytes/s", "What one node writes to storage."),
    _column("cores_per_gpu", "f64", "cores", "CPU cores that feed one GPU."),
    _column("vcpus_per_core", "f64", "vCPUs", "vCPUs a provider counts per core."),
    _column("offers_as_of", "date?", "", "Newest price of the run."),
    _column("offers_not_covered", "u32", "offers", "Offers whose shape the run did not evaluate."),
    # derived by the views
    _column("dp", "u32?", "GPUs", "Data-parallel degree: gpu_count / (tp pp cp)."),
    _column(
        "gradient_accumulation",
        "u32?",
        "",
        "Passes per optimizer step: global_batch / (micro_batch dp).",
    ),
    _column("verdict_text", "text", "", "The verdict in words, deadline (and budget) included."),
    _column(
        "peak_gib",
        "f64?",
        "GiB",
        "Memory the fullest GPU must have: allocated_high_gib, lost blocks, context, communicators.",
    ),
    _column("allocated_gib", "f64?", "GiB", "Peak of the fullest GPU's allocated tensors."),
    _column("allocated_low_gib", "f64?", "GiB", "Low end of its band: allocated x memory_low."),
    _column("allocated_high_gib", "f64?", "GiB", "High end of its band: allocated x memory_high."),
    _column("usable_gib", "f64", "GiB", "Memory of one GPU that a process can use."),
    _column("limit_gib", "f64", "GiB", "usable_gib less the headroom that must stay free."),
    _column("headroom_gib", "f64?", "GiB", "usable_gib - peak_gib; negative if it does not fit."),
    _column(
        "time_low", "f64?", "ratio", "Low end of the band of measured step times over predicted."
    ),
    _column(
        "time_high", "f64?", "ratio", "High end of that band: time_bands.csv by stack and method."
    ),
    _column("steps", "f64?", "steps", "Optimizer steps: whole batches, the last one filled up."),
    _column("train_hours", "f64?", "hours", "Time in training steps."),
    _column("load_hours", "f64", "hours", "Reading the weights: each node reads all of them."),
    _column(
        "startup_hours", "f64", "hours", "Before the first step: nodes, load_hours, compilation."
    ),
    _column("eval_hours", "f64?", "hours", "Evaluation: a share of the training time."),
    _column("saving_hours", "f64", "hours", "Writing checkpoints, shared by the nodes."),
    _column(
        "hours",
        "f64?",
        "hours",
        "Job: start-up, training, evaluation, checkpoints; on spot with spot_overhead.",
    ),
    _column(
        "hours_low",
        "f64?",
        "hours",
        "Low end of its band: training and evaluation x time_low, the rest as it is.",
    ),
    _column("hours_high", "f64?", "hours", "High end of its band: the same with time_high."),
    _column("node_hours", "f64?", "hours", "hours x node_count."),
    _column(
        "billed_hours", "f64?", "hours", "hours in whole steps of the bill, at least its minimum."
    ),
    _column("tokens_per_s", "f64?", "tokens/s", "Trained tokens per second."),
    _column("tokens_per_s_per_gpu", "f64?", "tokens/s", "The same per GPU."),
    _column(
        "cpu_cores_needed", "f64", "cores", "CPU cores of one node: cores_per_gpu x gpus_per_node."
    ),
    _column("host_ram_needed_gib", "f64?", "GiB", "RAM of one node."),
    _column(
        "disk_needed_gb", "f64", "GB", "Weights, data and the checkpoints_kept of the whole job."
    ),
    _column(
        "network_needed_gbps",
        "f64?",
        "Gbit/s",
        "One node's network, averaged over a step; 0 if alone.",
    ),
    _column("cpu_cores", "f64?", "cores", "CPU cores of one node; null if unknown."),
    _column("host_ram_gib", "f64?", "GiB", "RAM of one node; null if unknown."),
    _column("local_nvme_gb", "f64?", "GB", "Local disk of one node; null if unknown."),
    _column("network_gbps", "f64", "Gbit/s", "Network of one node, one direction."),
    _column("cpu_ok", "bool?", "", "cpu_cores >= cpu_cores_needed; null if unknown."),
    _column("host_ram_ok", "bool?", "", "host_ram_gib >= host_ram_needed_gib; null if unknown."),
    _column(
        "disk_ok",
        "bool?",
        "",
        "One node's local disk holds disk_needed_gb; if false, attach a volume; null if unknown.",
    ),
    _column(
        "network_ok",
        "bool?",
        "",
        "network_gbps >= network_needed_gbps; null if its rate is assumed.",
    ),
    _column("usd", "f64?", "usd", "Cost of the job: billed_hours x node_count x usd_per_hour."),
    _column("usd_low", "f64?", "usd", "Low end of its band: the bill of hours_low."),
    _column("usd_high", "f64?", "usd", "High end of its band: the bill of hours_high."),
    _column("job_usd_per_hour", "f64?", "usd", "All nodes of the job for one hour."),
    _column("usd_per_million_tokens", "f64?", "usd", "Cost per million trained tokens."),
    _column("over_budget", "bool", "", "usd > max_usd of the run."),
    _column("past_deadline", "bool", "", "hours > deadline_hours of the run."),
    _column("may_be_late", "bool", "", "hours_high > deadline_hours of the run: it may miss it."),
    _column("may_be_dear", "bool", "", "usd_high > max_usd of the run: it may exceed it."),
    _column(
        "tie",
        "bool",
        "",
        "Not told from rank 1 by the evidence: its lead lies within the bands. On rank 1: another "
        "place listed ties with it.",
    ),
    _column("rank", "i64", "", "Place within the question, 1 is best by the run's objective."),
    _column(
        "same_price", "i64", "offers", "Offers of that shape at the same price, itself included."
    ),
    _column("limit_name", "text", "", "The limit that failed, in the words of verdict_text."),
    _column("need", "f64?", "need_unit", "What the scenario needs of it."),
    _column("have", "f64?", "need_unit", "What it may have."),
    _column("need_unit", "text", "", "Unit of need, have and short."),
    _column("short", "f64?", "need_unit", "need - have."),
    _column("short_ratio", "f64?", "ratio", "need / have."),
    _column("closest_by", "text", "", "What this row minimises among what that limit rejected."),
    _column("place", "i32", "", "Order of a question's near misses: likeliest to be given way on."),
    _column("rule", "text", "", "Rule of thumb, by its key (`sweep estimate --estimators`)."),
    _column("low_gib", "f64", "GiB", "Memory of one GPU by that rule: the least of its range."),
    _column("expected_gib", "f64", "GiB", "Memory of one GPU by that rule: the middle."),
    _column("high_gib", "f64", "GiB", "Memory of one GPU by that rule: the most of its range."),
    _column("miss", "text", "", "What the row is nearest in, of all that has no answer."),
)
COLUMNS: dict[str, Column] = {column.name: column for column in _ALL}
assert len(COLUMNS) == len(_ALL), "a column is declared twice"


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_KNOBS = _names(
    "stack precision quantization lora_rank lora_target lora_dropout checkpointing attention "
    "cross_entropy optimizer global_batch zero_stage offload tp pp cp ep sequence_parallel "
    "micro_batch memory_low memory_high measured_time_low measured_time_high "
    "unmeasured_time_low unmeasured_time_high"
)
FACTS = "facts"
TABLES: dict[str, tuple[str, ...]] = {
    FACTS: _names(
        "workload setup knob verdict seconds_per_token allocated_bytes device_bytes host_bytes "
        "network_bytes_per_token"
    ),
    "workloads": _names(
        "workload task model method seq_len images_per_sample image_size image_tokens axes "
        "weights_bytes checkpoint_bytes total_parameters active_parameters trained_parameters "
        "expert_time_low expert_time_high"
    ),
    "questions": _names("question workload train_tokens train_text_gb data_bytes"),
    "setups": _names(
        "setup shape gpu gpus_per_node node_count gpu_count usable_bytes link link_bytes_per_s "
        "network_bytes_per_s network_assumed rdma host_ram_bytes vcpus local_nvme_bytes "
        "time_measured"
    ),
    "knobs": ("knob", *_KNOBS),
    "offers": _names(
        "offer shape provider instance_type region price_model price_per_hour currency "
        "usd_per_hour billing_granularity_s billing_minimum_s as_of source scope rankable "
        "unrankable_reason notes"
    ),
    "models": _names(
        "model family hf_id total_parameters active_parameters num_hidden_layers hidden_size "
        "max_position_embeddings licence"
    ),
    "run": _names(
        "name spec_path engine_version objective keep deadline_hours max_usd memory_headroom "
        "provision_hours compile_hours eval_fraction spot_overhead epochs bytes_per_token checkpoints_per_job "
        "checkpoints_kept storage_bytes_per_s cores_per_gpu vcpus_per_core offers_as_of "
        "offers_not_covered"
    ),
}
DIMENSIONS = tuple(name for name in TABLES if name != FACTS)
TABLE_TITLES: dict[str, str] = {
    FACTS: "What the kernels decided: one row a scenario kept, by (workload, setup, knob).",
    "workloads": "What is asked, but for the amount of data.",
    "questions": "A workload with an amount of data.",
    "setups": "Hardware a job runs on.",
    "knobs": "Ways to run a job that facts mention.",
    "offers": "Dated prices; several to a shape, null of a shape the run did not evaluate.",
    "models": "The models asked about.",
    "run": "One row: limits, settings and constants of the run.",
}


_SCENARIO = _names(
    "question workload setup shape knob task model method seq_len images_per_sample image_size "
    "train_tokens train_text_gb gpu gpus_per_node node_count gpu_count verdict_text hours "
    "hours_low hours_high node_hours startup_hours load_hours train_hours eval_hours saving_hours "
    "steps time_low time_high time_measured tokens_per_s tokens_per_s_per_gpu peak_gib usable_gib limit_gib "
    "headroom_gib allocated_gib allocated_low_gib allocated_high_gib stack precision quantization "
    "lora_rank lora_target lora_dropout checkpointing "
    "attention cross_entropy optimizer global_batch micro_batch dp gradient_accumulation "
    "zero_stage offload tp pp cp ep sequence_parallel cpu_cores_needed cpu_cores cpu_ok "
    "host_ram_needed_gib host_ram_gib host_ram_ok disk_needed_gb local_nvme_gb disk_ok "
    "network_needed_gbps network_gbps network_ok link rdma network_assumed weights_bytes "
    "checkpoint_bytes total_parameters active_parameters trained_parameters axes verdict "
    "seconds_per_token allocated_bytes device_bytes host_bytes network_bytes_per_token"
)
_OFFER = _names(
    "offer provider instance_type region price_model usd_per_hour price_per_hour currency "
    "billing_granularity_s billing_minimum_s as_of source scope notes"
)
_COST = _names(
    "billed_hours usd usd_low usd_high usd_per_million_tokens job_usd_per_hour may_be_late may_be_dear"
)
_SHORT = _names("need have need_unit short short_ratio")
VIEWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "scenarios": ("A question, a setup and knobs: everything but prices.", _SCENARIO),
    "priced": (
        "Scenarios that fit in memory, with every ranked offer of their shape.",
        (*_SCENARIO, *_OFFER, *_COST, "past_deadline", "over_budget"),
    ),
    "cheapest": (
        "The first ten places of each question: one row a shape and kind of price.",
        ("rank", "tie", *_SCENARIO, *_OFFER, "same_price", *_COST),
    ),
    "frontier": (
        "Of each question, what nothing else is both cheaper and faster than.",
        (*_SCENARIO, *_OFFER, "same_price", *_COST),
    ),
    "rejected": (
        "Questions and setups without a scenario that fits in time: the nearest miss.",
        (*_SCENARIO, "limit_name", *_SHORT),
    ),
    "nearest": (
        "Questions without an answer: the nearest miss of each limit that failed.",
        (
            *_names("limit_name closest_by place"),
            *_SCENARIO,
            *_OFFER,
            *_COST,
            "over_budget",
            *_SHORT,
        ),
    ),
    "rules_of_thumb": (
        "What rules of thumb say of each scenario's memory, beside our figure.",
        _names(
            "question setup knob model method gpu gpu_count allocated_gib rule low_gib expected_gib "
            "high_gib"
        ),
    ),
    "best_by_shape": (
        "What a question can expect of a shape at any price; behind the rankings.",
        _names("question shape setup knob hours"),
    ),
    "near_misses": (
        "What came closest on a shape, for questions nothing on sale answers; behind nearest.",
        _names("question shape miss setup knob hours"),
    ),
}


def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of a stored table, with unit and description in each field's metadata."""
    import pyarrow as pa  # not needed by `sweep --help` and `sweep plan`

    types = {
        "u8": pa.uint8(),
        "u32": pa.uint32(),
        "i64": pa.int64(),
        "f32": pa.float32(),
        "f64": pa.float64(),
        "bool": pa.bool_(),
        "text": pa.string(),
        "date": pa.date32(),
    }
    fields = []
    for name in TABLES[table]:
        column = COLUMNS[name]
        metadata = {"unit": column.unit, "description": column.description}
        # The key of a table is never null, though the same column may be in a view.
        nullable = column.nullable and name != table.removesuffix("s")
        fields.append(pa.field(name, types[column.dtype], nullable, metadata))
    return pa.schema(fields)


_DOCS_HEAD = """# Columns of the results

Generated from `sweep/columns.py` by `python -m sweep.columns > docs/columns.md`; do not edit.

A column means the same wherever it appears: in the Parquet files of a run folder, in the views of
`results.duckdb`, in SQL comments. Types: u8, u32, i32, i64 are integers, f32, f64 floats; `?`: may
be null.

## Files

`facts/part-*.parquet` holds what the kernels decided, in small integer keys and measures; the other
files describe the keys. Every file is named with its hash in `manifest.json`.
"""


def document() -> str:
    """docs/columns.md: the files, the views, and every column with unit and meaning."""
    lines = [_DOCS_HEAD]
    lines += ["| table | a row is | columns |", "|---|---|---|"]
    for name, names in TABLES.items():
        lines.append(f"| `{name}` | {TABLE_TITLES[name]} | {_listed(names)} |")
    lines += ["", "## Views", "", "| view | a row is | columns |", "|---|---|---|"]
    for name, (title, names) in VIEWS.items():
        listed = _listed(names)
        if name != "scenarios":
            listed = listed.replace(_listed(_SCENARIO), "all of `scenarios`")
        lines.append(f"| `{name}` | {title} | {listed} |")
    lines += ["", "## Columns", "", "| column | type | unit | meaning |", "|---|---|---|---|"]
    for column in _ALL:
        dtype = column.dtype + ("?" if column.nullable else "")
        lines.append(f"| `{column.name}` | {dtype} | {column.unit} | {column.description} |")
    return "\n".join(lines) + "\n"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    print(document(), end="")
