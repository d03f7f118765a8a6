"""A published run's words: which stack, precision, sharding, network and card they name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from sweep.catalogs.hardware import Gpu, gpu_names
from sweep.catalogs.models import Model
from sweep.catalogs.offers import Offer
from sweep.evidence.names import resolve_architecture, truncate
from sweep.evidence.points import Point, Unpredictable
from sweep.units import GBIT_PER_S_BYTES

# Our stack by words of a run's framework, the first that is found. Words of a trainer stand before
# those of the library it runs.
_STACKS: Sequence[tuple[str, str]] = (
    (r"llm-?foundry|composer", "llm-foundry"),
    (r"fsdp_qlora", "fsdp-qlora"),
    (r"torchtitan|torchao", "torchtitan"),
    (r"torchtune", "torchtune"),
    (r"fms-fsdp", "fms-fsdp"),
    (r"fms-acceleration.*foak|liger", "hf-fused"),
    (r"unsloth(?! vs)", "unsloth"),
    (r"automodel", "nemo-automodel"),
    (r"maxtext|paxml|\bjax\b|t5x", "maxtext"),
    (r"litgpt|lit-gpt", "litgpt"),
    (r"nanotron", "nanotron"),
    (r"habana", "optimum-habana"),
    (r"megatron-lm (201\d|202[0-2])|megatron-deepspeed|^megatron-lm$", "megatron-2021"),
    (r"megatron|nemo|primus|mindspeed|transformer ?engine|\bte\b", "megatron"),
    (r"axolotl", "axolotl"),
    (r"xtuner", "xtuner"),
    (r"flashattention|nanogpt|xformers|picotron|torch\.?compile", "fms-fsdp"),
)
# MLPerf entries name containers, not trainers: the reference of all of them is NeMo on Megatron-Core.
_MLPERF = re.compile(r"mlperf")
_GAUDI = re.compile(r"gaudi|habana", re.IGNORECASE)


# No run has more of anything: GPUs, sequences or tokens of one.
_MOST = 100_000_000


def count(point: Point, column: str, default: int | None = None) -> int:
    """A whole number of a run, 1 or more. Raises ValueError naming the column for anything else.

    "8.0" is 8, and so is 8.4: sources print means of uneven batches.
    """
    found = point.number(column, default)
    if default is not None and not point[column]:
        return default
    if not 0.5 <= found <= _MOST:
        raise ValueError(f"{column}: found {point[column]!r}, allowed a number from 1 to {_MOST:,}")
    return max(1, round(found))


def published_tokens_per_s(point: Point) -> float | None:
    """Published throughput, None where the source gives another figure [tokens/s per GPU]."""
    column = "derived_tokens_per_s_per_gpu"
    if not point[column]:
        return None
    found = point.number(column)
    if not 0.0 < found < _MOST:
        raise ValueError(f"{column}: found {point[column]!r}, allowed a number above 0")
    return found


def stack_of_run(point: Point) -> str:
    """The key of the stack a run used; a Hugging Face trainer where nothing else is named."""
    words = point["framework"].casefold()
    if _GAUDI.search(point["gpu_type"]):
        return "optimum-habana"
    if _MLPERF.search(point["source"].casefold()):
        return "megatron"
    found = next((stack for pattern, stack in _STACKS if re.search(pattern, words)), "hf")
    sharding = point["zero_or_fsdp"].casefold()
    several = count(point, "gpu_count", 1) > 1
    if found in ("hf", "hf-fused") and "fsdp" in sharding and "fsdp2" not in sharding and several:
        return f"{found}-fsdp1"
    if found == "hf" and "zero-" in sharding and several:
        return "hf-deepspeed"
    if found == "torchtitan" and count(point, "tp", 1) > 1:
        return "torchtitan-tp"
    return found


def method_of_run(point: Point) -> str:
    """full, lora or qlora; pretraining trains every weight."""
    word = point["method"].casefold()
    known = {"pretrain": "full", "full": "full", "sft": "full", "lora": "lora", "qlora": "qlora"}
    if word not in known:
        raise Unpredictable(f"method: found {point['method']!r}, known: {', '.join(known)}")
    return known[word]


def dtype_of_run(point: Point, method: str) -> str:
    """The dtype of the layers' matrices: bf16, fp16, fp32, fp8 or fp4.

    A source that leaves open whether 4 or 8 bits were used is read as 4 where all weights train: the
    submissions in question pretrain in NVFP4 and tune adapters in FP8.
    """
    words = point["precision"].casefold()
    if "nvfp4" in words or "mxfp4" in words:
        return "fp8" if " or " in words and method != "full" else "fp4"
    if "fp8" in words and not words.startswith("bf16/"):
        return "fp8"
    if words.startswith("fp32"):
        return "fp32"
    return "fp16" if words.startswith("fp16") and "/" not in words else "bf16"


def quantization_of_run(point: Point, method: str) -> str:
    """How a qlora run stores its base; none for other methods."""
    if method != "qlora":
        return "none"
    words = point["precision"].casefold()
    if "int8" in words:
        return "int8"
    return "gptq-int4" if "gptq" in words or "awq" in words else "nf4"


def zero_stage_of_run(point: Point, stack: str) -> int:
    """What the data-parallel ranks share."""
    words = point["zero_or_fsdp"].casefold()
    if count(point, "gpu_count", 1) <= 1:
        return 0
    if re.search(r"zero-?3|full_?\s?shard|hsdp|fsdp|gemini", words):
        return 3
    if match := re.search(r"zero-?([012])", words):
        return int(match[1])
    if re.search(r"dist.{0,10}opt", words) or stack == "megatron":
        return 1
    return 0


def attention_of_run(point: Point) -> str:
    """eager where the words say that scores are written out, else flash."""
    words = point["attention"].casefold()
    plain = re.search(r"eager|no flash|fused softmax|without flash", words)
    return "eager" if plain and "sdpa" not in words else "flash"


def stated_checkpointing(point: Point) -> str | None:
    """none, selective or full; None where the source does not say."""
    words = point["activation_checkpointing"].casefold()
    return words if words in ("none", "selective", "full") else None


def virtual_stages_of_run(point: Point, stack: str, layers: int, pp: int) -> float:
    """Chunks of layers a pipeline stage holds (VP); as many as there are layers where a run of
    Megatron-Core does not say: tuned runs interleave.
    """
    if pp == 1:
        return 1.0
    words = point["notes"]
    if match := re.search(r"\bVPP?\s*=?\s*(\d+)", words, re.IGNORECASE):
        return float(match[1])
    if "1f1b" in words.casefold() or stack != "megatron":
        return 1.0
    return float(max(1, -(-layers // pp)))


def gpu_of_run(point: Point, gpus: Mapping[str, Gpu]) -> Gpu:
    """The card of a run; raises Unpredictable for one the catalog does not have."""
    words = point["gpu_type"]
    if "HBM2e" in words:
        return gpus["H100-SXM-96GB"]
    names = gpu_names(gpus)
    plain = re.sub(r"\(.*?\)", "", words).strip()
    parts = plain.split()
    for count in range(len(parts), 0, -1):
        for text in (" ".join(parts[:count]), "-".join(parts[:count])):
            if key := names.get(text.casefold()):
                return gpus[key]
    raise Unpredictable(f"gpu_type: no GPU of the catalog is called {words!r}")


def model_of_run(point: Point, models: Mapping[str, Model]) -> Model:
    """The architecture of a run; raises Unpredictable for one the catalog does not have."""
    name = re.sub(r"\s*\([^)]*\)", "", point["model"]).strip()
    name = re.sub(r"\s+\d+-node$", "", name)
    cut = re.match(r"^(?P<name>.*?) PROXY (?P<layers>\d+) layers?$", name, re.IGNORECASE)
    found = resolve_architecture(cut["name"] if cut else name, models)
    if found is None:
        raise Unpredictable(f"no architecture in the catalog for model {point['model']!r}")
    return truncate(found, int(cut["layers"])) if cut else found


def lora_target_of_run(point: Point, stack: str, settings: Mapping[str, str]) -> str:
    """Which matrices have an adapter: stated, known of the source, or the stack's default."""
    words = point["notes"].casefold()
    if "all-linear" in words or "all linear" in words:
        return "all-linear"
    # NeMo and the MLPerf reference adapt the attention matrices.
    default = "attention" if stack == "megatron" else "all-linear"
    return settings.get("lora_target", default)


def is_kbit_prepared(point: Point) -> bool:
    """Whether norms and residual stream of a 4-bit base are fp32 (prepare_model_for_kbit_training).

    Plain Transformers on one GPU does it; FSDP casts back, accelerated loaders leave it out.
    """
    words = f"{point['framework']} {point['precision']}".casefold()
    if count(point, "gpu_count", 1) > 1 or "gptq" in words:
        return False
    return "accelerated" not in words and "unsloth" not in words


def timed_steps(point: Point) -> float | None:
    """Steps of a run timed together with its start-up; None where start-up was left out."""
    found = re.search(r"(\d+) steps incl\. start-up", point["notes"])
    return float(found[1]) if found else None


def best_networks(offers: Sequence[Offer]) -> dict[str, float]:
    """The fastest network sold with each GPU, of machines with RDMA [bytes/s per GPU]."""
    found: dict[str, float] = {}
    for offer in offers:
        if offer.rdma and offer.network_gbps:
            share = offer.network_gbps * GBIT_PER_S_BYTES / offer.gpu_count
            found[offer.gpu] = max(found.get(offer.gpu, 0.0), share)
    return found


_NETWORKS = (
    # "8x200 Gb HDR", "Compute: 8x ConnectX-7 IB NDR 400Gb/s", "3.2 Tbps", "400 Gbps inter-node"
    re.compile(r"(?P<cards>\d+)\s*x\s*(?P<speed>\d+)\s*Gb"),
    re.compile(r"Compute: (?P<cards>\d+)x.{0,40}?(?P<speed>\d+)\s*Gb/s"),
    re.compile(r"(?P<cards>\d+)x ConnectX-\d.{0,20}?(?P<speed>\d+)\s*Gb/s"),
    re.compile(r"(?P<tera>[\d.]+)\s*Tbps"),
    re.compile(r"(?P<speed>\d+)\s*Gbps"),
)
# Where nothing is stated and nothing is sold: one 400 Gb/s card for each GPU.
_USUAL_GBPS = 400.0


def network_of_run(point: Point, gpu: Gpu, networks: Mapping[str, float]) -> float:
    """Network of one GPU: as stated, else the best sold with that card [bytes/s]."""
    per_node = count(point, "gpus_per_node", 8)
    for pattern in _NETWORKS:
        if match := pattern.search(point["interconnect"]):
            groups = match.groupdict()
            if tera := groups.get("tera"):
                return float(tera) * 1000.0 * GBIT_PER_S_BYTES / per_node
            cards = float(groups.get("cards") or 1.0)
            return cards * float(groups["speed"]) * GBIT_PER_S_BYTES / per_node
    return networks.get(gpu.key, _USUAL_GBPS * GBIT_PER_S_BYTES)
