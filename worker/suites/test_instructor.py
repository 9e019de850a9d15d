"""instructor: objects of a class in each of its ways, and its retries with the history so far."""
from typing import Annotated, Literal

import instructor
import openai
import pytest
from conftest import MODEL, URL
from instructor.core import InstructorRetryException
from pydantic import AfterValidator, BaseModel

MESSAGES = [{"role": "user", "content": "How large is Paris?"}]


class Size(BaseModel):
    """How large a city is."""

    size: Literal["small", "large"]


def client(mode):
    return instructor.from_openai(
        openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0, timeout=120), mode=mode)


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA])
def test_an_object_is_made_of_an_answer(mode):
    found = client(mode).create(
        model=MODEL, messages=MESSAGES, response_model=Size, max_tokens=100, temperature=0, max_retries=0)
    assert found.size in ("small", "large")


def test_a_stream_grows_to_the_object():
    pieces = list(client(instructor.Mode.TOOLS).create_partial(
        model=MODEL, messages=MESSAGES, response_model=Size, max_tokens=100, temperature=0))
    assert pieces[-1].size in ("small", "large")


def test_a_retry_sends_the_refused_call_back():
    seen = []

    def never(value):
        seen.append(value)
        raise ValueError("not that")

    class Hopeless(BaseModel):
        size: Annotated[Literal["small", "large"], AfterValidator(never)]

    with pytest.raises(InstructorRetryException) as caught:
        client(instructor.Mode.TOOLS).create(
            model=MODEL, messages=MESSAGES, response_model=Hopeless, max_tokens=100, temperature=0, max_retries=2)
    # Each attempt was answered: the history was taken.
    assert len(seen) >= 2 and "not that" in str(caught.value), caught.value
