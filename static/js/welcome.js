// What the chat's middle shows when there is no conversation to show.

import { button, element } from "./dom.js";
import { TEXT } from "./texts.js";

/** An empty chat: what this is, who answers, and something to try. */
export class Welcome {
  constructor(onExample) {
    this.about = element("p", { className: "welcome-model" });
    const examples = TEXT.examples.map((text) => button(text, () => onExample(text), { className: "example" }));
    this.root = element(
      "section",
      { className: "welcome" },
      element("h2", { text: TEXT.welcome }),
      element("p", { text: TEXT.welcomeAbout }),
      this.about,
      element("div", { className: "examples" }, ...examples),
    );
  }

  showModel(model) {
    this.about.textContent = TEXT.whoAnswers(model);
  }
}

/** There is no such conversation, or it cannot be had now; `ways` are what can be done: text and function. */
export function absence(title, about, ...ways) {
  const buttons = ways.map(([text, onclick]) => button(text, onclick, { className: "example" }));
  return element(
    "section",
    { className: "welcome absence" },
    element("h2", { text: title }),
    element("p", { text: about }),
    element("div", { className: "absence-ways" }, ...buttons),
  );
}
