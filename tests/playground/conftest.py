"""A cluster with two models, and pages of the playground in headless Chromium.

Needs Debian's `chromium` (or another Chromium, named by CHROMIUM).
"""

import importlib.util
import json
import os
import pathlib
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "models/demo-flash"

# The clients' tests know how to start a cluster.
spec = importlib.util.spec_from_file_location("cluster", ROOT / "tests/clients/conftest.py")
cluster = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cluster)

# Conditions are waited for, not times; these only end a test that hangs. A debug build on a busy machine is slow.
DEADLINE_MS = 120_000
expect.set_options(timeout=DEADLINE_MS)
# Tokens: long enough for each answer that is looked at, and an end for one that wanders.
ANSWER_MAX = 200

# Collects what the content security policy blocks, from the first script on.
WATCH_POLICY = """
window.blocked = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.blocked.push(`${event.effectiveDirective} ${event.blockedURI}`));
"""


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Serves the demo model twice: as it is, and as a model that thinks unless told otherwise."""
    thinker = tmp_path_factory.mktemp("models") / "thinker"
    thinker.mkdir()
    for file in DEMO.iterdir():
        (thinker / file.name).symlink_to(file)
    config = json.loads((DEMO / "generation_config.json").read_text()) | {"default_thinking": True}
    (thinker / "generation_config.json").unlink()
    (thinker / "generation_config.json").write_text(json.dumps(config))
    running = cluster.Server(
        tmp_path_factory.mktemp("data"),
        *("--workers", "1", "--model", f"flash={DEMO}", "--model", f"thinker={thinker}"),
        *("--model-title", "flash=Demo Flash", "--model-description", "flash=A tiny model."),
    )
    yield running
    assert running.stop() == 0, running.output()


@pytest.fixture(scope="session")
def browser():
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert chromium, "install Debian's package chromium, or name a Chromium with CHROMIUM"
    with sync_playwright() as playwright:
        # Without its sandbox: tests may run as root, and load our own page only.
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


class Playground:
    """One page, and what a person does with it."""

    def __init__(self, page, server):
        self.page = page
        self.server = server
        self.troubles = []
        page.add_init_script(WATCH_POLICY)
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("console", self._console)

    def _console(self, message):
        # Chromium also reports each refused request; those are what some tests are about.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.troubles.append(message.text)

    def open(self, key=None):
        self.page.goto(self.server.root_url + "/")
        self.page.fill("#key", key or self.server.key)
        if key is None:
            self.page.wait_for_selector("#field-prompt")
        return self

    def ask(self, prompt, **fields):
        """Sends a prompt and waits for the end of the answer."""
        for name, value in ({"max_tokens": str(ANSWER_MAX)} | fields).items():
            self.page.fill(f"#field-{name}", value)
        self.page.fill("#field-prompt", prompt)
        self.page.click("#send")
        self.wait()
        return self.page.locator(".turn.assistant").last

    def wait(self):
        self.page.wait_for_selector("#log[aria-busy=false]")

    def snippet(self, language):
        self.page.click(f"#tab-{language}")
        return self.page.inner_text("#snippet")

    def unfold(self):
        self.page.click("text=More parameters")

    def script(self, *chunks):
        """Answers the next requests with these chunks instead of the server, and keeps the requests' bodies."""
        bodies = []

        def answer(route):
            bodies.append(route.request.post_data_json)
            events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
            body = ": keep-alive\n\n" + events + "data: [DONE]\n\n"
            route.fulfill(status=200, content_type="text/event-stream", body=body)

        self.page.route("**/v1/chat/completions", answer)
        return bodies


@pytest.fixture
def new_page(browser, server):
    """Makes playgrounds; at the end none has broken the policy or its own scripts."""
    opened = []

    def make(**options):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 860}} | options))
        context.set_default_timeout(DEADLINE_MS)
        playground = Playground(context.new_page(), server)
        opened.append((context, playground))
        return playground

    yield make
    for context, playground in opened:
        blocked = playground.page.evaluate("window.blocked")
        context.close()
        assert blocked == [] and playground.troubles == []


@pytest.fixture
def playground(new_page):
    return new_page().open()
