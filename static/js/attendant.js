// Attends the run of the last answer: joins its stream to the page, and finds it again when it is lost.

import { api } from "./api.js";
import { rest } from "./focus.js";
import { LiveRun } from "./live.js";
import { TEXT } from "./texts.js";
import { isOpen } from "./thread.js";

const FIRST_RETRY_MS = 500;
const MOST_RETRY_MS = 10_000;

export class Attendant {
  constructor(page) {
    Object.assign(this, { page, live: null, retryMs: FIRST_RETRY_MS });
  }

  /** Read the run of the last answer, if it goes on. */
  attachLast() {
    const last = this.page.answers.at(-1);
    if (last && isOpen(last.run)) this.attach(last);
  }

  attach(answer) {
    this.detach();
    const { panel, composer } = this.page;
    this.live = new LiveRun(answer, panel, {
      onDone: (done) => this.onDone(answer, done),
      onLost: () => this.onLost(answer),
      onHeard: () => (this.retryMs = FIRST_RETRY_MS),
      onAnswerNow: () => api.answerNow(answer.run.id).catch((error) => this.page.tell(error)),
    });
    composer.setLive(true);
    this.page.chat.classList.add("is-live");
  }

  detach() {
    this.live?.close();
    this.live = null;
    this.page.composer.setLive(false);
    this.page.chat.classList.remove("is-live");
  }

  async onDone(answer, done) {
    const { page } = this;
    const { visit } = page;
    const { id } = page.conversation;
    this.detach();
    page.panel.makeRoom();
    page.announcer.textContent = done.state === "done" ? TEXT.ready : TEXT.ended;
    page.list.refresh();
    if (done.state === "failed") page.watch.read();
    try {
      const conversation = await api.conversation(id);
      if (page.visit !== visit) return;
      page.conversation = conversation;
      const message = conversation.messages.find((one) => one.id === answer.id);
      if (message) this.finish(answer, message);
      page.composer.showContext(conversation.context);
    } catch (error) {
      if (page.visit !== visit) return;
      answer.showRun({ ...answer.run, ...done }, null);
      page.tell(error);
    }
  }

  finish(answer, message) {
    answer.text = message.text;
    answer.showRun(message.run, message.reasoning);
    const { panel } = this.page;
    if (panel.owner !== answer.id) return;
    if (answer.reasoning) panel.setSummary(answer.reasoning);
    else panel.showNone();
  }

  /** The stream ended without a done, as after a restart of the server: read anew what there is, until it works. */
  async onLost(answer) {
    const { page } = this;
    const { visit } = page;
    const { id } = page.conversation;
    this.detach();
    answer.showReconnecting();
    while (page.visit === visit && !this.live) {
      await new Promise((resolve) => setTimeout(resolve, this.retryMs));
      this.retryMs = Math.min(2 * this.retryMs, MOST_RETRY_MS);
      if (page.visit === visit && !this.live && (await this.isShownAnew(id, visit))) return;
    }
  }

  async isShownAnew(id, visit) {
    const { page } = this;
    try {
      const conversation = await api.conversation(id);
      if (page.visit === visit) page.showConversation(conversation);
    } catch (error) {
      if (error.code !== "not_found") return false;
      if (page.visit === visit) await page.openConversation(id);
    }
    return true;
  }

  async stop() {
    const { id } = this.live;
    rest();
    this.page.composer.setBusy(true);
    await api.stop(id).catch((error) => this.page.tell(error));
    this.page.composer.setBusy(false);
  }
}
