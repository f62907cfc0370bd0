"""What GitHub's API tells of webhooks and of what they have delivered, in the shapes of its documentation."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NOW = 1_780_000_000.0


def webhook(id: int, url: str) -> dict[str, object]:
    """As https://docs.github.com/en/rest/repos/webhooks#list-repository-webhooks shows one."""
    here = f"https://api.github.com/repos/acme/blog/hooks/{id}"
    return {
        "type": "Repository",
        "id": id,
        "name": "web",
        "active": True,
        "events": ["push"],
        "config": {"content_type": "json", "insecure_ssl": "0", "url": url, "secret": "********"},
        "updated_at": "2026-06-03T00:57:16Z",
        "created_at": "2026-06-03T00:57:16Z",
        "url": here,
        "test_url": f"{here}/test",
        "ping_url": f"{here}/pings",
        "deliveries_url": f"{here}/deliveries",
        "last_response": {"code": None, "status": "unused", "message": None},
    }


def attempt(
    id: int, guid: str, *, code: int = 502, event: str = "push", at: float = NOW, redelivery: bool = False
) -> dict[str, object]:
    """As https://docs.github.com/en/rest/repos/webhooks#list-deliveries-for-a-repository-webhook shows one."""
    return {
        "id": id,
        "guid": guid,
        "delivered_at": datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "redelivery": redelivery,
        "duration": 0.27,
        "status": {200: "OK", 202: "OK", 0: "timed out"}.get(code, f"Invalid HTTP Response: {code}"),
        "status_code": code,
        "event": event,
        "action": None,
        "installation_id": None,
        "repository_id": 1296269,
        "throttled_at": None,
    }


def meta(*hooks: str) -> dict[str, object]:
    """As https://docs.github.com/en/rest/meta/meta#get-github-meta-information shows it; without ``hooks`` its own."""
    published = ["192.30.252.0/22", "185.199.108.0/22", "140.82.112.0/20", "143.55.64.0/20"]
    published += ["2a0a:a440::/29", "2606:50c0::/32"]
    return {
        "verifiable_password_authentication": False,
        "ssh_keys": [],
        "hooks": list(hooks) or published,
        "web": published,
        "actions": ["4.148.0.0/16"] * 5_000,
        "domains": {"website": ["*.github.com"]},
    }


@contextmanager
def saying(
    answers: Mapping[str, Any], *, off: float = 0.0, tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[tuple[str, str, Any]]]]:
    """A server that answers so, and what it was asked: method, path and body. Its clock is ``off`` seconds off.

    ``answers`` are status and content by method and path; whatever else is asked for is not found.
    """
    asked: list[tuple[str, str, Any]] = []

    class Answering(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            path = self.path.partition("?")[0]
            if self.command != "HEAD":
                asked.append((self.command, path, json.loads(body) if body else None))
            status, said = answers.get(f"{self.command} {path}", (404, {"message": "Not Found"}))
            data = json.dumps(said).encode()
            self.send_response_only(status)
            self.send_header("date", formatdate(time.time() - off, usegmt=True))
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_HEAD = _answer  # noqa: N815 - the names that the library calls

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()
