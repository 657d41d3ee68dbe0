// Settings, Chats: everything as a file, chats from a file, and deleting them all.

import { api } from "../api.js";
import { ask } from "../dialogs.js";
import { button, count, element, pause } from "../dom.js";
import { download } from "../exporting.js";
import { me } from "../me.js";
import { TEXT } from "../texts.js";
import { toast } from "../toast.js";

/** As the server has them. */
const MOST_MB = 200;
const MOST_GUEST_MB = 5;

export function chats(settings) {
  return { parts: [exporting(), importing(settings), deleting(settings)] };
}

function part(title, ...children) {
  return element("section", { className: "part" }, element("h3", { text: title }), ...children);
}

function exporting() {
  const { exportTitle, exportAbout, exportAll } = TEXT.data;
  const reasoning = element("input", { type: "checkbox", id: "export-all-reasoning", checked: true });
  const check = element("p", { className: "check" }, reasoning, element("label", { for: "export-all-reasoning", text: TEXT.exporting.withReasoning }));
  const take = button(exportAll, () => download(api.exportOfAll(reasoning.checked)), { className: "plain" });
  return part(exportTitle, element("p", { text: exportAbout }), check, take);
}

function importing(settings) {
  const { importTitle, importAbout, importFile, importNobody, importTooLarge } = TEXT.data;
  if (me.person.kind === "nobody") return part(importTitle, element("p", { text: importNobody }));
  const megabytes = me.isAccount ? MOST_MB : MOST_GUEST_MB;
  const input = element("input", { type: "file", accept: ".json,application/json", id: "import-file", className: "off-screen", tabindex: "-1", "aria-label": importFile });
  const choose = button(importFile, () => input.click(), { className: "plain" });
  const outcome = element("div", { className: "import-outcome", role: "status" });
  input.addEventListener("change", async () => {
    const [file] = input.files;
    input.value = "";
    settings.tell("");
    if (!file) return;
    if (file.size > megabytes * 1024 * 1024) {
      settings.tell(importTooLarge(megabytes), { isBad: true });
      return;
    }
    pause(choose);
    await bring(file, outcome, settings);
    pause(choose, false);
  });
  return part(importTitle, element("p", { text: importAbout(megabytes) }), input, choose, outcome);
}

/** It goes on when the settings are closed, and says its end wherever the person is then. */
async function bring(file, outcome, settings) {
  const { sending, reading, imported } = TEXT.data;
  const text = element("p", { text: sending });
  const bar = element("progress", { max: "1", "aria-label": sending });
  outcome.replaceChildren(text, bar);
  const onProgress = (done) => {
    if (done < 1) bar.value = done;
    else {
      bar.removeAttribute("value");
      text.textContent = reading;
    }
  };
  try {
    const { conversations, messages, left_out: leftOut } = await api.importFile(file, onProgress);
    const said = [imported(conversations, messages), ...leftOutOf(leftOut)].join(" ");
    outcome.replaceChildren(element("p", { text: said }));
    if (!outcome.isConnected) toast(said);
    await settings.page.onChats();
  } catch (error) {
    outcome.replaceChildren();
    if (outcome.isConnected) settings.tell(error.message, { isBad: true });
    else toast(error.message, { isBad: true });
  }
}

function leftOutOf(leftOut) {
  const kinds = Object.entries(leftOut).filter(([, number]) => number);
  if (!kinds.length) return [];
  return [TEXT.data.leftOut(kinds.map(([kind, number]) => `${TEXT.data.leftOutKinds[kind] ?? kind}: ${count(number)}`).join(", "))];
}

function deleting(settings) {
  const { deleteTitle, deleteAbout, deleteAll, deleteAsk, deleted } = TEXT.data;
  const remove = async () => {
    if (!(await ask({ ...deleteAsk, isDanger: true }))) return;
    try {
      const { deletion_id: id, count: number } = await api.deleteAll();
      await settings.page.onAllDeleted();
      settings.dialog.close();
      const undo = () => settings.page.restore(() => api.restoreAll(id));
      toast(deleted(number), { undo: number ? undo : undefined, isFocused: true });
    } catch (error) {
      settings.tell(error.message, { isBad: true });
    }
  };
  return part(deleteTitle, element("p", { text: deleteAbout }), button(deleteAll, remove, { className: "danger plain" }));
}
