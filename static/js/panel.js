// The panel beside the chat: the reasoning of one message, live or from before.

import { api } from "./api.js";
import { Blocks } from "./blocks.js";
import { button, element, Flag, iconButton, isPhone, pause, seconds } from "./dom.js";
import { hasTouchKeyboard, isUsable, rest } from "./focus.js";
import { Follow } from "./follow.js";
import { me } from "./me.js";
import { TEXT } from "./texts.js";
import { thought } from "./thread.js";

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
    this.empty = element("p", { className: "panel-empty", text: TEXT.noReasoning });
    // Behind all text, where they stand when the chat is opened again
    this.notes = element("div", { className: "panel-notes" });
    this.text = element("div", { className: "ponder reasoning-text" });
    const content = element("div", {}, this.empty, this.text, this.notes);
    this.scroller = element(
      "div",
      { className: "panel-scroll", tabindex: "0", role: "region", "aria-label": TEXT.reasoningText },
      content,
    );
    this.follow = new Follow(this.scroller, content, TEXT.jump);
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
    const wasOpen = this.isOpen;
    this.shell.classList.add("panel-open");
    if (!wasOpen && !this.host.classList.contains("live")) this.follow.toStart();
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
    if (!hadFocus) return;
    const isGood = this.opener && isUsable(this.opener) && !(hasTouchKeyboard() && this.opener.matches("textarea"));
    if (isGood) this.opener.focus();
    else rest();
  }

  /** Show a message's live reasoning; once there is some, it opens by itself unless it was closed by hand. */
  startLive(owner, onAnswerNow) {
    this.clear(owner);
    this.isToOpen = me.settings.panel_opens && !this.wasClosedByHand && !this.isOpen;
    this.openedItself = false;
    this.onAnswerNow = () => {
      rest();
      pause(this.answerNow);
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
    this.follow.toStart();
    try {
      const { html, notes } = await api.reasoning(owner);
      if (this.owner !== owner) return;
      this.blocks.show(html);
      this.showNotes(notes);
      this.follow.toStart();
    } catch (error) {
      if (this.owner === owner) this.note(error.message, { isBad: true });
    }
  }

  note(text, { isBad = false } = {}) {
    this.notes.append(element("p", { className: isBad ? "note bad" : "note", text }));
  }

  showNotes(notes) {
    this.notes.replaceChildren();
    for (const { text } of notes) this.note(text);
  }

  /** The answer came without reasoning: an open panel says so, and stays. */
  showNone() {
    this.empty.textContent = TEXT.withoutReasoning;
    this.stats.textContent = "";
    this.host.classList.remove("live");
    this.budget.hidden = true;
  }

  clear(owner = null) {
    this.owner = owner;
    this.blocks.reset();
    this.notes.replaceChildren();
    this.empty.textContent = TEXT.noReasoning;
    this.stats.textContent = "";
    this.budget.hidden = true;
    pause(this.answerNow, false);
    this.follow.set(true);
    this.host.classList.remove("live");
    this.onChange();
  }

  setProgress(progress, thinkingSeconds) {
    const { reasoning_tokens: written, thinking_budget: budget, tokens_per_s: rate, thinking: isThinking } = progress;
    if (budget === 0) {
      this.showNone();
      return;
    }
    this.host.classList.toggle("live", isThinking);
    if (isThinking) this.openItself();
    this.showFigures(isThinking ? seconds(thinkingSeconds) : TEXT.thoughtFor(thinkingSeconds), isThinking ? null : written, rate);
    this.budget.hidden = !isThinking;
    if (!isThinking) return;
    this.barText.textContent = TEXT.ofBudget(written, budget);
    this.bar.setAttribute("aria-valuemax", budget);
    this.bar.setAttribute("aria-valuenow", Math.min(written, budget));
    this.fill.style.transform = `scaleX(${Math.min(1, written / budget)})`;
    this.answerNow.hidden = written === 0;
  }

  setSummary(summary) {
    const { tokens, tokens_per_s: rate } = summary;
    this.showFigures(thought(summary) || (tokens === null ? TEXT.imported : ""), tokens, rate);
    this.host.classList.remove("live");
    this.budget.hidden = true;
  }

  showFigures(time, tokens, rate) {
    const parts = time ? [time] : [];
    if (tokens) parts.push(TEXT.tokens(tokens));
    if (rate) parts.push(TEXT.rate(rate));
    this.stats.textContent = parts.join(" · ");
  }
}
