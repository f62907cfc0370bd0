"""GitHub's REST API, as the command line asks it: webhooks, deploy keys, and the host keys that GitHub publishes.

No redirect is followed, so the token goes to the configured API alone; no exception's text has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from twisted_hook import __version__
from twisted_hook.configvalues import is_scp_like
from twisted_hook.githubrest import LARGEST_ANSWER, TIMEOUT, VERSION
from twisted_hook.model import ForgeFailed
from twisted_hook.redaction import Redactor

GITHUB_HOSTS = frozenset({"github.com", "www.github.com", "ssh.github.com"})


class GitHubRepository:
    """One repository at GitHub. Everything raises ``ForgeFailed``, in words."""

    def __init__(self, name: str, *, api: str, token: str | None) -> None:
        """``name`` is e.g. ``acme/blog``, ``api`` e.g. ``https://api.github.com``."""
        self.name = name
        self._redactor = Redactor([token] if token else [])
        headers = {
            "accept": "application/vnd.github+json",
            "x-github-api-version": VERSION,
            "user-agent": f"hookdeploy/{__version__}",
            **({"authorization": f"Bearer {token}"} if token else {}),
        }
        import httpx

        self._client = httpx.Client(base_url=api, headers=headers, timeout=TIMEOUT)
        self._host = urlsplit(api).hostname or api

    def webhooks(self) -> list[dict[str, Any]]:
        """https://docs.github.com/en/rest/repos/webhooks#list-repository-webhooks"""
        return _objects(self._ask("GET", f"/repos/{self.name}/hooks", params={"per_page": 100}))

    def deliveries(self, webhook: int) -> list[dict[str, Any]]:
        """The last ones, the newest first."""
        return _objects(self._ask("GET", f"/repos/{self.name}/hooks/{webhook}/deliveries", params={"per_page": 30}))

    def make_webhook(self, config: Mapping[str, str]) -> int:
        """https://docs.github.com/en/rest/repos/webhooks#create-a-repository-webhook; its id."""
        body = {"name": "web", "active": True, "events": ["push"], "config": dict(config)}
        return int(self._object("POST", f"/repos/{self.name}/hooks", body)["id"])

    def change_webhook(self, webhook: int, config: Mapping[str, str]) -> None:
        """Make it what ``make_webhook`` would have made; other events that it has stay."""
        body = {"active": True, "add_events": ["push"], "config": dict(config)}
        self._object("PATCH", f"/repos/{self.name}/hooks/{webhook}", body)

    def deploy_keys(self) -> list[dict[str, Any]]:
        """https://docs.github.com/en/rest/deploy-keys/deploy-keys"""
        return _objects(self._ask("GET", f"/repos/{self.name}/keys", params={"per_page": 100}))

    def add_deploy_key(self, title: str, public: str) -> None:
        """One that can only read."""
        self._object("POST", f"/repos/{self.name}/keys", {"title": title, "key": public, "read_only": True})

    def host_keys(self) -> list[str]:
        """What ssh is to see there: https://docs.github.com/en/rest/meta/meta"""
        keys = self._object("GET", "/meta", None).get("ssh_keys")
        return [key for key in keys if isinstance(key, str) and "\n" not in key] if isinstance(keys, list) else []

    def close(self) -> None:
        self._client.close()

    def _object(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        said = self._ask(method, path, json=body) if body is not None else self._ask(method, path)
        if not isinstance(said, dict):
            raise ForgeFailed(f"{self._host} gives an answer that cannot be understood")
        return said

    def _ask(self, method: str, path: str, **given: Any) -> Any:
        import httpx

        try:
            answer = self._client.request(method, path, **given)
            said = answer.json() if len(answer.content) <= LARGEST_ANSWER else None
        except httpx.HTTPError as error:
            raise ForgeFailed(self._shown(f"{self._host} cannot be asked: {error}")) from None
        except ValueError:
            said = None
        if not answer.is_success:
            told = said.get("message", "") if isinstance(said, dict) else ""
            errors = said.get("errors", "") if isinstance(said, dict) else ""
            words = (
                f"{self._host} answers {answer.status_code} {answer.reason_phrase} ({told}{errors and f' {errors}'})"
            )
            if answer.status_code in {401, 403, 404}:
                words += '; the token needs the repository permissions "Webhooks" and "Administration": read and write'
            raise ForgeFailed(self._shown(words))
        if said is None:
            raise ForgeFailed(f"{self._host} gives an answer that cannot be understood")
        return said

    def _shown(self, text: str) -> str:
        return " ".join(self._redactor.text(text).split())[:400]


def host_of(repository: str) -> str:
    """The host of a repository's URL, in lower case; empty if it is this machine."""
    if is_scp_like(repository):
        return repository.partition(":")[0].rpartition("@")[2].lower()
    return urlsplit(repository).hostname or ""


def _objects(said: Any) -> list[dict[str, Any]]:
    return [each for each in said if isinstance(each, dict)] if isinstance(said, list) else []
