"""Makes the pictures of the playground in docs/ anew: python tests/playground/screenshots.py"""

import os
import pathlib
import shutil
import tempfile

from conftest import ROOT, cluster
from playwright.sync_api import sync_playwright

DESKTOP = {"viewport": {"width": 1360, "height": 860}}
PICTURES = {
    "playground-light": DESKTOP,
    "playground-dark": DESKTOP | {"color_scheme": "dark"},
    "playground-phone": {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 1.5},
}


def take(browser, server, name, options):
    page = browser.new_context(**options).new_page()
    page.goto(server.root_url + "/")
    page.fill("#key", server.key)
    page.select_option("#model", "demo-pro")
    page.fill("#field-temperature", "0")
    page.fill("#field-prompt", "What is 17 + 25?")
    page.click("#send")
    page.wait_for_selector("#log[aria-busy=false]")
    page.click(".reasoning summary")
    page.click("#tab-python")
    page.fill("#field-prompt", "What is the capital of France?")
    # The top of the form without outlines; on a phone the conversation instead.
    page.evaluate("document.activeElement.blur(); document.querySelector('.scroll').scrollTop = 0")
    if "phone" in name:
        page.evaluate("document.querySelector('.conversation').scrollIntoView()")
    page.screenshot(path=ROOT / f"docs/{name}.png")


def main():
    data = pathlib.Path(tempfile.mkdtemp())
    server = cluster.Server(data)
    try:
        with sync_playwright() as playwright:
            chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for name, options in PICTURES.items():
                take(browser, server, name, options)
            browser.close()
    finally:
        server.stop()
        shutil.rmtree(data)


if __name__ == "__main__":
    main()
