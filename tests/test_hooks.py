"""A hook knows whom a push is for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_hook.hooks import Audience, Hook, Secret, Subscription, media_type
from twisted_hook.model import Message, Push, Refused

TIP = "a" * 40
WEB = Subscription("web", ("acme/web",), "refs/heads/main")


def hook(*subscriptions: Subscription, secrets: tuple[bytes, ...] = (b"a secret of the hook",)) -> Hook:
    return Hook(
        name="github",
        path="/hooks/github",
        forge="github",
        secrets=tuple(map(Secret, secrets)),
        subscriptions=subscriptions,
    )


def pushed(
    ref: str = "refs/heads/main",
    *,
    repository: str = "acme/web",
    after: str | None = TIP,
    default_branch: str | None = "main",
) -> Message:
    return Message("1", "push", (Push(repository, ref, after, default_branch),))


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

    def test_a_tag_that_matches_is_for_the_app_that_deploys_tags(self) -> None:
        """P50 stays true: a branch called like a tag is none, and to whom a tag is told no branch counts."""
        for pattern, ref, wanted in (
            ("v*", "refs/tags/v1.2", True),
            ("v*", "refs/tags/v", True),
            ("v*", "refs/tags/V1", False),
            ("v*", "refs/tags/web-v1", False),
            ("v*", "refs/heads/v1.2", False),
            ("v*", "refs/heads/main", False),
            ("v*", "v1.2", False),
            ("v*", "refs/tags/refs/tags/v1", False),
            ("*", "refs/heads/main", False),
            ("*", "refs/tags/main", True),
            ("main", "refs/heads/main", False),
            ("main", "refs/tags/main", True),
            ("v[0-9]*", "refs/tags/v1", True),
            ("v[0-9]*", "refs/tags/vx", False),
            ("v?", "refs/tags/v1", True),
            ("v?", "refs/tags/v12", False),
            ("web/v*", "refs/tags/web/v1", True),
            ("v1.0", "refs/tags/v1x0", False),
        ):
            audience = hook(Subscription("web", ("acme/web",), tag=pattern)).audience(pushed(ref))
            self.assertEqual(bool(audience.apps), wanted, (pattern, ref))

    def test_a_tag_stands_in_the_place_of_a_branch(self) -> None:
        """Of two apps of one repository, each hears of what it deploys."""
        both = hook(WEB, Subscription("stable", ("acme/web",), tag="v*"))
        self.assertEqual(both.audience(pushed()).apps, ("web",))
        self.assertEqual(both.audience(pushed("refs/tags/v1")).apps, ("stable",))
        self.assertEqual(both.audience(pushed("refs/tags/w1")), Audience(reason="no app deploys this tag"))
        either = Subscription("web", ("acme/web",), "refs/heads/main", tag="v*")
        self.assertEqual(hook(either).audience(pushed()).apps, ())

    def test_a_tag_that_was_deleted_is_ignored(self) -> None:
        tagged = hook(Subscription("web", ("acme/web",), tag="v*"))
        self.assertEqual(tagged.audience(pushed("refs/tags/v1", after=None)), Audience(reason="the ref was deleted"))

    def test_one_message_may_tell_of_several_refs(self) -> None:
        """P58: as Bitbucket's do, ``[dev update, main update, old deleted]`` is for the app of main, once."""
        dev, main, old = "refs/heads/dev", "refs/heads/main", "refs/heads/old"
        staging = Subscription("staging", ("acme/web",), dev)
        docs = Subscription("docs", ("acme/web",), main)
        tags = Subscription("stable", ("acme/web",), tag="v*")
        other, deleted = "no app deploys this branch", "the ref was deleted"
        for hooked, pushes, expected in (
            (hook(WEB), [(dev, TIP), (main, TIP), (old, None)], Audience(("web",))),
            (hook(WEB), [(old, None), (dev, TIP), (main, TIP)], Audience(("web",))),
            (hook(WEB), [(main, TIP), (main, "b" * 40)], Audience(("web",))),
            (hook(WEB), [(main, None), (main, TIP)], Audience(("web",))),
            (hook(WEB, docs, staging), [(dev, TIP), (main, TIP)], Audience(("staging", "web", "docs"))),
            (hook(WEB, docs, staging), [(main, TIP), (dev, None)], Audience(("web", "docs"))),
            (hook(WEB, tags), [(main, TIP), ("refs/tags/v1", TIP)], Audience(("web", "stable"))),
            (hook(WEB), [(main, None), (old, None)], Audience(reason=deleted)),
            (hook(WEB), [(dev, TIP), (old, TIP)], Audience(reason=other)),
            (hook(WEB), [(old, None), (dev, TIP), (main, None)], Audience(reason=f"{deleted}; {other}")),
        ):
            told = tuple(Push("acme/web", ref, after, "main") for ref, after in pushes)
            self.assertEqual(hooked.audience(Message("1", "repo:push", told)), expected, pushes)

    def test_one_repository_of_none_of_the_apps_is_enough_to_refuse_a_message(self) -> None:
        """P17. Whoever knows the secret of a hook speaks for its repositories alone."""
        ours, other = pushed().pushes, pushed(repository="acme/api", after=None).pushes
        for pushes in (ours + other, other + ours):
            refused = self.assertRaises(Refused, hook(WEB).audience, Message("1", "repo:push", pushes))
            self.assertEqual(refused.status, 403)

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
        self.assertEqual(hook(WEB).audience(Message("1", "ping", reason="ping")), Audience(reason="ping"))

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
            audience = hook(WEB).audience(Message("1", "push", (Push(repository, ref, after, default_branch),)))
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
