// Ponder's page. Gradio draws the empty parts; this joins them to the HTTP API. A run belongs to the server: this page
// only reads it, and may be closed and opened again at any time.

import { Desk } from "./js/account/desk.js";
import { AdminView } from "./js/admin/view.js";
import { api } from "./js/api.js";
import { Attendant } from "./js/attendant.js";
import { arrows, questionView, siblingsOf } from "./js/branches.js";
import { Composer } from "./js/composer.js";
import { copyText, drawn, element, flash, iconButton, isNarrow, isPhone } from "./js/dom.js";
import { Drawer } from "./js/drawer.js";
import { Follow } from "./js/follow.js";
import { me } from "./js/me.js";
import { Panel } from "./js/panel.js";
import { isDialog, placeOf } from "./js/routes.js";
import { Sending } from "./js/sending.js";
import { Sidebar } from "./js/sidebar.js";
import { isTemporaryId, TEMPORARY, Temporary } from "./js/temporary.js";
import { loadTexts, TEXT } from "./js/texts.js";
import { AnswerView, branch, wholeCode } from "./js/thread.js";
import { Topbar } from "./js/topbar.js";
import { Versions } from "./js/versions.js";
import { ModelWatch } from "./js/watch.js";
import { absence, Welcome } from "./js/welcome.js";

/** What stands for a conversation's id while the administration is shown. */
const ADMIN = "#admin";

class Page {
  async start() {
    const isMeRead = me.read();
    const ids = ["shell", "sidebar", "new-chat", "conversations", "model-card", "chat", "thread", "composer", "effort", "send", "reasoning"];
    const found = await Promise.all(ids.map((id) => drawn(`#${id}`)));
    const parts = Object.fromEntries(ids.map((id, index) => [id, found[index]]));
    parts.input = await drawn("#question textarea");
    await isMeRead;
    await loadTexts(me.settings.language);
    /** Unsent text by conversation id; null is the new chat, TEMPORARY the new temporary one. */
    this.drafts = new Map();
    this.shownId = null;
    /** Counts what is shown: an answer to a request of an earlier visit comes too late. */
    this.visit = 0;
    this.answers = [];
    this.build(parts);
    this.bind();
    this.watch = new ModelWatch({ onModel: (model) => this.onModel(model), onUnreachable: () => this.list.card.showUnreachable() });
    this.list.refresh();
    await this.route({ isFirst: true });
    if (me.person.was_signed_out) this.desk.onSignedOut();
    document.body.classList.add("ponder-ready");
  }

  build(parts) {
    Object.assign(this, { shell: parts.shell, chat: parts.chat, newChat: parts["new-chat"], thread: parts.thread });
    this.panel = new Panel(parts.reasoning, this.shell, () => this.onPanel());
    this.list = new Sidebar(parts.sidebar, parts.conversations, parts["model-card"], {
      open: (id) => this.go(id),
      hit: (item) => this.onHit(item),
      changed: (item) => this.onChanged(item),
      deleted: (id) => this.onDeleted(id),
      restored: (id) => this.onRestored(id),
      problem: (error) => this.tell(error),
      read: () => this.showTitle(),
      reveal: () => isNarrow() && this.drawer.toggle(true),
    });
    this.newChat.textContent = TEXT.newChat;
    this.drawer = new Drawer(this.shell, this.newChat, [this.chat, parts.reasoning]);
    this.panelToggle = iconButton("panel", TEXT.reasoningPanel, () => this.togglePanel(), {
      className: "icon-button toggle-panel",
      "aria-controls": "reasoning",
      "aria-expanded": "false",
    });
    this.topbar = new Topbar(this.drawer.button, this.panelToggle, { deeds: this.list.deeds, item: () => this.conversation });
    this.chat.prepend(this.topbar.root);
    this.messages = element("div", { className: "messages", role: "log", "aria-live": "off", "aria-label": TEXT.conversation });
    this.thread.append(this.messages);
    this.temporary = new Temporary(this.thread, { onStart: () => this.goTo("#/temporary"), onBack: () => this.route({ isForced: true }) });
    this.list.brand.append(this.temporary.button);
    this.follow = new Follow(this.thread, this.messages, TEXT.jump);
    this.announcer = element("p", { className: "off-screen", role: "status", "aria-live": "polite" });
    this.composer = new Composer(parts.composer, parts, {
      onSend: () => this.sending.submit(),
      onStop: () => this.attendant.stop(),
      announcer: this.announcer,
      pill: this.follow.pill,
    });
    this.attendant = new Attendant(this);
    this.sending = new Sending(this);
    this.versions = new Versions(this);
    this.desk = new Desk(parts.sidebar, this);
  }

  bind() {
    this.newChat.addEventListener("click", () => this.go(null));
    window.addEventListener("hashchange", () => this.route());
    window.addEventListener("beforeunload", (event) => {
      if (this.hasText()) event.preventDefault();
    });
    document.addEventListener("keydown", (event) => event.key === "Escape" && !event.isComposing && this.onEscape());
    document.addEventListener("click", (event) => this.onCopyCode(event));
    document.addEventListener("visibilitychange", () => document.hidden || this.onBack());
    window.addEventListener("focus", () => this.onBack());
  }

  /** Look what other tabs have done meanwhile; a window that comes into sight and gets the focus does both at once. */
  async onBack() {
    if (this.isComingBack) return;
    this.isComingBack = true;
    this.desk.onVisible();
    await this.list.refresh();
    this.isComingBack = false;
    const listed = this.list.list.find(this.conversation?.id);
    const isNewer = listed && listed.updated_at !== this.conversation.updated_at;
    if (isNewer && !this.attendant.live && !this.sending.isBusy && !this.isEditing) await this.openConversation(listed.id);
  }

  get isEditing() {
    return Boolean(this.messages.querySelector(".editor"));
  }

  onModel(model) {
    this.list.card.show(model);
    this.composer.showModel(model);
    this.welcome?.showModel(model);
    if (!me.isKnown) me.read();
  }

  /** What went wrong, above the composer; that the session has ended is said in the middle already. */
  tell(error) {
    if (error.code !== "signed_out") this.composer.alert(error.message ?? String(error));
  }

  // The person

  hasText() {
    return Boolean(this.composer.text.trim() || this.drafts.size);
  }

  forgetText() {
    this.leave();
    this.composer.text = "";
    this.drafts.clear();
  }

  onSettings(settings, before) {
    this.panel.apply(settings, before);
    if (settings.effort !== before?.effort) this.composer.setEffort(settings.effort);
  }

  /** Somebody else is here now: their chats are shown; what stands in the composer stays. */
  onPerson({ isOther }) {
    const { text } = this.composer;
    if (isOther) this.drafts.clear();
    this.list.clear();
    this.list.refresh();
    const toNew = () => {
      this.composer.text = "";
      this.drafts.set(null, text);
      this.go(null);
    };
    return this.route({ isForced: true, onMissing: toNew });
  }

  onSignedOut() {
    const { text } = this.composer;
    this.leave();
    this.drafts.delete(this.shownId);
    this.drawer.toggle(false);
    this.list.clear();
    const { title, about, aboutText } = TEXT.signedOut;
    this.showMiddle(absence(title, text.trim() ? aboutText : about, [TEXT.account.signIn, () => this.desk.signIn()]));
  }

  // Which conversation

  /** Of what is shown, under whatever dialog. */
  get address() {
    if (this.shownId === ADMIN || this.shownId === TEMPORARY) return this.shownId.replace("#", "#/");
    return this.shownId ? `#/c/${this.shownId}` : "#/";
  }

  go(id) {
    this.goTo(id ? `#/c/${id}` : "#/");
  }

  goTo(hash) {
    this.drawer.toggle(false);
    if (location.hash === hash) this.route();
    else location.hash = hash;
  }

  /** `isFirst`: the page has just been opened; `isForced`: show it anew; `onMissing` is for a chat that is not there. */
  async route({ isFirst = false, isForced = false, onMissing } = {}) {
    const place = placeOf(location.hash);
    this.desk.follow(place, { isFirst });
    if (isDialog(place) && !isFirst) return;
    const id = place.kind === "chat" ? place.id : null;
    if (id && id === this.conversation?.id && !isForced) return;
    this.leave();
    this.list.select(id);
    this.isTemporary = place.kind === "temporary";
    this.shownId = { admin: ADMIN, temporary: TEMPORARY }[place.kind] ?? id;
    this.composer.alert("");
    this.composer.text = this.drafts.get(this.shownId) ?? "";
    this.drafts.delete(this.shownId);
    if (!isPhone()) this.composer.input.focus();
    if (id) await this.openConversation(id, { onMissing });
    else if (place.kind === "admin") this.showAdmin();
    else this.showMiddle(this.newWelcome());
    this.showTemporary();
  }

  showTemporary() {
    this.temporary.show(this.isTemporary || Boolean(this.conversation?.is_temporary), this.conversation?.id);
  }

  showAdmin() {
    if (!me.person.is_admin) {
      this.showMissing();
      return;
    }
    this.adminView = new AdminView();
    this.showMiddle(this.adminView.root);
    this.shell.classList.add("at-admin");
    this.follow.allow(false);
    this.showTitle();
  }

  leave() {
    if (this.composer.text.trim()) this.drafts.set(this.shownId, this.composer.text);
    this.visit += 1;
    this.adminView?.close();
    this.adminView = null;
    this.shell.classList.remove("at-admin");
    this.follow.allow(true);
    this.attendant.detach();
    this.panel.clear();
    this.panel.close();
    this.conversation = null;
    this.answers = [];
    this.welcome = null;
    this.messages.replaceChildren();
    this.showTitle();
    this.composer.showContext(null);
  }

  async openConversation(id, { onMissing = () => this.showMissing() } = {}) {
    const visit = this.visit;
    try {
      const conversation = await api.conversation(id);
      if (this.visit === visit) this.showConversation(conversation);
    } catch (error) {
      if (this.visit !== visit) return;
      if (error.code === "not_found") onMissing();
      else this.showMiddle(absence(TEXT.notLoaded, error.message, [TEXT.tryAgain, () => this.route()]));
    }
  }

  showMissing() {
    if (isTemporaryId(this.shownId)) {
      this.showMiddle(absence(TEXT.temporary.gone, TEXT.temporary.goneAbout, [TEXT.startNew, () => this.go(null)]));
      return;
    }
    const ways = [[TEXT.startNew, () => this.go(null)]];
    if (!me.isAccount) ways.push([TEXT.account.signIn, () => this.desk.signIn()]);
    this.showMiddle(absence(TEXT.missing, me.isAccount ? TEXT.missingAbout : TEXT.missingAboutUnknown, ...ways));
  }

  /** Show a conversation as the server has it, from its first message on. */
  showConversation(conversation) {
    this.attendant.detach();
    this.conversation = conversation;
    this.answers = [];
    this.welcome = null;
    this.messages.replaceChildren();
    this.showTitle();
    for (const message of branch(conversation.messages, conversation.leaf_id)) this.append(message);
    if (!conversation.messages.length) this.showMiddle(this.newWelcome());
    this.composer.showContext(conversation.context);
    this.showTemporary();
    this.follow.toEnd();
    this.attendant.attachLast();
    if (this.versions.hit) this.versions.showHit();
  }

  append(message) {
    const siblings = siblingsOf(this.conversation, message);
    const onShow = (id) => this.versions.show(id);
    if (message.role === "user") {
      const onEdit = (text) => this.sending.edit(message, text);
      this.messages.append(questionView(message, siblings, { onEdit, onShow }));
      return;
    }
    const view = new AnswerView(message, {
      onChip: (answer) => this.onChip(answer),
      onAgain: (answer) => this.sending.askAgain(answer),
      branches: arrows(siblings, message.id, onShow),
    });
    this.answers.push(view);
    this.messages.append(view.root);
  }

  /** Something in place of messages. */
  showMiddle(shown) {
    this.middle = shown;
    this.messages.replaceChildren(shown);
    this.thread.scrollTop = 0;
  }

  clearMiddle() {
    this.middle?.remove();
    this.middle = this.welcome = null;
  }

  newWelcome() {
    this.welcome = new Welcome((text) => {
      this.composer.text = text;
      this.composer.input.focus();
    });
    if (this.watch?.model) this.welcome.showModel(this.watch.model);
    return this.welcome.root;
  }

  showTitle() {
    const listed = this.list.list.find(this.conversation?.id);
    if (listed) this.takeItem(listed);
    this.topbar.show(this.adminView ? TEXT.admin.title : this.conversation?.title);
  }

  /** What the list knows of the open chat, but for its messages. */
  takeItem({ title, is_pinned, is_archived, version }) {
    Object.assign(this.conversation, { title, is_pinned, is_archived, version });
  }

  // What is done in the list

  onHit(item) {
    this.drawer.toggle(false);
    this.versions.open(item);
  }

  onChanged(item) {
    if (this.conversation?.id !== item.id) return;
    this.takeItem(item);
    this.showTitle();
  }

  onRestored(id) {
    // Somebody who is reading or writing elsewhere by now stays there
    if (id && !this.conversation && !this.composer.text.trim()) this.go(id);
  }

  onAllDeleted() {
    if (this.conversation && !this.conversation.is_temporary) this.onDeleted(this.conversation.id);
    return this.list.refresh();
  }

  onDeleted(id) {
    this.drafts.delete(id);
    if (this.shownId !== id) return;
    this.composer.text = "";
    this.go(null);
  }

  // The panel

  onPanel() {
    const { isOpen: isShown, owner } = this.panel ?? {};
    this.panelToggle?.setAttribute("aria-expanded", String(isShown));
    for (const answer of this.answers) answer.chip.setAttribute("aria-expanded", String(isShown && owner === answer.id));
  }

  onChip(answer) {
    const { panel } = this;
    if (panel.owner === answer.id && panel.isOpen) panel.close({ isByHand: true });
    else if (panel.owner === answer.id) panel.openByHand();
    else if (answer === this.attendant.live?.answer) this.showLiveAgain(answer);
    else if (answer.reasoning) panel.showStored(answer.id, answer.reasoning);
  }

  /** The panel showed another message meanwhile, and what came for this one is not in it: read the run anew. */
  showLiveAgain(answer) {
    this.panel.openByHand();
    this.attendant.attach(answer);
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

  onEscape() {
    if (document.querySelector("dialog[open]")) return;
    if (this.drawer.isOpen) this.drawer.toggle(false);
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
