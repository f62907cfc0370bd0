"""The baseline of durable_throughput.py and burst.py: the Flask route that the well-known tutorials have people write.

It checks the signature, and pulls before it answers; without a ``CLONE`` it does not pull. It remembers nothing.
"""

import hmac
import os
import subprocess
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from flask import Flask, Response, jsonify, request

SECRET = os.environ["SECRET"].encode()
CLONE, BUILD = os.environ["CLONE"], os.environ["BUILD"]

application = Flask(__name__)


@application.route("/")
def up() -> str:
    return "ok"


@application.route("/github", methods=["POST"])
def github() -> tuple[Response, int]:
    if not signed(request.headers.get("X-Hub-Signature-256", ""), request.data):
        return jsonify(), 401
    if CLONE:
        subprocess.run(["git", "pull", "--quiet", "--rebase"], cwd=CLONE, check=True)
        subprocess.run(["sh", "-c", BUILD], cwd=CLONE, check=True) if BUILD else None
    return jsonify(status="accepted"), 202


def signed(said: str, payload: bytes) -> bool:
    return hmac.compare_digest(said, "sha256=" + hmac.new(SECRET, payload, sha256).hexdigest())


def plain(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
    """The same without the pull and without Flask, which nobody writes: to see what of it is Flask's."""
    payload = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    genuine = signed(environ.get("HTTP_X_HUB_SIGNATURE_256", ""), payload) or environ["REQUEST_METHOD"] == "GET"
    body = b"ok" if not payload else b'{"status":"accepted"}'
    status = "202 Accepted" if payload else "200 OK"
    start_response(status if genuine else "401 Unauthorized", [("Content-Length", str(len(body)))])
    return [body]
