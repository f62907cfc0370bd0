"""The forges other than GitHub: their genuine messages pass, and whatever the bytes, only ``Refused`` is raised."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.payloads import BEFORE, SECRET, TIP, ZEROS, encoded, form, sha256_signature
from tests.payloads import push as github_push
from tests.test_github import having
from tests.test_intake import HOOK, Doorway, doorway, told
from tests.wire import Answer, post
from twisted_hook.forges import FORGES, flaw
from twisted_hook.hooks import Headers, Secret
from twisted_hook.model import Message, Outcome, Push, Refused

NOW = 1_700_000_000.0
SIGNING = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEY = b64decode(SIGNING.removeprefix(b"whsec_"))
MAIN = Push("acme/web", "refs/heads/main", TIP)

WORDS = [TIP, "branch", "push", "UPDATE"]
KEYS = [
    *("ref", "after", "repository", "full_name", "deleted", "push", "changes", "new", "old", "type", "name", "target"),
    *("hash", "project", "key", "slug", "refId", "toHash", "object_kind", "path_with_namespace"),
]


# --- messages as the forges send them


def gitlab_push(ref: str = "refs/heads/main", after: object = TIP, **fields: Any) -> dict[str, Any]:
    """https://docs.gitlab.com/user/project/integrations/webhook_events/#push-events"""
    kind = "tag_push" if ref.startswith("refs/tags/") else "push"
    return {
        "object_kind": kind,
        "event_name": kind,
        "before": BEFORE,
        "after": after,
        "ref": ref,
        "ref_protected": True,
        "checkout_sha": None if after == ZEROS else after,
        "message": None,
        "user_id": 4,
        "user_name": "John Smith",
        "project_id": 15,
        "project": {
            "id": 15,
            "name": "Web",
            "git_ssh_url": "git@gitlab.example.com:acme/web.git",
            "git_http_url": "https://gitlab.example.com/acme/web.git",
            "namespace": "Acme",
            "visibility_level": 0,
            "path_with_namespace": "acme/web",
            "default_branch": "main",
        },
        "commits": [],
        "total_commits_count": 4,
        **fields,
    }


def bitbucket_ref(name: str, type: str = "branch", after: str = TIP) -> dict[str, Any]:
    return {"type": type, "name": name, "target": {"type": "commit", "hash": after, "parents": []}, "links": {}}


def bitbucket_push(*changes: object, **fields: Any) -> dict[str, Any]:
    """https://support.atlassian.com/bitbucket-cloud/docs/event-payloads/#Push"""
    return {
        "actor": {"type": "user"},
        "repository": {"type": "repository", "full_name": "acme/web", "scm": "git", "name": "web"},
        "push": {"changes": changes or ({"old": None, "new": bitbucket_ref("main"), "created": True},)},
        **fields,
    }


def server_change(ref: str = "refs/heads/main", after: str = TIP, type: str = "UPDATE") -> dict[str, Any]:
    shown = {"id": ref, "displayId": ref.rpartition("/")[2], "type": "BRANCH"}
    return {"ref": shown, "refId": ref, "fromHash": BEFORE, "toHash": after, "type": type}


def server_push(*changes: object) -> dict[str, Any]:
    """https://confluence.atlassian.com/bitbucketserver/event-payload-938025882.html#Eventpayload-Push"""
    return {
        "eventKey": "repo:refs_changed",
        "date": "2017-09-19T09:58:11+1000",
        "actor": {"name": "admin", "id": 1},
        "repository": {"slug": "web", "id": 84, "scmId": "git", "project": {"key": "acme", "id": 84}},
        "changes": changes or (server_change(),),
    }


def standard_signature(body: bytes, *, id: str = "msg_1", at: float = NOW, key: bytes = KEY) -> bytes:
    signed = f"{id}.{at:.0f}.".encode() + body
    return b"v1," + b64encode(hmac.new(key, signed, sha256).digest())


def standard_headers(body: bytes, *, id: str = "msg_1", at: float = NOW, key: bytes = KEY) -> dict[bytes, bytes]:
    return {
        b"webhook-id": id.encode(),
        b"webhook-timestamp": f"{at:.0f}".encode(),
        b"webhook-signature": standard_signature(body, id=id, at=at, key=key),
    }


def gitea_headers(kin: str) -> Callable[[bytes], dict[bytes, bytes]]:
    """All the headers that Gitea or Forgejo sends, and under GitHub's name one that is empty."""

    def headers(body: bytes) -> dict[bytes, bytes]:
        return {
            f"x-{kin}-event".encode(): b"push",
            f"x-{kin}-delivery".encode(): b"f6266f16-1bf3-46a5-9ea4-602e06ead473",
            f"x-{kin}-signature".encode(): sha256_signature(body).removeprefix(b"sha256="),
            b"x-github-event": b"push",
            b"x-hub-signature-256": b"sha256=",
        }

    return headers


def gitlab_headers(body: bytes) -> dict[bytes, bytes]:
    return {b"x-gitlab-token": SECRET, b"x-gitlab-event": b"Push Hook", b"idempotency-key": b"f5e5f430-f57b-4e6e"}


def bitbucket_headers(body: bytes) -> dict[bytes, bytes]:
    return {
        b"x-event-key": b"repo:push",
        b"x-request-uuid": b"72d3162e-cc78-11e3",
        b"x-hub-signature": sha256_signature(body),
    }


def server_headers(body: bytes) -> dict[bytes, bytes]:
    return {
        b"x-event-key": b"repo:refs_changed",
        b"x-request-id": b"96efd4cb-05ca-46cd",
        b"x-hub-signature": sha256_signature(body),
    }


@dataclass(frozen=True)
class Sender:
    """A forge, and one genuine push of it."""

    push: dict[str, Any]
    headers: Callable[[bytes], dict[bytes, bytes]]
    guid: str
    secret: bytes = SECRET
    default_branch: str | None = None


SENDERS = {
    "gitlab": Sender(gitlab_push(), gitlab_headers, "f5e5f430-f57b-4e6e", default_branch="main"),
    "gitea": Sender(
        github_push(), gitea_headers("gitea"), "f6266f16-1bf3-46a5-9ea4-602e06ead473", default_branch="main"
    ),
    "forgejo": Sender(
        github_push(), gitea_headers("forgejo"), "f6266f16-1bf3-46a5-9ea4-602e06ead473", default_branch="main"
    ),
    "bitbucket": Sender(bitbucket_push(), bitbucket_headers, "72d3162e-cc78-11e3"),
    "bitbucket-server": Sender(server_push(), server_headers, "96efd4cb-05ca-46cd"),
    "standard": Sender(github_push(), standard_headers, "msg_1", SIGNING, "main"),
}


class ForgeTestCase(SynchronousTestCase):
    """Asks a forge as the door does."""

    forge = ""

    def ask(
        self,
        headers: Headers | Mapping[bytes, bytes],
        body: bytes,
        *secrets: bytes,
        now: float = NOW,
        forge: str = "",
    ) -> Message:
        """What a message says, once it is believed."""
        asked = FORGES[forge or self.forge]
        told = headers if callable(headers) else having(headers)
        asked.screen(told, allow_sha1=False)
        asked.verify(told, body, secrets=secrets or (SECRET,), allow_sha1=False, now=now)
        return asked.read(told, body)

    def assert_refused(self, status: int, *asked: Any, **more: Any) -> str:
        refused = self.assertRaises(Refused, self.ask, *asked, **more)
        self.assertEqual(refused.status, status, refused.reason)
        return str(refused.reason)

    def told(self, payload: object, **replaced: bytes) -> Message:
        """What a genuine message with this payload says."""
        sender, body = SENDERS[self.forge], payload if isinstance(payload, bytes) else encoded(payload)
        headers = sender.headers(body) | {name.replace("_", "-").encode(): value for name, value in replaced.items()}
        return self.ask(headers, body, sender.secret)


class EveryForgeTests(ForgeTestCase):
    """What is so at each of them."""

    def test_a_genuine_push_says_which_ref_of_which_repository_is_where_now(self) -> None:
        for name, sender in SENDERS.items():
            body = encoded(sender.push)
            message = self.ask(sender.headers(body), body, sender.secret, forge=name)
            self.assertEqual(message.guid, sender.guid)
            self.assertEqual(message.pushes, (replace(MAIN, default_branch=sender.default_branch),), name)

    def test_what_proves_a_message_must_be_there_and_right_and_once(self) -> None:
        """P12, P15: missing, empty, another, with one more character, or twice."""
        proofs = {
            "gitlab": b"x-gitlab-token",
            "gitea": b"x-gitea-signature",
            "forgejo": b"x-forgejo-signature",
            "standard": b"webhook-signature",
        }
        for name, sender in SENDERS.items():
            body, proof = encoded(sender.push), proofs.get(name, b"x-hub-signature")
            headers = sender.headers(body)
            right = headers.pop(proof)
            wrong = right[:-2] + (b"00" if right[-2:] != b"00" else b"11")
            self.assert_refused(401, headers, body, sender.secret, forge=name)
            for value in (b"", wrong, right + b"0", right[:-1], b"\xe9" + right[1:]):
                self.assert_refused(401, headers | {proof: value}, body, sender.secret, forge=name)
            if name != "standard":
                self.assert_refused(401, headers | {proof: right + b" "}, body, sender.secret, forge=name)
            for others in ((right, wrong), (wrong, right), (right, right)):
                twice = having(headers, *((proof, value) for value in others))
                self.assert_refused(401, twice, body, sender.secret, forge=name)

    def test_another_secret_or_an_empty_one_proves_nothing_and_any_of_several_does(self) -> None:
        """P09, P10."""
        other = b"whsec_" + b64encode(b"another key that is long enough")
        for name, sender in SENDERS.items():
            body = encoded(sender.push)
            headers = sender.headers(body)
            for secrets in ((other,), (b"",), (b"", other)):
                self.assert_refused(401, headers, body, *secrets, forge=name)
            self.ask(headers, body, other, sender.secret, forge=name)
            self.ask(headers, body, sender.secret, other, forge=name)

    def test_one_more_byte_of_body_is_refused_where_the_body_is_signed(self) -> None:
        """P04."""
        for name in SENDERS.keys() - {"gitlab"}:
            body = encoded(SENDERS[name].push)
            self.assert_refused(401, SENDERS[name].headers(body), body + b" ", SENDERS[name].secret, forge=name)

    def test_what_is_no_json_of_a_push_is_malformed(self) -> None:
        """P38, P42 to P45."""
        for name, sender in SENDERS.items():
            good = encoded(sender.push)
            for body in (
                b"",
                b"[]",
                b"null",
                b"42",
                good + b"x",
                b"\xef\xbb\xbf" + good,
                good[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
                good.replace(TIP.encode(), b"a" * 39),
                good.replace(TIP.encode(), b"--upload-pack=x"),
                good.replace(b"web", b"we\\u0000b"),
                good.replace(b'"acme', b'"\\ud800'),
                good.replace(b'"refs/heads/main"', b"1").replace(b'"main"', b"1"),
            ):
                self.assertNotEqual(body, good)
                self.assert_refused(400, sender.headers(body), body, sender.secret, forge=name)

    def test_an_id_that_is_odd_is_malformed(self) -> None:
        for name in SENDERS.keys() - {"standard"}:
            sender = SENDERS[name]
            body = encoded(sender.push)
            headers = sender.headers(body)
            [header] = [header for header, value in headers.items() if value == sender.guid.encode()]
            for value in (b"", b"x" * 201, b"\x1b[2J", b"\xc3\xa9"):
                self.assert_refused(400, headers | {header: value}, body, sender.secret, forge=name)
            del headers[header]
            self.assertEqual(self.ask(headers, body, sender.secret, forge=name).guid, sha256(body).hexdigest())

    def test_a_secret_that_could_sign_nothing_is_found_before_it_has_to(self) -> None:
        self.assertEqual([flaw(name, sender.secret) for name, sender in SENDERS.items()], [""] * len(SENDERS))
        self.assertEqual(flaw("gitlab", SIGNING), "")
        for name, secret in (("standard", b"no base64!"), ("standard", b"whsec_"), ("gitlab", b"whsec_*")):
            self.assertIn("is no signing secret", flaw(name, secret))

    @given(
        st.sampled_from(sorted(SENDERS)),
        st.dictionaries(
            st.sampled_from(sorted({name for sender in SENDERS.values() for name in sender.headers(b"")})),
            st.lists(st.binary(max_size=50) | st.sampled_from([SECRET, b"1700000000", b"push"]), max_size=2),
        ),
        st.binary(),
        st.lists(st.binary() | st.just(SIGNING), max_size=3),
        st.floats(),
    )
    def test_believing_is_total(
        self, name: str, headers: dict[bytes, list[bytes]], body: bytes, secrets: list[bytes], now: float
    ) -> None:
        """Whatever the headers and bytes, a message is believed or refused; and only the right token is believed."""
        forge = FORGES[name]
        try:
            forge.screen(lambda each: headers.get(each, []), allow_sha1=False)
            forge.verify(lambda each: headers.get(each, []), body, secrets=tuple(secrets), allow_sha1=False, now=now)
        except Refused as refused:
            self.assertEqual(refused.status, 401)
        else:
            self.assertEqual((name, headers[b"x-gitlab-token"][0] in secrets), ("gitlab", True))

    @given(
        st.sampled_from(sorted(SENDERS)),
        st.binary()
        | st.recursive(
            st.none() | st.booleans() | st.integers() | st.text("refsaft0:/") | st.sampled_from(WORDS),
            lambda of: st.lists(of, max_size=3) | st.dictionaries(st.sampled_from(KEYS), of),
        ).map(encoded),
        st.dictionaries(
            st.sampled_from(sorted({name for sender in SENDERS.values() for name in sender.headers(b"")})),
            st.lists(st.sampled_from([b"push", b"repo:push", b"repo:refs_changed"]) | st.binary(), max_size=2),
        ),
        st.sampled_from([b"application/json", b"application/x-www-form-urlencoded"]),
    )
    def test_reading_is_total(self, name: str, body: bytes, headers: dict[bytes, list[bytes]], type: bytes) -> None:
        """Whatever the headers and bytes, a message comes out or a refusal with 400."""
        told = {b"x-event-key": [b"repo:push"], b"x-gitea-event": [b"push"], **headers, b"content-type": [type]}
        for sent in (body, b"payload=" + body):
            try:
                message = FORGES[name].read(lambda each: told.get(each, []), sent)
            except Refused as refused:
                self.assertEqual(refused.status, 400)
            else:
                self.assertTrue(message.guid and message.name and (message.pushes or message.reason))


class GitLabTests(ForgeTestCase):
    """Its token, its signing token, and its events."""

    forge = "gitlab"
    body = encoded(gitlab_push())

    def test_a_deletion_has_no_commit_and_a_tag_is_a_tag(self) -> None:
        """P57."""
        self.assertEqual(self.told(gitlab_push(after=ZEROS)).pushes[0].after, None)
        message = self.told(gitlab_push("refs/tags/v1"))
        self.assertEqual((message.name, message.pushes[0].ref), ("tag_push", "refs/tags/v1"))

    def test_other_events_are_no_push(self) -> None:
        for payload in ({"object_kind": "note", "project": 5, "ref": 5}, {"event_name": "note"}):
            self.assertEqual(self.told(payload).reason, "event note is not a push")
        for payload in ({}, {"object_kind": ""}, {"object_kind": "a\nb"}):
            self.assertRaises(Refused, self.told, payload)

    def test_what_every_push_of_one_event_shares_is_no_id(self) -> None:
        headers = {b"x-gitlab-token": SECRET, b"x-gitlab-event-uuid": b"13792a34-cac6-4fda"}
        self.assertEqual(self.ask(headers, self.body).guid, sha256(self.body).hexdigest())

    def test_a_signing_token_believes_signatures(self) -> None:
        headers = standard_headers(self.body) | {b"x-gitlab-token": b"something else", b"idempotency-key": b"msg_1"}
        message = self.ask(headers, self.body, SIGNING)
        self.assertEqual((message.guid, len(message.pushes)), ("msg_1", 1))
        self.assert_refused(401, headers, self.body + b" ", SIGNING)
        self.assert_refused(401, headers, self.body, SIGNING, now=NOW + 301)

    def test_a_signing_token_that_comes_in_clear_proves_nothing(self) -> None:
        """No downgrade: who has seen it pass must not be believed for it."""
        for headers in (
            {b"x-gitlab-token": SIGNING},
            standard_headers(self.body, key=b"another") | {b"x-gitlab-token": SIGNING},
            {b"webhook-signature": b"v1,x", b"x-gitlab-token": SIGNING},
        ):
            self.assert_refused(401, headers, self.body, SIGNING)
            self.assert_refused(401, headers, self.body, SIGNING, SECRET)

    def test_a_secret_token_signs_nothing(self) -> None:
        """It has passed in clear with every message so far, so that a signature under it says nothing."""
        for key in (SECRET, b"", b64encode(SECRET)):
            self.assert_refused(401, standard_headers(self.body, key=key), self.body, SECRET)

    def test_a_hook_can_be_moved_from_the_one_to_the_other(self) -> None:
        secrets = (SIGNING, SECRET)
        self.ask({b"x-gitlab-token": SECRET}, self.body, *secrets)
        self.ask(standard_headers(self.body), self.body, *secrets)
        self.ask(standard_headers(self.body) | {b"x-gitlab-token": b"another"}, self.body, *secrets)
        self.ask({b"webhook-signature": b"v1,x", b"x-gitlab-token": SECRET}, self.body, *secrets)


class GiteaTests(ForgeTestCase):
    """Its signature, which is over the JSON, and those of its kin."""

    forge = "gitea"
    body = b'{"ref":"refs/heads/main"}'

    def test_of_a_form_the_json_inside_is_signed(self) -> None:
        headers = {
            b"content-type": b"application/x-www-form-urlencoded",
            b"x-gitea-event": b"push",
            b"x-gitea-signature": b"7804d460f7eadad206a6d4c5a760b15defa80add90a31069e5ab2df85f18bcfa",
        }
        self.assert_refused(400, headers, form(self.body), b"topsecret")
        githubs = b"62392736a1b8c49bc8bc6000242abfd027806d825632893ddf031c19c359442d"
        self.assert_refused(401, headers | {b"x-gitea-signature": githubs}, form(self.body), b"topsecret")
        for body in (b"", self.body, b"x=1&" + form(self.body), form(self.body) + b"&x=1"):
            self.assert_refused(401, headers, body, b"topsecret")
        body = encoded(github_push())
        kin = gitea_headers("gitea")(body) | {b"content-type": b"application/x-www-form-urlencoded"}
        self.assertEqual(self.ask(kin, form(body)).pushes[0].ref, "refs/heads/main")

    def test_githubs_headers_prove_nothing_here(self) -> None:
        """P15: a sender without a secret says ``sha256=``, and nothing under its own name."""
        for value in (b"sha256=", sha256_signature(self.body)):
            self.assert_refused(401, {b"x-hub-signature-256": value, b"x-gitea-event": b"push"}, self.body)
            headers = {b"x-hub-signature-256": value, b"x-gitea-signature": b"", b"x-gitea-event": b"push"}
            self.assert_refused(401, headers, self.body)

    def test_each_of_the_kin_has_headers_of_its_own(self) -> None:
        body = encoded(github_push())
        self.assert_refused(401, gitea_headers("forgejo")(body), body, forge="gitea")
        self.assert_refused(401, gitea_headers("gitea")(body), body, forge="forgejo")

    def test_zeros_are_a_deletion_and_another_event_is_no_push(self) -> None:
        self.assertIsNone(self.told(github_push(after=ZEROS, deleted=False)).pushes[0].after)
        self.assertEqual(self.told({"ref": 5}, x_gitea_event=b"create").reason, "event create is not a push")
        self.assertRaises(Refused, self.told, github_push(), x_gitea_event=b"")
        headers = gitea_headers("gitea")(self.body)
        del headers[b"x-gitea-event"]
        self.assertIn("no x-gitea-event", self.assert_refused(400, headers, self.body))


class BitbucketTests(ForgeTestCase):
    """Its signature under a name that GitHub uses for another, and its many refs at once."""

    forge = "bitbucket"

    def test_the_documented_example_verifies(self) -> None:
        """P16."""
        signature = b"sha256=a4771c39fbe90f317c7824e83ddef3caae9cb3d976c214ace1f2937e133263c9"
        headers = {b"x-hub-signature": signature, b"x-event-key": b"repo:push"}
        for forge in ("bitbucket", "bitbucket-server"):
            self.assert_refused(400, headers, b"Hello World!", forge=forge)
            self.assert_refused(401, headers, b"Hello, World!", forge=forge)

    def test_every_branch_and_tag_of_a_push_is_told_in_its_order(self) -> None:
        """P58."""
        payload = bitbucket_push(
            {
                "old": bitbucket_ref("dev"),
                "new": bitbucket_ref("dev", after="a" * 40),
                "truncated": True,
                "commits": [],
            },
            {"old": None, "new": bitbucket_ref("v1", "tag")},
            {"old": bitbucket_ref("gone"), "new": None, "closed": True},
            {"old": None, "new": bitbucket_ref("x", "bookmark")},
        )
        self.assertEqual(
            [(push.ref, push.after) for push in self.told(payload).pushes],
            [("refs/heads/dev", "a" * 40), ("refs/tags/v1", TIP), ("refs/heads/gone", None)],
        )

    def test_a_push_of_nothing_and_other_events_ask_for_nothing(self) -> None:
        payload = bitbucket_push({"old": None, "new": bitbucket_ref("x", "bookmark")})
        self.assertEqual(self.told(payload).reason, "it changes no branch and no tag")
        payload["push"]["changes"] = []
        self.assertEqual(self.told(payload).reason, "it changes no branch and no tag")
        self.assertEqual(self.told({"push": 5}, x_event_key=b"issue:created").reason[:19], "event issue:created")
        self.assertRaises(Refused, self.told, bitbucket_push({"old": None, "new": None}))
        self.assertRaises(Refused, self.told, b"[]", x_event_key=b"issue:created")


class BitbucketServerTests(ForgeTestCase):
    """What it calls a repository, and its changes."""

    forge = "bitbucket-server"

    def test_every_branch_and_tag_of_a_push_is_told_in_its_order(self) -> None:
        """P58."""
        payload = server_push(
            server_change("refs/heads/dev", "a" * 40, "ADD"),
            server_change("refs/tags/v1"),
            server_change("refs/heads/gone", ZEROS, "DELETE"),
            server_change("refs/heads/said-to-be-gone", TIP, "DELETE"),
            server_change("refs/pull-requests/1/from"),
        )
        self.assertEqual(
            [(push.ref, push.after) for push in self.told(payload).pushes],
            [
                ("refs/heads/dev", "a" * 40),
                ("refs/tags/v1", TIP),
                ("refs/heads/gone", None),
                ("refs/heads/said-to-be-gone", None),
            ],
        )

    def test_a_test_of_the_connection_is_a_ping(self) -> None:
        self.assertEqual(self.told({"test": True}, x_event_key=b"diagnostics:ping").reason, "ping")
        self.assertEqual(
            self.told(server_push(server_change("refs/notes/x"))).reason, "it changes no branch and no tag"
        )
        self.assertRaises(Refused, self.told, server_push(server_change(type="MOVE")))


class StandardTests(ForgeTestCase):
    """Standard Webhooks of any sender."""

    forge = "standard"
    body = encoded(github_push())

    def test_the_vector_of_the_specification_verifies_within_five_minutes(self) -> None:
        """P13."""
        headers = {
            b"webhook-id": b"msg_p5jXN8AQM9LWM0D4loKWxJek",
            b"webhook-timestamp": b"1614265330",
            b"webhook-signature": b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        }
        body = b'{"test": 2432232314}'
        for seconds in (0.0, 299.0, -299.0, 300.0):
            message = self.ask(headers, body, SIGNING, now=1614265330 + seconds)
            self.assertEqual((message.guid, message.pushes), ("msg_p5jXN8AQM9LWM0D4loKWxJek", ()))
        for seconds in (301.0, -301.0, 1e12):
            self.assert_refused(401, headers, body, SIGNING, now=1614265330 + seconds)
        self.ask(headers, body, SIGNING.removeprefix(b"whsec_"), now=1614265330)
        for name in headers:
            without = {each: value for each, value in headers.items() if each != name}
            self.assert_refused(401, without, body, SIGNING, now=1614265330)

    def test_the_id_and_the_time_are_signed(self) -> None:
        for name, value in ((b"webhook-id", b"msg_2"), (b"webhook-timestamp", b"1700000001")):
            self.assert_refused(401, standard_headers(self.body) | {name: value}, self.body, SIGNING)

    def test_one_of_several_signatures_suffices(self) -> None:
        """P14."""
        right = standard_signature(self.body)
        for listed in (b"v1,AAAA v2,xx " + right, right + b" v1a,AAAA", standard_signature(b"") + b" " + right):
            self.ask(standard_headers(self.body) | {b"webhook-signature": listed}, self.body, SIGNING)

    def test_no_other_shape_is_a_signature(self) -> None:
        right = standard_signature(self.body)
        for value in (
            b"v1",
            b"v1,",
            b"v2," + right[3:],
            right[3:],
            right + b"=",
            b"v1,!",
            right.replace(b"v1,", b"v1 "),
        ):
            self.assert_refused(401, standard_headers(self.body) | {b"webhook-signature": value}, self.body, SIGNING)
        for value in (b"", b"now", b"-1", b"1e9", b"1700000000.0", b"9" * 5_000, b"\xd9\xa1"):
            self.assert_refused(401, standard_headers(self.body) | {b"webhook-timestamp": value}, self.body, SIGNING)

    def test_a_secret_that_is_no_base64_proves_nothing(self) -> None:
        for secret in (b"whsec_", b"", b"whsec_!", b"\xe9"):
            self.assert_refused(401, standard_headers(self.body, key=b""), self.body, secret)

    def test_a_message_without_ref_commit_and_repository_is_no_push(self) -> None:
        self.assertIn("no push", self.told({"type": "ping", "data": {}}).reason)
        self.assertIsNone(self.told(github_push(deleted=True)).pushes[0].after)
        for payload in ({"ref": "refs/heads/main"}, {"after": TIP}, {"repository": {"full_name": "acme/web"}}):
            self.assertRaises(Refused, self.told, payload)


# --- through the door


def hook(forge: str) -> Any:
    return replace(HOOK, name=forge, path=f"/hooks/{forge}", forge=forge, secrets=(Secret(SENDERS[forge].secret),))


async def delivered(door: Doorway, forge: str, payload: object, **replaced: bytes) -> Answer:
    """The answer to a genuine delivery of that forge."""
    body = encoded(payload)
    headers = SENDERS[forge].headers(body) | {name.replace("_", "-").encode(): each for name, each in replaced.items()}
    return await door.ask(post(f"/hooks/{forge}", {b"content-type": b"application/json", **headers}, body))


@pytest_twisted.ensureDeferred
async def test_a_captured_push_that_is_written_otherwise_is_still_a_repeat() -> None:
    """P52: where the JSON inside a form is signed, anybody may send that as another form, and under another id."""
    async with doorway(hook("gitea")) as door:
        as_json = encoded(github_push())
        bodies = {as_json: b"application/json"}
        for body in (form(as_json), form(as_json).replace(b"%7B", b"{")):
            bodies[body] = b"application/x-www-form-urlencoded"
        answers = []
        for n, (body, content_type) in enumerate(bodies.items()):
            headers = gitea_headers("gitea")(as_json) | {b"content-type": content_type, b"x-gitea-delivery": b"%d" % n}
            answers.append(told(await door.ask(post("/hooks/gitea", headers, body))))
        assert [answer["status"] for answer in answers] == ["accepted", "duplicate", "duplicate"]
        assert len(door.submitted) == 1


@pytest.mark.parametrize("forge", SENDERS)
@pytest_twisted.ensureDeferred
async def test_a_genuine_push_is_accepted_once_and_anything_else_is_unbelieved(forge: str) -> None:
    """P12, P15, and that two forges cannot stand in for each other."""
    async with doorway(*map(hook, SENDERS)) as door:
        body, headers = encoded(SENDERS[forge].push), {b"content-type": b"application/json"}
        unsigned = await door.ask(post(f"/hooks/{forge}", headers, body))
        foreign = await door.ask(
            post(f"/hooks/{forge}", headers | {b"x-hub-signature-256": sha256_signature(body)}, body)
        )
        assert (unsigned.status, foreign.status) == (401, 401)
        await door.assert_nothing_happened()
        answers = [told(await delivered(door, forge, SENDERS[forge].push)) for _ in range(2)]
        assert [answer["status"] for answer in answers] == ["accepted", "duplicate"]
        assert [deployment.app for deployment in door.submitted] == ["web"]
        [row] = await door.rows()
        assert (row.hook, row.guid) == (forge, SENDERS[forge].guid)


async def status(door: Doorway, forge: str, body: bytes, headers: Mapping[bytes, bytes]) -> int:
    return (await door.ask(post(f"/hooks/{forge}", {b"content-type": b"application/json", **headers}, body))).status


@pytest_twisted.ensureDeferred
async def test_another_token_or_none_is_unbelieved() -> None:
    """P12. Also with white space behind it, which is no part of any other header's value (RFC 9110, 5.5)."""
    async with doorway(hook("gitlab")) as door:
        body, right = encoded(gitlab_push()), gitlab_headers(b"")
        others = (b"another", b"", SECRET[:-1], SECRET + b"x", b" ".join((SECRET, SECRET)), SECRET.upper())
        for token in (*others, SECRET + b" ", SECRET + b"\t", b" "):
            assert await status(door, "gitlab", body, right | {b"x-gitlab-token": token}) == 401
        without = {name: value for name, value in right.items() if name != b"x-gitlab-token"}
        assert await status(door, "gitlab", body, without) == 401
        await door.assert_nothing_happened()
        assert await status(door, "gitlab", body, right) == 202


@pytest_twisted.ensureDeferred
async def test_a_message_is_believed_for_five_minutes_by_any_of_its_signatures() -> None:
    """P13, P14: at the door, whose clock says ``NOW``."""
    async with doorway(hook("standard")) as door:
        body = encoded(github_push())
        for at, expected in ((NOW - 301, 401), (NOW + 301, 401), (NOW - 299, 202), (NOW + 299, 202)):
            assert await status(door, "standard", body, standard_headers(body, at=at)) == expected
        right = standard_headers(body)
        listed = b"v1,AAAA v2,xx " + right[b"webhook-signature"]
        assert await status(door, "standard", body, right | {b"webhook-signature": listed}) == 202
        for name in right:
            without = {each: value for each, value in right.items() if each != name}
            assert await status(door, "standard", body, without) == 401


@pytest_twisted.ensureDeferred
async def test_a_digest_counts_under_the_name_that_its_forge_gives_it() -> None:
    """P15, P16: Gitea's own header, and the vector of Atlassian, which is genuine and no JSON."""
    async with doorway(*map(hook, SENDERS)) as door:
        body = encoded(github_push())
        right = gitea_headers("gitea")(body)
        for signature in (b"sha256=", sha256_signature(body)):
            githubs = {b"x-gitea-event": b"push", b"x-hub-signature-256": signature}
            assert await status(door, "gitea", body, githubs) == 401
        assert await status(door, "gitea", body, right) == 202
        vector = b"sha256=a4771c39fbe90f317c7824e83ddef3caae9cb3d976c214ace1f2937e133263c9"
        atlassians = {b"x-event-key": b"repo:push", b"x-hub-signature": vector}
        assert await status(door, "bitbucket", b"Hello World!", atlassians) == 400
        assert await status(door, "bitbucket", b"Hello, World!", atlassians) == 401


TRIED_OUT: dict[str, tuple[str, dict[str, Any], dict[str, bytes]]] = {
    "gitlab, which pushes what is there": ("gitlab", gitlab_push(before=TIP), {}),
    "gitlab, by a system hook": ("gitlab", {"event_name": "repository_update", "project_id": 1}, {}),
    "gitea, which pushes what is there": ("gitea", github_push(before=TIP, total_commits=0), {}),
    "gitea, of an empty repository": ("gitea", github_push(before=ZEROS, after=ZEROS), {}),
    "gitea of old, with the secret inside": ("gitea", github_push(secret=SECRET.decode()), {}),
    "forgejo, which pushes what is there": ("forgejo", github_push(before=TIP, total_commits=0), {}),
    "forgejo, of an empty repository": ("forgejo", github_push(before=ZEROS, after=ZEROS), {}),
    "bitbucket-server": ("bitbucket-server", {"test": True}, {"x_event_key": b"diagnostics:ping"}),
}
"""What each forge sends when its owner tries the webhook out; GitHub's ping is elsewhere, and Bitbucket Cloud has none.

https://github.com/go-gitea/gitea/blob/main/routers/web/repo/setting/webhook.go (``TestWebhook``)
https://gitlab.com/gitlab-org/gitlab/-/blob/master/lib/gitlab/data_builder/push.rb (``build_sample``)
"""


@pytest.mark.parametrize(("forge", "payload", "headers"), TRIED_OUT.values(), ids=TRIED_OUT)
@pytest_twisted.ensureDeferred
async def test_trying_a_webhook_out_succeeds(forge: str, payload: dict[str, Any], headers: dict[str, bytes]) -> None:
    async with doorway(hook(forge)) as door:
        assert (await delivered(door, forge, payload, **headers)).status == 202
        [row] = await door.rows()
        assert SECRET.decode() not in repr(row)


@pytest.mark.parametrize(
    "ref", ["refs/notes/commits", "refs/for/main", "refs/pull/1/head", "refs/merge-requests/1/head"]
)
@pytest.mark.parametrize("forge", ["gitlab", "gitea", "forgejo", "bitbucket-server", "standard"])
@pytest_twisted.ensureDeferred
async def test_a_ref_that_is_neither_branch_nor_tag_is_ignored(forge: str, ref: str) -> None:
    told_of = {"gitlab": gitlab_push(ref), "bitbucket-server": server_push(server_change(ref))}
    payload = told_of.get(forge, github_push(ref))
    async with doorway(hook(forge)) as door:
        more = {}
        if forge == "standard":
            more = {
                name.decode().replace("-", "_"): value for name, value in standard_headers(encoded(payload)).items()
            }
        answer = await delivered(door, forge, payload, **more)
        assert (answer.status, told(answer)["status"]) == (202, "ignored")


@pytest_twisted.ensureDeferred
async def test_what_gitlab_deletes_and_tags_is_ignored_with_202() -> None:
    """P57: GitLab turns a hook off that answers 4xx."""
    async with doorway(hook("gitlab")) as door:
        answers = [
            await delivered(door, "gitlab", payload, idempotency_key=b"%d" % n)
            for n, payload in enumerate(
                (gitlab_push(after=ZEROS), gitlab_push("refs/tags/main"), {"object_kind": "issue"}, gitlab_push())
            )
        ]
        assert [answer.status for answer in answers] == [202, 202, 202, 202]
        assert [told(answer)["status"] for answer in answers] == ["ignored", "ignored", "ignored", "accepted"]
        assert told(answers[0])["reason"] == "the ref was deleted"
        assert len(door.submitted) == 1


@pytest.mark.parametrize(
    ("forge", "payload"),
    [
        (
            "bitbucket",
            bitbucket_push(
                {"old": bitbucket_ref("dev"), "new": bitbucket_ref("dev")},
                {"old": bitbucket_ref("main"), "new": bitbucket_ref("main")},
                {"old": bitbucket_ref("old"), "new": None},
            ),
        ),
        (
            "bitbucket-server",
            server_push(
                server_change("refs/heads/dev"), server_change(), server_change("refs/heads/old", ZEROS, "DELETE")
            ),
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_of_several_refs_in_one_push_the_configured_one_is_deployed_once(forge: str, payload: object) -> None:
    """P58."""
    async with doorway(hook(forge)) as door:
        assert told(await delivered(door, forge, payload))["status"] == "accepted"
        assert [deployment.app for deployment in door.submitted] == ["web"]
        [row] = await door.rows()
        assert [push.ref for push in row.pushes] == ["refs/heads/dev", "refs/heads/main", "refs/heads/old"]


@pytest_twisted.ensureDeferred
async def test_an_id_that_was_signed_before_is_a_duplicate_though_the_message_is_signed_anew() -> None:
    """P13, P14: a retry has the id of the first attempt and its own time; one of what failed is deployed again."""
    async with doorway(hook("standard")) as door:
        body = encoded(github_push())
        for at, status in ((NOW - 200, "accepted"), (NOW - 100, "duplicate"), (NOW, "duplicate")):
            assert told(await delivered(door, "standard", github_push(), **again(body, at)))["status"] == status
        assert (len(door.submitted), len(await door.rows())) == (1, 1)
        await door.journal.finish(door.submitted[0].id, Outcome.FAILED, 1.0)
        assert told(await delivered(door, "standard", github_push(), **again(body, NOW)))["status"] == "duplicate"
        assert len(door.submitted) == 2


def again(body: bytes, at: float) -> dict[str, bytes]:
    return {name.decode().replace("-", "_"): value for name, value in standard_headers(body, at=at).items()}
