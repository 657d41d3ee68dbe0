// "Tell me when it is ready": who waits for minutes looks elsewhere meanwhile.

import { me } from "./me.js";
import { chime } from "./sound.js";
import { isLookedAt } from "./tab.js";
import { TEXT } from "./texts.js";
import { toast } from "./toast.js";

/** From when on a wait is long. */
export const LONG_S = 20;

/** Android's browsers show notifications of service workers alone, and say so only when it is too late. */
export const canNotify = () => "Notification" in window && window.isSecureContext && !/Android/.test(navigator.userAgent);

/** Whether the browser would still ask, or has been told that it may. */
export const mayNotify = () => canNotify() && Notification.permission !== "denied";

export const isNotifying = () => me.settings.notify === "on" && canNotify() && Notification.permission === "granted";

/** Has the browser ask, which it does only where somebody has just pressed something; whether notifications are wished for now. */
export async function wishNotifications() {
  const isGranted = mayNotify() && (await Notification.requestPermission()) === "granted";
  await me.change({ notify: isGranted ? "on" : "off" });
  return isGranted;
}

/** Of several tabs the first tells: it holds a lock for as long as it lives. */
function isFirst(runId) {
  if (!navigator.locks) return true;
  return new Promise((resolve) => {
    navigator.locks.request(`ponder-told-${runId}`, { ifAvailable: true }, (lock) => {
      resolve(Boolean(lock));
      return lock && new Promise(() => {});
    });
  });
}

export class Bell {
  /** `tab` shows it; `open(id)` goes to a chat. */
  constructor({ tab, open }) {
    Object.assign(this, { tab, open, rung: new Set() });
  }

  /** Whether to offer it: it was never declined, and can still be had. */
  get isToOffer() {
    return mayNotify() && !isNotifying() && me.settings.notify !== "off";
  }

  /** A run has ended; `isShown` says that its chat is the one that is open here. */
  async ring({ runId, id, title, state, isShown, isLong }) {
    if (this.rung.has(runId)) return;
    this.rung.add(runId);
    const isAway = !isLookedAt();
    const name = title || TEXT.newChat;
    const said = state === "done" ? TEXT.bell.isReady(name) : TEXT.bell.hasEnded(name);
    if (isAway) this.tab.tell(state === "done" ? TEXT.tab.ready(name) : TEXT.tab.ended(name));
    if (!isAway && !isShown) toast(said, { way: [TEXT.bell.open, () => this.open(id)], isMinor: true });
    if (!(isAway || !isShown || isLong) || !(await isFirst(runId))) return;
    if (me.settings.sound) chime();
    if (isAway && isNotifying()) this.notify(said, id, runId);
  }

  notify(said, id, runId) {
    try {
      const shown = new Notification(TEXT.brand, { body: said, tag: runId, icon: new URL("../favicon-ready.svg", import.meta.url).href });
      shown.onclick = () => {
        window.focus();
        this.open(id);
        shown.close();
      };
    } catch {
      // The tab's title and icon say it
    }
  }
}
