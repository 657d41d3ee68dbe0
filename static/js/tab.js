// The browser's tab: its title and icon say what goes on in it, and that something is ready, until somebody looks.

import { element } from "./dom.js";
import { TEXT } from "./texts.js";

const ICONS = { plain: "favicon.svg", thinking: "favicon-thinking.svg", ready: "favicon-ready.svg" };

/** Whether somebody can be taken to look at the page. */
export const isLookedAt = () => !document.hidden && document.hasFocus();

export class Tab {
  constructor() {
    Object.assign(this, { title: "", isThinking: false, news: "" });
    this.icon = document.querySelector('link[rel="icon"][href*="favicon.svg"]') ?? element("link", { rel: "icon", type: "image/svg+xml" });
    const look = () => isLookedAt() && this.tell("");
    document.addEventListener("visibilitychange", look);
    window.addEventListener("focus", look);
  }

  /** What the shown chat is called; "" is a place without a name. */
  name(title) {
    this.title = title;
    this.show();
  }

  think(isThinking) {
    this.isThinking = isThinking;
    this.show();
  }

  /** Something has ended while nobody looked. */
  tell(news) {
    this.news = news;
    this.show();
  }

  show() {
    const name = this.title ? `${this.title} · ${TEXT.brand}` : TEXT.brand;
    const title = this.news || (this.isThinking ? TEXT.tab.thinking(name) : name);
    if (document.title !== title) document.title = title;
    const shown = this.news ? "ready" : this.isThinking ? "thinking" : "plain";
    if (shown === this.shown) return;
    this.shown = shown;
    this.icon.href = new URL(`../${ICONS[shown]}`, import.meta.url).href;
    // Some browsers look for a new icon only where there is a new element
    document.head.append(this.icon);
  }
}
