// The panel beside the chat: the reasoning of one message, live or from before.

import { api } from "./api.js";
import { Blocks } from "./blocks.js";
import { button, element, Flag, iconButton, isPhone, seconds } from "./dom.js";
import { Follow } from "./follow.js";
import { me } from "./me.js";
import { TEXT } from "./texts.js";

export class Panel {
  /** `host` is Gradio's column; `shell` carries the class that shows it. `onChange` hears of opening, closing and owner. */
  constructor(host, shell, onChange) {
    this.host = host;
    this.shell = shell;
    this.onChange = onChange;
    this.owner = null;
    this.closedByHand = new Flag("sessionStorage", "ponder.panel-closed");
    this.build();
  }

  build() {
    this.stats = element("p", { className: "stats" });
    this.fill = element("span");
    this.bar = element("div", { className: "track", role: "progressbar", "aria-label": TEXT.budget, "aria-valuemin": "0" }, this.fill);
    this.barText = element("span", { className: "budget-text" });
    this.answerNow = button(TEXT.answerNow, () => this.onAnswerNow?.(), { className: "answer-now", title: TEXT.answerNowHint });
    this.budget = element("div", { className: "budget", hidden: true }, element("div", {}, this.barText, this.bar), this.answerNow);
    const empty = element("p", { className: "panel-empty", text: TEXT.noReasoning });
    this.text = element("div", { className: "ponder reasoning-text" });
    this.scroller = element(
      "div",
      { className: "panel-scroll", tabindex: "0", role: "region", "aria-label": TEXT.reasoningText },
      empty,
      this.text,
    );
    this.follow = new Follow(this.scroller, this.text, TEXT.jump);
    this.blocks = new Blocks(this.text);
    const close = iconButton("close", TEXT.closePanel, () => this.close({ isByHand: true }));
    const title = element("h2", { text: TEXT.reasoning });
    this.host.setAttribute("role", "complementary");
    this.host.setAttribute("aria-label", TEXT.reasoning);
    this.host.replaceChildren(
      element("header", { className: "panel-head" }, element("div", {}, title, this.stats), close),
      this.budget,
      this.scroller,
      this.follow.pill,
    );
  }

  /** The person's settings; to have it open by itself again takes back that it was closed by hand. */
  apply({ panel_opens: opens, panel_figures: hasFigures, panel_follows: follows }, before) {
    if (opens && before?.panel_opens === false) this.closedByHand.set("0");
    this.host.classList.toggle("plain", !hasFigures);
    this.follow.allow(follows);
  }

  get isOpen() {
    return this.shell.classList.contains("panel-open");
  }

  get wasClosedByHand() {
    return this.closedByHand.get() === "1";
  }

  open() {
    this.opener = document.activeElement;
    this.shell.classList.add("panel-open");
    this.onChange();
  }

  openByHand() {
    this.closedByHand.set("0");
    this.open();
  }

  close({ isByHand = false } = {}) {
    if (isByHand) this.closedByHand.set("1");
    const hadFocus = this.host.contains(document.activeElement);
    this.shell.classList.remove("panel-open");
    this.onChange();
    // On a phone the focus would bring up the keyboard
    const isGood = this.opener?.isConnected && !(isPhone() && this.opener.matches("textarea"));
    if (hadFocus && isGood) this.opener.focus();
  }

  /** Show a message's live reasoning; once there is some, it opens by itself unless it was closed by hand. */
  startLive(owner, onAnswerNow) {
    this.clear(owner);
    this.isToOpen = me.settings.panel_opens && !this.wasClosedByHand && !this.isOpen;
    this.openedItself = false;
    this.onAnswerNow = () => {
      this.answerNow.disabled = true;
      onAnswerNow();
    };
  }

  openItself() {
    if (this.isToOpen) {
      this.openedItself = true;
      this.open();
    }
    this.isToOpen = false;
  }

  /** The reasoning is over: where the panel covers the answer, and came by itself, it goes. */
  makeRoom() {
    if (this.openedItself && isPhone()) this.close();
    this.openedItself = false;
  }

  /** Show the reasoning of an earlier message. */
  async showStored(owner, summary) {
    this.clear(owner);
    this.setSummary(summary);
    this.openByHand();
    this.follow.isOn = false;
    try {
      const { html, notes } = await api.reasoning(owner);
      if (this.owner !== owner) return;
      this.blocks.show(html);
      for (const note of notes) this.blocks.note(note.text);
      this.scroller.scrollTop = 0;
    } catch (error) {
      if (this.owner === owner) this.blocks.note(error.message, { isBad: true });
    }
  }

  clear(owner = null) {
    this.owner = owner;
    this.blocks.reset();
    this.stats.textContent = "";
    this.budget.hidden = true;
    this.answerNow.disabled = false;
    this.follow.set(true);
    this.host.classList.remove("live");
    this.onChange();
  }

  setProgress(progress, thinkingSeconds) {
    const { reasoning_tokens: written, thinking_budget: budget, tokens_per_s: rate, thinking } = progress;
    const isThinking = thinking && budget > 0;
    if (isThinking) this.openItself();
    this.showFigures(seconds(thinkingSeconds), isThinking ? null : written, rate);
    this.host.classList.toggle("live", isThinking);
    this.budget.hidden = !isThinking;
    if (!isThinking) return;
    this.barText.textContent = TEXT.ofBudget(written, budget);
    this.bar.setAttribute("aria-valuemax", budget);
    this.bar.setAttribute("aria-valuenow", Math.min(written, budget));
    this.fill.style.transform = `scaleX(${Math.min(1, written / budget)})`;
    this.answerNow.hidden = written === 0;
  }

  setSummary({ tokens, thinking_s: thinkingSeconds, tokens_per_s: rate }) {
    // Of what came from a file nothing is known
    this.showFigures(thinkingSeconds === null ? TEXT.imported : TEXT.thoughtFor(thinkingSeconds), tokens, rate);
    this.host.classList.remove("live");
    this.budget.hidden = true;
  }

  showFigures(time, tokens, rate) {
    const parts = [time];
    if (tokens !== null) parts.push(TEXT.tokens(tokens));
    if (rate) parts.push(TEXT.rate(rate));
    this.stats.textContent = parts.join(" · ");
  }
}
