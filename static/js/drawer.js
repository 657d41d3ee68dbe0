// The sidebar on smaller screens: a drawer over the rest, which cannot be reached meanwhile.

import { element, iconButton, isNarrow } from "./dom.js";
import { TEXT } from "./texts.js";

export class Drawer {
  /** `first` gets the focus when it opens; `behind` is what it covers. */
  constructor(shell, first, behind) {
    Object.assign(this, { shell, first, behind });
    this.button = iconButton("menu", TEXT.chats, () => this.toggle(), {
      className: "icon-button menu",
      "aria-controls": "sidebar",
      "aria-expanded": "false",
    });
    shell.append(element("div", { className: "scrim", onclick: () => this.toggle(false) }));
    matchMedia("(max-width: 1023px)").addEventListener("change", () => this.toggle(false));
  }

  get isOpen() {
    return this.shell.classList.contains("drawer-open");
  }

  toggle(isShown = !this.isOpen) {
    const wasShown = this.isOpen;
    const isOver = isShown && isNarrow();
    this.shell.classList.toggle("drawer-open", isOver);
    this.button.setAttribute("aria-expanded", String(isOver));
    for (const part of this.behind) part.inert = isOver;
    if (isOver) this.first.focus();
    else if (wasShown) this.button.focus();
  }
}
