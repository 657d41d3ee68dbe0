// What has just happened, at the foot of the page for a while, and how to undo it.

import { button, element } from "./dom.js";
import { TEXT } from "./texts.js";

const SHOWN_MS = 10_000;
let shown = null;
let timer = 0;

/** Say `text`; with `undo` there is a button for it as long as the server can. */
export function toast(text, undo) {
  clearTimeout(timer);
  shown?.remove();
  const made = element("div", { className: "ponder-toast", role: "status" }, element("span", { text }));
  const end = () => made.remove();
  if (undo) {
    const take = () => {
      end();
      undo();
    };
    made.append(button(TEXT.undo, take));
  }
  // A live region is read when its content changes, so it has to be there before
  document.body.append(made);
  shown = made;
  timer = setTimeout(end, SHOWN_MS);
}
