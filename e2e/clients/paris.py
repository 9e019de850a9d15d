"""Asks the OpenAI endpoint about Paris with the stock client, streaming; prints one JSON object."""

import json
import sys

from openai import OpenAI

base_url, model = sys.argv[1:]
client = OpenAI(base_url=base_url, api_key="none", max_retries=0)
with client.chat.completions.with_streaming_response.create(
    model=model,
    messages=[{"role": "user", "content": "What is the capital of France?"}],
    temperature=0,
    max_tokens=32,
) as raw:
    commit = raw.headers["x-hyprstream-commit"]
stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "What is the capital of France?"}],
    temperature=0,
    max_tokens=32,
    stream=True,
    stream_options={"include_usage": True},
)
pieces, finish, usage = [], None, None
for chunk in stream:
    for choice in chunk.choices:
        pieces.append(choice.delta.content or "")
        finish = choice.finish_reason or finish
    usage = chunk.usage or usage
listed = {m.id: m.model_dump() for m in client.models.list()}
print(json.dumps({
    "text": "".join(pieces), "pieces": len(pieces), "finish": finish, "commit": commit,
    "completion_tokens": usage.completion_tokens, "listed": listed.get(model),
}))
