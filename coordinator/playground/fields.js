// One control for one property of a form schema. A control has:
//   element  what to show,
//   input    what a label belongs to,
//   get()    the value to send, or undefined for the default; throws `Unusable`,
//   state()  and restore(state): what the reader typed, to survive a change of the model.

import { count, element } from "./dom.js";

/** A value that cannot be sent, with a sentence about it. */
export class Unusable extends Error {}

/** The control for a property. `id` is that of its input; `hint` that of its description. */
export function control(schema, id, hint) {
  const attributes = { id, "aria-describedby": hint };
  if (schema.enum) return choice(schema, attributes);
  if (schema.oneOf) return alternatives(schema, attributes);
  switch (schema.type) {
    case "boolean":
      return toggle(schema, attributes);
    case "integer":
    case "number":
      return number(schema, attributes);
    case "string":
      return text(schema, attributes);
    default:
      return json(schema, attributes);
  }
}

/** Whether a property deserves the whole width. */
export const isWide = (schema) =>
  Boolean(schema["x-multiline"]) ||
  schema.type === "array" ||
  schema.type === "object" ||
  isLines(schema) ||
  Boolean(schema.oneOf?.some((one) => one.required?.length > 1));

/** A text or a list of texts: one on each line. */
const isLines = (schema) => Boolean(schema.oneOf?.some((one) => one.items?.type === "string"));

/** A range in words, such as `0 to 2`; empty without one. */
export function range({ minimum, exclusiveMinimum, maximum }) {
  // A bound that only says that numbers end somewhere helps nobody.
  const to = maximum > 1e9 || maximum === undefined ? undefined : count(maximum);
  if (exclusiveMinimum !== undefined) return `more than ${exclusiveMinimum}, at most ${to}`;
  if (minimum === undefined) return "";
  return to === undefined ? `${minimum} or more` : `${minimum} to ${to}`;
}

function plain(input, get) {
  return {
    element: input,
    input,
    get,
    state: () => input.value,
    restore: (state) => (input.value = state),
  };
}

function text(schema, attributes) {
  const input = schema["x-multiline"]
    ? element("textarea", { ...attributes, rows: 2 })
    : element("input", { ...attributes, type: "text", autocomplete: "off" });
  return plain(input, () => (input.value === "" ? undefined : input.value));
}

function number(schema, attributes) {
  const isWhole = schema.type === "integer";
  const input = element("input", {
    ...attributes,
    // Not `number`: it hides what cannot be read as one, and changes under the mouse wheel.
    type: "text",
    inputMode: isWhole ? "numeric" : "decimal",
    autocomplete: "off",
    placeholder: schema.default === undefined ? "" : String(schema.default),
  });
  return plain(input, () => {
    const typed = input.value.trim();
    if (typed === "") return undefined;
    const value = Number(typed);
    const isOutside =
      value < schema.minimum || value > schema.maximum || value <= schema.exclusiveMinimum;
    if (!Number.isFinite(value)) throw new Unusable(`${typed} is not a number.`);
    if (isWhole && !Number.isInteger(value)) throw new Unusable("This must be a whole number.");
    if (isOutside) throw new Unusable(`This must be ${range(schema)}.`);
    return value === schema.default ? undefined : value;
  });
}

function toggle(schema, attributes) {
  const initial = schema.default ?? false;
  const input = element("input", { ...attributes, type: "checkbox", checked: initial });
  return {
    element: input,
    input,
    get: () => (input.checked === initial ? undefined : input.checked),
    state: () => input.checked,
    restore: (state) => (input.checked = state),
  };
}

function choice(schema, attributes) {
  const initial = schema.default === undefined ? "Default" : `Default: ${schema.default}`;
  const options = schema.enum.filter((value) => value !== schema.default);
  const input = element(
    "select",
    attributes,
    element("option", { value: "" }, initial),
    ...options.map((value) => element("option", { value }, value)),
  );
  return plain(input, () => (input.value === "" ? undefined : input.value));
}

/** JSON, checked for being JSON of the right kind; the rest is for the server to say. */
function json(schema, attributes) {
  const isList = schema.type === "array";
  const input = element("textarea", {
    ...attributes,
    rows: 3,
    class: "mono",
    spellcheck: false,
    placeholder: isList ? "[ … ]" : "{ … }",
  });
  const part = plain(input, () => parse(input.value, isList));
  const [example] = schema.examples ?? [];
  if (example === undefined) return part;
  const button = element("button", { type: "button", class: "plain example" }, "Insert an example");
  button.addEventListener("click", () => {
    input.value = JSON.stringify(example, null, 2);
    input.dispatchEvent(new Event("input", { bubbles: true }));
    input.focus();
  });
  return { ...part, element: element("div", { class: "json" }, input, button) };
}

function parse(typed, isList) {
  if (typed.trim() === "") return undefined;
  let value;
  try {
    value = JSON.parse(typed);
  } catch (error) {
    throw new Unusable(`This is not JSON: ${error.message}.`);
  }
  const isObject = typeof value === "object" && value !== null;
  if (!isObject || Array.isArray(value) !== isList) {
    throw new Unusable(isList ? "This must be a list in brackets." : "This must be an object in braces.");
  }
  return value;
}

/** One of several forms: a word, a list of texts, or an object told by its `type` that may need one more field. */
function alternatives(schema, attributes) {
  if (isLines(schema)) return lines(attributes);
  const initial = schema.default?.type;
  const variants = schema.oneOf.flatMap((one) => {
    if (one.enum) return one.enum.map((value) => ({ title: value, value }));
    return [variant(one)];
  });
  const shown = variants.find((one) => one.value.type === initial && initial !== undefined);
  const select = element(
    "select",
    attributes,
    element("option", { value: "" }, shown ? `Default: ${shown.title}` : "Default"),
    ...variants.flatMap((one, index) =>
      one === shown ? [] : [element("option", { value: String(index) }, one.title)],
    ),
  );
  const more = element("div", { class: "more" });
  const typed = variants.map((one) => one.more && control(one.more, `${attributes.id}-${one.field}`));
  const show = () => {
    const part = typed[select.value];
    more.replaceChildren();
    if (part) {
      part.input.setAttribute("aria-label", variants[select.value].label);
      more.append(part.element);
    }
  };
  select.addEventListener("change", show);
  return {
    element: element("div", {}, select, more),
    input: select,
    get() {
      if (select.value === "") return undefined;
      const { value, field, label } = variants[select.value];
      if (!field) return value;
      const inner = typed[select.value].get();
      if (inner === undefined) throw new Unusable(`${label} is missing.`);
      return { ...value, [field]: inner };
    },
    state: () => [select.value, typed.map((part) => part?.state())],
    restore([value, parts]) {
      select.value = value;
      parts.forEach((state, index) => state !== undefined && typed[index]?.restore(state));
      show();
    },
  };
}

/** A variant that is an object: its fixed fields, and the one field that is to be filled in. */
function variant(schema) {
  const properties = Object.entries(schema.properties ?? {});
  const fixed = properties.filter(([, property]) => property.const !== undefined);
  const open = properties.find(([name]) => schema.required?.includes(name) && !isFixed(name));
  function isFixed(name) {
    return fixed.some(([other]) => other === name);
  }
  const value = Object.fromEntries(fixed.map(([name, property]) => [name, property.const]));
  const title = schema.title ?? String(value.type);
  if (!open) return { title, value };
  const [field, property] = open;
  return { title, value, field, label: property.title ?? title, more: property };
}

function lines(attributes) {
  const input = element("textarea", { ...attributes, rows: 2, placeholder: "One on each line" });
  return plain(input, () => {
    const texts = input.value.split("\n").filter((line) => line !== "");
    return texts.length === 0 ? undefined : texts;
  });
}
