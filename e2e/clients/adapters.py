"""Asks with the stock client for a model with and without adapters, all at once; prints one JSON object."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

from openai import OpenAI

base_url, model, adapter, half, question, max_tokens = sys.argv[1:]
client = OpenAI(base_url=base_url, api_key="none", max_retries=0)


def ask(name, model, **extra):
    raw = client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=int(max_tokens),
        logprobs=True,
        top_logprobs=5,
        extra_body=extra,
    )
    choice = raw.parse().choices[0]
    likely = [
        {"token": place.token, "top": {one.token: one.logprob for one in place.top_logprobs}}
        for place in choice.logprobs.content
    ]
    adapters = raw.headers.get("x-hyprstream-adapters")
    return name, {"text": choice.message.content, "adapters": adapters, "likely": likely}


names = [model, adapter, f"{model}+{adapter}", f"{model}+{adapter}@0.5", f"{model}+{adapter}@0"]
names += [f"{model}+{half}", f"{model}+{half}@2", f"{model}+{adapter}@0.25+{half}@0.5"]
with ThreadPoolExecutor(max_workers=len(names) + 1) as threads:
    asked = [threads.submit(ask, name, name) for name in names]
    field = [{"name": adapter, "scale": 0.5}]
    asked.append(threads.submit(ask, "field", model, adapters=field))
    answers = dict(one.result() for one in asked)
listed = {m.id: m.model_dump() for m in client.models.list()}
print(json.dumps({"answers": answers, "listed": listed.get(adapter)}))
