// Tables that scroll in a box of their own, so that a phone can show them.

import { element } from "../dom.js";

/** `columns` are texts by name; a row is `{name: text or element}`. Columns named in `numbers` stand to the right. */
export function table(label, columns, rows, numbers = []) {
  const cell = (tag, name, content, more = {}) => {
    const made = element(tag, { className: numbers.includes(name) ? "number" : undefined, ...more });
    made.append(content ?? "");
    return made;
  };
  const names = Object.keys(columns);
  const head = element("tr", {}, ...names.map((name) => cell("th", name, columns[name], { scope: "col" })));
  const body = rows.map((row) => element("tr", {}, ...names.map((name) => cell("td", name, row[name]))));
  const made = element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
  return element("div", { className: "table-box", tabindex: "0", role: "region", "aria-label": label }, made);
}
