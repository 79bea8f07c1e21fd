// Small helpers around the document. Text always goes in as text: nothing that a model or a server says is ever markup.

/** The element with an id. */
export const byId = (id) => document.getElementById(id);

/**
 * A new element. `properties` are set as properties, or as attributes when their name has a dash or is `role`, `for`
 * or `class`; those that are undefined or null are left out. Children are elements or texts.
 */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.includes("-") || ["role", "for", "class"].includes(name)) {
      node.setAttribute(name, String(value));
    } else {
      node[name] = value;
    }
  }
  node.append(...children);
  return node;
}

/** A text of the server in which backticks mark code, as nodes. */
export const prose = (text) =>
  text.split("`").map((part, index) => (index % 2 === 1 ? element("code", {}, part) : part));

/** Copies a text; resolves to whether it worked. */
export async function copyText(text) {
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(() => true, () => false);
  }
  // Without TLS, browsers keep the clipboard to themselves except for this.
  const area = element("textarea", { value: text, class: "offscreen", "aria-hidden": "true" });
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  return copied;
}

/** Shows a word on a button for a moment, as the answer to a click. */
export function flash(button, word) {
  const before = button.dataset.label ?? button.textContent;
  button.dataset.label = before;
  button.textContent = word;
  clearTimeout(Number(button.dataset.timer));
  button.dataset.timer = String(setTimeout(() => (button.textContent = before), 1500));
}

/** A number with separators, such as 65,536. */
export const count = (number) => new Intl.NumberFormat("en").format(number);
