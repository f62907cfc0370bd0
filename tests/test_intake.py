"""The public door as a forge sees it: every answer of the contract, and a row for everything that was answered 202."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import gc
import gzip
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall
from twisted.logger import LogEvent, LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tests import payloads
from tests.fakes import MemoryJournal
from tests.payloads import SECRET, TIP, encoded, push, sha1_signature, sha256_signature
from tests.waiting import become
from tests.wire import Answer, connect, head, listening, patient, post
from twisted_hook.hooks import Hook, Network, Secret, Subscription
from twisted_hook.intake import Intake
from twisted_hook.model import (
    Delivery,
    Deployment,
    JournalUnavailable,
    Message,
    NewDelivery,
    Outcome,
    Push,
    Receipt,
    Refused,
    Trigger,
    Verdict,
)
from twisted_hook.rates import Rate
from twisted_hook.site import GuardedSite

PATH = "/hooks/github"
BODY = encoded(push())
HOOK = Hook(
    name="github",
    path=PATH,
    forge="github",
    secrets=(Secret(SECRET),),
    subscriptions=(Subscription("web", ("acme/web",), "refs/heads/main"),),
)
API = replace(
    HOOK,
    name="api",
    path="/hooks/api",
    secrets=(Secret(b"the secret of acme/api, not of web"),),
    subscriptions=(Subscription("api", ("acme/api",), "refs/heads/main"),),
)


class SlowJournal(MemoryJournal):
    """Commits when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.commit: Deferred[None] = Deferred()
        self.asked: Deferred[None] = Deferred()

    async def accept(self, delivery: NewDelivery) -> Receipt:
        if not self.asked.called:
            self.asked.callback(None)
        await self.commit
        return await super().accept(delivery)


class Doorway:
    """A door on a real socket, with what came through it."""

    def __init__(
        self,
        *hooks: Hook,
        journal: MemoryJournal | None = None,
        published: Callable[[Hook], Sequence[Network] | None] = lambda hook: None,
        shut_out: Callable[[Hook], None] = lambda hook: None,
        **limits: Any,
    ) -> None:
        self.journal = journal or MemoryJournal()
        self.submitted: list[Deployment] = []
        self.missed: list[str] = []
        self.repeated: list[str] = []
        self.intake = Intake(
            self.journal,
            self.submitted.append,
            hooks or (HOOK,),
            lambda: 1_700_000_000.0,
            missed=self.missed.extend,
            repeated=self.repeated.extend,
            published=published,
            shut_out=shut_out,
        )
        self.site = GuardedSite(
            self.intake.resource(), screen=self.intake.screen, reactor=reactor, limits=patient(**limits)
        )
        self.port = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Doorway]:
        async with listening(self.site) as self.port:
            yield self

    async def ask(self, *parts: bytes, source: str = "127.0.0.1", bodiless: bool = False) -> Answer:
        """The first answer to these bytes."""
        wire = await connect(self.port, source=source, bodiless=bodiless)
        wire.send(*parts)
        answer = await wire.answer()
        await wire.close()
        return answer

    async def post(self, body: bytes = BODY, *, path: str = PATH, **headers: bytes | None) -> Answer:
        """The answer to a signed push, or to what its headers make of it."""
        return await self.ask(post(path, payloads.headers(body, **headers), body))

    async def rows(self) -> list[Delivery]:
        return list(await self.journal.deliveries(limit=1000))

    async def assert_nothing_happened(self) -> None:
        assert await self.rows() == []
        assert self.submitted == []


@asynccontextmanager
async def doorway(*hooks: Hook, **more: Any) -> AsyncIterator[Doorway]:
    async with Doorway(*hooks, **more).open() as open_door:
        yield open_door


def told(answer: Answer) -> Any:
    """The answer's JSON, which is compact and says that it is JSON."""
    assert answer.headers["content-type"] == "application/json"
    value = json.loads(answer.body)
    assert answer.body == json.dumps(value, separators=(",", ":")).encode()
    return value


def numbered(n: int) -> bytes:
    """A body unlike the others."""
    return encoded(push(number=n))


# What is taken in.


@pytest_twisted.ensureDeferred
async def test_a_signed_push_is_accepted_written_down_and_put_into_its_lane() -> None:
    async with doorway() as door:
        answer = await door.post()
        [row], [deployment] = await door.rows(), door.submitted
        assert answer.status == 202
        assert told(answer) == {"status": "accepted", "delivery": row.id, "deployments": [deployment.id]}
        assert (row.hook, row.event) == ("github", "push")
        assert row.pushes == (Push("acme/web", "refs/heads/main", TIP, "main"),)
        assert row.received_at == 1_700_000_000.0
        assert (deployment.app, deployment.trigger) == ("web", Trigger.PUSH)


@pytest_twisted.ensureDeferred
async def test_a_push_for_two_apps_leads_to_two_deployments() -> None:
    docs = Subscription("docs", ("acme/web",), "refs/heads/main")
    async with doorway(replace(HOOK, subscriptions=(*HOOK.subscriptions, docs))) as door:
        answer = told(await door.post())
        assert answer["deployments"] == [deployment.id for deployment in door.submitted]
        assert [deployment.app for deployment in door.submitted] == ["web", "docs"]


@pytest_twisted.ensureDeferred
async def test_the_hook_of_the_environment_serves_any_repository() -> None:
    hook = replace(HOOK, path="/github", subscriptions=(Subscription("app", (), "refs/heads/main"),))
    async with doorway(hook) as door:
        body = encoded(push(repository=payloads.repository("who/knows")))
        assert (await door.post(body, path="/github")).status == 202
        assert [deployment.app for deployment in door.submitted] == ["app"]


@pytest_twisted.ensureDeferred
async def test_a_form_has_the_same_effect_as_json() -> None:
    """P31."""
    async with doorway() as door:
        body = payloads.form(BODY)
        answer = await door.post(body, content_type=b"application/x-www-form-urlencoded")
        assert (answer.status, told(answer)["status"]) == (202, "accepted")
        [row] = await door.rows()
        assert [(push.ref, push.after) for push in row.pushes] == [("refs/heads/main", TIP)]


@pytest_twisted.ensureDeferred
async def test_a_charset_does_no_harm() -> None:
    """P30."""
    async with doorway() as door:
        assert (await door.post(content_type=b"application/json; charset=utf-8")).status == 202


@pytest_twisted.ensureDeferred
async def test_a_body_of_exactly_the_limit_is_accepted() -> None:
    """P19."""
    async with doorway() as door:
        padding = 26_214_400 - len(encoded(push(padding="")))
        body = encoded(push(padding="x" * padding))
        assert len(body) == 26_214_400
        assert (await door.post(body)).status == 202
        assert door.site.in_flight == 0


@pytest_twisted.ensureDeferred
async def test_a_delivery_without_an_id_is_known_by_its_body() -> None:
    """P51."""
    async with doorway() as door:
        assert (await door.post(x_github_delivery=None)).status == 202
        [row] = await door.rows()
        assert len(row.guid) == 64


@pytest_twisted.ensureDeferred
async def test_two_pushes_in_one_write_are_answered_in_order() -> None:
    """P34."""
    async with doorway() as door:
        requests = [
            post(PATH, payloads.headers(body, x_github_delivery=guid), body)
            for guid, body in ((b"first", numbered(1)), (b"second", numbered(2)))
        ]
        wire = await connect(door.port)
        wire.send(*requests)
        answers = [told(await wire.answer()) for _ in requests]
        await wire.close()
        second, first = await door.rows()
        assert [first.guid, second.guid] == ["first", "second"]
        assert [answer["delivery"] for answer in answers] == [first.id, second.id]


@pytest_twisted.ensureDeferred
async def test_a_connection_is_kept_for_the_next_push_and_after_a_wrong_one() -> None:
    async with doorway() as door:
        wire = await connect(door.port)
        right, wrong = payloads.headers(BODY), payloads.headers(b"another body")
        statuses = []
        for headers in (right, wrong, right):
            wire.send(post(PATH, headers, BODY))
            statuses.append((await wire.answer()).status)
        await wire.close()
        assert statuses == [202, 401, 202]


# What was seen before.


@pytest_twisted.ensureDeferred
async def test_a_delivery_that_was_seen_before_is_a_duplicate() -> None:
    """P52: the same id, then another id with the same body."""
    async with doorway() as door:
        first = told(await door.post())
        for again in (await door.post(), await door.post(x_github_delivery=b"another")):
            assert again.status == 202
            assert told(again) == {**first, "status": "duplicate"}
        assert len(door.submitted) == 1
        assert len(await door.rows()) == 1


@pytest_twisted.ensureDeferred
async def test_for_whom_a_delivery_came_again_after_all_that_it_led_to_is_said() -> None:
    async with doorway() as door:
        await door.post()
        await door.post()
        assert door.repeated == []  # what it led to is still to look at the remote
        await door.journal.finish(door.submitted[0].id, Outcome.DEPLOYED, 2.0)
        await door.post()
        assert door.repeated == ["web"]


@pytest_twisted.ensureDeferred
async def test_of_twenty_copies_at_once_one_counts() -> None:
    """P52."""
    async with doorway() as door:
        answers = await gatherResults([Deferred.fromCoroutine(door.post()) for _ in range(20)])
        assert {answer.status for answer in answers} == {202}
        assert sorted(told(answer)["status"] for answer in answers) == ["accepted"] + ["duplicate"] * 19
        assert len(door.submitted) == 1
        assert len(await door.rows()) == 1


@pytest_twisted.ensureDeferred
async def test_a_redelivery_deploys_again_what_has_failed() -> None:
    """P53."""
    async with doorway() as door:
        await door.post()
        [deployment] = door.submitted
        await door.journal.finish(deployment.id, Outcome.FAILED, 1.0)
        again = told(await door.post())
        assert again["status"] == "duplicate"
        assert again["deployments"] == [door.submitted[1].id]
        assert len(door.submitted) == 2


# What is genuine, and not for us.

IGNORED = {
    "a ping": (b"ping", payloads.ping(), "ping"),
    "another event": (b"issues", {"action": "opened"}, "event issues is not a push"),
    "another branch": (b"push", push("refs/heads/dev"), "no app deploys this branch"),
    "a tag": (b"push", push("refs/tags/main"), "no app deploys this tag"),
    "a deletion": (b"push", payloads.deletion(), "the ref was deleted"),
    "the last of two refs": (b"push", BODY[:-1] + b',"ref":"refs/heads/evil"}', "no app deploys this branch"),
}


@pytest.mark.parametrize(("event", "payload", "reason"), IGNORED.values(), ids=IGNORED)
@pytest_twisted.ensureDeferred
async def test_what_is_genuine_and_not_for_us_is_ignored_and_written_down(
    event: bytes, payload: object, reason: str
) -> None:
    """P41, P48, P49, P50."""
    async with doorway() as door:
        answer = await door.post(payload if isinstance(payload, bytes) else encoded(payload), x_github_event=event)
        assert (answer.status, told(answer)) == (202, {"status": "ignored", "reason": reason})
        [row] = await door.rows()
        assert (row.verdict, row.reason) == (Verdict.IGNORED, reason)
        assert door.submitted == []


# What is refused.


@pytest_twisted.ensureDeferred
async def test_a_genuine_message_that_is_not_json_is_malformed_and_not_unbelieved() -> None:
    """P01."""
    async with doorway() as door:
        assert (await door.post(b"Hello, World!")).status == 400
        await door.assert_nothing_happened()


RIGHT = sha256_signature(BODY)
UNBELIEVED: dict[str, dict[str, bytes | None]] = {
    "missing": {"x_hub_signature_256": None, "x_hub_signature": None},
    "a wrong digit": {"x_hub_signature_256": RIGHT[:-1] + (b"1" if RIGHT.endswith(b"0") else b"0")},
    "of another body": {"x_hub_signature_256": sha256_signature(BODY + b" ")},
    "of another secret": {"x_hub_signature_256": sha256_signature(BODY, API.keys[0])},
    "of an empty key": {"x_hub_signature_256": sha256_signature(BODY, b"")},
    "SHA-1 alone": {"x_hub_signature_256": None, "x_hub_signature": sha1_signature(BODY)},
    "SHA-256 under the name of SHA-1": {"x_hub_signature_256": None, "x_hub_signature": RIGHT},
    "empty": {"x_hub_signature_256": b""},
    "a prefix alone": {"x_hub_signature_256": b"sha256="},
    "too short": {"x_hub_signature_256": RIGHT[:-1]},
    "without a prefix": {"x_hub_signature_256": RIGHT[7:]},
    "under a wrong prefix": {"x_hub_signature_256": b"sha1=" + RIGHT[7:]},
    "in upper case": {"x_hub_signature_256": b"sha256=" + RIGHT[7:].upper()},
    "not ASCII": {"x_hub_signature_256": b"sha256=\xe9" + RIGHT[8:]},
    "of an empty body": {"x_hub_signature_256": sha256_signature(b"")},
}


@pytest_twisted.ensureDeferred
async def test_every_unbelieved_message_gets_the_same_answer() -> None:
    """P02 to P09, P11, P16, P17."""
    async with doorway(HOOK, API) as door:
        answers = {
            cause: await door.ask(post(PATH, payloads.headers(BODY, **headers), BODY))
            for cause, headers in UNBELIEVED.items()
        }
        twice = payloads.headers(BODY) | {b"X-Hub-Signature-256": b"sha256=" + b"0" * 64}
        answers["a second header"] = await door.ask(post(PATH, twice, BODY))
        assert {cause: answer.status for cause, answer in answers.items()} == dict.fromkeys(answers, 401)
        assert {answer.body for answer in answers.values()} == {b'{"error":"no valid signature"}'}
        await door.assert_nothing_happened()


UNREAD = {"application/x-www-form-urlencoded": 401, "multipart/form-data; boundary=x": 415, "application/json": 401}


@pytest.mark.parametrize(("kind", "status"), UNREAD.items())
@pytest_twisted.ensureDeferred
async def test_a_missing_signature_is_refused_before_the_body_is_sent(kind: str, status: int) -> None:
    """P02, P32, P33: neither 24 MiB of ``a&a&`` nor 200,000 parts are taken in, let alone parsed."""
    async with doorway() as door:
        headers = payloads.headers(b"", content_type=kind.encode(), x_hub_signature_256=None)
        wire = await connect(door.port)
        wire.send(head(f"POST {PATH}", headers, length=24 * 1_048_576))
        assert (await wire.last_answer()).status == status


@pytest_twisted.ensureDeferred
async def test_sha1_is_believed_by_a_hook_that_allows_it() -> None:
    """P05."""
    async with doorway(replace(HOOK, allow_sha1=True)) as door:
        assert (await door.post(x_hub_signature_256=None)).status == 202
        assert (await door.post(x_hub_signature_256=b"sha256=" + b"0" * 64)).status == 401


@pytest_twisted.ensureDeferred
async def test_an_old_secret_is_believed_beside_the_new_one() -> None:
    """P10."""
    new = b"the new secret of this hook"
    async with doorway(replace(HOOK, secrets=(Secret(new), Secret(SECRET)))) as door:
        for n, secret in enumerate((SECRET, new)):
            body = numbered(n)
            headers = payloads.headers(
                body, x_github_delivery=b"%d" % n, x_hub_signature_256=sha256_signature(body, secret)
            )
            assert (await door.ask(post(PATH, headers, body))).status == 202
        assert (await door.post(x_hub_signature_256=sha256_signature(BODY, b"a third"))).status == 401


@pytest_twisted.ensureDeferred
async def test_a_repository_of_another_hook_is_forbidden() -> None:
    """P17."""
    async with doorway(HOOK, API) as door:
        answer = await door.post(encoded(push(repository=payloads.repository("acme/api"))))
        assert answer.status == 403
        assert told(answer) == {"error": "this hook does not serve that repository, or not from this address"}
        await door.assert_nothing_happened()


OTHER_PATHS = [
    "/nope",
    "/",
    "//hooks/github",
    "/hooks%2fgithub",
    "/hooks/gith%75b",
    "/hooks/github/",
    "/hooks/./github",
    "/hooks/github;x",
    "/HOOKS/GITHUB",
    "/healthz/",
    "http://deploy.example.com/hooks/github",
    "*",
]


@pytest_twisted.ensureDeferred
async def test_other_paths_are_not_found() -> None:
    """P18."""
    async with doorway() as door:
        bodies = set()
        for path in OTHER_PATHS:
            answer = await door.post(path=path)
            assert answer.status == 404, path
            bodies.add(answer.body)
        assert bodies == {b'{"error":"not found"}'}
        await door.assert_nothing_happened()


@pytest_twisted.ensureDeferred
async def test_a_query_does_not_change_the_path() -> None:
    async with doorway() as door:
        assert (await door.post(path=f"{PATH}?from=github")).status == 202


@pytest_twisted.ensureDeferred
async def test_other_methods_are_not_allowed() -> None:
    """P18."""
    async with doorway() as door:
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "post", "PROPFIND"):
            answer = await door.ask(head(f"{method} {PATH}"))
            assert (answer.status, answer.headers["allow"]) == (405, "POST"), method
        answer = await door.ask(head(f"HEAD {PATH}"), bodiless=True)
        assert (answer.status, answer.headers["allow"]) == (405, "POST")


FOREIGN: dict[str, dict[str, bytes | None]] = {
    "plain text": {"content_type": b"text/plain"},
    "no type": {"content_type": None},
    "an empty type": {"content_type": b""},
    "multipart": {"content_type": b"multipart/form-data; boundary=x"},
    "two types in one": {"content_type": b"application/json, text/plain"},
    "JSON of another kind": {"content_type": b"application/vnd.github+json"},
    "gzip": {"content_encoding": b"gzip"},
    "an unknown coding": {"content_encoding": b"identity, br"},
}


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
@pytest_twisted.ensureDeferred
async def test_a_foreign_type_or_encoding_is_refused_though_it_is_signed(headers: dict[str, bytes | None]) -> None:
    """P29, P30, P33."""
    async with doorway() as door:
        body = gzip.compress(BODY) if "content_encoding" in headers else BODY
        answer = await door.ask(post(PATH, payloads.headers(body, **headers), body))
        assert answer.status == 415
        await door.assert_nothing_happened()


@pytest_twisted.ensureDeferred
async def test_an_identity_encoding_is_none() -> None:
    async with doorway() as door:
        assert (await door.post(content_encoding=b"Identity")).status == 202


def without(name: str) -> dict[str, Any]:
    return {each: value for each, value in push().items() if each != name}


MALFORMED = {
    "deep nesting": BODY[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "NaN": BODY[:-1] + b',"x":NaN}',
    "a ref that is not UTF-8": BODY.replace(b'"refs/heads/main"', b'"refs/heads/\xff"'),
    "nothing": b"",
    "a list": b"[]",
    "null": b"null",
    "a string": b'"x"',
    "a number": b"42",
    "something behind it": BODY + b"x",
    "single quotes": b"{'ref':1}",
    "a byte order mark": b"\xef\xbb\xbf" + BODY,
    "no ref": encoded(without("ref")),
    "a ref that is null": encoded(push(None)),
    "a ref that is a number": encoded(push(1)),
    "a ref that is a list": encoded(push(["refs/heads/main"])),
    "no repository": encoded(without("repository")),
    "a repository that is a list": encoded(push(repository=[])),
    "a repository that is called a number": encoded(push(repository={"full_name": 5})),
    "deleted in quotes": encoded(push(deleted="false")),
    "half a surrogate": BODY.replace(b"refs/heads/main", b"refs/heads/\\ud800"),
    "a NUL in the ref": encoded(push("refs/heads/main\0x")),
    "an option for a commit": encoded(push(after="--upload-pack=x")),
    "a commit of 39 digits": encoded(push(after="a" * 39)),
    "a commit of 41 digits": encoded(push(after="a" * 41)),
    "a commit in upper case": encoded(push(after="A" * 40)),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
@pytest_twisted.ensureDeferred
async def test_a_genuine_message_of_a_wrong_shape_is_malformed(body: bytes) -> None:
    """P38, P39, P40, P42, P43, P44, P45."""
    async with doorway() as door:
        answer = await door.post(body)
        assert (answer.status, told(answer)) == (400, {"error": "malformed request"})
        await door.assert_nothing_happened()


@pytest_twisted.ensureDeferred
async def test_numbers_that_nobody_reads_do_no_harm() -> None:
    """P39."""
    async with doorway() as door:
        for number in (b"9" * 5000, b"1e999"):
            assert (await door.post(BODY[:-1] + b',"x":' + number + b"}")).status == 202


@pytest_twisted.ensureDeferred
async def test_a_commit_of_a_repository_with_longer_names_is_accepted() -> None:
    """P45: SHA-256 has 64 digits."""
    async with doorway() as door:
        assert told(await door.post(encoded(push(after="a1" * 32))))["status"] == "accepted"


def costs(act: Callable[[], object]) -> float:
    """Seconds of our own thread's time, which others on this machine cannot lengthen by much."""
    started = time.thread_time()
    act()
    return time.thread_time() - started


@pytest_twisted.ensureDeferred
async def test_a_commit_message_of_20_mib_is_taken_at_once_and_kept_nowhere() -> None:
    """P47. It holds the reactor for no more than a few times as long as it takes to hash it."""
    body = encoded(push(commits=[payloads.commit(message="x" * 20 * 1_048_576)]))
    asked, longest = post(PATH, payloads.headers(body), body), []
    async with doorway() as door:
        wire = await connect(door.port)
        for _ in range(3):
            turns = [time.thread_time()]
            ticking = LoopingCall(lambda turns=turns: turns.append(time.thread_time()))
            ended = ticking.start(0)
            wire.send(asked)
            assert (await wire.answer()).status == 202
            ticking.stop()
            await ended
            longest.append(max(later - earlier for earlier, later in pairwise(turns)))
        await wire.close()
        assert min(longest) < 10 * min(costs(lambda: sha256_signature(body)) for _ in range(3))
        assert len(repr(await door.rows())) < 10_000


@pytest_twisted.ensureDeferred
async def test_a_message_without_an_event_is_malformed() -> None:
    """P51."""
    async with doorway() as door:
        assert (await door.post(x_github_event=None)).status == 400
        await door.assert_nothing_happened()


@pytest_twisted.ensureDeferred
async def test_a_message_behind_a_malformed_one_is_not_executed() -> None:
    """P24."""
    async with doorway() as door:
        wire = await connect(door.port)
        headers = payloads.headers(BODY) | {b"Transfer-Encoding": b"chunked"}
        wire.send(post(PATH, headers, b"0\r\n\r\n"), post(PATH, payloads.headers(BODY), BODY))
        assert (await wire.last_answer()).status == 400
        await door.assert_nothing_happened()


@pytest_twisted.ensureDeferred
async def test_a_host_that_no_name_can_be_is_no_server_error() -> None:
    """P26."""
    async with doorway() as door:
        for host in (b"a..b:99999", b"a" * 70 + b".example.com", b"\xff.example.com", b"xn--\xc3\xa9"):
            wire = await connect(door.port)
            wire.send(post(PATH, payloads.headers(BODY), BODY).replace(b"deploy.example.com", host))
            assert (await wire.last_answer()).status == 400


@pytest_twisted.ensureDeferred
async def test_no_answer_names_the_software() -> None:
    async with doorway() as door:
        for answer in (await door.post(), await door.post(b"{}"), await door.ask(head("GET /nope"))):
            assert answer.headers["server"] == "hookdeploy"


@pytest_twisted.ensureDeferred
async def test_what_was_refused_and_taken_is_told_without_a_word_from_outside() -> None:
    async with doorway() as door:
        with capturedLogs() as events:
            await door.post(x_github_delivery=b"canary")
            await door.post(encoded(push("refs/heads/canary")), x_hub_signature_256=RIGHT)
            await door.post(path="/canary")
            door.site.tally.close()
        said = [event["counts"] for event in events if "counts" in event]
        assert said[0] == {"202 accepted: push on github": 1}
        assert sum(sum(counts.values()) for counts in said) == 3
        assert "canary" not in repr(said)


# The journal has the last word.


@pytest_twisted.ensureDeferred
async def test_what_the_journal_cannot_commit_is_never_accepted() -> None:
    """P85, as far as the door is concerned."""
    async with doorway() as door:
        door.journal.fail_with = JournalUnavailable("the disk is full")
        answer = await door.post()
        assert (answer.status, answer.headers["retry-after"]) == (503, "30")
        assert told(answer) == {"error": "try again later"}
        door.journal.fail_with = None
        await door.assert_nothing_happened()
        assert told(await door.post())["status"] == "accepted"


@pytest_twisted.ensureDeferred
async def test_a_bug_in_the_journal_is_a_server_error_and_not_an_acceptance(logged_failures: list[LogEvent]) -> None:
    async with doorway() as door:
        door.journal.fail_with = RuntimeError("the canary of a bug")
        answer = await door.post()
        assert (answer.status, told(answer)) == (500, {"error": "internal error"})
        [event] = logged_failures
        assert event["log_failure"].check(RuntimeError)
        logged_failures.clear()


@pytest_twisted.ensureDeferred
async def test_a_lane_that_breaks_takes_nothing_back(logged_failures: list[LogEvent]) -> None:
    """What is on disk is answered 202, and is found there at the next start."""

    def submit(deployment: Deployment) -> None:
        raise RuntimeError("no lane")

    async with doorway() as door:
        door.intake._submit = submit
        answer = await door.post()
        assert (answer.status, told(answer)["status"]) == (202, "accepted")
        assert len(logged_failures) == 1
        logged_failures.clear()


@pytest_twisted.ensureDeferred
async def test_nobody_is_answered_before_the_commit() -> None:
    journal = SlowJournal()
    limit = 1234.0
    async with doorway(journal=journal, request_deadline=limit, idle=limit) as door:
        wire = await connect(door.port)
        wire.send(post(PATH, payloads.headers(BODY), BODY))
        await journal.asked
        ends = [call.getTime() - reactor.seconds() for call in reactor.getDelayedCalls()]
        assert not [end for end in ends if end > limit / 2], "the limits of the door run while the journal works"
        assert (wire.received, wire.lost) == (b"", None)
        journal.commit.callback(None)
        assert (await wire.answer()).status == 202
        await wire.close()


# Senders who do not wait.


async def hang_up_during_the_commit(door: Doorway, journal: SlowJournal) -> None:
    """Send a push and reset the connection, and wait until the door has noticed."""
    wire = await connect(door.port)
    wire.send(post(PATH, payloads.headers(BODY), BODY))
    await journal.asked
    await wire.abort()
    await become(lambda: not door.site.connected)


@pytest_twisted.ensureDeferred
async def test_a_sender_who_hangs_up_during_the_commit_undoes_nothing() -> None:
    """P35, T13: Klein would cancel the write."""
    journal = SlowJournal()
    async with doorway(journal=journal) as door:
        await hang_up_during_the_commit(door, journal)
        journal.commit.callback(None)
        assert len(await door.rows()) == 1
        assert len(door.submitted) == 1


@pytest_twisted.ensureDeferred
async def test_a_sender_who_hangs_up_on_a_failing_journal_leaves_no_failure_behind() -> None:
    journal = SlowJournal()
    async with doorway(journal=journal) as door:
        await hang_up_during_the_commit(door, journal)
        journal.commit.errback(JournalUnavailable("the disk is full"))
        await door.assert_nothing_happened()


@pytest_twisted.ensureDeferred
async def test_a_bug_is_logged_once_though_its_sender_has_gone(logged_failures: list[LogEvent]) -> None:
    journal = SlowJournal()
    async with doorway(journal=journal) as door:
        await hang_up_during_the_commit(door, journal)
        journal.commit.errback(RuntimeError("the canary of a bug"))
    gc.collect()
    assert len(logged_failures) == 1
    logged_failures.clear()


@pytest_twisted.ensureDeferred
async def test_a_sender_who_half_closes_is_answered() -> None:
    """P35."""
    journal = SlowJournal()
    async with doorway(journal=journal) as door:
        wire = await connect(door.port)
        wire.send(post(PATH, payloads.headers(BODY), BODY))
        wire.half_close()
        await journal.asked
        journal.commit.callback(None)
        assert (await wire.last_answer()).status == 202
        assert len(await door.rows()) == 1


@pytest_twisted.ensureDeferred
async def test_fifty_senders_who_do_not_read_are_each_written_down_once_or_not_at_all() -> None:
    """P35."""
    async with doorway() as door:
        for n in range(50):
            body = numbered(n)
            wire = await connect(door.port)
            wire.send(post(PATH, payloads.headers(body, x_github_delivery=b"%d" % n), body))
            await (wire.close() if n % 2 else wire.abort())
        await become(lambda: not door.site.connected)
        guids = [row.guid for row in await door.rows()]
        assert len(set(guids)) == len(guids) == len(door.submitted)
        assert {str(n) for n in range(50) if n % 2} <= {*guids}


# The rest of the door.


@pytest_twisted.ensureDeferred
async def test_the_health_check_says_ok_and_nothing_else() -> None:
    async with doorway() as door:
        answer = await door.ask(head("GET /healthz"))
        assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"ok", "2")
        answer = await door.ask(head("HEAD /healthz"), bodiless=True)
        assert (answer.status, answer.headers["content-length"], answer.body) == (200, "2", b"")
        answer = await door.ask(head("POST /healthz", length=0))
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
        assert (await door.ask(head("GET /healthz", length=5))).status == 413


@pytest_twisted.ensureDeferred
async def test_hooks_are_replaced_without_a_gap() -> None:
    async with doorway() as door:
        door.intake.replace([API])
        assert (await door.post()).status == 404
        door.intake.replace([replace(HOOK, secrets=(Secret(b"another secret for it"),)), API])
        assert (await door.post()).status == 401
        door.intake.replace([HOOK, API])
        assert (await door.post()).status == 202


@pytest_twisted.ensureDeferred
async def test_a_hook_that_is_taken_away_while_a_body_arrives_is_not_found() -> None:
    async with doorway() as door:
        wire = await connect(door.port)
        request = post(PATH, payloads.headers(BODY), BODY)
        wire.send(request[:-1])
        await become(lambda: any(channel.requests for channel in door.site.waiting))
        door.intake.replace([])
        wire.send(request[-1:])
        assert (await wire.answer()).status == 404
        await wire.close()
        await door.assert_nothing_happened()


@pytest_twisted.ensureDeferred
async def test_faulty_hooks_change_nothing() -> None:
    async with doorway() as door:
        for hooks in ([API, HOOK, HOOK], [replace(HOOK, path="/healthz")]):
            with pytest.raises(ValueError, match="taken"):
                door.intake.replace(hooks)
        assert (await door.post()).status == 202


@pytest_twisted.ensureDeferred
async def test_a_genuine_push_gets_in_past_400_slow_senders() -> None:
    """P37, from eight addresses: one alone may not hold so many."""
    async with doorway() as door:
        slow = [await connect(door.port, source=f"127.0.1.{n % 8 + 1}") for n in range(400)]
        for wire in slow:
            wire.send(head(f"POST {PATH}", payloads.headers(BODY), length=len(BODY)), BODY[:100])
        await become(lambda: sum(bool(channel.requests) for channel in door.site.waiting) == 400)
        answer = await door.ask(post(PATH, payloads.headers(BODY), BODY), source="127.0.0.2")
        assert answer.status == 202
        assert not any(wire.lost for wire in slow)  # who have minutes, and nobody waited for them
        for wire in slow:
            await wire.close()


@pytest_twisted.ensureDeferred
async def test_a_flood_of_unsigned_posts_keeps_nobody_else_out_and_fills_no_log() -> None:
    """P36: the flood is as fast as four senders are; the genuine ones come from another address."""
    unsigned = post(PATH, payloads.headers(BODY, x_hub_signature_256=None), BODY)

    async def flood(door: Doorway) -> list[int]:
        return [(await door.ask(unsigned)).status for _ in range(30)]

    async with doorway(refusals=Rate(burst=20, per_second=1)) as door:
        with capturedLogs() as events:
            started = reactor.seconds()
            flooding = gatherResults([Deferred.fromCoroutine(flood(door)) for _ in range(4)])
            genuine: list[int] = []
            while not flooding.called:
                body = numbered(len(genuine))
                headers = payloads.headers(body, x_github_delivery=b"%d" % len(genuine))
                genuine.append((await door.ask(post(PATH, headers, body), source="127.0.0.2")).status)
            refused = Counter(status for statuses in await flooding for status in statuses)
            seconds = reactor.seconds() - started
    assert len(genuine) > 5
    assert {*genuine} == {202}
    assert {*refused} == {401, 429}
    assert refused[401] <= 21 + seconds
    said = [event for event in events if event["log_namespace"].startswith("twisted_hook")]
    assert len(said) <= 3 + seconds  # one line a second, and one warning
    assert [event["sender"] for event in said if event["log_level"] is LogLevel.warn] == ["127.0.0.1"]


@pytest_twisted.ensureDeferred
async def test_for_whom_a_delivery_could_not_be_taken_is_said() -> None:
    async with doorway() as door:
        door.journal.fail_with = JournalUnavailable("the disk is full")
        assert (await door.post()).status == 503
        assert door.missed == ["web"]
        door.journal.fail_with = None
        assert (await door.post()).status == 202
        assert door.missed == ["web"]


class Replays(SynchronousTestCase):
    """A stored delivery, once more."""

    def setUp(self) -> None:
        self.door = Doorway()

    def stored(self, message: Message, *apps: str, hook: str = HOOK.name) -> str:
        new = NewDelivery(hook, message, "body", 1.0, apps, message.reason)
        return self.successResultOf(Deferred.fromCoroutine(self.door.journal.accept(new))).delivery

    def pushed(self, ref: str = "refs/heads/main", repository: str = "acme/web", after: str | None = TIP) -> Message:
        return Message("one", "push", (Push(repository, ref, after, "main"),))

    def assert_refused(self, id: str, status: int, words: str) -> None:
        refused = self.failureResultOf(Deferred.fromCoroutine(self.door.intake.replay(id)), Refused).value
        self.assertEqual(refused.status, status)
        self.assertIn(words, refused.reason)
        self.assertEqual(self.door.submitted, [])

    def test_it_is_deployed_by_those_for_whom_it_is_by_now(self) -> None:
        stored = self.stored(self.pushed())  # for nobody when it came
        [deployment] = self.successResultOf(Deferred.fromCoroutine(self.door.intake.replay(stored)))
        self.assertEqual((deployment.app, deployment.trigger), ("web", Trigger.REPLAY))
        self.assertEqual(self.door.submitted, [deployment])
        delivery = self.successResultOf(Deferred.fromCoroutine(self.door.journal.delivery(stored)))
        assert delivery is not None
        self.assertEqual(delivery.deployments, (deployment.id,))

    def test_one_that_is_not_there_is_not_found(self) -> None:
        self.assert_refused("0000000000abc", 404, "no delivery 0000000000abc")

    def test_one_that_asks_for_nothing_is_refused_with_the_reason(self) -> None:
        self.assert_refused(self.stored(Message("one", "ping", reason="ping")), 409, "ping")
        self.door = Doorway()
        self.assert_refused(self.stored(self.pushed(after=None)), 409, "the ref was deleted")

    def test_one_of_another_branch_or_repository_or_hook_is_refused(self) -> None:
        self.assert_refused(self.stored(self.pushed("refs/heads/dev"), "web"), 409, "no app deploys this branch")
        self.door = Doorway()
        self.assert_refused(self.stored(self.pushed(repository="acme/old"), "web"), 409, "does not serve")
        self.door = Doorway()
        self.assert_refused(self.stored(self.pushed(), "web", hook="gone"), 409, "the hook gone is not configured")
