// The page works without this. With it, its cards change by themselves and its
// forms do not load it anew.
"use strict";

const list = document.getElementById("list");
const said = document.getElementById("said");
const link = document.getElementById("link");

const cardOf = id => document.getElementById("sandbox-" + id);

function parse(html) {
  const made = document.createElement("template");
  made.innerHTML = html; // the server's, with everything in it escaped
  return made.content.firstElementChild;
}

// become makes of an element what another is, and touches nothing that is the same
// in both: a press of a button under way, the focus, what a screen reader has said.
// What children are for, which come in one order, is in their keys or actions.
function become(old, made) {
  const kept = ["open", "aria-busy"]; // the visitor's
  for (const {name, value} of made.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const {name} of [...old.attributes]) if (!made.hasAttribute(name) && !kept.includes(name)) old.removeAttribute(name);
  const use = node => node.nodeName + (node.dataset?.key ?? node.getAttribute?.("action") ?? "");
  let at = old.firstChild;
  for (const child of [...made.childNodes]) {
    let same = at;
    while (same && use(same) !== use(child)) same = child.nodeType === Node.TEXT_NODE ? null : same.nextSibling;
    if (!same) {
      old.insertBefore(child, at);
      continue;
    }
    for (; at !== same; at = skip(at)) ;
    if (child.nodeType !== Node.TEXT_NODE) {
      if (child.dataset.key !== "refusal") become(same, child);
    } else if (same.data !== child.data) same.data = child.data;
    at = same.nextSibling;
  }
  while (at) at = skip(at);
}

function skip(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

function show({id, before, html}) {
  const made = parse(html);
  const old = cardOf(id);
  if (old?.dataset.version === made.dataset.version) return;
  for (const news of ["state", "done"]) if (made.dataset[news] && old?.dataset[news] !== made.dataset[news]) said.textContent = made.dataset[news];
  if (!old) {
    list.insertBefore(made, cardOf(before));
    return;
  }
  const focus = old.contains(document.activeElement) ? document.activeElement : null;
  const name = old.querySelector("h3");
  if (focus && focus !== name) old.pressed = focus.dataset.key;
  become(old, made);
  if (!focus) return;
  // Who pressed a button that is gone waits at the name, and is taken back to it.
  const back = focus === name && old.querySelector(`[data-key="${old.pressed}"]`);
  if (back) back.focus({preventScroll: true});
  else if (!old.contains(document.activeElement)) name.focus({preventScroll: true});
}

function remove({id, deleted}) {
  const old = cardOf(id);
  if (!old) return;
  if (deleted) said.textContent = id + ": deleted";
  const focused = old.contains(document.activeElement);
  old.remove();
  if (focused) list.focus({preventScroll: true});
}

let stream; // while somebody looks

function watch() {
  let known; // the ids that this connection has sent: another one sends all anew
  stream = new EventSource(document.body.dataset.live);
  stream.onopen = () => {
    known = new Set();
    link.hidden = true;
  };
  stream.addEventListener("card", e => {
    const data = JSON.parse(e.data);
    known.add(data.id);
    show(data);
  });
  stream.addEventListener("whole", () => {
    for (const card of [...list.children]) {
      const id = card.id.slice("sandbox-".length);
      if (!known.has(id)) remove({id});
    }
  });
  stream.addEventListener("gone", e => {
    const data = JSON.parse(e.data);
    known.delete(data.id);
    remove(data);
  });
  stream.addEventListener("pages", e => {
    become(document.getElementById("pages"), parse(JSON.parse(e.data).html));
  });
  stream.onerror = () => {
    link.hidden = false;
    if (stream.readyState === EventSource.CLOSED) again();
  };
}

// again loads the page when the gateway serves it: who is signed out is asked for
// the token then. Something in front of a gateway that is away answers for it.
async function again() {
  const answer = await fetch("/", {cache: "no-store"}).catch(() => null);
  if (answer?.ok) location.reload();
  else setTimeout(again, 2000);
}

// A browser has few connections to one address, which all its tabs share.
function look() {
  if (document.hidden) {
    stream?.close();
    stream = null;
  } else if (!stream) watch();
}

// send does what the form would, and says what is wrong beside it.
async function send(form, submitter) {
  const buttons = form.querySelectorAll("button");
  const problem = form.closest("li")?.querySelector("[data-key=refusal]") ?? form.querySelector(".problem");
  const fields = new URLSearchParams(new FormData(form, submitter));
  if (submitter?.ariaBusy === "true") return;
  for (const button of buttons) button.ariaBusy = "true";
  problem.hidden = true;
  let refusal = "";
  try {
    const answer = await fetch(form.action, {method: "POST", body: fields, headers: {Accept: "text/plain"}});
    if (answer.status === 401) location.reload();
    if (!answer.ok) refusal = await answer.text();
  } catch {
    refusal = "The gateway does not answer. Try again in a moment.";
  }
  for (const button of buttons) button.ariaBusy = "false";
  if (refusal) {
    problem.textContent = refusal;
    problem.hidden = false;
    return;
  }
  const menu = form.closest("details");
  if (menu) shut(menu, menu.contains(document.activeElement));
  form.reset();
}

function shut(menu, focus) {
  menu.open = false;
  if (focus) menu.querySelector("summary").focus();
}

document.addEventListener("submit", e => {
  if (!e.target.hasAttribute("data-quick")) return;
  e.preventDefault();
  send(e.target, e.submitter);
});

// A menu is closed by Escape and by a click elsewhere.
document.addEventListener("keydown", e => {
  const menu = e.key === "Escape" && (document.activeElement.closest("details[open]") ?? document.querySelector("details[open]"));
  if (menu) shut(menu, true);
});
document.addEventListener("click", e => {
  for (const open of document.querySelectorAll("details[open]")) if (!open.contains(e.target)) open.open = false;
});

if (location.search.includes("signed-in")) history.replaceState(null, "", "/");
document.addEventListener("visibilitychange", look);
look();
