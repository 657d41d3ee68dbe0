// The list of chats: pages of it as one scrolls, read again when something may have changed, drawn where it has.

import { api } from "../api.js";
import { later } from "../clock.js";
import { button, element, icon } from "../dom.js";
import { TEXT } from "../texts.js";
import { grouped } from "./groups.js";
import { arrange, Row } from "./rows.js";

const RUNNING_POLL_MS = 4000;

export class ChatList {
  /** `on` has what rows need, and problem(error), read(), and ended(item, runId) for a run that is over. */
  constructor(on) {
    const rename = (item, title) => {
      this.draw();
      on.rename(item, title);
    };
    this.on = { ...on, rename };
    this.currentId = null;
    this.isArchive = false;
    this.items = [];
    this.cursor = null;
    /** Counts reads, so that one that comes late is dropped. */
    this.reads = 0;
    this.rows = new Map();
    this.groups = new Map();
    this.empty = element("p", { className: "empty" });
    this.title = element("h2", { className: "archive-title", text: TEXT.archived });
    this.way = button("", () => this.showArchive(!this.isArchive), { className: "archive-way" });
    this.moreButton = button(TEXT.showMore, () => this.more(), { className: "more" });
    this.root = element("div", { className: "chats", onkeydown: (event) => this.onKey(event), onfocusin: ({ target }) => this.onFocus(target) });
    const seen = new IntersectionObserver((all) => all.some(({ isIntersecting }) => isIntersecting) && this.more(), { rootMargin: "300px" });
    this.watchMore = () => {
      // Observed anew it tells once more, also when it has not gone out of sight
      seen.disconnect();
      if (this.cursor) seen.observe(this.moreButton);
    };
    this.draw();
  }

  find(id) {
    return this.items.find((item) => item.id === id);
  }

  /** Read the newest; what was read behind them stays, unless something has gone from among the newest to behind them. */
  async refresh() {
    this.reads += 1;
    const { reads } = this;
    try {
      const { items, next_cursor: cursor } = await api.conversations({ archived: this.isArchive });
      if (reads !== this.reads) return;
      const fresh = new Set(items.map(({ id }) => id));
      const end = cursor ? this.items.findIndex(({ id }) => id === items.at(-1).id) : -1;
      const isSame = end >= 0 && this.items.slice(0, end + 1).every(({ id }) => fresh.has(id));
      const older = isSame ? this.items.slice(end + 1).filter(({ id }) => !fresh.has(id)) : [];
      if (!older.length) this.cursor = cursor;
      const before = this.items;
      this.items = [...items, ...older];
      this.draw();
      this.on.read();
      this.tellEnded(before, items);
    } catch (error) {
      this.on.problem(error);
    }
    this.watchOthers();
  }

  tellEnded(before, items) {
    const running = new Map(before.map((item) => [item.id, item.running_run_id]));
    for (const item of items) {
      const runId = running.get(item.id);
      if (runId && item.running_run_id !== runId) this.on.ended(item, runId);
    }
  }

  /** Of a run in another chat nobody tells this page that it has ended. */
  watchOthers() {
    this.unwatch?.();
    const isOtherRunning = this.items.some((item) => item.running_run_id && item.id !== this.currentId);
    this.unwatch = isOtherRunning ? later(RUNNING_POLL_MS, () => this.refresh()) : null;
  }

  async more() {
    const { cursor } = this;
    if (!cursor || this.isReadingMore) return;
    this.isReadingMore = true;
    const hadFocus = document.activeElement === this.moreButton;
    try {
      const page = await api.conversations({ cursor, archived: this.isArchive });
      if (cursor !== this.cursor) return;
      const known = new Set(this.items.map(({ id }) => id));
      const found = page.items.filter(({ id }) => !known.has(id));
      this.items.push(...found);
      this.cursor = page.next_cursor;
      this.draw();
      if (hadFocus && found.length) this.rows.get(found[0].id)?.open.focus();
    } catch (error) {
      this.on.problem(error);
    } finally {
      this.isReadingMore = false;
    }
  }

  /** A chat as the server has it now; where it belongs says the next `refresh`. */
  take(changed) {
    const at = this.items.findIndex(({ id }) => id === changed.id);
    if (at < 0) return;
    if (changed.is_archived === this.isArchive) this.items[at] = { ...this.items[at], ...changed };
    else this.items.splice(at, 1);
    this.draw();
  }

  remove(id) {
    this.items = this.items.filter((item) => item.id !== id);
    this.draw();
  }

  /** Nobody's chats until the next `refresh`. */
  clear() {
    this.reads += 1;
    this.items = [];
    this.cursor = null;
    this.isArchive = false;
    this.draw();
  }

  select(id) {
    this.rows.get(this.currentId)?.mark(false);
    this.currentId = id;
    this.rows.get(id)?.mark(true);
    this.setStop(id);
    this.watchOthers();
  }

  // Walking through it

  /** The row that Tab comes to: `id`, which may come with the next `refresh`, or else the chat that is open, or else the first. */
  setStop(id = this.wantedStop) {
    this.wantedStop = id;
    const at = [id, this.currentId, this.items[0]?.id].find((one) => this.rows.has(one));
    if (at !== this.stop) this.rows.get(this.stop)?.reach(false);
    this.rows.get(at)?.reach(true);
    this.stop = at;
  }

  onFocus(target) {
    const found = this.items.find(({ id }) => this.rows.get(id)?.root.contains(target));
    if (found) this.setStop(found.id);
  }

  onKey(event) {
    const at = this.items.findIndex(({ id }) => this.rows.get(id)?.root.contains(event.target));
    const last = this.items.length - 1;
    const to = { ArrowDown: Math.min(at + 1, last), ArrowUp: Math.max(at - 1, 0), Home: 0, End: last }[event.key];
    if (at < 0 || to === undefined || event.target.matches("input")) return;
    event.preventDefault();
    this.rows.get(this.items[to].id).open.focus();
  }

  showArchive(isArchive) {
    this.clear();
    this.isArchive = isArchive;
    this.draw();
    this.way.focus();
    return this.refresh();
  }

  // Drawing

  draw() {
    // Moved, the field would lose the focus, which ends the renaming
    if (this.root.querySelector(".rename")) return;
    // A row that moves loses the focus
    const focused = this.root.contains(document.activeElement) ? document.activeElement : null;
    const groups = grouped(this.items);
    const ids = new Set(this.items.map(({ id }) => id));
    for (const id of this.rows.keys()) if (!ids.has(id)) this.rows.delete(id);
    const parts = groups.map((group) => this.group(group));
    this.empty.textContent = this.isArchive ? TEXT.noArchived : TEXT.noChats;
    this.way.replaceChildren(icon(this.isArchive ? "left" : "box"), this.isArchive ? TEXT.backToChats : TEXT.archived);
    const isReading = this.reads === 0;
    const head = this.isArchive ? [this.way, this.title] : [];
    const foot = this.isArchive ? [] : [this.way];
    const middle = parts.length || isReading ? parts : [this.empty];
    arrange(this.root, [...head, ...middle, ...(this.cursor ? [this.moreButton] : []), ...foot]);
    if (focused?.isConnected && document.activeElement !== focused) focused.focus();
    this.setStop();
    this.watchMore();
  }

  group({ key, title, items }) {
    if (!this.groups.has(key)) {
      const list = element("ul", { "aria-labelledby": `chats-${key}` });
      const root = element("section", {}, element("h2", { id: `chats-${key}`, text: title }), list);
      this.groups.set(key, { root, list });
    }
    const { root, list } = this.groups.get(key);
    arrange(list, items.map((item) => this.row(item).root));
    return root;
  }

  row(item) {
    let row = this.rows.get(item.id);
    if (!row) {
      row = new Row(this.on);
      row.mark(item.id === this.currentId);
      this.rows.set(item.id, row);
    }
    row.show(item);
    return row;
  }
}
