// Dialogs: the browser's own <dialog> holds the focus and hears Escape.

import { button, element } from "./dom.js";

/** Ask; resolves with true for yes. */
function ask({ title, paragraphs, yes, no, isDanger = false }) {
  return new Promise((resolve) => {
    const heading = element("h2", { text: title, id: "dialog-title" });
    const answer = (value) => {
      dialog.close();
      dialog.remove();
      resolve(value);
    };
    const actions = element(
      "div",
      { className: "dialog-actions" },
      button(no, () => answer(false), { className: "quiet" }),
      button(yes, () => answer(true), { className: isDanger ? "danger" : "strong", autofocus: true }),
    );
    const dialog = element("dialog", { className: "ponder-dialog", "aria-labelledby": "dialog-title" }, heading);
    for (const text of paragraphs) dialog.append(element("p", { text }));
    dialog.append(actions);
    dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      answer(false);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

const NOTICE_KEY = "ponder.notice";
const NOTICE_VERSION = "1";

/** Before the first send: what is kept, and what to expect. Remembered in this browser, without a word of any chat. */
export async function noticeAccepted(model) {
  if (localStorage.getItem(NOTICE_KEY) === NOTICE_VERSION) return true;
  const paragraphs = [
    "What you write and what the model answers is kept on this server, under a cookie of this browser. Whoever runs the " +
      "server can read it. You can delete a chat at any time.",
    "Answers can be wrong, also when they sound sure and when the reasoning looks careful. Check what matters.",
    "QwQ is strong at mathematics and code, and weak at common sense and nuance. It may switch languages or go round in " +
      "circles; “Answer now” ends that.",
  ];
  if (model?.is_demo) {
    paragraphs.push("Right now a small demo model answers. It shows how Ponder works; its answers are often nonsense.");
  }
  const isAccepted = await ask({ title: "Before you ask", paragraphs, yes: "I understand", no: "Not now" });
  if (isAccepted) localStorage.setItem(NOTICE_KEY, NOTICE_VERSION);
  return isAccepted;
}

export const deletionConfirmed = (title) =>
  ask({
    title: "Delete this chat?",
    paragraphs: [`“${title || "New chat"}” and its reasoning will be gone for good.`],
    yes: "Delete",
    no: "Keep",
    isDanger: true,
  });
