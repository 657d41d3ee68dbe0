// Versions of a message side by side: arrows between them, and a question that is edited in its place.

import { button, element, iconButton, pause } from "./dom.js";
import { rest } from "./focus.js";
import { TEXT } from "./texts.js";

/** The messages that stand at the same place, the oldest first. */
export function siblingsOf({ messages }, message) {
  return families(messages).get(message.parent_id) ?? [];
}

const known = new WeakMap();

/** A long chat asks for every message; the messages of one answer of the server never change. */
function families(messages) {
  if (known.get(messages)?.length === messages.length) return known.get(messages).byParent;
  const byParent = new Map();
  for (const message of messages) {
    if (!byParent.has(message.parent_id)) byParent.set(message.parent_id, []);
    byParent.get(message.parent_id).push(message);
  }
  known.set(messages, { length: messages.length, byParent });
  return byParent;
}

/** `‹ 2/3 ›`, or nothing for an only child; `onShow` gets the id of the version to show. */
export function arrows(siblings, id, onShow) {
  const at = siblings.findIndex((one) => one.id === id);
  if (siblings.length < 2 || at < 0) return "";
  const step = (name, label, to) =>
    iconButton(name, label, () => onShow(siblings[to].id), { disabled: !siblings[to], "data-focus": `${name}-${siblings[0].id}` });
  return element(
    "div",
    { className: "branches", role: "group", "aria-label": TEXT.versions },
    step("left", TEXT.previousVersion, at - 1),
    element("span", { text: `${at + 1}/${siblings.length}`, "aria-label": TEXT.versionOf(at + 1, siblings.length) }),
    step("right", TEXT.nextVersion, at + 1),
  );
}

/** A question in the chat; `onEdit` gets the new text and says whether it was taken. */
export function questionView(message, siblings, { onEdit, onShow }) {
  const text = element("p", { text: message.text, dir: "auto" });
  const edit = iconButton("pencil", TEXT.editQuestion, () => openEditor(message.text), { className: "icon-button edit needs-idle" });
  const tools = element("div", { className: "question-tools" }, arrows(siblings, message.id, onShow), edit);
  const root = element("article", { className: "question", "aria-label": TEXT.you, "data-id": message.id }, text, tools);

  // Begun before: nobody has asked for the focus
  root.addEventListener("edit", ({ detail }) => openEditor(detail, { isToFocus: false }));

  function openEditor(begun, { isToFocus = true } = {}) {
    const area = element("textarea", { "aria-label": TEXT.editQuestion, rows: Math.min(10, message.text.split("\n").length + 1) });
    area.defaultValue = message.text;
    area.value = begun;
    const leave = () => {
      root.classList.remove("edited");
      root.replaceChildren(text, tools);
      edit.focus();
      // A run that has begun meanwhile has hidden it
      if (document.activeElement !== edit) rest();
    };
    const send = async () => {
      if (!area.value.trim()) return;
      pause(agree);
      await onEdit(area.value);
      pause(agree, false);
    };
    const agree = button(TEXT.send, send, { className: "strong" });
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") leave();
      else if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) send();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    const row = element("div", { className: "edit-row" }, button(TEXT.cancel, leave, { className: "quiet" }), agree);
    root.classList.add("edited");
    root.replaceChildren(element("div", { className: "editor" }, area, row));
    if (!isToFocus) return;
    area.focus();
    // After the chat has scrolled to its end, as it does when it grows
    setTimeout(() => root.scrollIntoView({ block: "center" }), 80);
    area.setSelectionRange(area.value.length, area.value.length);
  }
  return root;
}
