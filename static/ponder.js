// Ponder's page. Gradio draws the empty parts; this joins them to the HTTP API. A run belongs to the server: this page
// only reads it, and may be closed and opened again at any time.

import { Desk } from "./js/account/desk.js";
import { AdminView } from "./js/admin/view.js";
import { api } from "./js/api.js";
import { Attendant } from "./js/attendant.js";
import { arrows, questionView, siblingsOf } from "./js/branches.js";
import { Bell } from "./js/bell.js";
import { Composer } from "./js/composer.js";
import { copyText, drawn, element, flash, iconButton, isNarrow } from "./js/dom.js";
import { carried, carry } from "./js/drafts.js";
import { Drawer } from "./js/drawer.js";
import { focusOn, hasTouchKeyboard, isLost, rest, restAt, watchFocus } from "./js/focus.js";
import { Follow } from "./js/follow.js";
import { me } from "./js/me.js";
import { Panel } from "./js/panel.js";
import { isDialog, placeOf } from "./js/routes.js";
import { Sending } from "./js/sending.js";
import { Sidebar } from "./js/sidebar.js";
import { isLookedAt, Tab } from "./js/tab.js";
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
    const { drafts = [], edits = [], under = "" } = carried();
    this.drafts = new Map(drafts);
    /** Questions that were being edited when their chat was left: its id and the text, by message id. */
    this.edits = new Map(edits);
    /** What a dialog's address was opened over before the page reloaded itself. */
    this.under = under;
    this.shownId = null;
    /** Counts what is shown: an answer to a request of an earlier visit comes too late. */
    this.visit = 0;
    this.answers = [];
    this.tab = new Tab();
    this.build(parts);
    this.bind();
    this.watch = new ModelWatch({
      onModel: (model) => this.onModel(model),
      onUnreachable: () => this.onUnreachable(),
      onBack: () => this.onServerBack(),
    });
    this.list.refresh();
    await this.route({ isFirst: true });
    if (me.person.was_signed_out) this.desk.onSignedOut();
    document.body.classList.add("ponder-ready");
    // Before it is to be seen nothing can have the focus
    if (isLost() && !hasTouchKeyboard()) rest();
    watchFocus();
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
      problem: (error) => this.onListProblem(error),
      read: () => this.onListRead(),
      ended: (item, runId) => this.onEnded(item, runId),
      reveal: () => isNarrow() && this.drawer.toggle(true),
    });
    this.newChat.textContent = TEXT.newChat;
    document.body.prepend(element("a", { className: "skip", href: "#question", text: TEXT.skip, onclick: (event) => this.skip(event) }));
    this.drawer = new Drawer(this.shell, this.newChat, [this.chat, parts.reasoning]);
    this.panelToggle = iconButton("panel", TEXT.reasoningPanel, () => this.togglePanel(), {
      className: "icon-button toggle-panel",
      "aria-controls": "reasoning",
      "aria-expanded": "false",
    });
    this.topbar = new Topbar(this.drawer.button, this.panelToggle, { deeds: this.list.deeds, item: () => this.conversation, tab: this.tab });
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
      onTryAgain: () => this.watch.read(),
      announcer: this.announcer,
      pill: this.follow.pill,
    });
    this.bell = new Bell({ tab: this.tab, open: (id) => this.go(id) });
    this.attendant = new Attendant(this);
    this.sending = new Sending(this);
    this.versions = new Versions(this);
    this.desk = new Desk(parts.sidebar, this);
    restAt(() => this.restingPlace());
  }

  /** Where the focus goes when what had it is gone. */
  restingPlace() {
    if (this.drawer.isOpen) return this.newChat;
    if (this.adminView) return this.topbar.heading;
    return hasTouchKeyboard() ? (this.answers.at(-1)?.root ?? this.topbar.heading) : this.composer.input;
  }

  skip(event) {
    event.preventDefault();
    focusOn(this.adminView ? this.topbar.heading : this.composer.input);
  }

  bind() {
    this.newChat.addEventListener("click", () => this.go(null));
    window.addEventListener("hashchange", () => this.route());
    window.addEventListener("beforeunload", (event) => {
      if (this.hasText() && !this.isReloading) event.preventDefault();
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
    this.watch.read();
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
    if (model.state === "ready") this.composer.forgive("model_unavailable");
    this.composer.showModel(model);
    this.welcome?.showModel(model);
    if (!me.isKnown) me.read();
  }

  /** What went wrong, above the composer; that the session has ended is said in the middle already. */
  tell(error, more = "") {
    if (error.code === "signed_out") return;
    if (error.code === "model_unavailable") {
      this.tellModel();
      return;
    }
    if (error.code === "unreachable") this.watch.read();
    this.composer.alert([error.message ?? String(error), more].filter(Boolean).join(" "), error.code);
  }

  /** What is wrong with the model is said in one place, and once more to those who ask all the same. */
  async tellModel() {
    await this.watch.read();
    if (!this.composer.repeatModelProblem()) this.composer.alert(TEXT.modelFailed, "model_unavailable");
  }

  /** That the server cannot be reached is said at the model's card, and nobody has asked for the list. */
  onListProblem(error) {
    if (error.code === "unreachable") this.watch.read();
    else this.tell(error);
  }

  onUnreachable() {
    this.list.card.showUnreachable();
    this.composer.showModel({ state: "unknown", efforts: [] });
  }

  onServerBack() {
    this.composer.forgive("unreachable");
    this.list.refresh();
    if (this.isNotLoaded) this.openConversation(this.shownId);
  }

  // The person

  hasText() {
    return Boolean(this.composer.text.trim() || this.drafts.size || this.edits.size || this.beingEdited);
  }

  /** The message whose text is being changed, with the text so far. */
  get beingEdited() {
    const area = this.messages.querySelector(".editor textarea");
    return area && area.value !== area.defaultValue ? { id: area.closest("[data-id]").dataset.id, text: area.value } : null;
  }

  keepEdit() {
    const { beingEdited } = this;
    if (beingEdited) this.edits.set(beingEdited.id, [this.shownId, beingEdited.text]);
  }

  /** Load the page anew with everything that is unsent; false where the browser keeps nothing over a reload. */
  reload() {
    const drafts = new Map(this.drafts);
    if (this.composer.text.trim()) drafts.set(this.shownId, this.composer.text);
    this.keepEdit();
    if (this.hasText() && !carry({ drafts: [...drafts], edits: [...this.edits], under: this.address })) return false;
    this.isReloading = true;
    location.reload();
    return true;
  }

  forgetText() {
    this.leave();
    this.composer.text = "";
    this.drafts.clear();
    this.edits.clear();
  }

  onSettings(settings, before) {
    this.panel.apply(settings, before);
    if (settings.effort !== before?.effort) this.composer.setEffort(settings.effort);
  }

  /** Somebody else is here now: their chats are shown; what stands in the composer stays. */
  onPerson({ isOther }) {
    const { text } = this.composer;
    if (isOther) {
      this.drafts.clear();
      this.edits.clear();
    }
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
    const asked = placeOf(location.hash);
    this.desk.follow(asked, { isFirst });
    if (isDialog(asked) && !isFirst) return;
    const place = isDialog(asked) ? placeOf(this.under) : asked;
    const id = place.kind === "chat" ? place.id : null;
    if (id && id === this.conversation?.id && !isForced) return;
    this.leave();
    this.list.select(id);
    this.isTemporary = place.kind === "temporary";
    this.shownId = { admin: ADMIN, temporary: TEMPORARY }[place.kind] ?? id;
    this.composer.alert("");
    this.composer.text = this.drafts.get(this.shownId) ?? "";
    this.drafts.delete(this.shownId);
    // Who has just deleted what was shown may want it back
    if (!isFirst && !document.activeElement?.closest(".ponder-toasts")) rest();
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
    this.keepEdit();
    this.visit += 1;
    this.isNotLoaded = false;
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
      else this.showNotLoaded(id, error);
    }
  }

  showNotLoaded(id, error) {
    this.showMiddle(absence(TEXT.notLoaded, error.message, [TEXT.tryAgain, () => this.openConversation(id)]));
    this.isNotLoaded = true;
    if (error.code === "unreachable") this.watch?.read();
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
    const hadFocus = this.messages.contains(document.activeElement);
    this.isNotLoaded = false;
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
    if (hadFocus) rest();
    this.editAgain();
    if (this.versions.hit) this.versions.showHit();
    this.see();
  }

  /** Go on with what was being edited here. */
  editAgain() {
    for (const [id, [, text]] of this.edits) {
      const view = this.versions.viewOf(id);
      if (!view) continue;
      this.edits.delete(id);
      view.dispatchEvent(new CustomEvent("edit", { detail: text }));
    }
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
    const hadFocus = this.messages.contains(document.activeElement);
    this.middle = shown;
    this.isNotLoaded = false;
    this.messages.replaceChildren(shown);
    this.thread.scrollTop = 0;
    if (hadFocus) focusOn(shown.querySelector("button") ?? this.restingPlace());
  }

  clearMiddle() {
    this.middle?.remove();
    this.middle = this.welcome = null;
  }

  newWelcome() {
    this.welcome = new Welcome((text) => {
      this.composer.text = text;
      focusOn(hasTouchKeyboard() ? this.composer.sendButton : this.composer.input);
    });
    if (this.watch?.model) this.welcome.showModel(this.watch.model);
    return this.welcome.root;
  }

  showTitle() {
    const listed = this.list.list.find(this.conversation?.id);
    if (listed) this.takeItem(listed);
    this.topbar.show(this.adminView ? TEXT.admin.title : this.conversation?.title);
  }

  onListRead() {
    this.showTitle();
    this.see();
  }

  /** What is shown and looked at is not news any more, here and in the person's other browsers. */
  async see() {
    const { id, is_unread: isUnread } = this.conversation ?? {};
    if (!(isUnread || this.list.list.find(id)?.is_unread) || !isLookedAt() || this.isSeeing) return;
    this.isSeeing = true;
    const changed = await api.changeConversation(id, { is_unread: false }).catch(() => null);
    this.isSeeing = false;
    if (!changed) return;
    this.list.list.take(changed);
    if (this.conversation?.id === id) this.conversation.is_unread = false;
  }

  /** A run in another chat is over; one that was seen to its end elsewhere, or stopped, is no news. */
  async onEnded(item, runId) {
    if (!item.is_unread || item.id === this.conversation?.id) return;
    const run = await api.run(runId).catch(() => null);
    if (run) this.bell.ring({ runId, id: item.id, title: item.title, state: run.state, isShown: false, isLong: true });
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
    for (const [messageId, [chatId]] of this.edits) if (chatId === id) this.edits.delete(messageId);
    if (this.shownId !== id) return;
    this.composer.text = "";
    this.messages.replaceChildren();
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
