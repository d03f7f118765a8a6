"""Scenarios of a plan in the terms of tests/reference.py, from catalog values and plan rows."""

from __future__ import annotations

import math
from typing import Any

from sweep.kernels.tables import PARTS
from sweep.plan import Plan
from sweep.plan.programs import COMPUTE_DTYPES, RECOMPUTE, rule_of
from sweep.vocabulary import OFFLOADS

LAYER_PARTS = ("linear", "other", "expert")


def reference_scenario(plan: Plan, book: Any, w: int, setup_row: int, knob: int) -> dict[str, Any]:
    """The scenario of a workload, a setup and a knob number as tests/reference.py reads it."""
    workload = plan.workloads[w]
    rest, micro = divmod(knob, len(plan.micro_batches))
    rest, layout_row = divmod(rest, len(plan.layouts))
    program_row, batch = divmod(rest, len(plan.global_batches))
    program, layout = plan.programs[program_row], plan.layouts[layout_row]
    table = plan.tables.workloads
    case = next(
        plan.cases[row]
        for row in table.case_list[table.first_case[w] : table.last_case[w]]
        if plan.tables.cases[row]["program"] == program_row
    )
    shape = plan.shapes[workload.model]
    model = shape.model
    rates = plan.rates[setup_row]
    setup = plan.setups[setup_row]
    hardware = plan.hardware_shapes[setup.shape]
    per_node = hardware.gpus_per_node * plan.gpus[hardware.gpu].logical_devices
    gpus = per_node * setup.node_count
    stack = book.stacks[program.stack]
    constants = dict(stack.constants)
    rule = rule_of(program, book)
    assert rule is not None
    head = book.loss_heads[program.stack, program.cross_entropy]
    optimizer = book.optimizers[program.optimizer]
    full = program.method == "full"
    per = dict(rule.bytes)
    if head.logit_forward is not None:
        per["logit_forward"], per["logit_backward"] = head.logit_forward, head.logit_backward
    weight = per["shard_weight_bytes"] if program.zero_stage == 3 else per["weight_bytes"]
    matmul, attention, elementwise = RECOMPUTE[program.checkpointing]
    groups = []
    for number, (variant, group) in enumerate(zip(case.variants, shape.groups, strict=True)):
        forms = book.forms.resolve(variant)
        values = {
            key: value for key, value in group.values.items() if key not in ("T", "s", "1", "r")
        }
        values["r"] = program.lora_rank
        groups.append(
            {
                "count": group.group.count,
                "values": values,
                "keep": dict(forms.keep),
                "cached": dict(forms.cached),
                "parts": {
                    part: {
                        "frozen_bytes": case.group_frozen_bytes[number][i],
                        "trained": case.group_trained[number][i],
                    }
                    for i, part in enumerate(LAYER_PARTS)
                },
                "backward": [dict(form) for form in forms.backward],
                "linear_active": group.linear_active,
                "expert_active": group.expert_active,
                "attention_width": group.attention_width,
                "io_width": group.io_width,
                "window": group.window,
                "mlp_width": group.mlp_width,
            }
        )
    rotary = "rope" in model.position_embedding
    return {
        "model": {
            "layers": model.num_hidden_layers,
            "hidden_size": model.hidden_size,
            "vocab_size": model.vocab_size,
            "tied": model.tie_word_embeddings,
            "interleaved": shape.counts.interleaved,
            "gated": model.mlp_type in ("swiglu", "geglu", "gegelu"),
            "softcap_bytes": 2 if model.model_type == "gemma2" else 0,
            "vision_flop": workload.vision_flop,
            "rotary_dim": (model.qk_rope_head_dim or model.head_dim) if rotary else 0,
            "experts": model.num_experts or 0,
            "experts_per_token": model.experts_per_token or 0,
            "moe_layers": sum(g.group.count for g in shape.groups if g.group.experts_per_token),
            "num_attention_heads": model.num_attention_heads,
            "num_key_value_heads": model.num_key_value_heads,
            "groups": groups,
            "parts": {
                part: {"frozen_bytes": case.frozen_bytes[i], "trained": case.trained[i]}
                for i, part in enumerate(PARTS)
            },
            "layer": {
                **{
                    f"frozen_{part}_bytes": case.layer_frozen_bytes[i]
                    for i, part in enumerate(LAYER_PARTS)
                },
                **{f"trained_{part}": case.layer_trained[i] for i, part in enumerate(LAYER_PARTS)},
            },
            "adapter_active": case.adapter_active,
            "adapter_io": case.adapter_io,
            "adapted": case.adapted,
            "quantized_elements": {
                "linear": case.quantized_elements[0],
                "expert": case.quantized_elements[1],
            },
            "matrix_elements": {
                "linear": case.matrix_elements[0],
                "expert": case.matrix_elements[1],
            },
            "largest_trained": case.largest_trained,
            "scale_bytes": case.scale_bytes,
            "vision_kept_bytes": case.vision_kept_bytes,
        },
        "rule": {
            **per,
            "state_bytes": optimizer.state_dtype_multiple * per["state_dtype_bytes"]
            + optimizer.state_fixed_bytes,
            "host_element_bytes": constants["host_element_bytes"],
            "rotary_bytes": 4 if per["residual_bytes"] == 4 else 2,
            "first_layer_saving": case.first_layer_saving,
            "head_trained": int(full),
            "layers_trained": int(full),
            "cross_entropy": program.cross_entropy,
            "checkpointing": program.checkpointing,
            "attention": program.attention,
            "compute_dtype": rule.compute_dtype,
            "temp_element_bytes": optimizer.temp_weight_multiple * weight,
            "temp_tensor_bytes": optimizer.temp_tensor_bytes,
            "memory_high": book.memory_band(program.stack, program.method).high,
            "traffic_bytes": optimizer.traffic_passes * per["state_dtype_bytes"],
            "recompute_matmul": matmul,
            "recompute_attention": attention,
            "recompute_elementwise": elementwise,
            "dequant_bytes": {"none": 0.0, "int8": 5.0}.get(program.quantization, 4.5),
        },
        "stack": {
            **constants,
            "vocab_parallel_loss": stack.flags["vocab_parallel_loss"],
            "loss_traffic_bytes": constants["loss_traffic_bytes"] * head.traffic_share,
        },
        "setup": {
            "gpus": gpus,
            "gpus_per_node": per_node,
            "usable_bytes": rates.usable_bytes,
            "memory_headroom": plan.spec.constraints.memory_headroom,
            "host_ram_bytes": rates.host_ram_bytes,
            "matmul_rates": {
                dtype: peak or 0.0 for dtype, peak in zip(COMPUTE_DTYPES, rates.peaks, strict=True)
            },
            "attention_rates": rates.attention_flop_per_s,
            "memory_rate": rates.hbm_bytes_per_s * constants["memory_efficiency"],
            "link_rate": rates.link_bytes_per_s * constants["link_share"],
            "network_rate": rates.network_bytes_per_s * constants["network_share"],
            "pcie_rate": rates.pcie_bytes_per_s * constants["pcie_share"],
            "host_rate": constants["host_adam_bytes_per_s"],
            "nvme_rate": constants["nvme_bytes_per_s"],
        },
        "knobs": {
            "micro_batch": plan.micro_batches[micro],
            "seq_len": workload.seq_len,
            "global_batch": plan.global_batches[batch],
            "dp": gpus // math.prod((layout.tp, layout.pp, layout.cp)),
            "tp": layout.tp,
            "pp": layout.pp,
            "cp": layout.cp,
            "ep": layout.ep,
            "sequence_parallel": layout.sequence_parallel,
            "zero_stage": program.zero_stage,
            "offload": program.offload,
        },
    }


assert OFFLOADS[0] == "none"
