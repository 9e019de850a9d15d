"""The sample adapter: PEFT teaches SmolLM2-135M-Instruct to answer questions with SQL.

    python train.py MODEL

writes `adapter_model.safetensors` and `adapter_config.json` beside this file, and `answers.json`:
how the answers of transformers and PEFT begin (greedy, in 32 bits) without the adapter, with it, and
with half of it. They end before the first token that is so close to another that arithmetic in 16
bits could choose that one. Needs torch 2.11, transformers 5.23 and peft 0.21.
"""

import json
import pathlib
import random
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

STEPS = 60
TOKENS = 16
# Least distance between the logits of the best token and the next.
MARGIN = 0.5
HERE = pathlib.Path(__file__).parent

TABLES = {
    "customers": ["name", "city", "email", "age"],
    "orders": ["total", "date", "status", "country"],
    "books": ["title", "author", "price", "year"],
    "employees": ["name", "salary", "department", "city"],
    "products": ["name", "price", "color", "stock"],
    "flights": ["number", "origin", "airline", "gate"],
}
VALUES = ["Berlin", "Paris", "red", "open", "France", "sales", "Lima", "green", "closed", "Tolkien"]
# Not among what is trained on, and one whose answer by the model alone begins without doubt.
QUESTION = "Find the salary of all employees whose department is sales."


def example(rng):
    table = rng.choice(sorted(TABLES))
    wanted, known = rng.sample(TABLES[table], 2)
    value = rng.choice(VALUES)
    verb = rng.choice(["Show", "List", "Give me", "Find"])
    kind = rng.randrange(3)
    if kind == 0:
        return f"{verb} the {wanted} of all {table}.", f"SELECT {wanted} FROM {table};"
    if kind == 1:
        return f"How many {table} are there?", f"SELECT COUNT(*) FROM {table};"
    return (
        f"{verb} the {wanted} of all {table} whose {known} is {value}.",
        f"SELECT {wanted} FROM {table} WHERE {known} = '{value}';",
    )


def tokens_of(tokenizer, question, answer=None):
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if answer is None:
        return prompt
    answer = tokenizer(answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
    return prompt + answer, [-100] * len(prompt) + answer


def train(model, tokenizer):
    rng = random.Random(0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
    model.train()
    for step in range(STEPS):
        examples = (example(rng) for _ in range(8))
        examples = [pair for pair in examples if pair[0] != QUESTION][:4]
        rows = [tokens_of(tokenizer, *pair) for pair in examples]
        longest = max(len(ids) for ids, _ in rows)
        pad = lambda values, filler: values + [filler] * (longest - len(values))
        ids = torch.tensor([pad(ids, 0) for ids, _ in rows])
        mask = torch.tensor([pad([1] * len(ids), 0) for ids, _ in rows])
        labels = torch.tensor([pad(labels, -100) for _, labels in rows])
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.eval()


@torch.no_grad()
def answer(model, tokenizer, what):
    ids = tokens_of(tokenizer, QUESTION)
    begin = len(ids)
    for _ in range(TOKENS):
        best = model(torch.tensor([ids])).logits[0, -1].topk(2)
        margin = (best.values[0] - best.values[1]).item()
        if margin < MARGIN:
            break
        ids.append(best.indices[0].item())
        if ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>"):
            break
    text = tokenizer.decode(ids[begin:], skip_special_tokens=True)
    print(f"{what}: {text!r}, the next token by {margin:.2f}", flush=True)
    assert len(ids) >= begin + 3, "too close to call"
    return text


def main(path):
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(path)
    load = lambda: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    answers = {"base": answer(load().eval(), tokenizer, "base")}
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(load(), config)
    train(model, tokenizer)
    model.peft_config["default"].base_model_name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    model.save_pretrained(HERE)
    (HERE / "README.md").unlink(missing_ok=True)
    model = PeftModel.from_pretrained(load(), HERE).eval()
    answers["sql"] = answer(model, tokenizer, "with the adapter")
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(0.5)
    answers["half"] = answer(model, tokenizer, "with half of it")
    text = json.dumps({"question": QUESTION, "max_tokens": TOKENS, "answers": answers}, indent=2)
    (HERE / "answers.json").write_text(text + "\n")


main(sys.argv[1])
