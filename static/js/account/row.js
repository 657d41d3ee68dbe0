// The bottom of the sidebar: who is here, and the ways in and out.

import { privacyLink } from "../dialogs.js";
import { button, element, icon } from "../dom.js";
import { me } from "../me.js";
import { TEXT } from "../texts.js";

export class AccountRow {
  /** `on` has signIn(mode), signOut(), settings(), admin(). */
  constructor(host, on) {
    this.on = on;
    this.root = element("section", { id: "account", "aria-label": TEXT.account.label });
    host.append(this.root);
    document.addEventListener("click", (event) => this.root.contains(event.target) || this.toggle(false));
    this.root.addEventListener("keydown", (event) => this.onKey(event));
    me.listen(() => this.show());
    this.show();
  }

  show() {
    const { kind, name, is_admin: isAdmin } = me.person;
    const drawn = JSON.stringify([kind, name, isAdmin, me.site]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    this.menu = null;
    this.root.replaceChildren(...(me.isAccount ? this.accountParts(isAdmin) : this.guestParts()));
  }

  guestParts() {
    const { signIn, signUp, settings, guest, nobody, signInFirst } = TEXT.account;
    const row = element("div", { className: "account-ways" }, button(signIn, () => this.on.signIn("sign-in"), { className: "account-way" }));
    if (me.site.registration) row.append(button(signUp, () => this.on.signIn("sign-up"), { className: "account-way" }));
    const { guests, guest_days: days } = me.site;
    const about = me.isGuest ? guest(days) : guests ? nobody(days) : signInFirst;
    const links = element("p", { className: "account-links" });
    if (guests || me.isGuest) links.append(button(settings, () => this.on.settings(), { className: "link" }));
    links.append(privacyLink());
    return [row, element("p", { className: "account-about", text: about }), links];
  }

  accountParts(isAdmin) {
    const { settings, admin, signOut, menu, noName } = TEXT.account;
    const name = me.person.name || noName;
    this.button = button("", () => this.toggle(), { className: "account-name", "aria-expanded": "false", "aria-controls": "account-menu", "aria-label": menu(name) });
    const initial = element("span", { className: "initial", "aria-hidden": "true", text: [...name][0].toUpperCase() });
    this.button.append(initial, element("span", { className: "name", text: name }), icon("chevron"));
    const item = (text, onclick) => {
      const choose = () => {
        this.toggle(false);
        onclick();
      };
      return element("li", {}, button(text, choose, { className: "account-item" }));
    };
    const items = [item(settings, () => this.on.settings())];
    if (isAdmin) items.push(item(admin, () => this.on.admin()));
    const privacy = privacyLink();
    privacy.className = "account-item";
    items.push(element("li", {}, privacy), item(signOut, () => this.on.signOut()));
    this.menu = element("ul", { id: "account-menu", className: "account-menu", hidden: true }, ...items);
    return [this.menu, this.button];
  }

  toggle(isShown = this.menu?.hidden ?? false) {
    if (!this.menu || this.menu.hidden === !isShown) return;
    this.menu.hidden = !isShown;
    this.button.setAttribute("aria-expanded", String(isShown));
    if (isShown) this.menu.querySelector("button").focus();
    else if (this.root.contains(document.activeElement)) this.button.focus();
  }

  onKey(event) {
    if (!this.menu || this.menu.hidden) return;
    const items = [...this.menu.querySelectorAll(".account-item")];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") this.toggle(false);
    else if (step) items[(items.indexOf(document.activeElement) + step + items.length) % items.length].focus();
    else return;
    event.preventDefault();
    // Escape would close the drawer too
    event.stopPropagation();
  }
}
