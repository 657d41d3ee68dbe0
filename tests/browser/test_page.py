import re
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from app.engine.base import EngineStatus
from app.static_files import address
from tests.browser.conftest import PHONE, Opens
from tests.live import LiveServer
from tests.scripted import CLOSE, HOLD

pytestmark = pytest.mark.browser

THOUGHTS = "First \\(x^2\\).\n\nThen **more**."
ANSWER = "It is \\(42\\)."


def ask(page: Page, text: str = "Why?") -> None:
    page.locator("#question textarea").fill(text)
    page.keyboard.press("Enter")


def answer(page: Page, number: int = 0) -> str:
    """The text of an answer once its run is over."""
    view = page.locator(".answer").nth(number)
    expect(view.locator(".actions")).to_be_visible()
    expect(view.locator(".answer-text")).not_to_have_text("")
    return view.locator(".answer-text").inner_text()


def test_the_reasoning_arrives_live_in_the_panel_and_then_the_answer_in_the_chat(
    live_server: LiveServer, opens: Opens
) -> None:
    live_server.script(f"{THOUGHTS}\n\nAnd now{HOLD} on.\n{CLOSE}\n\n{ANSWER}{HOLD}")
    page = opens()
    expect(page.locator("#shell")).not_to_have_class(re.compile("panel-open"))
    ask(page)
    expect(page.locator("#reasoning")).to_be_visible()
    expect(page.locator(".reasoning-text math").first).to_be_visible()
    expect(page.locator(".reasoning-text strong")).to_have_text("more")
    expect(page.locator(".reasoning-text .tail")).to_have_text("And now")
    expect(page.locator(".chip")).to_have_text(re.compile(r"Thinking … \d+ s"))
    expect(page.locator(".stats")).to_have_text(re.compile(r"\d+ s · [\d.]+ tok/s"))
    expect(page.locator(".budget-text")).to_have_text("6 of 256 tokens")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.locator(".answer-text")).to_have_text("")
    live_server.release()
    expect(page.locator(".answer-text math")).to_be_visible()
    live_server.release()
    expect(page.locator(".chip")).to_have_text(re.compile(r"Thought (for \d+ s|briefly)"))
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator("#conversations .current")).to_have_text("Why?")
    assert page.locator("#question textarea").input_value() == ""


def test_enter_sends_and_shift_enter_breaks_the_line(live_server: LiveServer, opens: Opens) -> None:
    page = opens()
    page.locator("#question textarea").click()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(page.locator("#question textarea")).to_have_value("one\ntwo")
    page.keyboard.press("Enter")
    expect(page.locator(".question p")).to_have_text("one\ntwo")
    answer(page)
    assert len(live_server.engine.requests) == 1


def test_the_send_button_sends_and_an_empty_composer_says_so(live_server: LiveServer, opens: Opens) -> None:
    page = opens()
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_have_text("Write something first.")
    page.locator("#question textarea").fill("Why?")
    expect(page.get_by_role("alert")).to_have_count(0)
    page.get_by_role("button", name="Send").click()
    assert "Forty-two" in answer(page)
    assert len(live_server.engine.requests) == 1


def test_stop_keeps_what_was_written_and_the_next_question_works(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"thinking hard{HOLD}")
    page = opens()
    ask(page)
    expect(page.locator(".reasoning-text")).to_have_text("thinking hard")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".status")).to_have_text("Stopped. What was written is kept.")
    expect(page.locator(".reasoning-text")).to_contain_text("thinking hard")
    ask(page, "And now?")
    assert "Forty-two" in answer(page, 1)


def test_answer_now_closes_the_reasoning_and_brings_the_answer(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"line one\n{HOLD} line two\n more", "So: 42.")
    page = opens()
    ask(page)
    page.get_by_role("button", name="Answer now").click()
    expect(page.get_by_role("button", name="Answer now")).to_be_disabled()
    live_server.release()
    assert answer(page) == "So: 42."
    expect(page.locator(".notes")).to_contain_text("You asked for the answer")


def test_a_reload_in_mid_answer_comes_back_to_the_live_run(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"before{HOLD} after\n{CLOSE}\n\ndone")
    page = opens()
    ask(page)
    expect(page.locator(".reasoning-text")).to_have_text("before")
    page.reload()
    expect(page.locator(".reasoning-text")).to_have_text("before")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    live_server.release()
    assert answer(page) == "done"
    expect(page.locator(".reasoning-text")).to_have_text("before after")
    assert len(live_server.engine.requests) == 1


def test_leaving_the_page_does_not_end_the_run(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"before{HOLD}{CLOSE}done")
    page = opens()
    ask(page)
    expect(page.locator(".reasoning-text")).to_have_text("before")
    page.goto("about:blank")
    live_server.release()
    page.go_back()
    assert answer(page) == "done"


def test_two_tabs_show_the_same_run(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"one{HOLD} two{CLOSE}three")
    page = opens()
    ask(page)
    expect(page.locator(".reasoning-text")).to_have_text("one")
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator(".reasoning-text")).to_have_text("one")
    live_server.release()
    assert answer(page) == answer(other) == "three"


def test_thought_for_opens_the_reasoning_of_its_own_message(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"thoughts A{CLOSE}answer A", f"thoughts B{CLOSE}answer B")
    page = opens()
    ask(page, "first")
    answer(page)
    ask(page, "second")
    expect(page.locator(".answer-text").nth(1)).to_have_text("answer B")
    expect(page.locator(".actions:visible")).to_have_count(2)
    page.reload()
    page.locator(".chip").nth(0).click()
    expect(page.locator(".reasoning-text")).to_have_text("thoughts A")
    page.locator(".chip").nth(1).click()
    expect(page.locator(".reasoning-text")).to_have_text("thoughts B")
    page.keyboard.press("Escape")
    expect(page.locator("#reasoning")).to_be_hidden()


def test_a_panel_closed_by_hand_stays_closed(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"a{HOLD}{CLOSE}b", f"c{HOLD}{CLOSE}d")
    page = opens()
    ask(page)
    page.get_by_role("button", name="Close the reasoning panel").click()
    expect(page.locator("#reasoning")).to_be_hidden()
    live_server.release()
    answer(page)
    ask(page, "again")
    expect(page.locator(".chip").nth(1)).to_have_text(re.compile("Thinking"))
    expect(page.locator("#reasoning")).to_be_hidden()


def test_scrolling_up_pauses_following_and_the_pill_goes_on(live_server: LiveServer, opens: Opens) -> None:
    many = "\n\n".join(f"Paragraph {number}." for number in range(80))
    live_server.script(f"{many}\n\nmiddle{HOLD}\n\n{many}\n\nlast{HOLD}")
    live_server.engine.with_profile(context_window=32_768, budgets={"normal": 8192})
    page = opens()
    ask(page)
    expect(page.get_by_text("middle")).to_be_in_viewport()
    page.locator(".panel-scroll").hover()
    page.mouse.wheel(0, -600)
    pill = page.locator("#reasoning .pill")
    expect(pill).to_be_visible()
    live_server.release()
    expect(page.locator(".reasoning-text")).to_contain_text("last")
    expect(page.get_by_text("last", exact=True)).not_to_be_in_viewport()
    pill.click()
    expect(page.get_by_text("last", exact=True)).to_be_in_viewport()
    expect(pill).to_be_hidden()


def test_the_notice_comes_once_before_the_first_send_and_loses_nothing(live_server: LiveServer, opens: Opens) -> None:
    page = opens(is_known=False)
    ask(page, "Why?")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("kept on this server")
    expect(dialog).to_contain_text("can be wrong")
    expect(dialog).to_contain_text("weak at common sense and nuance")
    dialog.get_by_role("button", name="Not now").click()
    expect(page.locator("#question textarea")).to_have_value("Why?")
    assert live_server.engine.requests == []
    page.locator("#question textarea").press("Enter")
    page.get_by_role("button", name="I understand").click()
    answer(page)
    ask(page, "And?")
    expect(page.locator(".question")).to_have_count(2)
    expect(dialog).to_have_count(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [("word " * 5000, "tokens and this model takes at most"), ("x" * 270_000, "KiB")],
)
def test_a_refused_text_stays_in_the_composer(opens: Opens, text: str, message: str) -> None:
    page = opens()
    ask(page, text)
    expect(page.get_by_role("alert")).to_contain_text(message)
    assert page.locator("#question textarea").input_value() == text
    expect(page.locator(".question")).to_have_count(0)


def test_a_failed_run_says_why_and_can_be_asked_again(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(RuntimeError("The model process ended in the middle."))
    page = opens()
    ask(page)
    expect(page.locator(".status.bad")).to_have_text("The model process ended in the middle.")
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".answer-text")).to_have_text("Forty-two.")
    expect(page.locator(".question")).to_have_count(1)


def test_a_loading_model_shows_its_progress_and_answers_when_it_is_ready(live_server: LiveServer, opens: Opens) -> None:
    live_server.become(EngineStatus("loading", "Loading weights", 0.4))
    page = opens()
    expect(page.locator("#model-card")).to_contain_text("Loading weights")
    expect(page.locator("#model-card progress")).to_have_attribute("value", "0.4")
    ask(page)
    expect(page.locator(".status")).to_have_text("Waiting for the model: loading weights …")
    live_server.become(EngineStatus("ready"))
    assert "Forty-two" in answer(page)


def test_a_model_that_cannot_answer_says_so_and_takes_no_text(live_server: LiveServer, opens: Opens) -> None:
    live_server.engine.status = EngineStatus("failed", problem="There is no GPU.", remedy="Set PONDER_MODEL=demo.")
    page = opens()
    expect(page.get_by_role("alert")).to_contain_text("The model cannot answer right now.")
    ask(page)
    expect(page.get_by_role("alert").last).to_contain_text("The model cannot answer right now.")
    expect(page.locator("#question textarea")).to_have_value("Why?")
    expect(page.get_by_role("alert")).to_have_count(1)
    expect(page.locator("body")).not_to_contain_text("PONDER_MODEL")


def test_a_conversation_near_the_windows_end_says_what_the_next_message_leaves_out(
    live_server: LiveServer, opens: Opens
) -> None:
    live_server.engine.with_profile(context_window=900)
    page = opens()
    for number in range(2):
        ask(page, f"{number} " + "word " * 200)
        expect(page.locator(".actions:visible")).to_have_count(number + 1)
    expect(page.locator("#composer .notice")).to_contain_text("will not see the oldest question")


def test_new_chat_list_and_delete(opens: Opens) -> None:
    page = opens()
    ask(page, "first chat")
    answer(page)
    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_role("heading", name="Ask something hard.")).to_be_visible()
    ask(page, "second chat")
    answer(page)
    rows = page.locator("#conversations li")
    expect(rows).to_have_count(2)
    rows.nth(1).locator(".open").click()
    expect(page.locator(".question")).to_have_text("first chat")
    rows.nth(1).hover()
    page.get_by_role("button", name="Options of first chat").click()
    page.get_by_role("menuitem", name="Delete").click()
    expect(rows).to_have_count(1)
    expect(page.get_by_role("heading", name="Ask something hard.")).to_be_visible()


def test_somebody_elses_address_shows_nothing(opens: Opens) -> None:
    page = opens()
    ask(page, "secret")
    answer(page)
    other = opens(path="/" + page.url.split("/", 3)[3])
    expect(other.get_by_role("heading", name="This chat is not here.")).to_be_visible()
    expect(other.locator("body")).not_to_contain_text("secret")


def test_hostile_text_is_shown_as_text_and_nothing_leaves_the_machine(live_server: LiveServer, opens: Opens) -> None:
    hostile = (
        "<script>window.pwned=1</script><img src=https://evil.example/x onerror=window.pwned=1>"
        "<div style='position:fixed;inset:0'>cover</div> ![pic](https://evil.example/p.png) "
        "[link](javascript:window.pwned=1) <form action=https://evil.example><input name=password></form>"
    )
    live_server.script(f"{hostile}\n\n{hostile}\n{CLOSE}\n\n{hostile}")
    page = opens()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.wait_for_selector("body.ponder-ready")
    ask(page, hostile)
    answer(page)
    page.reload()
    page.wait_for_selector("body.ponder-ready")
    answer(page)
    page.locator(".chip").click()
    expect(page.locator(".reasoning-text")).to_contain_text("<script>")
    assert page.evaluate("window.pwned") is None
    shown = ".answer-text, .reasoning-text, .question"
    assert page.locator(shown).locator("script, img, form, input, iframe, [style], [onerror]").count() == 0
    assert page.locator(".ponder a[href^='javascript']").count() == 0
    assert {urlsplit(url).hostname for url in asked if not url.startswith(("data:", "blob:"))} == {"127.0.0.1"}


def test_the_content_security_policy_holds_against_scripts_and_beacons(opens: Opens) -> None:
    page = opens()
    page.evaluate("""() => {
        window.violations = [];
        const note = (event) => window.violations.push(event.effectiveDirective);
        document.addEventListener('securitypolicyviolation', note);
        const script = document.createElement('script');
        script.textContent = 'window.inline = 1';
        const image = document.createElement('img');
        image.src = 'https://evil.example/beacon';
        document.body.append(script, image);
        setTimeout('window.evaluated = 1', 0);
    }""")
    page.wait_for_function("window.violations.length >= 3")
    assert page.evaluate("[window.inline, window.evaluated]") == [None, None]
    assert set(page.evaluate("window.violations")) == {"script-src-elem", "script-src", "img-src"}


def test_our_own_page_breaks_no_rule_of_the_policy(opens: Opens) -> None:
    page = opens(path="/?probe")
    blocked: list[str] = []
    page.on("console", lambda message: blocked.append(message.text) if "Content Security" in message.text else None)
    page.reload()
    page.wait_for_selector("body.ponder-ready")
    ask(page)
    answer(page)
    # Gradio's own inline boot scripts are refused, and it goes on without them
    assert [text for text in blocked if "inline script" not in text] == []


def test_every_module_and_picture_of_ours_comes_from_where_it_may_be_kept(opens: Opens) -> None:
    page = opens()
    asked = page.evaluate("performance.getEntriesByType('resource').map((entry) => new URL(entry.name).pathname)")
    ours = [path for path in asked if path.startswith("/ponder/")]
    assert len(ours) > 40
    assert [path for path in ours if not path.startswith(address(""))] == []


def test_on_a_phone_the_panel_is_a_sheet_that_leaves_the_composer_free(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"thinking{HOLD}\n{CLOSE}\n\n{ANSWER}")
    page = opens(viewport=PHONE)
    ask(page)
    expect(page.locator(".reasoning-text")).to_have_text("thinking")
    sheet, composer = page.locator("#reasoning").bounding_box(), page.locator("#composer").bounding_box()
    assert sheet is not None
    assert composer is not None
    assert sheet["y"] + sheet["height"] <= composer["y"] + 1
    assert sheet["width"] == PHONE["width"]
    expect(page.get_by_role("button", name="Stop")).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    live_server.release()
    answer(page)
    expect(page.locator("#reasoning")).to_be_hidden()
    page.locator(".chip").click()
    expect(page.locator(".reasoning-text")).to_have_text("thinking")


def test_on_a_phone_the_chats_are_in_a_drawer(opens: Opens) -> None:
    page = opens(viewport=PHONE)
    ask(page, "hello")
    answer(page)
    expect(page.locator("#sidebar")).to_be_hidden()
    page.get_by_role("button", name="Chats").click()
    expect(page.locator("#conversations li")).to_have_text("hello")
    page.keyboard.press("Escape")
    expect(page.locator("#sidebar")).to_be_hidden()


def test_effort_reaches_the_model(live_server: LiveServer, opens: Opens) -> None:
    live_server.script("Just the answer.")
    page = opens()
    page.get_by_text("Quick", exact=True).click()
    ask(page)
    assert answer(page) == "Just the answer."
    expect(page.locator(".chip")).to_be_hidden()
    prompt = live_server.engine.decoded(live_server.engine.requests[0].prompt)
    assert prompt.endswith(f"{CLOSE}\n\n")


def test_a_code_blocks_button_copies_its_code(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"x{CLOSE}```python\nprint(1 < 2)\n```")
    page = opens()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page)
    answer(page)
    page.locator(".code .copy").click()
    expect(page.locator(".code .copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()").strip() == "print(1 < 2)"
