"""The deliveries that GitHub could not make to a hook of ours: which they are, and to have them made again.

GitHub itself never tries twice, keeps what failed for three days, and gives a redelivery the id of the original:
https://docs.github.com/en/webhooks/using-webhooks/handling-failed-webhook-deliveries
It only asks; what of that is to be asked, and when, is not decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta, Struct, convert
from twisted.logger import Logger

from twisted_hook.boundaries import Redeliveries
from twisted_hook.config import AppConfig, Config, HookConfig
from twisted_hook.configvalues import is_scp_like
from twisted_hook.githubrest import api_of
from twisted_hook.model import FailedDelivery, ForgeFailed
from twisted_hook.outward.github import GitHub
from twisted_hook.process import Reactor

NEEDS = 'the repository permission "Webhooks: read and write", or a classic token the scope "repo"'
"""https://docs.github.com/en/rest/repos/webhooks#redeliver-a-delivery-for-a-repository-webhook"""
A_PAGE = 100
"""The most that GitHub gives at once."""
MOST = 10_000
"""Attempts that are looked at: far more than three days of pushes."""
_log = Logger()


class _Address(Struct):
    url: str = ""


class _Webhook(Struct):
    id: int
    config: _Address


class Attempt(Struct, frozen=True):
    """One attempt at a delivery, as GitHub lists it."""

    id: int
    guid: Annotated[str, Meta(pattern="^[!-~]{1,200}$")]
    delivered_at: Annotated[datetime, Meta(tz=True)]
    event: str
    status: str = ""
    """``OK``, or what went wrong in words."""
    status_code: int | None = None

    @property
    def taken(self) -> bool:
        return self.status == "OK" or 200 <= (self.status_code or 0) < 300


def never_taken(newest_first: Iterable[Attempt]) -> list[Attempt]:
    """The newest attempt at each push of which no attempt was taken, the oldest first."""
    found: dict[str, Attempt] = {}
    taken = set()
    for attempt in newest_first:
        if attempt.taken:
            taken.add(attempt.guid)
        elif attempt.event == "push":
            found.setdefault(attempt.guid, attempt)
    return [attempt for guid, attempt in reversed(found.items()) if guid not in taken]


def leads_to(url: str, path: str, public_url: str | None) -> bool:
    """Whether what is sent to a webhook's address arrives at the hook with this path.

    Where our own address is not known, whatever stands before the path may be ours.
    """
    try:
        theirs = urlsplit(url)
        port = _port(theirs.port, theirs.scheme)
    except ValueError:  # no address of anything
        return False
    if public_url is None:
        return theirs.path.endswith(path)
    ours = urlsplit(public_url + path)
    return (ours.scheme, ours.hostname, _port(ours.port, ours.scheme), ours.path) == (
        theirs.scheme,
        theirs.hostname,
        port,
        theirs.path,
    )


def _port(port: int | None, scheme: str) -> int:
    return port or (443 if scheme == "https" else 80)


class GitHubWebhook:
    """The webhook of one repository at GitHub that delivers to one of our hooks."""

    def __init__(
        self, github: GitHub, *, hook: str, path: str, owner: str, repository: str, public_url: str | None
    ) -> None:
        self._github = github
        self._hook = hook
        self._path = path
        self._public_url = public_url
        self._where = {"owner": owner, "repo": repository, "per_page": str(A_PAGE)}
        self._name = f"{owner}/{repository}"

    @property
    def hook(self) -> str:
        return self._hook

    @property
    def words(self) -> str:
        return f"the webhook of {self._name} at {self._github.host}"

    async def failed(self, since: float) -> Sequence[FailedDelivery]:
        with self._github.in_words(needs=NEEDS):
            webhook = await self._webhook()
            attempts = await self._attempts(webhook, since)
        return [
            FailedDelivery(each.guid, f"{webhook}/deliveries/{each.id}", each.delivered_at.timestamp())
            for each in never_taken(attempts)
        ]

    async def ask_again(self, delivery: FailedDelivery) -> None:
        with self._github.in_words(needs=NEEDS):
            await self._github.post(f"/repos/{{owner}}/{{repo}}/hooks/{delivery.id}/attempts", self._where, data=b"")

    async def _webhook(self) -> int:
        """The id of the one webhook that leads to us."""
        listed = self._github.getiter("/repos/{owner}/{repo}/hooks{?per_page}", self._where)
        webhooks = [convert(each, _Webhook) async for each in listed]
        found = [each.id for each in webhooks if leads_to(each.config.url, self._path, self._public_url)]
        address = f"{self._public_url or '…'}{self._path}"
        if not found:
            raise ForgeFailed(f"none of the {len(webhooks)} webhooks of {self._name} delivers to {address}")
        if len(found) > 1:
            advice = "" if self._public_url else "; say in server.public_url which address is ours"
            raise ForgeFailed(f"{len(found)} webhooks of {self._name} deliver to {address}{advice}")
        return found[0]

    async def _attempts(self, webhook: int, since: float) -> list[Attempt]:
        """The attempts since then; GitHub gives the newest first."""
        url = f"/repos/{{owner}}/{{repo}}/hooks/{webhook}/deliveries{{?per_page}}"
        attempts: list[Attempt] = []
        async for item in self._github.getiter(url, self._where):
            attempt = convert(item, Attempt)
            if attempt.delivered_at.timestamp() < since or len(attempts) == MOST:
                break
            attempts.append(attempt)
        return attempts


_: type[Redeliveries] = GitHubWebhook


def webhooks_of(
    config: Config, tokens: Mapping[str, str], reactor: Reactor, *, now: Callable[[], float]
) -> tuple[GitHubWebhook, ...]:
    """A webhook for each repository of each hook that has a token; ``tokens`` are by the name of the hook.

    Make them once for a configuration: they know how long GitHub does not want to be asked.
    """
    clients: dict[tuple[str, str], GitHub] = {}
    found: dict[tuple[str, str, str], GitHubWebhook] = {}
    for hook, app in _deployed_by_token(config, tokens):
        name = app.names[0] if app.names else ""
        owner, _slash, repository = name.partition("/")
        if not owner or not repository or "/" in repository:
            _log.warn(
                "apps.{app}.names: GitHub cannot be asked for failed deliveries without a name such as acme/blog",
                app=app.name,
            )
            continue
        host = _host(app.repository or "")
        if app.repository and not host and not hook.api:
            _log.warn(
                "apps.{app}.repository: is on this machine, so its failed deliveries are asked of nobody; or set hooks."
                "{hook}.api",
                app=app.name,
                hook=hook.name,
            )
            continue
        api, token = hook.api or api_of(host), tokens[hook.name]
        github = clients.setdefault((api, token), GitHub(reactor, token=token, api=api, now=now))
        found[hook.name, api, name.lower()] = GitHubWebhook(
            github,
            hook=hook.name,
            path=hook.path,
            owner=owner,
            repository=repository,
            public_url=config.server.public_url,
        )
    return tuple(found.values())


def _deployed_by_token(config: Config, tokens: Mapping[str, str]) -> Iterator[tuple[HookConfig, AppConfig]]:
    for hook in config.hooks:
        if hook.name in tokens:
            yield from ((hook, app) for app in config.apps.values() if app.hook == hook.name)


def _host(repository: str) -> str:
    """The host that git fetches from, in lower case; empty if it is this machine."""
    if is_scp_like(repository):
        return repository.partition(":")[0].rpartition("@")[2].lower()
    return urlsplit(repository).hostname or ""
