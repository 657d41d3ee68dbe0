// Reads a run's events. EventSource comes back by itself with Last-Event-ID; a hidden tab lets its connection go (a
// browser has six per host) and comes back behind the last event it saw.

import { api } from "./api.js";

const NAMES = ["state", "block", "note", "resplit", "snapshot", "done", "tail", "progress"];

export class RunReader {
  /**
   * `on` has a function for every event name it cares for; `connected` hears true and false as the connection comes
   * and goes, `lost` that the stream ended for good without a done.
   */
  constructor(runId, on) {
    this.runId = runId;
    this.on = on;
    this.last = 0;
    this.isOver = false;
    this.onVisibility = () => (document.hidden ? this.pause() : this.open());
    document.addEventListener("visibilitychange", this.onVisibility);
    this.open();
  }

  open() {
    if (this.source || this.isOver || document.hidden) return;
    this.source = new EventSource(api.events(this.runId, this.last));
    for (const name of NAMES) this.source.addEventListener(name, (event) => this.take(name, event));
    this.source.onopen = () => this.on.connected?.(true);
    this.source.onerror = () => {
      // CONNECTING means that the browser tries again by itself
      if (this.source?.readyState !== EventSource.CLOSED) {
        this.on.connected?.(false);
        return;
      }
      this.close();
      this.on.lost?.();
    };
  }

  take(name, event) {
    if (event.lastEventId) this.last = Number(event.lastEventId);
    if (name === "done") this.close();
    this.on[name]?.(JSON.parse(event.data));
  }

  pause() {
    this.source?.close();
    this.source = null;
  }

  close() {
    this.isOver = true;
    this.pause();
    document.removeEventListener("visibilitychange", this.onVisibility);
  }
}
