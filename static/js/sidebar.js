// The conversations on the left, and which model answers.

import { api } from "./api.js";
import { button, element, icon, iconButton } from "./dom.js";
import { exportDialog } from "./exporting.js";
import { openMenu } from "./menu.js";
import { Search } from "./search.js";
import { TEXT } from "./texts.js";
import { toast } from "./toast.js";

const RUNNING_POLL_MS = 4000;
const PAGE = 50;
const MOST_AT_ONCE = 200;

export class Sidebar {
  constructor(host, list, card, { onOpen, onHit, onDeleted, onRestored, onProblem, onTitles }) {
    Object.assign(this, { card, onOpen, onDeleted, onRestored, onProblem, onTitles });
    this.currentId = null;
    this.isArchive = false;
    this.items = [];
    /** Counts reads, so that one that comes late is dropped. */
    this.reads = 0;
    host.setAttribute("role", "navigation");
    host.setAttribute("aria-label", TEXT.chats);
    host.prepend(element("div", { className: "brand" }, element("span", { className: "mark", "aria-hidden": "true" }), element("p", { text: TEXT.brand })));
    this.search = new Search({ onShown: (isShown) => this.showResults(isShown), onOpen: onHit, onProblem });
    this.list = element("div", { className: "chats" });
    list.before(this.search.root);
    list.append(this.search.status, this.search.results, this.list);
    this.host = list;
    const more = new IntersectionObserver((seen) => seen.some(({ isIntersecting }) => isIntersecting) && this.more());
    this.watchMore = (made) => {
      more.disconnect();
      if (made) more.observe(made);
    };
    this.showResults(false);
  }

  showResults(isShown) {
    const isOn = isShown && this.search.isOn;
    this.search.results.hidden = this.search.status.hidden = !isOn;
    this.list.hidden = isOn;
  }

  /** Read as many as were shown. */
  async refresh() {
    this.reads += 1;
    const { reads } = this;
    try {
      const limit = Math.min(MOST_AT_ONCE, Math.max(PAGE, this.items.length));
      const { items, next_cursor: cursor } = await api.conversations({ limit, archived: this.isArchive });
      if (reads !== this.reads) return;
      Object.assign(this, { items, cursor });
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
    const { cursor, reads } = this;
    if (!cursor || this.isReadingMore) return;
    this.isReadingMore = true;
    try {
      const page = await api.conversations({ cursor, archived: this.isArchive });
      if (reads !== this.reads || cursor !== this.cursor) return;
      const known = new Set(this.items.map(({ id }) => id));
      this.items.push(...page.items.filter(({ id }) => !known.has(id)));
      this.cursor = page.next_cursor;
      this.draw();
    } catch (error) {
      this.onProblem(error);
    } finally {
      this.isReadingMore = false;
    }
  }

  /** Nobody's chats until the next `refresh`. */
  clear() {
    this.reads += 1;
    this.items = [];
    this.cursor = null;
    this.search.input.value = "";
    this.search.onInput();
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

  showArchive(isArchive) {
    this.isArchive = isArchive;
    this.items = [];
    this.cursor = null;
    this.draw();
    this.list.querySelector(".archive-way")?.focus();
    return this.refresh();
  }

  draw() {
    const drawn = JSON.stringify([this.items, this.cursor, this.currentId, this.isArchive]);
    if (drawn === this.drawn || this.isRenaming) return;
    this.drawn = drawn;
    const focused = this.list.contains(document.activeElement) ? document.activeElement : null;
    const pinned = this.items.filter((item) => item.is_pinned);
    const others = this.items.filter((item) => !item.is_pinned);
    const parts = this.isArchive ? [element("h2", { text: TEXT.archived })] : [];
    if (pinned.length) parts.push(element("h2", { text: TEXT.pinned }), element("ul", { "aria-label": TEXT.pinned }, ...pinned.map((item) => this.row(item))));
    if (pinned.length && others.length && !this.isArchive) parts.push(element("h2", { text: TEXT.chats }));
    const rows = others.map((item) => this.row(item));
    if (!this.items.length) rows.push(element("li", { className: "empty", text: this.isArchive ? TEXT.noArchived : TEXT.noChats }));
    const more = this.cursor ? button(TEXT.showMore, () => this.more(), { className: "more" }) : null;
    if (more) rows.push(element("li", {}, more));
    parts.push(element("ul", {}, ...rows), this.archiveWay());
    this.list.replaceChildren(...parts);
    this.watchMore(more);
    if (focused?.dataset.focus) this.list.querySelector(`[data-focus="${focused.dataset.focus}"]`)?.focus();
  }

  archiveWay() {
    const [text, to] = this.isArchive ? [TEXT.backToChats, false] : [TEXT.archived, true];
    const made = button(text, () => this.showArchive(to), { className: "archive-way", "data-focus": "archive" });
    made.prepend(icon(this.isArchive ? "left" : "box"));
    return made;
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
    open.append(element("span", { className: "title", text: title, dir: "auto" }));
    if (item.running_run_id) open.append(element("span", { className: "pulse", role: "img", "aria-label": TEXT.isBeingAnswered }));
    const more = iconButton("more", TEXT.optionsOf(title), () => this.openMenu(item, more, row), {
      className: "icon-button options",
      "aria-haspopup": "menu",
      "aria-expanded": "false",
      "data-focus": `options-${item.id}`,
    });
    const row = element("li", { className: isCurrent ? "current" : "" }, open, more);
    return row;
  }

  openMenu(item, opener, row) {
    const change = (changes) => () => this.change(item, changes);
    openMenu(opener, TEXT.optionsOf(item.title || TEXT.newChat), [
      ["pencil", TEXT.rename, () => this.rename(item, row)],
      ["pin", item.is_pinned ? TEXT.unpin : TEXT.pin, change({ is_pinned: !item.is_pinned })],
      ["box", item.is_archived ? TEXT.unarchive : TEXT.archive, change({ is_archived: !item.is_archived })],
      ["down", TEXT.exportChat, () => exportDialog(item)],
      ["bin", TEXT.deleteIt, () => this.remove(item), "danger"],
    ]);
  }

  async change(item, changes) {
    try {
      await api.changeConversation(item.id, { ...changes, version: item.version });
      if (changes.is_archived !== undefined) {
        const back = () => this.change({ ...item, version: item.version + 1 }, { is_archived: item.is_archived });
        toast(changes.is_archived ? TEXT.isArchived(item.title) : TEXT.isBack(item.title), back);
      }
    } catch (error) {
      this.onProblem(error);
    }
    await this.refresh();
  }

  /** The title becomes a field in its place: Enter saves, Escape drops. */
  rename(item, row) {
    const input = element("input", { className: "rename", "aria-label": TEXT.newName, maxlength: "200" });
    input.value = item.title;
    this.isRenaming = true;
    const end = async (isToSave) => {
      if (!this.isRenaming) return;
      this.isRenaming = false;
      this.drawn = null;
      const title = input.value.trim();
      if (isToSave && title && title !== item.title) await this.change(item, { title });
      else this.draw();
      this.list.querySelector(`[data-focus="options-${item.id}"]`)?.focus();
    };
    input.addEventListener("keydown", (event) => {
      if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      end(event.key === "Enter");
    });
    input.addEventListener("blur", () => end(true));
    row.replaceChildren(input);
    input.focus();
    input.select();
  }

  /** Gone at once; for ten seconds it can be undone. */
  async remove(item) {
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
    toast(TEXT.isDeleted(item.title || TEXT.newChat), () => this.restore(() => api.restoreConversation(item.id), item.id));
    await this.refresh();
  }

  async restore(call, id = null) {
    try {
      await call();
      this.onRestored(id);
    } catch (error) {
      this.onProblem(error);
    }
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
