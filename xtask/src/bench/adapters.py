"""Writes adapters of random numbers for measurements: PEFT's folders and, for llama.cpp, a GGUF file.

usage: adapters.py MODEL OUT COUNT RANK

MODEL is a Hugging Face folder of a Llama whose linear layers have no biases. OUT/NN are adapters on
all linear layers, f32, scaling 1; OUT/00.gguf has the numbers of the first one, in f16.
"""

import json
import pathlib
import sys

import gguf
import numpy as np

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def sizes(config):
    """Outputs and inputs of each linear layer."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    kv = config["num_key_value_heads"] * width
    return {
        "self_attn.q_proj": (heads * width, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, heads * width),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def numbers(config, rank, seed):
    """(layer, module) -> A [rank, inputs] and B [outputs, rank]."""
    random = np.random.default_rng(seed)
    draw = lambda *shape: (random.random(shape, dtype=np.float32) - 0.5) * 0.02
    return {
        (layer, module): (draw(rank, inputs), draw(outputs, rank))
        for layer in range(config["num_hidden_layers"])
        for module, (outputs, inputs) in sizes(config).items()
    }


def write_peft(folder, parts, rank):
    header, blobs, at = {}, [], 0
    for (layer, module), pair in parts.items():
        for letter, matrix in zip("AB", pair):
            name = f"base_model.model.model.layers.{layer}.{module}.lora_{letter}.weight"
            data = matrix.tobytes()
            header[name] = {"dtype": "F32", "shape": list(matrix.shape), "data_offsets": [at, at + len(data)]}
            blobs.append(data)
            at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "adapter_model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for data in blobs:
            file.write(data)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": [module.split(".")[1] for module in NAMES],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def write_gguf(path, parts, rank, config):
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for (layer, module), (a, b) in parts.items():
        name = NAMES[module]
        if name in heads:
            # llama.cpp turns pairs that lie beside each other, transformers the halves of a head.
            b = b.reshape(heads[name], 2, -1, b.shape[1]).swapaxes(1, 2).reshape(b.shape)
        writer.add_tensor(f"blk.{layer}.{name}.weight.lora_a", a.astype(np.float16))
        writer.add_tensor(f"blk.{layer}.{name}.weight.lora_b", np.ascontiguousarray(b.astype(np.float16)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    model, out, count, rank = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    config = json.loads((pathlib.Path(model) / "config.json").read_text())
    for index in range(count):
        parts = numbers(config, rank, index)
        write_peft(out / f"{index:02}", parts, rank)
        if index == 0:
            write_gguf(out / "00.gguf", parts, rank, config)


main()
