// Dialogs: the browser's own <dialog> holds the focus, hears Escape and gives the focus back.

import { button, element, iconButton } from "./dom.js";
import { me } from "./me.js";
import { TEXT } from "./texts.js";

let made = 0;

export class Dialog {
  /** Open at once. `isClosable` puts a cross beside the title; `isStaying` has Escape do nothing. */
  constructor({ title, body, className = "", isClosable = false, isStaying = false }) {
    this.isStaying = isStaying;
    this.isOver = false;
    this.closed = new Promise((resolve) => (this.settle = resolve));
    made += 1;
    this.title = element("h2", { text: title, id: `dialog-title-${made}` });
    const head = element("header", { className: "dialog-head" }, this.title);
    if (isClosable) head.append(iconButton("close", TEXT.close, () => this.close()));
    this.root = element("dialog", { className: `ponder-dialog ${className}`, "aria-labelledby": this.title.id }, head, body);
    this.root.addEventListener("cancel", (event) => {
      event.preventDefault();
      if (!this.isStaying) this.close();
    });
    // A second Escape closes without asking
    this.root.addEventListener("close", () => this.onClosedByBrowser());
    document.body.append(this.root);
    this.root.showModal();
  }

  onClosedByBrowser() {
    if (this.isOver) return;
    if (this.isStaying) this.root.showModal();
    else this.close();
  }

  /** `closed` resolves with `value`. */
  close(value) {
    if (this.isOver) return;
    this.isOver = true;
    this.root.close();
    this.root.remove();
    this.settle(value);
  }
}

/** Ask; resolves with true for yes. What cannot be undone has its No focused. */
export async function ask({ title, body, about, yes, no, isDanger = false }) {
  const decline = button(no, () => dialog.close(false), { className: "quiet", autofocus: isDanger });
  const agree = button(yes, () => dialog.close(true), { className: isDanger ? "danger" : "strong", autofocus: !isDanger });
  const content = element("div", {}, body ?? element("p", { text: about }), element("div", { className: "dialog-actions" }, decline, agree));
  const dialog = new Dialog({ title, body: content });
  return Boolean(await dialog.closed);
}

/** Like `ask`, for what is gone for good: the word has to be typed. */
export async function askTyped({ title, about, type, word, yes, no }) {
  const input = element("input", { id: "typed-word", autocomplete: "off", autocapitalize: "off", spellcheck: "false", autofocus: true });
  const agree = element("button", { type: "submit", text: yes, className: "danger", disabled: true });
  input.addEventListener("input", () => (agree.disabled = input.value.trim() !== word));
  const form = element(
    "form",
    { className: "fields", novalidate: true },
    element("p", { text: about }),
    element("div", { className: "field" }, element("label", { for: "typed-word", text: type }), input),
    element("div", { className: "dialog-actions" }, button(no, () => dialog.close(false)), agree),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!agree.disabled) dialog.close(true);
  });
  const dialog = new Dialog({ title, body: form });
  return Boolean(await dialog.closed);
}

export const privacyLink = () => element("a", { href: "/privacy", target: "_blank", rel: "noopener", text: TEXT.privacy });

/** Before the first send: what is kept, and what to expect. Accepted once, and again when it says something new. */
export async function noticeAccepted(model) {
  const { person, site, isAccount } = me;
  if (person.notice_version >= site.notice_version) return true;
  const { title, kept, points, demo, more, yes, no } = TEXT.notice;
  const shown = [kept({ operator: site.operator, days: site.guest_days, isAccount }), ...points];
  if (model?.is_demo) shown.push(demo);
  const items = shown.map(([lead, rest]) => element("li", {}, element("strong", { text: lead }), ` ${rest}`));
  const body = element("div", {}, element("ul", {}, ...items), element("p", { className: "more-about" }, more, privacyLink()));
  if (!(await ask({ title, body, yes, no }))) return false;
  await me.acceptNotice();
  return true;
}
