"""What GitHub's API tells of webhooks and of what they have delivered, in the shapes of its documentation."""

from __future__ import annotations

from datetime import UTC, datetime

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
