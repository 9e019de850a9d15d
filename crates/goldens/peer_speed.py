"""How fast PEFT trains beside `hyprstream-worker bench --train`, with the same rows.

usage: hyprstream-worker bench --train 512 --batch 4 --model DIR --json > ours.json
       peer_speed.py DIR ours.json [--dtype float32|bfloat16] [--threads 2] [--checkpointing]

Reads which rows ours had (their lengths, with `--ragged`) and takes as many updates of the same adapter:
padded to the longest row of each batch, as transformers' collators do, with an attention mask, and with
-100 where a row has no token. Prints one line of JSON: tokens a second of the median update after the first two,
padding not counted; the peak of resident memory; losses.
"""

import argparse
import json
import resource
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("ours")
parser.add_argument("--dtype", default="float32")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--updates", type=int, help="fewer than ours took")
parser.add_argument("--checkpointing", action="store_true")
args = parser.parse_args()

with open(args.ours) as file:
    ours = json.load(file)
row = ours["results"][0]
updates = len(row["losses"])
lengths = row.get("lengths") or [[row["row_tokens"]] * row["rows"]] * updates
lengths = lengths[: args.updates or updates]

torch.set_num_threads(args.threads)
torch.manual_seed(1)
base = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
vocabulary = base.config.vocab_size
lora = LoraConfig(
    r=ours["rank"],
    lora_alpha=2 * ours["rank"],
    lora_dropout=0.0,
    target_modules="all-linear",
    task_type="CAUSAL_LM",
)
model = get_peft_model(base, lora)
if args.checkpointing:
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
model.train()
parameters = [p for p in model.parameters() if p.requires_grad]
optimiser = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0)
paces, losses = [], []
for of_rows in lengths:
    longest = max(of_rows)
    ids = torch.randint(0, vocabulary, (len(of_rows), longest))
    mask = torch.zeros_like(ids)
    for index, length in enumerate(of_rows):
        mask[index, :length] = 1
    labels = ids.masked_fill(mask == 0, -100)
    begin = time.perf_counter()
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    paces.append(sum(of_rows) / (time.perf_counter() - begin))
    losses.append(round(loss.item(), 5))
print(
    json.dumps(
        {
            "dtype": args.dtype,
            "checkpointing": args.checkpointing,
            "tokens_per_second": round(statistics.median(paces[2:] or paces), 1),
            "max_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "losses": losses,
        }
    )
)
