// OpenAI's npm client against the server whose URL and key are in the environment. Prints what it got as JSON.
import OpenAI, { toFile } from "openai";

const { SERVER_URL: url, SERVER_KEY: apiKey } = process.env;
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const prompt = "a red circle and a blue star";

const models = [];
for await (const model of client.models.list()) models.push(model.id);

const nothing = { background: null, model: null, n: null, output_format: null, quality: null, size: null, style: null };
const plain = await client.images.generate({ ...nothing, prompt, seed: 3, steps: 1 });

const quality = await client.images.generate({ prompt, model: "gpt-image-1", quality: "high", output_format: "webp", steps: 1 });

const stored = await client.images.generate({ prompt, response_format: "url", seed: 3, steps: 1 });
const headers = { Authorization: `Bearer ${apiKey}` };
const file = Buffer.from(await (await fetch(stored.data[0].url, { headers })).arrayBuffer());

const events = [];
for await (const event of await client.images.generate({ prompt, stream: true, partial_images: 1, steps: 3 })) {
  events.push({ type: event.type, tokens: event.usage?.total_tokens ?? null });
}

const picture = await toFile(file, "picture.png", { type: "image/png" });
const edit = await client.images.edit({ image: [picture, picture], prompt, steps: 1 });

let refused = null;
try {
  await client.images.generate({ prompt, n: 11 });
} catch (error) {
  const { status, param, code, type, message, requestID } = error;
  refused = { kind: error.constructor.name, status, param, code, type, message, requestID };
}

console.log(JSON.stringify({
  models, refused, events,
  plain: { usage: plain.usage, quality: plain.quality, same: plain.data[0].b64_json === file.toString("base64") },
  quality: { quality: quality.quality, output_format: quality.output_format, warnings: quality.warnings },
  id: plain._request_id, edits: edit.data.length,
}));
