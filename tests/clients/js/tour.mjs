// The official openai package for JavaScript against a cluster, feature by feature.
//
//     SWITCHYARD_BASE_URL=… SWITCHYARD_API_KEY=… SWITCHYARD_MODEL=… node --test tour.mjs

import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";

const { SWITCHYARD_BASE_URL: baseURL, SWITCHYARD_API_KEY: apiKey, SWITCHYARD_MODEL: model } = process.env;
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 120_000 });

const QUESTION = { role: "user", content: "What is the capital of France?" };
// The model has no answer to this by heart, so that it draws a different one each time.
const ODD = { role: "user", content: "zq xv" };
const WEATHER = {
  type: "object",
  properties: {
    city: { type: "string", enum: ["Lima", "Oslo", "São Paulo"] },
    days: { type: "integer", minimum: 0, maximum: 14 },
  },
  required: ["city", "days"],
  additionalProperties: false,
};
const TOOL = { type: "function", function: { name: "weather", parameters: WEATHER, strict: true } };
// By name: a model of this size would not choose it, nor know when to stop calling.
const FORCED = {
  tools: [TOOL],
  tool_choice: { type: "function", function: { name: "weather" } },
  parallel_tool_calls: false,
};

/** What every request has, and what this one has beside it. */
function asked(options = {}) {
  const base = { model, messages: [QUESTION], temperature: 0, max_tokens: 24, thinking: { type: "disabled" } };
  return { ...base, ...options };
}

function ask(options) {
  return client.chat.completions.create(asked(options));
}

async function text(options) {
  return (await ask(options)).choices[0].message.content;
}

/** Fails unless these are the weather in the form that was asked for. */
function assertWeather(json) {
  const { city, days, ...rest } = JSON.parse(json);
  assert.ok(WEATHER.properties.city.enum.includes(city), city);
  assert.ok(Number.isInteger(days) && days >= 0 && days <= 14, `${days}`);
  assert.deepEqual(rest, {});
}

test("the model is listed", async () => {
  const ids = [];
  for await (const { id } of client.models.list()) ids.push(id);
  assert.ok(ids.includes(model), `${ids}`);
});

test("a stream adds up to the whole answer", async () => {
  const whole = await ask();
  let streamed = "";
  let usage;
  for await (const chunk of await ask({ stream: true, stream_options: { include_usage: true } })) {
    streamed += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.ok(streamed.length > 0);
  assert.equal(streamed, whole.choices[0].message.content);
  assert.deepEqual(usage, whole.usage);
});

test("the package's own helper follows a stream", async () => {
  const stream = client.chat.completions.stream(asked());
  let snapshot;
  stream.on("content", (_delta, soFar) => (snapshot = soFar));
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].message.content, snapshot);
  assert.equal(snapshot, await text());
});

test("a stream that is left does not hold up the next", async () => {
  const stream = await ask({ stream: true, max_tokens: 2000, ignore_eos: true });
  for await (const _chunk of stream) break;
  assert.equal(stream.controller.signal.aborted, true);
  assert.ok(await text());
});

test("a tool is called, and its result answered", async () => {
  const messages = [QUESTION];
  const call = await ask({ ...FORCED, messages, max_tokens: 200 });
  const [choice] = call.choices;
  assert.equal(choice.finish_reason, "tool_calls");
  const [{ id, type, function: called }] = choice.message.tool_calls;
  assert.equal(type, "function");
  assert.equal(called.name, "weather");
  assertWeather(called.arguments);
  messages.push(choice.message, { role: "tool", tool_call_id: id, content: "21 degrees" });
  const answer = await ask({ tools: [TOOL], tool_choice: "none", messages });
  assert.ok(answer.choices[0].message.content);
  assert.ok(answer.usage.prompt_tokens > (await ask()).usage.prompt_tokens);
});

test("the package's own loop runs a tool", async () => {
  const asks = [];
  const run = (json) => {
    asks.push(json);
    return "21 degrees";
  };
  const tool = { ...TOOL, function: { ...TOOL.function, function: run } };
  const runner = client.chat.completions.runTools(asked({ ...FORCED, tools: [tool], max_tokens: 200 }));
  await runner.done();
  assert.equal(asks.length, 1);
  assertWeather(asks[0]);
  assert.equal(await runner.finalFunctionToolCallResult(), "21 degrees");
});

test("an answer keeps to a JSON schema", async () => {
  const response_format = { type: "json_schema", json_schema: { name: "weather", schema: WEATHER, strict: true } };
  const answer = await ask({ response_format, max_tokens: 200, temperature: 1, seed: 5 });
  assert.equal(answer.choices[0].finish_reason, "stop");
  assertWeather(answer.choices[0].message.content);
});

test("log probabilities come for each token", async () => {
  const answer = await ask({ logprobs: true, top_logprobs: 2, max_tokens: 4 });
  const entries = answer.choices[0].logprobs.content;
  assert.equal(entries.length, answer.usage.completion_tokens);
  for (const entry of entries) {
    assert.ok(entry.logprob <= 0);
    assert.equal(entry.top_logprobs.length, 2);
    assert.equal(entry.top_logprobs[0].token, entry.token);
  }
  const bytes = entries.flatMap((entry) => entry.bytes);
  assert.equal(new TextDecoder().decode(new Uint8Array(bytes)), answer.choices[0].message.content);
});

test("two choices differ, and a seed makes both repeatable", async () => {
  const options = { messages: [ODD], n: 2, temperature: 1, seed: 7, max_tokens: 16 };
  const [first, second] = [await ask(options), await ask(options)];
  assert.deepEqual(first.choices.map(({ index }) => index), [0, 1]);
  const texts = ({ choices }) => choices.map(({ message }) => message.content);
  assert.notEqual(...texts(first));
  assert.deepEqual(texts(second), texts(first));
});

test("a stop sequence ends the answer before it", async () => {
  const whole = await text();
  const middle = Math.floor(whole.length / 2);
  const stop = whole.slice(middle, middle + 3);
  const answer = await ask({ stop: [stop] });
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.equal(answer.choices[0].message.content, whole.slice(0, whole.indexOf(stop)));
});

test("a wrong key is refused with 401", async () => {
  const stranger = new OpenAI({ baseURL, apiKey: "sk-wrong-key", maxRetries: 0 });
  await assert.rejects(stranger.chat.completions.create(asked()), (error) => {
    assert.ok(error instanceof OpenAI.AuthenticationError);
    assert.deepEqual([error.status, error.code], [401, "invalid_api_key"]);
    return true;
  });
});

test("an unknown model is refused with 404", async () => {
  await assert.rejects(ask({ model: "no-such-model" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.deepEqual([error.status, error.code], [404, "model_not_found"]);
    assert.match(error.message, /no-such-model/);
    return true;
  });
});

test("a bad field is refused with 400 and its name", async () => {
  for (const [param, value] of [["temperature", 3], ["max_tokens", -1], ["audio", { voice: "alloy" }]]) {
    await assert.rejects(ask({ [param]: value }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.deepEqual([error.status, error.param], [400, param]);
      assert.ok(error.requestID, "a request id to report");
      return true;
    });
  }
});
