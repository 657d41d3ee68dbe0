// Who the person is here, with their settings: as the server says, kept while the page lives, and never in the browser.

import { api } from "./api.js";

/** Until the server has said otherwise. */
const UNKNOWN = {
  kind: "nobody",
  name: "",
  is_admin: false,
  was_signed_out: false,
  notice_version: 0,
  conversation_count: 0,
  identities: [],
  quota: null,
  settings: { language: "", theme: "system", effort: "normal", panel_opens: true, panel_figures: true, panel_follows: true, notify: "", sound: false },
  site: { guests: true, registration: false, guest_days: 7, notice_version: 1, operator: "", providers: [] },
};

class Me {
  constructor() {
    this.listeners = [];
    this.isKnown = false;
    /** How many changes were answered. */
    this.deeds = 0;
    this.person = UNKNOWN;
  }

  get settings() {
    return this.person.settings;
  }

  get site() {
    return this.person.site;
  }

  get isAccount() {
    return this.person.kind === "account";
  }

  get isGuest() {
    return this.person.kind === "guest";
  }

  /** `heard` gets the person and the person before. */
  listen(heard) {
    this.listeners.push(heard);
  }

  /**
   * Where it fails, what was known stays; the model's card says that the server cannot be reached. An answer that was
   * under way while something was changed may be from before the change, and is not taken.
   */
  async read() {
    const { deeds } = this;
    try {
      const person = await api.me();
      if (this.deeds === deeds) this.hold(person);
    } catch (error) {
      if (error.code !== "unreachable" && error.code !== "storage_failed") throw error;
    }
  }

  async change(settings) {
    this.take(await api.changeMe({ settings }));
  }

  async acceptNotice() {
    this.take(await api.changeMe({ notice_version: this.site.notice_version }));
  }

  /** What the server answers to a change: what it has made of the person. */
  take(person) {
    this.deeds += 1;
    this.hold(person);
  }

  hold(person) {
    const before = this.person;
    this.person = person;
    this.isKnown = true;
    for (const heard of this.listeners) heard(person, before);
  }
}

export const me = new Me();

/** Whether two answers are about the same person; a guest who is made by a first message is the nobody from before. */
export function isSamePerson(person, before) {
  const isAccount = person.kind === "account" || before.kind === "account";
  return !isAccount || (person.kind === before.kind && person.name === before.name);
}
