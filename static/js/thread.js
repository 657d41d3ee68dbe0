// The messages of one conversation, in the middle of the page.

import { Blocks } from "./blocks.js";
import { button, copyText, count, element, seconds } from "./dom.js";

const ENDINGS = {
  stopped: "Stopped. What was written is kept.",
  interrupted: "The server was restarted in the middle of this. What was written is kept.",
  failed: "This could not be answered.",
};

/** The messages from the root to the leaf, oldest first. */
export function branch(messages, leafId) {
  const byId = new Map(messages.map((message) => [message.id, message]));
  const found = [];
  for (let at = byId.get(leafId); at; at = byId.get(at.parent_id)) found.unshift(at);
  return found;
}

export function questionView(text) {
  return element("article", { className: "question", "aria-label": "You" }, element("p", { text, dir: "auto" }));
}

/** One answer: chip, text, notes, actions; live or finished. */
export class AnswerView {
  constructor(message, { onChip, onAgain }) {
    this.id = message.id;
    this.text = message.text;
    this.onAgain = onAgain;
    this.chip = button("", () => onChip(this), { className: "chip", hidden: true });
    this.status = element("p", { className: "status", role: "status" });
    this.body = element("div", { className: "ponder answer-text" });
    this.blocks = new Blocks(this.body);
    this.notes = element("div", { className: "notes" });
    this.actions = element("div", { className: "actions", hidden: true });
    this.root = element("article", { className: "answer", "aria-label": "Answer" }, this.chip, this.status, this.body, this.notes, this.actions);
    if (message.html) this.blocks.reset([message.html]);
    if (message.run) this.showRun(message.run, message.reasoning);
  }

  get isThinking() {
    return this.root.classList.contains("thinking");
  }

  showRun(run, reasoning) {
    this.run = run;
    this.reasoning = reasoning && { ...reasoning, tokens_per_s: run.timing?.tokens_per_s };
    if (run.state === "queued" || run.state === "running") return;
    this.root.classList.remove("thinking", "live");
    if (this.reasoning) this.setChip(`Thought for ${seconds(this.reasoning.thinking_s)}`);
    else this.chip.hidden = true;
    this.showEnding(run);
    this.showNotes(run.notes ?? []);
    this.showActions(run);
  }

  showState({ state, place, stage }) {
    this.root.classList.add("live");
    if (state === "running") this.status.textContent = "";
    else if (stage) this.status.textContent = `Waiting for the model: ${stage.toLowerCase()} …`;
    else this.status.textContent = place === 1 ? "Waiting: one question is before yours." : `Waiting: ${place} questions are before yours.`;
  }

  showProgress(progress, thinkingSeconds) {
    this.root.classList.toggle("thinking", progress.thinking);
    if (progress.thinking) this.setChip(`Thinking … ${seconds(thinkingSeconds)}`);
    else if (progress.reasoning_tokens) this.setChip(`Thought for ${seconds(thinkingSeconds)}`);
  }

  showEnding(run) {
    const text = run.error?.message ?? ENDINGS[run.state] ?? "";
    this.status.textContent = text;
    this.status.classList.toggle("bad", run.state === "failed");
  }

  showNotes(notes) {
    const shown = notes.filter((note) => !["opening", "stopped"].includes(note.kind));
    this.notes.replaceChildren(...shown.map((note) => element("p", { className: "note", text: note.text })));
  }

  showActions(run) {
    const copy = button("Copy", async () => {
      await copyText(this.text);
      copy.textContent = "Copied";
      setTimeout(() => (copy.textContent = "Copy"), 1500);
    });
    this.actions.replaceChildren();
    if (this.text) this.actions.append(copy);
    if (run.state !== "done") this.actions.append(button("Ask again", () => this.onAgain(this)));
    const { usage, timing } = run;
    if (usage && timing?.tokens_per_s) {
      const figures = `${count(usage.answer_tokens)} tokens · ${timing.tokens_per_s.toFixed(1)} tok/s`;
      this.actions.append(element("span", { className: "figures", text: figures }));
    }
    this.actions.hidden = !this.actions.childElementCount;
  }

  setChip(text) {
    this.chip.hidden = false;
    if (this.chip.textContent !== text) this.chip.textContent = text;
  }
}
