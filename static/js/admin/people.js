// Everybody on this server: who they are, how much they ask, and what an admin may do about it.

import { confirmed } from "../account/confirm.js";
import { adminApi } from "../api.js";
import { ask } from "../dialogs.js";
import { button, count, day, element } from "../dom.js";
import { TEXT } from "../texts.js";
import { table } from "./table.js";

const TYPING_MS = 250;
const MOST_QUOTA = 1_000_000;

export class People {
  constructor() {
    this.items = [];
    this.asked = 0;
    this.search = element("input", { type: "search", id: "people-search", placeholder: TEXT.admin.search, "aria-label": TEXT.admin.search });
    this.search.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.read(), TYPING_MS);
    });
    this.problem = element("div", { className: "problems" });
    this.list = element("div");
    this.root = element("section", { className: "part" }, element("h3", { text: TEXT.admin.people }), this.search, this.problem, this.list);
  }

  async read(cursor) {
    this.asked += 1;
    const { asked } = this;
    await this.attempt(async () => {
      const { items, next_cursor: next } = await adminApi.people(this.search.value.trim(), cursor);
      // An answer to what was typed before comes too late
      if (asked !== this.asked) return;
      const hadFocus = this.list.contains(document.activeElement);
      this.items = cursor ? [...this.items, ...items] : items;
      this.cursor = next;
      this.draw();
      if (cursor && hadFocus && items.length) this.list.querySelector(`[data-focus$="-${items[0].id}"]`)?.focus();
    });
  }

  async attempt(call) {
    this.tell("");
    try {
      await call();
    } catch (error) {
      this.tell(error.message);
    }
  }

  tell(sentence) {
    this.problem.replaceChildren(...(sentence ? [element("p", { className: "problem", role: "alert", text: sentence })] : []));
  }

  draw() {
    if (!this.items.length) {
      this.list.replaceChildren(element("p", { text: TEXT.admin.nobodyFound }));
      return;
    }
    const rows = this.items.map((person) => this.row(person));
    const parts = [table(TEXT.admin.people, TEXT.admin.person, rows, ["chats", "today"])];
    if (this.cursor) parts.push(button(TEXT.showMore, () => this.read(this.cursor), { className: "plain" }));
    this.list.replaceChildren(...parts);
  }

  row(person) {
    const { guest, isAdmin, isDisabled, isActive, never } = TEXT.admin;
    const states = [person.is_admin && isAdmin, person.is_disabled && isDisabled].filter(Boolean);
    return {
      name: element("strong", { text: person.name || guest }),
      state: element("span", { className: person.is_disabled ? "bad" : "", text: states.join(", ") || isActive }),
      joined: day(person.created_at),
      seen: person.last_seen_at ? day(person.last_seen_at) : never,
      chats: count(person.conversation_count),
      today: count(person.runs_today),
      quota: this.quota(person),
      actions: this.actions(person),
    };
  }

  quota(person) {
    const { quotaOf, quotaDefault, quotaRule, guest } = TEXT.admin;
    const label = quotaOf(person.name || guest);
    const input = element("input", { type: "number", className: "quota", min: "0", step: "1", inputmode: "numeric", placeholder: quotaDefault, "aria-label": label });
    input.value = person.runs_per_day ?? "";
    input.addEventListener("change", () => {
      const number = Number(input.value);
      const isBad = input.validity.badInput || !Number.isInteger(number) || number < 0 || number > MOST_QUOTA;
      input.setAttribute("aria-invalid", String(isBad));
      if (isBad) this.tell(quotaRule);
      else this.change(person, { runs_per_day: input.value === "" ? null : number });
    });
    return input;
  }

  actions(person) {
    // Nobody disables, demotes or deletes themselves: nobody might be left
    if (person.is_yourself) return element("div", { className: "ways" });
    const { enable, disable, makeAdmin, unmakeAdmin, remove, actionOf, guest } = TEXT.admin;
    const act = (text, onclick, className = "plain small") =>
      button(text, onclick, { className, "aria-label": actionOf(text, person.name || guest), "data-focus": `${text}-${person.id}` });
    const made = element("div", { className: "ways" });
    made.append(act(person.is_disabled ? enable : disable, () => this.change(person, { is_disabled: !person.is_disabled })));
    if (person.kind === "account") made.append(act(person.is_admin ? unmakeAdmin : makeAdmin, () => this.changeRole(person)));
    made.append(act(remove, () => this.remove(person), "plain small danger"));
    return made;
  }

  async changeRole(person) {
    const { title, ...texts } = TEXT.admin.makeAdminAsk;
    if (person.is_admin || (await ask({ ...texts, title: title(person.name), isDanger: true }))) {
      await this.change(person, { is_admin: !person.is_admin });
    }
  }

  change(person, changes) {
    return this.attempt(async () => {
      const done = await confirmed(() => adminApi.changePerson(person.id, changes));
      if (!done) return;
      this.items = this.items.map((item) => (item.id === person.id ? done.value : item));
      const focused = document.activeElement?.dataset.focus;
      this.draw();
      if (focused) this.list.querySelector(`[data-focus$="-${person.id}"]`)?.focus();
    });
  }

  async remove(person) {
    const { title, about, ...texts } = TEXT.admin.removeAsk;
    const words = { title: title(person.name || TEXT.admin.guest), about: about(person.conversation_count) };
    if (!(await ask({ ...texts, ...words, isDanger: true }))) return;
    await this.attempt(async () => {
      if (!(await confirmed(() => adminApi.deletePerson(person.id)))) return;
      this.items = this.items.filter(({ id }) => id !== person.id);
      this.draw();
      this.search.focus();
    });
  }
}
