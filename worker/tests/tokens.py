#!/usr/bin/env python3
"""Compares a running worker's tokens, texts and chat prompts with those of transformers.

usage: pip install transformers jinja2 && ./tokens.py http://127.0.0.1:8000 MODEL MODEL_DIR

Exits with status 1 when anything differs.
"""
import json
import random
import sys
import urllib.request

from transformers import AutoTokenizer

BASE, MODEL, FOLDER = sys.argv[1].rstrip("/"), sys.argv[2], sys.argv[3]
TEXTS = [
    "Hello world", "  leading", "trailing  \n\n", "مرحبا بالعالم", "你好，世界", "🦀🦀👩‍👩‍👧‍👦 é e\u0301",
    "def f(x):\n\treturn x+1 # 12345678", "a\0b\0", "\ufffd\ufdd0x", "x" * 100_000, "word " * 20_000,
    "1234567890" * 50, "\u200b\u202eabc", "ﷺ", "", " ", "\n", "\r\n\t", "{{ x }}{% if %}",
]


def noise(rng):
    ranges = [(32, 127), (0x80, 0x800), (0x800, 0xD800), (0x1F300, 0x1F700), (10, 11), (32, 33)]
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 60)))


def post(path, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(BASE + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def main():
    reference = AutoTokenizer.from_pretrained(FOLDER)
    rng = random.Random(1)
    texts = TEXTS + [noise(rng) for _ in range(300)]
    differ = 0

    def compare(what, text, ours, theirs):
        nonlocal differ
        if ours != theirs:
            differ += 1
            print(f"{what} differs for {text[:40]!r}: {ours[:40]!r}, not {theirs[:40]!r}")

    for text in texts:
        ids = reference(text)["input_ids"]
        compare("tokens", text, post("/tokenize", {"prompt": text})["tokens"], ids)
        if ids:
            back = post("/detokenize", {"tokens": ids})["prompt"]
            compare("text", text, back, reference.decode(ids, clean_up_tokenization_spaces=False))
        for before in ([], [{"role": "system", "content": "s"}, {"role": "user", "content": "u"},
                            {"role": "assistant", "content": text}]):
            messages = before + [{"role": "user", "content": text}]
            ids = reference.apply_chat_template(messages, add_generation_prompt=True)
            ids = ids if isinstance(ids, list) else ids["input_ids"]
            ours = post("/tokenize", {"model": MODEL, "messages": messages})["tokens"]
            compare("chat", text, ours, ids)
    print(f"{len(texts)} texts, {differ} differences")
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()
