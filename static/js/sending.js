// From the composer to the server: the text stays in the composer until the server has it.

import { api, ApiError, newKey } from "./api.js";
import { hasTouchKeyboard, rest } from "./focus.js";
import { noticeAccepted } from "./dialogs.js";
import { TEMPORARY } from "./temporary.js";
import { TEXT } from "./texts.js";

export class Sending {
  constructor(page) {
    this.page = page;
    this.isBusy = false;
  }

  async submit() {
    const { composer, desk, watch } = this.page;
    const { text } = composer;
    if (this.isBusy) return;
    if (!text.trim()) {
      composer.alert(TEXT.writeFirst);
      return;
    }
    // What comes back from signing in is another chat list: the person looks first, and sends then
    if (desk.whySignIn) desk.signIn({ sentence: desk.whySignIn });
    else if (await this.isNoticeAccepted(watch.model)) await this.post(text);
  }

  async isNoticeAccepted(model) {
    try {
      return await noticeAccepted(model);
    } catch (error) {
      this.page.tell(error);
      return false;
    }
  }

  /** Whether an edit or another answer may begin: nothing goes on here, and the notice is accepted. */
  async isFree() {
    const { attendant, composer, desk, watch, conversation } = this.page;
    if (attendant.live) composer.holdBack();
    if (!conversation || attendant.live || this.isBusy) return false;
    if (desk.whySignIn) {
      desk.signIn({ sentence: desk.whySignIn });
      return false;
    }
    return this.isNoticeAccepted(watch.model);
  }

  /** One more answer beside this one. */
  async askAgain(answer) {
    if (!(await this.isFree())) return;
    const { page } = this;
    const { visit, conversation } = page;
    this.setBusy(true);
    try {
      const given = { client_key: this.keyFor(conversation.id, answer.id, {}), options: { effort: page.composer.chosenEffort } };
      await api.retry(answer.id, given);
      this.attempt = null;
      if (page.visit === visit) await page.openConversation(conversation.id);
      page.list.refresh();
    } catch (error) {
      if (page.visit !== visit) return;
      await this.tell(error);
    } finally {
      this.setBusy(false);
    }
  }

  /** What went wrong; where another tab was first, its run is shown. */
  async tell(error, edited = "") {
    const { page } = this;
    if (error instanceof ApiError && error.code === "conversation_busy") {
      await page.openConversation(page.conversation.id);
      await page.versions.showRunning();
      // The field it stood in is gone
      if (!page.composer.text.trim()) page.composer.text = edited;
    }
    const isKept = ["unreachable", "storage_failed"].includes(error.code) && (page.composer.text.trim() || page.isEditing);
    page.tell(error, isKept ? TEXT.textIsKept : "");
  }

  /** An edited question begins a branch beside the old one. */
  async edit(message, text) {
    if (await this.isFree()) await this.post(text, { parent_id: message.parent_id });
  }

  async post(text, where = {}) {
    const { page } = this;
    const { visit } = page;
    this.setBusy(true);
    try {
      const conversation = page.conversation ?? (await this.begin(visit));
      const options = { effort: page.composer.chosenEffort };
      const message = { text, client_key: this.keyFor(conversation.id, text, where), options, ...where };
      const accepted = await api.send(conversation.id, message);
      this.attempt = null;
      this.forgetSent(conversation.id, text, visit);
      if (page.visit === visit) await this.showAccepted(accepted, text, where);
      if (page.visit === visit && (hasTouchKeyboard() || page.composer.sendButton === document.activeElement)) rest();
      page.list.refresh();
    } catch (error) {
      if (page.visit !== visit) return;
      await this.tell(error, text);
    } finally {
      this.setBusy(false);
    }
  }

  setBusy(isBusy) {
    this.isBusy = isBusy;
    this.page.composer.setBusy(isBusy);
  }

  /** One key for the same text in the same place, however often it is tried: the server takes it once. */
  keyFor(conversationId, text, { parent_id: parentId }) {
    const what = JSON.stringify([conversationId, text, parentId]);
    if (this.attempt?.what !== what) this.attempt = { what, key: newKey() };
    return this.attempt.key;
  }

  forgetSent(conversationId, text, visit) {
    const { composer, drafts } = this.page;
    if (this.page.visit === visit) {
      composer.alert("");
      if (composer.text === text) composer.text = "";
    }
    for (const id of [conversationId, null, TEMPORARY]) if (drafts.get(id) === text) drafts.delete(id);
  }

  async begin(visit) {
    const { page } = this;
    const conversation = { ...(await api.newConversation(page.isTemporary)), messages: [] };
    if (page.visit === visit) {
      page.conversation = conversation;
      page.shownId = conversation.id;
      page.list.select(conversation.id);
      history.replaceState(null, "", `#/c/${conversation.id}`);
      page.showTemporary();
    }
    page.desk.onBegun();
    return conversation;
  }

  /** A question at the end is put behind what is there; one that begins a branch changes what is shown. */
  async showAccepted({ message_id: questionId, answer_id: answerId, run_id: runId, place }, text, where) {
    const { page } = this;
    const { conversation } = page;
    const isKnown = conversation.messages.some(({ id }) => id === questionId);
    if ("parent_id" in where || isKnown) {
      await page.openConversation(conversation.id);
      return;
    }
    page.clearMiddle();
    // In no list, from where the others have theirs
    if (conversation.is_temporary && !conversation.title) this.readTitle(conversation);
    const run = { id: runId, state: place ? "queued" : "running", place, notes: [] };
    const question = { id: questionId, parent_id: conversation.leaf_id, role: "user", text };
    const answer = { id: answerId, parent_id: questionId, role: "assistant", text: "", html: "", reasoning: null, run };
    conversation.messages.push(question, answer);
    conversation.leaf_id = answerId;
    page.append(question);
    page.append(answer);
    page.follow.toEnd();
    page.attendant.attachLast();
  }

  async readTitle(conversation) {
    const { title } = await api.conversation(conversation.id).catch(() => ({ title: "" }));
    conversation.title ||= title;
    if (this.page.conversation === conversation) this.page.showTitle();
  }
}
