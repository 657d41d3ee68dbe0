// Light or dark. The server writes the person's choice into the page's first tag, so that nothing has to be waited for;
// Gradio puts `dark` on the body by the system alone, when it starts and when the system changes.

const system = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;

function paint() {
  const { theme } = root.dataset;
  const isDark = theme === "dark" || (theme !== "light" && system.matches);
  if (document.body.classList.contains("dark") !== isDark) document.body.classList.toggle("dark", isDark);
}

/** `theme` is "system", "light" or "dark". */
export function showTheme(theme) {
  root.dataset.theme = theme;
  paint();
}

system.addEventListener("change", paint);
new MutationObserver(paint).observe(document.body, { attributeFilter: ["class"] });
paint();
