// The composer: the text, how long to think, Send or Stop, and what there is to say right above them.

import { button, element, icon, pause } from "./dom.js";
import { me } from "./me.js";
import { TEXT } from "./texts.js";

export class Composer {
  /** `input`, `effort` and `send` are Gradio's; `onSend` gets nothing and reads `text`. */
  constructor(host, { input, effort, send }, { onSend, onStop, onTryAgain, announcer, pill }) {
    Object.assign(this, { host, input, effort, sendButton: send, onSend, onStop, onTryAgain, announcer });
    this.isLive = false;
    this.notices = element("div", { className: "notices" });
    host.prepend(pill, this.notices);
    host.append(element("p", { className: "hint", text: TEXT.hint }), announcer);
    input.setAttribute("aria-label", TEXT.question);
    input.placeholder = TEXT.placeholder;
    for (const [name, text] of Object.entries(TEXT.efforts)) this.effortLabel(name)?.querySelector("span")?.replaceChildren(text);
    effort.setAttribute("role", "radiogroup");
    // Gradio gives each a name of its own, again after every choice; with one name they are one tab stop, and arrow
    // keys move among them
    const join = () => {
      for (const input of effort.querySelectorAll("input[type=radio]")) if (input.name !== "ponder-effort") input.name = "ponder-effort";
    };
    join();
    new MutationObserver(join).observe(effort, { subtree: true, childList: true, attributes: true, attributeFilter: ["name"] });
    effort.setAttribute("aria-label", TEXT.effort);
    // Capture: Gradio's own handler for Enter must not see it
    input.addEventListener("keydown", (event) => this.onKey(event), { capture: true });
    input.addEventListener("input", () => input.value && this.alert(""));
    send.addEventListener("click", (event) => this.onClick(event));
    // What stands at the foot of the page stands above all of it
    new ResizeObserver(() => document.body.style.setProperty("--p-foot", `${host.offsetHeight}px`)).observe(host);
    this.setLive(false);
  }

  get text() {
    return this.input.value;
  }

  set text(text) {
    this.input.value = text;
    // Gradio sizes the box and keeps its own copy on input
    this.input.dispatchEvent(new Event("input", { bubbles: true }));
  }

  get chosenEffort() {
    return this.effort.querySelector("input:checked")?.value ?? "normal";
  }

  effortLabel(name) {
    return this.effort.querySelector(`input[value="${name}"]`)?.closest("label");
  }

  setEffort(name) {
    if (this.chosenEffort !== name) this.effortLabel(name)?.click();
  }

  onKey(event) {
    // 229: the Enter that ends a composition in Safari comes after it
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (this.isLive) this.holdBack();
    else this.onSend();
  }

  /** Nothing can be sent while an answer is being written; said, as Enter would seem to be broken. */
  holdBack() {
    const sentence = this.text.trim() ? TEXT.stillAnsweringText : TEXT.stillAnswering;
    this.held?.remove();
    this.held = notice([sentence]);
    this.notices.append(this.held);
    this.announcer.textContent = sentence;
  }

  onClick(event) {
    // The second click of a double click on Send would land on Stop
    if (event.detail > 1) return;
    if (this.isLive) this.onStop();
    else this.onSend();
  }

  /** Send or Stop. */
  setLive(isLive) {
    this.isLive = isLive;
    if (!isLive) this.held?.remove();
    const label = isLive ? TEXT.stop : TEXT.send;
    if (this.sendButton.textContent.trim() !== label) this.sendButton.textContent = label;
    this.sendButton.classList.toggle("stop", isLive);
  }

  setBusy(isBusy) {
    pause(this.sendButton, isBusy);
  }

  /** What went wrong with the last thing the person did; "" takes it away. `code` says what it was. */
  alert(message, code = "") {
    this.problem?.remove();
    this.problemCode = code;
    this.problem = message ? notice([message], { isBad: true }) : null;
    if (this.problem) this.notices.append(this.problem);
  }

  /** Say again what is wrong with the model; false where nothing is. */
  repeatModelProblem() {
    if (this.modelProblem) this.notices.prepend(this.modelProblem);
    return Boolean(this.modelProblem);
  }

  /** What was wrong is over. */
  forgive(code) {
    if (this.problemCode === code) this.alert("");
  }

  showModel({ state, problem, remedy, efforts }) {
    // What to do about it is for those who run the server, and nobody else can
    const known = me.person.is_admin ? [problem, remedy].filter(Boolean) : [];
    const sentences = state === "failed" ? (known.length ? known : [TEXT.modelFailed]) : [];
    // An alert that is put in anew at every poll would be read aloud at every poll
    if ((this.modelSaid ?? "") !== sentences.join("")) {
      this.modelProblem?.remove();
      this.modelSaid = sentences.join("");
      this.modelProblem = sentences.length ? notice(sentences, { isBad: true }) : null;
      this.modelProblem?.append(button(TEXT.tryAgain, () => this.onTryAgain(), { className: "try-again" }));
      if (this.modelProblem) this.notices.prepend(this.modelProblem);
    }
    for (const { name, thinking_tokens: tokens } of efforts) {
      const label = this.effortLabel(name);
      if (label) label.title = TEXT.effortTokens(tokens);
    }
  }

  /** What of the conversation the next message leaves out. */
  showContext(context) {
    this.contextNotice?.remove();
    const turns = context?.turns_left_out_next ?? 0;
    this.contextNotice = turns ? notice([TEXT.leavesOut(turns)]) : null;
    if (this.contextNotice) this.notices.append(this.contextNotice);
  }
}

function notice(sentences, { isBad = false } = {}) {
  const texts = element("div", {}, ...sentences.map((text) => element("p", { text })));
  if (!isBad) return element("div", { className: "notice" }, texts);
  return element("div", { className: "notice bad", role: "alert" }, icon("warning"), texts);
}
