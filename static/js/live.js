// A run that is going on: its events go into its answer in the chat and, while the panel shows it, into the panel.

import { LONG_S } from "./bell.js";
import { RunReader } from "./reader.js";

const CLOCK_MS = 250;

export class LiveRun {
  /** `onDone` gets the done event; `onLost` hears that the stream ended without one; `onHeard`, that it speaks; `onLong`, once, that it takes long. */
  constructor(answer, panel, { onDone, onLost, onHeard, onLong, onAnswerNow }) {
    this.id = answer.run.id;
    this.answer = answer;
    this.panel = panel;
    this.state = answer.run;
    this.isConnected = true;
    Object.assign(this, { onHeard, onLong, isLong: false, since: performance.now() });
    answer.showState(this.state);
    answer.blocks.reset();
    panel.startLive(answer.id, onAnswerNow);
    this.reader = new RunReader(this.id, {
      state: (state) => this.onState(state),
      block: ({ channel, html }) => this.textOf(channel)?.block(html),
      tail: ({ channel, html }) => this.textOf(channel)?.showTail(html),
      note: ({ text }) => this.isInPanel && this.panel.note(text),
      resplit: () => this.reset([], []),
      snapshot: (snapshot) => this.onSnapshot(snapshot),
      progress: (progress) => this.onProgress(progress),
      connected: (isConnected) => this.onConnected(isConnected),
      done: onDone,
      lost: onLost,
    });
    this.timer = setInterval(() => {
      this.showProgress();
      this.countOn();
    }, CLOCK_MS);
  }

  get isInPanel() {
    return this.panel.owner === this.answer.id;
  }

  /** Where a channel's text goes; nowhere while the panel shows another message. */
  textOf(channel) {
    if (channel === "answer") return this.answer.blocks;
    return this.isInPanel ? this.panel.blocks : null;
  }

  reset(reasoning, answer) {
    this.textOf("reasoning")?.reset(reasoning);
    this.answer.blocks.reset(answer);
  }

  onState(state) {
    this.state = state;
    this.answer.showState(state);
  }

  onSnapshot(snapshot) {
    this.onState(snapshot);
    this.reset(snapshot.reasoning.blocks, snapshot.answer.blocks);
    if (this.isInPanel) this.panel.showNotes(snapshot.notes);
    if (snapshot.progress) this.onProgress(snapshot.progress);
  }

  onProgress(progress) {
    this.progress = progress;
    this.progressAt = performance.now();
    this.showProgress();
  }

  /** How long it has taken so far, its wait in the line included as far as this page has seen it. */
  get seconds() {
    return Math.max((performance.now() - this.since) / 1000, this.progress?.elapsed_s ?? 0);
  }

  countOn() {
    if (this.isLong || this.seconds < LONG_S) return;
    this.isLong = true;
    this.onLong();
  }

  onConnected(isConnected) {
    if (isConnected) this.onHeard();
    if (isConnected === this.isConnected) return;
    this.isConnected = isConnected;
    if (isConnected) this.answer.showState(this.state);
    else this.answer.showReconnecting();
  }

  /** Between two progress events our own clock runs on. */
  showProgress() {
    const { progress } = this;
    if (!progress || !this.isConnected) return;
    const since = progress.thinking ? (performance.now() - this.progressAt) / 1000 : 0;
    this.answer.showProgress(progress, progress.thinking_s + since);
    if (!progress.thinking) this.panel.makeRoom();
    if (this.isInPanel) this.panel.setProgress(progress, progress.thinking_s + since);
  }

  close() {
    this.reader.close();
    clearInterval(this.timer);
  }
}
