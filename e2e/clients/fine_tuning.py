"""Uploads files and fine-tunes with the stock client, as far as a job goes without being waited for;
prints one JSON object. Arguments: base URL, Model, key."""

import io
import json
import sys

import openai
from openai import OpenAI

base_url, model, key = sys.argv[1:]
client = OpenAI(base_url=base_url, api_key=key, max_retries=0)


def refused(error, call):
    """What the call is refused with."""
    try:
        call()
    except error as refusal:
        return {"status": refusal.status_code, "code": refusal.code, "param": refusal.param}
    raise AssertionError(f"{error.__name__} was expected")


record = {"messages": [{"role": "user", "content": "Capital of France?"},
                       {"role": "assistant", "content": "Paris"}]}
data = (json.dumps(record) + "\n").encode() * 20

anonymous = OpenAI(base_url=base_url, api_key="nobody", max_retries=0)
refusals = {
    "anonymous": refused(openai.AuthenticationError, anonymous.files.list),
    "bad_line": refused(openai.BadRequestError, lambda: client.files.create(
        file=("bad.jsonl", io.BytesIO(b'{"text": 1}\n')), purpose="fine-tune")),
    "no_file": refused(openai.NotFoundError, lambda: client.files.retrieve("file-nothing")),
}

train = client.files.create(file=("train.jsonl", io.BytesIO(data)), purpose="fine-tune")
assert (train.object, train.filename, train.bytes) == ("file", "train.jsonl", len(data)), train
valid = client.files.create(file=("valid.jsonl", io.BytesIO(data)), purpose="fine-tune")
assert client.files.retrieve(train.id) == train
assert client.files.content(train.id).read() == data
assert {train.id, valid.id} <= {file.id for file in client.files.list(limit=1)}
assert client.files.wait_for_processing(train.id).status == "processed"

jobs = client.fine_tuning.jobs
refusals["no_model"] = refused(openai.NotFoundError, lambda: jobs.create(
    model="no-such-model", training_file=train.id))
refusals["integrations"] = refused(openai.BadRequestError, lambda: jobs.create(
    model=model, training_file=train.id,
    integrations=[{"type": "wandb", "wandb": {"project": "p"}}]))
job = jobs.create(
    model=model, training_file=train.id, validation_file=valid.id, suffix="capitals", seed=7,
    metadata={"made-by": "test"},
    method={"type": "supervised", "supervised": {"hyperparameters": {
        "n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": "auto"}}},
)
assert job.object == "fine_tuning.job" and job.seed == 7 and job.training_file == train.id, job
assert job.method.supervised.hyperparameters.n_epochs == 1, job
assert job.user_provided_suffix == "capitals" if hasattr(job, "user_provided_suffix") else True
states = [job.status, jobs.pause(job.id).status]
states.append(jobs.retrieve(job.id).status)
states.append(jobs.resume(job.id).status)
second = jobs.create(model=model, training_file=train.id,
                     extra_headers={"Idempotency-Key": job.id})
again = jobs.create(model=model, training_file=train.id,
                    extra_headers={"Idempotency-Key": job.id})
assert again.id == second.id
listed = [listed.id for listed in jobs.list(limit=1)]
assert {job.id, second.id} <= set(listed), listed
assert job.id in [listed.id for listed in jobs.list(metadata={"made-by": "test"})]
events = list(jobs.list_events(job.id, limit=1))
assert events and all(event.object == "fine_tuning.job.event" for event in events), events
checkpoints = list(jobs.checkpoints.list(job.id))
states.append(jobs.cancel(job.id).status)
jobs.cancel(second.id)
refusals["resumed"] = refused(openai.BadRequestError, lambda: jobs.resume(job.id))
deleted = [client.files.delete(file.id).deleted for file in (train, valid)]
assert jobs.retrieve(job.id).status == "cancelled", "a job outlives its files"
print(json.dumps({
    "job": job.id, "states": states, "events": len(events), "checkpoints": len(checkpoints),
    "deleted": deleted, "refusals": refusals, "version": openai.__version__,
}))
