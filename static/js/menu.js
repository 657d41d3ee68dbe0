// A menu at a button: arrow keys walk, Enter chooses, Escape and a click elsewhere close it.

import { element, icon } from "./dom.js";

let close = null;

/** `items` are [icon, text, function, className]. The focus goes back to the button, unless the choice takes it. */
export function openMenu(opener, label, items) {
  const isSame = close?.opener === opener;
  close?.();
  if (isSame) return;
  const buttons = items.map(([iconName, text, choose, className = ""]) => {
    const made = element("button", { type: "button", role: "menuitem", tabindex: "-1", className, onclick: () => done(choose) }, icon(iconName), element("span", { text }));
    return made;
  });
  const menu = element("div", { className: "ponder-menu", role: "menu", "aria-label": label }, ...buttons);
  const elsewhere = (event) => menu.contains(event.target) || opener.contains(event.target) || close();
  close = () => {
    if (menu.contains(document.activeElement)) opener.focus();
    menu.remove();
    opener.setAttribute("aria-expanded", "false");
    document.removeEventListener("pointerdown", elsewhere, true);
    window.removeEventListener("resize", close);
    close = null;
  };
  close.opener = opener;
  const done = (choose) => {
    close?.();
    opener.focus();
    choose?.();
  };
  menu.addEventListener("keydown", (event) => {
    const at = buttons.indexOf(document.activeElement);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const to = step ? (at + step + buttons.length) % buttons.length : { Home: 0, End: buttons.length - 1 }[event.key];
    if (to !== undefined) buttons[to].focus();
    else if (event.key === "Escape" || event.key === "Tab") done();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  document.body.append(menu);
  place(menu, opener.getBoundingClientRect());
  opener.setAttribute("aria-expanded", "true");
  document.addEventListener("pointerdown", elsewhere, true);
  window.addEventListener("resize", close);
  buttons[0].focus();
}

/** Below the button, or above where there is no room; never outside the window. */
function place(menu, { top, bottom, left, right }) {
  const { offsetWidth: width, offsetHeight: height } = menu;
  const isBelow = bottom + height + 8 < innerHeight;
  menu.style.top = `${Math.max(8, isBelow ? bottom + 4 : top - height - 4)}px`;
  menu.style.left = `${Math.max(8, Math.min(right - width + 140, innerWidth - width - 8, left))}px`;
}
