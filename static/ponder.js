// Ponder's page. Gradio draws the empty parts; this joins them to the HTTP API. A run belongs to the server: this page
// only reads it, and may be closed and opened again at any time.

import { api, ApiError, newKey } from "./js/api.js";
import { Composer } from "./js/composer.js";
import { noticeAccepted } from "./js/dialogs.js";
import { copyText, drawn, element, flash, iconButton, isNarrow, isPhone } from "./js/dom.js";
import { Follow } from "./js/follow.js";
import { LiveRun } from "./js/live.js";
import { Panel } from "./js/panel.js";
import { Sidebar } from "./js/sidebar.js";
import { TEXT } from "./js/texts.js";
import { AnswerView, branch, isOpen, questionView, wholeCode } from "./js/thread.js";
import { absence, Welcome } from "./js/welcome.js";

const MODEL_POLL_MS = 1000;
const READY_POLL_MS = 15_000;
const FIRST_RETRY_MS = 500;
const MOST_RETRY_MS = 10_000;

class Page {
  async start() {
    const ids = ["shell", "sidebar", "new-chat", "conversations", "model-card", "chat", "thread", "composer", "effort", "send", "reasoning"];
    const found = await Promise.all(ids.map((id) => drawn(`#${id}`)));
    const parts = Object.fromEntries(ids.map((id, index) => [id, found[index]]));
    parts.input = await drawn("#question textarea");
    /** Unsent text by conversation id; null is the new chat. */
    this.drafts = new Map();
    this.shownId = null;
    /** Counts what is shown: an answer to a request of an earlier visit comes too late. */
    this.visit = 0;
    this.retryMs = FIRST_RETRY_MS;
    this.answers = [];
    this.build(parts);
    this.bind();
    this.watchModel();
    this.list.refresh();
    await this.route();
    document.body.classList.add("ponder-ready");
  }

  build(parts) {
    Object.assign(this, { shell: parts.shell, chat: parts.chat, newChat: parts["new-chat"], thread: parts.thread });
    this.panel = new Panel(parts.reasoning, this.shell, () => this.onPanel());
    this.list = new Sidebar(parts.sidebar, parts.conversations, parts["model-card"], {
      onOpen: (id) => this.go(id),
      onDeleted: (id) => this.onDeleted(id),
      onProblem: (message) => this.composer.alert(message),
      onTitles: () => this.showTitle(),
    });
    this.menuToggle = iconButton("menu", TEXT.chats, () => this.toggleDrawer(), {
      className: "icon-button menu",
      "aria-controls": "sidebar",
      "aria-expanded": "false",
    });
    this.panelToggle = iconButton("panel", TEXT.reasoningPanel, () => this.togglePanel(), {
      className: "icon-button toggle-panel",
      "aria-controls": "reasoning",
      "aria-expanded": "false",
    });
    this.heading = element("h1", { className: "heading" });
    this.chat.prepend(element("header", { id: "topbar" }, this.menuToggle, this.heading, this.panelToggle));
    this.scrim = element("div", { className: "scrim", onclick: () => this.toggleDrawer(false) });
    this.shell.append(this.scrim);
    this.messages = element("div", { className: "messages", role: "log", "aria-live": "off", "aria-label": TEXT.conversation });
    this.thread.append(this.messages);
    this.follow = new Follow(this.thread, this.messages, TEXT.jump);
    this.announcer = element("p", { className: "off-screen", role: "status", "aria-live": "polite" });
    this.composer = new Composer(parts.composer, parts, {
      onSend: () => this.submit(),
      onStop: () => this.stop(),
      announcer: this.announcer,
      pill: this.follow.pill,
    });
  }

  bind() {
    this.newChat.addEventListener("click", () => this.go(null));
    window.addEventListener("hashchange", () => this.route());
    window.addEventListener("beforeunload", (event) => {
      if (this.composer.text.trim() || this.drafts.size) event.preventDefault();
    });
    document.addEventListener("keydown", (event) => event.key === "Escape" && !event.isComposing && this.onEscape());
    document.addEventListener("click", (event) => this.onCopyCode(event));
    document.addEventListener("visibilitychange", () => document.hidden || this.list.refresh());
    matchMedia("(max-width: 1023px)").addEventListener("change", () => this.toggleDrawer(false));
  }

  // The model

  async watchModel() {
    if (!document.hidden) await this.readModel();
    setTimeout(() => this.watchModel(), this.model?.state === "ready" ? READY_POLL_MS : MODEL_POLL_MS);
  }

  async readModel() {
    try {
      this.model = await api.model();
      this.list.showModel(this.model);
      this.composer.showModel(this.model);
      this.welcome?.showModel(this.model);
    } catch {
      // What the person does meanwhile has errors of its own
      this.model = null;
      this.list.showUnreachable();
    }
  }

  // Which conversation

  go(id) {
    const hash = id ? `#/c/${id}` : "#/";
    this.toggleDrawer(false);
    if (location.hash === hash) this.route();
    else location.hash = hash;
  }

  async route() {
    const id = /^#\/c\/([\w-]+)$/.exec(location.hash)?.[1] ?? null;
    if (id && id === this.conversation?.id) return;
    this.leave();
    this.list.select(id);
    this.shownId = id;
    this.composer.alert("");
    this.composer.text = this.drafts.get(id) ?? "";
    this.drafts.delete(id);
    if (!isPhone()) this.composer.input.focus();
    if (id) await this.openConversation(id);
    else this.showMiddle(this.newWelcome());
  }

  leave() {
    if (this.composer.text.trim()) this.drafts.set(this.shownId, this.composer.text);
    this.visit += 1;
    this.detach();
    this.panel.clear();
    this.panel.close();
    this.conversation = null;
    this.answers = [];
    this.welcome = null;
    this.messages.replaceChildren();
    this.showTitle();
    this.composer.showContext(null);
  }

  async openConversation(id) {
    const visit = this.visit;
    try {
      const conversation = await api.conversation(id);
      if (this.visit === visit) this.showConversation(conversation);
    } catch (error) {
      if (this.visit !== visit) return;
      if (error.code === "not_found") this.showMiddle(absence(TEXT.missing, TEXT.missingAbout, TEXT.startNew, () => this.go(null)));
      else this.showMiddle(absence(TEXT.notLoaded, error.message, TEXT.tryAgain, () => this.route()));
    }
  }

  /** Show a conversation as the server has it, from its first message on. */
  showConversation(conversation) {
    this.detach();
    this.conversation = conversation;
    this.answers = [];
    this.welcome = null;
    this.messages.replaceChildren();
    this.showTitle();
    for (const message of branch(conversation.messages, conversation.leaf_id)) this.append(message);
    if (!conversation.messages.length) this.showMiddle(this.newWelcome());
    this.composer.showContext(conversation.context);
    this.follow.toEnd();
    this.attachLast();
  }

  append(message) {
    if (message.role === "user") {
      this.messages.append(questionView(message.text));
      return;
    }
    const view = new AnswerView(message, {
      onChip: (answer) => this.onChip(answer),
      onAgain: (answer) => this.askAgain(answer),
    });
    this.answers.push(view);
    this.messages.append(view.root);
  }

  /** Something in place of messages. */
  showMiddle(shown) {
    this.messages.replaceChildren(shown);
    this.thread.scrollTop = 0;
  }

  newWelcome() {
    this.welcome = new Welcome((text) => {
      this.composer.text = text;
      this.composer.input.focus();
    });
    if (this.model) this.welcome.showModel(this.model);
    return this.welcome.root;
  }

  showTitle() {
    const title = this.conversation ? this.list.titleOf(this.conversation.id) || this.conversation.title : "";
    this.heading.textContent = title || TEXT.brand;
    this.heading.classList.toggle("plain", !title);
    document.title = title ? `${title} · ${TEXT.brand}` : TEXT.brand;
  }

  onDeleted(id) {
    this.drafts.delete(id);
    if (this.shownId === id) {
      this.composer.text = "";
      this.go(null);
    }
    this.newChat.focus();
  }

  // Sending

  async submit() {
    const { text } = this.composer;
    if (this.isSending) return;
    if (!text.trim()) {
      this.composer.alert(TEXT.writeFirst);
      return;
    }
    if (await noticeAccepted(this.model)) await this.post(text);
  }

  askAgain(answer) {
    const question = this.conversation.messages.find(({ id }) => id === answer.parentId);
    if (question && !this.live && !this.isSending) this.post(question.text, { parent_id: question.parent_id });
  }

  /** Send; the composer keeps its text until the server has it. */
  async post(text, where = {}) {
    const { visit } = this;
    this.isSending = true;
    this.composer.setBusy(true);
    try {
      const conversation = this.conversation ?? (await this.begin(visit));
      const message = { text, client_key: this.keyFor(conversation.id, text, where), options: { effort: this.composer.chosenEffort }, ...where };
      const accepted = await api.send(conversation.id, message);
      this.attempt = null;
      this.forgetSent(conversation.id, text, visit);
      if (this.visit === visit) await this.showAccepted(accepted, text, where);
      this.list.refresh();
    } catch (error) {
      if (this.visit !== visit) return;
      if (error instanceof ApiError && error.code === "conversation_busy") await this.openConversation(this.conversation.id);
      this.composer.alert(error.message ?? String(error));
    } finally {
      this.isSending = false;
      this.composer.setBusy(false);
    }
  }

  /** One key for the same text in the same place, however often it is tried: the server takes it once. */
  keyFor(conversationId, text, { parent_id: parentId }) {
    const what = JSON.stringify([conversationId, text, parentId]);
    if (this.attempt?.what !== what) this.attempt = { what, key: newKey() };
    return this.attempt.key;
  }

  forgetSent(conversationId, text, visit) {
    if (this.visit === visit) {
      this.composer.alert("");
      if (this.composer.text === text) this.composer.text = "";
    }
    for (const id of [conversationId, null]) if (this.drafts.get(id) === text) this.drafts.delete(id);
  }

  async begin(visit) {
    const conversation = { ...(await api.newConversation()), messages: [] };
    if (this.visit === visit) {
      this.conversation = conversation;
      this.shownId = conversation.id;
      this.list.select(conversation.id);
      history.replaceState(null, "", `#/c/${conversation.id}`);
    }
    return conversation;
  }

  /** A question at the end is put behind what is there; one that begins a branch changes what is shown. */
  async showAccepted({ message_id: questionId, answer_id: answerId, run_id: runId, place }, text, where) {
    const { conversation } = this;
    const isKnown = conversation.messages.some(({ id }) => id === questionId);
    if ("parent_id" in where || isKnown) {
      await this.openConversation(conversation.id);
      return;
    }
    if (this.welcome) {
      this.welcome = null;
      this.messages.replaceChildren();
    }
    const run = { id: runId, state: place ? "queued" : "running", place, notes: [] };
    const question = { id: questionId, parent_id: conversation.leaf_id, role: "user", text };
    const answer = { id: answerId, parent_id: questionId, role: "assistant", text: "", html: "", reasoning: null, run };
    conversation.messages.push(question, answer);
    conversation.leaf_id = answerId;
    this.append(question);
    this.append(answer);
    this.follow.toEnd();
    this.attachLast();
  }

  // The live run

  /** Read the run of the last answer, if it goes on. */
  attachLast() {
    const last = this.answers.at(-1);
    if (last && isOpen(last.run)) this.attach(last);
  }

  attach(answer) {
    this.detach();
    this.live = new LiveRun(answer, this.panel, {
      onDone: (done) => this.onDone(answer, done),
      onLost: () => this.onLost(answer),
      onHeard: () => (this.retryMs = FIRST_RETRY_MS),
      onAnswerNow: () => api.answerNow(answer.run.id).catch((error) => this.composer.alert(error.message)),
    });
    this.composer.setLive(true);
  }

  detach() {
    this.live?.close();
    this.live = null;
    this.composer.setLive(false);
  }

  async onDone(answer, done) {
    const { visit } = this;
    const { id } = this.conversation;
    this.detach();
    this.panel.makeRoom();
    this.announcer.textContent = done.state === "done" ? TEXT.ready : TEXT.ended;
    this.list.refresh();
    try {
      const conversation = await api.conversation(id);
      if (this.visit !== visit) return;
      this.conversation = conversation;
      const message = conversation.messages.find((one) => one.id === answer.id);
      if (message) this.finish(answer, message);
      this.composer.showContext(conversation.context);
    } catch (error) {
      if (this.visit !== visit) return;
      answer.showRun({ ...answer.run, ...done }, null);
      this.composer.alert(error.message);
    }
  }

  finish(answer, message) {
    answer.text = message.text;
    answer.showRun(message.run, message.reasoning);
    if (this.panel.owner !== answer.id) return;
    if (answer.reasoning) {
      this.panel.setSummary(answer.reasoning);
      return;
    }
    this.panel.clear();
    this.panel.close();
  }

  /** The stream ended without a done, as after a restart of the server: read anew what there is, until it works. */
  async onLost(answer) {
    const { visit } = this;
    const { id } = this.conversation;
    this.detach();
    answer.showReconnecting();
    while (this.visit === visit && !this.live) {
      await new Promise((resolve) => setTimeout(resolve, this.retryMs));
      this.retryMs = Math.min(2 * this.retryMs, MOST_RETRY_MS);
      if (this.visit === visit && !this.live && (await this.isShownAnew(id, visit))) return;
    }
  }

  async isShownAnew(id, visit) {
    try {
      const conversation = await api.conversation(id);
      if (this.visit === visit) this.showConversation(conversation);
    } catch (error) {
      if (error.code !== "not_found") return false;
      if (this.visit === visit) await this.openConversation(id);
    }
    return true;
  }

  async stop() {
    const { id } = this.live;
    this.composer.setBusy(true);
    await api.stop(id).catch((error) => this.composer.alert(error.message));
    this.composer.setBusy(false);
  }

  // Panel and drawer

  onPanel() {
    const { isOpen: isShown, owner } = this.panel ?? {};
    this.panelToggle?.setAttribute("aria-expanded", String(isShown));
    for (const answer of this.answers) answer.chip.setAttribute("aria-expanded", String(isShown && owner === answer.id));
  }

  onChip(answer) {
    const { panel } = this;
    if (panel.owner === answer.id && panel.isOpen) panel.close({ isByHand: true });
    else if (panel.owner === answer.id) panel.openByHand();
    else if (answer === this.live?.answer) this.showLiveAgain(answer);
    else if (answer.reasoning) panel.showStored(answer.id, answer.reasoning);
  }

  /** The panel showed another message meanwhile, and what came for this one is not in it: read the run anew. */
  showLiveAgain(answer) {
    this.panel.openByHand();
    this.attach(answer);
  }

  togglePanel() {
    const { panel } = this;
    if (panel.isOpen) panel.close({ isByHand: true });
    else if (panel.owner) panel.openByHand();
    else {
      const last = this.answers.findLast((answer) => answer.reasoning);
      if (last) panel.showStored(last.id, last.reasoning);
      else panel.openByHand();
    }
  }

  toggleDrawer(isShown = !this.shell.classList.contains("drawer-open")) {
    const wasShown = this.shell.classList.contains("drawer-open");
    const isOver = isShown && isNarrow();
    this.shell.classList.toggle("drawer-open", isOver);
    this.menuToggle.setAttribute("aria-expanded", String(isOver));
    this.chat.inert = this.panel.host.inert = isOver;
    if (isOver) this.newChat.focus();
    else if (wasShown) this.menuToggle.focus();
  }

  onEscape() {
    if (document.querySelector("dialog[open]")) return;
    if (this.shell.classList.contains("drawer-open")) this.toggleDrawer(false);
    else if (this.panel.isOpen) this.panel.close({ isByHand: true });
  }

  async onCopyCode(event) {
    const copy = event.target.closest?.(".code .copy");
    if (!copy) return;
    await copyText(wholeCode(copy.closest(".code")));
    flash(copy, TEXT.copied);
  }
}

new Page().start();
