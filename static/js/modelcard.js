// Which model answers here, at the foot of the sidebar.

import { element } from "./dom.js";
import { TEXT } from "./texts.js";

export class ModelCard {
  constructor(host) {
    this.host = host;
  }

  show({ state, title, about, stage, progress }) {
    const parts = [element("p", { className: "model-name" }, element("span", { className: `dot ${state}` }), title || TEXT.model)];
    if (state === "failed") parts.push(element("p", { className: "model-state bad", text: TEXT.cannotAnswer }));
    else if (state !== "ready") parts.push(element("p", { className: "model-state", text: `${stage || TEXT.starting} …` }), progressBar(progress));
    if (about) parts.push(element("p", { className: "model-about", text: about }));
    this.host.replaceChildren(...parts);
  }

  showUnreachable() {
    const dot = element("span", { className: "dot failed" });
    this.host.replaceChildren(element("p", { className: "model-name" }, dot, TEXT.notReachable));
  }
}

function progressBar(progress) {
  const bar = element("progress", { max: "1", "aria-label": TEXT.loadingModel });
  if (progress !== null) bar.value = progress;
  return bar;
}
