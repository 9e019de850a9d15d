"""What the suites share: the worker that `cargo xtask suites` has started.

The environment names it: SUITE_URL (without /v1), SUITE_MODEL.
"""
import os
import time

import httpx
import pytest

URL = os.environ.get("SUITE_URL", "http://127.0.0.1:8000").rstrip("/")
# litellm and dspy would fetch the prices of models from the internet.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
MODEL = os.environ.get("SUITE_MODEL", "smollm2")


def chat(**more):
    """A small chat request, greedy, with `more` in it."""
    body = {"model": MODEL, "temperature": 0, "max_tokens": 8,
            "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    return body | more


def metric(name):
    """The sum of a metric over its labels."""
    text = httpx.get(URL + "/metrics", timeout=30).text
    lines = [line for line in text.splitlines() if line.startswith(name) and line[len(name)] in " {"]
    assert lines, f"there is no metric {name}"
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def wait_idle(seconds=30):
    """Waits until nothing runs or waits, and says how long it took."""
    started = time.monotonic()
    while metric("vllm:num_requests_running") + metric("vllm:num_requests_waiting") > 0:
        assert time.monotonic() - started < seconds, "requests are stuck"
        time.sleep(0.05)
    return time.monotonic() - started


def answers_within(seconds):
    """Asserts that an ordinary request is answered in this time, and says in which."""
    started = time.monotonic()
    response = httpx.post(URL + "/v1/chat/completions", json=chat(), timeout=60)
    took = time.monotonic() - started
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["completion_tokens"] > 0
    assert took < seconds, f"an ordinary request took {took:.1f} s"
    return took


@pytest.fixture(scope="session")
def url():
    """The worker's address."""
    return URL


@pytest.fixture(scope="session")
def model():
    """The name of its model."""
    return MODEL
