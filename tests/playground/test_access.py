"""The playground for everybody: by keyboard, on a phone, in the dark, with a screen reader."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

PHONE = {"viewport": {"width": 360, "height": 740}}


def breaches(page):
    """What axe finds against WCAG 2.2 AA and its own best practices."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['html'][:120]} {node['failureSummary']}" for one in found for node in one["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [(1280, 860), (360, 740)], ids=["desktop", "phone"])
def test_axe_finds_nothing_in_any_state(new_page, scheme, viewport):
    width, height = viewport
    playground = new_page(color_scheme=scheme, viewport={"width": width, "height": height})
    page = playground.page
    playground.open("sk-wrong")
    expect(page.locator("#key-hint.complaint")).to_be_visible()
    assert breaches(page) == []
    playground.open()
    playground.unfold()
    page.select_option("#field-response_format", label="JSON Schema")
    assert breaches(page) == []
    page.select_option("#field-response_format", "")
    page.select_option("#field-thinking", label="Enabled")
    turn = playground.ask("What is 17 + 25?")
    turn.locator("summary", has_text="Raw answer").click()
    page.fill("#field-max_tokens", "4096")
    page.fill("#field-prompt", "Too much")
    page.click("#send")
    expect(page.locator(".turn.failure")).to_be_visible()
    assert breaches(page) == []


def test_the_dark_scheme_is_dark(new_page):
    def ground(scheme):
        page = new_page(color_scheme=scheme).open().page
        color = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        return sum(int(part) for part in color.removeprefix("rgb(").rstrip(")").split(",")) / 3

    assert ground("dark") < 40 < 220 < ground("light")


def test_everything_is_reached_by_keyboard(new_page, server):
    playground = new_page()
    page = playground.page
    page.goto(server.root_url + "/")
    # The first thing to do has the focus.
    expect(page.locator("#key")).to_be_focused()
    page.keyboard.type(server.key)
    expect(page.locator("#field-prompt")).to_be_visible()
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.id || document.activeElement.textContent")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", f"{name} does not show its focus"
        if name == "More parameters":
            page.keyboard.press("Enter")
        reached.append(name)
        if name == "copy":
            break
    order = ["show-key", "model", "field-system_prompt", "field-prompt", "field-max_tokens", "field-temperature"]
    order += ["More parameters", "field-top_p", "field-metadata", "send", "reset", "log", "tab-curl", "copy"]
    assert [name for name in reached if name in order] == order


def test_a_request_by_keyboard_alone(new_page, server):
    playground = new_page().open()
    page = playground.page
    page.fill("#field-max_tokens", "100")
    page.focus("#field-prompt")
    page.keyboard.press("Control+a")
    page.keyboard.type("Spell the word train.")
    page.keyboard.press("Control+Enter")
    playground.wait()
    expect(page.locator(".turn.assistant .text")).to_contain_text("t-r-a-i-n")
    # The reader stays where they type.
    expect(page.locator("#field-prompt")).to_be_focused()

    page.route("**/v1/chat/completions", lambda route: None)
    page.keyboard.type("Never answered")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#send")).to_have_text("Stop")
    page.keyboard.press("Escape")
    expect(page.locator("#send")).to_have_text("Send")
    expect(page.locator("#field-prompt")).to_have_value("Never answered")

    page.focus("#tab-curl")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-python")).to_be_focused()
    expect(page.locator("#tab-python")).to_have_attribute("aria-selected", "true")
    assert page.inner_text("#snippet").startswith("import os")


def test_nothing_is_wider_than_a_phone(new_page):
    playground = new_page(**PHONE).open()
    page = playground.page

    def overhang():
        """Of the page, and of texts within their boxes, which would cut them off; in pixels."""
        return page.evaluate(
            """Math.max(document.documentElement.scrollWidth - innerWidth,
               ...[...document.querySelectorAll(".panel, .log, .turn, .text, .hint, .facts, label")]
                 .map((text) => text.scrollWidth - text.clientWidth))"""
        )

    assert overhang() == 0
    playground.unfold()
    assert overhang() == 0
    playground.script(
        {"choices": [{"index": 0, "delta": {"content": "x" * 500}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"reasoning_content": "y" * 500}, "finish_reason": None}]},
        {"error": {"message": "z" * 500}},
    )
    playground.ask("w" * 500)
    expect(page.locator(".turn.failure")).to_be_visible()
    assert overhang() == 0
    for language in ("curl", "python", "javascript"):
        playground.snippet(language)
        assert overhang() == 0, language
