// Uses the clients whose types openapi-typescript has made of both documents.
import createClient from "openapi-fetch";
import type { paths as API } from "./api.js";
import type { paths as Gateway } from "./gateway.js";

const env = (name: string): string => process.env[name] ?? "";
const bearer = (token: string) => ({ Authorization: `Bearer ${token}` });

const gateway = createClient<Gateway>({ baseUrl: env("GATEWAY_URL"), headers: bearer(env("GATEWAY_TOKEN")) });
const list = await gateway.GET("/sandboxes", { params: { query: { userId: "nobody", limit: 10 } } });
const none = await gateway.GET("/sandbox/{id}", { params: { path: { id: "none" } } });

const api = createClient<API>({ baseUrl: env("API_URL"), headers: bearer(env("API_TOKEN")) });
const made = await api.POST("/api/v2/agents/templates", {
  body: { name: "from TypeScript", prompt: "Say {{word}}.", placeholders: [{ name: "word", label: "Word", type: "text", required: true }] },
});
const all = await api.GET("/api/v2/agents/templates");
const wrong = await api.POST("/api/v2/sandboxes", { body: { name: "x", provider: "cloudflare" } });

console.log(JSON.stringify({
  sandboxes: list.data?.sandboxes.length,
  none: none.error?.code,
  made: made.data?.name,
  listed: all.data?.some((t) => t.id === made.data?.id && !t.isSystem),
  wrong: wrong.error?.code,
}));
