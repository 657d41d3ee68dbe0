// Forms: every input has a label, a rule below it, and what is wrong with it right there.

import { ApiError } from "../api.js";
import { button, element, pause } from "../dom.js";
import { TEXT } from "../texts.js";

let made = 0;

/** A problem is put in when it comes: an alert that was there before would not be read aloud. */
function putProblem(host, message, id) {
  host.querySelector(":scope > .problem")?.remove();
  if (message) host.append(element("p", { className: "problem", role: "alert", id, text: message }));
}

export class Field {
  /** `attributes` go to the input; `tag` may be "textarea" or "select" (with `options`). */
  constructor({ label, rule, tag = "input", options = {}, ...attributes }) {
    made += 1;
    this.id = `field-${made}`;
    this.rule = rule ? element("p", { className: "rule", id: `${this.id}-rule`, text: rule }) : null;
    this.input = element(tag, { id: this.id, "aria-describedby": rule && `${this.id}-rule`, ...attributes });
    for (const [value, text] of Object.entries(options)) this.input.append(element("option", { value, text }));
    this.root = element("div", { className: "field" }, element("label", { for: this.id, text: label }), this.framed());
    if (this.rule) this.root.append(this.rule);
    this.input.addEventListener("input", () => this.setProblem(""));
  }

  framed() {
    if (this.input.type !== "password") return this.input;
    const toggle = button(TEXT.signIn.show, () => this.togglePassword(toggle), {
      className: "show-password",
      "aria-pressed": "false",
      "aria-label": TEXT.signIn.showPassword,
    });
    return element("div", { className: "with-button" }, this.input, toggle);
  }

  togglePassword(toggle) {
    const isShown = this.input.type === "password";
    this.input.type = isShown ? "text" : "password";
    toggle.textContent = isShown ? TEXT.signIn.hide : TEXT.signIn.show;
    toggle.setAttribute("aria-pressed", String(isShown));
  }

  get value() {
    return this.input.value;
  }

  set value(value) {
    this.input.value = value;
  }

  setProblem(message) {
    putProblem(this.root, message, `${this.id}-problem`);
    this.input.setAttribute("aria-invalid", String(Boolean(message)));
    const described = [message && `${this.id}-problem`, this.rule?.id].filter(Boolean).join(" ");
    if (described) this.input.setAttribute("aria-describedby", described);
    else this.input.removeAttribute("aria-describedby");
  }
}

/** A switch with its label beside it. */
export function checkbox(label, { isOn, onChange, about, ...attributes }) {
  made += 1;
  const id = `field-${made}`;
  const input = element("input", { type: "checkbox", id, checked: isOn, "aria-describedby": about && `${id}-about`, ...attributes });
  if (onChange) input.addEventListener("change", () => onChange(input.checked));
  const texts = element("div", {}, element("label", { for: id, text: label }));
  if (about) texts.append(element("p", { className: "rule", id: `${id}-about`, text: about }));
  return { input, root: element("div", { className: "check" }, input, texts) };
}

export class Form {
  /**
   * A real form, so that Enter and password managers work. `fields` by name; `more` stands above the button; `where`
   * names the field that an error's code is about. `onSubmit` gets the values by name.
   */
  constructor({ fields, more = [], submit, className = "strong", where = {}, onSubmit }) {
    Object.assign(this, { fields, where, onSubmit, isBusy: false });
    this.submit = element("button", { type: "submit", className, text: submit });
    this.problems = element("div", { className: "problems" });
    const inputs = Object.values(fields).map(({ root }) => root);
    this.root = element("form", { className: "fields", method: "post", novalidate: true }, ...inputs, ...more, this.problems, this.submit);
    this.root.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
  }

  async send() {
    if (this.isBusy || !this.isFilledIn()) return;
    this.setProblem("");
    this.isBusy = true;
    pause(this.submit);
    try {
      await this.onSubmit(Object.fromEntries(Object.entries(this.fields).map(([name, field]) => [name, field.value])));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.setProblem(error.message, this.where[error.code]);
    } finally {
      this.isBusy = false;
      pause(this.submit, false);
    }
  }

  isFilledIn() {
    const empty = Object.values(this.fields).filter(({ input, value }) => !value && input.type !== "hidden");
    for (const field of empty) field.setProblem(TEXT.signIn.fillIn);
    empty[0]?.input.focus();
    return empty.length === 0;
  }

  setProblem(message, name) {
    const field = this.fields[name];
    putProblem(this.problems, field ? "" : message);
    if (!field || !message) return;
    field.setProblem(message);
    field.input.focus();
  }
}
