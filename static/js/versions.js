// Which branch of the chat is shown, and finding a message in whichever it stands.

import { api } from "./api.js";
import { focusOn } from "./focus.js";

const FOUND_MS = 2500;

export class Versions {
  constructor(page) {
    this.page = page;
    this.hit = null;
  }

  viewOf(messageId) {
    return this.page.messages.querySelector(`[data-id="${CSS.escape(messageId)}"]`);
  }

  /** Show the branch through a message, which the server remembers; what is read stays where it is. */
  async show(messageId) {
    const { page } = this;
    const { visit } = page;
    const { id } = page.conversation;
    const focus = document.activeElement?.dataset?.focus;
    try {
      const item = await api.changeConversation(id, { leaf_id: messageId });
      const conversation = await api.conversation(id);
      page.list.onChanged(item);
      if (page.visit !== visit) return;
      page.showConversation(conversation);
      page.follow.set(false);
      this.viewOf(messageId)?.scrollIntoView({ block: "nearest" });
      this.showReasoningOf(messageId);
      this.focusAgain(focus);
    } catch (error) {
      if (page.visit === visit) page.tell(error);
    }
  }

  /** The panel goes along with what is shown. */
  showReasoningOf(messageId) {
    const { panel, answers } = this.page;
    if (!panel.isOpen || answers.some(({ id }) => id === panel.owner)) return;
    const answer = answers.find(({ id }) => id === messageId) ?? answers.findLast(({ reasoning }) => reasoning);
    if (answer?.reasoning) panel.showStored(answer.id, answer.reasoning);
    else panel.clear();
  }

  focusAgain(focus) {
    const again = focus && this.page.messages.querySelector(`[data-focus="${CSS.escape(focus)}"]`);
    if (again) (again.disabled ? again.parentElement.querySelector("button:not(:disabled)") : again)?.focus({ preventScroll: true });
  }

  /** The run that keeps this chat busy may stand in a branch that is not shown. */
  async showRunning() {
    const { conversation } = this.page;
    const running = conversation?.messages.find(({ run }) => run && run.id === conversation.running_run_id);
    if (running && !this.viewOf(running.id)) await this.show(running.id);
  }

  // A hit of the search

  open(item) {
    const { page } = this;
    this.hit = item.hit;
    if (page.conversation?.id === item.id) this.showHit();
    else page.go(item.id);
  }

  async showHit() {
    const { page } = this;
    const { visit } = page;
    const { message_id: messageId, where, text, marks } = this.hit ?? {};
    this.hit = null;
    if (!messageId) return;
    if (!this.viewOf(messageId)) await this.show(messageId);
    const view = this.viewOf(messageId);
    if (!view || page.visit !== visit) return;
    page.follow.set(false);
    const answer = page.answers.find(({ id }) => id === messageId);
    const words = marks.map(([start, end]) => text.slice(start, end));
    if (answer) await answer.blocks.settled();
    const passage = where === "answer" ? passageWith(words, view) : null;
    flash(passage ?? view, passage ? "center" : "start");
    focusOn(view);
    if (where !== "reasoning" || !answer?.reasoning) return;
    await page.panel.showStored(answer.id, answer.reasoning);
    const { panel } = page;
    await panel.blocks.settled();
    const there = panel.owner === answer.id && passageWith(words, panel.scroller);
    if (there) flash(there, "center");
  }
}

/** The first paragraph that has all these words. */
function passageWith(words, host) {
  const wanted = words.map((word) => word.toLowerCase());
  return [...host.querySelectorAll("p, li, pre, td, th, h1, h2, h3, h4, h5, h6")].find((block) => {
    const text = block.textContent.toLowerCase();
    return wanted.every((word) => text.includes(word));
  });
}

function flash(shown, block) {
  shown.scrollIntoView({ block });
  shown.classList.add("found");
  setTimeout(() => shown.classList.remove("found"), FOUND_MS);
}
