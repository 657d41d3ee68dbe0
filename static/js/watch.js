// Asks the server again and again which model answers, and how it does.

import { api } from "./api.js";

const POLL_MS = 1000;
const READY_POLL_MS = 15_000;

export class ModelWatch {
  /** `onModel` gets every answer, `onUnreachable` hears that there was none. */
  constructor({ onModel, onUnreachable }) {
    Object.assign(this, { onModel, onUnreachable, model: null });
    this.poll();
  }

  async poll() {
    if (!document.hidden) await this.read();
    setTimeout(() => this.poll(), this.model?.state === "ready" ? READY_POLL_MS : POLL_MS);
  }

  async read() {
    try {
      this.model = await api.model();
    } catch {
      // What the person does meanwhile has errors of its own
      this.model = null;
      this.onUnreachable();
      return;
    }
    this.onModel(this.model);
  }
}
