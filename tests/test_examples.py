"""Every example that Octokit has collected of what GitHub sends, through the door; see ``octokit/README.md``."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import json
import lzma
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted

from tests import payloads
from tests.octokit.vendor import EXAMPLES
from tests.payloads import encoded, form
from tests.test_intake import HOOK, PATH, doorway, told
from tests.wire import connect, post
from twisted_hook.hooks import JSON, Subscription
from twisted_hook.model import Push

REPOSITORY = "Codertocat/Hello-World"
BRANCH = "refs/heads/master"
COMMIT = "6113728f27ae82c7b1a177c8d03f9e96e0adf246"
MASTER = Push(REPOSITORY, BRANCH, COMMIT, "master")
TAG = Push(REPOSITORY, "refs/tags/simple-tag", COMMIT, "master")
GONE = replace(TAG, after=None)
HERE = replace(HOOK, subscriptions=(Subscription("web", (REPOSITORY,), BRANCH),))


def examples() -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of an event, and what is sent of it."""
    for event, sent in json.loads(lzma.decompress(EXAMPLES.read_bytes())).items():
        yield from ((event, each) for each in sent)


def expected(event: str, payload: dict[str, Any]) -> dict[str, Any]:
    """The answer by the table, but for the ids in it."""
    if event != "push":
        return {"status": "ignored", "reason": "ping" if event == "ping" else f"event {event} is not a push"}
    if payload["deleted"]:
        return {"status": "ignored", "reason": "the ref was deleted"}
    if payload["ref"] != BRANCH:
        return {"status": "ignored", "reason": "no app deploys this tag"}
    return {"status": "accepted"}


@pytest.mark.parametrize(
    ("content_type", "wrapped"), [(JSON, bytes), (b"application/x-www-form-urlencoded", form)], ids=("json", "form")
)
@pytest_twisted.ensureDeferred
async def test_every_example_is_answered_by_the_table(content_type: bytes, wrapped: Callable[[bytes], bytes]) -> None:
    """P48, P49, P50, and P31: creations, deletions and pings among them, as JSON and as a form."""
    async with doorway(HERE) as door:
        wire = await connect(door.port)
        sent = list(examples())
        for number, (event, payload) in enumerate(sent):
            body = wrapped(encoded(payload))
            more = {"x_github_event": event.encode(), "x_github_delivery": b"%d" % number}
            wire.send(post(PATH, payloads.headers(body, content_type=content_type, **more), body))
            answer = await wire.answer()
            assert answer.status == 202, (event, payload)
            assert told(answer).items() >= expected(event, payload).items()
        await wire.close()
        rows = {int(row.guid): row for row in await door.rows()}
        assert {number: row.event for number, row in rows.items()} == {n: event for n, (event, _) in enumerate(sent)}
        pushes = [row.pushes for row in rows.values() if row.event == "push"]
        assert Counter(pushes) == {(MASTER,): 2, (TAG,): 3, (GONE,): 5}
        assert not any(row.pushes for row in rows.values() if row.event != "push")
        assert len(door.submitted) == 2


def test_there_are_examples_of_all_that_has_to_do_with_a_push() -> None:
    counted = Counter(event for event, _ in examples())
    assert counted.total() == 404
    assert {event: counted[event] for event in ("push", "create", "delete", "ping")} == {
        "push": 10,
        "create": 6,
        "delete": 5,
        "ping": 5,
    }
