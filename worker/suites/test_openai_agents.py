"""OpenAI's agents: runs with tools, typed output and streams, over both of its APIs."""
from typing import Literal

import agents
import openai
import pytest
from conftest import MODEL, URL
from pydantic import BaseModel

agents.set_tracing_disabled(True)
client = openai.AsyncOpenAI(base_url=URL + "/v1", api_key="none", max_retries=0, timeout=120)
KINDS = pytest.mark.parametrize("kind", [agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel])


class Size(BaseModel):
    """How large a city is."""

    size: Literal["small", "large"]


@agents.function_tool
def get_weather(unit: Literal["celsius", "fahrenheit"]) -> str:
    """Current weather."""
    return f"21 {unit}"


def agent(kind, **more):
    choice = more.pop("tool_choice", None)
    tokens = more.pop("max_tokens", 100)
    settings = agents.ModelSettings(temperature=0, max_tokens=tokens, tool_choice=choice,
                                    parallel_tool_calls=False if more.get("tools") else None, store=False)
    return agents.Agent(name="a", instructions="Be brief.", model_settings=settings,
                        model=kind(model=MODEL, openai_client=client), **more)


@KINDS
async def test_a_tool_is_called_and_its_result_goes_back(kind):
    caller = agent(kind, tools=[get_weather], tool_choice="required",
                   tool_use_behavior={"stop_at_tool_names": ["get_weather"]})
    first = await agents.Runner.run(caller, "What is the weather?")
    assert first.final_output in ("21 celsius", "21 fahrenheit")
    # The history as it keeps it, call and result included.
    history = [*first.to_input_list(), {"role": "user", "content": "Thanks."}]
    again = await agents.Runner.run(agent(kind, output_type=Size), history)
    assert again.final_output.size in ("small", "large")


@KINDS
async def test_output_is_of_its_type(kind):
    found = await agents.Runner.run(agent(kind, output_type=Size), "How large is Paris?")
    assert found.final_output.size in ("small", "large")


@KINDS
async def test_a_stream_ends_with_the_whole(kind):
    result = agents.Runner.run_streamed(agent(kind, output_type=Size), "How large is Paris?")
    kinds = {event.type async for event in result.stream_events()}
    assert {"raw_response_event", "run_item_stream_event"} <= kinds
    assert result.final_output.size in ("small", "large")


@KINDS
async def test_an_error_is_that_of_the_client(kind):
    with pytest.raises(openai.BadRequestError) as caught:
        await agents.Runner.run(agent(kind), "word " * 40_000)
    assert caught.value.code == "context_length_exceeded"
