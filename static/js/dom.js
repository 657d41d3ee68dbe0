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

const PATHS = {
  menu: "M4 6h16M4 12h16M4 18h16",
  close: "M6 6l12 12M18 6L6 18",
  bin: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  panel: "M4 5h16v14H4zM14 5v14",
  down: "M12 5v14M6 13l6 6 6-6",
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

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without a secure context there is no clipboard object
    const area = element("textarea", { className: "off-screen" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

export const count = (number) => Math.round(number ?? 0).toLocaleString("en-US");

export function seconds(value) {
  if (value < 60) return `${Math.max(1, Math.round(value))} s`;
  return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}
