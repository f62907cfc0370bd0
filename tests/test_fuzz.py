"""Requests that nobody has thought of: none of them stops the public door, fools it, fills it, or makes it say 5xx.

``pytest tests/test_fuzz.py --requests 200000 --first-seed 7`` sends as many, of that seed. A request that breaks a law
is shown cut down to what matters; mended, it becomes a file of ``tests/corpus``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, Logger

from tests.fuzzing import answers, opened, run, shrunk
from tests.mutation import Attempt, End, attempt
from tests.seeds import HOOKS, NOW, Seed, corpus, filled
from twisted_hook import intake
from twisted_hook.forges import FORGES, github, parts
from twisted_hook.hooks import Subscription
from twisted_hook.intake import Intake
from twisted_hook.model import NewDelivery, Push, Receipt, Verdict
from twisted_hook.site import GuardedChannel, GuardedRequest, GuardedSite

CORPUS = corpus()
MOST_PIECES = 3000
BUDGET = range(2000)
"""As many requests as the short run sends."""


@pytest.mark.parametrize("seed", CORPUS, ids=lambda seed: seed.name)
def test_every_request_of_the_corpus_gets_the_answers_that_it_tells(tmp_path: Path, seed: Seed) -> None:
    """In one piece, and byte by byte where that does not take long: how they are cut changes no answer."""
    data = filled(seed.templates, "1", NOW)
    for pieces in ((data,), tuple(bytes((byte,)) for byte in data)):
        if len(pieces) > MOST_PIECES:
            continue
        with opened(tmp_path) as door:
            assert door.serve(Attempt(0, 0, seed.name, pieces, End.WAITS)) == []
        found = [status for status, _ in answers(door.said, bodiless=b"HEAD" in data)]
        assert tuple(found) == seed.answers, seed.says


def test_every_forge_of_the_door_is_in_the_corpus() -> None:
    accepted = {seed.name for seed in CORPUS if seed.answers == (202,)}
    assert {hook.forge for hook in HOOKS} == FORGES.keys()
    for forge in FORGES:
        assert any(name.startswith(forge.replace("-", "_")) for name in accepted), forge


def test_the_same_seed_and_number_are_the_same_bytes() -> None:
    for number in range(200):
        assert attempt(CORPUS, 7, number, NOW) == attempt(CORPUS, 7, number, NOW)
    assert attempt(CORPUS, 7, 1, NOW) != attempt(CORPUS, 8, 1, NOW)


def test_no_mutated_request_breaks_a_law(tmp_path: Path, pytestconfig: pytest.Config, numbers: range) -> None:
    """P24 to P28, P32 to P45, and what lies between them."""
    found = run(tmp_path, pytestconfig.getoption("first_seed"), numbers)
    if found.broken is not None:
        pytest.fail(shrunk(tmp_path, *found.broken))


def test_mutated_requests_get_everywhere(tmp_path: Path) -> None:
    """A fuzzer that is refused at the gate learns nothing."""
    found = run(tmp_path, 0, range(1000))
    assert {200, 202, 400, 401, 403, 404, 405, 408, 413, 415} <= found.statuses.keys()
    assert found.recorded > 100
    assert 0 < found.made < found.recorded


# The fuzzer finds what it is there for: each of these is a mistake that a door could make.

Mistake = Callable[[pytest.MonkeyPatch], None]


def a_forge_that_stumbles_over_a_letter(patch: pytest.MonkeyPatch) -> None:
    """Over one that is no ASCII, in a genuine message."""
    original: Callable[[bytes], Push] = parts.github_push

    def stumble(payload: bytes) -> Push:
        push = original(payload)
        push.ref.encode("ascii")
        return push

    patch.setattr(parts, "github_push", stumble)
    patch.setattr(parts, "well_formed", nullcontext)


def a_header_that_nobody_expected(patch: pytest.MonkeyPatch) -> None:
    original = github.screen

    def screen(headers: Any, *, allow_sha1: bool) -> None:
        original(headers, allow_sha1=allow_sha1)
        for value in headers(b"x-github-delivery"):
            value.decode("ascii")

    patch.setattr(github, "screen", screen)


def an_intake_that_answers_before_it_writes(patch: pytest.MonkeyPatch) -> None:
    original = Intake._record

    async def record(intake: Intake, new: NewDelivery) -> Receipt:
        Deferred.fromCoroutine(original(intake, new))
        return Receipt(Verdict.ACCEPTED, "0", (), ())

    patch.setattr(Intake, "_record", record)


def an_intake_that_forgets_to_write_some(patch: pytest.MonkeyPatch) -> None:
    original = Intake._record

    async def record(intake: Intake, new: NewDelivery) -> Receipt:
        if zlib.crc32(new.digest.encode()) % 30 == 0:
            return Receipt(Verdict.IGNORED, "0", (), ())
        return await original(intake, new)

    patch.setattr(Intake, "_record", record)


def a_site_that_answers_twice(patch: pytest.MonkeyPatch) -> None:
    original = GuardedChannel.timeoutConnection

    def say_goodbye(channel: GuardedChannel) -> None:
        channel.transport.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        original(channel)

    patch.setattr(GuardedChannel, "timeoutConnection", say_goodbye)


def a_site_that_says_more_than_it_announces(patch: pytest.MonkeyPatch) -> None:
    original = intake._finish

    def finish(body: bytes, request: GuardedRequest) -> None:
        original(body + b"\n" if request.path != intake.HEALTH else body, request)

    patch.setattr(intake, "_finish", finish)


def bytes_that_are_never_given_back(patch: pytest.MonkeyPatch) -> None:
    """Of senders who hang up in the middle of a body."""
    patch.setattr(GuardedRequest, "connectionLost", lambda request, reason: None)


def a_connection_that_is_counted_for_ever(patch: pytest.MonkeyPatch) -> None:
    original = GuardedSite.left

    def left(site: GuardedSite, channel: GuardedChannel) -> None:
        if not channel.requests:
            original(site, channel)

    patch.setattr(GuardedSite, "left", left)


def a_deadline_that_outlives_its_request(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GuardedChannel, "_disarm", lambda channel: setattr(channel, "_alarm", None))


def a_ref_that_is_folded(patch: pytest.MonkeyPatch) -> None:
    original = Subscription.wants

    def wants(subscription: Subscription, push: Push) -> bool:
        folded = Push(push.repository, push.ref.lower().strip(), push.after, push.default_branch)
        return original(subscription, folded)

    patch.setattr(Subscription, "wants", wants)


def a_deletion_that_is_a_push(patch: pytest.MonkeyPatch) -> None:
    original = parts.push

    def push(repository: str, ref: str, after: str | None, *more: Any, deleted: bool = False) -> Push:
        told = original(repository, ref, after, *more, deleted=deleted)
        return Push(told.repository, told.ref, after, told.default_branch)

    patch.setattr(parts, "push", push)


def a_complaint_about_every_refusal(patch: pytest.MonkeyPatch) -> None:
    original = GuardedRequest._refusal
    log = Logger()

    def refusal(request: GuardedRequest, refused: Any) -> bytes:
        if refused.status == 403:
            log.error("Somebody is at the door")
        return original(request, refused)

    patch.setattr(GuardedRequest, "_refusal", refusal)


MISTAKES: dict[Mistake, str] = {
    a_forge_that_stumbles_over_a_letter: "an answer 500",
    a_header_that_nobody_expected: "raised into the reactor",
    an_intake_that_answers_before_it_writes: "202 before the journal had it",
    an_intake_that_forgets_to_write_some: "answers 202, and",
    a_site_that_answers_twice: "answers to",
    a_site_that_says_more_than_it_announces: "no answer of HTTP",
    bytes_that_are_never_given_back: "left behind: bytes counted",
    a_connection_that_is_counted_for_ever: "left behind: connections counted",
    a_deadline_that_outlives_its_request: "left behind: calls to come",
    a_ref_that_is_folded: "a deployment that nobody has asked for",
    a_deletion_that_is_a_push: "a deployment that nobody has asked for",
    a_complaint_about_every_refusal: "logged: ",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_found_within_the_short_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged_failures: list[LogEvent], mistake: Mistake
) -> None:
    with monkeypatch.context() as patch:
        mistake(patch)
        found = run(tmp_path, 0, BUDGET)
    assert found.broken is not None
    assert any(MISTAKES[mistake] in problem for problem in found.broken[1]), found.broken
    logged_failures.clear()


def test_a_request_that_breaks_a_law_is_cut_down_to_what_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged_failures: list[LogEvent]
) -> None:
    a_header_that_nobody_expected(monkeypatch)
    found = run(tmp_path, 0, BUDGET)
    assert found.broken is not None
    told = shrunk(tmp_path, *found.broken, tries=60)
    assert told.startswith(f"seed 0, number {found.broken[0].number}, once ")
    assert "raised into the reactor: UnicodeDecodeError" in told
    kept = told.splitlines()[1]
    assert len(kept) < len(repr(found.broken[0].data))
    logged_failures.clear()
