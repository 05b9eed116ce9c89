// Real JavaScript clients against a running server; prints one JSON line for each check: {"name", "error"}.
//
// node clients.mjs BASE_URL CHAT_MODEL EMBEDDING_MODEL, with PENSTOCK_TEST_NPM = the folder that holds node_modules.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.PENSTOCK_TEST_NPM}/clients.mjs`);
const OpenAI = require("openai").default;
const { zodResponseFormat, zodTextFormat } = require("openai/helpers/zod");
const { createOpenAI } = require("@ai-sdk/openai");
const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");
const ai = require("ai");
const { z } = require("zod");

const [baseURL, chatModel, embeddingModel] = process.argv.slice(2);
const question = "Name the capital of France.";
const messages = [{ role: "user", content: question }];
const place = z.object({ name: z.string().max(20), big: z.boolean() });
const weatherInput = z.object({ city: z.string().max(20) });
const weatherTool = {
  type: "function",
  name: "get_weather",
  description: "Tells the weather in a city.",
  parameters: {
    type: "object",
    properties: { city: { type: "string", maxLength: 20 } },
    required: ["city"],
    additionalProperties: false,
  },
};
const { type: _, ...weatherFunction } = weatherTool;

const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const provider = createOpenAI({ baseURL, apiKey: "none" });
const compatible = createOpenAICompatible({ name: "penstock", baseURL, includeUsage: true, supportsStructuredOutputs: true });

const checks = {
  async "openai: models"() {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    assert(ids.includes(chatModel) && ids.includes(embeddingModel));
  },
  async "openai: chat"() {
    const answer = await client.chat.completions.create({ model: chatModel, messages, temperature: 0, max_tokens: 20 });
    assert.match(answer.choices[0].message.content, /Paris/);
  },
  async "openai: stream"() {
    const runner = client.chat.completions.stream({ model: chatModel, messages, temperature: 0, max_tokens: 20 });
    let text = "";
    runner.on("content", (piece) => (text += piece));
    assert.equal(await runner.finalContent(), text);
    assert.match(text, /Paris/);
  },
  async "openai: tool loop"() {
    const tools = [{ type: "function", function: weatherFunction }];
    const tool_choice = { type: "function", function: { name: "get_weather" } };
    const first = await client.chat.completions.create({ model: chatModel, messages, tools, tool_choice, parallel_tool_calls: false, max_tokens: 60 });
    const { message, finish_reason } = first.choices[0];
    assert.equal(finish_reason, "tool_calls");
    assert.equal(typeof JSON.parse(message.tool_calls[0].function.arguments).city, "string");
    const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "Sunny." };
    const second = await client.chat.completions.create({
      model: chatModel,
      messages: [...messages, message, result],
      tools,
      tool_choice: "none",
      max_tokens: 10,
    });
    assert(second.choices[0].message.content);
  },
  async "openai: structured output"() {
    const answer = await client.chat.completions.parse({
      model: chatModel,
      messages,
      response_format: zodResponseFormat(place, "place"),
      max_tokens: 80,
    });
    assert.equal(typeof answer.choices[0].message.parsed.big, "boolean");
  },
  async "openai: embeddings"() {
    const { data } = await client.embeddings.create({ model: embeddingModel, input: ["a", "b"] });
    assert.equal(data.length, 2);
    assert.equal(data[0].embedding.length, 384);
  },
  async "openai: responses"() {
    const first = await client.responses.create({ model: chatModel, input: question, temperature: 0, max_output_tokens: 20 });
    assert.match(first.output_text, /Paris/);
    const reference = { type: "item_reference", id: first.output[0].id };
    const second = await client.responses.create({
      model: chatModel,
      input: [{ role: "user", content: question }, reference, { role: "user", content: "And of Italy?" }],
      max_output_tokens: 10,
    });
    assert(second.output_text);
  },
  async "openai: responses stream and parse"() {
    const stream = client.responses.stream({
      model: chatModel,
      input: question,
      text: { format: zodTextFormat(place, "place") },
      max_output_tokens: 80,
    });
    for await (const _event of stream);
    assert.equal(typeof (await stream.finalResponse()).output_parsed.big, "boolean");
  },
};

function vercel(name, model, embedding) {
  const settings = { model, temperature: 0, maxOutputTokens: 20, maxRetries: 0 };
  const tools = {
    get_weather: ai.tool({
      description: "Tells the weather in a city.",
      inputSchema: weatherInput,
      execute: async ({ city }) => `Sunny in ${city}.`,
    }),
  };
  Object.assign(checks, {
    async [`${name}: text`]() {
      assert.match((await ai.generateText({ ...settings, prompt: question })).text, /Paris/);
    },
    async [`${name}: stream`]() {
      const result = ai.streamText({ ...settings, prompt: question, onError: () => {} });
      let text = "";
      for await (const piece of result.textStream) text += piece;
      assert.match(text, /Paris/);
      assert((await result.usage).inputTokens > 0);
    },
    async [`${name}: tool loop`]() {
      const result = await ai.generateText({
        ...settings,
        maxOutputTokens: 60,
        prompt: question,
        tools,
        toolChoice: { type: "tool", toolName: "get_weather" },
        providerOptions: { openai: { parallelToolCalls: false }, penstock: { parallel_tool_calls: false } },
        prepareStep: ({ stepNumber }) => (stepNumber ? { toolChoice: "none" } : {}),
        stopWhen: ai.stepCountIs(2),
      });
      assert.equal(result.steps.length, 2);
      assert.match(result.steps[0].toolResults[0].output, /^Sunny in /);
    },
    async [`${name}: structured output`]() {
      const { output } = await ai.generateText({
        ...settings,
        maxOutputTokens: 80,
        prompt: question,
        output: ai.Output.object({ schema: place }),
      });
      assert.equal(typeof output.big, "boolean");
    },
    async [`${name}: embeddings`]() {
      const { embeddings } = await ai.embedMany({ model: embedding, values: ["a", "b"], maxRetries: 0 });
      assert.equal(embeddings[1].length, 384);
    },
  });
}

vercel("ai-sdk responses", provider.responses(chatModel), provider.embedding(embeddingModel));
vercel("ai-sdk chat", provider.chat(chatModel), provider.embedding(embeddingModel));
vercel("ai-sdk compatible", compatible(chatModel), compatible.embeddingModel(embeddingModel));

for (const [name, check] of Object.entries(checks)) {
  let error = null;
  try {
    await check();
  } catch (caught) {
    error = `${caught?.stack ?? caught}${caught?.responseBody ? `\n${caught.responseBody}` : ""}`;
  }
  console.log(JSON.stringify({ name, error }));
}
