// The page's words in the person's language. `TEXT` is empty until `loadTexts` has run: use it inside functions only.

/** Only the language in use is loaded. */
const LANGUAGES = {
  en: () => import("./texts/en.js"),
  de: () => import("./texts/de.js"),
  zh: () => import("./texts/zh.js"),
};

export const TEXT = {};

/** `wanted` is the person's choice; "" leaves it to the browser. */
export async function loadTexts(wanted) {
  const asked = [wanted, ...navigator.languages].map((tag) => tag.split("-")[0].toLowerCase());
  const language = asked.find((tag) => tag in LANGUAGES) ?? "en";
  Object.assign(TEXT, (await LANGUAGES[language]()).TEXT);
  document.documentElement.lang = language;
}
