// OpenAI's own JavaScript client on SmolLM2-135M-Instruct.
import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";

const url = process.env.SUITE_URL ?? "http://127.0.0.1:8000";
const model = process.env.SUITE_MODEL ?? "smollm2";
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0, timeout: 120_000 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const answer = "The capital of France is Paris.";
const ask = (more = {}, options = {}) =>
  client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 32, ...more }, options);
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    parameters: {
      type: "object",
      properties: { city: { type: "string", maxLength: 20 } },
      required: ["city"],
      additionalProperties: false,
    },
  },
};

test("models are listed", async () => {
  const ids = [];
  for await (const entry of client.models.list()) ids.push(entry.id);
  assert.ok(ids.includes(model), ids.join());
});

test("a question is answered", async () => {
  const whole = await ask();
  assert.equal(whole.choices[0].message.content, answer);
  assert.equal(whole.usage.completion_tokens, 8);
});

test("a stream brings the same text", async () => {
  let text = "";
  let usage = null;
  for await (const chunk of await ask({ stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage ??= chunk.usage;
  }
  assert.equal(text, answer);
  assert.equal(usage.completion_tokens, 8);
});

test("the stream helper ends with the whole message", async () => {
  const stream = client.chat.completions.stream({ model, messages, temperature: 0, max_tokens: 32 });
  assert.equal(await stream.finalContent(), answer);
});

test("logprobs are told", async () => {
  const told = (await ask({ logprobs: true, top_logprobs: 2, max_tokens: 2 })).choices[0].logprobs.content;
  assert.deepEqual(told.map((entry) => entry.top_logprobs.length), [2, 2]);
});

test("completions take a list", async () => {
  const given = await client.completions.create({ model, prompt: ["1, 2, 3,", "a b c"], max_tokens: 3, temperature: 0 });
  assert.equal(given.choices.length, 2);
});

test("a forced tool streams arguments that parse", async () => {
  const request = { tools: [weather], tool_choice: "required", parallel_tool_calls: false, max_tokens: 120 };
  const call = (await ask(request)).choices[0].message.tool_calls[0];
  const whole = JSON.parse(call.function.arguments);
  assert.equal(typeof whole.city, "string");
  let text = "";
  for await (const chunk of await ask({ ...request, stream: true })) {
    text += chunk.choices[0]?.delta.tool_calls?.[0]?.function?.arguments ?? "";
  }
  assert.deepEqual(JSON.parse(text), whole);
});

test("a json schema is kept to", async () => {
  const schema = {
    type: "object",
    properties: { capital: { enum: ["Paris", "Rome"] } },
    required: ["capital"],
    additionalProperties: false,
  };
  const response_format = { type: "json_schema", json_schema: { name: "answer", schema, strict: true } };
  const given = (await ask({ response_format })).choices[0];
  assert.ok(["Paris", "Rome"].includes(JSON.parse(given.message.content).capital));
});

test("embeddings come as floats", async () => {
  const given = await client.embeddings.create({ model, input: ["a", "b"] });
  assert.equal(given.data.length, 2);
  assert.ok(given.data[0].embedding.length > 100 && given.data[0].embedding.every(Number.isFinite));
});

test("responses answer and stream", async () => {
  const request = { model, input: messages[0].content, temperature: 0, max_output_tokens: 32 };
  assert.equal((await client.responses.create(request)).output_text, answer);
  let text = "";
  for await (const event of await client.responses.create({ ...request, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert.equal(text, answer);
});

test("errors carry status, code and field", async () => {
  await assert.rejects(ask({ model: "gpt-4o" }), (error) => error instanceof OpenAI.NotFoundError && error.param === "model");
  await assert.rejects(ask({ temperature: 9 }), (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature");
});

test("an abort ends the request on both sides", async () => {
  for (const stream of [true, false]) {
    const abort = new AbortController();
    const running = (async () => {
      const given = await ask({ stream, max_tokens: 4000, ignore_eos: true }, { signal: abort.signal });
      if (stream) for await (const _ of given) abort.abort();
    })();
    if (!stream) setTimeout(() => abort.abort(), 300);
    await running.catch((error) => assert.ok(error instanceof OpenAI.APIUserAbortError || error.name === "AbortError", error));
  }
  for (let i = 0; i < 200; i++) {
    const metrics = await (await fetch(`${url}/metrics`)).text();
    const running = Number(metrics.match(/^vllm:num_requests_running\{[^}]*\} (\S+)/m)[1]);
    if (running === 0) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.fail("the abandoned requests still run");
});
