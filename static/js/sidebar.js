// The conversations on the left, and which model answers.

import { api } from "./api.js";
import { deletionConfirmed } from "./dialogs.js";
import { button, element, iconButton } from "./dom.js";
import { TEXT } from "./texts.js";

const RUNNING_POLL_MS = 4000;

export class Sidebar {
  constructor(host, list, card, { onOpen, onDeleted, onProblem, onTitles }) {
    Object.assign(this, { list, card, onOpen, onDeleted, onProblem, onTitles });
    this.currentId = null;
    this.items = [];
    host.setAttribute("role", "navigation");
    host.setAttribute("aria-label", TEXT.chats);
    host.prepend(element("div", { className: "brand" }, element("span", { className: "mark", "aria-hidden": "true" }), element("p", { text: TEXT.brand })));
  }

  /** Read the newest; what "Show more" brought before stays behind them. */
  async refresh() {
    try {
      const { items, next_cursor: cursor } = await api.conversations();
      const oldest = items.at(-1)?.updated_at ?? "";
      const isOnlyPage = cursor === null;
      const older = isOnlyPage ? [] : this.items.filter((item) => item.updated_at < oldest && !items.some(({ id }) => id === item.id));
      if (!older.length) this.cursor = cursor;
      this.items = [...items, ...older];
      this.draw();
      this.onTitles();
    } catch (error) {
      this.onProblem(error);
    }
    this.watchOthers();
  }

  /** Of a run in another chat nobody tells this page that it has ended. */
  watchOthers() {
    clearTimeout(this.timer);
    const isOtherRunning = this.items.some((item) => item.running_run_id && item.id !== this.currentId);
    if (isOtherRunning) this.timer = setTimeout(() => this.refresh(), RUNNING_POLL_MS);
  }

  async more() {
    try {
      const { items, next_cursor: cursor } = await api.conversations(this.cursor);
      const known = new Set(this.items.map(({ id }) => id));
      this.items.push(...items.filter(({ id }) => !known.has(id)));
      this.cursor = cursor;
      this.draw();
    } catch (error) {
      this.onProblem(error);
    }
  }

  /** Nobody's chats until the next `refresh`. */
  clear() {
    this.items = [];
    this.cursor = null;
    this.draw();
  }

  select(id) {
    this.currentId = id;
    this.draw();
    this.watchOthers();
  }

  titleOf(id) {
    return this.items.find((item) => item.id === id)?.title ?? "";
  }

  draw() {
    const drawn = JSON.stringify([this.items, this.cursor, this.currentId]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const focused = this.list.contains(document.activeElement) ? document.activeElement : null;
    const rows = this.items.map((item) => this.row(item));
    if (!rows.length) rows.push(element("li", { className: "empty", text: TEXT.noChats }));
    if (this.cursor) rows.push(element("li", {}, button(TEXT.showMore, () => this.more(), { className: "more" })));
    this.list.replaceChildren(element("ul", {}, ...rows));
    if (focused?.dataset.focus) this.list.querySelector(`[data-focus="${focused.dataset.focus}"]`)?.focus();
  }

  row(item) {
    const title = item.title || TEXT.newChat;
    const isCurrent = item.id === this.currentId;
    const open = element("button", {
      type: "button",
      className: "open",
      title,
      "aria-current": isCurrent && "page",
      "data-focus": `open-${item.id}`,
      onclick: () => this.onOpen(item.id),
    });
    open.append(element("span", { className: "title", text: title }));
    if (item.running_run_id) open.append(element("span", { className: "pulse", role: "img", "aria-label": TEXT.isBeingAnswered }));
    const remove = iconButton("bin", TEXT.deleteChat(title), () => this.remove(item), {
      className: "icon-button remove",
      "data-focus": `remove-${item.id}`,
    });
    return element("li", { className: isCurrent ? "current" : "" }, open, remove);
  }

  async remove(item) {
    if (!(await deletionConfirmed(item.title || TEXT.newChat))) return;
    try {
      await api.deleteConversation(item.id);
    } catch (error) {
      // Deleted in another tab: gone is what was wanted
      if (error.code !== "not_found") {
        this.onProblem(error);
        return;
      }
    }
    this.items = this.items.filter(({ id }) => id !== item.id);
    this.draw();
    this.onDeleted(item.id);
    await this.refresh();
  }

  showModel(model) {
    const { state, title, about, stage, progress } = model;
    const parts = [element("p", { className: "model-name" }, element("span", { className: `dot ${state}` }), title || TEXT.model)];
    if (state === "failed") parts.push(element("p", { className: "model-state bad", text: TEXT.cannotAnswer }));
    else if (state !== "ready") parts.push(element("p", { className: "model-state", text: `${stage || TEXT.starting} …` }), progressBar(progress));
    if (about) parts.push(element("p", { className: "model-about", text: about }));
    this.card.replaceChildren(...parts);
  }

  showUnreachable() {
    const dot = element("span", { className: "dot failed" });
    this.card.replaceChildren(element("p", { className: "model-name" }, dot, TEXT.notReachable));
  }
}

function progressBar(progress) {
  const bar = element("progress", { max: "1", "aria-label": TEXT.loadingModel });
  if (progress !== null) bar.value = progress;
  return bar;
}
