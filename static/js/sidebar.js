// The conversations on the left, and which model answers.

import { api } from "./api.js";
import { deletionConfirmed } from "./dialogs.js";
import { button, element, iconButton } from "./dom.js";

export class Sidebar {
  constructor(host, list, card, { onOpen, onDeleted, onProblem }) {
    Object.assign(this, { list, card, onOpen, onDeleted, onProblem });
    this.currentId = null;
    this.items = [];
    host.setAttribute("role", "navigation");
    host.setAttribute("aria-label", "Chats");
    host.prepend(element("div", { className: "brand" }, element("span", { className: "mark", "aria-hidden": "true" }), element("h1", { text: "Ponder" })));
  }

  async refresh() {
    try {
      const { items, next_cursor: cursor } = await api.conversations();
      this.items = items;
      this.cursor = cursor;
      this.draw();
    } catch (error) {
      this.onProblem(error.message);
    }
  }

  async more() {
    const { items, next_cursor: cursor } = await api.conversations(this.cursor);
    this.items.push(...items);
    this.cursor = cursor;
    this.draw();
  }

  select(id) {
    this.currentId = id;
    this.draw();
  }

  draw() {
    const rows = this.items.map((item) => this.row(item));
    if (!rows.length) rows.push(element("li", { className: "empty", text: "Your chats will be listed here." }));
    if (this.cursor) rows.push(element("li", {}, button("Show more", () => this.more(), { className: "more" })));
    this.list.replaceChildren(element("ul", {}, ...rows));
  }

  row(item) {
    const title = item.title || "New chat";
    const isCurrent = item.id === this.currentId;
    const open = button(title, () => this.onOpen(item.id), { className: "open", title, "aria-current": isCurrent && "page" });
    if (item.running_run_id) open.append(element("span", { className: "pulse", role: "img", "aria-label": "is being answered" }));
    const remove = iconButton("bin", `Delete ${title}`, () => this.remove(item), { className: "icon-button remove" });
    return element("li", { className: isCurrent ? "current" : "" }, open, remove);
  }

  async remove(item) {
    if (!(await deletionConfirmed(item.title))) return;
    try {
      await api.deleteConversation(item.id);
      this.onDeleted(item.id);
    } catch (error) {
      this.onProblem(error.message);
    }
    await this.refresh();
  }

  showModel(model) {
    const isReady = model.state === "ready";
    const parts = [element("p", { className: "model-name" }, element("span", { className: `dot ${model.state}` }), model.title || "Model")];
    if (model.state === "failed") parts.push(element("p", { className: "model-state bad", text: "cannot answer" }));
    else if (!isReady) parts.push(element("p", { className: "model-state", text: `${model.stage || "Starting"} …` }), progressBar(model.progress));
    if (model.about) parts.push(element("p", { className: "model-about", text: model.about }));
    this.card.replaceChildren(...parts);
  }
}

function progressBar(progress) {
  const bar = element("progress", { max: "1", "aria-label": "Loading the model" });
  if (progress !== null) bar.value = progress;
  return bar;
}
