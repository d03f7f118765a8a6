"""The slow twin against numbers derived by hand, and against traced steps of real training."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import reference

GIB = 2**30
FULL_BF16 = {
    "weight_bytes": 2, "shard_weight_bytes": 2, "master_bytes": 0, "grad_bytes": 2,
    "gather_bytes": 2, "reduce_bytes": 2, "state_bytes": 4, "host_element_bytes": 16,
    "hidden_forward": 8, "hidden_backward": 8, "logit_forward": 10, "logit_backward": 12,
    "logit_grad": 2, "activation_bytes": 2, "head_grad_bytes": 2, "head_copy_bytes": 0,
    "residual_bytes": 2, "rotary_bytes": 2, "first_layer_saving": 0, "head_trained": 1,
    "layers_trained": 1, "cross_entropy": "plain", "checkpointing": "full", "attention": "flash",
    "temp_element_bytes": 0, "temp_tensor_bytes": 0, "traffic_bytes": 14, "recompute_matmul": 1,
    "recompute_attention": 1, "recompute_elementwise": 1, "dequant_bytes": 0,
    "memory_high": 1, "compute_dtype": "bf16",
}  # fmt: skip
STACK = {
    "vocab_parallel_loss": False, "context_bytes": 100, "comm_bytes": 50, "fragmentation_single":
    0.2, "fragmentation_multi": 0.1, "bucket_elements": 100, "bucket_bytes": 2, "process_bytes":
    10, "nvme_buffer_bytes": 7, "elementwise_passes": 0.5, "adapter_passes": 3,
    "loss_traffic_bytes": 12, "eager_attention_bytes": 6, "kernels_per_layer": 10, "kernel_s":
    0.01, "moe_efficiency": 0.5, "moe_imbalance": 1.5, "tp_exposed": 0.5, "dp_exposed": 0.25,
    "latency_s": 0.5, "host_traffic_bytes": 28, "transfer_bytes": 6, "loss_gathered_layers": 1,
    "backward_gathered_layers": 2, "reduced_layers": 1, "holds_finished_layers": 0,
    "replicates_scales": 0, "replicates_adapters": 0, "root_gather_copies": 1,
    "keeps_gradients": 0, "keeps_head_copy": 0, "whole_hidden_bytes": 0, "live_elements": 0,
    "offloads_gradients": 1, "ep_exposed": 0.75, "step_exposed": 0.6, "hidden_bytes": 20,
    "attention_bytes": 5, "gated_bytes": 7, "plain_bytes": 3, "cast_bytes": 1.5, "permute_bytes":
    17, "attention_kernel": 0, "virtual_stages": 1, "unit_s": 0, "adapter_unit_s": 0,
    "adapter_kernels": 4, "wide_residual_bytes": 30, "moe_kernels": 20,
}  # fmt: skip
SETUP = {
    "gpus": 1, "gpus_per_node": 1, "usable_bytes": 1e6, "memory_headroom": 0.0,
    "host_ram_bytes": 1e6, "attention_rates": (1e3, 500.0, 250.0), "memory_rate": 1e4,
    "matmul_rates": {"bf16": 1e3, "fp16": 800.0, "fp32": 100.0, "fp8": 2e3, "fp4": 0.0},
    "link_rate": 100.0, "network_rate": 40.0, "pcie_rate": 50.0, "host_rate": 1e3,
    "nvme_rate": 20.0,
}  # fmt: skip
KNOBS = {
    "micro_batch": 2, "seq_len": 16, "global_batch": 2, "dp": 1, "tp": 1, "pp": 1, "cp": 1,
    "ep": 1, "sequence_parallel": False, "zero_stage": 0, "offload": "none",
}  # fmt: skip
NOTHING = {"frozen_bytes": 0, "trained": 0}


def trained(elements: int) -> dict[str, int]:
    return {"frozen_bytes": 0, "trained": elements}


def toy(**changes: Any) -> reference.Scenario:
    """Four layers of 512 matrix and 16 norm elements, h = 8, V = 32; knobs, setup... by name."""
    group = {
        "count": 4,
        "values": {"h": 8, "hq": 8, "hkv": 4, "f": 16, "nq": 4, "nkv": 2},
        "keep": {"T*h": 2},
        "backward": [{"T*h": 16, "T*f": 4, "h*f": 2}],
        "linear_active": 512,
        "expert_active": 0,
        "attention_width": 16,
        "io_width": 100,
        "window": math.inf,
        "mlp_width": 16,
    }
    model = {
        "layers": 4, "hidden_size": 8, "vocab_size": 32, "tied": False, "rotary_dim": 2,
        "softcap_bytes": 0, "vision_flop": 0, "gated": True, "adapted": 0,
        "experts": 0, "experts_per_token": 0, "moe_layers": 0, "num_attention_heads": 4,
        "num_key_value_heads": 2, "groups": [group], "adapter_active": 0, "adapter_io": 0,
        "quantized_elements": {"linear": 0, "expert": 0},
        "matrix_elements": {"linear": 2048, "expert": 0}, "largest_trained": 256,
        "scale_bytes": 0, "vision_kept_bytes": 0,
        "parts": {
            "linear": trained(2048), "other": trained(64), "expert": NOTHING,
            "embed": trained(256), "head": trained(264), "vision": NOTHING,
        },
        "layer": {
            "frozen_linear_bytes": 0, "frozen_other_bytes": 0, "frozen_expert_bytes": 0,
            "trained_linear": 512, "trained_other": 16, "trained_expert": 0,
        },
    }  # fmt: skip
    sc: reference.Scenario = copy.deepcopy(
        {"model": model, "rule": FULL_BF16, "stack": STACK, "setup": SETUP, "knobs": KNOBS}
    )
    for name, value in changes.items():
        place = next(part for part in sc.values() if name in part)
        place[name] = value
    return sc


def llama_3_8b(backward: list[reference.Form], **changes: Any) -> reference.Scenario:
    """A layer has 2 h hq + 2 h hkv + 3 h f = 218,103,808 matrix and 2 h norm elements."""
    values = {"h": 4096, "hq": 4096, "hkv": 1024, "f": 14336, "nq": 32, "nkv": 8}
    sc = toy(vocab_size=128256, hidden_size=4096, rotary_dim=128, layers=32, **changes)
    sc["model"]["groups"][0] |= {"count": 32, "values": values, "backward": backward}
    sc["model"]["parts"] |= {
        "linear": trained(32 * 218_103_808), "other": trained(32 * 8192),
        "embed": trained(525_336_576), "head": trained(525_336_576 + 4096),
    }  # fmt: skip
    sc["model"]["layer"] |= {"trained_linear": 218_103_808, "trained_other": 8192}
    return sc


# Working sets above the live bytes of a recomputed Llama layer in pure bf16, as traced.
LLAMA_CHECKPOINTED: list[reference.Form] = [
    {"T*h": 16, "T*hq": 4, "T*hkv": 4, "T*f": 12, "T*nq": 4, "T": 8, "h*f": 2},
    {"T*h": 32, "T*hq": 4, "T*hkv": 4, "T*nq": 4, "T": 4, "h*f": 6, "h": 2},
    {"T*h": 24, "h*hq": 4, "h*hkv": 4, "h*f": 6, "h": 3.75},
]
LLAMA_KEPT: list[reference.Form] = [
    {"T*f": 4, "h*f": 2},
    {"T*h": 16, "T*f": -8, "T": -4, "h*f": 6, "h": 2},
]


def traced_phases(sc: reference.Scenario) -> dict[str, float]:
    """GiB of forward, loss, layers (the largest of three phases) and step."""
    bytes_of = reference.evaluate(sc)["phases"]["only"]
    layers = max(bytes_of["top"], bytes_of["bottom"], bytes_of["end"])
    found = {"forward": bytes_of["forward"], "loss": bytes_of["loss"], "layers": layers}
    return {name: value / GIB for name, value in (found | {"step": bytes_of["step"]}).items()}


# Steps of Meta-Llama-3-8B, full bf16, fused AdamW, traced op by op (torch 2.15, transformers 5.23).
# The first by hand, in GiB: weights and states 3 x 14.95752 = 44.8726; kept 32 x 2hT = 0.5; rotary
# and positions 0.0010; hidden 8hT = 0.0625; logits 10VT = 2.4463, 12VT = 2.9355; so the forward
# 47.8824 and the loss 48.3716. P_end = 44.8726 + 14.9575 + 2hT 0.0156 = 59.8457; P_step 59.8301.
# The last row's layers are 0.27% under the trace: its peak is the backward of the final norm, 24hT
# with all layers kept, which is no phase of the page (24hT for 2hT + 4fT + 2hf gives 145.4189).
@pytest.mark.parametrize(
    ("micro_batch", "seq_len", "checkpointing", "traced"),
    [
        (1, 2048, "full", (47.88256, 48.3718, 59.8459, 59.83028)),
        (2, 4096, "full", (56.91014, 58.86705, 60.65174, 59.83037)),
        (8, 2048, "full", (68.94458, 72.85839, 62.74566, 59.83049)),
        (1, 2048, "none", (59.64087, 60.13012, 59.8459, 59.83028)),
        (8, 512, "none", (74.40731, 75.38577, 70.74318, 59.83031)),
        (8, 2048, "none", (163.011, 166.92482, 145.4189, 59.83049)),
    ],
)
def test_traced_llama_3_8b(
    micro_batch: int, seq_len: int, checkpointing: str, traced: tuple[float, ...]
) -> None:
    recomputed = checkpointing == "full"
    sc = llama_3_8b(
        LLAMA_CHECKPOINTED if recomputed else LLAMA_KEPT,
        micro_batch=micro_batch,
        global_batch=micro_batch,
        seq_len=seq_len,
        checkpointing=checkpointing,
    )
    if not recomputed:
        kept = {"T*h": 16, "T*hq": 4, "T*hkv": 4, "T*f": 8, "T*nq": 4, "T": 8}
        sc["model"]["groups"][0]["keep"] = kept
    found = traced_phases(sc)
    assert tuple(found.values()) == pytest.approx(traced, rel=3e-3)


def test_traced_fsdp2_llama_3_8b_over_8_gpus() -> None:
    # FSDP2, 8 GPUs: 6N/8 = 5.6091, root gathered 1.9570, one layer 0.4063, kept 0.5, hidden 0.0625,
    # rotary 0.0010, logits 2.4463 / 2.9355: 10.9822 and 11.4714; the step 8N/8 = 7.4788.
    sc = llama_3_8b(
        LLAMA_CHECKPOINTED, micro_batch=1, seq_len=2048, dp=8, zero_stage=3, global_batch=8
    )
    sc["setup"] |= {"gpus": 8, "gpus_per_node": 8}
    found = traced_phases(sc)
    assert found["forward"] == pytest.approx(10.98235, rel=2e-3)
    assert found["loss"] == pytest.approx(11.47159, rel=2e-3)
    assert found["step"] == pytest.approx(7.47893, rel=2e-3)


def pipelined() -> reference.Scenario:
    """8 GPUs on 2 nodes: tp 2, pp 2, dp 2; m = 16 / (2 x 2) = 4; T = 2 x 16 = 32; L_s = 1/2."""
    return toy(tp=2, pp=2, dp=2, gpus=8, gpus_per_node=4, global_batch=16)


def test_both_stages_of_a_pipeline_by_hand() -> None:
    # Layers: 2048/2/2 + 64/2 = 544 elements; first stage + 256/2 = 672, last + 264/2 = 676.
    # First: weights 1344, states 2688, gradients before 1344, bucket 1344 (ddp): S + buffer = 6720.
    # Last:  weights 1352, states 2704, gradients before 1352, bucket 1352: 6760.
    # hT = 256; keep' = 1/2 x 4 x 2hT = 1024; one = 512; fixed = 2 x 2 x 16 x 2 + 32 x 32 = 1152;
    # residual 512; W = 32 (16 x 8 + 4 x 16/2) + 2 x 8 x 16/2 = 5248; inflight first = min(4, 2).
    # Logits: hidden 8 x 256 = 2048; forward 10 x 32 x 32 = 10240;
    # backward max(12288, 2048 + 512 + 2 x 8 x 32/2 = 2816).
    result = reference.evaluate(pipelined())
    assert result["phases"]["first"] == pytest.approx(
        {
            "top": 6720 + 2 * 1024 + 1152 + 512 + 5248,
            "bottom": 6720 + 1024 + 512 + 1152 + 512 + 5248,
            "end": 4032 + 1344 + 512,
            "step": 4032 + 1344,
        }
    )
    assert result["phases"]["last"] == pytest.approx(
        {
            "forward": 6760 + 1024 + 1152 + 2048 + 10240,
            "loss": 6760 + 1024 + 1152 + 2048 + 12288,
            "top": 6760 + 1024 + 1152 + 512 + 5248,
            "bottom": 6760 + 512 + 1152 + 512 + 5248,
            "step": 4056 + 1352,
        }
    )
    assert result["allocated_bytes"] == pytest.approx(23272)
    assert result["device_bytes"] == pytest.approx(23272 * 1.1 + 100 + 50)
    assert result["host_bytes"] == pytest.approx(4 * 10)


def test_step_time_of_a_pipeline_by_hand() -> None:
    result = reference.evaluate(pipelined())
    seconds = result["seconds"]
    # 2 T L_s / tp = 16; layers 16 x (2+1+1) x 4 x 512 = 131072; head 2 x 32 x 3 x 128 = 24576
    assert seconds["matmul"] == pytest.approx(131.072)
    assert seconds["half"] == pytest.approx(24.576)
    # 16 x 4.5 x 4 layers x width 16 x 16/2
    assert seconds["attention"] == pytest.approx(36.864)
    # 0.5 T L_s (3+1) x 4 layers x [20 x 8 + (5 x 12 + 7 x 16) / 2 = 246] = 8 x 4 x 984
    assert seconds["elementwise"] == pytest.approx(3.1488)
    assert seconds["loss"] == pytest.approx(12 * 32 * 32 / 1e4)
    # 2 x 4 x [2048/4 + 8 x 4 x 100] + 2 x 3 x 128
    assert seconds["operands"] == pytest.approx((29696 + 768) / 1e4)
    assert seconds["eager"] == seconds["adapters"] == seconds["dequant"] == 0
    assert seconds["permute"] == seconds["casts"] == seconds["units"] == 0
    # 131.072 + 24.576 + 36.864 + 3.1488 + 1.2288 + 3.0464
    assert seconds["gpu"] == pytest.approx(199.936)
    assert seconds["host"] == pytest.approx(0.01 * 10 * 4 * 4 / 2)
    # first stage, zero 0: 2 x 2 x 672 = 2688 once, wi = min(2, 4/2) = 2, wn = 1: 1344 over the link;
    # two rings of one step each
    assert seconds["shard"] == 0
    assert seconds["shard_once"] == pytest.approx(13.44 + 2 * 0.5)
    # 0.5 x (4+2) x 2 layers x [2 x 1/2 x 2 x 8 x 32 / 100 + 2 x 0.5]
    assert seconds["tp"] == pytest.approx(6 * 6.12)
    # 2 x 2 x 8 x 32 / 2 = 512 over 40/4, and two latencies
    assert seconds["pp"] == pytest.approx(52.2)
    assert seconds["optimizer"] == pytest.approx(14 * 672 / 1e4)
    micro = (199.936**4 + 0.8**4) ** 0.25 + 36.72 + 52.2
    assert result["step_s"] == pytest.approx(5 * micro + 0.6 * 14.44 + 0.9408)
    assert result["seconds_per_token"] == pytest.approx(result["step_s"] / 256)
    # five rounds, four GPUs, 512 bytes each to the next stage
    assert result["network_bytes_per_step"] == pytest.approx(5 * 4 * 512)


def test_zero_3_across_nodes_by_hand() -> None:
    # tp 2, dp 4 on two nodes of 4; m = 1. t = 2048/2 + 64 + 128 + 132 = 1348, a quarter each: 337.
    sc = toy(tp=2, dp=4, gpus=8, gpus_per_node=4, global_batch=8, zero_stage=3)
    result = reference.evaluate(sc)
    bytes_of = result["phases"]["only"]
    # S = 6 x 337 = 2022. Gathered root 2 x 260, layer 2 x (512/2 + 16) = 544; layer buffer
    # 520 + 2 x 544 + 544 = 2152. Gradients 674: less the layer's 2 x 272/4, the embedding's 2 x 128/4
    # and the head's shard 2 x 132/4 they leave 408; the head's own stays whole, 2 x 132 = 264.
    assert bytes_of["bottom"] == pytest.approx(2022 + 2152 + 408 + 264 + 512 + 1152 + 512 + 5248)
    assert bytes_of["top"] == pytest.approx(2022 + 2152 + 2048 + 1152 + 512 + 264 + 5248)
    assert bytes_of["forward"] == pytest.approx(2022 + 1064 + 2048 + 1152 + 2048 + 10240)
    # The root's gradient and its reduction, (2 + 2) x 260, in place of its shard 2 x 260/4.
    assert bytes_of["end"] == pytest.approx(2022 + 674 + 1040 - 130)
    # 3 x 2696 = 8088 a micro-batch: 4044 over the link = 40.44 s; the network carries
    # 8088 x 1/2 x min(4, 4)/2 = 8088 = 202.2 s. Three rings a layer, of one step inside a node and
    # one between: 3 x 4 x 2 x 0.5.
    assert result["seconds"]["shard"] == pytest.approx(202.2 + 12)
    assert result["seconds"]["shard_once"] == 0
    assert result["network_bytes_per_step"] == pytest.approx(8088)


@pytest.mark.parametrize(
    ("zero_stage", "micro", "once", "bucket"),
    [
        # t = 2632, reduce = gather_bytes t = 5264; half of a volume crosses wi = 2 at 100 a second
        # and one step of a ring takes 0.5: two rings once a step, one at stage 2, whose other is each
        # micro-batch's; 3 x 4 layers a micro-batch
        (0, 0.0, 52.64 + 1, 5264),
        (1, 0.0, 52.64 + 1, 400),
        (2, 26.32 + 0.5, 26.32 + 0.5, 400),
        (3, 78.96 + 6, 0.0, 0),
    ],
)
def test_shard_traffic_of_each_zero_stage(
    zero_stage: int, micro: float, once: float, bucket: float
) -> None:
    sc = toy(dp=2, gpus=2, gpus_per_node=2, global_batch=4, zero_stage=zero_stage)
    seconds = reference.evaluate(sc)["seconds"]
    assert seconds["shard"] == pytest.approx(micro)
    assert seconds["shard_once"] == pytest.approx(once)
    assert reference.buckets(sc, reference.stages(sc)[0]) == pytest.approx(bucket)


def test_offloads_by_hand() -> None:
    # One GPU, t = 2048 + 64 + 256 + 264 = 2632, and 1000 bytes frozen.
    def with_offload(zero_stage: int, offload: str) -> reference.Scenario:
        sc = toy(zero_stage=zero_stage, offload=offload, temp_element_bytes=2)
        sc["model"]["parts"]["vision"] = {"frozen_bytes": 1000, "trained": 0}
        return sc

    held = {
        "none": (0, 1000 + 6 * 2632, 10),
        "optimizer-cpu": (1, 1000 + 2 * 2632, 10 + 16 * 2632),
        "params-cpu": (3, 0, 10 + 18 * 2632 + 1000),
        "params-nvme": (3, 0, 10 + 7),
    }
    for offload, (zero_stage, on_gpu, on_host) in held.items():
        result = reference.evaluate(with_offload(zero_stage, offload))
        assert result["resident_bytes"]["only"] == pytest.approx(on_gpu)
        assert result["host_bytes"] == pytest.approx(on_host)
        step = on_gpu + (4 * 2632 if offload == "none" else 0)
        assert result["phases"]["only"]["step"] == pytest.approx(step)
    stored = 2 * 2632 + 1000
    in_memory = reference.evaluate(with_offload(3, "params-cpu"))["seconds"]
    on_disk = reference.evaluate(with_offload(3, "params-nvme"))["seconds"]
    assert in_memory["fetch"] == pytest.approx(2 * stored / 50)
    assert on_disk["fetch"] == pytest.approx(2 * stored / 20)
    assert in_memory["optimizer"] == pytest.approx(28 * 2632 / 1e3 + 6 * 2632 / 50)


def test_features_on_one_gpu() -> None:
    values = {"h": 8, "hq": 16, "hkv": 8, "nkv": 2, "nq": 4, "fe": 12, "E": 8, "k": 2, "rq": 6}
    knobs = {"tp": 4, "ep": 2, "sequence_parallel": False, "seq_len": 32}
    plain = {
        "1": 1, "T": 1, "T*h": 8, "T*hq": 4, "T*hkv": 4, "T*nkv": 1, "T*s*nq": 32, "T*E": 8,
        "E*fe*h": 4 * 3 * 8, "T*k*fe": 6, "T*k*h": 16, "h*hkv": 32, "T*rq": 6, "T*E*h": 64,
    }  # fmt: skip
    for feature, value in plain.items():
        assert reference.feature_value(feature, values, knobs) == pytest.approx(value), feature
    knobs["sequence_parallel"] = True
    divided = {"T", "T*h", "T*E", "T*k*h", "T*rq", "T*E*h"}
    for feature, value in plain.items():
        expected = value / 4 if feature in divided else value
        assert reference.feature_value(feature, values, knobs) == pytest.approx(expected), feature


def test_experts_split_over_tensor_parallel_ranks_by_hand() -> None:
    # 8 GPUs, tp 4: with ep 2 of dp 2 an expert is split four ways and its tokens are gathered.
    values = {"h": 8, "hw": 8, "k": 2}
    sizes = {"gpus": 8, "gpus_per_node": 4, "zero_stage": 1, "sequence_parallel": True}
    split = toy(tp=4, dp=2, ep=2, **sizes)
    whole = toy(tp=4, dp=2, ep=4, **sizes)
    # An expert's four ranks fill a node: the two of an exchange are in two. Whole ones fit in one.
    assert reference.expert_nodes(split) == (1, 2)
    assert reference.expert_nodes(whole) == (4, 1)
    for sc, tokens_share, element_share in ((split, 1, 1 / 8), (whole, 1 / 4, 1 / 4)):
        sc["model"]["parts"]["expert"] = trained(800)
        found = reference.feature_value("T*k*hw", values, sc["knobs"])
        assert found == 16 * tokens_share
        only = reference.stages(sc)[0]
        assert only.trained_expert == 800 * element_share
        # Whatever the split, all eight GPUs share the states of every expert.
        assert only.trained_expert / reference.expert_shards(sc) == 100


def test_the_busiest_experts_get_room_by_hand() -> None:
    # T = 2 x 16 = 32, k 2, fe 12: half as much again of the routed bytes, a rank's device alone.
    sc = toy(dp=2, ep=2, gpus=2, gpus_per_node=2, global_batch=4)
    group = sc["model"]["groups"][0]
    group["values"] |= {"k": 2, "fe": 12}
    group["keep"] = {"T*h": 2, "T*k*fe": 6}
    group["backward"] = [{"T*k*h": 4, "T*h": 100}, {"T*k*fe": 4}]
    only = reference.stages(sc)[0]
    routed = 32 * (4 * 6 * 2 * 12 + max(4 * 2 * 8, 4 * 2 * 12))
    assert reference.expert_room(sc, only) == pytest.approx(0.5 * routed)
    before = reference.evaluate(sc)
    sc["stack"] = {**sc["stack"], "moe_imbalance": 1.0}
    after = reference.evaluate(sc)
    assert after["phases"] == before["phases"]
    assert before["device_bytes"] > after["device_bytes"]
    sc["knobs"]["ep"] = 1
    assert reference.expert_room(sc, only) == 0


def test_context_and_expert_parallel_by_hand() -> None:
    # 8 GPUs on nodes of 4, tp 2, cp 4: T = 2 x 16 / 4 = 8 and the ring spans nodes (2 x 4 > 4).
    sc = toy(tp=2, cp=4, gpus=8, gpus_per_node=4, zero_stage=1)
    seconds = reference.evaluate(sc)["seconds"]
    # 3 x 3 x 2 x 2 x 8 x (4 layers x 4) / 2 = 2304 bytes over 40/4
    assert seconds["cp"] == pytest.approx(0.25 * 230.4)

    # ep 2 of dp 2 inside a node: experts 4, 2 a token, 3 of 4 layers.
    sc = toy(dp=2, ep=2, gpus=2, gpus_per_node=2, global_batch=4, experts=4, experts_per_token=2)
    sc["model"]["moe_layers"] = 3
    sc["model"]["parts"]["expert"] = trained(800)
    result = reference.evaluate(sc)
    # 6 x 2 x 32 x 2 x 8 x 1/2 x 3 = 9216 bytes, times 0.75 x 1.5, over the link
    assert result["seconds"]["ep"] == pytest.approx(0.75 * 1.5 * 92.16)
    assert result["resident_bytes"]["only"] == pytest.approx(6 * (2632 + 400))
    assert result["network_bytes_per_step"] == 0

    # ep 4 of dp 4 on two nodes of two: a copy of hidden states is 1.5 x 6 x 2 x 32 x 8 x 3 = 13824.
    sc = toy(dp=4, ep=4, gpus=4, gpus_per_node=2, global_batch=8, experts=4, experts_per_token=2)
    sc["model"]["moe_layers"] = 3
    sc["model"]["parts"]["expert"] = trained(800)
    result = reference.evaluate(sc)
    # Two experts a token: 2 x 1/2 copies over the link. 2 (1 - 1/2 x 1/2) = 1.5 nodes have one of
    # them, half of those are other nodes: 0.75 copies = 10368 over 40/2.
    assert result["seconds"]["ep"] == pytest.approx(0.75 * (138.24 + 518.4))
    # Two GPUs a node; gradients once a step, 2 x 2 x (2632 + 200) over 2 of 2 rings, half between.
    assert result["network_bytes_per_step"] == pytest.approx(2 * 10368 + 5664)


def test_narrow_matmuls_by_hand() -> None:
    """Layers in 8 bits: their matrices at that rate, operands brought to it, the head as before."""
    plain = reference.evaluate(toy())["seconds"]
    narrow = reference.evaluate(toy(compute_dtype="fp8"))["seconds"]
    # 2 x 32 x (2+1+1) x 4 layers x 512 = 524288; head 2 x 32 x 3 x 256 = 49152
    assert (plain["matmul"], narrow["matmul"]) == pytest.approx((524.288, 262.144))
    assert plain["half"] == narrow["half"] == pytest.approx(49.152)
    # 1.5 bytes x 4 passes x 32 tokens x 4 layers x 100 inputs and outputs
    assert (plain["casts"], narrow["casts"]) == pytest.approx((0, 7.68))
    assert narrow["gpu"] == pytest.approx(plain["gpu"] - 262.144 + 7.68)
    # Layers in 32 bits have their head in 32 bits too.
    assert reference.evaluate(toy(compute_dtype="fp32"))["seconds"]["half"] == pytest.approx(491.52)


def test_adapters_by_hand() -> None:
    """A frozen base: adapters beside the head at 16 bits, their kernels launched, their passes made."""
    sc = toy(
        layers_trained=0, head_trained=0, adapter_active=100, adapter_io=50, adapted=8,
        compute_dtype="fp8",
    )  # fmt: skip
    seconds = reference.evaluate(sc)["seconds"]
    # 2 x 32 x (2+0+1) x 4 x 512 = 393216 at 2000
    assert seconds["matmul"] == pytest.approx(196.608)
    # adapters 2 x 32 x (3+1) x 100 = 25600, head 2 x 32 x 2 x 256 = 32768, both at 1000
    assert seconds["half"] == pytest.approx(58.368)
    # 3 passes x 2 bytes x 32 x (1 + 1/3) x 50
    assert seconds["adapters"] == pytest.approx(1.28)
    # 0.01 x (10 x 4 layers + 4 x 8 adapters) x (3+1)
    assert seconds["host"] == pytest.approx(2.88)


def test_elementwise_bytes_of_each_kind_of_layer() -> None:
    def elementwise(**changes: Any) -> float:
        return float(reference.evaluate(toy(**changes))["seconds"]["elementwise"])

    # 0.5 x 32 x (3+1) x 4 layers x [20 x 8 + 5 x 12 + 7 x 16 = 332, or + 3 x 16 = 268]
    assert elementwise() == pytest.approx(8.4992)
    assert elementwise(gated=False) == pytest.approx(6.8608)
    # A frozen base with an fp32 residual stream: + 30 x 8 = 572; a trained one has it as it is.
    assert elementwise(residual_bytes=4, layers_trained=0) == pytest.approx(14.6432)
    assert elementwise(residual_bytes=2, layers_trained=0) == pytest.approx(8.4992)
    assert elementwise(residual_bytes=4) == pytest.approx(8.4992)


@pytest.mark.parametrize(("kernel", "seconds"), [(0, 147.456), (1, 294.912), (2, 589.824)])
def test_attention_takes_the_rate_of_its_kernel(kernel: int, seconds: float) -> None:
    # 2 x 32 x (3.5+1) x 4 layers x 16 x 16/2 = 147456 at 1000, 500 and 250
    found = reference.evaluate(toy(attention_kernel=kernel))["seconds"]
    assert found["attention"] == pytest.approx(seconds)


def test_routed_tokens_by_hand() -> None:
    """Experts on two ranks: the busiest one has half as much again to compute and to sort."""

    def routed(ep: int) -> dict[str, float]:
        sc = toy(dp=2, ep=ep, gpus=2, gpus_per_node=2, global_batch=4, experts_per_token=2)
        sc["model"]["moe_layers"] = 3
        sc["model"]["groups"][0]["expert_active"] = 50
        seconds: dict[str, float] = reference.evaluate(sc)["seconds"]
        return seconds

    alone, apart = routed(1), routed(2)
    # 2 x 32 x 4 passes x 4 layers x (512 + 50 / 0.5 = 612, or 512 + 50 x 1.5 / 0.5 = 662)
    assert (alone["matmul"], apart["matmul"]) == pytest.approx((626.688, 677.888))
    # 17 bytes x (1 + 1/3) x 32 tokens x 2 experts x 8 x 3 layers = 34816, and half as much again
    assert (alone["permute"], apart["permute"]) == pytest.approx((3.4816, 5.2224))
    # 0.01 x (10 x 4 layers + 20 x 3 of experts) x (3+1)
    assert alone["host"] == apart["host"] == pytest.approx(4)


def of_layers(count: int, **changes: Any) -> reference.Scenario:
    """Two pipeline stages of a toy with that many layers: T = 32, m = 2 / 2 = 1."""
    sc = toy(layers=count, pp=2, gpus=2, gpus_per_node=2, **changes)
    sc["model"]["groups"][0]["count"] = count
    return sc


def test_an_uneven_split_leaves_the_head_to_a_shorter_stage() -> None:
    # Five layers on two stages: 3 and 2, and the one of 3 has no head. 2 x 32 x 3 x 4 x 512 = 393216.
    uneven = reference.evaluate(of_layers(5))["seconds"]
    assert uneven["matmul"] == pytest.approx(393.216)
    assert uneven["half"] == uneven["loss"] == 0
    # 2 x 4 x (2048 x 3/5 + 32 x 3 x 100), nothing of the head
    assert uneven["operands"] == pytest.approx(8.66304)
    assert uneven["host"] == pytest.approx(0.01 * 10 * 3 * 4)
    # Six: 3 and 3, and the last has the head: 2 x 32 x 3 x 256 and 12 x 32 x 32.
    even = reference.evaluate(of_layers(6))["seconds"]
    assert even["matmul"] == pytest.approx(393.216)
    assert (even["half"], even["loss"]) == pytest.approx((49.152, 1.2288))


def test_virtual_stages_by_hand() -> None:
    """Two chunks of layers a stage: half the bubble, and the split is that of four."""
    chunked = {count: reference.evaluate(of_layers(count, virtual_stages=2)) for count in (6, 8)}
    # Six layers in four chunks: 2 + 2 on the fullest stage, no head. Eight: 2 + 2 on both.
    for count, head_s in ((6, 0.0), (8, 49.152)):
        seconds = chunked[count]["seconds"]
        assert seconds["matmul"] == pytest.approx(524.288)
        assert seconds["half"] == pytest.approx(head_s)
        # One micro-batch, and (2 - 1) / 2 of one in the bubble.
        rest = seconds["step"] - seconds["optimizer"]
        assert rest == pytest.approx(1.5 * seconds["micro"])
        # What the second chunk hands on is hidden.
        assert seconds["pp"] == reference.evaluate(of_layers(count))["seconds"]["pp"]
    # Bytes are those of stages in one piece.
    assert chunked[6]["phases"] == reference.evaluate(of_layers(6))["phases"]
    # Without a pipeline there is nothing to cut.
    alone = reference.evaluate(toy(virtual_stages=2))["seconds"]
    assert alone == reference.evaluate(toy())["seconds"]


def test_units_by_hand() -> None:
    """Three collectives of every sharded unit: 3 x (0.25 x 4 layers + 0.125 x 8 adapters)."""

    def units(**changes: Any) -> float:
        sc = toy(unit_s=0.25, adapter_unit_s=0.125, adapted=8, gpus_per_node=4, **changes)
        seconds = reference.evaluate(sc)["seconds"]
        parts = ("tp", "cp", "ep", "pp", "fetch", "units")
        shared = 0.25 * seconds["shard"] + sum(seconds[part] for part in parts)
        overlapped = (seconds["compute"] ** 4 + seconds["shard"] ** 4) ** 0.25
        assert seconds["micro"] == pytest.approx(overlapped + shared)
        return float(seconds["units"])

    assert units(dp=2, gpus=2, global_batch=4, zero_stage=3) == pytest.approx(6)
    # A stage of two has half of the layers and of their adapters.
    assert units(dp=2, pp=2, gpus=4, global_batch=4, zero_stage=3) == pytest.approx(3)
    # Adapters that a quantised base leaves whole are no units: 3 x 0.25 x 4.
    whole = {"replicates_adapters": 1, "dequant_bytes": 4.5}
    assert units(dp=2, gpus=2, global_batch=4, zero_stage=3, **whole) == pytest.approx(3)
    assert units(dp=2, gpus=2, global_batch=4, zero_stage=2) == 0
    assert units(zero_stage=3, offload="params-cpu") == 0


def test_windows_and_fused_linear_loss_by_hand() -> None:
    assert reference.causal({"window": 16}, 16) == 8
    assert reference.causal({"window": 4}, 16) == 4 - 16 / 32
    # T = 32, ceil(V/h) = 4, 8 rows at a time: 8 x 256 + 2 x 256 + 8 x 8 x 32 + 2 x 8 x 32
    sc = toy(cross_entropy="fused-linear")
    assert reference.loss_forward(sc) == 2048 + 512 + 2048 + 512
    assert reference.loss_backward(sc) == reference.loss_forward(sc)
    # T = 40 in chunks of next_pow2(10) = 16
    assert reference.chunk_rows(toy(seq_len=20)) == 16


def test_autocast_copies_live_through_forward_only_with_checkpointing() -> None:
    without, with_copies = toy(), toy()
    with_copies["model"]["groups"][0]["keep"] = {"T*h": 2, "h*f": 2}
    before, after = (reference.evaluate(sc)["phases"]["only"] for sc in (without, with_copies))
    grown = {name: after[name] - before[name] for name in before}
    copies = 4 * 2 * 8 * 16
    assert grown == pytest.approx({name: copies if name == "forward" else 0 for name in before})
    with_copies["rule"]["checkpointing"] = "none"
    after = reference.evaluate(with_copies)["phases"]["only"]
    assert after["loss"] - before["loss"] == pytest.approx(copies)
    assert after["bottom"] - before["bottom"] == pytest.approx(copies / 4)


def test_tied_embedding_stands_on_both_ends() -> None:
    sc = pipelined()
    sc["model"]["tied"] = True
    sc["model"]["parts"]["head"] = trained(8)
    first, last = reference.stages(sc)
    assert (first.trained, last.trained) == (544 + 128, 544 + 4 + 128)
    end = reference.evaluate(sc)["phases"]["first"]["end"]
    assert end == pytest.approx(8 * 672 + 2 * 2 * 8 * 32 / 2)


def test_exactly_full_fits_and_one_byte_less_does_not() -> None:
    sc = toy(zero_stage=1, offload="optimizer-cpu")
    needed = reference.evaluate(sc)
    sc["setup"] |= {
        "usable_bytes": needed["device_bytes"], "host_ram_bytes": needed["host_bytes"]
    }  # fmt: skip
    assert reference.evaluate(sc)["verdict"] == "fits"
    sc["setup"]["host_ram_bytes"] -= 1
    assert reference.evaluate(sc)["verdict"] == "host_memory"
    sc["setup"]["host_ram_bytes"] = None
    assert reference.evaluate(sc)["verdict"] == "host_memory"
    sc["setup"]["usable_bytes"] -= 1
    assert reference.evaluate(sc)["verdict"] == "gpu_memory"
    sc["setup"]["matmul_rates"]["bf16"] = 0
    assert reference.evaluate(sc)["verdict"] == "unsupported"
    assert reference.evaluate(toy(host_ram_bytes=None))["verdict"] == "fits"


def test_best_is_the_fastest_fit_then_the_nearest_miss() -> None:
    slow, fast = toy(attention_rates=(500.0, 500.0, 250.0)), toy()
    assert reference.best([slow, fast, copy.deepcopy(fast)])["index"] == 1
    large, larger = toy(usable_bytes=20000), toy(usable_bytes=10000)
    refused = toy(compute_dtype="fp4")
    missed = reference.best([refused, larger, large, copy.deepcopy(large)])
    assert (missed["index"], missed["verdict"]) == (2, "gpu_memory")
    assert reference.best([refused, refused])["index"] == 0
    # 1 - headroom divides: the same miss with more headroom is a wider one
    wide = toy(usable_bytes=20000, memory_headroom=0.5)
    assert reference.best([wide, large])["index"] == 1


def test_layouts_of_a_node() -> None:
    support = {
        "tensor_parallel": True, "sequence_parallel": True, "pipeline_parallel": True,
        "context_parallel": False, "expert_parallel": True, "zero_stages": {0, 1, 3},
        "offloads": {"none", "params-cpu"},
    }  # fmt: skip
    model = {"layers": 3, "num_attention_heads": 12, "experts": 6}

    def found(**lists: Any) -> list[tuple[Any, ...]]:
        given: dict[str, Any] = {
            "tps": [1], "pps": [1], "cps": [1], "eps": [1], "sps": [False], "zero_stages": [0],
            "offloads": ["none"], "micro_batches": [1],
        }  # fmt: skip
        combinations = reference.layouts(
            8, 8, model, support, global_batch=16, seq_len=12, **(given | lists)
        )
        names = {"tps": "tp", "pps": "pp", "cps": "cp", "eps": "ep", "sps": "sequence_parallel"}
        names |= {"micro_batches": "micro_batch", "zero_stages": "zero_stage"}
        shown = [names.get(name, name.removesuffix("s")) for name in lists]
        return [tuple(knobs[name] for name in (*shown, "dp")) for knobs in combinations]

    # 3 does not divide 8, 8 not the 12 heads, 16 is more than the node
    assert found(tps=[1, 2, 3, 4, 8, 16]) == [(1, 8), (2, 4), (4, 2)]
    # 4 stages are more than 3 layers, 3 do not divide 8
    assert found(pps=[1, 2, 3, 4]) == [(1, 8), (2, 4)]
    # the stack has no context parallelism
    assert found(cps=[1, 2]) == [(1, 8)]
    # 3 divides the experts, not w = 8; 4 divides w, not the experts
    assert found(eps=[1, 2, 3, 4]) == [(1, 8), (2, 8)]
    assert found(tps=[1, 2], sps=[False, True]) == [(1, False, 8), (2, False, 4), (2, True, 4)]
    # 16 sequences over 8 GPUs: two each
    assert found(micro_batches=[1, 2, 4]) == [(1, 8), (2, 8)]
    # stage 2 is not the stack's; params-cpu needs stage 3
    assert found(zero_stages=[0, 1, 2, 3], offloads=["none", "params-cpu"]) == [
        (0, "none", 8), (1, "none", 8), (3, "none", 8), (3, "params-cpu", 8)
    ]  # fmt: skip

    def alone(zero_stages: list[int], offloads: list[str]) -> list[tuple[int, str]]:
        combinations = reference.layouts(
            1, 1, model | {"experts": 0}, support | {"offloads": {"none", "optimizer-cpu"}},
            [1], [1], [1], [1, 2], [False], zero_stages, offloads, [1], 1, 12,
        )  # fmt: skip
        return [(knobs["zero_stage"], knobs["offload"]) for knobs in combinations]

    # One GPU shards only to offload; without experts ep stays 1.
    assert alone([0, 1], ["none", "optimizer-cpu"]) == [(0, "none"), (1, "optimizer-cpu")]
