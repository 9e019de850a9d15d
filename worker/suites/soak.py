#!/usr/bin/env python3
"""Mixed load on one worker for a time, and a verdict: nothing may grow, nobody may wait for ever.

usage: soak.py --minutes 60 --pid PID; the environment names the worker as for the other suites.

Started by `cargo xtask soak`. Clients send one request after the other, drawn from a fixed seed:
ordinary and streamed chats, long prompts, shared prefixes, several choices, echo, structured
output, nonsense, and requests that are abandoned. Six times the load pauses until the worker is
idle, and memory and cache blocks in use are noted; the last pauses are compared with the second,
when all that is allocated once has been.
"""
import argparse
import asyncio
import random
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from conftest import MODEL, URL, chat
from test_nonsense import PATHS, almost_valid, dump, mangled

PAUSES = 6
# Longest time for any answer, and for the worker to be idle after the load.
STUCK_SECONDS = 180
# Longest time from the last answer until the worker is idle; abandoned requests do not go on.
IDLE_SECONDS = 15
WORDS = "the a model answers questions about rivers cities numbers colours birds and 7 🦀 über 你好".split()
# What a pause may have more than the second one: allocators keep some slack.
GROWTH_BYTES = 24 << 20
GROWTH_SHARE = 0.05


class Soak:
    """The load, and what is noted about it."""

    def __init__(self, args):
        self.args = args
        self.started = time.monotonic()
        self.ends = self.started + args.minutes * 60
        self.counts = {}
        self.failures = []
        self.samples = []
        self.pauses = []
        self.longest = 0.0
        self.tokens = 0
        self.open = asyncio.Event()
        self.in_flight = 0
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=args.clients)
        self.client = httpx.AsyncClient(base_url=URL, timeout=STUCK_SECONDS, limits=limits)

    def text(self, rng, words):
        return " ".join(rng.choice(WORDS) for _ in range(words))

    def request(self, rng):
        """A kind, a path, a body and what may be answered."""
        kind = rng.choices(
            ["chat", "stream", "prefix", "long", "abandoned", "nonsense", "choices", "echo", "structured",
             "tokenize", "embed"], [18, 18, 12, 4, 14, 12, 6, 4, 5, 4, 3])[0]
        say = [{"role": "user", "content": self.text(rng, rng.randrange(1, 40))}]
        body = chat(messages=say, max_tokens=rng.randrange(1, 48), temperature=rng.choice([0, 0.8, 1.3]))
        path = "/v1/chat/completions"
        if kind in ("stream", "abandoned"):
            body["stream"] = kind == "stream" or rng.random() < 0.5
        if kind == "prefix":
            shared = self.text(random.Random(rng.randrange(3)), 250)
            body["messages"] = [{"role": "system", "content": shared}, *say]
            body["max_tokens"] = 8
        elif kind == "long":
            body["messages"] = [{"role": "user", "content": self.text(rng, rng.choice([800, 1500, 2500, 9000]))}]
            body["max_tokens"] = 4
        elif kind == "abandoned":
            body |= {"max_tokens": 2000, "ignore_eos": True}
        elif kind == "choices":
            body |= {"n": 3, "logprobs": True, "top_logprobs": 5, "presence_penalty": 0.5, "seed": 3,
                     "stop": ["\n\n"], "temperature": 1}
        elif kind == "echo":
            path = "/v1/completions"
            body = {"model": MODEL, "prompt": self.text(rng, 60), "echo": True, "logprobs": 1, "max_tokens": 1}
        elif kind == "structured":
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "a", "schema": {
                "type": "object", "properties": {"v": {"enum": [str(rng.randrange(50)), "b"]}}, "required": ["v"],
                "additionalProperties": False}}}
        elif kind == "tokenize":
            path, body = "/tokenize", {"model": MODEL, "prompt": self.text(rng, 300)}
        elif kind == "embed":
            path, body = "/v1/embeddings", {"model": MODEL, "input": [self.text(rng, 20), "b"]}
        elif kind == "nonsense":
            path = rng.choice(PATHS)
            data = dump(almost_valid(rng, path))
            return kind, path, mangled(rng, data) if rng.random() < 0.4 else data
        return kind, path, dump(body)

    async def leave(self, path, data, patience):
        """Sends a request on a connection of its own, and goes away without a word."""
        # Not by httpx: a cancelled request may stay open in its pool.
        address = urlsplit(URL)
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(f"POST {path} HTTP/1.1\r\nhost: worker\r\ncontent-type: application/json\r\n"
                     f"content-length: {len(data)}\r\n\r\n".encode() + data)
        await asyncio.sleep(patience)
        writer.transport.abort()
        return "left"

    async def send(self, path, data):
        """One request; how it was answered."""
        headers = {"content-type": "application/json"}
        response = await self.client.post(path, content=data, headers=headers)
        text = response.text
        if response.status_code == 200 and "text/event-stream" in response.headers["content-type"]:
            if not text.endswith("data: [DONE]\n\n"):
                return f"a stream that broke off: {text[-200:]!r}"
            if '"error"' in text:
                return f"an error in a stream: {text[-300:]!r}"
        return response.status_code

    async def one(self, rng):
        kind, path, data = self.request(rng)
        begun = time.monotonic()
        try:
            if kind == "abandoned":
                answer = await self.leave(path, data, rng.choice([0.0, 0.05, 0.3, 1.0, 3.0]))
            else:
                answer = await self.send(path, data)
        except (httpx.HTTPError, OSError) as error:
            answer = f"{error!r}"
        took = time.monotonic() - begun
        self.longest = max(self.longest, took)
        good = answer in (200, 429) if kind not in ("nonsense", "abandoned", "long", "structured", "echo", "embed") \
            else answer in (200, 400, 404, 405, 413, 415, 422, 429, 501, "left")
        self.counts[kind, str(answer)[:40]] = self.counts.get((kind, str(answer)[:40]), 0) + 1
        if not good or took > STUCK_SECONDS - 1:
            self.failures.append(f"{kind} {path} after {took:.1f} s: {answer} for {data[:300]!r}")

    async def caller(self, number):
        rng = random.Random(f"soak {number}")
        while time.monotonic() < self.ends:
            await self.open.wait()
            self.in_flight += 1
            try:
                await self.one(rng)
            finally:
                self.in_flight -= 1
            await asyncio.sleep(rng.random() * 0.1)

    async def metrics(self):
        """Sums of metrics by name."""
        text = (await self.client.get("/metrics")).text
        found = {}
        for line in text.splitlines():
            if not line.startswith("#") and " " in line:
                name, value = line.rsplit(" ", 1)
                name = name.split("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def rss(self):
        """Resident bytes of the worker."""
        status = Path(f"/proc/{self.args.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    def open_files(self):
        return len(list(Path(f"/proc/{self.args.pid}/fd").iterdir()))

    async def sample(self):
        now = await self.metrics()
        total = now.get("hyprstream_kv_cache_blocks", 0)
        return {"minute": (time.monotonic() - self.started) / 60, "rss": self.rss(), "files": self.open_files(),
                "running": now["vllm:num_requests_running"], "waiting": now["vllm:num_requests_waiting"],
                "blocks": round(now["vllm:kv_cache_usage_perc"] * total), "tokens": now["vllm:generation_tokens_total"]}

    async def watch(self):
        """Notes a sample every ten seconds, and pauses the load from time to time."""
        next_pause = 1
        while (left := self.ends - time.monotonic()) > 0:
            await asyncio.sleep(min(10, left))
            try:
                self.samples.append(await self.sample())
            except httpx.HTTPError as error:
                self.failures.append(f"/metrics: {error!r}")
            share = 1 - (self.ends - time.monotonic()) / (self.args.minutes * 60)
            if share >= next_pause / PAUSES and next_pause < PAUSES:
                next_pause += 1
                await self.pause()

    async def pause(self):
        """Lets nobody begin, waits until all have ended, and notes what is left."""
        self.open.clear()
        begun = time.monotonic()
        while self.in_flight and time.monotonic() - begun < STUCK_SECONDS:
            await asyncio.sleep(0.05)
        begun = time.monotonic()
        while time.monotonic() - begun < STUCK_SECONDS:
            now = await self.sample()
            if now["running"] + now["waiting"] == 0:
                break
            await asyncio.sleep(0.2)
        else:
            self.failures.append(f"not idle after {STUCK_SECONDS} s: {now}")
        await asyncio.sleep(1)
        now = await self.sample()
        now["idle_after"] = time.monotonic() - begun - 1
        self.pauses.append(now)
        print(f"minute {now['minute']:.1f}: idle, {now['rss'] / 2**20:.0f} MiB, {now['blocks']} blocks, "
              f"{now['files']} files, {sum(self.counts.values())} requests, {len(self.failures)} failures")
        self.open.set()

    async def run(self):
        self.open.set()
        callers = [asyncio.create_task(self.caller(i)) for i in range(self.args.clients)]
        await self.watch()
        self.open.set()
        await asyncio.wait_for(asyncio.gather(*callers), STUCK_SECONDS * 2)
        await self.pause()
        await self.client.aclose()

    def verdict(self):
        """What is wrong, if anything is."""
        wrong = self.failures[:20]
        base, last = self.pauses[min(1, len(self.pauses) - 1)], self.pauses[-1]
        allowed = base["rss"] + max(GROWTH_BYTES, GROWTH_SHARE * base["rss"])
        if last["rss"] > allowed:
            wrong.append(f"memory grew from {base['rss'] / 2**20:.0f} to {last['rss'] / 2**20:.0f} MiB")
        for pause in self.pauses:
            if pause["idle_after"] > IDLE_SECONDS:
                wrong.append(f"idle only {pause['idle_after']:.0f} s after the load, in minute {pause['minute']:.1f}")
            # What the prefix cache keeps is free for others, and does not count as used.
            if pause["blocks"] > 0:
                wrong.append(f"{pause['blocks']} blocks in use in minute {pause['minute']:.1f}, when idle")
            if pause["files"] > base["files"] + 2 * self.args.clients:
                wrong.append(f"{pause['files']} open files, {base['files']} before")
        return wrong

    def summary(self):
        """A table in Markdown."""
        lines = ["| Minute | RSS when idle | Blocks in use | Open files | Tokens generated | Idle after |",
                 "|---|---|---|---|---|---|"]
        lines += [f"| {p['minute']:.1f} | {p['rss'] / 2**20:.1f} MiB | {p['blocks']} | {p['files']} | "
                  f"{p['tokens']:.0f} | {p['idle_after']:.1f} s |" for p in self.pauses]
        kinds = {}
        for (kind, answer), count in sorted(self.counts.items()):
            kinds.setdefault(kind, []).append(f"{answer}: {count}")
        lines += ["", "| Requests | Answers |", "|---|---|"]
        lines += [f"| {kind} | {', '.join(answers)} |" for kind, answers in kinds.items()]
        samples = self.samples or self.pauses
        lines += ["", f"{sum(self.counts.values())} requests by {self.args.clients} clients in "
                  f"{self.args.minutes:g} minutes; under load at most {max(s['rss'] for s in samples) / 2**20:.0f} MiB, "
                  f"{max(s['blocks'] for s in samples)} blocks, {max(s['running'] for s in samples):.0f} running and "
                  f"{max(s['waiting'] for s in samples):.0f} waiting; the longest answer took {self.longest:.1f} s."]
        return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--summary", type=Path)
    args = parser.parse_args()

    async def go():
        soak = Soak(args)
        await soak.run()
        return soak
    soak = asyncio.run(go())
    print("\n" + soak.summary())
    if args.summary:
        args.summary.write_text(soak.summary())
    wrong = soak.verdict()
    for line in wrong:
        print(f"wrong: {line}")
    print("soak: nothing grew, nobody was stuck" if not wrong else f"soak: {len(wrong)} things are wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
