"""The playground against a real cluster: what a person sees and does."""

import json
import os
import re
import subprocess
import sys

from playwright.sync_api import expect


def delta(**fields):
    """A chunk of a stream."""
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def test_a_key_is_asked_for_and_kept_in_the_tab_only(new_page, server):
    page = new_page().open("sk-wrong").page
    expect(page.locator("#key-hint")).to_have_text("The API key is unknown or revoked.")
    expect(page.locator("#key")).to_have_attribute("aria-invalid", "true")
    page.fill("#key", server.key)
    expect(page.locator("#field-prompt")).to_be_visible()
    expect(page.locator("#key-hint")).to_contain_text("Kept in this tab only")
    page.reload()
    expect(page.locator("#field-prompt")).to_be_visible()
    assert page.evaluate("localStorage.length") == 0
    assert page.context.cookies() == []
    stranger = page.context.new_page()
    stranger.goto(server.root_url + "/")
    expect(stranger.locator("#key")).to_have_value("")
    stranger.close()


def test_the_form_follows_the_schema(playground, server):
    page = playground.page
    models = page.evaluate(
        "(key) => fetch('v1/models', {headers: {Authorization: `Bearer ${key}`}}).then((r) => r.json())",
        server.key,
    )
    properties = models["data"][0]["form_schema"]["properties"]
    ordered = sorted(properties, key=lambda name: properties[name]["x-order"])
    # The conversation and the usage of streams are the page's own business.
    expected = [name for name in ordered if name not in ("messages", "stream_options")]
    drawn = page.eval_on_selector_all("#fields [name]", "(inputs) => inputs.map((input) => input.name)")
    assert drawn == expected
    folded = page.eval_on_selector_all(
        "#fields details [name]", "(inputs) => inputs.map((input) => input.name)"
    )
    assert folded == [name for name in expected if properties[name]["x-group"] == "advanced"]


def test_another_model_redraws_the_form_and_the_code(playground):
    page = playground.page
    expect(page.locator("#model-hint")).to_contain_text("A tiny model.")
    expect(page.locator("#field-thinking option").first).to_have_text("Default: Disabled")
    playground.unfold()
    page.fill("#field-prompt", "Hello there")
    page.fill("#field-temperature", "0.5")
    page.fill("#field-presence_penalty", "0")
    code = playground.snippet("curl")
    assert '"model": "flash"' in code and "presence_penalty" not in code, "a default is not sent"
    page.select_option("#model", "thinker")
    expect(page.locator("#field-thinking option").first).to_have_text("Default: Enabled")
    expect(page.locator("#model-hint")).not_to_contain_text("A tiny model.")
    # What was typed stays.
    expect(page.locator("#field-prompt")).to_have_value("Hello there")
    code = playground.snippet("python")
    assert 'model="thinker"' in code and "temperature=0.5" in code and "Hello there" in code


def test_an_answer_comes_with_its_figures(playground):
    turn = playground.ask("What is the capital of France?", temperature="0")
    expect(turn.locator(".text")).to_have_text("The capital of France is Paris.")
    figures = turn.locator(".facts").inner_text()
    assert re.search(r"\d+ tokens in, \d+ out · first token after \d+\sms · [\d,]+\stokens/s", figures)
    expect(playground.page.locator("#status")).to_have_text("The answer is complete.")
    turn.locator("summary", has_text="Raw answer").click()
    expect(turn.locator(".raw")).to_contain_text("[DONE]")


def test_text_appears_before_the_answer_is_complete(playground):
    page = playground.page

    def long_answer(route):
        route.continue_(post_data=json.dumps(route.request.post_data_json | {"ignore_eos": True}))

    page.route("**/v1/chat/completions", long_answer)
    page.fill("#field-prompt", "Spell the word switchyard.")
    page.fill("#field-max_tokens", "3500")
    page.click("#send")
    text = page.locator(".turn.assistant .text")
    expect(text).to_have_text(re.compile(".{6,}", re.DOTALL))
    expect(page.locator("#send")).to_have_text("Stop")
    before = len(text.inner_text())
    expect(text).to_have_text(re.compile(f".{{{before + 1},}}", re.DOTALL))
    page.click("#send")
    playground.wait()
    expect(page.locator("#status")).to_have_text("Stopped.")
    expect(page.locator(".turn.assistant .facts").last).to_contain_text("Stopped")
    expect(page.locator("#send")).to_have_text("Send")
    length = page.evaluate("document.querySelector('.turn.assistant').textContent.length")
    page.wait_for_timeout(200)
    assert page.evaluate("document.querySelector('.turn.assistant').textContent.length") == length


def test_reasoning_is_folded_once_the_answer_begins(playground):
    page = playground.page
    page.select_option("#field-thinking", label="Enabled")
    turn = playground.ask("What is 17 + 25?", temperature="0")
    expect(turn.locator(".text").last).to_contain_text("42")
    expect(turn.locator("details.reasoning")).not_to_have_attribute("open", "")
    turn.locator("details.reasoning summary").click()
    expect(turn.locator("details.reasoning .text")).to_be_visible()


def test_a_conversation_goes_on_until_it_is_cleared(playground):
    bodies = playground.script(delta(role="assistant", content="First."))
    playground.page.fill("#field-system_prompt", "Be brief.")
    playground.ask("One?")
    playground.ask("Two?")
    assert bodies[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "First."},
        {"role": "user", "content": "Two?"},
    ]
    assert bodies[1]["stream_options"] == {"include_usage": True}
    playground.page.click("#clear")
    expect(playground.page.locator(".turn")).to_have_count(0)
    playground.ask("Three?")
    assert [message["content"] for message in bodies[2]["messages"]] == ["Be brief.", "Three?"]


def test_an_error_is_a_sentence_and_the_prompt_comes_back(playground):
    page = playground.page
    page.fill("#field-max_tokens", "4096")
    page.fill("#field-prompt", "Too much")
    page.click("#send")
    failure = page.locator(".turn.failure")
    expect(failure).to_contain_text("maximum context length is 4096 tokens")
    expect(failure).to_contain_text("Status 400 · context_length_exceeded · field messages · request req-")
    expect(failure).to_have_attribute("role", "alert")
    expect(page.locator("#field-prompt")).to_have_value("Too much")


def test_a_stream_that_breaks_says_so_and_keeps_what_came(playground):
    error = {"error": {"message": "rank 1 is gone", "type": "server_error", "param": None, "code": "model_unavailable"}}
    playground.script(delta(role="assistant", content="Half an"), error)
    turn = playground.ask("Hello")
    expect(turn.locator(".text")).to_have_text("Half an")
    expect(playground.page.locator(".turn.failure .text")).to_have_text("Rank 1 is gone.")


def test_values_out_of_range_are_caught_beside_the_field(playground):
    page = playground.page
    for name, value, complaint in [
        ("temperature", "3", "This must be 0 to 2."),
        ("temperature", "warm", "warm is not a number."),
        ("max_tokens", "1.5", "This must be a whole number."),
        ("top_p", "0", "This must be more than 0, at most 1."),
        ("tools", "{", "This is not JSON"),
    ]:
        field = page.locator(f".field:has(#field-{name})")
        page.evaluate("(id) => { document.getElementById(id).value = '' }", f"field-{name}")
        page.evaluate(
            "([id, value]) => { document.getElementById(id).value = value }", [f"field-{name}", value]
        )
        page.click("#send")
        expect(field.locator(".complaint")).to_contain_text(complaint)
        # Also out of the folded part of the form.
        expect(page.locator(f"#field-{name}")).to_be_focused()
        page.fill(f"#field-{name}", "")
    expect(page.locator(".turn")).to_have_count(0)


def test_tools_are_shown_and_their_results_sent_back(playground):
    page = playground.page
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": ""}}
    more = [{"index": 0, "function": {"arguments": piece}} for piece in ('{"city":', ' "Lima"}')]
    chunks = [delta(role="assistant", tool_calls=[call])] + [delta(tool_calls=[piece]) for piece in more]
    bodies = playground.script(*chunks)
    playground.unfold()
    page.locator(".field:has(#field-tools)").get_by_role("button", name="Insert an example").click()
    turn = playground.ask("Weather in Lima?")
    expect(turn.locator(".call-name")).to_have_text("Calls get_weather")
    expect(turn.locator(".call pre")).to_have_text('{\n  "city": "Lima"\n}')
    assert bodies[0]["tools"][0]["function"]["name"] == "get_weather"

    expect(page.get_by_label("Result of get_weather")).to_be_focused()
    page.click("#send")
    expect(page.locator("#status")).to_contain_text("Give a result for each tool call first")
    page.get_by_label("Result of get_weather").fill("21 degrees")
    page.keyboard.press("Control+Enter")
    playground.wait()
    called = {"name": "get_weather", "arguments": '{"city": "Lima"}'}
    assert bodies[1]["messages"][-2:] == [
        {"role": "assistant", "content": "", "tool_calls": [{"id": "call_1", "type": "function", "function": called}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "21 degrees"},
    ]


def test_several_choices_are_told_apart(playground):
    chunks = [
        {"choices": [{"index": index, "delta": {"content": f"Answer {index}"}, "finish_reason": None}]}
        for index in (0, 1)
    ]
    playground.script(*chunks)
    turn = playground.ask("Hello")
    assert turn.locator(".choice h4").all_inner_texts() == ["Choice 1", "Choice 2"]
    assert turn.locator(".text").all_inner_texts() == ["Answer 0", "Answer 1"]


def test_what_a_model_says_is_never_markup(playground):
    page = playground.page
    evil = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"
    call = {"index": 0, "id": "1", "type": "function", "function": {"name": evil, "arguments": evil}}
    playground.script(delta(reasoning_content=evil), delta(content=evil), delta(tool_calls=[call]), {"error": {"message": evil}})
    turn = playground.ask(evil)
    assert turn.locator(".text").last.inner_text() == evil
    assert page.locator("img").count() == 1, "an image beside the page's own"
    assert page.evaluate("window.hacked") is None


def run(program, code, server, tmp_path):
    environment = os.environ | {"SWITCHYARD_API_KEY": server.key, "NO_PROXY": "127.0.0.1"}
    file = tmp_path / "snippet"
    file.write_text(code)
    done = subprocess.run([*program, file], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fill_for_code(playground):
    """A prompt that wants quoting, and fields of all kinds."""
    page = playground.page
    page.fill("#field-system_prompt", 'It\'s "quoted" \\ and\nbroken.')
    page.fill("#field-prompt", "What is the capital of France?")
    page.fill("#field-temperature", "0")
    page.fill("#field-max_tokens", "200")
    page.select_option("#field-thinking", label="Enabled")
    playground.unfold()
    page.fill("#field-stop", "one\ntwo")
    page.fill("#field-metadata", '{"a b": "c"}')


def test_the_code_runs_as_it_is_shown(playground, server, tmp_path):
    fill_for_code(playground)
    output = run(["bash"], playground.snippet("curl"), server, tmp_path)
    assert "data: [DONE]" in output and "Paris" in output
    code = playground.snippet("python")
    assert 'extra_body={"thinking": {"type": "enabled"}}' in code
    assert "Paris" in run([sys.executable], code, server, tmp_path)
    playground.page.uncheck("#field-stream")
    assert "Paris" in run([sys.executable], playground.snippet("python"), server, tmp_path)
    assert server.key not in playground.page.inner_text("#snippet")


def test_the_javascript_says_the_same_as_the_curl(playground):
    """Runs it in the browser, with a stand-in for OpenAI's client that keeps what it is asked."""
    fill_for_code(playground)
    curl = playground.snippet("curl")
    body = json.loads(curl[curl.index("-d '") + 4 : -1].replace("'\\''", "'"))
    code = playground.snippet("javascript").removeprefix('import OpenAI from "openai";')
    # A page without a policy, which forbids making code out of text.
    blank = playground.page.context.new_page()
    asked = blank.evaluate(
        """async (code) => {
          let asked;
          const create = async (body) => { asked = body; return (async function* () {})(); };
          class OpenAI { chat = { completions: { create } }; }
          const Async = (async () => {}).constructor;
          await new Async("OpenAI", "process", code)(OpenAI, { env: {} });
          return asked;
        }""",
        code,
    )
    blank.close()
    assert asked == body


def test_code_is_copied(new_page, server):
    playground = new_page(permissions=["clipboard-read", "clipboard-write"]).open()
    playground.page.click("#copy")
    expect(playground.page.locator("#copy")).to_have_text("Copied")
    copied = playground.page.evaluate("navigator.clipboard.readText()")
    assert copied == playground.page.inner_text("#snippet")
