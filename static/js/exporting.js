// Taking a conversation, or everything, along as a file.

import { api } from "./api.js";
import { Dialog } from "./dialogs.js";
import { button, element } from "./dom.js";
import { TEXT } from "./texts.js";

/** The browser saves what the address gives; the server names the file. */
export function download(address) {
  const link = element("a", { href: address, download: "" });
  document.body.append(link);
  link.click();
  link.remove();
}

/** Ask in which format. */
export function exportDialog(item) {
  const { title, about, formats, withReasoning } = TEXT.exporting;
  const reasoning = element("input", { type: "checkbox", id: "export-reasoning", checked: true });
  const take = (format) => () => {
    download(api.exportOf(item.id, format, reasoning.checked));
    dialog.close();
  };
  const ways = Object.entries(formats).map(([format, [name, what]], index) =>
    element("button", { type: "button", className: "way", autofocus: index === 0, onclick: take(format) }, element("strong", { text: name }), element("span", { text: what })),
  );
  const check = element("p", { className: "check" }, reasoning, element("label", { for: "export-reasoning", text: withReasoning }));
  const body = element("div", { className: "export" }, element("p", { text: about(item.title || TEXT.newChat) }), check, ...ways);
  body.append(element("div", { className: "dialog-actions" }, button(TEXT.cancel, () => dialog.close(), { className: "quiet" })));
  const dialog = new Dialog({ title, body });
}
