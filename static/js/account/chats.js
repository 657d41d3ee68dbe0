// Settings, Chats: everything as a file, chats from a file, and deleting them all.

import { api } from "../api.js";
import { ask } from "../dialogs.js";
import { button, count, element } from "../dom.js";
import { download } from "../exporting.js";
import { me } from "../me.js";
import { TEXT } from "../texts.js";
import { toast } from "../toast.js";

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
  const { importTitle, importAbout, importFile, importing: busy, imported, importTooLarge, importNobody } = TEXT.data;
  if (me.person.kind === "nobody") return part(importTitle, element("p", { text: importNobody }));
  const megabytes = me.isAccount ? 200 : 5;
  const input = element("input", { type: "file", accept: ".json,application/json", id: "import-file", className: "off-screen" });
  const choose = button(importFile, () => input.click(), { className: "plain" });
  const status = element("p", { role: "status" });
  input.addEventListener("change", async () => {
    const [file] = input.files;
    if (!file) return;
    input.value = "";
    if (file.size > megabytes * 1e6) {
      settings.tell(importTooLarge(megabytes), { isBad: true });
      return;
    }
    choose.disabled = true;
    settings.tell("");
    status.textContent = busy;
    try {
      const { conversations, messages, left_out: leftOut } = await api.importFile(file);
      const left = Object.values(leftOut).reduce((sum, number) => sum + number, 0);
      status.textContent = imported(count(conversations), count(messages), left);
      await settings.page.onChats();
    } catch (error) {
      status.textContent = "";
      settings.tell(error.message, { isBad: true });
    } finally {
      choose.disabled = false;
    }
  });
  return part(importTitle, element("p", { text: importAbout(megabytes) }), input, choose, status);
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
      toast(deleted(number), number ? undo : null);
    } catch (error) {
      settings.tell(error.message, { isBad: true });
    }
  };
  return part(deleteTitle, element("p", { text: deleteAbout }), button(deleteAll, remove, { className: "danger plain" }));
}
