// Search above the list: what is typed is asked a moment later, and the results stand in the list's place.

import { api } from "./api.js";
import { button, element, iconButton } from "./dom.js";
import { TEXT } from "./texts.js";

const PAUSE_MS = 200;

export class Search {
  /** `onShown` hears whether results stand in the list's place; `onOpen` gets the item that was chosen. */
  constructor({ onShown, onOpen, onProblem }) {
    Object.assign(this, { onShown, onOpen, onProblem });
    /** Counts what was asked: an earlier answer that comes later is dropped. */
    this.asked = 0;
    this.input = element("input", {
      type: "search",
      id: "search-chats",
      placeholder: TEXT.search,
      "aria-label": TEXT.search,
      title: TEXT.searchKeys,
      autocomplete: "off",
      spellcheck: "false",
    });
    this.clearButton = iconButton("close", TEXT.clearSearch, () => this.clear(), { hidden: true });
    this.root = element("div", { className: "search", role: "search" }, this.input, this.clearButton);
    this.results = element("ul", { className: "results", "aria-label": TEXT.results });
    this.status = element("p", { className: "search-status", role: "status" });
    this.input.addEventListener("input", () => this.onInput());
    this.input.addEventListener("keydown", (event) => this.onKey(event));
    this.results.addEventListener("keydown", (event) => this.onKey(event));
    document.addEventListener("keydown", (event) => {
      if (event.key.toLowerCase() !== "k" || !(event.ctrlKey || event.metaKey) || document.querySelector("dialog[open]")) return;
      event.preventDefault();
      this.onShown(true);
      this.input.focus();
      this.input.select();
    });
  }

  get isOn() {
    return this.input.value.trim() !== "";
  }

  onInput() {
    clearTimeout(this.timer);
    this.clearButton.hidden = !this.input.value;
    this.asked += 1;
    if (this.isOn) this.timer = setTimeout(() => this.ask(), PAUSE_MS);
    else this.onShown(false);
  }

  clear() {
    this.input.value = "";
    this.onInput();
    this.input.focus();
  }

  onKey(event) {
    const rows = [...this.results.querySelectorAll(".open")];
    const at = rows.indexOf(document.activeElement);
    if (event.key === "Escape" && this.input.value) this.clear();
    else if (event.key === "ArrowDown") rows[Math.min(at + 1, rows.length - 1)]?.focus();
    else if (event.key === "ArrowUp" && at >= 0) (rows[at - 1] ?? this.input).focus();
    else if (event.key === "Enter" && at < 0) rows[0]?.click();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  async ask(cursor) {
    this.asked += 1;
    const { asked } = this;
    try {
      const found = await api.search(this.input.value.trim(), cursor);
      if (asked !== this.asked) return;
      if (!cursor) this.items = new Map();
      for (const item of found.items) if (!this.items.has(item.id)) this.items.set(item.id, item);
      this.show(found);
    } catch (error) {
      if (asked === this.asked) this.onProblem(error);
    }
  }

  show({ next_cursor: cursor, is_complete: isComplete = true }) {
    const rows = [...this.items.values()].map((item) => this.row(item));
    if (cursor) rows.push(element("li", {}, button(TEXT.showMore, () => this.ask(cursor), { className: "more" })));
    this.results.replaceChildren(...rows);
    const sentences = [rows.length ? "" : TEXT.nothingFound, isComplete ? "" : TEXT.stillIndexing];
    this.status.textContent = sentences.filter(Boolean).join(" ");
    this.onShown(true);
  }

  row(item) {
    const { where, text, marks } = item.hit;
    const title = item.title || TEXT.newChat;
    const line = where === "title" ? element("span", { className: "title" }, ...marked(text, marks)) : element("span", { className: "title", text: title });
    const open = element("button", { type: "button", className: "open", onclick: () => this.onOpen(item) }, line);
    if (where !== "title") {
      const place = element("span", { className: "where", text: TEXT.where[where] });
      open.append(element("span", { className: "snippet" }, place, ...marked(text, marks)));
    }
    return element("li", {}, open);
  }
}

/** The text with its matches marked, as text nodes: what people wrote is never HTML. */
function marked(text, marks) {
  const parts = [];
  let at = 0;
  for (const [start, end] of marks) {
    parts.push(text.slice(at, start), element("mark", { text: text.slice(start, end) }));
    at = end;
  }
  return [...parts, text.slice(at)];
}
