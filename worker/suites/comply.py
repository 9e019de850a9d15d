#!/usr/bin/env python3
"""Runs llm-comply and fails on what it finds, but for what a text model cannot do.

usage: comply.py FORMAT; the environment names the worker as for the other suites.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

# What is expected to fail or to be skipped, by format and test, with the reason.
EXPECTED = {
    "openai-chat": {
        "chat-image-input": "the model reads text only, and images are refused with a 400",
        "chat-reasoning-summary": "skipped by llm-comply: the model's name is none of OpenAI's reasoning models",
    },
    "open-responses": {
        "image-input": "the model reads text only, and images are refused with a 400",
        "reasoning-summary": "skipped by llm-comply: the model's name is none of OpenAI's reasoning models",
    },
}


def main():
    form = sys.argv[1]
    program = Path(sys.executable).with_name("llm-comply")
    told = subprocess.run(
        [program, "--json", "--format", form, "--base-url", os.environ["SUITE_URL"] + "/v1", "--api-key", "none",
         "--model", os.environ["SUITE_MODEL"], "--timeout", "120"],
        capture_output=True, text=True, check=False)
    try:
        results = json.loads(told.stdout[told.stdout.index("{"):])["results"]
    except (ValueError, KeyError):
        sys.exit(f"llm-comply said no results: {told.stdout}{told.stderr}")
    bad = 0
    for result in results:
        status, name = result["status"], result["id"]
        why = "; ".join(result.get("errors") or [])
        expected = EXPECTED[form].get(name)
        if status == "passed" and expected:
            # A list of exceptions must not outlive its reasons.
            status = "passed, though it was expected to fail: take it off the list"
            bad += 1
        elif status != "passed":
            bad += expected is None
            why = f"expected: {expected} ({why})" if expected else why
        print(f"  {name}: {status}{' - ' + why if why else ''}")
        for warning in result.get("warnings") or []:
            print(f"      warning: {warning}")
    print(f"llm-comply {form}: {len(results)} tests, {bad} unexpected")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
