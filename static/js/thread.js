// The messages of one conversation, in the middle of the page.

import { Blocks } from "./blocks.js";
import { button, copyText, element, flash, icon } from "./dom.js";
import { TEXT } from "./texts.js";

/** The messages from the root to the leaf, oldest first. */
export function branch(messages, leafId) {
  const byId = new Map(messages.map((message) => [message.id, message]));
  const found = [];
  for (let at = byId.get(leafId); at; at = byId.get(at.parent_id)) found.unshift(at);
  return found;
}

export const isOpen = (run) => run?.state === "queued" || run?.state === "running";

/** How long it was thought; "" where that is not known, as of what came from a file. */
export const thought = ({ tokens, thinking_s: thinkingSeconds }) => (tokens || thinkingSeconds ? TEXT.thoughtFor(thinkingSeconds ?? 0) : "");

/** One answer: chip, text, notes, actions; live or finished. */
export class AnswerView {
  constructor(message, { onChip, onAgain, branches = "" }) {
    this.id = message.id;
    this.parentId = message.parent_id;
    this.text = message.text;
    this.onAgain = onAgain;
    this.chip = button("", () => onChip(this), { className: "chip", hidden: true, "aria-controls": "reasoning", "aria-expanded": "false" });
    this.status = element("p", { className: "status", role: "status" });
    this.body = element("div", { className: "ponder answer-text" });
    this.blocks = new Blocks(this.body);
    this.notes = element("div", { className: "notes" });
    this.offer = element("div", { className: "offer", role: "status", hidden: true });
    this.actions = element("div", { className: "actions", hidden: true });
    this.root = element("article", { className: "answer", "aria-label": TEXT.answer, "data-id": message.id }, this.chip, this.body, this.status, this.offer, this.notes, this.actions, branches);
    if (message.html) this.blocks.show(message.html);
    if (message.run) this.showRun(message.run, message.reasoning);
    else this.showImported(message);
  }

  showRun(run, reasoning) {
    this.run = run;
    this.reasoning = reasoning && { ...reasoning, tokens_per_s: run.timing?.tokens_per_s };
    if (isOpen(run)) return;
    this.root.classList.remove("thinking", "live");
    if (this.reasoning) this.setChip(thought(this.reasoning) || TEXT.reasoning);
    else this.chip.hidden = true;
    this.setStatus(run.error?.message ?? TEXT.endings[run.state] ?? "", run.state);
    this.showNotes(run.notes ?? []);
    this.showActions(run);
  }

  /** An answer from a file has no run: nothing is known of its making. */
  showImported(message) {
    this.reasoning = message.reasoning;
    if (this.reasoning) this.setChip(TEXT.reasoning);
    this.showActions({ state: "done" });
  }

  showState({ state, place, stage }) {
    this.root.classList.add("live");
    if (state === "running") this.setStatus("");
    else this.setStatus(stage ? TEXT.waitingFor(stage) : TEXT.waitingBehind(place), "waiting");
  }

  showReconnecting() {
    this.setStatus(TEXT.reconnecting, "waiting");
  }

  showProgress(progress, thinkingSeconds) {
    // Quick has no budget: what it is busy with before its first token is the answer
    const isThinking = progress.thinking && progress.thinking_budget > 0;
    this.root.classList.toggle("thinking", isThinking);
    if (isThinking) this.setChip(TEXT.thinking(thinkingSeconds));
    else if (progress.reasoning_tokens) this.setChip(TEXT.thoughtFor(thinkingSeconds));
    const isBeginning = !isThinking && progress.answer_tokens === 0;
    this.setStatus(isBeginning ? TEXT.writing : "", "waiting");
  }

  /** To be told when it is ready; nothing is asked of the browser before it is pressed. */
  showOffer({ onYes, onNo }) {
    const { offer, decline } = TEXT.bell;
    const no = () => {
      this.dropOffer();
      onNo();
    };
    this.offer.replaceChildren(button(offer, onYes, { className: "yes" }), button(decline, no, { className: "no" }));
    this.offer.hidden = false;
  }

  showTold(text) {
    if (!this.offer.hidden) this.offer.replaceChildren(element("p", { text }));
  }

  dropOffer() {
    this.offer.replaceChildren();
    this.offer.hidden = true;
  }

  setStatus(text, kind = "") {
    if (this.status.textContent === text) return;
    this.status.textContent = text;
    this.status.className = text ? `status ${kind === "failed" ? "failed bad" : kind}` : "status";
    if (text && kind === "failed") this.status.prepend(icon("warning"));
  }

  showNotes(notes) {
    const shown = notes.filter((note) => !["opening", "stopped"].includes(note.kind));
    this.notes.replaceChildren(...shown.map((note) => element("p", { className: "note", text: note.text })));
  }

  showActions({ state, usage, timing }) {
    this.actions.replaceChildren();
    if (this.text) this.actions.append(this.copyButton());
    const again = action("again", TEXT.askAgain, () => this.onAgain(this));
    again.classList.add("needs-idle");
    this.actions.append(again);
    if (usage?.answer_tokens && timing?.tokens_per_s) {
      const figures = `${TEXT.tokens(usage.answer_tokens)} · ${TEXT.rate(timing.tokens_per_s)}`;
      this.actions.append(element("span", { className: "figures", text: figures }));
    }
    this.actions.hidden = !this.actions.childElementCount;
  }

  copyButton() {
    const made = action("copy", TEXT.copy, async () => {
      await copyText(this.text);
      flash(made.lastElementChild, TEXT.copied);
    });
    return made;
  }

  setChip(text) {
    this.chip.hidden = false;
    if (this.chip.textContent !== text) this.chip.textContent = text;
  }
}

function action(iconName, text, onclick) {
  const made = element("button", { type: "button", onclick }, element("span", { text }));
  made.prepend(icon(iconName));
  return made;
}

/** What a code block's button copies: a long block goes on in the elements behind it. */
export function wholeCode(block) {
  let text = block.querySelector("code").textContent;
  for (let next = block.nextElementSibling; next?.matches(".code.cont"); next = next.nextElementSibling) {
    text += next.querySelector("code").textContent;
  }
  return text;
}
