// Drives the login client against a real API and prints what it was told.
// API_URL is open for sign-up, CLOSED_URL is not.
import { createAuthClient } from "better-auth/client";

const api = process.env.API_URL;
const password = "correct horse";
const email = "grace@example.com";

// Node keeps no cookies: this is a browser's jar.
const jar = new Map();
const withCookies = async (input, init = {}) => {
  const headers = new Headers(init.headers);
  if (jar.size > 0) headers.set("cookie", [...jar].map(([k, v]) => `${k}=${v}`).join("; "));
  const response = await fetch(input, { ...init, headers });
  for (const line of response.headers.getSetCookie()) {
    const [pair, ...attributes] = line.split("; ");
    const [name, value] = [pair.slice(0, pair.indexOf("=")), pair.slice(pair.indexOf("=") + 1)];
    if (attributes.includes("Max-Age=0")) jar.delete(name);
    else jar.set(name, value);
  }
  return response;
};

let captured = "";
const browser = createAuthClient({ baseURL: api, fetchOptions: { customFetchImpl: withCookies } });
const token = createAuthClient({
  baseURL: api,
  fetchOptions: {
    auth: { type: "Bearer", token: () => captured },
    onSuccess: (context) => { captured = context.response.headers.get("set-auth-token") || captured; },
  },
});
const closed = createAuthClient({ baseURL: process.env.CLOSED_URL });
const told = ({ data, error }) => ({
  status: error?.status, code: error?.code, message: error?.message,
  email: data?.user?.email, role: data?.user?.role, user: data?.user?.id, session: data?.session?.userId, success: data?.success, nothing: data === null,
  date: (data?.session?.expiresAt ?? data?.user?.createdAt) instanceof Date,
});
const out = {};
out.signUp = told(await browser.signUp.email({ name: "Grace", email, password }));
out.sessionAfterSignUp = told(await browser.getSession());
out.signOut = told(await browser.signOut());
out.cookiesAfterSignOut = jar.size;
out.sessionAfterSignOut = told(await browser.getSession());
out.signIn = told(await browser.signIn.email({ email, password }));
out.session = told(await browser.getSession());
out.signInByToken = told(await token.signIn.email({ email, password, rememberMe: false }));
out.captured = captured.includes(".");
out.sessionByToken = told(await token.getSession());
out.signOutByToken = told(await token.signOut());
out.sessionByTokenAfter = told(await token.getSession());
out.sessionOfTheOther = told(await browser.getSession());
out.wrongPassword = told(await browser.signIn.email({ email, password: "wrong horse" }));
out.unknownUser = told(await browser.signIn.email({ email: "nobody@example.com", password }));
out.twice = told(await browser.signUp.email({ name: "Grace", email, password }));
out.shortPassword = told(await browser.signUp.email({ name: "G", email: "g@example.com", password: "short" }));
out.closed = told(await closed.signUp.email({ name: "Grace", email, password }));
console.log(JSON.stringify(out));
