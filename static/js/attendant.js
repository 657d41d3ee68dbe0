// Attends the run of the last answer: joins its stream to the page, and finds it again when it is lost.

import { api } from "./api.js";
import { later } from "./clock.js";
import { wishNotifications } from "./bell.js";
import { rest } from "./focus.js";
import { me } from "./me.js";
import { LiveRun } from "./live.js";
import { TEXT } from "./texts.js";
import { isOpen } from "./thread.js";

const FIRST_RETRY_MS = 500;
const MOST_RETRY_MS = 10_000;
const HIDDEN_POLL_MS = 4000;

export class Attendant {
  constructor(page) {
    Object.assign(this, { page, live: null, retryMs: FIRST_RETRY_MS });
    document.addEventListener("visibilitychange", () => this.lookNowAndThen());
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
      onLong: () => this.offer(answer),
      onAnswerNow: () => api.answerNow(answer.run.id).catch((error) => this.page.tell(error)),
    });
    composer.setLive(true);
    this.page.tab.think(true);
    this.page.chat.classList.add("is-live");
    this.lookNowAndThen();
  }

  /** Who has waited long is asked once whether to be told. */
  offer(answer) {
    const { bell } = this.page;
    if (!bell.isToOffer) return;
    answer.showOffer({
      onYes: async () => answer.showTold((await wishNotifications()) ? TEXT.bell.willTell : TEXT.bell.blocked),
      onNo: () => me.change({ notify: "off" }).catch((error) => this.page.tell(error)),
    });
  }

  /** A hidden page has let its stream go: it asks whether the run is over. */
  lookNowAndThen() {
    this.unlook?.();
    const { live } = this;
    this.unlook = live && document.hidden ? later(HIDDEN_POLL_MS, () => this.look(live)) : null;
  }

  async look(live) {
    const { id, title } = this.page.conversation;
    const run = await api.run(live.id).catch(() => null);
    if (this.live !== live || !document.hidden) return;
    if (!run || isOpen(run)) this.lookNowAndThen();
    else this.ring(live, { id, title, state: run.state });
  }

  ring(live, { id, title, state }) {
    this.page.tab.think(false);
    if (state !== "stopped") this.page.bell.ring({ runId: live.id, id, title, state, isShown: true, isLong: live.isLong });
  }

  detach() {
    this.live?.close();
    this.live = null;
    this.page.composer.setLive(false);
    this.page.tab.think(false);
    this.page.chat.classList.remove("is-live");
  }

  async onDone(answer, done) {
    const { page } = this;
    const { visit } = page;
    const { id, title } = page.conversation;
    const { live } = this;
    this.detach();
    answer.dropOffer();
    page.panel.makeRoom();
    this.ring(live, { id, title, state: done.state });
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
