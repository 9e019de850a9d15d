#!/usr/bin/env python3
"""Makes the goldens in `data/` with Hugging Face transformers.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python make.py tiny                     # models with random weights
    venv/bin/python make.py adapters                 # adapters for some of them
    venv/bin/python make.py written DIR              # DIR as the example write_adapters writes it
    venv/bin/python make.py training                 # losses and gradients of some of them
    venv/bin/python make.py trained DIR              # DIR as the examples save_adapters, torch_save_adapters write it
    venv/bin/python make.py masks                    # which characters an assistant wrote
    venv/bin/python make.py real --model smollm2 DIR # also gemma3; DIR as `cargo xtask weights` makes it
    venv/bin/python make.py text --model smollm2 DIR # tokens and chats of corpus.py
    venv/bin/python make.py perplexity --model smollm2 DIR

A tiny model is a folder as transformers saves it, with `golden.json`. Seeds are fixed; the weights
are the same on every machine, the logits but for the last few bits. What a tiny model is there to
show is switched off once, and the logits must then be others.
"""

import argparse
import hashlib
import json
import pathlib

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

DATA = pathlib.Path(__file__).parent / "data"
# Largest logits and spread-out ones that are kept of each position of a real model.
TOP, SPREAD = 8, 8
# Least distance between the best two tokens at each greedy choice of a tiny model.
LEAD = 5e-3

COMMON = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    dtype="float32",
)
YARN = dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=16)
NO_ROPE_SCALING = dict(rope_parameters=dict(rope_type="default", rope_theta=500.0))
GEMMA = dict(
    head_dim=8,
    num_key_value_heads=2,
    sliding_window=9,
    query_pre_attn_scalar=20,
    pad_token_id=0,
)

# Name: family, options, and what to change so that the logits must change. `scale` multiplies the
# weights whose name contains the key.
TINY = {
    # Grouped queries, tied head, plain rope, f32 on disk.
    "tied": ("Llama", dict(tie_word_embeddings=True, num_key_value_heads=2), []),
    # Heads wider than the hidden size gives, Llama 3's rope beyond its original length, bf16.
    "llama3": (
        "Llama",
        dict(
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
        [NO_ROPE_SCALING],
    ),
    # Every bias, one key head for all, linear rope, f16.
    "biases": (
        "Llama",
        dict(
            attention_bias=True,
            mlp_bias=True,
            num_key_value_heads=1,
            dtype="float16",
            rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0),
        ),
        [dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0))],
    ),
    # In several files with an index.
    "sharded": ("Llama", dict(num_key_value_heads=2, dtype="bfloat16", shard="20KB"), []),
    # YaRN beyond its original length, with the paper's attention factor.
    "yarn": (
        "Llama",
        dict(head_dim=16, rope_parameters=YARN),
        [NO_ROPE_SCALING, dict(rope_parameters=YARN | dict(attention_factor=1.0))],
    ),
    # YaRN with everything that can be set, but for the attention factor itself.
    "yarn-mscale": (
        "Llama",
        dict(
            head_dim=16,
            rope_parameters=YARN
            | dict(mscale=4.0, mscale_all_dim=0.5, truncate=False, beta_fast=8.0, beta_slow=0.7),
        ),
        [
            dict(rope_parameters=YARN | dict(mscale=4.0, mscale_all_dim=0.5)),
            dict(rope_parameters=YARN | dict(truncate=False, beta_fast=8.0, beta_slow=0.7)),
        ],
    ),
    # Biases of queries, keys and values, a window from the second layer on.
    "qwen2": (
        "Qwen2",
        dict(
            num_hidden_layers=3,
            num_key_value_heads=2,
            use_sliding_window=True,
            sliding_window=9,
            max_window_layers=1,
        ),
        [dict(use_sliding_window=False, layer_types=None), dict(max_window_layers=0, layer_types=None)],
    ),
    # Norms over heads that are wider than the hidden size gives, YaRN, a tied head.
    "qwen3": (
        "Qwen3",
        dict(
            head_dim=16,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            rope_parameters=YARN | dict(attention_factor=1.3),
        ),
        [dict(rope_parameters=YARN)],
    ),
    # A window on every layer.
    "mistral": (
        "Mistral",
        dict(num_key_value_heads=2, sliding_window=7, dtype="bfloat16"),
        [dict(sliding_window=None)],
    ),
    # Both soft caps, a window on every other layer, a scale that is not the head's.
    "gemma2": (
        "Gemma2",
        GEMMA
        | dict(
            num_hidden_layers=4,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=5.0,
            scale=dict(q_proj=4.0),
        ),
        [
            dict(attn_logit_softcapping=None),
            dict(final_logit_softcapping=None),
            dict(query_pre_attn_scalar=8),
            dict(sliding_window=64),
        ],
    ),
    # Two rotary embeddings, one of them stretched, norms over heads, two local layers to a global
    # one.
    "gemma3": (
        "Gemma3Text",
        GEMMA
        | dict(
            num_hidden_layers=4,
            final_logit_softcapping=6.0,
            layer_types=[
                "sliding_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
            ],
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000.0),
                sliding_attention=dict(rope_type="default", rope_theta=100.0),
            ),
        ),
        [
            dict(sliding_window=64),
            dict(query_pre_attn_scalar=8),
            dict(
                rope_parameters=dict(
                    full_attention=dict(rope_type="default", rope_theta=1000.0),
                    sliding_attention=dict(rope_type="default", rope_theta=100.0),
                )
            ),
            dict(
                rope_parameters=dict(
                    full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000.0),
                    sliding_attention=dict(rope_type="default", rope_theta=1000.0),
                )
            ),
        ],
    ),
    # Fused projections, half of each head turned, a window.
    "phi3": (
        "Phi3",
        dict(
            num_key_value_heads=2,
            sliding_window=11,
            pad_token_id=0,
            dtype="float16",
            rope_parameters=dict(
                rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5
            ),
        ),
        [
            dict(sliding_window=None),
            dict(
                rope_parameters=dict(
                    rope_type="default", rope_theta=10000.0, partial_rotary_factor=1.0
                )
            ),
        ],
    ),
}

PROMPTS = {
    "smollm2": {
        "chat": (True, "What is the capital of France?", 64),
        "code": (False, "def fibonacci(n):\n    \"\"\"Returns the n-th Fibonacci number.\"\"\"\n", 256),
        "mixed": (False, "Ελληνικά, العربية, 中文 and 😀: 3.14159 is not 22/7.", 64),
        "story": (
            False,
            "The lighthouse keeper had not spoken to anyone for eleven days when the boat came. He"
            " saw it first as a dark point on the water, and then as a shape with a sail, and then"
            " he could count the people in it: three, and a dog. He put the kettle on the stove,"
            " for that was what his father had done whenever a boat came, and went down the hundred"
            " and forty steps to the landing. The wind had turned in the night, and the sea was as"
            " flat as a table.",
            256,
        ),
    },
    "gemma3": {
        "capital": (False, "The capital of France is", 64),
        "code": (False, "def fibonacci(n):\n    \"\"\"Returns the n-th Fibonacci number.\"\"\"\n", 256),
        "mixed": (False, "Ελληνικά, العربية, 中文 and 😀: 3.14159 is not 22/7.", 64),
        # Longer than the window of 512 tokens.
        "long": (False, None, 256),
    },
}


def config_of(family, options):
    cls = getattr(transformers, f"{family}Config")
    return cls(**{k: v for k, v in options.items() if k not in ("dtype", "shard", "scale")})


def model_class(family):
    return getattr(transformers, family.removesuffix("Text") + "ForCausalLM")


def load(folder, family, **changes):
    """The saved model in f32, with some options changed."""
    config = transformers.AutoConfig.from_pretrained(folder)
    if changes:
        options = config.to_dict() | changes
        options.pop("dtype", None)
        config = type(config)(**options)
    return (
        model_class(family)
        .from_pretrained(folder, config=config, dtype=torch.float32, attn_implementation="eager")
        .eval()
    )


def tiny(name, family, options, switched):
    options = COMMON | options
    for attempt in range(20):
        seed = name if attempt == 0 else f"{name}#{attempt}"
        golden = make_tiny(name, seed, family, options)
        if golden["smallest_lead"] >= LEAD:
            break
    else:
        raise SystemExit(f"{name}: no seed gives clear greedy choices")
    folder = DATA / name
    tokens, expected = torch.tensor([golden["tokens"]]), torch.tensor(golden["logits"])
    for changes in switched:
        with torch.no_grad():
            other = load(folder, family, **changes)(tokens).logits[0]
        difference = (other - expected).abs().max().item()
        print(f"{name}: {changes} changes logits by {difference:.3f}")
        if difference < 0.02:
            raise SystemExit(f"{name} does not show what it is there for")
    (folder / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


def make_tiny(name, seed, family, options):
    config = config_of(family, options)
    model = model_class(family)(config)
    digest = hashlib.sha256(seed.encode()).hexdigest()
    generator = torch.Generator().manual_seed(int(digest[:8], 16))
    scales = options.get("scale", {})
    # Gemma's norms multiply by 1 + w.
    norm_center = 0.0 if family.startswith("Gemma") else 1.0
    norm_noise = 0.1 if family == "Llama" else 0.3
    with torch.no_grad():
        for key, value in sorted(model.state_dict().items()):
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in key:
                value.copy_(norm_center + norm_noise * noise)
            else:
                factor = next((f for part, f in scales.items() if part in key), 1.0)
                value.copy_(0.25 * factor * noise)
    folder = DATA / name
    model.to(getattr(torch, options["dtype"])).save_pretrained(
        folder, max_shard_size=options.get("shard", "1GB")
    )
    (folder / "generation_config.json").unlink(missing_ok=True)
    # What `to` does to the model's rotary frequencies is not in the files.
    model = load(folder, family)
    tokens = torch.randint(0, config.vocab_size, (1, 50), generator=generator)
    with torch.no_grad():
        logits = model(tokens).logits[0]
        hidden = model.model(tokens).last_hidden_state[0]
        greedy, lead = generate(model, tokens[:, :11], 40)
    return {
        "tokens": tokens[0].tolist(),
        "logits": [[round(v, 4) for v in row] for row in logits.tolist()],
        # After the last norm.
        "hidden": [[round(v, 4) for v in row] for row in hidden.tolist()],
        "greedy_from": 11,
        "greedy": greedy,
        # The closest call among the greedy choices, for judging a difference.
        "smallest_lead": round(lead, 5),
    }


def generate(model, tokens, count):
    """Greedy tokens, and the least distance between the best two on the way."""
    out = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=count,
        min_new_tokens=None,
        eos_token_id=-1,
        pad_token_id=0,
    )
    after = model(out).logits[0, tokens.shape[1] - 1 : -1]
    best, second = after.topk(2).values.T
    return out[0, tokens.shape[1] :].tolist(), (best - second).min().item()


def real(model_name, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    cases = []
    for name, (chat, text, count) in PROMPTS[model_name].items():
        if text is None:
            text = (DATA / "opticks.txt").read_text()[:2600]
        if chat:
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
        else:
            ids = tokenizer.encode(text)
        tokens = torch.tensor([ids])
        with torch.no_grad():
            logits = model(tokens).logits[0]
            greedy, lead = generate(model, tokens, count)
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
                "smallest_lead": round(lead, 5),
                "text": tokenizer.decode(greedy),
            }
        )
        print(name, len(ids), cases[-1]["smallest_lead"], repr(cases[-1]["text"][:60]))
    write(model_name, {"weights_sha256": weights_digest(folder), "cases": cases})


def perplexity(model_name, folder):
    """Mean negative log-likelihood of each token but the first of a fixed text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode((DATA / "opticks.txt").read_text())[:4096]
    result = {"weights_sha256": weights_digest(folder), "tokens": ids}
    for dtype in ("float32", "bfloat16"):
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="eager"
        ).eval()
        tokens = torch.tensor([ids])
        loss, cache = 0.0, None
        # In chunks, for the sake of memory; each sees all before it.
        cache = transformers.DynamicCache(config=model.config)
        with torch.no_grad():
            for start in range(0, len(ids), 512):
                piece = tokens[:, start : start + 512]
                logits = model(piece, past_key_values=cache, use_cache=True).logits[0].float()
                targets = tokens[0, start + 1 : start + 513]
                loss += torch.nn.functional.cross_entropy(
                    logits[: len(targets)], targets, reduction="sum"
                ).item()
        nll = loss / (len(ids) - 1)
        result[dtype] = {"nll": round(nll, 6), "perplexity": round(float(torch.tensor(nll).exp()), 4)}
        print(model_name, dtype, result[dtype])
    write(f"{model_name}.perplexity", result)


def weights_digest(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def write(name, value):
    (DATA / f"{name}.json").write_text(json.dumps(value, separators=(",", ":")) + "\n")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument(
        "what",
        choices=[
            "tiny",
            "adapters",
            "written",
            "training",
            "trained",
            "masks",
            "real",
            "text",
            "perplexity",
        ],
    )
    arguments.add_argument("--model", choices=list(PROMPTS))
    arguments.add_argument("--only", help="one of the tiny models, or `long` of training")
    arguments.add_argument("folder", type=pathlib.Path, nargs="?")
    args = arguments.parse_intermixed_args()
    torch.set_num_threads(2)
    if args.what == "tiny":
        for name, (family, options, switched) in TINY.items():
            if args.only in (None, name):
                tiny(name, family, options, switched)
    elif args.what in ("adapters", "written", "training", "trained"):
        import adapters

        def base(name):
            return load(DATA / name, TINY[name][0])

        if args.what in ("training", "trained"):
            import training

            if args.what == "training":
                training.make(base, DATA, args.only)
            else:
                training.trained(base, args.folder)
        elif args.what == "adapters":
            adapters.make(base, DATA)
        else:
            adapters.written(base, DATA, args.folder)
    elif args.what == "masks":
        import masks

        masks.make(DATA)
    elif args.what == "text":
        import corpus

        write(f"{args.model}.text", corpus.golden(AutoTokenizer.from_pretrained(args.folder)))
    else:
        {"real": real, "perplexity": perplexity}[args.what](args.model, args.folder)


if __name__ == "__main__":
    main()
