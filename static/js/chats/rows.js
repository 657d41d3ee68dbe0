// The rows of the list. A row is made once and then only changed where its chat has changed: what is read again and again
// is the same nearly always, and a list may have thousands.

import { element, iconButton } from "../dom.js";
import { TEXT } from "../texts.js";

export class Row {
  /** `on` has open(id), menu(item, opener, row) and rename(item, title): null drops it. */
  constructor(on) {
    this.on = on;
    this.title = element("span", { className: "title", dir: "auto" });
    this.pulse = element("span", { className: "pulse", role: "img", "aria-label": TEXT.isBeingAnswered });
    this.unread = element("span", { className: "unread", role: "img", "aria-label": TEXT.isUnread });
    this.open = element("button", { type: "button", className: "open", onclick: () => on.open(this.item.id) }, this.title);
    this.options = iconButton("more", "", () => this.openMenu(), { className: "icon-button options", "aria-haspopup": "menu", "aria-expanded": "false" });
    this.reach(false);
    this.root = element("li", { oncontextmenu: (event) => this.onContextMenu(event) }, this.open, this.options);
  }

  show(item) {
    const { item: before } = this;
    this.item = item;
    if (!before || before.title !== item.title) {
      const title = item.title || TEXT.newChat;
      this.title.textContent = this.open.title = title;
      const label = TEXT.optionsOf(title);
      this.options.title = label;
      this.options.setAttribute("aria-label", label);
    }
    if (!item.running_run_id) this.pulse.remove();
    else if (!this.pulse.isConnected) this.open.append(this.pulse);
    const isUnread = item.is_unread && !item.running_run_id;
    this.root.classList.toggle("has-news", isUnread);
    if (!isUnread) this.unread.remove();
    else if (!this.unread.isConnected) this.open.append(this.unread);
  }

  mark(isCurrent) {
    this.root.classList.toggle("current", isCurrent);
    if (isCurrent) this.open.setAttribute("aria-current", "page");
    else this.open.removeAttribute("aria-current");
  }

  /** Whether Tab comes here: the list is one stop, and its rows are walked by arrows. */
  reach(isStop) {
    this.open.tabIndex = this.options.tabIndex = isStop ? 0 : -1;
  }

  /** Shift+F10, the menu key, a right click and a long touch. */
  onContextMenu(event) {
    if (event.target.matches("input")) return;
    event.preventDefault();
    this.openMenu();
  }

  openMenu() {
    this.on.menu(this.item, this.options, this);
  }

  /** The title becomes a field in its place. */
  rename() {
    const field = titleField(this.item.title, (title) => {
      field.replaceWith(this.open, this.options);
      if (document.activeElement === document.body) this.options.focus();
      this.on.rename(this.item, title);
    });
    this.root.replaceChildren(field);
    field.focus();
    field.select();
  }
}

/** Enter saves and so does leaving it, Escape drops: `onEnd` gets the new title, or null. */
export function titleField(title, onEnd) {
  const input = element("input", { className: "rename", "aria-label": TEXT.newName, maxlength: "200", dir: "auto", autocomplete: "off" });
  let isOver = false;
  const end = (isToSave) => {
    if (isOver) return;
    isOver = true;
    const given = input.value.trim();
    onEnd(isToSave && given && given !== title ? given : null);
  };
  input.value = title;
  input.addEventListener("blur", () => end(true));
  input.addEventListener("keydown", (event) => {
    if (event.isComposing || event.keyCode === 229 || !["Enter", "Escape"].includes(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    end(event.key === "Enter");
  });
  return input;
}

/** Make the children of `host` these, in this order, and move only what stands elsewhere. */
export function arrange(host, wanted) {
  let at = host.firstChild;
  for (const child of wanted) {
    if (child === at) at = at.nextSibling;
    else host.insertBefore(child, at);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}
