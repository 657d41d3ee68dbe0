// Waiting that goes on while the page is hidden: browsers let a hidden page's own timers run once a minute, those of a
// worker on time.

const waiting = new Map();
let worker = null;
let last = 0;

function start() {
  worker = new Worker(new URL("./clock-worker.js", import.meta.url));
  worker.onmessage = ({ data: id }) => {
    waiting.get(id)?.();
    waiting.delete(id);
  };
  // Without it, late is better than never
  worker.onerror = () => {
    worker.onerror = null;
    for (const done of waiting.values()) setTimeout(done);
    waiting.clear();
    worker = { postMessage: ({ id, ms }) => setTimeout(() => worker.onmessage({ data: id }), ms), onmessage: worker.onmessage };
  };
}

/** Call `done` in so many milliseconds; what it gives back takes that back. */
export function later(ms, done) {
  if (!worker) start();
  const id = ++last;
  waiting.set(id, done);
  worker.postMessage({ id, ms });
  return () => waiting.delete(id);
}
