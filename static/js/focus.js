// Where the keyboard is. What has the focus goes away all the time: a button that has done its work, a row of the list,
// a field. The browser then leaves the focus on the body, and people who work by keyboard start over at the top of the page.

import { isPhone } from "./dom.js";

/** In a dialog, the first that there is of these. */
const IN_DIALOGS = ["[autofocus]", ".section", "input:not([type=hidden], [tabindex='-1'])", "button"];

let place = () => null;

/** `find` gives the element that gets the focus where nothing else is to have it. */
export function restAt(find) {
  place = find;
}

/** There a field with the focus brings up a keyboard, which covers half of the page. */
export const hasTouchKeyboard = () => isPhone() || matchMedia("(hover: none) and (pointer: coarse)").matches;

const isNothing = (at) => !at || at === document.body || at === document.documentElement;

/** Whether nothing has the focus. */
export const isLost = () => isNothing(document.activeElement);

/** Whether this can still have the focus, or would lose it with the next picture. */
export function isUsable(element) {
  return element.isConnected && !element.matches(":disabled") && !element.closest("[inert]") && element.checkVisibility({ visibilityProperty: true });
}

/** Focus what may be no control, as an answer or a heading. */
export function focusOn(element) {
  if (!element) return;
  if (element.tabIndex < 0 && !element.hasAttribute("tabindex")) {
    element.tabIndex = -1;
    element.addEventListener("blur", () => element.removeAttribute("tabindex"), { once: true });
  }
  element.focus({ preventScroll: true });
}

/** The focus goes where one goes on from: in the dialog, while one is open. */
export function rest() {
  const dialog = [...document.querySelectorAll("dialog[open]")].at(-1);
  focusOn(dialog ? IN_DIALOGS.map((one) => dialog.querySelector(one)).find(Boolean) : place());
}

/** Bring back the focus wherever it gets lost. */
export function watchFocus() {
  let last = null;
  let frame = 0;
  const look = () => {
    if (!last || !isLost() || isUsable(last)) return;
    last = null;
    rest();
  };
  document.addEventListener("focusin", ({ target }) => (last = target));
  const watch = new MutationObserver(() => {
    look();
    // What is only disabled or hidden loses the focus with the next picture
    frame ||= requestAnimationFrame(() => setTimeout(() => ((frame = 0), look())));
  });
  watch.observe(document.body, { subtree: true, childList: true, attributeFilter: ["disabled", "hidden", "class", "inert", "open"] });
}
