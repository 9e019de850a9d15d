"""Measures vLLM on command: reads a JSON object a line, writes one a line.

usage: vllm_driver.py MODEL THREADS MAX_MODEL_LEN
in:  {"prompt": 128, "batch": 8, "tokens": 64}    tokens 0: only the prompt
out: BENCH {"tokens_per_second": 371.2}
"""

import json
import os
import random
import sys
import time

MODEL, THREADS, MAX_MODEL_LEN = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="2",
    VLLM_CPU_OMP_THREADS_BIND=",".join(str(c) for c in sorted(os.sched_getaffinity(0))[:THREADS]),
    VLLM_LOGGING_LEVEL="WARNING",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_NO_USAGE_STATS="1",
    HF_HUB_OFFLINE="1",
)
REPEAT = 3


def tell(value):
    print("BENCH " + json.dumps(value), flush=True)


def main():
    from vllm import LLM, SamplingParams

    model = LLM(
        MODEL,
        dtype="bfloat16",
        max_model_len=MAX_MODEL_LEN,
        enable_prefix_caching=False,
    )

    def seconds(batch, prompt, tokens):
        """Of prompts that no cache has seen."""
        prompts = [
            {"prompt_token_ids": [random.randint(1000, 20000) for _ in range(prompt)]}
            for _ in range(batch)
        ]
        params = SamplingParams(
            max_tokens=tokens, min_tokens=tokens, temperature=0, ignore_eos=True
        )
        start = time.perf_counter()
        model.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - start

    def figure(batch, prompt, tokens):
        if tokens == 0:
            return batch * prompt / seconds(batch, prompt, 1)
        # What the tokens behind the first take: a whole run less one of the prompts alone.
        alone, whole = seconds(batch, prompt, 1), seconds(batch, prompt, tokens + 1)
        return batch * tokens / (whole - alone)

    seconds(1, 16, 2)
    tell({"ready": True})
    for line in sys.stdin:
        ask = json.loads(line)
        sizes = ask["batch"], ask["prompt"], ask["tokens"]
        # Shapes that it sees for the first time are compiled.
        seconds(ask["batch"], ask["prompt"], 2)
        figures = sorted(figure(*sizes) for _ in range(REPEAT))
        tell({"tokens_per_second": figures[REPEAT // 2]})


if __name__ == "__main__":
    main()
