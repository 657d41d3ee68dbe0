// What has just happened, at the foot of the page for a while, and how to undo it.

import { button, element } from "./dom.js";
import { rest } from "./focus.js";
import { TEXT } from "./texts.js";

const SHOWN_MS = 10_000;
let region = null;
let timer = 0;

/**
 * Say `text`; with `undo` there is a button for it as long as the server can. `isFocused` gives that button the focus where
 * what had it is gone. `way` is another button: text and function. What `isMinor` takes no button away that is there.
 */
export function toast(text, { undo, way, isBad = false, isFocused = false, isMinor = false } = {}) {
  if (isMinor && region?.querySelector("button")) return;
  clearTimeout(timer);
  // A live region is read when its content changes, so it has to be there before
  if (!region) document.body.append((region = element("div", { className: "ponder-toasts", role: "status" })));
  const made = element("div", { className: isBad ? "ponder-toast bad" : "ponder-toast", role: isBad ? "alert" : undefined }, element("span", { text, dir: "auto" }));
  const end = () => {
    const hadFocus = made.contains(document.activeElement);
    made.remove();
    if (hadFocus) rest();
  };
  const [label, go] = undo ? [TEXT.undo, undo] : (way ?? []);
  const take = () => {
    end();
    go();
  };
  const back = go ? button(label, take) : null;
  if (back) made.append(back);
  region.replaceChildren(made);
  if (back && isFocused && isNowhere(document.activeElement)) back.focus({ preventScroll: true });
  timer = setTimeout(end, SHOWN_MS);
}

const isNowhere = (focused) => !focused || focused === document.body || !focused.checkVisibility();
