"""The page in every language it has."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Opens
from tests.live import LiveServer

pytestmark = pytest.mark.browser

WORDS = """async ([one, other]) => {
  const words = (texts, at = "") => Object.entries(texts).flatMap(([key, value]) =>
    value !== null && typeof value === "object" && !Array.isArray(value)
      ? words(value, `${at}${key}.`)
      : [`${at}${key}: ${Array.isArray(value) ? `${value.length} of them` : typeof value}`]);
  const found = await Promise.all([one, other].map((name) => import(`/ponder/js/texts/${name}.js`)));
  return found.map(({ TEXT }) => words(TEXT).filter((word) => !word.startsWith("errors.")));
}"""
PROBE = """async (name) => {
  const { TEXT } = await import(`/ponder/js/texts/${name}.js`);
  const blanks = [];
  const look = (value, at) => {
    if (typeof value === "function") {
      const said = value(2, 3, 4);
      if (Array.isArray(said) ? said.some((part) => !part) : typeof said !== "string") blanks.push(at);
    } else if (value !== null && typeof value === "object") {
      for (const [key, one] of Object.entries(value)) look(one, `${at}.${key}`);
    } else if (!value && at !== ".admin.person.actions") blanks.push(at);
  };
  const { whoAnswers, waitingFor, errors, notice, ...rest } = TEXT;
  look(rest, "");
  for (const [code, say] of Object.entries(errors)) {
    const said = say({ retry_after_s: 100, limit: 3, tokens: 7, limit_tokens: 5, rule: "length" });
    if (!said || said.includes("undefined")) blanks.push(code);
  }
  return blanks;
}"""


@pytest.mark.parametrize("language", ["de", "zh"])
def test_a_language_has_every_word_and_says_something_with_each(opens: Opens, language: str) -> None:
    page = opens()
    english, other = page.evaluate(WORDS, ["en", language])
    assert other == english
    assert page.evaluate(PROBE, language) == []


def test_the_chosen_language_is_there_from_the_first_byte_and_in_every_part(
    live_server: LiveServer, opens: Opens
) -> None:
    page = opens()
    page.locator("#account").get_by_role("button", name="Settings").click()
    page.get_by_label("Language").select_option("de")
    expect(page.locator("#new-chat")).to_have_text("Neuer Chat")
    page.reload()
    page.wait_for_selector("body.ponder-ready")
    assert page.evaluate("document.documentElement.lang") == "de"
    assert '<html lang="de"' in page.context.request.get(live_server.url).text()
    expect(page.locator("#question textarea")).to_have_attribute("placeholder", "Frag etwas Schwieriges")
    expect(page.locator("#effort label").first).to_have_text("Kurz")
    expect(page.locator("#send")).to_have_text("Senden")
    page.keyboard.press("Escape")
    page.locator("#account").get_by_role("button", name="Anmelden").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Benutzername").fill("niemand")
    dialog.get_by_label("Passwort", exact=True).fill("falsches passwort")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_contain_text("passen nicht zusammen")


def test_a_browser_that_speaks_chinese_is_spoken_to_in_chinese(live_server: LiveServer, opens: Opens) -> None:
    browser = opens().context.browser
    assert browser is not None
    context = browser.new_context(locale="zh-CN")
    page = context.new_page()
    page.goto(live_server.url)
    page.wait_for_selector("body.ponder-ready")
    expect(page.locator("#new-chat")).to_have_text("新对话")
    context.close()
