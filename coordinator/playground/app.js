// The page: a key, a model, a form out of the model's schema; a conversation; the request as code.

import { baseUrl, complete, listModels } from "./api.js";
import { AnswerTurn, failureTurn, userTurn } from "./answer.js";
import { byId, copyText, count, element, flash } from "./dom.js";
import { drawForm } from "./form.js";
import { languages } from "./snippets.js";

/** Where the key is kept: in this tab, until it is closed. */
const KEY_NAME = "switchyard-key";
/** Pause after the last keystroke in the key's field before it is tried. */
const KEY_PAUSE_MS = 300;
/** Distance from the end, in pixels, within which a reader is taken to follow the answer. */
const FOLLOW_PX = 60;
/** The conversation and the usage of streams are kept by this page, not typed in. */
const OMITTED = new Set(["messages", "stream_options"]);
/** What the form begins with where that is not the default. */
const FIRST = { prompt: "What is the capital of France?", stream: true };

const page = {
  models: [],
  form: undefined,
  /** Messages before the next prompt. */
  history: [],
  /** Fields for the results of tools that the last answer calls. */
  results: [],
  /** The last request, shown as code while the next prompt is empty. */
  last: undefined,
  running: undefined,
  language: "curl",
  loading: new AbortController(),
};

const key = byId("key");
const model = byId("model");
const log = byId("log");

// === Models ===

async function loadModels() {
  page.loading.abort();
  page.loading = new AbortController();
  const { signal } = page.loading;
  if (key.value.trim() === "") return;
  try {
    const models = await listModels(key.value.trim(), signal);
    sessionStorage.setItem(KEY_NAME, key.value.trim());
    setKeyHint();
    showModels(models);
  } catch (failure) {
    if (!signal.aborted) setKeyHint(failure.message);
  }
}

function setKeyHint(complaint) {
  const hint = byId("key-hint");
  page.keyHint ??= [...hint.childNodes];
  hint.replaceChildren(...(complaint ? [complaint] : page.keyHint));
  hint.className = complaint ? "complaint" : "hint";
  if (complaint) key.setAttribute("aria-invalid", "true");
  else key.removeAttribute("aria-invalid");
}

function showModels(models) {
  const before = model.value;
  page.models = models;
  const option = ({ id, title }) =>
    element("option", { value: id }, title && title !== id ? `${title} (${id})` : id);
  model.replaceChildren(...models.map(option));
  model.disabled = false;
  if (models.some(({ id }) => id === before)) model.value = before;
  showModel();
}

function showModel() {
  const chosen = page.models.find(({ id }) => id === model.value);
  if (!chosen?.form_schema) return;
  const able = Object.entries(chosen.capabilities ?? {})
    .filter(([name, is]) => is && ["thinking", "tools", "structured_output"].includes(name))
    .map(([name]) => name.replace("_", " "));
  const facts = [`${count(chosen.context_length)} tokens of context`, ...able].join(" · ");
  byId("model-hint").replaceChildren(
    ...(chosen.description ? [chosen.description, element("br")] : []),
    element("span", { class: "range" }, facts),
  );
  draw(chosen.form_schema, page.form?.state() ?? FIRST);
}

function draw(schema, before) {
  page.schema = schema;
  page.form = drawForm(byId("fields"), schema, { omitted: OMITTED, before, changed: showSnippet });
  showSnippet();
}

// === Request ===

/** The messages that come with the next request, or undefined when nothing is asked. */
function nextMessages({ system_prompt: system, prompt }) {
  const results = page.results
    .filter(({ input }) => input.value.trim() !== "")
    .map(({ id, input }) => ({ role: "tool", tool_call_id: id, content: input.value }));
  const asked = [...results, ...(prompt ? [{ role: "user", content: prompt }] : [])];
  if (asked.length === 0) return undefined;
  const first = system ? [{ role: "system", content: system }] : [];
  return { asked, all: [...first, ...page.history, ...asked] };
}

function requestBody(values, messages) {
  const { system_prompt: _, prompt: __, ...parameters } = values;
  const body = { model: model.value, messages, ...parameters };
  if (body.stream) body.stream_options = { include_usage: true };
  return body;
}

function showSnippet() {
  if (!page.form) return;
  const values = page.form.values(false);
  const placeholder = [{ role: "user", content: "…" }];
  const messages = nextMessages(values)?.all ?? page.last ?? placeholder;
  const body = requestBody(values, messages);
  const request = { url: baseUrl, body, extensions: page.form.extensions };
  byId("snippet").firstElementChild.textContent = languages[page.language](request);
}

async function send() {
  const values = page.form?.values(true);
  if (!page.form) {
    setKeyHint(key.value.trim() === "" ? "Enter a key first." : "Wait until the models are listed.");
    key.focus();
    return;
  }
  if (!values) return;
  if (page.results.some(({ input }) => input.value.trim() === "")) {
    status("Give a result for each tool call first, or start over.");
    page.results.find(({ input }) => input.value.trim() === "").input.focus();
    return;
  }
  const messages = nextMessages(values);
  const prompt = page.form.field("prompt");
  if (!messages) {
    prompt.complain("Ask something first.");
    prompt.focus();
    return;
  }
  await run(requestBody(values, messages.all), messages, prompt);
}

async function run(body, { asked, all }, prompt) {
  const turn = new AnswerTurn(model.selectedOptions[0].textContent);
  const question = userTurn(asked);
  const typed = prompt.state();
  byId("empty")?.remove();
  page.running = new AbortController();
  page.last = all;
  prompt.restore("");
  busy(true);
  append(question, turn.element);
  question.scrollIntoView({ block: "start" });
  const shown = paced((arrived) =>
    following(() => arrived.forEach(({ chunk, came }) => turn.add(chunk, came))),
  );
  let failure;
  try {
    await complete(
      body,
      key.value.trim(),
      page.running.signal,
      (chunk) => shown.take({ chunk, came: performance.now() }),
      (line) => turn.raw(line),
    );
  } catch (error) {
    if (!page.running.signal.aborted) failure = error;
  }
  shown.flush();
  const wasStopped = page.running.signal.aborted;
  page.running = undefined;
  busy(false);
  following(() => turn.end(body.stream === true, wasStopped ? "Stopped" : undefined));
  if (failure) append(failureTurn(failure));
  if (turn.isEmpty && (failure || wasStopped)) {
    // Nothing came: the question goes back to where it was typed.
    turn.element.remove();
    if (prompt.state() === "") prompt.restore(typed);
  } else if (!failure) {
    keep(asked, turn, wasStopped);
  }
  status(failure ? "" : ending(wasStopped));
  showSnippet();
}

function ending(wasStopped) {
  if (wasStopped) return "Stopped.";
  return page.results.length > 0 ? "The model waits for its tools." : "The answer is complete.";
}

/** The conversation goes on after an answer; tools that it calls want results first. */
function keep(asked, turn, wasStopped) {
  if (turn.isEmpty) return;
  const message = turn.message();
  // A call that was cut off cannot be answered.
  if (wasStopped) delete message.tool_calls;
  page.history.push(...asked, message);
  page.results.forEach(({ input }) => (input.readOnly = true));
  page.results = wasStopped ? [] : turn.pendingCalls.map(resultField);
  if (page.results.length > 0) {
    page.results[0].input.focus();
    turn.element.scrollIntoView({ block: "end" });
  }
}

function resultField({ id, name, element: call }) {
  const input = element("textarea", { rows: 2, class: "mono", id: `result-${id}` });
  call.append(element("label", { for: input.id }, `Result of ${name}`), input);
  input.addEventListener("input", showSnippet);
  return { id, input };
}

function stop() {
  page.running?.abort();
}

function clear() {
  stop();
  page.history = [];
  page.results = [];
  page.last = undefined;
  log.replaceChildren(element("p", { id: "empty", class: "empty" }, "A new conversation."));
  byId("clear").hidden = true;
  status("");
  showSnippet();
  page.form?.field("prompt").focus();
}

// === Display ===

/** Changes the log, and keeps its end in view when the reader was there. */
function following(change) {
  const follows = log.scrollHeight - log.scrollTop - log.clientHeight < FOLLOW_PX;
  change();
  if (follows) log.scrollTop = log.scrollHeight;
}

/** Shows what arrives once a frame: a fast model brings more pieces than a screen has frames. */
function paced(show) {
  let arrived = [];
  let frame;
  const flush = () => {
    cancelAnimationFrame(frame);
    frame = undefined;
    if (arrived.length > 0) show(arrived);
    arrived = [];
  };
  const take = (piece) => {
    arrived.push(piece);
    frame ??= requestAnimationFrame(flush);
  };
  return { take, flush };
}

function append(...turns) {
  following(() => log.append(...turns));
  byId("clear").hidden = false;
}

function status(text) {
  byId("status").textContent = text;
}

function busy(is) {
  const button = byId("send");
  button.textContent = is ? "Stop" : "Send";
  button.classList.toggle("primary", !is);
  log.setAttribute("aria-busy", String(is));
  if (is) status("The model is answering …");
}

function chooseTab(tab) {
  page.language = tab.id.replace("tab-", "");
  for (const other of document.querySelectorAll("[role=tab]")) {
    other.setAttribute("aria-selected", String(other === tab));
    other.tabIndex = other === tab ? 0 : -1;
  }
  byId("snippet").setAttribute("aria-labelledby", tab.id);
  showSnippet();
}

function moveTab(event) {
  const steps = { ArrowRight: 1, ArrowLeft: -1 };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const next = (tabs.indexOf(event.target) + steps[event.key] + tabs.length) % tabs.length;
  tabs[next].focus();
  chooseTab(tabs[next]);
}

function listen() {
  let pause;
  key.addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(loadModels, KEY_PAUSE_MS);
  });
  model.addEventListener("change", showModel);
  byId("show-key").addEventListener("click", ({ target }) => {
    const isShown = key.type === "password";
    key.type = isShown ? "text" : "password";
    target.textContent = isShown ? "Hide" : "Show";
    target.setAttribute("aria-pressed", String(isShown));
  });
  byId("request").addEventListener("submit", (event) => {
    event.preventDefault();
    if (page.running) stop();
    else send();
  });
  byId("reset").addEventListener("click", () => page.schema && draw(page.schema, { stream: true }));
  byId("clear").addEventListener("click", clear);
  byId("copy").addEventListener("click", async ({ target }) => {
    flash(target, (await copyText(byId("snippet").textContent)) ? "Copied" : "Not allowed");
  });
  for (const tab of document.querySelectorAll("[role=tab]")) {
    tab.addEventListener("click", () => chooseTab(tab));
    tab.addEventListener("keydown", moveTab);
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") stop();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !page.running) {
      event.preventDefault();
      send();
    }
  });
}

listen();
key.value = sessionStorage.getItem(KEY_NAME) ?? "";
if (key.value === "") key.focus();
else loadModels();
