#!/usr/bin/env python3
"""Makes the goldens of this folder with Hugging Face transformers in f32.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python make.py --smollm2 DIR

DIR is the Hugging Face folder of SmolLM2-135M-Instruct as `cargo xtask weights` makes it. Written
are `smollm2.json` and a folder for each tiny model with random weights: the model itself as
transformers saves it, and `golden.json`. Seeds are fixed; the weights are the same on every
machine, the logits but for the last few bits.
"""

import argparse
import hashlib
import json
import pathlib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
# Largest logits and spread-out ones that are kept of each position of SmolLM2.
TOP, SPREAD = 8, 8

TINY = {
    # Grouped queries, tied head, plain rope, f32 on disk.
    "tied": dict(tie_word_embeddings=True, num_key_value_heads=2, dtype="float32"),
    # Heads wider than the hidden size gives, Llama 3's rope beyond its original length, bf16.
    "llama3": dict(
        head_dim=16,
        dtype="bfloat16",
        rope_parameters=dict(
            rope_type="llama3",
            rope_theta=500.0,
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    # Every bias, one key head for all, linear rope, f16.
    "biases": dict(
        attention_bias=True,
        mlp_bias=True,
        num_key_value_heads=1,
        dtype="float16",
        rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0),
    ),
    # In several files with an index.
    "sharded": dict(num_key_value_heads=2, dtype="bfloat16", shard="20KB"),
}

PROMPTS = {
    "chat": (True, "What is the capital of France?", 64),
    "code": (False, "def fibonacci(n):\n    \"\"\"Returns the n-th Fibonacci number.\"\"\"\n", 256),
    "mixed": (False, "Ελληνικά, العربية, 中文 and 😀: 3.14159 is not 22/7.", 64),
    "story": (
        False,
        "The lighthouse keeper had not spoken to anyone for eleven days when the boat came. He saw"
        " it first as a dark point on the water, and then as a shape with a sail, and then he could"
        " count the people in it: three, and a dog. He put the kettle on the stove, for that was"
        " what his father had done whenever a boat came, and went down the hundred and forty steps"
        " to the landing. The wind had turned in the night, and the sea was as flat as a table.",
        256,
    ),
}


def tiny(name, options):
    options = dict(options)
    shard = options.pop("shard", "1GB")
    dtype = getattr(torch, options.pop("dtype"))
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        **options,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    with torch.no_grad():
        for key, value in sorted(model.state_dict().items()):
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(1 + 0.1 * noise if "norm" in key else 0.25 * noise)
    folder = HERE / name
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    (folder / "generation_config.json").unlink(missing_ok=True)
    # What `to` does to the model's rotary frequencies is not in the files.
    model = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = torch.randint(0, config.vocab_size, (1, 50), generator=generator)
    with torch.no_grad():
        logits = model(tokens).logits[0]
        greedy = generate(model, tokens[:, :11], 40)
    (folder / "golden.json").write_text(
        json.dumps(
            {
                "tokens": tokens[0].tolist(),
                "logits": [[round(v, 4) for v in row] for row in logits.tolist()],
                "greedy_from": 11,
                "greedy": greedy,
            },
            separators=(",", ":"),
        )
        + "\n"
    )


def generate(model, tokens, count):
    out = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=count,
        min_new_tokens=None,
        eos_token_id=-1,
        pad_token_id=0,
    )
    return out[0, tokens.shape[1] :].tolist()


def smollm2(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    cases = []
    for name, (chat, text, count) in PROMPTS.items():
        if chat:
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
        else:
            ids = tokenizer.encode(text)
        tokens = torch.tensor([ids])
        with torch.no_grad():
            logits = model(tokens).logits[0]
            greedy = generate(model, tokens, count)
            after = model(torch.tensor([ids + greedy])).logits[0, len(ids) - 1 : -1]
        top2 = after.topk(2).values
        rows = []
        for position, row in enumerate(logits):
            step = len(row) // SPREAD
            kept = row.topk(TOP).indices.tolist()
            kept += [(position * 97 + i * step) % len(row) for i in range(SPREAD)]
            rows.append([[i, round(row[i].item(), 4)] for i in dict.fromkeys(kept)])
        cases.append(
            {
                "name": name,
                "tokens": ids,
                "logits": rows,
                "greedy": greedy,
                # The closest call among the greedy choices, for judging a difference.
                "smallest_lead": round((top2[:, 0] - top2[:, 1]).min().item(), 5),
                "text": tokenizer.decode(greedy),
            }
        )
        print(name, len(ids), cases[-1]["smallest_lead"], cases[-1]["text"][:60].__repr__())
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (HERE / "smollm2.json").write_text(
        json.dumps({"weights_sha256": digest, "cases": cases}, separators=(",", ":")) + "\n"
    )


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--smollm2", type=pathlib.Path, required=True)
    torch.set_num_threads(2)
    for name, options in TINY.items():
        tiny(name, options)
    smollm2(arguments.parse_args().smollm2)
