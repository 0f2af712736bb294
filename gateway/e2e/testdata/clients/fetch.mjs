// Asks for a URL with Basic, by the runtime's own fetch, and prints the status.
import { argv } from "node:process";

const [url, password] = argv.slice(2);
const response = await fetch(url, { headers: { authorization: `Basic ${btoa(`opencode:${password}`)}` } });
await response.text();
console.log(response.status);
