// Small tools for making elements. Text is only ever set as text; `trusted` HTML comes finished from our own renderer.

export function element(name, { text, className, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

export function button(text, onclick, options = {}) {
  return element("button", { type: "button", text, onclick, ...options });
}

/** A button that does nothing for now; with `disabled` it would lose the focus. */
export const pause = (held, isPaused = true) => held.setAttribute("aria-disabled", String(isPaused));

document.addEventListener("click", holdBack, true);

function holdBack(event) {
  if (!event.target.closest?.("button[aria-disabled='true']")) return;
  event.preventDefault();
  event.stopImmediatePropagation();
}

const PATHS = {
  menu: "M4 6h16M4 12h16M4 18h16",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h10v11H9zM5 15V4h10",
  bin: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  panel: "M4 5h16v14H4zM14 5v14",
  down: "M12 5v14M6 13l6 6 6-6",
  again: "M19 12a7 7 0 1 1-2-4.9M19 4v4h-4",
  chevron: "M7 14l5-5 5 5",
  gear: "M4 7h9M17 7h3M4 17h3M11 17h9M13 7a2 2 0 1 0 4 0a2 2 0 1 0-4 0M7 17a2 2 0 1 0 4 0a2 2 0 1 0-4 0",
  more: "M5 12h.1M12 12h.1M19 12h.1",
  pencil: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  left: "M14 6l-6 6l6 6",
  right: "M10 6l6 6l-6 6",
  search: "M4 11a7 7 0 1 0 14 0a7 7 0 1 0-14 0M16 16l4 4",
  box: "M4 8h16v12H4zM3 4h18v4H3zM10 12h4",
  clock: "M4 12a8 8 0 1 0 16 0a8 8 0 1 0-16 0M12 8v4l3 2",
  pin: "M9 4h6l-1 6l3 3H7l3-3zM12 13v7",
  warning: "M12 4l9 16H3zM12 10v4M12 17v.1",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

export function iconButton(name, label, onclick, options = {}) {
  const made = element("button", { type: "button", className: "icon-button", "aria-label": label, title: label, onclick, ...options });
  made.append(icon(name));
  return made;
}

export function fragment(trusted) {
  const template = document.createElement("template");
  template.innerHTML = trusted;
  return template.content;
}

/** Resolves with the element once Gradio has drawn it. */
export function drawn(selector) {
  const find = () => document.querySelector(selector);
  if (find()) return Promise.resolve(find());
  return new Promise((resolve) => {
    const observer = new MutationObserver(() => {
      if (!find()) return;
      observer.disconnect();
      resolve(find());
    });
    observer.observe(document.documentElement, { childList: true, subtree: true });
  });
}

/** Show `text` in a label for a moment. */
export function flash(label, text) {
  label.dataset.text ??= label.textContent;
  label.textContent = text;
  clearTimeout(Number(label.dataset.timer));
  label.dataset.timer = setTimeout(() => (label.textContent = label.dataset.text), 1500);
}

/** `host` is where the page can hold a selection: the dialog, while one is open. */
export async function copyText(text, host = document.body) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without a secure context there is no clipboard object
    const area = element("textarea", { className: "off-screen" });
    area.value = text;
    const focused = document.activeElement;
    host.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    focused?.focus();
  }
}

/** A flag in the browser's storage; where storage is forbidden, it lives as long as the page. */
export class Flag {
  constructor(area, key) {
    Object.assign(this, { area, key, value: null });
  }

  get() {
    try {
      return window[this.area].getItem(this.key);
    } catch {
      return this.value;
    }
  }

  set(value) {
    this.value = value;
    try {
      window[this.area].setItem(this.key, value);
    } catch {
      // Kept in `value`
    }
  }
}

export const isNarrow = () => matchMedia("(max-width: 1023px)").matches;
export const isPhone = () => matchMedia("(max-width: 767px)").matches;

const language = () => document.documentElement.lang || "en";

export const count = (number) => Math.round(number ?? 0).toLocaleString(language());

export const day = (time) => new Date(time).toLocaleDateString(language(), { dateStyle: "medium" });

export const dayAndHour = (time) => new Date(time).toLocaleString(language(), { dateStyle: "medium", timeStyle: "short" });

export function seconds(value) {
  const whole = Math.max(1, Math.round(value));
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}
