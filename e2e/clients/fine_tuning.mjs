// Uploads a file and fine-tunes with the stock client for JavaScript, as far as a job goes without
// being waited for; prints one JSON object. Arguments: base URL, Model, key.

import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";

const [baseURL, model, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const record = {
  messages: [
    { role: "user", content: "Capital of France?" },
    { role: "assistant", content: "Paris" },
  ],
};
const text = `${JSON.stringify(record)}\n`.repeat(20);

const anonymous = new OpenAI({ baseURL, apiKey: "nobody", maxRetries: 0 });
await assert.rejects(anonymous.files.list(), OpenAI.AuthenticationError);

const file = await client.files.create({
  file: await toFile(Buffer.from(text), "train.jsonl"),
  purpose: "fine-tune",
});
assert.deepEqual(await client.files.retrieve(file.id), file);
assert.equal(await (await client.files.content(file.id)).text(), text);
const files = [];
for await (const listed of client.files.list({ limit: 1 })) files.push(listed.id);
assert.ok(files.includes(file.id));

const { jobs } = client.fineTuning;
const job = await jobs.create({
  model,
  training_file: file.id,
  suffix: "capitals",
  method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 1 } } },
});
const states = [job.status, (await jobs.pause(job.id)).status, (await jobs.resume(job.id)).status];
const listed = [];
for await (const each of jobs.list({ limit: 1 })) listed.push(each.id);
assert.ok(listed.includes(job.id));
const events = [];
for await (const event of jobs.listEvents(job.id)) events.push(event.message);
assert.ok(events.length > 0);
const checkpoints = [];
for await (const each of jobs.checkpoints.list(job.id)) checkpoints.push(each.step_number);
states.push((await jobs.cancel(job.id)).status);
assert.equal((await jobs.retrieve(job.id)).status, "cancelled");
assert.ok((await client.files.delete(file.id)).deleted);
console.log(JSON.stringify({ job: job.id, states, events: events.length, checkpoints }));
