// Settings, Account: the ways in, the browsers, and leaving. Guests see what being one means.

import { api, isFramed } from "../api.js";
import { ask, askTyped } from "../dialogs.js";
import { button, day, dayAndHour, element } from "../dom.js";
import { me } from "../me.js";
import { TEXT } from "../texts.js";
import { showCodes } from "./codes.js";
import { confirmed, usernameFor } from "./confirm.js";
import { Field, Form } from "./fields.js";
import { leaveFor } from "./providers.js";

export function person(settings) {
  const parts = me.isAccount ? accountParts(settings) : guestParts(settings);
  return { parts };
}

/** A part with its title; `danger` at the end of the section. */
function part(title, ...children) {
  return element("section", { className: "part" }, element("h3", { text: title }), ...children);
}

/** Do something that may fail or need a check first; what goes wrong is said at the top of the dialog. */
async function attempt(settings, call) {
  try {
    return await confirmed(call);
  } catch (error) {
    settings.tell(error.message, { isBad: true });
    settings.problem.scrollIntoView({ block: "nearest" });
    return undefined;
  }
}

/** Draw the section anew from what the server says now, unless the person has gone on to another one. */
async function again(settings, sentence = "") {
  await me.read();
  if (settings.section === "account") settings.show("account");
  settings.tell(sentence);
}

function guestParts(settings) {
  const { guestTitle, guestAbout, nobodyAbout, forget, forgetAbout, forgetAsk } = TEXT.person;
  const { signIn, signUp } = TEXT.account;
  const enter = element("div", { className: "ways" });
  if (me.site.registration) enter.append(button(signUp, () => settings.page.signIn("sign-up"), { className: "strong" }));
  enter.append(button(signIn, () => settings.page.signIn("sign-in"), { className: "plain" }));
  const about = me.isGuest ? guestAbout(me.site.guest_days) : nobodyAbout;
  const parts = [part(guestTitle, element("p", { text: about }), enter)];
  if (!me.isGuest) return parts;
  const leave = async () => {
    await me.read();
    const texts = { ...forgetAsk, about: forgetAsk.about(me.person.conversation_count), isDanger: true };
    if (!(await ask(texts))) return;
    if (await attempt(settings, () => api.deleteMe())) settings.page.startOver();
  };
  parts.push(part(forget, element("p", { text: forgetAbout }), button(forget, leave, { className: "danger plain" })));
  return parts;
}

function accountParts(settings) {
  const { signedInAs, quota } = TEXT.person;
  const name = element("p", {}, `${signedInAs} `, element("strong", { text: me.person.name || TEXT.account.noName }), ".");
  const { runs_today: today, runs_per_day: most } = me.person.quota;
  const head = element("section", { className: "part first" }, name);
  if (most !== null) head.append(element("p", { text: quota(today, most) }));
  const parts = [head, passwordPart(settings)];
  if (me.person.has_password) parts.push(codesPart(settings));
  if (me.site.providers.length || me.person.identities.length) parts.push(providersPart(settings));
  return [...parts, sessionsPart(settings), removalPart(settings)];
}

function passwordPart(settings) {
  const { password, setPassword, setPasswordAbout, changePassword, oldPassword, newPassword, passwordChanged, passwordSet } = TEXT.person;
  const { name: nameLabel, nameRule, passwordRule } = TEXT.signIn;
  const { has_password: hasPassword, has_username: hasName } = me.person;
  const { min_username_chars: minName, min_password_chars: minPassword } = me.site;
  const fields = {};
  if (hasPassword) fields.password = new Field({ label: oldPassword, type: "password", name: "password", autocomplete: "current-password" });
  else if (!hasName) fields.username = new Field({ label: nameLabel, rule: nameRule(minName), name: "username", autocomplete: "username" });
  fields.new_password = new Field({ label: newPassword, rule: passwordRule(minPassword), type: "password", name: "new-password", autocomplete: "new-password" });
  const form = new Form({
    fields,
    submit: hasPassword ? changePassword : setPassword,
    className: "plain",
    where: { wrong_password: "password", bad_password: "new_password", bad_username: "username", username_taken: "username" },
    onSubmit: async (given) => {
      const done = await confirmed(() => api.setPassword(given));
      if (!done) return;
      me.take(done.value.me);
      if (done.value.recovery_codes) await showCodes(done.value.recovery_codes);
      await again(settings, hasPassword ? passwordChanged : passwordSet);
    },
  });
  if (!fields.username) form.root.prepend(usernameFor());
  const summary = element("summary", { text: hasPassword ? changePassword : setPassword });
  const about = hasPassword ? [] : [element("p", { text: setPasswordAbout })];
  return part(password, ...about, element("details", {}, summary, form.root));
}

function codesPart(settings) {
  const { codes, codesLeft, newCodes, newCodesAsk } = TEXT.person;
  const make = async () => {
    if (!(await ask({ ...newCodesAsk, isDanger: true }))) return;
    const made = await attempt(settings, () => api.newRecoveryCodes());
    if (!made) return;
    await showCodes(made.value.recovery_codes);
    await again(settings);
  };
  return part(codes, element("p", { text: codesLeft(me.person.recovery_codes_left) }), button(newCodes, make, { className: "plain" }));
}

function providersPart(settings) {
  const texts = TEXT.person;
  const { identities } = me.person;
  const rows = identities.map(({ id, label, added_at: added }) => {
    const unlink = async () => {
      if (await attempt(settings, () => api.unlink(id))) await again(settings);
    };
    return line(label, texts.linkedAt(day(added)), button(texts.unlink, unlink, { className: "plain small", "aria-label": texts.unlinkOf(label) }));
  });
  const others = me.site.providers.filter(({ name }) => !identities.some(({ provider }) => provider === name));
  const link = (name) => attempt(settings, () => leaveFor(name, "link", { next: "/#/settings" }));
  const buttons = isFramed ? [element("p", { text: TEXT.confirm.notHere })] : others.map(({ name, label }) => button(texts.link(label), () => link(name), { className: "plain" }));
  const list = rows.length ? [element("ul", { className: "lines" }, ...rows)] : [];
  return part(texts.providers, ...list, ...(others.length ? [element("div", { className: "ways" }, ...buttons)] : []));
}

function line(title, about, ...more) {
  const texts = element("div", {}, element("p", { className: "line-title", text: title }), element("p", { className: "rule", text: about }));
  return element("li", {}, texts, ...more);
}

function sessionsPart(settings) {
  const { sessions, everywhere } = TEXT.person;
  const list = element("ul", { className: "lines" });
  showSessions(settings, list);
  const leave = async () => {
    if (await attempt(settings, () => api.signOut(true))) settings.page.startOver();
  };
  return part(sessions, list, button(everywhere, leave, { className: "plain" }));
}

async function showSessions(settings, list) {
  const { thisBrowser, lastSeen, end, endOf } = TEXT.person;
  const found = await attempt(settings, () => api.sessions());
  const rows = (found?.value.items ?? []).map(({ id, agent, last_seen_at: seen, is_current: isCurrent }) => {
    if (isCurrent) return line(agent, thisBrowser);
    const leave = async () => {
      if (await attempt(settings, () => api.endSession(id))) await showSessions(settings, list);
    };
    return line(agent, lastSeen(dayAndHour(seen)), button(end, leave, { className: "plain small", "aria-label": endOf(agent) }));
  });
  list.replaceChildren(...rows);
}

function removalPart(settings) {
  const { remove, removeAbout, removeAsk } = TEXT.person;
  const leave = async () => {
    const { name, conversation_count: number } = me.person;
    const { about, type, ...texts } = removeAsk;
    if (!(await askTyped({ ...texts, about: about(number), type: type(name), word: name }))) return;
    if (await attempt(settings, () => api.deleteMe())) settings.page.startOver();
  };
  return part(remove, element("p", { text: removeAbout }), button(remove, leave, { className: "danger plain" }));
}
