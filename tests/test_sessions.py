"""Sessions are signed and end, and foreign pages are told from our own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_hook.sessions import LIFETIME, RENEWAL, Session, Sessions, is_foreign, is_over_tls, is_same

NOW = 1_800_000_000.5
TOKEN = "a token of the API"
OURS = Sessions(TOKEN)
COOKIE = OURS.begin(bytes(16), NOW)


def read(cookie: str, now: float = NOW) -> Session:
    session = OURS.read(cookie, now)
    assert session is not None
    return session


class SessionTests(SynchronousTestCase):
    def test_a_session_is_read_from_its_cookie(self) -> None:
        self.assertEqual(read(COOKIE), read(Sessions(TOKEN).begin(bytes(16), NOW)))
        self.assertNotEqual(read(COOKIE).csrf, read(OURS.begin(bytes(15) + b"x", NOW)).csrf)

    def test_it_ends_unless_it_is_renewed_and_keeps_its_csrf_token(self) -> None:
        session = read(COOKIE)
        self.assertIsNone(OURS.read(COOKIE, NOW + LIFETIME))
        self.assertFalse(session.is_to_be_renewed(NOW + RENEWAL - 1))
        self.assertTrue(session.is_to_be_renewed(NOW + RENEWAL))
        renewed = OURS.renewed(session, NOW + RENEWAL)
        self.assertEqual(read(renewed, NOW + LIFETIME).csrf, session.csrf)

    def test_one_from_the_future_is_none(self) -> None:
        self.assertIsNone(OURS.read(OURS.begin(bytes(16), NOW + 2 * RENEWAL), NOW))

    def test_another_token_ends_every_session(self) -> None:
        other = Sessions("another token")
        self.assertIsNone(other.read(COOKIE, NOW))
        self.assertNotEqual(other.name, OURS.name)

    @given(st.integers(0, len(COOKIE) - 1), st.sampled_from("0123456789abcdef-ß"))
    def test_a_cookie_that_was_changed_is_none(self, place: int, letter: str) -> None:
        changed = COOKIE[:place] + letter + COOKIE[place + 1 :]
        self.assertEqual(OURS.read(changed, NOW) is not None, changed == COOKIE)

    @given(st.text(st.characters(), max_size=200))
    def test_no_text_makes_it_raise(self, text: str) -> None:
        self.assertIsNone(OURS.read(text, NOW))
        self.assertEqual(is_same(text, TOKEN), text == TOKEN)


class ForeignPageTests(SynchronousTestCase):
    def test_pages_are_told_apart_by_what_the_browser_says(self) -> None:
        for origin, site, foreign in (
            (None, None, False),
            (None, "same-origin", False),
            (None, "none", False),
            (None, "same-site", True),
            (None, "cross-site", True),
            ("http://ours:8001", None, False),
            ("https://OURS:8001", None, False),
            ("http://ours", None, True),
            ("http://ours:8001.evil.example", None, True),
            ("https://evil.example", None, True),
            ("null", None, True),
            ("", None, True),
            ("http://[", None, True),
            ("http://127.0.0.1:8001", "same-origin", False),
            ("http://ours:8001", "cross-site", True),
        ):
            self.assertEqual(is_foreign(host="ours:8001", origin=origin, fetch_site=site), foreign, (origin, site))

    def test_a_browser_tells_that_it_asks_by_https_but_not_on_its_own_machine(self) -> None:
        """T41: a cookie for TLS alone would lock out who came by http."""
        for host, site, secure in (
            ("deploy.example.com", "none", True),
            ("deploy.example.com:8443", "same-origin", True),
            ("192.0.2.7", "cross-site", True),
            ("[2001:db8::1]:443", "none", True),
            ("deploy.example.com", None, False),
            ("localhost:8001", "none", False),
            ("LOCALHOST.", "none", False),
            ("blog.localhost:8001", "none", False),
            ("127.0.0.1:8001", "none", False),
            ("127.9.9.9", "none", False),
            ("[::1]:8001", "none", False),
            ("[::ffff:127.0.0.1]:8001", "none", False),
            ("0.0.0.0:8001", "none", False),
            ("", "none", False),
        ):
            self.assertEqual(is_over_tls(host=host, fetch_site=site), secure, (host, site))
