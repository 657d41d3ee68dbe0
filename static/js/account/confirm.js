// What cannot be undone, or opens a way in, needs a check of the password or the provider of the last ten minutes.

import { api, isFramed } from "../api.js";
import { Dialog } from "../dialogs.js";
import { button, element } from "../dom.js";
import { me } from "../me.js";
import { TEXT } from "../texts.js";
import { Field, Form } from "./fields.js";
import { leaveFor } from "./providers.js";

/** Call; where the server wants a check first, ask for it and call again. Resolves with undefined if the person turns away. */
export async function confirmed(call) {
  try {
    return { value: await call() };
  } catch (error) {
    if (error.code !== "confirm_first") throw error;
    const isConfirmed = await confirm((error.details.methods ?? "").split(",").filter(Boolean));
    return isConfirmed ? { value: await call() } : undefined;
  }
}

async function confirm(methods) {
  const parts = [];
  const names = methods.filter((method) => method !== "password");
  if (methods.includes("password")) parts.push(passwordForm(() => dialog.close(true)));
  if (names.length) parts.push(...providerParts(names));
  const dialog = new Dialog({ title: TEXT.confirm.title, body: element("div", {}, ...parts), isClosable: true, className: "narrow" });
  dialog.root.querySelector("input[type=password], .provider")?.focus();
  return Boolean(await dialog.closed);
}

function passwordForm(onConfirmed) {
  const { about, yes } = TEXT.confirm;
  const password = new Field({ label: TEXT.signIn.password, name: "password", type: "password", autocomplete: "current-password" });
  const form = new Form({
    fields: { password },
    submit: yes,
    where: { wrong_password: "password" },
    onSubmit: async (given) => {
      me.take((await api.confirm(given.password)).me);
      onConfirmed();
    },
  });
  form.root.prepend(usernameFor(), element("p", { text: about }));
  return form.root;
}

/** Password managers want to know whose password it is. */
export function usernameFor() {
  return element("input", { className: "off-screen", type: "text", name: "username", autocomplete: "username", value: me.person.name, readonly: true, tabindex: "-1", "aria-hidden": "true" });
}

function providerParts(names) {
  const { aboutProvider, provider, notHere } = TEXT.confirm;
  if (isFramed) return [element("p", { text: notHere })];
  const problems = element("div", { className: "problems" });
  const labels = Object.fromEntries([...me.person.identities.map((one) => [one.provider, one.label]), ...me.site.providers.map(({ name, label }) => [name, label])]);
  const go = (name) =>
    leaveFor(name, "confirm", { next: "/#/settings" }).catch((error) =>
      problems.replaceChildren(element("p", { className: "problem", role: "alert", text: error.message })),
    );
  const buttons = names.map((name) => button(provider(labels[name] ?? name), () => go(name), { className: "provider" }));
  return [element("p", { text: aboutProvider }), element("div", { className: "providers" }, ...buttons), problems];
}
