// A form out of a form schema: JSON Schema with `x-order` and `x-group`.

import { element, prose } from "./dom.js";
import { Unusable, control, isWide, range } from "./fields.js";

/**
 * Draws the form into `parent`, with what was typed into `before`, and calls `changed` on every change. Properties in
 * `omitted` are the page's own business.
 */
export function drawForm(parent, schema, { omitted, before, changed }) {
  const properties = Object.entries(schema.properties)
    .filter(([name]) => !omitted.has(name))
    .sort(([, a], [, b]) => a["x-order"] - b["x-order"]);
  const fields = properties.map(([name, property]) => field(name, property));
  const of = (group) => fields.filter((one) => one.group === group).map((one) => one.element);
  const isOpen = parent.querySelector("details")?.open ?? false;
  parent.replaceChildren(
    element("div", { class: "grid" }, ...of("basic")),
    element(
      "details",
      { class: "advanced", open: isOpen },
      element("summary", {}, "More parameters"),
      element("div", { class: "grid" }, ...of("advanced")),
    ),
  );
  for (const one of fields) {
    if (before && one.name in before) one.restore(before[one.name]);
  }
  parent.oninput = () => {
    fields.forEach((one) => one.complain(""));
    changed();
  };
  return {
    extensions: new Set(properties.filter(([, p]) => p["x-extension"]).map(([name]) => name)),
    field: (name) => fields.find((one) => one.name === name),
    state: () => Object.fromEntries(fields.map((one) => [one.name, one.state()])),
    /** What is to be sent; with `strictly`, null when something cannot be, which is shown and gets the focus. */
    values: (strictly) => values(fields, strictly),
  };
}

function values(fields, strictly) {
  const sent = {};
  let wrong = null;
  for (const one of fields) {
    try {
      const value = one.get();
      if (value !== undefined) sent[one.name] = value;
    } catch (error) {
      if (!(error instanceof Unusable)) throw error;
      if (strictly) one.complain(error.message);
      wrong ??= one;
    }
  }
  if (!strictly || !wrong) return sent;
  wrong.focus();
  return null;
}

function field(name, schema) {
  const id = `field-${name}`;
  const part = control(schema, id, `${id}-hint`);
  const label = element("label", { for: id }, schema.title ?? name);
  const bounds = range(schema);
  const hint = element(
    "p",
    { id: `${id}-hint`, class: "hint" },
    ...prose(schema.description ?? ""),
    ...(bounds ? [" ", element("span", { class: "range" }, `${bounds.charAt(0).toUpperCase()}${bounds.slice(1)}.`)] : []),
  );
  const complaint = element("p", { class: "complaint", role: "alert", hidden: true });
  const isToggle = schema.type === "boolean";
  const top = isToggle ? [element("div", { class: "toggle" }, part.element, label)] : [label, part.element];
  const whole = element("div", { class: isWide(schema) ? "field wide" : "field" }, ...top, complaint, hint);
  part.input.name = name;
  if (schema["x-required"]) part.input.required = true;
  return {
    ...part,
    name,
    element: whole,
    group: schema["x-group"] ?? "advanced",
    /** Shows what is wrong with the value; nothing when the text is empty. */
    complain(message) {
      complaint.hidden = message === "";
      complaint.textContent = message;
      if (message === "") part.input.removeAttribute("aria-invalid");
      else part.input.setAttribute("aria-invalid", "true");
    },
    /** Goes to the control, which may be folded away. */
    focus() {
      const folded = whole.closest("details");
      if (folded) folded.open = true;
      part.input.focus();
    },
  };
}
