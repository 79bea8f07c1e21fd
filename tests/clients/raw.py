"""HTTP without a client's good manners: bodies that no library would send."""

import http.client
import json
import re
import time
import urllib.parse
import urllib.request


def post(server, body, key=None, path="/v1/chat/completions", content_type="application/json"):
    """Status and parsed JSON of a request whose body is sent as it is."""
    address = urllib.parse.urlsplit(server.root_url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    headers = {"Content-Type": content_type, "Authorization": f"Bearer {key or server.key}"}
    try:
        connection.request("POST", path, body=body, headers=headers)
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    return response.status, json.loads(text)


def chat(server, **fields):
    """Status and parsed JSON of a chat request with these fields, correct or not."""
    request = {"model": server.model, "messages": [{"role": "user", "content": "hello"}]}
    return post(server, json.dumps(request | fields))


def expect_error(answer, status, code=None):
    """The answer is an error in OpenAI's shape, with a message that says something."""
    got, body = answer
    assert got == status, body
    error = body["error"]
    assert isinstance(error["message"], str) and len(error["message"]) > 10
    assert isinstance(error["type"], str)
    assert isinstance(error["code"], str), error
    assert "param" in error
    if code is not None:
        assert error["code"] == code, error
    return error


def metric(server, name):
    """Sum of a metric over its labels."""
    with urllib.request.urlopen(server.root_url + "/metrics", timeout=10) as response:
        text = response.read().decode()
    values = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    assert values, f"{name} is not exported:\n{text}"
    return sum(map(float, values))


def eventually(condition, seconds=10):
    """Waits until the condition holds; the last value otherwise."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    return condition()
