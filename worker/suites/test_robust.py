"""Clients that go away, read slowly or stop talking must cost nobody else anything."""
import asyncio
import json
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import MODEL, URL, answers_within, chat, metric, wait_idle

ADDRESS = (urlsplit(URL).hostname, urlsplit(URL).port)


def raw(body, path="/v1/chat/completions", length=None):
    """The bytes of a POST; `length` lies about its body's."""
    data = json.dumps(body).encode()
    head = (f"POST {path} HTTP/1.1\r\nhost: worker\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data) if length is None else length}\r\n\r\n")
    return head.encode() + data


def context():
    """The longest prompt plus answer."""
    return httpx.get(f"{URL}/v1/models", timeout=30).json()["data"][0]["max_model_len"]


def test_200_abandoned_requests_do_not_delay_the_next():
    # 10,000 tokens each, as far as the model's context allows.
    tokens = min(10_000, context() - 64)

    async def abandon(client, stream):
        body = chat(max_tokens=tokens, stream=stream, ignore_eos=True)
        try:
            await asyncio.wait_for(client.post(f"{URL}/v1/chat/completions", json=body), 0.5)
        except TimeoutError:
            return 1
        return 0

    async def all_of_them():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=30, limits=limits) as client:
            return sum(await asyncio.gather(*(abandon(client, i % 2 == 0) for i in range(200))))

    assert asyncio.run(all_of_them()) == 200
    took = answers_within(5)
    idle = wait_idle()
    print(f"answered in {took:.2f} s, all given up {idle:.2f} s later")


def test_a_slow_reader_gets_all_and_holds_nobody_up():
    with socket.create_connection(ADDRESS) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(raw(chat(max_tokens=200, stream=True, ignore_eos=True)))
        slow.settimeout(60)
        assert slow.recv(64).startswith(b"HTTP/1.1 200")
        answers_within(30)
        answers_within(30)
        got = b""
        while b"data: [DONE]\n\n" not in got:
            piece = slow.recv(700)
            assert piece, got[-200:]
            got += piece
            time.sleep(0.002)
    wait_idle()


def test_readers_that_never_read_do_not_keep_the_worker():
    silent = []
    for _ in range(16):
        connection = socket.create_connection(ADDRESS)
        connection.sendall(raw(chat(max_tokens=400, stream=True, ignore_eos=True)))
        silent.append(connection)
    answers_within(60)
    for connection in silent:
        connection.close()
    wait_idle()


def test_half_open_connections_and_half_requests_are_no_burden():
    whole = raw(chat())
    beginnings = [b"", b"P", b"POST /v1/chat", whole[: whole.index(b"\r\n\r\n")], whole[:-10]]
    open_ones = []
    for i in range(100):
        connection = socket.create_connection(ADDRESS)
        connection.sendall(beginnings[i % len(beginnings)])
        if i % 2:
            # Says that it will not write again, and still waits for an answer.
            connection.shutdown(socket.SHUT_WR)
        open_ones.append(connection)
    answers_within(30)
    for connection in open_ones:
        connection.close()
    answers_within(30)


def test_a_client_that_has_said_all_it_will_say_is_still_answered():
    with socket.create_connection(ADDRESS) as half:
        half.sendall(raw(chat()).replace(b"\r\nhost", b"\r\nconnection: close\r\nhost"))
        half.shutdown(socket.SHUT_WR)
        half.settimeout(60)
        got = b""
        while piece := half.recv(65536):
            got += piece
    assert got == b"" or got.startswith(b"HTTP/1.1 200"), got[:200]
    answers_within(30)


@pytest.mark.parametrize("stream", [True, False])
def test_a_reset_connection_ends_its_request(stream):
    before = metric('vllm:request_success_total')
    for _ in range(8):
        connection = socket.create_connection(ADDRESS)
        # Closing with a linger time of zero sends a reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.sendall(raw(chat(max_tokens=2000, stream=stream, ignore_eos=True)))
        time.sleep(0.05)
        connection.close()
    wait_idle(20)
    answers_within(30)
    assert metric("vllm:request_success_total") > before


def test_many_choices_and_many_prompts_are_bounded():
    for body, path in [
        (chat(n=10**6), "/v1/chat/completions"),
        ({"model": MODEL, "prompt": ["x"] * 100_000, "max_tokens": 1}, "/v1/completions"),
        (chat(stop=["x"] * 10_000), "/v1/chat/completions"),
        (chat(logprobs=True, top_logprobs=10**6), "/v1/chat/completions"),
    ]:
        response = httpx.post(URL + path, json=body, timeout=30)
        assert 400 <= response.status_code < 500, response.text[:200]
        assert len(response.text) < 2000, "an error must not repeat the request"
    answers_within(30)
