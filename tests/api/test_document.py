"""The API against its own document: schemathesis sends what the document allows, and what it forbids."""

import json
import pathlib
import re
import subprocess
import sys
import urllib.request

# What must hold for each answer: no 5xx, no status, content type or body that the document does not have.
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "ignored_auth",
]
# Beside those that cover each keyword of each field, which are far more.
EXAMPLES = 20
SEED = 20_260
# Nothing is slower than an answer to the end of the context, on a debug build and a machine that has other things to do.
REQUEST_TIMEOUT_S = 300
RUN_TIMEOUT_S = 1800


def document(server):
    """The server's document, with a served model and short answers, so that requests get through to it."""
    with urllib.request.urlopen(server.root_url + "/openapi.json", timeout=10) as response:
        document = json.load(response)
    for schema in document["components"]["schemas"].values():
        fields = schema.get("properties", {})
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if "model" in fields and name in fields:
                fields["model"]["enum"] = [server.model]
                fields[name]["maximum"] = 8
                # The first two are one field; asked for both, hardly any request would be right.
                if name != "max_completion_tokens":
                    schema.setdefault("required", []).append(name)
    retrieve = document["paths"]["/v1/models/{id}"]["get"]
    retrieve["parameters"][0]["schema"]["enum"] = [server.model, "no-such-model"]
    return document


def test_no_answer_contradicts_the_document(server, tmp_path):
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(document(server)))
    program = pathlib.Path(sys.executable).with_name("schemathesis")
    command = [program, "run", path, "--url", server.root_url]
    command += ["--header", f"Authorization: Bearer {server.key}", "--checks", ",".join(CHECKS)]
    command += ["--phases", "coverage,fuzzing", "--max-examples", EXAMPLES, "--seed", SEED]
    command += ["--continue-on-failure", "--request-timeout", REQUEST_TIMEOUT_S]
    command = [str(part) for part in command]
    # It leaves a folder where it runs.
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated and int(generated[1]) > 1000, "the document allows hardly anything"
