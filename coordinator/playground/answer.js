// What is shown of a conversation: turns of the user, and answers as they are written.

import { count, element } from "./dom.js";

/** Most raw lines that are kept for the reader; an answer can have tens of thousands. */
const RAW_LINES_MAX = 2000;

/** A turn of the user, or the results of tools. */
export function userTurn(messages) {
  const texts = messages.map((message) => element("p", { class: "text" }, message.content));
  const who = messages[0].role === "tool" ? "Tool results" : "You";
  return element("article", { class: "turn user" }, element("h3", {}, who), ...texts);
}

/** A failure, as a sentence and what to do about it. */
export function failureTurn(failure) {
  const hints = {
    invalid_api_key: "Check the API key at the top of the form.",
    model_not_found: "Choose another model.",
  };
  const wait = failure.retryAfter ? `Try again in ${failure.retryAfter} s.` : undefined;
  const advice = wait ?? hints[failure.code];
  const facts = [
    failure.status && `Status ${failure.status}`,
    failure.code,
    failure.param && `field ${failure.param}`,
    failure.requestId && `request ${failure.requestId}`,
  ].filter(Boolean);
  return element(
    "div",
    { class: "turn failure", role: "alert" },
    element("h3", {}, "That did not work"),
    element("p", { class: "text" }, failure.message),
    ...(advice ? [element("p", {}, advice)] : []),
    ...(facts.length > 0 ? [element("p", { class: "facts" }, facts.join(" · "))] : []),
  );
}

/** An answer in the making. */
export class AnswerTurn {
  constructor(title) {
    this.choices = [];
    this.usage = undefined;
    this.started = performance.now();
    this.first = undefined;
    this.last = undefined;
    this.lines = [];
    this.body = element("div", { class: "choices" });
    this.facts = element("p", { class: "facts" });
    this.element = element(
      "article",
      { class: "turn assistant", "aria-busy": "true" },
      element("h3", {}, title),
      this.body,
      this.facts,
    );
  }

  /** Takes a chunk of a stream, or a whole answer, and the time at which it came. */
  add(chunk, came) {
    for (const { index, delta, message, finish_reason: reason } of chunk.choices ?? []) {
      const choice = (this.choices[index] ??= this.newChoice(index));
      const brought = choice.add(delta ?? message ?? {});
      if (reason) choice.finish(reason);
      if (brought) {
        this.last = came;
        this.first ??= came;
      }
    }
    if (chunk.usage) this.usage = chunk.usage;
  }

  raw(line) {
    if (this.lines.length < RAW_LINES_MAX) this.lines.push(line);
    else if (this.lines.length === RAW_LINES_MAX) this.lines.push("…");
  }

  /** The end: what it took, and how it came to an end when that was early. */
  end(streamed, note) {
    this.element.removeAttribute("aria-busy");
    this.choices.forEach((choice) => choice.settle());
    this.facts.textContent = [note, ...this.figures(streamed)].filter(Boolean).join(" · ");
    if (this.lines.length > 0) this.element.append(this.rawLines());
  }

  /** Whether there is anything of an answer. */
  get isEmpty() {
    return !this.choices.some((choice) => choice.content || choice.reasoning || choice.calls.length);
  }

  /** The first choice as a message of the conversation. */
  message() {
    const { content, reasoning, calls } = this.choices[0];
    const message = { role: "assistant", content };
    if (reasoning) message.reasoning_content = reasoning;
    if (calls.length > 0) {
      message.tool_calls = calls.map(({ id, name, args }) => ({
        id,
        type: "function",
        function: { name, arguments: args },
      }));
    }
    return message;
  }

  /** The tool calls of the first choice that wait for a result. */
  get pendingCalls() {
    return this.choices[0]?.calls ?? [];
  }

  newChoice(index) {
    const choice = new Choice(index);
    // Titles only when there is more than one to tell apart.
    if (index > 0) this.choices[0]?.showTitle();
    if (index > 0) choice.showTitle();
    this.body.append(choice.element);
    return choice;
  }

  figures(streamed) {
    const end = this.last ?? performance.now();
    const figures = [];
    const tokens = this.usage?.completion_tokens;
    if (this.usage) figures.push(`${count(this.usage.prompt_tokens)} tokens in, ${count(tokens)} out`);
    if (streamed && this.first !== undefined) {
      figures.push(`first token after ${duration(this.first - this.started)}`);
      const seconds = (end - this.first) / 1000;
      if (tokens > 1 && seconds > 0) figures.push(`${count(Math.round((tokens - 1) / seconds))}\u00a0tokens/s`);
    } else if (this.first !== undefined) {
      figures.push(`after ${duration(end - this.started)}`);
    }
    return figures;
  }

  rawLines() {
    const pre = element("pre", { class: "raw", tabIndex: 0 });
    const details = element("details", {}, element("summary", {}, "Raw answer"), pre);
    details.addEventListener("toggle", () => (pre.textContent = details.open ? this.lines.join("\n") : ""));
    return details;
  }
}

/** A time that does not break over lines. */
const duration = (ms) => (ms < 1000 ? `${Math.round(ms)}\u00a0ms` : `${(ms / 1000).toFixed(1)}\u00a0s`);

/** One choice of an answer: reasoning, text, tool calls. */
class Choice {
  constructor(index) {
    this.index = index;
    this.content = "";
    this.reasoning = "";
    this.calls = [];
    this.element = element("div", { class: "choice" });
  }

  showTitle() {
    if (!this.element.querySelector("h4")) {
      this.element.prepend(element("h4", {}, `Choice ${this.index + 1}`));
    }
  }

  /** Takes a piece; returns whether it brought anything. */
  add({ content, reasoning_content: reasoning, tool_calls: calls }) {
    if (reasoning) this.addReasoning(reasoning);
    if (content) this.addContent(content);
    calls?.forEach((call) => this.addCall(call));
    return Boolean(content || reasoning || calls?.length);
  }

  addContent(content) {
    if (!this.text) {
      // The reasoning is done; it folds itself away unless the reader touched it.
      this.foldReasoning();
      this.text = element("p", { class: "text" });
      this.element.append(this.text);
    }
    this.content += content;
    this.text.append(content);
  }

  addReasoning(reasoning) {
    if (!this.thoughts) {
      this.thoughts = element("p", { class: "text" });
      this.thinking = element("summary", {}, "Thinking …");
      this.fold = element("details", { class: "reasoning", open: true }, this.thinking, this.thoughts);
      this.thinking.addEventListener("click", () => (this.isTouched = true));
      this.element.append(this.fold);
    }
    this.reasoning += reasoning;
    this.thoughts.append(reasoning);
  }

  foldReasoning() {
    if (!this.fold) return;
    this.thinking.textContent = "Reasoning";
    if (!this.isTouched) this.fold.open = false;
  }

  addCall({ index, id, function: { name, arguments: args } = {} }) {
    const position = index ?? this.calls.length;
    let call = this.calls[position];
    if (!call) {
      this.foldReasoning();
      call = { id, name, args: "", text: element("code", {}) };
      const title = element("p", { class: "call-name" }, "Calls ", element("code", {}, name ?? ""));
      call.element = element("div", { class: "call" }, title, element("pre", { tabIndex: 0 }, call.text));
      this.calls[position] = call;
      this.element.append(call.element);
    }
    call.args += args ?? "";
    call.text.append(args ?? "");
  }

  finish(reason) {
    const notes = { length: "Cut off: the answer reached its most tokens." };
    if (notes[reason]) this.element.append(element("p", { class: "facts" }, notes[reason]));
  }

  /** No more pieces come. */
  settle() {
    this.foldReasoning();
    // An answer of reasoning alone would look like none.
    if (this.fold && !this.text && this.calls.length === 0 && !this.isTouched) this.fold.open = true;
    for (const call of this.calls) call.text.textContent = indented(call.args);
  }
}

/** JSON with line breaks; other text as it is. */
function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
