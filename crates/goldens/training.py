"""What PEFT, torch and TRL compute in training, for the tiny models.

`data/training/MODEL.safetensors` holds for each case the adapter as PEFT saves it, named
`CASE/values/TENSOR`, and under the same names the derivatives of the first batch's loss,
`CASE/gradient/TENSOR`: those that PEFT computes in f64 (but for norms, which transformers rounds to
f32), which is what it computes in f32, but for less than ERROR. `MODEL.json` holds PEFT's configurations, the batches, what the first is
scored, and the losses of ten steps. `long.json` has the losses of 200 steps on the same ten batches,
over and over. `optimiser.json` and `schedules.json` are for trainers, without a model; `masks.json`
is made by masks.py.

A batch's loss is the sum of the cross-entropy of its trained tokens, divided by their number. Its
segments are computed one by one, as if packing and padding did not exist.
"""

import hashlib
import json
import math
import pathlib
import tempfile

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

import adapters

LENGTHS = (31, 18)
STEPS, LEARNING_RATE, MAX_NORM = 10, 2e-4, 1.0
# Of the numbers of A and B. With larger ones attention is all or nothing, and f32 too little.
DEVIATION = 0.2
# Largest relative error of a tensor of PEFT's own gradient in f32.
ERROR = 3e-6
# Least relative change of the last loss by the steps before it: ten times what is tolerated.
LEARNT = 1e-4

# A run as jobs are by default, but for a rate that learns ten batches by heart: model and case.
LONG = {"mistral": "all-linear", "qwen3": "dora"}
LONG_STEPS, LONG_RATE, LONG_WARMUP, LONG_DECAY = 200, 2e-3, 6, 0.01
# Largest relative difference of PEFT's own losses in f32 and in f64: a tenth of what is tolerated.
LONG_ERROR = 1e-4
# Largest difference of the logarithm of a probability with an adapter that our trainer saved.
SAVED_ERROR = 1e-4

ALL = dict(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear")


def cases(model):
    """Options of each case. What is beside `all-linear` is shown on one model."""
    result = {"all-linear": ALL}
    if model == "qwen3":
        result["rslora"] = ALL | dict(use_rslora=True, lora_alpha=5)
        result["dora"] = ALL | dict(use_dora=True)
        result["patterns"] = ALL | dict(
            rank_pattern={"down_proj": 2, "layers.0.self_attn.q_proj": 5},
            alpha_pattern={"v_proj": 3, "layers.1.mlp.gate_proj": 13},
        )
        # Not every map, and not every layer.
        result["some"] = ALL | dict(target_modules=["k_proj", "up_proj"], layers_to_transform=[1])
    if model == "mistral":
        # With the head and the embedding, which here are not one.
        result["everything"] = ALL | dict(
            target_modules=adapters.SEPARATE + ["lm_head", "embed_tokens"]
        )
    if model == "phi3":
        # The norm is of the fused weight's rows.
        result["dora"] = ALL | dict(use_dora=True)
    return result


def make(load, data, only=None):
    """Makes all of it but the masks, or what is of one model, or just the long runs. `load(name)` is
    the tiny model of this name in f32."""
    folder = data / "training"
    folder.mkdir(exist_ok=True)
    if only == "long":
        long(load, data)
        return
    for model in [only] if only else adapters.MODELS:
        tensors, descriptions = {}, {}
        for name, options in cases(model).items():
            case, description = make_one(lambda: load(model), f"training/{model}/{name}", options)
            tensors |= {f"{name}/{key}": value.contiguous() for key, value in case.items()}
            descriptions[name] = description | {"config": located(description["config"], model)}
        save_file(tensors, folder / f"{model}.safetensors")
        write(folder / f"{model}.json", descriptions)
    if only:
        return
    import preferences

    tensors, description = preferences.make(lambda: load("tied"), "training/dpo")
    description["config"] = located(description["config"], "tied")
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "dpo.safetensors")
    write(folder / "dpo.json", description | {"model": "tied"})
    long(load, data)
    write(folder / "optimiser.json", optimiser())
    write(folder / "schedules.json", schedules())


def make_one(load, name, options):
    """A case whose gradient is no matter of rounding, and that learns something."""
    for attempt in range(20):
        seed = name if attempt == 0 else f"{name}#{attempt}"
        with tempfile.TemporaryDirectory() as root:
            why, result = try_one(load, seed, options, pathlib.Path(root))
        if not why:
            return result
        print(seed, why)
    raise SystemExit(f"{name}: no seed gives an exact gradient")


def try_one(load, seed, options, root):
    adapters.save(load(), seed, options, root, DEVIATION)
    config = json.loads((root / "adapter_config.json").read_text())
    values = load_file(root / "adapter_model.safetensors")
    # Copies of the model's own weights.
    values = {k: v for k, v in values.items() if "base_layer" not in k}
    model = trainable(load(), root)
    batches = [random_batch(generator(f"{seed}/{step}")) for step in range(STEPS)]
    scores = [score(model, segment) for segment in batches[0]]
    gradient = gradient_of(trainable(load(), root, torch.float64), batches[0])
    if set(values) != set(gradient):
        raise SystemExit(f"{seed}: {set(values) ^ set(gradient)} has no gradient or no value")
    error, key = worst(gradient_of(model, batches[0]), gradient)
    if error > ERROR:
        return f"the gradient of {key} is off by {error}", None
    with torch.no_grad():
        untrained = loss_of(model, batches[-1]).item()
    losses = train(model, batches)
    if abs(losses[-1] / untrained - 1) < LEARNT:
        return f"nothing is learnt: {untrained} is {losses[-1]}", None
    print(seed, "losses", losses[0], "to", losses[-1], "instead of", untrained, "error", error)
    tensors = {f"values/{k}": v for k, v in values.items()}
    tensors |= {f"gradient/{k}": v.float() for k, v in gradient.items()}
    return None, (
        tensors,
        {
            "config": config,
            "batches": batches,
            "scores": scores,
            "learning_rate": LEARNING_RATE,
            "max_norm": MAX_NORM,
            "losses": losses,
        },
    )


def trainable(base, folder, dtype=torch.float32):
    return PeftModel.from_pretrained(base, folder, is_trainable=True).train().to(dtype)


def train(model, batches):
    """The loss of each batch before it has been learnt."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    losses = []
    for batch in batches:
        adamw.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        adamw.step()
        losses.append(loss.item())
    return losses


def long(load, data):
    """The losses of LONG_STEPS steps, from adapters and batches that were made before."""
    folder = data / "training"
    runs = []
    for model, case in LONG.items():
        description = json.loads((folder / f"{model}.json").read_text())[case]
        prefix = f"{case}/values/"
        stored = load_file(folder / f"{model}.safetensors")
        values = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
        with tempfile.TemporaryDirectory() as root:
            root = pathlib.Path(root)
            save_file(values, root / "adapter_model.safetensors")
            (root / "adapter_config.json").write_text(json.dumps(description["config"]))
            losses = run_long(trainable(load(model), root), description["batches"])
            exact = run_long(trainable(load(model), root, torch.float64), description["batches"])
        error = max(abs(a / b - 1) for a, b in zip(losses, exact, strict=True))
        print(f"{model}/{case}: {losses[0]} to {losses[-1]}, off by {error} from f64")
        if error > LONG_ERROR:
            raise SystemExit("f32 is too little for so many steps")
        runs.append({"model": model, "case": case, "losses": losses})
    write(
        folder / "long.json",
        {
            "learning_rate": LONG_RATE,
            "warmup": LONG_WARMUP,
            "weight_decay": LONG_DECAY,
            "max_norm": MAX_NORM,
            "runs": runs,
        },
    )


def run_long(model, batches):
    """The loss of each step before it, with half a cosine for the rate."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(parameters, lr=LONG_RATE, weight_decay=LONG_DECAY)
    schedule = transformers.get_cosine_schedule_with_warmup(adamw, LONG_WARMUP, LONG_STEPS)
    losses = []
    for step in range(LONG_STEPS):
        adamw.zero_grad()
        loss = loss_of(model, batches[step % len(batches)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        adamw.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def trained(load, root):
    """Has PEFT load what the examples `save_adapters ROOT` and `torch_save_adapters ROOT` trained and saved, and compares the
    logarithms of probabilities with the trainer's."""
    folders = sorted(root.glob("*/adapter"))
    if not folders:
        raise SystemExit(f"{root} has nothing that save_adapters wrote")
    for folder in folders:
        told = json.loads((folder / "trained.json").read_text())
        model = PeftModel.from_pretrained(load(told["model"]), folder).eval()
        worst, without = 0.0, 0.0
        pairs = zip(told["beginnings"], told["log_probabilities"], strict=True)
        for tokens, theirs in pairs:
            theirs = torch.tensor(theirs, dtype=torch.float64)
            worst = max(worst, (log_probabilities(model, tokens) - theirs).abs().max().item())
            with model.disable_adapter():
                base = (log_probabilities(model, tokens) - theirs).abs().max().item()
            without = max(without, base)
        print(f"{folder.parent.name} ({told['name']}): off by {worst:.2e}, by {without:.2f} without it")
        if worst > SAVED_ERROR or without < 1:
            raise SystemExit("PEFT computes something else than what trained it")


def log_probabilities(model, tokens):
    """Of each token after these."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, -1].double().log_softmax(-1)


def gradient_of(model, batch):
    """By the names that the tensors have in PEFT's file."""
    model.zero_grad()
    loss_of(model, batch).backward()
    return named_gradient(model)


def named_gradient(model):
    def name(key):
        key = key.replace(".default", "")
        return key.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")

    return {
        name(key): value.grad.clone()
        for key, value in model.named_parameters()
        if value.requires_grad
    }


def worst(gradient, exact):
    """The largest relative error of a tensor, and whose it is."""
    return max(
        (((value - exact[key]).norm() / exact[key].norm()).item(), key)
        for key, value in gradient.items()
    )


def loss_of(model, batch):
    """Sum of the cross-entropy over the trained tokens of all segments, by their number."""
    sums = [cross_entropy(model, segment).sum() for segment in batch]
    return sum(sums) / sum(sum(segment["trained"]) for segment in batch)


def logits_and_targets(model, segment):
    tokens, trained = torch.tensor([segment["tokens"]]), torch.tensor(segment["trained"])
    logits = model(tokens).logits[0, :-1]
    # As after transformers' shift: the logits of a position are about the next token.
    return logits[trained[1:]], tokens[0, 1:][trained[1:]]


def cross_entropy(model, segment):
    return torch.nn.functional.cross_entropy(*logits_and_targets(model, segment), reduction="none")


def score(model, segment):
    with torch.no_grad():
        logits, targets = logits_and_targets(model, segment)
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return {
        "loss": loss.double().sum().item(),
        "tokens": len(targets),
        "correct": (logits.argmax(-1) == targets).sum().item(),
    }


def generator(seed):
    digest = hashlib.sha256(seed.encode()).hexdigest()
    return torch.Generator().manual_seed(int(digest[:8], 16))


def random_batch(generator):
    """Two segments of different lengths. Which tokens are trained looks like turns of a chat."""
    batch = []
    for length in LENGTHS:
        turns = torch.randint(2, 7, (length,), generator=generator).tolist()
        roles = [index % 2 == 1 for index, turn in enumerate(turns) for _ in range(turn)]
        tokens = torch.randint(0, 64, (length,), generator=generator).tolist()
        batch.append({"tokens": tokens, "trained": roles[:length]})
    return batch


def optimiser():
    """Recorded gradients, and what torch's AdamW makes of parameters by them."""
    records = []
    for name, decay, max_norm, kind in [
        ("constant", 0.0, 1.0, "constant"),
        ("decay", 0.1, 1.0, "cosine"),
        ("unclipped", 0.01, None, "linear"),
    ]:
        random = generator(f"optimiser/{name}")
        tensors = [torch.randn(size, generator=random) * 0.1 for size in (5, 4, 7)]
        parameters = [torch.nn.Parameter(tensor.clone()) for tensor in tensors]
        adamw = torch.optim.AdamW(
            parameters, lr=LEARNING_RATE, weight_decay=decay, foreach=False
        )
        schedule = transformers.get_scheduler(kind, adamw, 3, STEPS)
        steps = []
        for step in range(STEPS):
            # Some below the clip and some above it, one element next to nothing, one always 0.
            for parameter in parameters:
                scale = 10.0 ** (step % 4 - 2)
                parameter.grad = torch.randn(parameter.shape, generator=random) * scale
            parameters[0].grad[0] = 0.0
            parameters[0].grad[1] *= 1e-9
            gradient = flat([parameter.grad for parameter in parameters])
            norm = math.sqrt(sum(x * x for x in gradient))
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=False)
            rate = adamw.param_groups[0]["lr"]
            adamw.step()
            schedule.step()
            steps.append(
                {
                    "gradient": gradient,
                    "norm": norm,
                    "learning_rate": rate,
                    "parameters": flat(parameters),
                }
            )
        records.append(
            {
                "name": name,
                "weight_decay": decay,
                "max_norm": max_norm,
                "start": flat(tensors),
                "steps": steps,
            }
        )
    return records


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).tolist()


def schedules():
    """What the learning rate is multiplied by at each step."""
    records = []
    parameter = torch.nn.Parameter(torch.zeros(1))
    makers = {
        "constant": lambda o, w, t: transformers.get_constant_schedule_with_warmup(o, w),
        "linear": transformers.get_linear_schedule_with_warmup,
        "cosine": transformers.get_cosine_schedule_with_warmup,
    }
    for kind, maker in makers.items():
        for warmup, total in [(0, 1), (0, 10), (1, 2), (3, 10), (10, 10), (30, 1000)]:
            schedule = maker(torch.optim.SGD([parameter], lr=1.0), warmup, total)
            steps = sorted({*range(min(total, 12)), *range(0, total, 97), total - 1, total})
            factors = [schedule.lr_lambdas[0](step) for step in steps]
            records.append(
                {"kind": kind, "warmup": warmup, "total": total, "steps": steps, "factors": factors}
            )
    return records


def located(config, model):
    """Without where it lay on this machine, and sets in one order."""
    config = config | {"base_model_name_or_path": f"tiny/{model}"}
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config[key], list):
            config[key] = sorted(config[key])
    return config


def write(path, value):
    path.write_text(json.dumps(value, separators=(",", ":")) + "\n")
    print(path.name, path.stat().st_size, "bytes")
