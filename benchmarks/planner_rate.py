"""How many training configurations a second the analytic planner llm-analysis works through.

Run by bench_peers.py in an environment of its own (`make peers`), as its dependencies are of 2023. Each
configuration is one call of its public interface with logging off: model states, activations and step time
of a Llama on 8 A100s. It knows no price, no LoRA and no setup but the one given. Prints JSON.
"""

from __future__ import annotations

import itertools
import json
import logging
import time

from llm_analysis.analysis import ActivationRecomputation, DSZeRO, LLMAnalysis
from llm_analysis.config import (
    ParallelismConfig,
    get_dtype_config_by_name,
    get_gpu_config_by_name,
    get_model_config_by_name,
)

MODELS = ("decapoda-research_llama-7b-hf", "decapoda-research_llama-13b-hf")
GPUS = ("a100-sxm-40gb", "a100-sxm-80gb", "h100-sxm-80gb")
MICRO_BATCHES = (1, 2, 4, 8)
SEQ_LENS = (512, 1024, 2048)
ZERO_STAGES = (DSZeRO.NONE, DSZeRO.STAGE_1, DSZeRO.STAGE_2, DSZeRO.STAGE_3)
RECOMPUTATIONS = (ActivationRecomputation.NONE, ActivationRecomputation.FULL)
ROUNDS = 5


def main() -> None:
    logging.disable(logging.CRITICAL)
    dtype = get_dtype_config_by_name("w16a16e16")
    models = [get_model_config_by_name(name) for name in MODELS]
    gpus = [get_gpu_config_by_name(name) for name in GPUS]
    parallelism = ParallelismConfig(dp_size=8)
    calls = list(itertools.product(MICRO_BATCHES, SEQ_LENS, ZERO_STAGES, RECOMPUTATIONS))
    times = []
    for _ in range(ROUNDS):
        fitting = 0
        begun_s = time.perf_counter()
        for model, gpu in itertools.product(models, gpus):
            planner = LLMAnalysis(model, gpu, dtype, parallelism, flops_efficiency=0.5)
            for micro_batch, seq_len, zero, recomputation in calls:
                # It refuses what does not fit by an assertion, which is an answer too.
                try:
                    planner.training(
                        batch_size_per_gpu=micro_batch,
                        gradient_accumulation_steps=4,
                        seq_len=seq_len,
                        total_num_tokens=1_000_000_000,
                        activation_recomputation=recomputation,
                        ds_zero=zero,
                    )
                    fitting += 1
                except AssertionError:
                    pass
        times.append(time.perf_counter() - begun_s)
    count = len(models) * len(gpus) * len(calls)
    seconds = sorted(times)[ROUNDS // 2]
    print(json.dumps({"configurations": count, "fitting": fitting, "seconds": seconds}))


if __name__ == "__main__":
    main()
