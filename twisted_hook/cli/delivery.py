"""A delivery such as GitHub makes: its payload, its signature, and its way to a server.

Knows no configuration. The secret leaves this process only as a signature.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from twisted_hook.cli.transport import over_socket

PATIENCE = 10.0
"""Seconds that GitHub gives a receiver to answer."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to deliver, and how to sign."""

    url: str
    secret: bytes = field(repr=False)
    socket: Path | None = None
    """The unix socket that is spoken to instead of the URL's host."""

    def __str__(self) -> str:
        return f"{self.socket} ({urlsplit(self.url).path})" if self.socket else self.url


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a delivery tells of."""

    repository: str
    ref: str
    after: str
    default_branch: str = "main"


def deliver(target: Target, event: str, payload: Mapping[str, Any], guid: str) -> httpx.Response:
    """Sign the payload and post it. Raises ``httpx.HTTPError`` or ``httpx.InvalidURL`` if there is no answer."""
    body = json.dumps(payload, separators=(",", ":")).encode()
    transport = over_socket(target.socket) if target.socket else None
    with httpx.Client(transport=transport, timeout=PATIENCE) as client:
        return client.post(target.url, content=body, headers=_headers(target.secret, event, guid, body))


def _headers(secret: bytes, event: str, guid: str, body: bytes) -> dict[str, str]:
    """https://docs.github.com/en/webhooks/webhook-events-and-payloads#delivery-headers"""
    return {
        "Accept": "*/*",
        "Content-Type": "application/json",
        "User-Agent": "GitHub-Hookshot/hookdeploy",
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": guid,
        "X-Hub-Signature-256": f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}",
    }


def push(pushed: Pushed) -> dict[str, Any]:
    """The payload of a push. The commit before it is made up, so that no two payloads are alike.

    A server knows a delivery again by its body too, and a test delivery is to be a new one.
    """
    commit = _commit(pushed.after)
    return {
        "ref": pushed.ref,
        "before": secrets.token_hex(20),
        "after": pushed.after,
        "base_ref": None,
        "created": False,
        "deleted": False,
        "forced": False,
        "commits": [commit],
        "head_commit": commit,
        "pusher": {"name": "hookdeploy"},
        **_about(pushed),
    }


def ping(pushed: Pushed) -> dict[str, Any]:
    """The payload of the event that GitHub sends when a webhook is made."""
    number = secrets.randbelow(1 << 31)
    return {
        "zen": "Responsive is better than fast.",
        "hook_id": number,
        "hook": {"type": "Repository", "id": number, "name": "web", "active": True, "events": ["push"]},
        **_about(pushed),
    }


def _about(pushed: Pushed) -> dict[str, Any]:
    owner, _, name = pushed.repository.rpartition("/")
    repository = {
        "id": 1,
        "name": name,
        "full_name": pushed.repository,
        "owner": {"login": owner},
        "default_branch": pushed.default_branch,
        "clone_url": f"https://github.com/{pushed.repository}.git",
    }
    return {"repository": repository, "sender": {"login": "hookdeploy", "type": "User"}}


def _commit(id: str) -> dict[str, Any]:
    who = {"name": "hookdeploy", "email": "hookdeploy@localhost"}
    return {
        "id": id,
        "message": "A test delivery",
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "author": who,
        "committer": who,
        "added": [],
        "removed": [],
        "modified": [],
    }
