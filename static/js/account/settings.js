// The settings: four sections in one dialog. What is changed in the first two is saved at once.

import { Dialog } from "../dialogs.js";
import { button, element } from "../dom.js";
import { me } from "../me.js";
import { placeOf } from "../routes.js";
import { TEXT } from "../texts.js";
import { chats } from "./chats.js";
import { general } from "./general.js";
import { model } from "./model.js";
import { person } from "./person.js";

const SECTIONS = { general, model, chats, account: person };
const SAVED_MS = 4000;
let opened = null;

/**
 * Resolves when the dialog is closed. `page` tells whether there is unsent text, and how to sign in and out.
 * A section that is shown already is left as it is, with what is being typed there.
 */
export function openSettings(page, { section = "general", problem = "" } = {}) {
  opened ??= new Settings(page);
  if (opened.section !== section) {
    opened.show(section);
    opened.focus();
  }
  if (problem) opened.tell(problem, { isBad: true });
  return opened.dialog.closed;
}

export function closeSettings() {
  opened?.dialog.close();
}

class Settings {
  constructor(page) {
    this.page = page;
    this.line = Promise.resolve();
    this.tabs = Object.keys(SECTIONS).map((name) => this.tab(name));
    this.panel = element("div", { className: "section", role: "tabpanel", id: "settings-section", tabindex: "-1" });
    this.status = element("p", { className: "saved", role: "status" });
    this.problem = element("div", { className: "problems" });
    const list = element("div", { className: "tabs", role: "tablist", "aria-label": TEXT.settings.title, onkeydown: (event) => this.onKey(event) }, ...this.tabs);
    const body = element("div", { className: "settings" }, list, this.problem, this.panel);
    this.dialog = new Dialog({ title: TEXT.settings.title, body, isClosable: true, className: "wide" });
    this.dialog.title.after(this.status);
    this.dialog.closed.then(() => {
      opened = null;
      this.shown?.flush?.();
    });
  }

  tab(name) {
    return button(TEXT.settings.sections[name], () => this.show(name), { role: "tab", id: `tab-${name}`, "data-section": name, "aria-controls": "settings-section" });
  }

  onKey(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const at = this.tabs.findIndex((tab) => tab.dataset.section === this.section);
    const next = this.tabs[(at + step + this.tabs.length) % this.tabs.length];
    this.show(next.dataset.section);
    next.focus();
  }

  show(section) {
    this.shown?.flush?.();
    this.section = section;
    for (const tab of this.tabs) {
      const isShown = tab.dataset.section === section;
      tab.setAttribute("aria-selected", String(isShown));
      tab.tabIndex = isShown ? 0 : -1;
    }
    if (placeOf(location.hash).kind === "settings") history.replaceState(null, "", `#/settings/${section}`);
    this.panel.setAttribute("aria-labelledby", `tab-${section}`);
    this.tell("");
    this.shown = SECTIONS[section](this);
    this.panel.replaceChildren(...this.shown.parts);
    this.panel.scrollTop = 0;
  }

  focus() {
    this.tabs.find((tab) => tab.tabIndex === 0).focus();
  }

  /** Save what has changed, one after the other; resolves with whether it is saved. */
  save(changes) {
    const saved = this.line.then(() => me.change(changes));
    this.line = saved.catch(() => {});
    return saved.then(
      () => {
        this.tell("");
        this.tellSaved();
        return true;
      },
      (error) => {
        this.tell(error.message, { isBad: true });
        return false;
      },
    );
  }

  tellSaved() {
    clearTimeout(this.timer);
    this.status.textContent = TEXT.settings.saved;
    this.timer = setTimeout(() => (this.status.textContent = ""), SAVED_MS);
  }

  /** A sentence above the section. */
  tell(sentence, { isBad = false } = {}) {
    const shown = isBad ? { className: "problem", role: "alert" } : { className: "done", role: "status" };
    this.problem.replaceChildren(...(sentence ? [element("p", { ...shown, text: sentence })] : []));
  }
}
