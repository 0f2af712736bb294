// The page works without this. With it, its cards change by themselves and its
// forms do not load it anew.
"use strict";

const list = document.getElementById("list");
const said = document.getElementById("said");
const link = document.getElementById("link");

const cardOf = id => document.getElementById("sandbox-" + id);

function show({id, before, html}) {
  const made = document.createElement("template");
  made.innerHTML = html; // the server's, with everything in it escaped
  const card = made.content.firstElementChild;
  const old = cardOf(id);
  if (old?.dataset.version === card.dataset.version) return;
  if (old?.dataset.said !== card.dataset.said) said.textContent = card.dataset.said;
  if (!old) {
    list.insertBefore(card, cardOf(before));
    return;
  }
  // What the visitor has open and where they are stays.
  for (const open of old.querySelectorAll("details[open]")) {
    const same = card.querySelector(`[data-key="${open.dataset.key}"]`);
    if (same) same.open = true;
  }
  const refusal = old.querySelector("[data-refusal]");
  if (!refusal.hidden) card.querySelector("[data-refusal]").replaceWith(refusal);
  const focus = old.contains(document.activeElement) ? document.activeElement.dataset.key ?? "name" : null;
  old.replaceWith(card);
  if (focus) (card.querySelector(`[data-key="${focus}"]`) ?? card.querySelector("h3")).focus({preventScroll: true});
}

function remove({id}) {
  const old = cardOf(id);
  if (!old) return;
  said.textContent = id + ": deleted";
  const focused = old.contains(document.activeElement);
  old.remove();
  if (focused) list.focus({preventScroll: true});
}

function watch() {
  let known; // the ids that this connection has sent: another one sends all anew
  const stream = new EventSource(document.body.dataset.live);
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
  stream.onerror = () => {
    link.hidden = false;
    if (stream.readyState === EventSource.CLOSED) location.reload(); // signed out, or the gateway was started anew
  };
}

// send does what the form would, and says what is wrong beside it.
async function send(form, submitter) {
  const buttons = form.querySelectorAll("button");
  const problem = form.closest("li")?.querySelector("[data-refusal]") ?? form.querySelector(".problem");
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
  form.closest("details")?.removeAttribute("open");
  form.reset();
}

document.addEventListener("submit", e => {
  if (!e.target.hasAttribute("data-quick")) return;
  e.preventDefault();
  send(e.target, e.submitter);
});

// A menu is closed by Escape and by a click elsewhere.
document.addEventListener("keydown", e => {
  const open = e.key === "Escape" && document.querySelector("details[open]");
  if (!open) return;
  open.open = false;
  open.querySelector("summary").focus();
});
document.addEventListener("click", e => {
  for (const open of document.querySelectorAll("details[open]")) if (!open.contains(e.target)) open.open = false;
});

if (location.search.includes("signed-in")) history.replaceState(null, "", "/");
watch();
