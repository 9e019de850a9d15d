"""Adapters with random matrices for the tiny models, made by PEFT, and what PEFT computes with them.

`data/adapters/MODEL.safetensors` holds the tensors of each case as PEFT saves them, named
`CASE/TENSOR`, and the logits as `CASE/logits`; `MODEL.json` holds PEFT's configurations and the
stacks. Logits are of the first tokens of the model's `golden.json`, by a model that loaded the
saved files.
"""

import hashlib
import json
import pathlib
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

# One for each family, and one that has every bias.
MODELS = ["tied", "biases", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"]
TOKENS = 12
# Least change of a logit by an adapter.
CHANGE = 0.02
# Largest error of PEFT's own logits in f32.
ERROR = 2e-5

SEPARATE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


def cases(model):
    """Options of each case, beside those of `make`."""
    targets = FUSED if model == "phi3" else SEPARATE
    first, last = targets[0], targets[-1]
    some = [first, last]
    return {target: dict(target_modules=[target]) for target in targets} | {
        "lm_head": dict(target_modules=["lm_head"]),
        "embed_tokens": dict(target_modules=["embed_tokens"]),
        "all-linear": dict(target_modules="all-linear", lora_alpha=7),
        # Saved in bf16, without copies of the embedding and the head.
        "everything": dict(target_modules=targets + ["lm_head", "embed_tokens"]),
        "rslora": dict(target_modules=some, use_rslora=True, lora_alpha=5),
        # The first that matches counts (PEFT saves them sorted), an unescaped dot is any character.
        "patterns": dict(
            target_modules=some,
            rank_pattern={r".*0\.mlp\.down_proj": 2, "down_proj": 4, f"self_attn.{first}": 1},
            alpha_pattern={r"(\w+\.)*down_p[r]oj": 3, f"model.layers.1.self_attn.{first}": 9},
        ),
        "patterns-rslora": dict(
            target_modules=some,
            use_rslora=True,
            rank_pattern={f"0.self_attn.{first}": 2, f"^model.layers.0.self_attn.{first}": 5},
            alpha_pattern={last: 2},
        ),
        "regex": dict(target_modules=rf"(?!.*\.1\.)model\..*\.({first}|{last})"),
        "exclude": dict(target_modules=targets, exclude_modules=[last, "layers.0.self_attn.o_proj"]),
        "exclude-regex": dict(target_modules="all-linear", exclude_modules=r".*\.0\..*|.*o_proj"),
        "layers": dict(target_modules=some, layers_to_transform=[1], layers_pattern="layers"),
        "layer": dict(target_modules=some, layers_to_transform=0),
        "dora": dict(target_modules="all-linear", use_dora=True),
        "dora-rslora": dict(target_modules=some, use_dora=True, use_rslora=True),
        "dora-head": dict(target_modules=["lm_head"], use_dora=True),
        "dora-embedding": dict(target_modules=["embed_tokens"], use_dora=True),
    }


def stacks(model):
    """Cases with their scales. PEFT lets DoRA rescale what comes before it, so it comes first."""
    first = FUSED[0] if model == "phi3" else SEPARATE[0]
    return {
        "two": [("all-linear", 0.5), (first, -1.5)],
        "three": [("rslora", 0.7), ("everything", 0.25), ("patterns", 1.0)],
        "with-dora": [("dora", 1.0), ("everything", 0.5), ("lm_head", 2.0)],
    }


def make(load, data):
    """Makes all of it. `load(name)` is the tiny model of this name in f32."""
    folder = data / "adapters"
    folder.mkdir(exist_ok=True)
    for model in MODELS:
        tokens = json.loads((data / model / "golden.json").read_text())["tokens"][:TOKENS]
        tokens = torch.tensor([tokens])
        with torch.no_grad():
            base = load(model)(tokens).logits[0]
        tensors, configs = {}, {}
        with tempfile.TemporaryDirectory() as root:
            for name, options in cases(model).items():
                saved = pathlib.Path(root) / name
                logits = make_one(lambda: load(model), f"{model}/{name}", options, saved, tokens)
                change = (logits - base).abs().max().item()
                if change < CHANGE:
                    raise SystemExit(f"{model}/{name} changes logits by {change} only")
                tensors[f"{name}/logits"] = logits
                file = load_file(saved / "adapter_model.safetensors")
                tensors |= {f"{name}/{key}": value for key, value in file.items()}
                config = json.loads((saved / "adapter_config.json").read_text())
                # Where it lay on this machine.
                config["base_model_name_or_path"] = f"tiny/{model}"
                # A set: in whatever order.
                for key in ("target_modules", "exclude_modules"):
                    if isinstance(config[key], list):
                        config[key].sort()
                configs[name] = config
            for name, stack in stacks(model).items():
                stack = [(pathlib.Path(root) / case, scale) for case, scale in stack]
                logits = logits_of(load(model), stack, tokens)
                exact = logits_of(load(model), stack, tokens, torch.float64)
                error = (logits - exact).abs().max().item()
                if error > 2 * ERROR:
                    raise SystemExit(f"{model}/{name}: PEFT's logits are off by {error}")
                tensors[f"{name}/logits"] = logits
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / f"{model}.safetensors")
        description = {"cases": configs, "stacks": stacks(model)}
        text = json.dumps(description, separators=(",", ":"), sort_keys=False)
        (folder / f"{model}.json").write_text(text + "\n")
        print(model, len(configs), "adapters")


def make_one(load, name, options, folder, tokens):
    """Saves an adapter whose logits are no matter of rounding, and returns them."""
    for attempt in range(20):
        save(load(), name if attempt == 0 else f"{name}#{attempt}", options, folder)
        if name.endswith("/everything"):
            halve(folder / "adapter_model.safetensors")
        logits = logits_of(load(), [(folder, 1.0)], tokens)
        exact = logits_of(load(), [(folder, 1.0)], tokens, torch.float64)
        if (logits - exact).abs().max().item() < ERROR:
            return logits
    raise SystemExit(f"{name}: no seed gives exact logits")


def halve(path):
    """Makes the tensors bf16, and leaves copies of the model's own out."""
    tensors = load_file(path)
    tensors = {k: v.to(torch.bfloat16) for k, v in tensors.items() if "base_layer" not in k}
    save_file(tensors, path, metadata={"format": "pt"})


def save(model, seed, options, folder, deviation=0.4):
    """Saves an adapter with random matrices."""
    options = dict(r=3, lora_alpha=4, lora_dropout=0.1, task_type="CAUSAL_LM") | options
    model = get_peft_model(model, LoraConfig(**options))
    digest = hashlib.sha256(seed.encode()).hexdigest()
    generator = torch.Generator().manual_seed(int(digest[:8], 16))
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            noise = torch.randn(value.shape, generator=generator)
            if "lora_magnitude_vector" in name:
                value.mul_(1 + 0.3 * noise)
            elif "lora_" in name:
                value.copy_(deviation * noise)
    model.save_pretrained(folder)


def logits_of(base, stack, tokens, dtype=torch.float32):
    """Logits with saved adapters at these scales, all at once."""
    names = [f"adapter{index}" for index in range(len(stack))]
    model = None
    for name, (folder, _) in zip(names, stack):
        if model is None:
            model = PeftModel.from_pretrained(base, folder, adapter_name=name)
        else:
            model.load_adapter(folder, name)
    model.base_model.set_adapter(names)
    for name, (_, scale) in zip(names, stack):
        for layer in model.modules():
            if isinstance(layer, LoraLayer) and name in layer.scaling:
                layer.scaling[name] *= scale
    with torch.no_grad():
        return model.eval().to(dtype)(tokens).logits[0]


def written(load, data, root):
    """Has PEFT load what `cargo run --example write_adapters ROOT` wrote, or some of it."""
    known = data / "adapters" / "written.json"
    result = json.loads(known.read_text()) if known.exists() else {}
    for folder in sorted(root.glob("*/*")):
        model = folder.parent.name
        tokens = json.loads((data / model / "golden.json").read_text())["tokens"][:TOKENS]
        logits = logits_of(load(model), [(folder, 1.0)], torch.tensor([tokens]))
        check_loaded(load(model), folder)
        with safe_open(data / "adapters" / f"{model}.safetensors", "pt") as goldens:
            if f"{folder.name}/logits" in goldens.keys():
                expected = goldens.get_tensor(f"{folder.name}/logits")
                difference = (logits - expected).abs().max().item()
                print(f"{model}/{folder.name}: off by {difference:.7f}")
                if difference > 1e-4:
                    raise SystemExit("what was written is not what was read")
        result[f"{model}/{folder.name}"] = {
            "tensors_sha256": digest(folder / "adapter_model.safetensors"),
            "config_sha256": digest(folder / "adapter_config.json"),
            "logits": [[round(v, 5) for v in row] for row in logits.tolist()],
        }
    known.write_text(json.dumps(result, separators=(",", ":"), sort_keys=True) + "\n")
    print(len(result), "written adapters")


def check_loaded(base, folder):
    """PEFT uses every tensor of the file and lacks none."""
    model = PeftModel.from_pretrained(base, folder)
    file = load_file(folder / "adapter_model.safetensors")
    loaded = {
        name.replace(".default", "").replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
        for name, _ in model.named_parameters()
        if "lora_" in name
    }
    if loaded != set(file):
        raise SystemExit(f"{folder}: PEFT has {loaded ^ set(file)} otherwise")


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
