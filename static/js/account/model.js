// Settings, Model: the system prompt and how the next word is chosen. Empty numbers leave it to the model's own advice.

import { button, element } from "../dom.js";
import { me } from "../me.js";
import { TEXT } from "../texts.js";
import { Field } from "./fields.js";

const MOST_PROMPT_CHARS = 8000;
const PAUSE_MS = 800;
const RANGES = {
  temperature: (value) => value >= 0 && value <= 2,
  top_p: (value) => value > 0 && value <= 1,
  top_k: (value) => Number.isInteger(value) && value >= 1 && value <= 1000,
  min_p: (value) => value >= 0 && value <= 1,
};

export function model(settings) {
  const prompt = new Prompt(settings);
  const numbers = Object.keys(RANGES).map((name) => new Num(settings, name));
  const { sampling, samplingHint, reset } = TEXT.settings;
  const resetAll = () => {
    for (const number of numbers) number.clear();
    settings.save(Object.fromEntries(Object.keys(RANGES).map((name) => [name, null])));
  };
  const group = element(
    "fieldset",
    {},
    element("legend", { text: sampling }),
    element("p", { className: "rule", text: samplingHint }),
    element("div", { className: "numbers" }, ...numbers.map(({ field }) => field.root)),
    button(reset, resetAll, { className: "plain" }),
  );
  const flush = () => {
    prompt.save();
    for (const number of numbers) number.save();
  };
  return { parts: [prompt.field.root, group], flush };
}

/** The server counts characters, not the UTF-16 units of JavaScript. */
const lengthOf = (text) => [...text].length;

class Prompt {
  constructor(settings) {
    this.settings = settings;
    const { prompt, promptHint } = TEXT.settings;
    this.field = new Field({ label: prompt, rule: promptHint, tag: "textarea", rows: "6", name: "system_prompt" });
    this.field.value = this.saved = me.settings.system_prompt;
    this.counter = element("p", { className: "rule counter" });
    this.field.root.append(this.counter);
    this.field.input.addEventListener("input", () => this.onInput());
    this.field.input.addEventListener("change", () => this.save());
    this.count();
  }

  onInput() {
    this.count();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.save(), PAUSE_MS);
  }

  count() {
    const length = lengthOf(this.field.value);
    this.counter.textContent = TEXT.settings.promptCount(length, MOST_PROMPT_CHARS);
    if (length > MOST_PROMPT_CHARS) this.field.setProblem(TEXT.settings.promptTooLong(MOST_PROMPT_CHARS));
  }

  save() {
    clearTimeout(this.timer);
    const { value } = this.field;
    if (value === this.saved || lengthOf(value) > MOST_PROMPT_CHARS) return;
    this.saved = value;
    this.settings.save({ system_prompt: value });
  }
}

class Num {
  constructor(settings, name) {
    Object.assign(this, { settings, name });
    const { [name]: label, [`${name}Hint`]: hint, ranges, unset } = TEXT.settings;
    this.range = ranges[name];
    this.field = new Field({ label, rule: hint ?? this.range, type: "number", step: "any", inputmode: "decimal", placeholder: unset, name });
    this.field.value = this.saved = String(me.settings[name] ?? "");
    this.field.input.addEventListener("change", () => this.save());
  }

  clear() {
    this.field.value = this.saved = "";
    this.field.setProblem("");
  }

  save() {
    const { value, input } = this.field;
    const isBad = input.validity.badInput || (value !== "" && !RANGES[this.name](Number(value)));
    this.field.setProblem(isBad ? TEXT.settings.badNumber(this.range) : "");
    if (isBad || value === this.saved) return;
    this.saved = value;
    this.settings.save({ [this.name]: value === "" ? null : Number(value) });
  }
}
