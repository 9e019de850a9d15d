"""What TRL's trainer computes of pairs of answers, one preferred to the other."""

import json
import math
import pathlib
import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

import adapters
import training

BETA = 0.1
# Tokens of the prompts, and of the chosen and the rejected answers without their ends.
PAIRS = [(9, 12, 7), (5, 6, 11)]


def make(load, name):
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        adapters.save(load(), name, training.ALL, root, training.DEVIATION)
        config = json.loads((root / "adapter_config.json").read_text())
        values = load_file(root / "adapter_model.safetensors")
        trainer, inputs = trainer_of(load(), name, root)
        set_values(trainer.model, {k: v if "lora_A" in k else 0 * v for k, v in values.items()})
        first = trainer.compute_loss(trainer.model, inputs).item()
        if abs(first - math.log(2)) > 1e-6:
            raise SystemExit(f"{name}: TRL's first loss is {first}")
        set_values(trainer.model, values)
        policy = answers(trainer, inputs)
        with trainer.model.disable_adapter():
            reference = answers(trainer, inputs)
        loss, gradient = loss_and_gradient(trainer, inputs)
        trainer.model.to(torch.float64)
        _, exact = loss_and_gradient(trainer, inputs)
    error, key = training.worst(gradient, exact)
    print(name, "first", first, "loss", loss, "error", error)
    if error > training.ERROR:
        raise SystemExit(f"{name}: the gradient of {key} is off by {error}")
    tensors = {f"values/{k}": v for k, v in values.items()}
    tensors |= {f"gradient/{k}": v.float() for k, v in exact.items()}
    return tensors, {
        "config": config,
        "beta": BETA,
        "pairs": segments(inputs),
        "first": first,
        "loss": loss,
        "policy": policy,
        "reference": reference,
    }


def trainer_of(base, name, root):
    """A trainer of a new adapter, and its only batch: chosen answers, then rejected ones."""
    vocabulary = {"[UNK]": 0, "<s>": 1, "</s>": 2} | {f"t{i}": i for i in range(3, 64)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    random = training.generator(name)

    def draw(count):
        tokens = torch.randint(3, 64, (count,), generator=random).tolist()
        return "".join(f" t{token}" for token in tokens)

    rows = [dict(zip(("prompt", "chosen", "rejected"), map(draw, pair))) for pair in PAIRS]
    # What the trainer appends is a word of its own.
    for row in rows:
        row["chosen"], row["rejected"] = row["chosen"] + " </s>", row["rejected"] + " </s>"
    options = {k: v for k, v in training.ALL.items()}
    trainer = DPOTrainer(
        model=base,
        args=DPOConfig(
            output_dir=str(root / "out"),
            beta=BETA,
            per_device_train_batch_size=len(rows),
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="</s>", pad_token="[UNK]"
        ),
        peft_config=LoraConfig(**options, task_type="CAUSAL_LM"),
    )
    trainer.model.train()
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    return trainer, inputs


def set_values(model, values):
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(values[key.replace(".default", "")])


def loss_and_gradient(trainer, inputs):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item(), training.named_gradient(trainer.model)


def segments(inputs):
    rows = [
        {
            "tokens": [t for t, there in zip(tokens, attention) if there],
            "trained": [bool(t) for t, there in zip(trained, attention) if there],
        }
        for tokens, attention, trained in zip(
            inputs["input_ids"].tolist(),
            inputs["attention_mask"].tolist(),
            inputs["completion_mask"].tolist(),
        )
    ]
    half = len(rows) // 2
    return [list(pair) for pair in zip(rows[:half], rows[half:])]


def answers(trainer, inputs):
    """Log-probabilities of the answers of each pair."""
    return [
        [-training.score(trainer.model, segment)["loss"] for segment in pair]
        for pair in segments(inputs)
    ]
