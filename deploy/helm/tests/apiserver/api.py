"""The API server that `deploy/helm/check-apiserver` has started, and Helm against it."""

import json
import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from chart import HELM

SERVER, TOKEN = os.environ["API_SERVER"], os.environ["API_TOKEN"]
CONTEXT = ssl._create_unverified_context()
NAMESPACE = "ns"
PLURALS = {"NetworkPolicy": "networkpolicies", "Ingress": "ingresses"}


class Refused(Exception):
    """The server said no: its status and its words."""

    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code = code


def helm(*arguments, values=None):
    command = [HELM, *arguments, "--namespace", NAMESPACE]
    if values is not None:
        command += ["--values", "-"]
    done = subprocess.run(command, input=json.dumps(values) if values is not None else None, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def api(path, method="GET", body=None, token=TOKEN):
    """What the server answers; `None` where there is nothing."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(SERVER + path, json.dumps(body).encode() if body else None, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, context=CONTEXT) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        if error.code == 404 and method == "GET":
            return None
        raise Refused(error.code, error.read().decode()) from error


def folder_of(obj):
    group = f"apis/{obj['apiVersion']}" if "/" in obj["apiVersion"] else f"api/{obj['apiVersion']}"
    plural = PLURALS.get(obj["kind"], obj["kind"].lower() + "s")
    return f"/{group}/namespaces/{NAMESPACE}/{plural}"


def path_of(obj):
    return f"{folder_of(obj)}/{obj['metadata']['name']}"


def stored(obj):
    return api(path_of(obj))
