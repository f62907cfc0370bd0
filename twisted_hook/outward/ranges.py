"""The networks from which GitHub says that it delivers webhooks, asked for again and again.

GitHub advises against relying on them alone, and adds to them now and then:
https://docs.github.com/en/authentication/keeping-your-account-and-data-secure/about-githubs-ip-addresses
So nobody is shut out for what is not known: without a good answer of the last day, the networks are unknown. It admits
and refuses nobody itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_network

from msgspec import Struct, convert
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_hook.githubrest import api_of
from twisted_hook.hooks import Hook, Network
from twisted_hook.model import ForgeFailed
from twisted_hook.outward.github import GitHub
from twisted_hook.process import Reactor
from twisted_hook.rounds import Rounds, spread

INTERVAL = 3600.0
"""Seconds between two answers, give or take a tenth."""
SOONEST = 300.0
"""Seconds after which they are asked for again when somebody was refused who may be of a new network.

GitHub answers 60 requests an hour without a token:
https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api
"""
FIRST_PAUSE = 60.0
"""Seconds after a failure; each further one doubles them, up to ``INTERVAL``."""
LASTS = 86_400.0
"""Seconds for which an answer is good."""
MOST = 1_000
"""Networks in a list that can be true; GitHub has published about ten."""
WIDEST = {4: 8, 6: 16}
"""The shortest prefixes, by IP version, that can be true; GitHub's have been /20 and /29."""


class _Meta(Struct):
    """https://docs.github.com/en/rest/meta/meta#get-github-meta-information"""

    hooks: list[str]


def networks_of(told: Sequence[str]) -> tuple[Network, ...]:
    """The networks in these words. Raises ``ValueError`` for a list that nobody can mean, such as of everywhere.

    A server of one's own says 127.0.0.1/32, or nothing:
    https://docs.github.com/enterprise/2.1/developer/v3/meta
    """
    if not 0 < len(told) <= MOST:
        raise ValueError("no list of networks")
    networks = tuple(ip_network(each, strict=False) for each in told)
    if any(network.prefixlen < WIDEST[network.version] or network.is_loopback for network in networks):
        raise ValueError("a network that nobody delivers from")
    return networks


class PublishedNetworks:
    """What one GitHub publishes, as far as it is known."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, github: GitHub) -> None:
        self._clock = clock
        self._github = github
        self._networks: tuple[Network, ...] = ()
        self._good_until = self._asked_at = float("-inf")
        self._failures = 0
        self._rounds = Rounds(clock, self._ask, self._pause, self._report)

    @property
    def known(self) -> Sequence[Network] | None:
        """The networks; None if they are not known, or not any more."""
        return self._networks if self._clock.seconds() < self._good_until else None

    def start(self) -> None:
        """Ask now, and then again and again."""
        self._rounds.begin()

    def doubt(self) -> None:
        """Ask soon: somebody was refused. Many calls make one request."""
        self._rounds.hurry(max(0.0, self._asked_at + SOONEST - self._clock.seconds()))

    def stop(self) -> None:
        """Ask for nothing more; what is being asked is given up."""
        self._rounds.stop()

    def _pause(self) -> float:
        growing = FIRST_PAUSE * 2 ** min(self._failures - 1, 10)
        return spread(min(growing, INTERVAL) if self._failures else INTERVAL)

    def _report(self, failure: Failure) -> None:
        self._failures += 1
        self._log.failure("asking for the networks of {host}", failure, host=self._github.host)

    async def _ask(self) -> None:
        self._asked_at = self._clock.seconds()
        try:
            with self._github.in_words():
                networks = networks_of(convert(await self._github.getitem("/meta"), _Meta).hooks)
        except ForgeFailed as failed:
            self._fails(str(failed))
        else:
            self._works(networks)

    def _fails(self, reason: str) -> None:
        """Say it once, until it works again."""
        self._failures += 1
        if self._failures == 1:
            self._log.warn(
                "{host}: from where it delivers cannot be asked; without an answer for a day, hooks that are to be "
                "delivered to from there alone are delivered to from anywhere: {reason}",
                host=self._github.host,
                reason=reason,
            )

    def _works(self, networks: tuple[Network, ...]) -> None:
        if self._failures or networks != self._networks:
            listed = ", ".join(map(str, networks))
            self._log.info("{host} delivers from {networks}", host=self._github.host, networks=listed)
        self._failures = 0
        self._networks = networks
        self._good_until = self._clock.seconds() + LASTS


class Ranges:
    """What is published for the hooks that want it, each GitHub asked once."""

    def __init__(self, reactor: Reactor, *, now: Callable[[], float]) -> None:
        """``now`` gives seconds since the epoch. Nothing is asked before there are hooks."""
        self._reactor = reactor
        self._now = now
        self._apis: dict[str, PublishedNetworks] = {}
        self._hooks: dict[str, PublishedNetworks] = {}

    def serve(self, apis: Mapping[str, str | None]) -> None:
        """Ask for these hooks alone from now on; they are told by name, with where their GitHub's API is, or None."""
        wanted = {name: api or api_of("") for name, api in apis.items()}
        for api in self._apis.keys() - wanted.values():
            self._apis.pop(api).stop()
        for api in set(wanted.values()) - self._apis.keys():
            github = GitHub(self._reactor, token=None, api=api, now=self._now, cache={})
            self._apis[api] = PublishedNetworks(self._reactor, github)
            self._apis[api].start()
        self._hooks = {name: self._apis[api] for name, api in wanted.items()}

    def of(self, hook: Hook) -> Sequence[Network] | None:
        """The networks of a hook's GitHub; None if they are not known."""
        published = self._hooks.get(hook.name)
        return published.known if published else None

    def refused(self, hook: Hook) -> None:
        """Somebody was refused at this hook: by a list that may have grown."""
        if hook.name in self._hooks:
            self._hooks[hook.name].doubt()

    def stop(self) -> None:
        self.serve({})
