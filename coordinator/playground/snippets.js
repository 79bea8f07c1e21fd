// The same request in three languages, ready to be pasted. The key is never part of it.

/** What OpenAI's clients do not know goes through `extra_body` in Python. */
export const languages = {
  curl: (request) => curl(request),
  python: (request) => python(request),
  javascript: (request) => javascript(request),
};

function curl({ url, body }) {
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const unbuffered = body.stream ? " -N" : "";
  return [
    `curl${unbuffered} ${url}/chat/completions \\`,
    `  -H "Authorization: Bearer $SWITCHYARD_API_KEY" \\`,
    `  -H "Content-Type: application/json" \\`,
    `  -d '${json}'`,
  ].join("\n");
}

function python({ url, body, extensions }) {
  const known = Object.entries(body).filter(([name]) => !extensions.has(name));
  const extra = Object.entries(body).filter(([name]) => extensions.has(name));
  if (extra.length > 0) known.push(["extra_body", Object.fromEntries(extra)]);
  const fields = known.map(([name, value]) => `    ${name}=${pythonValue(value, 1)},`);
  const answer = body.stream
    ? [
        "for chunk in answer:",
        "    for choice in chunk.choices:",
        `        print(choice.delta.content or "", end="", flush=True)`,
      ]
    : ["for choice in answer.choices:", "    print(choice.message.content)"];
  return [
    "import os",
    "from openai import OpenAI",
    "",
    "client = OpenAI(",
    `    base_url=${JSON.stringify(url)},`,
    `    api_key=os.environ["SWITCHYARD_API_KEY"],`,
    ")",
    "answer = client.chat.completions.create(",
    ...fields,
    ")",
    ...answer,
  ].join("\n");
}

function javascript({ url, body }) {
  const answer = body.stream
    ? [
        "for await (const chunk of answer) {",
        "  for (const choice of chunk.choices) {",
        `    process.stdout.write(choice.delta.content ?? "");`,
        "  }",
        "}",
      ]
    : ["for (const choice of answer.choices) {", "  console.log(choice.message.content);", "}"];
  return [
    `import OpenAI from "openai";`,
    "",
    "const client = new OpenAI({",
    `  baseURL: ${JSON.stringify(url)},`,
    "  apiKey: process.env.SWITCHYARD_API_KEY,",
    "});",
    `const answer = await client.chat.completions.create(${javascriptValue(body, 0)});`,
    ...answer,
  ].join("\n");
}

/** A JSON value in Python: JSON's strings are Python's, its words are not. */
function pythonValue(value, depth) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  const entry = ([name, inner]) => `${JSON.stringify(name)}: ${pythonValue(inner, depth + 1)}`;
  return nested(value, depth, "    ", entry, (inner) => pythonValue(inner, depth + 1), "");
}

function javascriptValue(value, depth) {
  const name = (text) => (/^[A-Za-z_$][\w$]*$/.test(text) ? text : JSON.stringify(text));
  const entry = ([key, inner]) => `${name(key)}: ${javascriptValue(inner, depth + 1)}`;
  return nested(value, depth, "  ", entry, (inner) => javascriptValue(inner, depth + 1), " ");
}

/** A value on one line when it is short, else with one entry a line. */
function nested(value, depth, indent, entry, item, pad) {
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const isList = Array.isArray(value);
  const parts = isList ? value.map(item) : Object.entries(value).map(entry);
  const [open, close] = isList ? ["[", "]"] : ["{", "}"];
  if (parts.length === 0) return open + close;
  const short = parts.join(", ");
  // The request itself always gets lines, so that a changed field is easy to see.
  if (depth > 0 && short.length <= 60 && !short.includes("\n")) {
    const space = isList ? "" : pad;
    return open + space + short + space + close;
  }
  const inner = indent.repeat(depth + 1);
  return `${open}\n${parts.map((part) => `${inner}${part},`).join("\n")}\n${indent.repeat(depth)}${close}`;
}
