#!/usr/bin/env python3
"""Writes golden.json: what transformers in float32 says to the tasks of this folder.

usage: pip install torch==2.11.0 transformers==5.23.0 && ./golden.py MODEL_DIR
"""
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()


def docs(name):
    return [json.loads(line) for line in (HERE / name).read_text().splitlines()]


@torch.inference_mode()
def loglikelihood(context, continuation):
    """The sum of log probabilities of the continuation's tokens, and whether each is the likeliest."""
    start = len(tokenizer(context)["input_ids"])
    tokens = tokenizer(context + continuation)["input_ids"]
    rows = torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), -1)[start - 1 : -1]
    wanted = torch.tensor(tokens[start:])
    return rows.gather(1, wanted[:, None]).sum().item(), bool((rows.argmax(-1) == wanted).all())


@torch.inference_mode()
def greedy(text):
    """16 tokens of continuation, cut before the first line end or full stop."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    made = model.generate(ids, max_new_tokens=16, do_sample=False)[0][ids.shape[1] :]
    said = tokenizer.decode(made, skip_special_tokens=True)
    return said.split("\n")[0].split(".")[0]


facts = [[loglikelihood(doc["text"], " " + choice) for choice in doc["choices"]] for doc in docs("facts.jsonl")]
right = [max(range(len(f)), key=lambda i: f[i][0]) == d["answer"] for f, d in zip(facts, docs("facts.jsonl"))]
golden = {"acc": sum(right) / len(right),
          "facts": [[[round(value, 5), greedy] for value, greedy in row] for row in facts],
          "continue": [greedy(doc["text"]) for doc in docs("continue.jsonl")]}
(HERE / "golden.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")
