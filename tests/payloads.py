"""Messages as GitHub sends them: payloads of the real shape, signatures, and the headers that go with them."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any
from urllib.parse import quote_plus

import msgspec

SECRET = b"It's a Secret to Everybody"
TIP = "6dcb09b5b57875f334f61aebed695e2e4193db5e"
BEFORE = "0000000000000000000000000000000000000001"
ZEROS = "0" * 40


def user(login: str = "octocat") -> dict[str, Any]:
    """A GitHub account, as it stands in ``sender`` and ``repository.owner``."""
    return {
        "login": login,
        "id": 583231,
        "node_id": "MDQ6VXNlcjU4MzIzMQ==",
        "avatar_url": "https://avatars.githubusercontent.com/u/583231?v=4",
        "url": f"https://api.github.com/users/{login}",
        "html_url": f"https://github.com/{login}",
        "type": "User",
        "site_admin": False,
    }


def repository(full_name: str = "acme/web", **fields: Any) -> dict[str, Any]:
    """A repository, as it stands in every event of it."""
    owner, _, name = full_name.partition("/")
    return {
        "id": 186853002,
        "node_id": "MDEwOlJlcG9zaXRvcnkxODY4NTMwMDI=",
        "name": name,
        "full_name": full_name,
        "private": False,
        "owner": user(owner),
        "html_url": f"https://github.com/{full_name}",
        "description": None,
        "fork": False,
        "url": f"https://github.com/{full_name}",
        "statuses_url": f"https://api.github.com/repos/{full_name}/statuses/{{sha}}",
        "created_at": 1557933565,
        "updated_at": "2019-05-15T15:20:41Z",
        "pushed_at": 1557933657,
        "git_url": f"git://github.com/{full_name}.git",
        "ssh_url": f"git@github.com:{full_name}.git",
        "clone_url": f"https://github.com/{full_name}.git",
        "default_branch": "main",
        **fields,
    }


def commit(id: str = TIP, message: str = "Fix all the bugs") -> dict[str, Any]:
    """A commit, as it stands in ``commits`` and ``head_commit``."""
    author = {"name": "monalisa", "email": "mona@example.com", "username": "monalisa"}
    return {
        "id": id,
        "tree_id": "f9d2a07e9488b91af2641b26b9407fe22a451433",
        "distinct": True,
        "message": message,
        "timestamp": "2019-05-15T15:20:30Z",
        "url": f"https://github.com/acme/web/commit/{id}",
        "author": author,
        "committer": author,
        "added": [],
        "removed": [],
        "modified": ["README.md"],
    }


def push(ref: object = "refs/heads/main", after: object = TIP, **fields: Any) -> dict[str, Any]:
    """The payload of a push event; fields by name replace or add to those that it has."""
    return {
        "ref": ref,
        "before": BEFORE,
        "after": after,
        "repository": repository(),
        "pusher": {"name": "octocat", "email": "octocat@github.com"},
        "sender": user(),
        "created": False,
        "deleted": False,
        "forced": False,
        "base_ref": None,
        "compare": f"https://github.com/acme/web/compare/{BEFORE[:12]}...{TIP[:12]}",
        "commits": [commit()],
        "head_commit": commit(),
        **fields,
    }


def deletion(ref: str = "refs/heads/main") -> dict[str, Any]:
    """The payload of a push that deletes a ref."""
    return push(ref, ZEROS, deleted=True, commits=[], head_commit=None)


def ping() -> dict[str, Any]:
    """The payload of the event that GitHub sends when a hook is made."""
    return {
        "zen": "Responsive is better than fast.",
        "hook_id": 109948940,
        "hook": {"type": "Repository", "id": 109948940, "name": "web", "active": True, "events": ["push"]},
        "repository": repository(),
        "sender": user(),
    }


def encoded(payload: object) -> bytes:
    """The payload as the bytes of a JSON body, compact as GitHub's."""
    return msgspec.json.encode(payload)


def form(body: bytes) -> bytes:
    """A JSON body as GitHub wraps it for the other content type."""
    return b"payload=" + quote_plus(body).encode()


def sha256_signature(body: bytes, secret: bytes = SECRET) -> bytes:
    return b"sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest().encode()


def sha1_signature(body: bytes, secret: bytes = SECRET) -> bytes:
    return b"sha1=" + hmac.new(secret, body, hashlib.sha1).hexdigest().encode()


def headers(body: bytes, **replaced: bytes | None) -> dict[bytes, bytes]:
    """The headers of a signed push with this body. A keyword changes one, None omits it: ``x_github_event=None``."""
    found: dict[bytes, bytes] = {
        b"user-agent": b"GitHub-Hookshot/044aadd",
        b"content-type": b"application/json",
        b"x-github-event": b"push",
        b"x-github-delivery": b"72d3162e-cc78-11e3-81ab-4c9367dc0958",
        b"x-github-hook-id": b"109948940",
        b"x-github-hook-installation-target-id": b"186853002",
        b"x-github-hook-installation-target-type": b"repository",
        b"x-hub-signature": sha1_signature(body),
        b"x-hub-signature-256": sha256_signature(body),
    }
    for name, value in replaced.items():
        header = name.replace("_", "-").encode()
        if value is None:
            found.pop(header, None)
        else:
            found[header] = value
    return found
