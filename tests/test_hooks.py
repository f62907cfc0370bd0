"""A hook knows whom a push is for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_hook.hooks import Audience, Hook, Subscription, media_type
from twisted_hook.model import NotAPush, Push, Refused

TIP = "a" * 40
WEB = Subscription("web", ("acme/web",), "refs/heads/main")


def hook(*subscriptions: Subscription, secrets: tuple[bytes, ...] = (b"a secret of the hook",)) -> Hook:
    return Hook(name="github", path="/hooks/github", forge="github", secrets=secrets, subscriptions=subscriptions)


def pushed(
    ref: str = "refs/heads/main",
    *,
    repository: str = "acme/web",
    after: str | None = TIP,
    default_branch: str | None = "main",
) -> Push:
    return Push(repository, ref, after, default_branch)


class AudienceTests(SynchronousTestCase):
    """Whom an event is for."""

    def test_a_push_of_the_configured_ref_is_for_its_app(self) -> None:
        self.assertEqual(hook(WEB).audience(pushed()), Audience(("web",)))

    def test_one_push_is_for_every_app_of_that_repository_and_ref(self) -> None:
        docs = Subscription("docs", ("acme/web",), "refs/heads/main")
        staging = Subscription("staging", ("acme/web",), "refs/heads/dev")
        api = Subscription("api", ("acme/api",), "refs/heads/main")
        self.assertEqual(hook(WEB, staging, api, docs).audience(pushed()), Audience(("web", "docs")))

    def test_another_branch_is_ignored(self) -> None:
        """P48."""
        self.assertEqual(hook(WEB).audience(pushed("refs/heads/dev")), Audience(reason="no app deploys this branch"))

    def test_a_tag_is_ignored_though_it_is_called_like_the_branch(self) -> None:
        """P50."""
        self.assertEqual(hook(WEB).audience(pushed("refs/tags/main")), Audience(reason="no app deploys this tag"))

    def test_the_ref_is_compared_exactly(self) -> None:
        for ref in (
            "refs/heads/Main",
            "refs/heads/main ",
            " refs/heads/main",
            "main",
            "refs/heads/main/x",
            "refs/heads/ma\N{LATIN SMALL LETTER DOTLESS I}n",
        ):
            self.assertEqual(hook(WEB).audience(pushed(ref)).apps, (), ref)

    def test_a_deletion_is_ignored(self) -> None:
        """P49."""
        self.assertEqual(hook(WEB).audience(pushed(after=None)), Audience(reason="the ref was deleted"))

    def test_what_is_no_push_is_ignored_for_its_own_reason(self) -> None:
        """P48."""
        self.assertEqual(hook(WEB).audience(NotAPush("ping")), Audience(reason="ping"))

    def test_a_repository_of_no_app_is_refused_whatever_the_push_is(self) -> None:
        """P17."""
        for push in (
            pushed(repository="acme/api"),
            pushed(repository="acme/api", after=None),
            pushed("refs/heads/dev", repository="acme/api"),
        ):
            refused = self.assertRaises(Refused, hook(WEB).audience, push)
            self.assertEqual(refused.status, 403)

    def test_the_case_of_a_name_does_not_count(self) -> None:
        self.assertEqual(hook(WEB).audience(pushed(repository="ACME/Web")).apps, ("web",))
        mixed = Subscription("web", ("Acme/WEB",), "refs/heads/main")
        self.assertEqual(hook(mixed).audience(pushed(repository="acme/web")).apps, ("web",))

    def test_no_other_letters_are_folded(self) -> None:
        """A Kelvin sign is no k, and a long s is no s, though ``str.lower`` and ``str.casefold`` say so."""
        kiosk = Subscription("kiosk", ("acme/kiosk",), "refs/heads/main")
        for name in ("acme/\N{KELVIN SIGN}iosk", "acme/kio\N{LATIN SMALL LETTER LONG S}k"):
            self.assertRaises(Refused, hook(kiosk).audience, pushed(repository=name))

    def test_without_names_any_repository_is_served(self) -> None:
        anything = Subscription("web", (), "refs/heads/main")
        self.assertEqual(hook(anything).audience(pushed(repository="who/knows")).apps, ("web",))

    def test_without_a_ref_the_default_branch_counts(self) -> None:
        default = Subscription("web", ("acme/web",), None)
        self.assertEqual(hook(default).audience(pushed("refs/heads/trunk", default_branch="trunk")).apps, ("web",))
        self.assertEqual(hook(default).audience(pushed("refs/heads/main", default_branch="trunk")).apps, ())

    def test_without_a_ref_or_a_default_branch_any_branch_counts_but_no_tag(self) -> None:
        default = Subscription("web", ("acme/web",), None)
        self.assertEqual(hook(default).audience(pushed("refs/heads/x", default_branch=None)).apps, ("web",))
        self.assertEqual(hook(default).audience(pushed("refs/tags/x", default_branch=None)).apps, ())

    @given(st.text(), st.text(), st.none() | st.text(), st.none() | st.text())
    def test_every_push_is_for_somebody_or_ignored_or_refused(
        self, repository: str, ref: str, after: str | None, default_branch: str | None
    ) -> None:
        try:
            audience = hook(WEB).audience(Push(repository, ref, after, default_branch))
        except Refused as refused:
            self.assertEqual(refused.status, 403)
        else:
            self.assertNotEqual(bool(audience.apps), bool(audience.reason))


class HookTests(SynchronousTestCase):
    """A hook cannot be without a secret, nor show it."""

    def test_a_hook_without_a_secret_cannot_be(self) -> None:
        """P09."""
        for secrets in ((), (b"",), (b"a good one, here", b"")):
            error = self.assertRaises(ValueError, hook, WEB, secrets=secrets)
            self.assertIn("github", str(error))

    def test_the_secret_is_in_no_repr(self) -> None:
        self.assertNotIn("a secret of the hook", repr(hook(WEB)))


class MediaTypeTests(SynchronousTestCase):
    """The type of a body."""

    def test_parameters_and_case_do_not_count(self) -> None:
        for value in (b"application/json", b"Application/JSON; charset=utf-8", b" application/json ;charset=utf-8"):
            self.assertEqual(media_type(lambda _, value=value: [value]), b"application/json")  # type: ignore[misc]

    def test_none_and_two_are_no_type(self) -> None:
        self.assertEqual(media_type(lambda _: []), b"")
        self.assertEqual(media_type(lambda _: [b"application/json", b"text/plain"]), b"")
