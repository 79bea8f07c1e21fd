"""The official openai package for JavaScript: `js/tour.mjs`, installed by `npm ci --prefix tests/clients/js`."""

import os
import pathlib
import subprocess

TOUR = pathlib.Path(__file__).parent / "js/tour.mjs"


def test_the_tour(server):
    assert (TOUR.parent / "node_modules/openai").is_dir(), "run npm ci --prefix tests/clients/js"
    place = {"BASE_URL": server.base_url, "API_KEY": server.key, "MODEL": server.model}
    environment = os.environ | {f"SWITCHYARD_{name}": value for name, value in place.items()}
    command = ["node", "--test", "--test-reporter=spec", TOUR]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
