"""pydantic-ai: typed output in each of its ways, tools, streams, and its history sent back."""
from typing import Literal

import pytest
from conftest import MODEL, URL
from pydantic import BaseModel
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

SETTINGS = {"temperature": 0, "max_tokens": 200, "parallel_tool_calls": False}


class Size(BaseModel):
    """How large a city is."""

    size: Literal["small", "large"]


def model(kind):
    return kind(MODEL, provider=OpenAIProvider(base_url=URL + "/v1", api_key="none"))


KINDS = pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])


@KINDS
@pytest.mark.parametrize("form", [ToolOutput, NativeOutput])
def test_output_is_of_its_type(kind, form):
    agent = Agent(model(kind), output_type=form(Size), model_settings=SETTINGS)
    assert agent.run_sync("How large is Paris?").output.size in ("small", "large")


@KINDS
def test_a_history_goes_back_as_it_was_kept(kind):
    agent = Agent(model(kind), output_type=ToolOutput(Size), model_settings=SETTINGS, instructions="Be brief.")
    first = agent.run_sync("How large is Paris?")
    again = agent.run_sync("And Rome?", message_history=first.all_messages())
    assert again.output.size in ("small", "large") and len(again.all_messages()) > len(first.all_messages())


@KINDS
def test_a_text_is_streamed(kind):
    agent = Agent(model(kind), model_settings=SETTINGS | {"max_tokens": 16})
    result = agent.run_stream_sync("What is the capital of France?")
    assert "".join(result.stream_text(delta=True, debounce_by=None)) != ""


@KINDS
def test_an_error_says_what_it_is(kind):
    agent = Agent(model(kind), model_settings=SETTINGS)
    with pytest.raises(ModelHTTPError) as caught:
        agent.run_sync("word " * 40_000)
    assert caught.value.status_code == 400 and caught.value.body["code"] == "context_length_exceeded"
