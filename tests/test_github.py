"""GitHub's signatures and payloads: the genuine ones pass, and whatever the bytes, only ``Refused`` is raised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from hashlib import sha256
from urllib.parse import quote, quote_plus

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import payloads
from tests.payloads import SECRET, TIP, ZEROS, encoded, push, sha1_signature, sha256_signature
from twisted_hook.forges import FORGES, github, parts
from twisted_hook.hooks import Headers
from twisted_hook.model import Message, Push, Refused

HELLO = b"Hello, World!"
HELLO_SIGNATURE = b"sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
BODY = encoded(push())
NOW = 1_700_000_000.0


def having(headers: Mapping[bytes, bytes], *more: tuple[bytes, bytes]) -> Headers:
    """These headers, and further ones with names that may be there already."""

    def values(name: bytes) -> Sequence[bytes]:
        return [value for found, value in (*headers.items(), *more) if found == name]

    return values


def signed(signature: bytes, *more: bytes) -> Headers:
    return having({b"x-hub-signature-256": signature}, *((b"x-hub-signature-256", value) for value in more))


class SignatureTests(SynchronousTestCase):
    """What counts as a signature."""

    def verify(
        self,
        headers: Headers,
        body: bytes = BODY,
        *,
        secrets: tuple[bytes, ...] = (SECRET,),
        allow_sha1: bool = False,
    ) -> None:
        github.verify(headers, body, secrets=secrets, allow_sha1=allow_sha1, now=NOW)

    def assert_unbelieved(
        self,
        headers: Headers,
        body: bytes = BODY,
        *,
        secrets: tuple[bytes, ...] = (SECRET,),
        allow_sha1: bool = False,
    ) -> None:
        refused = self.assertRaises(Refused, self.verify, headers, body, secrets=secrets, allow_sha1=allow_sha1)
        self.assertEqual(refused.status, 401)

    def assert_screened_out(self, headers: Headers, *, allow_sha1: bool = False) -> None:
        refused = self.assertRaises(Refused, github.screen, headers, allow_sha1=allow_sha1)
        self.assertEqual(refused.status, 401)
        self.assert_unbelieved(headers, allow_sha1=allow_sha1)

    def test_the_documented_example_verifies(self) -> None:
        """P01."""
        self.verify(signed(HELLO_SIGNATURE), HELLO)

    def test_a_missing_signature_is_refused_by_the_headers_alone(self) -> None:
        """P02."""
        self.assert_screened_out(having({}))

    def test_a_wrong_digit_is_refused(self) -> None:
        """P03."""
        right = sha256_signature(BODY)
        self.assert_unbelieved(signed(right[:-1] + (b"0" if right[-1:] != b"0" else b"1")))

    def test_one_more_byte_of_body_is_refused(self) -> None:
        """P04."""
        self.assert_unbelieved(signed(sha256_signature(BODY)), BODY + b" ")

    def test_sha1_alone_is_refused(self) -> None:
        """P05."""
        self.assert_screened_out(having({b"x-hub-signature": sha1_signature(BODY)}))

    def test_sha1_alone_counts_where_it_is_allowed(self) -> None:
        """P05."""
        headers = having({b"x-hub-signature": sha1_signature(BODY)})
        github.screen(headers, allow_sha1=True)
        self.verify(headers, allow_sha1=True)
        self.assert_unbelieved(headers, BODY + b" ", allow_sha1=True)

    def test_a_wrong_sha256_is_not_mended_by_a_right_sha1(self) -> None:
        wrong = b"sha256=" + b"0" * 64
        for value in (wrong, b"", b"sha256="):
            headers = having({b"x-hub-signature-256": value, b"x-hub-signature": sha1_signature(BODY)})
            self.assert_unbelieved(headers, allow_sha1=True)

    def test_every_other_shape_is_refused_by_the_headers_alone(self) -> None:
        """P06."""
        right = sha256_signature(BODY)
        digits = right.removeprefix(b"sha256=")
        for value in (
            b"",
            b"sha256=",
            right[:-1],
            right + b"0",
            digits,
            b"sha1=" + digits,
            b"sha256=" + digits.upper(),
            b"SHA256=" + digits,
            b"sha256=" + digits + b"\n",
            b"sha256 =" + digits,
            right + b"," + right,
        ):
            self.assert_screened_out(signed(value))

    def test_a_byte_outside_ascii_is_refused_and_is_no_type_error(self) -> None:
        """P07."""
        self.assert_screened_out(signed(b"sha256=\xe9" + sha256_signature(BODY)[8:]))

    def test_a_second_header_is_refused_though_the_first_is_right(self) -> None:
        """P08."""
        right = sha256_signature(BODY)
        self.assert_screened_out(signed(right, b"sha256=" + b"0" * 64))
        self.assert_screened_out(signed(b"sha256=" + b"0" * 64, right))
        self.assert_screened_out(signed(right, right))

    def test_an_empty_key_verifies_nothing(self) -> None:
        """P09."""
        headers = signed(sha256_signature(BODY, b""))
        self.assert_unbelieved(headers, secrets=(b"",))
        self.assert_unbelieved(headers, secrets=())
        self.assert_unbelieved(headers, secrets=(SECRET, b""))

    def test_any_of_several_secrets_verifies(self) -> None:
        """P10."""
        secrets = (b"the new secret of the hook", SECRET)
        for secret in secrets:
            self.verify(signed(sha256_signature(BODY, secret)), secrets=secrets)
        self.assert_unbelieved(signed(sha256_signature(BODY, b"a third")), secrets=secrets)

    def test_another_forges_signature_under_the_sha1_name_is_refused(self) -> None:
        """P16."""
        for allow_sha1 in (False, True):
            self.assert_screened_out(having({b"x-hub-signature": sha256_signature(BODY)}), allow_sha1=allow_sha1)

    def test_a_reason_tells_nothing_of_the_right_signature(self) -> None:
        """P11."""
        refused = self.assertRaises(
            Refused, self.verify, signed(b"sha256=" + b"0" * 64), BODY, secrets=(SECRET,), allow_sha1=False
        )
        self.assertNotIn(sha256_signature(BODY)[7:].decode(), refused.reason)

    @given(st.lists(st.binary()), st.lists(st.binary()), st.binary(), st.lists(st.binary()), st.booleans())
    @example([HELLO_SIGNATURE], [], HELLO, [SECRET], False)
    def test_verifying_is_total(
        self, sha256s: list[bytes], sha1s: list[bytes], body: bytes, secrets: list[bytes], allow_sha1: bool
    ) -> None:
        """Whatever the bytes, a body is believed or refused with 401; and only a right signature is believed."""

        def headers(name: bytes) -> Sequence[bytes]:
            return {b"x-hub-signature-256": sha256s, b"x-hub-signature": sha1s}.get(name, [])

        try:
            github.screen(headers, allow_sha1=allow_sha1)
            self.verify(headers, body, secrets=tuple(secrets), allow_sha1=allow_sha1)
        except Refused as refused:
            self.assertEqual(refused.status, 401)
        else:
            right = {sha256_signature(body, secret) for secret in secrets}
            self.assertTrue(right & {*sha256s} or {sha1_signature(body, secret) for secret in secrets} & {*sha1s})


class ReadingTests(SynchronousTestCase):
    """What a believed message says."""

    def read(self, payload: object, **replaced: bytes | None) -> Message:
        body = payload if isinstance(payload, bytes) else encoded(payload)
        return github.read(having(payloads.headers(body, **replaced)), body)

    def pushed(self, payload: object) -> Push:
        [push] = self.read(payload).pushes
        return push

    def assert_malformed(self, payload: object, **replaced: bytes | None) -> None:
        refused = self.assertRaises(Refused, self.read, payload, **replaced)
        self.assertEqual(refused.status, 400, payload)

    def test_a_push_says_which_ref_of_which_repository_is_where_now(self) -> None:
        message = self.read(push())
        self.assertEqual(message.guid, "72d3162e-cc78-11e3-81ab-4c9367dc0958")
        self.assertEqual(message.name, "push")
        self.assertEqual(message.pushes, (Push("acme/web", "refs/heads/main", TIP, "main"),))

    def test_a_push_carries_no_url_of_the_payload(self) -> None:
        """P46, P92: what is not in a ``Push`` can be neither fetched from nor reported to."""
        canary = "http://127.0.0.1:9/x.git"
        urls = ("clone_url", "ssh_url", "git_url", "html_url", "url", "statuses_url", "deployments_url")
        event = self.pushed(push(repository=payloads.repository(**dict.fromkeys(urls, canary)), compare=canary))
        self.assertEqual({field.name for field in fields(event)}, {"repository", "ref", "after", "default_branch"})
        self.assertNotIn("127.0.0.1", repr(event))

    def test_a_deletion_has_no_commit(self) -> None:
        """P49."""
        self.assertIsNone(self.pushed(payloads.deletion()).after)

    def test_zeros_are_a_deletion_whatever_else_is_said(self) -> None:
        for zeros in (ZEROS, "0" * 64):
            self.assertIsNone(self.pushed(push(after=zeros, deleted=False)).after)
        payload = push(after=ZEROS)
        del payload["deleted"]
        self.assertIsNone(self.pushed(payload).after)

    def test_what_is_said_to_be_deleted_is_deleted(self) -> None:
        self.assertIsNone(self.pushed(push(deleted=True)).after)

    def test_a_commit_is_40_or_64_lower_case_hexadecimal_digits(self) -> None:
        """P45."""
        self.assertEqual(self.pushed(push(after="a1" * 32)).after, "a1" * 32)
        for after in (
            "--upload-pack=x",
            "a" * 39,
            "a" * 41,
            "a" * 63,
            "A" * 40,
            "a" * 40 + "\n",
            "",
            "g" * 40,
            1,
            None,
        ):
            self.assert_malformed(push(after=after))

    def test_a_ping_and_other_events_are_no_push(self) -> None:
        """P48."""
        self.assertEqual(self.read(payloads.ping(), x_github_event=b"ping").reason, "ping")
        issues = {"action": "opened", "issue": {"number": 1}, "repository": payloads.repository()}
        message = self.read(issues, x_github_event=b"issues")
        self.assertEqual((message.pushes, message.reason), ((), "event issues is not a push"))
        self.assertEqual(message.name, "issues")

    def test_even_what_is_no_push_must_be_json(self) -> None:
        """P01: genuine, not JSON."""
        for event in (b"ping", b"issues", b"push"):
            self.assert_malformed(HELLO, x_github_event=event)

    def test_an_event_without_a_name_is_malformed(self) -> None:
        """P51."""
        for value in (None, b"", b"pu sh", b"push\xe9", b"p" * 101):
            self.assert_malformed(push(), x_github_event=value)

    def test_a_delivery_without_an_id_has_the_digest_of_its_body(self) -> None:
        """P51."""
        self.assertEqual(self.read(BODY, x_github_delivery=None).guid, sha256(BODY).hexdigest())

    def test_an_id_is_short_printable_ascii(self) -> None:
        self.assertEqual(self.read(push(), x_github_delivery=b"x" * 200).guid, "x" * 200)
        for value in (b"", b"x" * 201, b"\x1b[2J", b"\xc3\xa9", b"a\tb"):
            self.assert_malformed(push(), x_github_delivery=value)

    def test_two_ids_or_two_events_are_malformed(self) -> None:
        for name in (b"x-github-event", b"x-github-delivery"):
            twice = having(payloads.headers(BODY), (name, b"push"))
            self.assertEqual(self.assertRaises(Refused, github.read, twice, BODY).status, 400)

    def test_a_form_says_the_same(self) -> None:
        """P31."""
        headers = {"content_type": b"application/x-www-form-urlencoded"}
        for body in (
            payloads.form(BODY),
            b"payload=" + quote(BODY).encode(),
            b"payload=" + quote_plus(BODY).lower().encode(),
        ):
            self.assertEqual(self.read(body, **headers).pushes, self.read(BODY).pushes, body)

    def test_a_form_is_one_payload_and_nothing_else(self) -> None:
        good = payloads.form(BODY)
        for body in (
            b"",
            b"payload",
            b"payload=",
            BODY,
            good + b"&x=1",
            b"x=1&" + good,
            good + good,
            good[1:],
            b"payload=%",
            good + b"\n",
        ):
            self.assert_malformed(body, content_type=b"application/x-www-form-urlencoded")

    @given(st.binary())
    def test_a_form_is_decoded_as_the_library_does(self, value: bytes) -> None:
        self.assertEqual(parts.form_payload(b"payload=" + quote_plus(value).encode()), value)
        self.assertEqual(parts.form_payload(b"payload=" + quote(value).encode()), value)

    def test_deep_nesting_is_malformed(self) -> None:
        """P38."""
        deep = BODY[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        self.assert_malformed(deep)
        self.assert_malformed(deep, x_github_event=b"issues")
        self.assert_malformed(b"[" * 100_000 + b"]" * 100_000)

    def test_odd_numbers_are_skipped_or_malformed_and_nan_is_malformed(self) -> None:
        """P39."""
        for number in (b"9" * 5_000, b"1e999"):
            self.assertEqual(self.read(BODY[:-1] + b',"x":' + number + b"}").pushes, self.read(BODY).pushes)
        for number in (b"NaN", b"Infinity", b"-Infinity"):
            self.assert_malformed(BODY[:-1] + b',"x":' + number + b"}")

    def test_invalid_utf8_in_the_ref_is_malformed(self) -> None:
        """P40."""
        self.assert_malformed(BODY.replace(b'"refs/heads/main"', b'"refs/heads/\xff"'))

    def test_of_two_refs_the_last_one_counts_for_everything(self) -> None:
        """P41: one parse feeds all, so that the filter and the journal cannot see different refs."""
        self.assertEqual(self.pushed(BODY[:-1] + b',"ref":"refs/heads/evil"}').ref, "refs/heads/evil")
        self.assertEqual(self.pushed(BODY[:-1] + b',"\\u0072ef":"refs/heads/evil"}').ref, "refs/heads/evil")

    def test_what_is_no_json_object_is_malformed(self) -> None:
        """P42."""
        for body in (
            b"",
            b"[]",
            b"null",
            b'"x"',
            b"42",
            BODY + b"x",
            b"{'ref':1}",
            b"\xef\xbb\xbf" + BODY,
            b"{",
            BODY * 2,
        ):
            self.assert_malformed(body)
        self.assert_malformed(BODY.decode().encode("utf-16"))

    def test_wrong_types_are_malformed(self) -> None:
        """P43."""
        refs: list[object] = [None, 1, ["refs/heads/main"], {}, True]
        repositories: list[object] = [None, [], "acme/web", {}, {"full_name": 5}, {"full_name": None}]
        deleteds: list[object] = ["false", 0, None, []]
        for payload in (
            *(push(ref) for ref in refs),
            *(push(repository=repository) for repository in repositories),
            *(push(deleted=deleted) for deleted in deleteds),
        ):
            self.assert_malformed(payload)
        self.assert_malformed(push(repository=payloads.repository(default_branch=["main"])))
        for field in ("ref", "after", "repository"):
            payload = push()
            del payload[field]
            self.assert_malformed(payload)

    def test_texts_that_no_process_and_no_database_could_take_are_malformed(self) -> None:
        """P44."""
        self.assert_malformed(BODY.replace(b"refs/heads/main", b"refs/heads/\\ud800"))
        for text in ("refs/heads/main\0x", "refs/heads/\x1b[2J", "refs/heads/a\nb", "refs/heads/\x7f", "", "r" * 1025):
            self.assert_malformed(push(text))
            self.assert_malformed(push(repository={"full_name": text}))

    def test_a_ref_may_be_as_strange_as_git_allows(self) -> None:
        for name in (
            "--upload-pack=x",
            "$(id)",
            "a;id",
            "<img>",
            "%2e%2e",
            "\N{PILE OF POO}",
            "\N{FAMILY}\N{ZERO WIDTH JOINER}",
        ):
            self.assertEqual(self.pushed(push(f"refs/heads/{name}")).ref, f"refs/heads/{name}")

    @given(
        st.binary()
        | st.recursive(
            st.none() | st.booleans() | st.floats(allow_nan=False) | st.text("refsaft0:/"),
            lambda of: (
                st.lists(of)
                | st.dictionaries(st.sampled_from(["ref", "after", "repository", "full_name", "deleted"]), of)
            ),
        ).map(encoded),
        st.lists(st.sampled_from([b"push", b"ping"]) | st.binary(), max_size=2),
        st.lists(st.binary(), max_size=2),
        st.sampled_from([b"application/json", b"application/x-www-form-urlencoded"]),
    )
    def test_reading_is_total(self, body: bytes, events: list[bytes], guids: list[bytes], type: bytes) -> None:
        """Whatever the bytes, a message comes out or a refusal with 400."""
        told = {b"x-github-event": events, b"x-github-delivery": guids, b"content-type": [type]}
        for sent in (body, b"payload=" + body):
            try:
                message = github.read(lambda name: told.get(name, []), sent)
            except Refused as refused:
                self.assertEqual(refused.status, 400)
            else:
                self.assertTrue(message.guid)

    def test_the_configuration_knows_the_forge_by_its_name(self) -> None:
        self.assertIs(FORGES["github"], github)
