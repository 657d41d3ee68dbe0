// Search above the list: what is typed is asked a moment later, and the results stand in the list's place.

import { api } from "./api.js";
import { button, element, icon, iconButton } from "./dom.js";
import { TEXT } from "./texts.js";

const PAUSE_MS = 200;

export class Search {
  /**
   * `onShown` hears whether results stand in the list's place; `onOpen` gets the item that was chosen; `onWanted` brings
   * the field into sight.
   */
  constructor({ onShown, onOpen, onProblem, onWanted }) {
    Object.assign(this, { onShown, onOpen, onProblem, onWanted });
    this.items = new Map();
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
    this.root = element("div", { className: "search", role: "search" }, icon("search"), this.input, this.clearButton);
    this.results = element("ul", { className: "results", "aria-label": TEXT.results });
    this.status = element("p", { className: "search-status", role: "status" });
    this.input.addEventListener("input", () => this.onInput());
    this.input.addEventListener("keydown", (event) => this.onKey(event));
    this.results.addEventListener("keydown", (event) => this.onKey(event));
    document.addEventListener("keydown", (event) => this.onShortcut(event));
  }

  get words() {
    return this.input.value.replaceAll("\0", " ").trim();
  }

  /** Ctrl+K and Cmd+K, or a slash where nothing is written. */
  onShortcut(event) {
    const isSlash = event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && !event.target.closest?.("input, textarea, select, [contenteditable]");
    const isK = event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey;
    if (!(isSlash || isK) || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    this.onWanted();
    this.input.focus();
    this.input.select();
  }

  onInput() {
    clearTimeout(this.timer);
    this.clearButton.hidden = !this.input.value;
    this.asked += 1;
    if (this.words) this.timer = setTimeout(() => this.ask(), PAUSE_MS);
    else this.show(null);
  }

  /** `isToStay`: the focus stays where it is. */
  clear({ isToStay = false } = {}) {
    this.input.value = "";
    this.onInput();
    if (!isToStay) this.input.focus();
  }

  onKey(event) {
    if (event.isComposing || event.keyCode === 229) return;
    const rows = [...this.results.querySelectorAll(".open")];
    const at = rows.indexOf(document.activeElement);
    if (event.key === "Escape" && this.input.value) this.clear();
    else if (event.key === "ArrowDown") rows[Math.min(at + 1, rows.length - 1)]?.focus();
    else if (event.key === "ArrowUp" && at >= 0) (rows[at - 1] ?? this.input).focus();
    else if (event.key === "Enter" && event.target === this.input) this.openFirst();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** The results may still be those of what was typed before. */
  async openFirst() {
    clearTimeout(this.timer);
    if (this.words && this.shownFor !== this.words) await this.ask();
    const [first] = this.items.values();
    if (first && this.shownFor === this.words) this.onOpen(first);
  }

  async ask(cursor) {
    this.asked += 1;
    const { asked, words } = this;
    try {
      const found = await api.search(words, cursor);
      if (asked !== this.asked) return;
      if (!cursor) this.items = new Map();
      // One chat may come again on a later page
      for (const item of found.items) if (!this.items.has(item.id)) this.items.set(item.id, item);
      this.shownFor = words;
      this.show(found);
    } catch (error) {
      if (asked === this.asked) this.onProblem(error);
    }
  }

  /** What was found; null where nothing is asked. */
  show(found) {
    if (!found) {
      this.items = new Map();
      this.shownFor = "";
    }
    const rows = [...this.items.values()].map((item) => this.row(item));
    const { length } = rows;
    if (found?.next_cursor) rows.push(element("li", {}, button(TEXT.showMore, () => this.ask(found.next_cursor), { className: "more" })));
    const focused = this.results.contains(document.activeElement) ? [...this.results.children].indexOf(document.activeElement.closest("li")) : -1;
    this.results.replaceChildren(...rows);
    this.results.children[focused]?.querySelector("button").focus();
    const isComplete = found?.is_complete ?? true;
    const sentences = [found && !length ? TEXT.nothingFound : "", isComplete ? "" : TEXT.stillIndexing];
    this.status.textContent = sentences.filter(Boolean).join(" ");
    this.onShown(Boolean(found));
  }

  row(item) {
    const { where, text, marks } = item.hit;
    const title = item.title || TEXT.newChat;
    const line = where === "title" ? element("span", { className: "title", dir: "auto" }, ...marked(text, marks)) : element("span", { className: "title", text: title, dir: "auto" });
    const open = element("button", { type: "button", className: "open", onclick: () => this.onOpen(item) }, line);
    if (where !== "title") {
      open.append(element("span", { className: "where", text: TEXT.where[where] }), element("span", { className: "snippet", dir: "auto" }, ...marked(text, marks)));
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
