// Where the list has headings: the pinned, then by how long ago a chat was last used.

import { TEXT } from "../texts.js";

const DAYS = ["today", "yesterday", "week", "older"];

/** How many midnights ago it was, here: a day can have 23 or 25 hours. */
function daysAgo(time, now) {
  const then = new Date(time);
  const midnights = [now, then].map((one) => Date.UTC(one.getFullYear(), one.getMonth(), one.getDate()));
  return (midnights[0] - midnights[1]) / 86_400_000;
}

function dayOf(item, now) {
  const days = daysAgo(item.updated_at, now);
  if (days < 1) return 0;
  if (days < 2) return 1;
  return days <= 7 ? 2 : 3;
}

/** `[{key, title, items}]` in the order of `items`: a clock that was wrong once puts no chat in a second group of its day. */
export function grouped(items, now = new Date()) {
  const groups = [];
  let reached = 0;
  for (const item of items) {
    if (!item.is_pinned) reached = Math.max(reached, dayOf(item, now));
    const key = item.is_pinned ? "pinned" : DAYS[reached];
    if (groups.at(-1)?.key !== key) groups.push({ key, title: TEXT.groups[key], items: [] });
    groups.at(-1).items.push(item);
  }
  return groups;
}
