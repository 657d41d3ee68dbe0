// Keep a scrolling element at its end while it grows, until the person scrolls up; go on when they come back down.

import { button, icon } from "./dom.js";

const NEAR_PX = 48;

export class Follow {
  /** `content` is what grows inside `scroller`. */
  constructor(scroller, content, label) {
    this.scroller = scroller;
    this.isOn = this.isAllowed = true;
    // Also hears of blocks that get their real height only when they come into sight
    const observer = new ResizeObserver(() => this.grown());
    observer.observe(content);
    observer.observe(scroller);
    this.pill = button(label, () => this.toEnd(), { className: "pill", hidden: true });
    this.pill.prepend(icon("down"));
    let top = 0;
    scroller.addEventListener(
      "scroll",
      () => {
        const { scrollTop, scrollHeight, clientHeight } = scroller;
        if (scrollHeight - scrollTop - clientHeight < NEAR_PX) this.set(true);
        else if (scrollTop < top - 4) this.set(false);
        else this.showPill();
        top = scrollTop;
      },
      { passive: true },
    );
  }

  /** Where it is not wanted, only the pill goes to the end. */
  allow(isAllowed) {
    this.isAllowed = isAllowed;
    if (!isAllowed) this.isOn = false;
  }

  set(isOn) {
    this.isOn = isOn && this.isAllowed;
    this.showPill();
  }

  /** Only where there is something to scroll to. */
  showPill() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.pill.hidden = this.isOn || scrollHeight - scrollTop - clientHeight < NEAR_PX;
  }

  grown() {
    if (this.isOn) this.scroller.scrollTop = this.scroller.scrollHeight;
    else this.showPill();
  }

  toEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.set(true);
  }

  /** Read from the beginning. */
  toStart() {
    this.scroller.scrollTop = 0;
    this.set(false);
  }
}
