// A growing text of finished HTML blocks. Closed blocks are appended once and never touched again; only the tail, the
// piece that is still being written, is replaced. All writing to the page happens in animation frames, a slice of
// SLICE_MS each, so that a long replay does not freeze the page. Blocks stand in chunks, which the browser skips while
// they are out of sight: skipping each block by itself would cost a look at thousands of them in every frame.

import { element, fragment } from "./dom.js";

const SLICE_MS = 10;
const CHUNK = 40;

export class Blocks {
  constructor(host) {
    this.host = host;
    this.chunk = null;
    this.tail = null;
    this.work = [];
    this.nextTail = null;
    this.frame = 0;
  }

  block(trusted) {
    this.nextTail = null;
    this.work.push(() => this.close(trusted));
    this.schedule();
  }

  showTail(trusted) {
    this.nextTail = trusted;
    this.schedule();
  }

  reset(blocks = []) {
    this.work = [];
    this.nextTail = null;
    this.tail = null;
    this.chunk = null;
    this.host.replaceChildren();
    for (const trusted of blocks) this.block(trusted);
  }

  /** Show a finished text, which comes as one piece but goes onto the page block by block. */
  show(trusted) {
    this.reset();
    for (const made of [...fragment(trusted).children]) this.work.push(() => this.put(made, made));
    this.schedule();
  }

  /** When all that was given so far is on the page. */
  settled() {
    return new Promise((resolve) => {
      this.work.push(resolve);
      this.schedule();
    });
  }

  schedule() {
    if (!this.frame) this.frame = requestAnimationFrame(() => this.write());
  }

  write() {
    this.frame = 0;
    const end = performance.now() + SLICE_MS;
    let done = 0;
    while (done < this.work.length && performance.now() < end) this.work[done++]();
    this.work.splice(0, done);
    if (this.work.length) this.schedule();
    else if (this.nextTail !== null) this.replaceTail();
  }

  close(trusted) {
    this.tail?.remove();
    this.tail = null;
    const made = fragment(trusted);
    this.put(made, made.firstElementChild);
  }

  /** A block that goes on where the last one was cut stays beside it. */
  put(made, first = null) {
    const goesOn = first?.classList.contains("cont");
    if (!this.chunk || (this.chunk.childElementCount >= CHUNK && !goesOn)) this.openChunk();
    this.chunk.append(made);
  }

  openChunk() {
    this.chunk?.classList.add("full");
    this.chunk = element("div", { className: "chunk" });
    this.host.insertBefore(this.chunk, this.tail);
  }

  replaceTail() {
    const made = element("div", { className: "tail" });
    made.append(fragment(this.nextTail));
    this.nextTail = null;
    if (this.tail) this.tail.replaceWith(made);
    else this.host.append(made);
    this.tail = made;
  }
}
