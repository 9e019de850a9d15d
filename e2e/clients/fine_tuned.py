"""Fine-tunes with the stock client, waits, and chats with what came of it; prints one JSON object.
Arguments: base URL, Model, key."""

import io
import json
import sys
import time

from openai import OpenAI

base_url, model, key = sys.argv[1:]
client = OpenAI(base_url=base_url, api_key=key)
records = [
    {"messages": [{"role": "user", "content": f"Tag: {word} {number}"},
                  {"role": "assistant", "content": f"[{word.upper()}|{number}]"}]}
    for number in range(8) for word in ("river", "stone", "cloud")
]
data = "".join(json.dumps(record) + "\n" for record in records).encode()
file = client.files.create(file=("tags.jsonl", io.BytesIO(data)), purpose="fine-tune")
job = client.fine_tuning.jobs.create(
    model=model, training_file=file.id, suffix="tags", seed=1,
    method={"type": "supervised", "supervised": {"hyperparameters": {
        "n_epochs": 1, "batch_size": 8, "learning_rate_multiplier": 5}}},
)
deadline = time.monotonic() + 400
while job.status not in ("succeeded", "failed", "cancelled"):
    assert time.monotonic() < deadline, job
    time.sleep(2)
    job = client.fine_tuning.jobs.retrieve(job.id)
assert job.status == "succeeded", job
events = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
# The workers of the Model have it within seconds.
answer = None
while answer is None:
    assert time.monotonic() < deadline, job
    try:
        answer = client.chat.completions.create(
            model=job.fine_tuned_model, max_tokens=8, temperature=0,
            messages=[{"role": "user", "content": "Tag: stone 9"}])
    except Exception as error:  # noqa: BLE001: 404 or 503 until it is there
        last = error
        time.sleep(1)
client.files.delete(file.id)
print(json.dumps({
    "model": job.fine_tuned_model, "tokens": job.trained_tokens, "events": len(events),
    "answer": answer.choices[0].message.content,
}))
