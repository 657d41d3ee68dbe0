// Joins the page to its person: the row in the sidebar, the dialogs and their addresses, the settings that show, and what
// happens when somebody else is here, or nobody any more.

import { api, onShutDoors } from "../api.js";
import { isSamePerson, me } from "../me.js";
import { isDialog, placeOf } from "../routes.js";
import { TEXT } from "../texts.js";
import { showTheme } from "../theme.js";
import { AccountRow } from "./row.js";
import { closeSettings, openSettings } from "./settings.js";
import { closeSignIn, openSignIn } from "./signin.js";

export class Desk {
  /**
   * `page` has hasText(), forgetText(), onSettings(settings, before), onPerson() for somebody else, onSignedOut() for
   * nobody any more; its drawer and composer.
   */
  constructor(sidebar, page) {
    this.page = page;
    /** Of the session that has ended, until the person goes elsewhere or signs in. */
    this.isSignedOut = false;
    /** The account that was here last. */
    this.owner = me.isAccount ? me.person.name : "";
    this.row = new AccountRow(sidebar, {
      signIn: (mode) => this.signIn({ mode }),
      signOut: () => this.signOut(),
      settings: () => this.goTo("#/settings"),
      admin: () => this.goTo("#/admin"),
    });
    me.listen((person, before) => this.onPerson(person, before));
    onShutDoors({ signed_out: () => this.onSignedOut(), sign_in_first: () => this.signIn({ sentence: this.signInFirst }) });
    this.applySettings(me.settings, null);
  }

  /** Why nothing can be asked without signing in; "" if it can. */
  get whySignIn() {
    if (this.isSignedOut) return TEXT.signedOut.title;
    return me.person.kind === "nobody" && !me.site.guests ? this.signInFirst : "";
  }

  get signInFirst() {
    return [TEXT.signIn.first, this.page.composer.text.trim() && TEXT.textIsKept].filter(Boolean).join(" ");
  }

  goTo(hash) {
    this.page.drawer.toggle(false);
    location.hash = hash;
  }

  onPerson(person, before) {
    this.applySettings(person.settings, before.settings);
    if (person.kind !== "account") {
      if (before.kind === "account") this.onSignedOut();
      return;
    }
    // Signed in again in another tab
    const isBack = this.isSignedOut;
    this.isSignedOut = false;
    if (isSamePerson(person, before) && !isBack) return;
    this.page.onPerson({ isOther: this.owner !== "" && this.owner !== person.name });
    this.owner = person.name;
  }

  applySettings(settings, before) {
    showTheme(settings.theme);
    this.page.onSettings(settings, before);
  }

  /** Look whether another tab has signed in or out meanwhile. */
  onVisible() {
    return me.read();
  }

  /** The first message makes a guest. */
  onBegun() {
    if (me.person.kind === "nobody") me.read();
  }

  async onSignedOut() {
    if (this.isSignedOut) return;
    this.isSignedOut = true;
    closeSettings();
    this.page.onSignedOut();
    await api.leaveEnded().catch((error) => this.page.tell(error));
    await me.read();
  }

  async signIn(options = {}) {
    this.page.drawer.toggle(false);
    closeSettings();
    const done = await openSignIn({ ...options, hasText: this.page.hasText() });
    this.leaveAddress();
    return Boolean(done);
  }

  async signOut() {
    this.page.drawer.toggle(false);
    try {
      await api.signOut(false);
    } catch (error) {
      this.page.tell(error);
      return;
    }
    this.startOver();
  }

  /** Nothing of the person stays: not on the screen, not in memory. */
  startOver() {
    this.page.forgetText();
    document.body.classList.remove("ponder-ready");
    document.querySelectorAll("dialog").forEach((dialog) => dialog.remove());
    history.replaceState(null, "", "#/");
    location.reload();
  }

  // Addresses

  /** Open what an address stands for over what is shown, or close it when the address has gone on. */
  follow(place, { isFirst = false } = {}) {
    if (!isDialog(place)) {
      closeSettings();
      closeSignIn();
    } else if (place.kind === "settings") this.openSettings(place.id, isFirst);
    else this.openSignIn(place.id);
  }

  async openSettings(section, isFirst, problem = "") {
    if (me.person.kind === "nobody" && !me.site.guests) {
      this.openSignIn(null);
      return;
    }
    const address = location.hash;
    // How much has been asked meanwhile
    await me.read();
    // The person has gone on: to another section, or back
    if (location.hash !== address) return;
    // From a provider, where the person was sent from there
    const isBack = isFirst && me.person.is_recent;
    const known = ["general", "model", "chats", "account"].includes(section) ? section : "";
    const more = {
      reload: () => this.page.reload(),
      signIn: (mode) => this.signIn({ mode }),
      startOver: () => this.startOver(),
      onChats: () => this.page.list.refresh(),
      onAllDeleted: () => this.page.onAllDeleted(),
      restore: (call) => this.page.list.deeds.restore(call),
    };
    await openSettings(more, { section: known || (isBack ? "account" : "general"), problem });
    this.leaveAddress();
  }

  openSignIn(problem) {
    const sentence = problem ? (TEXT.signIn.problems[problem] ?? TEXT.signIn.problem) : "";
    if (!me.isAccount) this.signIn({ sentence, isBad: Boolean(problem) });
    else if (problem) this.openSettings("account", false, sentence);
    else this.leaveAddress();
  }

  leaveAddress() {
    if (isDialog(placeOf(location.hash))) history.replaceState(null, "", this.page.address);
  }
}
