"""Records what PyTorch's AdamW, transformers' schedules and its masks of assistants' tokens give.

    python make.py TOKENIZER > recorded.json

TOKENIZER is the file that `cargo test -p hyprstream-training writes_its_tokenizer -- --ignored`
writes. Made with torch 2.11, transformers 5.
"""

import json
import pathlib
import sys
import warnings

import torch
import transformers
from transformers import PreTrainedTokenizerFast

TEMPLATES = pathlib.Path(__file__).parent.parent / "templates"
TALK = ["Two?", "Two.", "Three?", " Three é"]


def optimiser(decay, clip):
    torch.manual_seed(7)
    p = torch.nn.Parameter(torch.randn(24))
    start = p.detach().tolist()
    adam = torch.optim.AdamW([p], lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay, foreach=False)
    steps = []
    for step in range(10):
        g = torch.randn(24) * 10.0 ** (step % 3 - 2)
        p.grad = g.clone()
        norm = torch.nn.utils.clip_grad_norm_([p], clip) if clip else torch.tensor(0.0)
        lr = 2e-4 * (step + 1)
        adam.param_groups[0]["lr"] = lr
        adam.step()
        steps.append({"lr": lr, "gradient": g.tolist(), "norm": norm.item(), "values": p.detach().tolist()})
    return {"decay": decay, "clip": clip, "start": start, "steps": steps}


def schedules():
    made = []
    for name, of in [
        ("cosine", transformers.get_cosine_schedule_with_warmup),
        ("linear", transformers.get_linear_schedule_with_warmup),
    ]:
        for warmup, total in [(3, 100), (0, 7), (2, 10)]:
            adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
            schedule = of(adam, warmup, total)
            rates = []
            for _ in range(total):
                rates.append(schedule.get_last_lr()[0])
                adam.step()
                schedule.step()
            made.append({"decay": name, "warmup": warmup, "total": total, "rates": rates})
    return made


def masks(path):
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=path)
    messages = [{"role": ["user", "assistant"][i % 2], "content": text} for i, text in enumerate(TALK)]
    made = []
    for file in sorted(TEMPLATES.glob("*_training.jinja")):
        bos, eos = {"gemma": ("<bos>", "<eos>"), "llama": ("<|begin_of_text|>", "<|eot_id|>")}.get(
            file.stem[:5], ("<s>", "<|endoftext|>")
        )
        tokenizer.bos_token, tokenizer.eos_token = bos, eos
        out = tokenizer.apply_chat_template(
            messages, chat_template=file.read_text(), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        made.append({"template": file.stem, "tokens": out["input_ids"], "said": out["assistant_masks"]})
    return made


warnings.simplefilter("ignore")
recorded = {
    "optimiser": [optimiser(0.0, 1.0), optimiser(0.1, 0.0)],
    "schedules": schedules(),
    "masks": masks(sys.argv[1]),
}
print(json.dumps(recorded, indent=None, separators=(",", ":")))
