// The administration, in the middle of the page: numbers, people, what is being answered. Never the text of a chat.

import { adminApi } from "../api.js";
import { button, count, day, element, seconds } from "../dom.js";
import { TEXT } from "../texts.js";
import { People } from "./people.js";
import { table } from "./table.js";

const POLL_MS = 4000;
const SUMMED = ["runs", "done", "stopped", "failed", "interrupted", "reasoning_tokens", "answer_tokens"];

export class AdminView {
  constructor() {
    const { about, totals, model, running, usage, quotas } = TEXT.admin;
    const part = (title) => element("section", { className: "part" }, element("h3", { text: title }), element("div"));
    this.people = new People();
    this.problem = element("div", { className: "problems" });
    this.parts = { totals: part(totals), model: part(model), runs: part(running), usage: part(usage), quotas: part(quotas) };
    const { totals: first, model: second, runs, usage: days, quotas: limits } = this.parts;
    this.root = element("section", { className: "admin" }, element("p", { className: "rule", text: about }), this.problem, first, second, runs, this.people.root, days, limits);
    this.people.read();
    this.attempt(async () => this.showQuotas(await adminApi.quotas()));
    this.poll();
  }

  close() {
    this.isClosed = true;
    clearTimeout(this.timer);
  }

  async poll() {
    if (!document.hidden) {
      await this.attempt(async () => {
        const [{ items }, usage] = await Promise.all([adminApi.runs(), adminApi.usage()]);
        this.showRuns(items);
        this.showUsage(usage);
        this.showModel(usage.model);
      });
    }
    if (!this.isClosed) this.timer = setTimeout(() => this.poll(), POLL_MS);
  }

  async attempt(call) {
    try {
      await call();
      this.problem.replaceChildren();
    } catch (error) {
      // The same problem at every poll would be read aloud at every poll
      if (this.problem.textContent === error.message) return;
      this.problem.replaceChildren(element("p", { className: "problem", role: "alert", text: error.message }));
    }
  }

  put(name, key, ...shown) {
    const host = this.parts[name].lastElementChild;
    const drawn = JSON.stringify(key);
    if (host.dataset.drawn === drawn) return;
    const focused = host.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
    const left = host.querySelector(".table-box")?.scrollLeft ?? 0;
    host.dataset.drawn = drawn;
    host.replaceChildren(...shown);
    const box = host.querySelector(".table-box");
    if (box) box.scrollLeft = left;
    if (focused) host.querySelector(`[data-focus="${focused}"]`)?.focus();
  }

  showRuns(items) {
    const { noRuns, run, states, place, stop, stopOf, guest, running } = TEXT.admin;
    const rows = items.map((item) => ({
      person: item.name || guest,
      state: item.place ? place(item.place) : (states[item.state] ?? item.state),
      effort: TEXT.efforts[item.effort] ?? item.effort,
      since: seconds(item.elapsed_s),
      tokens: count(item.reasoning_tokens + item.answer_tokens),
      stop: button(stop, () => this.stop(item.id), { className: "plain small", "aria-label": stopOf(item.name || guest), "data-focus": item.id }),
    }));
    const shown = rows.length ? table(running, { ...run, stop: "" }, rows, ["since", "tokens"]) : element("p", { text: noRuns });
    this.put("runs", items, shown);
  }

  stop(id) {
    return this.attempt(async () => {
      await adminApi.stopRun(id);
      this.showRuns((await adminApi.runs()).items);
    });
  }

  showUsage({ people, conversations, messages, sessions, database_bytes: bytes, days }) {
    const { total, usage, noUsage, sum } = TEXT.admin;
    const numbers = { ...people, conversations, messages, sessions };
    const figures = Object.entries(numbers).map(([name, number]) => figure(count(number), total[name]));
    if (bytes !== null) figures.push(figure(bytes < 2 ** 20 ? `${count(bytes / 2 ** 10)} KiB` : `${count(bytes / 2 ** 20)} MiB`, total.database));
    this.put("totals", [numbers, bytes], element("ul", { className: "figures-row" }, ...figures));
    const rows = days.map((one) => ({ ...mapped(one, count), day: day(`${one.day}T12:00:00`) }));
    const summed = Object.fromEntries(SUMMED.map((name) => [name, days.reduce((so, one) => so + (one[name] ?? 0), 0)]));
    if (rows.length > 1) rows.push({ ...mapped(summed, count), day: element("strong", { text: sum }) });
    const shown = rows.length ? table(usage, TEXT.admin.day, rows, [...SUMMED, "people"]) : element("p", { text: noUsage });
    this.put("usage", days, shown);
  }

  showModel(model) {
    const { modelStates } = TEXT.admin;
    const state = [modelStates[model.state] ?? model.state, model.state === "ready" ? "" : model.stage].filter(Boolean).join(": ");
    const lines = [element("p", {}, element("strong", { text: model.title ?? TEXT.admin.noModel }), `, ${state}`)];
    if (model.problem) lines.push(element("p", { className: "bad", text: model.problem }));
    if (model.way) lines.push(element("p", { className: "rule", text: model.way }));
    this.put("model", model, ...lines);
  }

  showQuotas(quotas) {
    const { quotaLine, guestsHave, accountsHave } = TEXT.admin;
    const line = (who, kind) => element("p", { text: quotaLine(who, quotas[`${kind}_runs_per_day`], quotas[`${kind}_runs_at_once`]) });
    this.put("quotas", quotas, line(guestsHave, "guest"), line(accountsHave, "account"));
  }
}

const mapped = (values, change) => Object.fromEntries(Object.entries(values).map(([name, value]) => [name, typeof value === "number" ? change(value) : value]));

function figure(number, text) {
  return element("li", {}, `${text} `, element("strong", { text: number }));
}
