"""Requests of every size of nonsense: refused with a reason, and the worker lives on.

Generated from a fixed seed. No answer may be a 5xx but 501 and 503, every refusal is JSON with
`error.message`, and nothing takes long.
"""
import json
import os
import random
import socket
import time

import httpx
from conftest import MODEL, URL, answers_within, chat
from test_robust import ADDRESS

ROUNDS = int(os.environ.get("SUITE_NONSENSE_ROUNDS", "1500"))
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses",
         "/tokenize", "/detokenize"]
VALID = {
    "/v1/chat/completions": chat(max_tokens=2),
    "/v1/completions": {"model": MODEL, "prompt": "a", "max_tokens": 2},
    "/v1/embeddings": {"model": MODEL, "input": "a"},
    "/v1/responses": {"model": MODEL, "input": "a", "max_output_tokens": 16},
    "/tokenize": {"model": MODEL, "prompt": "a"},
    "/detokenize": {"model": MODEL, "tokens": [1]},
}
FIELDS = """messages prompt input model max_tokens max_completion_tokens max_output_tokens n best_of
 temperature top_p top_k min_p typical_p seed stop stream stream_options logprobs top_logprobs echo
 suffix frequency_penalty presence_penalty repetition_penalty logit_bias user tools tool_choice
 parallel_tool_calls response_format min_tokens stop_token_ids ignore_eos skip_special_tokens
 include_stop_str_in_output add_generation_prompt continue_final_message chat_template_kwargs
 structured_outputs reasoning_effort cache_salt priority allowed_token_ids bad_words prompt_logprobs
 adapters chat_template functions metadata store modalities audio prediction service_tier tokens
 encoding_format dimensions instructions previous_response_id text reasoning""".split()
STRINGS = ["", "a", "\0", "\ud800", "\u202e", "🦀" * 50, "{{ 7*7 }}", "{% for x in y %}", "<|im_end|>",
           "../../etc/passwd", "%s%n", "x" * 5000, "NaN", "-1", "1e999", "true", "null", "(?R)",
           "(a*)*b", "[" * 300, "\\", '"', "developer", "tool", "assistant", "json_schema"]
NUMBERS = [0, -0.0, 1, -1, 2, 0.5, 2**31, -(2**31), 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64,
           10**30, -(10**30), 1e308, -1e308, 5e-324, 49152, 65535, 262]


def value(rng, depth=0):
    """Any JSON value, seldom one that fits."""
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind in (1, 2):
        return rng.choice(NUMBERS)
    if kind in (3, 4, 5):
        return rng.choice(STRINGS)
    if kind in (6, 7):
        return [value(rng, depth + 1) for _ in range(rng.choice([0, 1, 2, 5, 40]))]
    keys = FIELDS + ["role", "content", "type", "function", "name", "parameters", "json_schema",
                     "schema", "strict", "json", "regex", "choice", "grammar", "properties", "$ref", "1"]
    return {rng.choice(keys): value(rng, depth + 1) for _ in range(rng.randrange(5))}


def almost_valid(rng, path):
    """A request that is right but for one to three fields."""
    body = dict(VALID[path])
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        body[rng.choice(FIELDS)] = value(rng)
    if rng.random() < 0.1:
        body.pop(rng.choice(list(body)))
    # What is accepted by chance should not run for minutes.
    for field in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of"):
        if isinstance(body.get(field), int) and 0 < body[field] < 60_000:
            body[field] = min(body[field], 4)
    return body


def mangled(rng, data):
    """Bytes that were JSON."""
    how = rng.randrange(6)
    data = bytearray(data)
    if how == 0:
        return bytes(data[: rng.randrange(len(data) + 1)])
    if how == 1:
        for _ in range(rng.randrange(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif how == 2:
        at = rng.randrange(len(data))
        data[at:at] = rng.choice([b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\0", b"\xef\xbb\xbf", b"//"])
    elif how == 3:
        data += rng.choice([b"}", b"{}", b",", b"\0" * 100, b" " * 10_000])
    elif how == 4:
        return rng.randbytes(rng.randrange(1, 4000))
    else:
        opener = rng.choice([b"[", b'{"a":', b'{"messages":[', b'[{"tools":'])
        return opener * rng.choice([10, 127, 128, 129, 1000, 20_000])
    return bytes(data)


KINDS = ["application/json", "application/json; charset=utf-8", "text/plain", "", "application/xml",
         "multipart/form-data; boundary=x", "application/json; charset=utf-16", "a" * 3000, "application/*"]


def check(response, what):
    """Asserts that an answer is one that a client can live with."""
    status = response.status_code
    assert status < 500 or status in (501, 503), f"{status} for {what}: {response.text[:300]}"
    if status >= 400:
        error = response.json()["error"]
        assert isinstance(error["message"], str) and error["message"], what
        assert len(response.text) < 4000, f"the error is {len(response.text)} bytes long for {what}"


def send(client, path, data, kind="application/json"):
    """Posts, checks the answer and that it came in time; how it was answered."""
    started = time.monotonic()
    headers = {"content-type": kind} if kind else {}
    try:
        response = client.post(URL + path, content=data, headers=headers)
    except httpx.HTTPError as error:
        raise AssertionError(f"{error!r} for POST {path} {data[:600]!r}") from None
    took = time.monotonic() - started
    what = f"POST {path} {kind} {data[:600]!r}"
    check(response, what)
    assert took < 20, f"took {took:.1f} s: {what}"
    return response.status_code


def run(make, rounds):
    """Sends `rounds` requests made by `make(rng)`; prints how they were answered."""
    counts = {}
    with httpx.Client(timeout=60) as client:
        for seed in range(rounds):
            rng = random.Random(f"nonsense {seed}")
            status = send(client, *make(rng))
            counts[status] = counts.get(status, 0) + 1
    print(dict(sorted(counts.items())))
    answers_within(30)
    return counts


def dump(body):
    """JSON, with lone surrogates as escapes."""
    return json.dumps(body).encode()


def test_requests_with_wrong_fields():
    def make(rng):
        path = rng.choice(PATHS)
        return path, dump(almost_valid(rng, path))
    counts = run(make, ROUNDS)
    assert counts.get(400, 0) > ROUNDS // 4


def test_bodies_that_are_any_json():
    run(lambda rng: (rng.choice(PATHS), dump(value(rng))), ROUNDS // 2)


def test_bodies_that_are_no_json():
    def make(rng):
        path = rng.choice(PATHS)
        return path, mangled(rng, dump(VALID[path]))
    run(make, ROUNDS // 2)


def test_wrong_content_types_methods_and_paths():
    def make(rng):
        path = rng.choice(PATHS)
        return path, dump(VALID[path]), rng.choice(KINDS)
    run(make, ROUNDS // 10)
    with httpx.Client(timeout=60) as client:
        for path in [*PATHS, "/", "/v1", "/v1/models/%00", "/v1/models/" + "x" * 4000, "/v1/models/..%2f..",
                     "/v1//models", "/metrics/x", "/v1/models/%ff%fe"]:
            for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"]:
                response = client.request(method, URL + path)
                assert response.status_code < 500, (method, path, response.status_code)
    answers_within(30)


def test_bytes_that_are_no_http():
    rng = random.Random(5)
    pieces = [b"\0" * 100, b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\0\x01\0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
              b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
              b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\n",
              b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
              b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
              b"GET / HTTP/1.1\r\n" + b"a: " + b"b" * 100_000 + b"\r\n\r\n",
              b"GET / HTTP/1.1\r\n" + b"".join(b"h%d: 1\r\n" % i for i in range(5000)) + b"\r\n",
              b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n"]
    pieces += [rng.randbytes(rng.randrange(1, 3000)) for _ in range(100)]
    for piece in pieces:
        with socket.create_connection(ADDRESS) as connection:
            connection.settimeout(0.3)
            try:
                connection.sendall(piece)
                answer = connection.recv(4096)
            except (TimeoutError, ConnectionError):
                answer = b""
        status = answer.split(b" ", 2)[1:2] if answer.startswith(b"HTTP/1") else []
        assert not status or status[0] < b"500", (piece[:100], answer[:200])
    answers_within(30)


def test_long_and_deep_bodies():
    deep = "[" * 100_000 + "]" * 100_000
    many = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20_000)}}
    bodies = [
        deep.encode(), b'{"messages": ' + deep.encode() + b"}",
        dump(chat(messages=[{"role": "user", "content": "x " * 2_000_000}])),
        dump(chat(messages=[{"role": "user", "content": "x"}] * 50_000)),
        dump(chat(logit_bias={str(i): 1 for i in range(100_000)})),
        dump({f"field{i}": 1 for i in range(100_000)}),
        dump(chat() | {"x" * 1_000_000: 1}), dump(chat(model="m" * 1_000_000)),
        dump(chat(stop_token_ids=list(range(1_000_000)))),
        dump(chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": many}})),
        b"[" + b"1," * 3_000_000 + b"1]", b" " * 20_000_000, b'"' + b"\\u0000" * 1_000_000 + b'"',
    ]
    # Python's own encoder is recursive.
    nested = '{"type":"object","properties":{"a":' * 1000 + '{"type":"string"}' + "}}" * 1000
    bodies.append(b'{"model":"%s","messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema",'
                  b'"json_schema":{"name":"a","schema":%s}}}' % (MODEL.encode(), nested.encode()))
    with httpx.Client(timeout=60) as client:
        for body in bodies:
            try:
                assert send(client, "/v1/chat/completions", body) >= 400
            except AssertionError as error:
                # A server may close the connection on a body that is over its limit.
                if "WriteError" not in str(error) and "RemoteProtocolError" not in str(error):
                    raise
    answers_within(30)
