// Dialogs: the browser's own <dialog> holds the focus, hears Escape and gives the focus back.

import { button, element, Flag } from "./dom.js";
import { TEXT } from "./texts.js";

/** Ask; resolves with true for yes. What cannot be undone has its No focused. */
function ask({ title, body, yes, no, isDanger = false }) {
  return new Promise((resolve) => {
    const answer = (value) => {
      dialog.close();
      dialog.remove();
      resolve(value);
    };
    const dialog = element(
      "dialog",
      { className: "ponder-dialog", "aria-labelledby": "dialog-title" },
      element("h2", { text: title, id: "dialog-title" }),
      body,
      element(
        "div",
        { className: "dialog-actions" },
        button(no, () => answer(false), { className: "quiet", autofocus: isDanger }),
        button(yes, () => answer(true), { className: isDanger ? "danger" : "strong", autofocus: !isDanger }),
      ),
    );
    dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      answer(false);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

const NOTICE_VERSION = "1";
const noticeFlag = new Flag("localStorage", "ponder.notice");

/** Before the first send: what is kept, and what to expect. Remembered in this browser, without a word of any chat. */
export async function noticeAccepted(model) {
  if (noticeFlag.get() === NOTICE_VERSION) return true;
  const { title, points, demo, yes, no } = TEXT.notice;
  const shown = model?.is_demo ? [...points, demo] : points;
  const items = shown.map(([lead, rest]) => element("li", {}, element("strong", { text: lead }), ` ${rest}`));
  const isAccepted = await ask({ title, body: element("ul", {}, ...items), yes, no });
  if (isAccepted) noticeFlag.set(NOTICE_VERSION);
  return isAccepted;
}

export function deletionConfirmed(title) {
  const { about, ...texts } = TEXT.deletion;
  return ask({ ...texts, body: element("p", { text: about(title) }), isDanger: true });
}
