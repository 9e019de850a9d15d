"""litellm, through which many agents talk: answers, its classes of exceptions, history sent back."""
import json
import pathlib

import httpx
import litellm
import openai
import pytest
from conftest import MODEL, URL

PARIS = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Current weather of a city.",
    "parameters": {"type": "object", "additionalProperties": False, "required": ["unit"],
                   "properties": {"unit": {"enum": ["celsius", "fahrenheit"]}}}}}
FORCED = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 160}

client = openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0, timeout=120)


def ask(**more):
    return litellm.completion(**({
        "model": f"openai/{MODEL}", "api_base": URL + "/v1", "api_key": "none", "messages": PARIS,
        "temperature": 0, "max_tokens": 16, "num_retries": 0, "max_retries": 0} | more))


def test_an_answer_and_its_stream_are_the_same():
    whole = ask()
    assert whole.choices[0].message.content and whole.usage.completion_tokens > 0
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert litellm.stream_chunk_builder(chunks).usage.total_tokens == whole.usage.total_tokens


def test_history_goes_back_as_litellm_keeps_it():
    first = ask(**FORCED).choices[0].message
    call = first.tool_calls[0]
    assert call.function.name == "get_weather" and json.loads(call.function.arguments)["unit"]
    # As an agent does: the message itself, with every member that litellm gave it, and more.
    past = first.model_dump() | {"provider_specific_fields": {"a": 1}, "thinking_blocks": [{"type": "thinking"}],
                                 "audio": None, "function_call": None}
    result = {"role": "tool", "tool_call_id": call.id, "name": "get_weather", "content": "21"}
    messages = [*PARIS, past, result]
    assert ask(messages=messages, tools=[WEATHER]).choices[0].message is not None
    told = httpx.post(URL + "/v1/chat/completions", timeout=60, json={
        "model": MODEL, "messages": messages, "max_tokens": 2}).headers["x-hyprstream-ignored"]
    assert "messages.provider_specific_fields" in told and "messages.thinking_blocks" in told


def test_a_schema_is_kept_to():
    schema = {"type": "object", "properties": {"size": {"enum": ["small", "large"]}}, "required": ["size"]}
    answer = ask(max_tokens=60, response_format={
        "type": "json_schema", "json_schema": {"name": "size", "schema": schema, "strict": True}})
    assert json.loads(answer.choices[0].message.content)["size"] in ("small", "large")


@pytest.mark.parametrize("more, kind, code", [
    # Callers shorten the conversation and ask again.
    ({"messages": [{"role": "user", "content": "word " * 40_000}]},
     litellm.ContextWindowExceededError, "context_length_exceeded"),
    ({"messages": [{"role": "user", "content": "word " * 9_000}]},
     litellm.ContextWindowExceededError, "context_length_exceeded"),
    ({"max_tokens": 1_000_000}, litellm.ContextWindowExceededError, "context_length_exceeded"),
    ({"model": "openai/other"}, litellm.NotFoundError, "model_not_found"),
    ({"temperature": 3}, litellm.BadRequestError, None),
])
def test_errors_are_the_exceptions_that_callers_expect(more, kind, code):
    with pytest.raises(kind) as caught:
        ask(**more)
    # A bad field is not taken for a long prompt, whose class is a kind of it.
    assert type(caught.value) is kind, caught.value
    # litellm reads the message; what OpenAI's own client shows is the code.
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**({
            "model": MODEL, "messages": PARIS} | more | {"model": more.get("model", MODEL).removeprefix("openai/")}))
    assert caught.value.code == code


def answering(status, body):
    """A client whose server answers with this, whatever it is asked."""
    transport = httpx.MockTransport(lambda request: httpx.Response(status, json=body))
    return openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0,
                         http_client=httpx.Client(transport=transport))


@pytest.mark.parametrize("status, family, code, kind", [
    (401, "authentication_error", "invalid_api_key", litellm.AuthenticationError),
    (413, "invalid_request_error", "request_too_large", litellm.BadRequestError),
    (429, "rate_limit_error", "rate_limit_exceeded", litellm.RateLimitError),
    (503, "service_unavailable_error", "overloaded", litellm.ServiceUnavailableError),
    (500, "server_error", "generation_failed", litellm.InternalServerError),
])
def test_errors_that_a_suite_cannot_provoke_are_told_apart_by_status_and_code(status, family, code, kind):
    # The worker's bodies, from a transport in its place; the class goes by the type too.
    body = {"error": {"message": "m", "type": family, "param": None, "code": code}}
    with pytest.raises(kind):
        ask(client=answering(status, body))


# What a gateway sends, as its own tests provoke and record it (gateway/tests/recorded.rs).
RECORDED = json.loads((pathlib.Path(__file__).parent / "recorded/gateway.json").read_text())
EXPECTED = {
    "invalid_value": litellm.BadRequestError,
    "model_not_found": litellm.NotFoundError,
    "model_not_ready": litellm.ServiceUnavailableError,
    "model_unavailable": litellm.ServiceUnavailableError,
    "overloaded": litellm.ServiceUnavailableError,
    "rate_limit_exceeded": litellm.RateLimitError,
    "request_too_large": litellm.BadRequestError,
    "starting": litellm.ServiceUnavailableError,
    "worker_lost": litellm.BadGatewayError,
    "worker_refused": litellm.BadGatewayError,
    "worker_timeout": litellm.Timeout,
}


def test_every_error_of_a_gateway_has_its_class():
    assert RECORDED.keys() == EXPECTED.keys()


@pytest.mark.parametrize("code", EXPECTED)
def test_errors_of_a_gateway_are_the_exceptions_that_callers_expect(code):
    recorded = RECORDED[code]
    with pytest.raises(EXPECTED[code]) as caught:
        ask(client=answering(recorded["status"], recorded["body"]))
    assert recorded["body"]["error"]["message"] in str(caught.value)
    with pytest.raises(openai.APIStatusError) as caught:
        answering(recorded["status"], recorded["body"]).chat.completions.create(model=MODEL, messages=PARIS)
    assert caught.value.code == code
