// The dialog for signing in, signing up, and setting a new password with a recovery code.

import { api } from "../api.js";
import { Dialog } from "../dialogs.js";
import { button, element } from "../dom.js";
import { me } from "../me.js";
import { TEXT } from "../texts.js";
import { showCodes } from "./codes.js";
import { checkbox, Field, Form } from "./fields.js";
import { signInButtons } from "./providers.js";

let opened = null;
/** How often it was closed, or not opened after all. */
let closings = 0;

/**
 * Resolves with `{isClaimed}` once the person is signed in, with undefined when they turn away. `mode` is "sign-in" or
 * "sign-up"; `sentence` says why the dialog is there; `hasText` that there is unsent text.
 */
export async function openSignIn(options = {}) {
  const before = closings;
  if (opened && options.sentence) opened.say(options);
  // How many chats there are to move
  else if (!opened) await me.read();
  // The person has gone elsewhere meanwhile
  if (closings !== before) return undefined;
  opened ??= new SignIn(options);
  return opened.dialog.closed;
}

export function closeSignIn() {
  closings += 1;
  opened?.dialog.close();
}

class SignIn {
  constructor({ mode = "sign-in", sentence = "", isBad = false, hasText = false }) {
    Object.assign(this, { sentence, isBad, hasText, username: "" });
    this.body = element("div", { className: "sign-in" });
    this.dialog = new Dialog({ title: "", body: this.body, isClosable: true, className: "narrow" });
    this.dialog.closed.then(() => (opened = null));
    this.chats = me.isGuest ? me.person.conversation_count : 0;
    this.show(me.site.registration ? mode : "sign-in");
  }

  say({ sentence, isBad = false }) {
    Object.assign(this, { sentence, isBad });
    this.show(this.mode);
  }

  /** Draw the dialog anew in another mode; the name that was typed stays. */
  show(mode) {
    this.username = this.form?.fields.username.value ?? this.username;
    this.mode = mode;
    this.dialog.title.textContent = TEXT.signIn.titles[mode];
    this.claim = this.claimBox();
    this.form = this.makeForm();
    const why = element("p", { className: this.isBad ? "problem" : "why", role: this.isBad && "alert", text: this.sentence });
    this.problems = element("div", { className: "problems" });
    this.body.replaceChildren(...(this.sentence ? [why] : []), this.form.root, ...this.providers(), this.problems, this.otherWays());
    const { username, ...others } = this.form.fields;
    username.value = this.username;
    (this.username ? Object.values(others)[0] : username).input.focus();
  }

  makeForm() {
    const texts = TEXT.signIn;
    const isNew = this.mode !== "sign-in";
    const nameRule = this.mode === "sign-up" ? texts.nameRule(me.site.min_username_chars) : "";
    const plain = { autocapitalize: "off", autocorrect: "off", spellcheck: "false" };
    const username = new Field({ label: texts.name, rule: nameRule, name: "username", autocomplete: "username", ...plain });
    const code = new Field({ label: texts.code, rule: texts.codeRule, name: "code", autocomplete: "one-time-code", ...plain });
    const password = new Field({
      label: this.mode === "recover" ? texts.newPassword : texts.password,
      rule: isNew ? texts.passwordRule(me.site.min_password_chars) : "",
      name: "password",
      type: "password",
      autocomplete: isNew ? "new-password" : "current-password",
    });
    return new Form({
      fields: this.mode === "recover" ? { username, code, password } : { username, password },
      more: this.claim ? [this.claim.root] : [],
      submit: texts.submits[this.mode],
      where: { bad_username: "username", username_taken: "username", bad_password: "password", wrong_password: this.mode === "recover" ? "code" : "password" },
      onSubmit: (given) => this.send(given),
    });
  }

  /** What becomes of a guest's chats; unticked, it says so plainly. */
  claimBox() {
    if (!this.chats) return null;
    const { claim, claimNot } = TEXT.signIn;
    const isOn = this.claim?.input.checked ?? true;
    const left = element("p", { className: "rule warning", role: "status", text: isOn ? "" : claimNot(this.chats) });
    const box = checkbox(claim(this.chats), { isOn, onChange: (isChecked) => (left.textContent = isChecked ? "" : claimNot(this.chats)) });
    box.input.name = "claim";
    box.root.lastElementChild.append(left);
    return box;
  }

  get isClaiming() {
    return Boolean(this.claim?.input.checked);
  }

  providers() {
    if (this.mode === "recover") return [];
    const onProblem = (message) => this.problems.replaceChildren(element("p", { className: "problem", role: "alert", text: message }));
    const buttons = signInButtons({ isClaiming: () => this.isClaiming, onProblem });
    if (!buttons.length) return [];
    const shown = [element("p", { className: "or", text: TEXT.signIn.or }), element("div", { className: "providers" }, ...buttons)];
    if (this.hasText) shown.push(element("p", { className: "rule", text: TEXT.signIn.providerLeaves }));
    return shown;
  }

  otherWays() {
    const { noAccount, hasAccount, forgot, useCode, back } = TEXT.signIn;
    const way = (lead, text, mode) => element("p", {}, lead, " ", button(text, () => this.show(mode), { className: "link" }));
    const ways = element("div", { className: "other-ways" });
    if (this.mode === "recover") ways.append(way("", back, "sign-in"));
    if (this.mode === "sign-up") ways.append(way(hasAccount, TEXT.account.signIn, "sign-in"));
    if (this.mode === "sign-in") {
      if (me.site.registration) ways.append(way(noAccount, TEXT.account.signUp, "sign-up"));
      ways.append(way(forgot, useCode, "recover"));
    }
    return ways;
  }

  async send(given) {
    const calls = { "sign-in": api.signIn, "sign-up": api.signUp, recover: api.recover };
    const isClaimed = this.isClaiming;
    const { me: person, recovery_codes: codes } = await calls[this.mode]({ ...given, claim_guest: isClaimed });
    this.dialog.close({ isClaimed });
    me.take(person);
    if (codes) await showCodes(codes);
  }
}
