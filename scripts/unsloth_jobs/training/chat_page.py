"""The page of a served model: one question, the answers of base and tuned side by side. One file, which loads nothing."""

from __future__ import annotations

import base64
import hashlib
import re

PAGE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>base | tuned</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --line: #8886; --quiet: #767676; --accent: #0b6bcb; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --quiet: #a0a0a0; --accent: #7cb7ff; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; height: 100dvh; display: flex; flex-direction: column; }
header, form { padding: .5rem 1rem; max-width: 72rem; width: 100%; margin: 0 auto; }
header { display: flex; flex-wrap: wrap; gap: .25rem 1rem; align-items: baseline; border-bottom: 1px solid var(--line); }
h1 { font-size: 1.05rem; margin: 0; }
#state { color: var(--quiet); font-size: .9rem; }
#state.bad, .error { color: var(--bad); }
main { flex: 1; overflow-y: auto; width: 100%; }
#talk { max-width: 72rem; margin: 0 auto; padding: .5rem 1rem; }
article { padding: .75rem 0; border-bottom: 1px solid var(--line); }
.question { font-weight: 600; }
.question, .text { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: .75rem 1.5rem; }
.answers h2 { font-size: .85rem; margin: .5rem 0 .1rem; color: var(--accent); }
.pace { color: var(--quiet); font-size: .8rem; margin: .2rem 0 0; min-height: 1.2em; }
form { border-top: 1px solid var(--line); display: grid; gap: .4rem; }
textarea, input, button, select { font: inherit; color: inherit; padding: .4rem .5rem; border-radius: .4rem; border: 1px solid var(--line); background: transparent; }
textarea { width: 100%; resize: vertical; }
@media (max-width: 30rem) { label small { display: none; } }
.row { display: flex; flex-wrap: wrap; gap: .4rem .8rem; align-items: center; }
.row label { display: flex; gap: .3rem; align-items: center; }
button { cursor: pointer; min-height: 2.5rem; }
button.main { background: var(--accent); border-color: var(--accent); color: Canvas; font-weight: 600; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
summary { cursor: pointer; color: var(--quiet); font-size: .9rem; }
input[type=number] { width: 6rem; }
select option { color: CanvasText; background: Canvas; }
</style>
</head>
<body>
<header><h1>Base and tuned, side by side</h1><span id="state" role="status">Connecting …</span></header>
<main aria-label="Conversation"><div id="talk"><noscript>This page needs JavaScript. The API at v1/chat/completions does not.</noscript></div></main>
<form id="ask">
<label for="question">Question <small>(Enter sends, Shift+Enter is a new line)</small></label>
<textarea id="question" rows="2" autofocus required></textarea>
<div class="row">
<button class="main" id="send">Ask</button>
<button type="button" id="stop" disabled>Stop</button>
<button type="button" id="fresh">New conversation</button>
<label>Answers by <select id="who"></select></label>
</div>
<details>
<summary>System prompt, temperature, length</summary>
<label for="system">System prompt</label>
<textarea id="system" rows="2"></textarea>
<div class="row">
<label>Temperature <input id="temperature" type="number" min="0" max="2" step="0.1" placeholder="model's"></label>
<label>Tokens at most <input id="most" type="number" min="1" step="1" placeholder="1024"></label>
</div>
</details>
</form>
<script>
"use strict";
const at = id => document.getElementById(id);
const turns = {};           // by model: what was said with it
let names = [], open = null, ends = null;

// All text of a model goes through textContent: what it writes is shown and never becomes a part of the page.
const put = (parent, kind, name, text) => {
  const made = document.createElement(kind);
  if (name) made.className = name;
  if (text) made.textContent = text;
  parent.append(made);
  return made;
};

function say(text, bad) { at("state").textContent = text; at("state").className = bad ? "bad" : ""; }

async function look() {
  try {
    const answer = await fetch("health", { cache: "no-store" });
    if (![200, 503].includes(answer.status)) throw new Error(String(answer.status));
    const state = await answer.json();
    if (!names.length) choose(state.models);
    ends = state.ends_at;
    if (answer.status === 503) { say("The model is being loaded …"); setTimeout(look, 2000); return; }
    const minutes = ends === null ? "" : `, ends in ${Math.max(0, Math.round((ends - Date.now() / 1000) / 60))} min at the latest`;
    say(`Ready${minutes}`);
  } catch (error) { say("Not reachable: it has ended, or the connection is gone.", true); }
  setTimeout(look, 20000);
}

function choose(models) {
  names = models;
  const who = at("who");
  if (names.length > 1) put(who, "option", "", "both").value = "";
  for (const name of names) { put(who, "option", "", name).value = name; turns[name] = []; }
}

function settings() {
  const how = {};
  if (at("temperature").value !== "") how.temperature = Number(at("temperature").value);
  if (at("most").value !== "") how.max_tokens = Number(at("most").value);
  return how;
}

async function answer(name, question, place, signal) {
  const text = put(place, "p", "text"), pace = put(place, "p", "pace", "…");
  const system = at("system").value.trim();
  const asked = { role: "user", content: question };
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...turns[name], asked];
  const began = performance.now();
  let first = 0, usage = null, whole = "";
  try {
    const body = { model: name, messages, stream: true, stream_options: { include_usage: true }, ...settings() };
    const reply = await fetch("v1/chat/completions", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
    if (!reply.ok) throw new Error((await reply.json()).error.message);
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "";;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: {")) continue;
        const part = JSON.parse(line.slice(6));
        if (part.error) throw new Error(part.error.message);
        usage = part.usage || usage;
        const piece = part.choices?.[0]?.delta?.content;
        if (!piece) continue;
        first = first || performance.now();
        whole += piece;
        text.append(piece);
        follow();
      }
    }
    turns[name].push(asked, { role: "assistant", content: whole });
  } catch (error) {
    if (error.name === "AbortError") { turns[name].push(asked, { role: "assistant", content: whole }); put(place, "p", "pace", "stopped"); }
    else put(place, "p", "error", String(error.message || error));
  }
  const seconds = (performance.now() - began) / 1000;
  const tokens = usage ? usage.completion_tokens : 0;
  pace.textContent = tokens ? `${tokens} tokens, ${(tokens / seconds).toFixed(1)} a second; first after ${((first - began) / 1000).toFixed(1)} s` : "";
}

function follow() {
  const main = document.querySelector("main");
  if (main.scrollHeight - main.scrollTop - main.clientHeight < 160) main.scrollTop = main.scrollHeight;
}

at("ask").addEventListener("submit", async event => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (!question || open || !names.length) return;
  const asked = at("who").value ? [at("who").value] : names;
  const row = put(at("talk"), "article");
  put(row, "p", "question", question);
  const grid = put(row, "div", "answers");
  at("question").value = "";
  open = new AbortController();
  at("stop").disabled = false; at("send").disabled = true;
  row.setAttribute("aria-busy", "true");
  row.scrollIntoView({ block: "end" });
  await Promise.all(asked.map(name => {
    const place = put(grid, "section");
    place.dataset.model = name;
    put(place, "h2", "", name);
    return answer(name, question, place, open.signal);
  }));
  row.setAttribute("aria-busy", "false");
  open = null;
  at("stop").disabled = true; at("send").disabled = false;
  at("question").focus();
});
at("question").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); at("ask").requestSubmit(); }
});
at("stop").addEventListener("click", () => open?.abort());
at("fresh").addEventListener("click", () => {
  open?.abort();
  for (const name of names) turns[name] = [];
  at("talk").replaceChildren();
  at("question").focus();
});
look();
</script>
</body>
</html>
"""


def policy(page: str) -> str:
    """A Content-Security-Policy under which nothing runs but what stands in the page, and nothing is asked but its own server."""
    styles, scripts = (hash_of(page, tag) for tag in ("style", "script"))
    parts = ["default-src 'none'", f"style-src {styles}", f"script-src {scripts}", "connect-src 'self'", "img-src data:"]
    return "; ".join(
        [*parts, "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"]
    )


def hash_of(page: str, tag: str) -> str:
    """As a browser computes it, of the one element of this kind."""
    found = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    assert found
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"
