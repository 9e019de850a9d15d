"""dspy: programs of typed fields, which it asks for as JSON, its history, and its own errors."""
from typing import Literal

import dspy
import pytest
from conftest import MODEL, URL


# dspy asks for this itself only where it knows the model.
FORM = {"type": "json_schema", "json_schema": {"name": "judgement", "strict": True, "schema": {
    "type": "object", "properties": {"size": {"enum": ["small", "large"]}}, "required": ["size"],
    "additionalProperties": False}}}


class Judge(dspy.Signature):
    """Say how large a city is."""

    city: str = dspy.InputField()
    size: Literal["small", "large"] = dspy.OutputField()


def lm(**more):
    return dspy.LM(f"openai/{MODEL}", api_base=URL + "/v1", api_key="none", cache=False, num_retries=0,
                   **({"temperature": 0.0, "max_tokens": 200} | more))


def test_typed_fields_are_filled():
    with dspy.context(lm=lm(response_format=FORM), adapter=dspy.JSONAdapter()):
        assert dspy.Predict(Judge)(city="Paris").size in ("small", "large")


def test_a_history_is_sent_back():
    class Chat(dspy.Signature):
        history: dspy.History = dspy.InputField()
        city: str = dspy.InputField()
        size: Literal["small", "large"] = dspy.OutputField()

    history = dspy.History(messages=[{"city": "Rome", "size": "large"}])
    with dspy.context(lm=lm(response_format=FORM), adapter=dspy.JSONAdapter()):
        assert dspy.Predict(Chat)(history=history, city="Paris").size in ("small", "large")


def test_a_prompt_that_is_too_long_is_its_own_error():
    with pytest.raises(dspy.ContextWindowExceededError):
        lm()("word " * 40_000)
