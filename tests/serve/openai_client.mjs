// Calls the service with OpenAI's JavaScript client and prints what it saw, one JSON line a call.
// node openai_client.mjs BASE_URL KEY
import { createRequire } from "node:module";

const OpenAI = createRequire(`${process.cwd()}/`)("openai");
const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "My card got declined" }];
const show = (call, result) => console.log(JSON.stringify({ call, ...result }));

async function refused(call, attempt) {
  try {
    await attempt();
    show(call, { refused: false });
  } catch (error) {
    const { status, message, type, code, param } = error;
    show(call, { refused: true, kind: error.constructor.name, status, message, type, code, param });
  }
}

const [model] = (await client.models.list()).data;
show("models.list", { model });
show("models.retrieve", { model: await client.models.retrieve(model.id) });
const completion = await client.chat.completions.create({ model: model.id, messages, temperature: null, stop: null, n: null });
show("chat", { content: completion.choices[0].message.content, usage: completion.usage, intent: completion.intent.label });

let content = "", usage = null, chunks = 0;
const stream = await client.chat.completions.create({ model: model.id, messages, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  chunks += 1;
  content += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
show("stream", { content, usage, chunks });
const runner = client.chat.completions.stream({ model: model.id, messages });
show("stream helper", { content: (await runner.finalMessage()).content });

await refused("n", () => client.chat.completions.create({ model: model.id, messages, n: 2 }));
await refused("logprobs", () => client.chat.completions.create({ model: model.id, messages, logprobs: true }));
const schema = { type: "json_schema", json_schema: { name: "x", schema: { type: "object" } } };
await refused("response_format", () => client.chat.completions.create({ model: model.id, messages, response_format: schema }));
await refused("tool_choice", () => client.chat.completions.create({ model: model.id, messages, tool_choice: "required" }));
await refused("messages", () => client.chat.completions.create({ model: model.id, messages: [{ role: "user", content: "\u00ad\u200b" }] }));
await refused("model", () => client.models.retrieve("gpt-5"));
await refused("key", () => new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list());
