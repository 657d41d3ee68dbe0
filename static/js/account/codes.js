// Recovery codes: shown once, in a dialog that only goes when the person says that they have them.

import { Dialog } from "../dialogs.js";
import { button, copyText, element, flash } from "../dom.js";
import { me } from "../me.js";
import { TEXT } from "../texts.js";

/** Resolves when the person has kept them. */
export function showCodes(codes) {
  const { title, about, copy, download, done } = TEXT.codes;
  const copyButton = button(copy, async () => {
    await copyText(codes.join("\n"), dialog.root);
    flash(copyButton, TEXT.copied);
  });
  const body = element(
    "div",
    {},
    element("p", { text: about }),
    element("ol", { className: "codes" }, ...codes.map((text) => element("li", {}, element("code", { text })))),
    element(
      "div",
      { className: "dialog-actions" },
      copyButton,
      button(download, () => save(codes)),
      button(done, () => dialog.close(), { className: "strong" }),
    ),
  );
  const dialog = new Dialog({ title, body, isStaying: true });
  return dialog.closed;
}

function save(codes) {
  const text = TEXT.codes.file(me.person.name, location.host) + codes.join("\n") + "\n";
  const url = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  element("a", { href: url, download: TEXT.codes.fileName }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
