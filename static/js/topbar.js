// Above the chat: what it is called, and what can be done with it.

import { titleField } from "./chats/rows.js";
import { element, iconButton } from "./dom.js";
import { TEXT } from "./texts.js";

export class Topbar {
  /** `before` and `after` stand at the ends; `deeds` do what is chosen; `item` gives the open chat, or null. */
  constructor(before, after, { deeds, item, tab }) {
    Object.assign(this, { deeds, item, tab });
    this.heading = element("h1", { className: "heading", dir: "auto" });
    this.options = iconButton("more", "", () => this.openMenu(), { className: "icon-button options", "aria-haspopup": "menu", "aria-expanded": "false" });
    this.root = element("header", { id: "topbar" }, before, this.heading, this.options, after);
  }

  /** `title` "" is a place without a name. */
  show(title) {
    this.heading.textContent = title || TEXT.brand;
    this.heading.classList.toggle("plain", !title);
    this.tab.name(title);
    this.options.hidden = !this.item();
    const label = TEXT.optionsOfThis;
    this.options.title = label;
    this.options.setAttribute("aria-label", label);
  }

  openMenu() {
    const item = this.item();
    if (item) this.deeds.openMenu(item, this.options, () => this.rename(item));
  }

  rename(item) {
    const field = titleField(item.title, async (title) => {
      field.replaceWith(this.heading);
      if (document.activeElement === document.body) this.options.focus();
      if (title) await this.deeds.change(item, { title });
    });
    this.heading.replaceWith(field);
    field.focus();
    field.select();
  }
}
