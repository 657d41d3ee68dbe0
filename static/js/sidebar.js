// The sidebar: search, the chats or what was found in their place, and which model answers.

import { Deeds } from "./chats/deeds.js";
import { ChatList } from "./chats/list.js";
import { element } from "./dom.js";
import { ModelCard } from "./modelcard.js";
import { Search } from "./search.js";
import { TEXT } from "./texts.js";

export class Sidebar {
  /** `on` has open(id), hit(item), changed(item), deleted(id), restored(id), problem(error), read(), ended(item, runId) and reveal(). */
  constructor(host, place, card, on) {
    this.on = on;
    host.setAttribute("role", "navigation");
    host.setAttribute("aria-label", TEXT.chats);
    this.brand = element("div", { className: "brand" }, element("span", { className: "mark", "aria-hidden": "true" }), element("p", { text: TEXT.brand }));
    host.prepend(this.brand);
    this.card = new ModelCard(card);
    this.deeds = new Deeds({
      changed: (item) => this.onChanged(item),
      deleted: (id) => this.onDeleted(id),
      restored: (id) => on.restored(id),
      reread: () => this.list.refresh(),
    });
    this.list = new ChatList({
      open: (id) => on.open(id),
      menu: (item, opener, row) => this.deeds.openMenu(item, opener, () => row.rename()),
      rename: (item, title) => title && this.deeds.change(item, { title }),
      problem: (error) => on.problem(error),
      read: () => on.read(),
      ended: (item, runId) => on.ended(item, runId),
    });
    this.search = new Search({ onShown: (isShown) => this.showResults(isShown), onOpen: (item) => on.hit(item), onProblem: (error) => on.problem(error), onWanted: () => on.reveal() });
    place.before(this.search.root);
    place.append(this.search.status, this.search.results, this.list.root);
    this.showResults(false);
  }

  showResults(isShown) {
    this.search.results.hidden = !isShown;
    this.list.root.hidden = isShown;
  }

  onChanged(item) {
    this.list.take(item);
    this.on.changed(item);
  }

  onDeleted(id) {
    this.list.remove(id);
    this.on.deleted(id);
  }

  refresh() {
    return this.list.refresh();
  }

  clear() {
    this.search.clear({ isToStay: true });
    this.list.clear();
  }

  select(id) {
    this.list.select(id);
  }
}
