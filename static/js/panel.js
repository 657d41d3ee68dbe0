// The panel beside the chat: the reasoning of one message, live or from before.

import { api } from "./api.js";
import { Blocks } from "./blocks.js";
import { button, count, element, iconButton, seconds } from "./dom.js";
import { Follow } from "./follow.js";

export class Panel {
  /** `host` is Gradio's column; `shell` carries the class that shows it. */
  constructor(host, shell, onToggle) {
    this.host = host;
    this.shell = shell;
    this.onToggle = onToggle;
    this.owner = null;
    this.wasClosedByHand = false;
    this.build();
  }

  build() {
    this.title = element("h2", { text: "Reasoning" });
    this.stats = element("p", { className: "stats" });
    this.fill = element("span");
    this.bar = element("div", { className: "budget", hidden: true }, this.fill);
    this.text = element("div", { className: "ponder reasoning-text" });
    this.scroller = element("div", { className: "panel-scroll", tabindex: "0", role: "region", "aria-label": "Reasoning text" }, this.text);
    this.follow = new Follow(this.scroller, this.text, "Jump to latest");
    this.blocks = new Blocks(this.text);
    this.answerNow = button("Answer now", () => this.onAnswerNow?.(), {
      className: "answer-now",
      hidden: true,
      title: "Stop reasoning and write the answer from it",
    });
    const close = iconButton("close", "Close the reasoning panel", () => this.close({ isByHand: true }));
    this.host.setAttribute("role", "complementary");
    this.host.setAttribute("aria-label", "Reasoning");
    this.host.replaceChildren(
      element("header", { className: "panel-head" }, element("div", {}, this.title, this.stats), this.answerNow, close),
      this.bar,
      this.scroller,
      this.follow.pill,
    );
  }

  get isOpen() {
    return this.shell.classList.contains("panel-open");
  }

  open() {
    this.shell.classList.add("panel-open");
    this.onToggle(true);
  }

  close({ isByHand = false } = {}) {
    if (isByHand) this.wasClosedByHand = true;
    this.shell.classList.remove("panel-open");
    this.onToggle(false);
  }

  /** Hold a message's live reasoning from now on. */
  startLive(owner, onAnswerNow) {
    this.clear(owner);
    this.onAnswerNow = () => {
      this.answerNow.disabled = true;
      onAnswerNow();
    };
  }

  /** The model begins to reason: open, unless the person closed the panel before. */
  appear() {
    if (this.wasClosedByHand || this.isOpen) return;
    this.opensItself = true;
    this.open();
  }

  /** The reasoning is over: where the panel covers the answer, and came by itself, it goes. */
  makeRoom() {
    if (this.opensItself && matchMedia("(max-width: 767px)").matches) this.close();
    this.opensItself = false;
  }

  /** Show the reasoning of an earlier message. */
  async showStored(owner, summary) {
    this.wasClosedByHand = false;
    this.clear(owner);
    this.setSummary(summary);
    this.open();
    this.follow.isOn = false;
    try {
      const { html, notes } = await api.reasoning(owner);
      if (this.owner !== owner) return;
      this.blocks.reset([html]);
      for (const note of notes) this.blocks.note(note.text);
      this.scroller.scrollTop = 0;
    } catch (error) {
      this.blocks.note(error.message);
    }
  }

  clear(owner = null) {
    this.owner = owner;
    this.blocks.reset();
    this.stats.textContent = "";
    this.bar.hidden = true;
    this.answerNow.hidden = true;
    this.answerNow.disabled = false;
    this.follow.set(true);
    this.host.classList.remove("live");
  }

  setProgress(progress, thinkingSeconds) {
    const { reasoning_tokens: written, thinking_budget: budget, tokens_per_s: rate, thinking } = progress;
    const parts = [seconds(thinkingSeconds), `${count(written)} tokens`];
    if (rate) parts.push(`${rate.toFixed(1)} tok/s`);
    this.stats.textContent = parts.join(" · ");
    this.host.classList.toggle("live", thinking);
    this.answerNow.hidden = !(thinking && budget > 0 && written > 0);
    this.bar.hidden = !(thinking && budget > 0);
    this.bar.title = `${count(written)} of ${count(budget)} tokens`;
    this.fill.style.width = `${Math.min(100, (100 * written) / (budget || 1))}%`;
  }

  setSummary({ tokens, thinking_s: thinkingSeconds, tokens_per_s: rate }) {
    const parts = [`Thought for ${seconds(thinkingSeconds)}`, `${count(tokens)} tokens`];
    if (rate) parts.push(`${rate.toFixed(1)} tok/s`);
    this.stats.textContent = parts.join(" · ");
    this.host.classList.remove("live");
    this.answerNow.hidden = true;
    this.bar.hidden = true;
  }
}
