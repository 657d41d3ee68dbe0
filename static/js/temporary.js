// Chats that are in memory alone: said above them for as long as they are open, and ended with this tab.

import { api } from "./api.js";
import { element, iconButton } from "./dom.js";
import { TEXT } from "./texts.js";

/** What stands for a chat's id before its first message: what is written there is never found again in a kept chat. */
export const TEMPORARY = "#temporary";

export class Temporary {
  /** `host` is where the chat stands; `onStart` begins one; `onBack` reads what is shown anew. */
  constructor(host, { onStart, onBack }) {
    /** Of this tab, wherever it has gone since. */
    this.ids = new Set();
    this.button = iconButton("clock", TEXT.temporary.start, onStart, { className: "icon-button new-temporary" });
    this.note = element("p", { className: "temporary-note", role: "note", text: TEXT.temporary.about, hidden: true });
    host.prepend(this.note);
    window.addEventListener("pagehide", () => this.ids.forEach((id) => api.leave(id)));
    window.addEventListener("pageshow", (event) => event.persisted && this.ids.size && onBack());
  }

  /** `id` is null before the first message. */
  show(isOn, id = null) {
    if (isOn && id) this.ids.add(id);
    this.note.hidden = !isOn;
    this.button.setAttribute("aria-pressed", String(isOn));
  }
}

export const isTemporaryId = (id) => Boolean(id?.startsWith("t"));
