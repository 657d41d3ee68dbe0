// Asks the server again and again which model answers, and how it does.

import { api } from "./api.js";

const POLL_MS = 1000;
const READY_POLL_MS = 10_000;

export class ModelWatch {
  /** `onModel` gets every answer, `onUnreachable` hears that there was none, `onBack` that there is one again. */
  constructor({ onModel, onUnreachable, onBack }) {
    Object.assign(this, { onModel, onUnreachable, onBack, model: null, isAway: false });
    this.read();
  }

  /** As long as the page lives: a model that answers today may fail tomorrow. */
  waitOn() {
    clearTimeout(this.timer);
    const ms = this.model?.state === "ready" ? READY_POLL_MS : POLL_MS;
    this.timer = setTimeout(() => (document.hidden ? this.waitOn() : this.read()), ms);
  }

  /** Ask now; whoever asks meanwhile gets the same answer. */
  read() {
    this.reading ??= this.ask().finally(() => {
      this.reading = null;
      this.waitOn();
    });
    return this.reading;
  }

  async ask() {
    const wasAway = this.isAway;
    try {
      this.model = await api.model();
    } catch {
      // What the person does meanwhile has errors of its own
      this.model = null;
      this.isAway = true;
      this.onUnreachable();
      return;
    }
    this.isAway = false;
    this.onModel(this.model);
    if (wasAway) this.onBack();
  }
}
