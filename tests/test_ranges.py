"""From where GitHub says that it delivers: over real sockets, and on a clock of our own."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http import Request
from twisted.web.server import NOT_DONE_YET

from tests import payloads
from tests.githubapi import meta
from tests.test_intake import BODY, HOOK, doorway, told
from tests.test_outward import ANSWERS_ODDLY, REACTOR, clients, local_github, ours, refusing, saying, silent
from tests.test_outward import told as told_by
from tests.waiting import become
from tests.wire import post
from twisted_hook.githubrest import LARGEST_ANSWER
from twisted_hook.hooks import Hook, Network
from twisted_hook.model import ForgeFailed
from twisted_hook.outward.github import GitHub
from twisted_hook.outward.ranges import FIRST_PAUSE, INTERVAL, LASTS, SOONEST, PublishedNetworks, Ranges, networks_of
from twisted_hook.peers import Trust

PUBLISHED = tuple(
    map(
        ip_network,
        (
            "192.30.252.0/22",
            "185.199.108.0/22",
            "140.82.112.0/20",
            "143.55.64.0/20",
            "2a0a:a440::/29",
            "2606:50c0::/32",
        ),
    )
)
WANTING = replace(HOOK, published=True)
TENTH = 1.1
"""What chance may add to a pause."""


class ScriptedGitHub(GitHub):
    """Answers in turn, and the last one for ever: a status with a body, or a failure."""

    def __init__(self, *answers: tuple[int, bytes] | ForgeFailed | Deferred[None]) -> None:
        super().__init__(REACTOR, token=None, api="https://api.github.com", now=time.time, cache={})
        self.answers = [*answers]
        self.asked: list[tuple[str, Mapping[str, str]]] = []

    async def _request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes = b""
    ) -> tuple[int, Mapping[str, str], bytes]:
        self.asked.append((f"{method} {url}", headers))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Deferred):
            await answer
            raise AssertionError("it was to be given up")
        if isinstance(answer, ForgeFailed):
            raise answer
        status, content = answer
        return status, {"etag": f'W/"{hash(content)}"', "content-type": "application/json; charset=utf-8"}, content


def good(*networks: str) -> tuple[int, bytes]:
    return 200, json.dumps(meta(*networks)).encode()


FAILURE = ForgeFailed("api.github.com has not answered within 10 s")


class OnAClock(SynchronousTestCase):
    """When they are asked for, and for how long they are good."""

    def published(self, *answers: tuple[int, bytes] | ForgeFailed | Deferred[None]) -> PublishedNetworks:
        self.clock, self.github = Clock(), ScriptedGitHub(*answers)
        published = PublishedNetworks(self.clock, self.github)
        published.start()
        self.addCleanup(published.stop)
        return published

    def assert_asked(self, times: int) -> None:
        self.assertEqual(len(self.github.asked), times)

    def test_they_are_asked_for_at_once_and_every_hour(self) -> None:
        published = self.published(good())
        self.assertEqual(published.known, PUBLISHED)
        self.clock.advance(INTERVAL / TENTH / 2)
        self.assert_asked(1)
        self.clock.pump([INTERVAL * TENTH] * 3)
        self.assert_asked(4)
        [(first, headers), *_] = self.github.asked
        self.assertEqual(first, "GET https://api.github.com/meta")
        self.assertNotIn("authorization", {name.lower() for name in headers})

    def test_what_has_not_changed_is_not_sent_again(self) -> None:
        published = self.published(good(), (304, b""))
        self.clock.advance(INTERVAL * TENTH)
        self.assertEqual(self.github.asked[1][1]["if-none-match"], f'W/"{hash(good()[1])}"')
        self.assertEqual(published.known, PUBLISHED)
        self.clock.pump([INTERVAL * TENTH] * 30)
        self.assertEqual(published.known, PUBLISHED)

    def test_after_failures_they_are_asked_for_sooner_and_then_less_and_less_soon(self) -> None:
        published = self.published(FAILURE)
        self.assertIsNone(published.known)
        for n in range(1, 6):
            pause = FIRST_PAUSE * 2 ** (n - 1)
            self.clock.advance(pause * 0.89)
            self.assert_asked(n)
            self.clock.advance(pause * 0.22)
            self.assert_asked(n + 1)
        self.clock.pump([INTERVAL * TENTH] * 20)
        self.assert_asked(26)

    def test_an_answer_is_good_for_a_day_and_then_nothing_is_known(self) -> None:
        published = self.published(good(), FAILURE)
        self.clock.pump([LASTS / 100] * 99)
        self.assertEqual(published.known, PUBLISHED)
        self.clock.advance(LASTS / 100)
        self.assertIsNone(published.known)

    def test_what_is_known_is_known_again_after_a_failure(self) -> None:
        published = self.published(FAILURE, good("9.234.98.160/28"), FAILURE, good())
        with capturedLogs() as events:
            self.clock.advance(FIRST_PAUSE * TENTH)
            self.assertEqual(published.known, (ip_network("9.234.98.160/28"),))
            self.clock.advance(INTERVAL * TENTH)
            self.assertEqual(published.known, (ip_network("9.234.98.160/28"),))
            self.clock.advance(FIRST_PAUSE * TENTH)
        self.assertEqual(published.known, PUBLISHED)
        said = [told_by(event).strip() for event in events]
        self.assertEqual(said[0], "api.github.com delivers from 9.234.98.160/28")
        self.assertIn(str(FAILURE), said[1])
        self.assertEqual(len(said), 3)

    def test_a_refusal_has_them_asked_for_once_within_five_minutes(self) -> None:
        published = self.published(good())
        for _ in range(3):
            published.doubt()
        self.clock.advance(SOONEST - 1)
        self.assert_asked(1)
        published.doubt()
        self.clock.advance(1)
        self.assert_asked(2)
        self.clock.advance(SOONEST * 2)
        self.assert_asked(2)
        published.doubt()
        self.clock.advance(0)
        self.assert_asked(3)

    def test_stopping_gives_up_what_is_being_asked(self) -> None:
        given_up: list[object] = []
        published = self.published(Deferred(given_up.append))
        published.doubt()
        published.stop()
        self.assertEqual(len(given_up), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_list_that_nobody_can_mean_is_a_failure_and_not_a_list(self) -> None:
        lists: list[list[str]] = [
            [],
            ["0.0.0.0/0"],
            ["192.30.252.0/22", "::/0"],
            ["10.0.0.0/7"],
            ["127.0.0.1/32"],
            ["::1/128"],
            ["github.com"],
            [""],
            ["192.30.252.0/33"],
            ["192.30.252.0/22"] * 1001,
        ]
        for listed in lists:
            with self.assertRaises(ValueError, msg=listed):
                networks_of(listed)
            self.assertIsNone(self.published((200, json.dumps({"hooks": listed}).encode())).known)
            later = self.published(good(), (200, json.dumps({"hooks": listed}).encode()))
            self.clock.advance(INTERVAL * TENTH)
            self.assertEqual(later.known, PUBLISHED)

    def test_another_answer_is_a_failure(self) -> None:
        for body in (
            b"",
            b"{}",
            b"[]",
            b"null",
            b'{"hooks": null}',
            b'{"hooks": "192.30.252.0/22"}',
            b'{"hooks": [3232235777]}',
            b'{"hooks": {"192.30.252.0/22": 1}}',
            b"<!DOCTYPE html><title>Unicorn!</title>",
            b"[" * 100_000,
            b'{"hooks": [' + b"9" * 5_000 + b"]}",
            b"\xff\xfe",
        ):
            for status in (200, 301, 403, 404, 500):
                self.assertIsNone(self.published((status, body)).known, body)


# --- over sockets


def pouring(request: Request) -> int:
    """25 MB."""

    def pour(left: int = 400) -> None:
        if left and not request._disconnected:
            request.write(b'"192.30.252.0/22",' * 3_600)
            REACTOR.callLater(0, pour, left - 1)

    pour()
    return NOT_DONE_YET


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (pouring, f"more than {LARGEST_ANSWER} bytes"),
        (refusing(302, "Found", location="http://127.0.0.1:9/meta"), "302"),
        (refusing(403, "API rate limit exceeded", x_ratelimit_remaining="0", x_ratelimit_reset="9999999999"), "403"),
        (saying(b"<html>", content_type="text/html"), "cannot be understood"),
        (saying(b"[" * 500_000 + b"]" * 500_000), "cannot be understood"),
    ],
    ids=("endless", "elsewhere", "limited", "html", "nested"),
)
@pytest_twisted.ensureDeferred
async def test_a_hostile_answer_leaves_the_networks_unknown(answer: ANSWERS_ODDLY, words: str) -> None:
    async with local_github() as there:
        there.instead = answer
        known = Ranges(REACTOR, now=time.time)
        with capturedLogs() as events:
            known.serve({"github": there.api})
            await become(lambda: any(words in told_by(event) for event in events))
        assert known.of(WANTING) is None
        assert [uri for _, uri, _ in there.requests] == ["/meta"]
        known.stop()


@pytest_twisted.ensureDeferred
async def test_each_github_is_asked_once_for_all_its_hooks_and_no_more_when_nobody_wants_it() -> None:
    async with local_github() as one, local_github() as other:
        one.instead = saying(json.dumps(meta()).encode())
        other.instead = saying(json.dumps(meta("9.234.98.160/28")).encode())
        known = Ranges(REACTOR, now=time.time)
        known.serve({"github": one.api, "team": one.api, "other": other.api})
        await become(lambda: None not in (known.of(WANTING), known.of(replace(HOOK, name="other"))))
        assert known.of(WANTING) == known.of(replace(HOOK, name="team")) == PUBLISHED
        assert known.of(replace(HOOK, name="other")) == (ip_network("9.234.98.160/28"),)
        assert known.of(replace(HOOK, name="else")) is None
        assert (len(one.requests), len(other.requests)) == (1, 1)
        known.serve({"other": one.api})
        assert known.of(replace(HOOK, name="other")) == PUBLISHED
        assert known.of(WANTING) is None
        assert len(one.requests) == 1
        known.stop()
        assert known.of(replace(HOOK, name="other")) is None


@pytest_twisted.ensureDeferred
async def test_a_refusal_asks_github_again_and_what_has_not_changed_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twisted_hook.outward.ranges.SOONEST", 0.0)

    def answer(request: Request) -> bytes:
        if request.setETag(b'W/"one"'):
            return b""
        return json.dumps(meta()).encode()

    async with local_github() as there:
        there.instead = answer
        known = Ranges(REACTOR, now=time.time)
        known.serve({"github": there.api})
        await become(lambda: known.of(WANTING) is not None)
        known.refused(replace(HOOK, name="another"))
        with capturedLogs() as events:
            known.refused(WANTING)
            await become(lambda: len(there.requests) == 2 and not clients())
        assert [headers.get("if-none-match") for _, _, headers in there.requests] == [None, 'W/"one"']
        assert known.of(WANTING) == PUBLISHED
        assert ours(events) == []
        known.stop()


@pytest_twisted.ensureDeferred
async def test_stopping_closes_the_connection() -> None:
    async with local_github() as there:
        there.instead = silent
        known = Ranges(REACTOR, now=time.time)
        known.serve({"github": there.api})
        await become(lambda: bool(there.requests))
        known.stop()
        await become(lambda: not clients())


# --- at the door


@pytest_twisted.ensureDeferred
async def test_who_is_not_on_the_list_is_refused_by_the_headers_and_said_so() -> None:
    published: list[Sequence[Network] | None] = [PUBLISHED]
    refused: list[Hook] = []
    async with doorway(WANTING, published=lambda hook: published[0], shut_out=refused.append) as door:
        answer = await door.post()
        assert answer.status == 403
        assert told(answer) == {"error": "this hook does not serve that repository, or not from this address"}
        assert refused == [WANTING]
        await door.assert_nothing_happened()
        published[0] = None
        assert told(await door.post())["status"] == "accepted"
        assert len(refused) == 1


@pytest_twisted.ensureDeferred
async def test_behind_a_trusted_proxy_the_address_counts_that_it_passes_on() -> None:
    trusted = Trust.in_words(["127.0.0.1/32"])
    async with doorway(WANTING, published=lambda hook: PUBLISHED, trusted=trusted) as door:
        for sender, status in (
            (b"192.0.2.1", 403),
            (b"192.0.2.1, 140.82.115.9", 202),
            (b"140.82.115.9, 192.0.2.1", 403),
        ):
            assert (await door.post(x_forwarded_for=sender)).status == status
        headers = payloads.headers(BODY, x_forwarded_for=b"140.82.115.9")
        assert (await door.ask(post("/hooks/github", headers, BODY), source="127.0.0.2")).status == 403


@pytest_twisted.ensureDeferred
async def test_a_forged_header_lets_nobody_in_as_the_proxy_itself() -> None:
    """T12: the proxy sets one of the two headers and passes on the other one; its own network may deliver."""
    trusted = Trust.in_words(["127.0.0.1/32"])
    here = replace(HOOK, networks=(ip_network("127.0.0.0/8"),))
    async with doorway(here, trusted=trusted) as door:
        for forged in (b"for=192.0.2.9", b"for=127.0.0.2", b"rubbish", b""):
            assert (await door.post(x_forwarded_for=b"192.0.2.1", forwarded=forged)).status == 403
            assert (await door.post(x_forwarded_for=forged, forwarded=b"for=192.0.2.1")).status == 403
        assert (await door.post(x_forwarded_for=b"127.0.0.2", forwarded=b"for=127.0.0.2")).status == 202


@pytest_twisted.ensureDeferred
async def test_a_hook_with_networks_of_its_own_takes_from_there_alone() -> None:
    here = replace(HOOK, networks=(ip_network("127.0.0.2/32"),))
    async with doorway(here) as door:
        assert (await door.post()).status == 403
        assert (await door.post(b"", path="/nowhere")).status == 404
        assert (await door.ask(post("/hooks/github", payloads.headers(BODY), BODY), source="127.0.0.2")).status == 202


@pytest_twisted.ensureDeferred
async def test_the_log_names_who_was_refused_for_his_address() -> None:
    """Whoever has shut the forge out by a wrong list finds in the log what is missing in it."""
    here, trusted = replace(HOOK, networks=(ip_network("192.0.2.0/24"),)), Trust.in_words(["127.0.0.1/32"])
    async with doorway(here, trusted=trusted) as door:
        with capturedLogs() as events:
            assert (await door.post(x_forwarded_for=b"140.82.115.9")).status == 403
            assert (await door.post(x_forwarded_for=b"140.82.115.9", forwarded=b"for=192.0.2.1")).status == 403
            assert (await door.post(x_forwarded_for=b"2001:db8::7")).status == 403
            door.site.tally.close()
        counts: Counter[str] = Counter()
        for event in events:
            counts.update(event.get("counts", {}))
        assert counts == {
            "403 140.82.115.9 is not in only_from of github": 2,
            "403 2001:db8::7 is not in only_from of github": 1,
        }
