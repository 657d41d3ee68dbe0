// Ponder's page. Gradio draws the empty parts; this joins them to the HTTP API. A run belongs to the server: this page
// only reads it, and may be closed and opened again at any time.

import { api, ApiError, newKey } from "./js/api.js";
import { noticeAccepted } from "./js/dialogs.js";
import { button, copyText, drawn, element, iconButton } from "./js/dom.js";
import { Follow } from "./js/follow.js";
import { Panel } from "./js/panel.js";
import { RunReader } from "./js/reader.js";
import { Sidebar } from "./js/sidebar.js";
import { AnswerView, branch, questionView } from "./js/thread.js";

const EXAMPLES = [
  "How many r in strawberry.",
  "Prove that the square root of 2 is irrational.",
  "A bat and a ball cost $1.10 together. The bat costs $1 more than the ball. What does the ball cost?",
  "Write a Python function that finds the longest palindrome in a string, and say how fast it is.",
];
const MODEL_POLL_MS = 1000;

class Page {
  async start() {
    const parts = ["shell", "sidebar", "new-chat", "conversations", "model-card", "chat", "thread", "composer", "effort", "send", "reasoning"];
    const found = await Promise.all(parts.map((id) => drawn(`#${id}`)));
    parts.forEach((id, index) => (this[id.replace(/-(.)/g, (_, letter) => letter.toUpperCase())] = found[index]));
    this.input = await drawn("#question textarea");
    this.drafts = new Map();
    this.conversation = null;
    this.answers = [];
    this.build();
    this.bind();
    this.watchModel();
    await this.list.refresh();
    await this.route();
    document.body.classList.add("ponder-ready");
  }

  build() {
    this.panel = new Panel(this.reasoning, this.shell, (isOpen) => this.panelToggle?.setAttribute("aria-expanded", String(isOpen)));
    this.list = new Sidebar(this.sidebar, this.conversations, this.modelCard, {
      onOpen: (id) => this.go(id),
      onDeleted: (id) => this.conversation?.id === id && this.go(null),
      onProblem: (message) => this.alert(message),
    });
    this.menuToggle = iconButton("menu", "Chats", () => this.toggleDrawer(), { className: "icon-button menu", "aria-expanded": "false" });
    this.panelToggle = iconButton("panel", "Reasoning panel", () => this.togglePanel(), { className: "icon-button toggle-panel", "aria-expanded": "false" });
    this.heading = element("p", { className: "heading" });
    this.chat.prepend(element("header", { id: "topbar" }, this.menuToggle, this.heading, this.panelToggle));
    this.scrim = element("div", { className: "scrim", onclick: () => this.toggleDrawer(false) });
    this.shell.append(this.scrim);
    this.messages = element("div", { className: "messages", role: "log", "aria-live": "off", "aria-label": "Conversation" });
    this.thread.append(this.messages);
    this.follow = new Follow(this.thread, this.messages, "Jump to latest");
    this.notices = element("div", { className: "notices" });
    this.announcer = element("p", { className: "off-screen", role: "status", "aria-live": "polite" });
    this.composer.prepend(this.follow.pill, this.notices);
    this.composer.append(
      element("p", { className: "hint", text: "Enter sends, Shift+Enter breaks the line. Answers can be wrong." }),
      this.announcer,
    );
    this.input.setAttribute("aria-label", "Your question");
    this.effort.setAttribute("aria-label", "How long to think");
  }

  bind() {
    // Capture: Gradio's own handler for Enter must not see it
    this.input.addEventListener("keydown", (event) => this.onKey(event), { capture: true });
    this.input.addEventListener("input", () => this.onInput());
    this.send.addEventListener("click", () => (this.reader ? this.stop() : this.submit()));
    this.newChat.addEventListener("click", () => this.go(null));
    window.addEventListener("hashchange", () => this.route());
    window.addEventListener("beforeunload", (event) => this.input.value.trim() && event.preventDefault());
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.onEscape());
    document.addEventListener("click", (event) => this.onCopyCode(event));
  }

  // The model

  async watchModel() {
    try {
      this.model = await api.model();
      this.list.showModel(this.model);
      this.showModelProblem();
      if (this.welcome) this.describeWelcome();
    } catch {
      // The next poll tells; what the person does meanwhile has errors of its own
    }
    setTimeout(() => this.watchModel(), this.model?.state === "ready" ? 15 * MODEL_POLL_MS : MODEL_POLL_MS);
  }

  showModelProblem() {
    const { state, problem, remedy } = this.model;
    this.modelProblem?.remove();
    this.modelProblem = null;
    if (state !== "failed") return;
    this.modelProblem = element("div", { className: "notice bad", role: "alert" }, element("p", { text: problem }), element("p", { text: remedy }));
    this.notices.prepend(this.modelProblem);
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
    this.alert("");
    if (id) await this.openConversation(id);
    else this.showWelcome();
    this.setText(this.drafts.get(id) ?? "");
    if (matchMedia("(min-width: 768px)").matches) this.input.focus();
  }

  leave() {
    if (this.input.value.trim()) this.drafts.set(this.conversation?.id ?? null, this.input.value);
    else this.drafts.delete(this.conversation?.id ?? null);
    this.detach();
    this.panel.clear();
    this.panel.close();
    this.conversation = null;
    this.answers = [];
    this.messages.replaceChildren();
    this.welcome = null;
    this.heading.textContent = "";
    this.showContext(null);
  }

  async openConversation(id) {
    this.opening = id;
    try {
      const conversation = await api.conversation(id);
      if (this.opening === id) this.showConversation(conversation);
    } catch (error) {
      if (this.opening !== id) return;
      if (error.code === "not_found") this.showMissing();
      else this.alert(error.message);
    }
  }

  showConversation(conversation) {
    this.conversation = conversation;
    this.heading.textContent = conversation.title;
    for (const message of branch(conversation.messages, conversation.leaf_id)) this.append(message);
    this.showContext(conversation.context);
    this.follow.set(true);
    const last = this.answers.at(-1);
    if (last?.run && ["queued", "running"].includes(last.run.state)) this.attach(last);
  }

  append(message) {
    if (message.role === "user") {
      this.messages.append(questionView(message.text));
      return null;
    }
    const view = new AnswerView(message, {
      onChip: (answer) => this.onChip(answer),
      onAgain: (answer) => this.askAgain(answer),
    });
    view.parentId = message.parent_id;
    this.answers.push(view);
    this.messages.append(view.root);
    return view;
  }

  showWelcome() {
    this.about = element("p", { className: "welcome-model" });
    const examples = EXAMPLES.map((text) => button(text, () => this.tryExample(text), { className: "example" }));
    this.welcome = element(
      "section",
      { className: "welcome" },
      element("h2", { text: "Ask something hard." }),
      element("p", { text: "Watch the model think beside the chat, then read its answer here." }),
      this.about,
      element("div", { className: "examples" }, ...examples),
    );
    this.messages.replaceChildren(this.welcome);
    if (this.model) this.describeWelcome();
  }

  describeWelcome() {
    const { title, is_demo: isDemo } = this.model;
    this.about.textContent = !title ? "" : isDemo ? `${title} answers: a small stand-in, often wrong.` : `${title} answers.`;
  }

  tryExample(text) {
    this.setText(text);
    this.input.focus();
  }

  showMissing() {
    this.messages.replaceChildren(
      element(
        "section",
        { className: "welcome" },
        element("h2", { text: "This chat is not here." }),
        element("p", { text: "It may have been deleted, or it belongs to another browser." }),
        button("Start a new chat", () => this.go(null), { className: "example" }),
      ),
    );
  }

  showContext(context) {
    this.contextNotice?.remove();
    this.contextNotice = null;
    const turns = context?.turns_left_out_next ?? 0;
    if (!turns) return;
    const what = turns === 1 ? "the oldest question and its answer" : `the oldest ${turns} questions and their answers`;
    this.contextNotice = element("p", { className: "notice", text: `This chat is long: the model will not see ${what} with your next message.` });
    this.notices.append(this.contextNotice);
  }

  // Sending

  onKey(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (!this.reader) this.submit();
  }

  onInput() {
    this.pendingKey = null;
    if (this.input.value) this.alert("");
  }

  async submit() {
    const text = this.input.value;
    if (this.isSending) return;
    if (!text.trim()) {
      this.alert("Write something first.");
      return;
    }
    if (!(await noticeAccepted(this.model))) return;
    await this.post(text, {});
  }

  askAgain(answer) {
    const question = this.conversation.messages.find((message) => message.id === answer.parentId);
    if (question && !this.reader) this.post(question.text, { parent_id: question.parent_id });
  }

  /** Send; the composer keeps its text until the server has it. */
  async post(text, where) {
    this.isSending = true;
    this.send.disabled = true;
    this.pendingKey ??= newKey();
    try {
      const conversation = this.conversation ?? (await this.begin());
      const options = { effort: this.effort.querySelector("input:checked")?.value ?? "normal" };
      const accepted = await api.send(conversation.id, { text, client_key: this.pendingKey, options, ...where });
      this.pendingKey = null;
      this.alert("");
      if (this.input.value === text) this.setText("");
      await this.showAccepted(conversation.id);
      this.list.refresh();
      return accepted;
    } catch (error) {
      if (error instanceof ApiError && error.code === "conversation_busy") await this.showAccepted(this.conversation.id);
      this.alert(error.message ?? String(error));
    } finally {
      this.isSending = false;
      this.send.disabled = false;
    }
  }

  async begin() {
    this.conversation = { ...(await api.newConversation()), messages: [] };
    this.list.select(this.conversation.id);
    history.replaceState(null, "", `#/c/${this.conversation.id}`);
    return this.conversation;
  }

  /** Show the conversation as the server has it, with the run that just began. */
  async showAccepted(id) {
    const conversation = await api.conversation(id);
    if (this.conversation?.id !== id) return;
    this.detach();
    this.answers = [];
    this.messages.replaceChildren();
    this.welcome = null;
    this.showConversation(conversation);
  }

  // The live run

  attach(answer) {
    this.live = answer;
    this.clock = { progress: null, at: 0 };
    const panel = this.panel;
    panel.startLive(answer.id, () => this.orderAnswer(answer.run.id));
    answer.blocks.reset();
    const isShown = () => panel.owner === answer.id;
    this.reader = new RunReader(answer.run.id, {
      state: (state) => answer.showState(state),
      block: ({ channel, html }) => (channel === "answer" ? answer.blocks.block(html) : isShown() && panel.blocks.block(html)),
      tail: ({ channel, html }) => (channel === "answer" ? answer.blocks.showTail(html) : isShown() && panel.blocks.showTail(html)),
      note: ({ text }) => isShown() && panel.blocks.note(text),
      resplit: () => {
        answer.blocks.reset();
        if (isShown()) panel.blocks.reset();
      },
      snapshot: (snapshot) => this.showSnapshot(answer, snapshot),
      progress: (progress) => {
        this.clock = { progress, at: performance.now() };
        this.showProgress();
      },
      done: (done) => this.onDone(answer, done),
      lost: () => this.onLost(),
    });
    this.timer = setInterval(() => this.showProgress(), 250);
    answer.showState(answer.run);
    this.setButton();
  }

  showSnapshot(answer, snapshot) {
    answer.showState(snapshot);
    answer.blocks.reset(snapshot.answer.blocks);
    if (this.panel.owner === answer.id) {
      this.panel.blocks.reset(snapshot.reasoning.blocks);
      for (const note of snapshot.notes) this.panel.blocks.note(note.text);
    }
    if (snapshot.progress) this.clock = { progress: snapshot.progress, at: performance.now() };
  }

  showProgress() {
    const { progress, at } = this.clock;
    if (!progress || !this.live) return;
    const since = progress.thinking ? (performance.now() - at) / 1000 : 0;
    this.live.showProgress(progress, progress.thinking_s + since);
    if (!progress.thinking) this.panel.makeRoom();
    if (this.panel.owner !== this.live.id) return;
    this.panel.setProgress(progress, progress.thinking_s + since);
    if (progress.thinking && progress.thinking_budget) this.panel.appear();
  }

  detach() {
    this.reader?.close();
    clearInterval(this.timer);
    this.reader = this.timer = this.live = null;
    this.setButton();
  }

  async onDone(answer, done) {
    this.detach();
    this.panel.makeRoom();
    const { id } = this.conversation;
    this.announcer.textContent = done.state === "done" ? "The answer is ready." : "The answer has ended.";
    this.list.refresh();
    try {
      const conversation = await api.conversation(id);
      if (this.conversation?.id !== id) return;
      this.conversation = conversation;
      this.heading.textContent = conversation.title;
      const message = conversation.messages.find((one) => one.id === answer.id);
      answer.text = message.text;
      answer.showRun(message.run, message.reasoning);
      if (this.panel.owner === answer.id && answer.reasoning) this.panel.setSummary(answer.reasoning);
      else if (this.panel.owner === answer.id) this.panel.close();
      this.showContext(conversation.context);
    } catch (error) {
      answer.showRun({ ...answer.run, ...done }, null);
      this.alert(error.message);
    }
  }

  async onLost() {
    const id = this.conversation?.id;
    this.detach();
    if (id) await this.showAccepted(id).catch((error) => this.alert(error.message));
  }

  async stop() {
    const runId = this.live?.run.id;
    this.send.disabled = true;
    await api.stop(runId).catch((error) => this.alert(error.message));
    this.send.disabled = false;
  }

  orderAnswer(runId) {
    api.answerNow(runId).catch((error) => this.alert(error.message));
  }

  onChip(answer) {
    const panel = this.panel;
    if (panel.owner === answer.id && panel.isOpen) panel.close({ isByHand: true });
    else if (panel.owner === answer.id) panel.open();
    else if (answer === this.live) this.reattach(answer);
    else if (answer.reasoning) panel.showStored(answer.id, answer.reasoning);
  }

  /** The panel showed another message meanwhile: read the live run anew. */
  reattach(answer) {
    this.panel.wasClosedByHand = false;
    this.detach();
    this.attach(answer);
    this.panel.open();
  }

  // Around it

  setButton() {
    const isLive = Boolean(this.reader);
    if (this.send.textContent.trim() !== (isLive ? "Stop" : "Send")) this.send.textContent = isLive ? "Stop" : "Send";
    this.send.classList.toggle("stop", isLive);
  }

  setText(text) {
    this.input.value = text;
    // Gradio sizes the box and keeps its own copy on input
    this.input.dispatchEvent(new Event("input", { bubbles: true }));
  }

  alert(message) {
    this.problem?.remove();
    this.problem = null;
    if (!message) return;
    this.problem = element("p", { className: "notice bad", role: "alert", text: message });
    this.notices.append(this.problem);
  }

  togglePanel() {
    const panel = this.panel;
    if (panel.isOpen) panel.close({ isByHand: true });
    else if (panel.owner) panel.open();
    else {
      const last = this.answers.findLast((answer) => answer.reasoning);
      if (last) panel.showStored(last.id, last.reasoning);
      else panel.open();
    }
  }

  toggleDrawer(isOpen = !this.shell.classList.contains("drawer-open")) {
    const wasOpen = this.shell.classList.contains("drawer-open");
    this.shell.classList.toggle("drawer-open", isOpen);
    this.menuToggle.setAttribute("aria-expanded", String(isOpen));
    if (isOpen) this.newChat.focus();
    else if (wasOpen) this.menuToggle.focus();
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
    const before = copy.textContent;
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = before), 1500);
  }
}

/** A long block goes on in the elements behind it. */
function wholeCode(block) {
  let text = block.querySelector("code").textContent;
  for (let next = block.nextElementSibling; next?.matches(".code.cont"); next = next.nextElementSibling) {
    text += next.querySelector("code").textContent;
  }
  return text;
}

new Page().start();
