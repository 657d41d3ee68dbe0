// Unsent text, by chat. It lives as long as the page; only over a reload that the page itself makes does the browser
// keep it, for that moment alone.

const KEY = "ponder.carried";

/** Keep this for the page that is loaded next; whether the browser takes it. */
export function carry(given) {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(given));
    return true;
  } catch {
    return false;
  }
}

/** What the page before this one has given, once. */
export function carried() {
  try {
    const given = sessionStorage.getItem(KEY);
    sessionStorage.removeItem(KEY);
    return JSON.parse(given) ?? {};
  } catch {
    return {};
  }
}
