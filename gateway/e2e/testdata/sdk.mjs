// What a frontend does with the official client: a session, a prompt, and the
// events of the turn. Prints one line of JSON.
import { createOpencodeClient } from "@opencode-ai/sdk";

const client = createOpencodeClient({
  baseUrl: process.env.SANDBOX_URL,
  headers: { Authorization: `Bearer ${process.env.GATEWAY_TOKEN}` },
  throwOnError: true,
});

const seen = [];
const subscription = await client.event.subscribe();
const idle = (async () => {
  for await (const event of subscription.stream) {
    seen.push(event.type);
    if (event.type === "session.idle") return;
  }
})();

const session = (await client.session.create({ body: { title: "sdk" } })).data;
const answer = (
  await client.session.prompt({
    path: { id: session.id },
    body: { parts: [{ type: "text", text: "from the sdk" }] },
  })
).data;
await Promise.race([idle, new Promise((_, no) => setTimeout(() => no(new Error("no idle event")), 20000))]);

const text = answer.parts.filter((p) => p.type === "text").map((p) => p.text).join("");
console.log(JSON.stringify({ session: session.id, text, events: [...new Set(seen)] }));
process.exit(0);
