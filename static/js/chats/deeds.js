// What can be done with a chat: its menu, and what follows from each choice. What is gone can be taken back for a while.

import { api } from "../api.js";
import { exportDialog } from "../exporting.js";
import { openMenu } from "../menu.js";
import { TEXT } from "../texts.js";
import { toast } from "../toast.js";

export class Deeds {
  /** `on` has changed(item), deleted(id), restored(id) and reread(), which resolves when the list is up to date. */
  constructor(on) {
    this.on = on;
  }

  /** `rename` makes the title a field where it stands. */
  openMenu(item, opener, rename) {
    const change = (changes) => () => this.change(item, changes);
    const take = ["down", TEXT.exportChat, () => exportDialog(item)];
    const kept = [
      ["pencil", TEXT.rename, rename],
      ["pin", item.is_pinned ? TEXT.unpin : TEXT.pin, change({ is_pinned: !item.is_pinned })],
      ["box", item.is_archived ? TEXT.unarchive : TEXT.archive, () => this.archive(item)],
      take,
      ["bin", TEXT.deleteIt, () => this.remove(item), "danger"],
    ];
    const passing = [take, ["bin", TEXT.temporary.end, () => this.remove(item), "danger"]];
    openMenu(opener, TEXT.optionsOf(item.title || TEXT.newChat), item.is_temporary ? passing : kept);
  }

  /** `said` gets the chat as it is then; if another tab was first, what it did is shown. */
  async change(item, changes, said = () => {}) {
    try {
      const changed = await api.changeConversation(item.id, { ...changes, version: item.version });
      this.on.changed(changed);
      said(changed);
    } catch (error) {
      toast(error.message, { isBad: true });
    }
    await this.on.reread();
  }

  archive(item) {
    return this.change(item, { is_archived: !item.is_archived }, (changed) => {
      const title = changed.title || TEXT.newChat;
      const undo = () => this.change(changed, { is_archived: item.is_archived });
      toast(changed.is_archived ? TEXT.isArchived(title) : TEXT.isBack(title), { undo, isFocused: true });
    });
  }

  async remove(item) {
    try {
      await api.deleteConversation(item.id);
    } catch (error) {
      // Deleted in another tab: gone is what was wanted
      if (error.code !== "not_found") {
        toast(error.message, { isBad: true });
        return;
      }
    }
    this.on.deleted(item.id);
    const title = item.title || TEXT.newChat;
    const undo = () => this.restore(() => api.restoreConversation(item.id), item.id);
    if (item.is_temporary) toast(TEXT.temporary.gone);
    else toast(TEXT.isDeleted(title), { undo, isFocused: true });
    await this.on.reread();
  }

  /** `call` brings back what was deleted; `id` is opened again. */
  async restore(call, id = null) {
    try {
      await call();
      this.on.restored(id);
    } catch (error) {
      toast(error.message, { isBad: true });
    }
    await this.on.reread();
  }
}
