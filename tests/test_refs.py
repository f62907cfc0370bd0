"""What git says of a remote's refs is read exactly, and the newest of its tags is found by git's own order."""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_hook.refs import SORTING, asked_for, followed, listing, read_refs

A, B, C = ("a" * 40, "b" * 40, "c" * 64)


def said(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


class ReadingTests(SynchronousTestCase):
    def test_a_branch_is_given_by_its_full_name(self) -> None:
        answer = said(f"{A}\trefs/heads/main", f"{C}\trefs/heads/feature/x")
        self.assertEqual(read_refs(answer, ["refs/heads/main"]), {"refs/heads/main": A})
        self.assertEqual(read_refs(answer, ["refs/heads/feature/x"]), {"refs/heads/feature/x": C})

    def test_a_ref_that_only_ends_like_the_pattern_is_another(self) -> None:
        """git compares a pattern with the end of a name (git-ls-remote)."""
        answer = said(
            f"{A}\trefs/heads/refs/heads/main",
            f"{A}\trefs/remotes/origin/refs/heads/main",
            f"{B}\trefs/tags/refs/tags/v1",
            "ref: refs/remotes/origin/main\trefs/remotes/origin/HEAD",
            f"{A}\trefs/remotes/origin/HEAD",
            f"{A}\trefs/heads/HEAD",
        )
        self.assertEqual(read_refs(answer, ["HEAD", "refs/heads/main", "refs/tags/v*"]), {})

    def test_head_is_the_name_of_its_branch(self) -> None:
        answer = said("ref: refs/heads/trunk\tHEAD", f"{A}\tHEAD", f"{B}\trefs/heads/HEAD")
        self.assertEqual(read_refs(answer, ["HEAD"]), {"HEAD": "refs/heads/trunk", "refs/heads/trunk": A})

    def test_a_head_that_is_on_no_branch_is_none(self) -> None:
        """Detached, unborn, on something else, or of an origin without anything."""
        for lines in ([f"{A}\tHEAD"], ["ref: refs/tags/v1\tHEAD", f"{A}\tHEAD"], []):
            self.assertEqual(read_refs(said(*lines), ["HEAD"]), {})
        unborn = read_refs(said("ref: refs/heads/none\tHEAD"), ["HEAD"])
        self.assertNotIn("refs/heads/none", unborn)

    def test_an_annotated_tag_is_what_it_is_of(self) -> None:
        peeled = {"refs/tags/v1": B, "refs/tags/v2": A}
        lines = [f"{A}\trefs/tags/v1", f"{B}\trefs/tags/v1^{{}}", f"{A}\trefs/tags/v2"]
        for order in itertools.permutations(lines):
            self.assertEqual(read_refs(said(*order), ["refs/tags/v*"]), peeled)

    def test_names_are_kept_to_the_letter(self) -> None:
        for name in ("refs/heads/--upload-pack=x", "refs/heads/naïve", "refs/heads/#1", "refs/heads/a'b\"c$(d)"):
            self.assertEqual(read_refs(said(f"{A}\t{name}"), [name]), {name: A})

    @given(st.text(), st.lists(st.sampled_from(["HEAD", "refs/heads/main", "refs/tags/v*"])))
    def test_whatever_comes_is_read(self, answer: str, patterns: list[str]) -> None:
        for ref, revision in read_refs(answer, patterns).items():
            self.assertTrue(ref == "HEAD" or len(revision) in (40, 64))

    def test_many_refs_of_a_forge_are_not_even_asked_for(self) -> None:
        self.assertIn("--heads", listing(["refs/heads/main"]))
        self.assertNotIn("--tags", listing(["refs/heads/main"]))
        self.assertNotIn("--heads", listing(["refs/tags/v*"]))
        self.assertEqual({"--heads", "--tags"} - set(listing(["refs/tags/v*", "refs/heads/main"])), set())
        self.assertNotIn("--heads", listing(["HEAD", "refs/heads/main"]))  # with it git would leave HEAD out


class FollowingTests(SynchronousTestCase):
    def test_a_branch_is_itself_while_it_is_there(self) -> None:
        self.assertEqual(followed({"refs/heads/main": A}, "refs/heads/main"), "refs/heads/main")
        self.assertIsNone(followed({"refs/heads/other": A}, "refs/heads/main"))

    def test_the_branch_of_head_is_followed(self) -> None:
        self.assertEqual(followed({"HEAD": "refs/heads/x", "refs/heads/x": A}, "HEAD"), "refs/heads/x")
        self.assertIsNone(followed({"refs/heads/x": A}, "HEAD"))
        self.assertIsNone(followed({"HEAD": "refs/heads/unborn"}, "HEAD"))

    def test_the_newest_tag_of_its_own_pattern_is_followed(self) -> None:
        """Several apps of one remote ask at once."""
        advertised = dict.fromkeys(("refs/tags/blog/1", "refs/tags/blog/2", "refs/tags/v1", "refs/tags/w1"), A)
        advertised |= {"refs/heads/v9": B}
        for pattern, newest in (("blog/*", "blog/2"), ("v*", "v1"), ("?1", "w1"), ("[!w]*", "v1"), ("v1", "v1")):
            self.assertEqual(followed(advertised, f"refs/tags/{pattern}"), f"refs/tags/{newest}")
        for pattern in ("x*", "V*", "v", "v?1"):
            self.assertIsNone(followed(advertised, f"refs/tags/{pattern}"))


IN_ORDER = (
    *("v0.1", "v0.9", "v0.10"),
    *("v1.0.dev1", "v1.0a1", "v1.0a2", "v1.0a10", "v1.0b1", "v1.0rc1", "v1.0rc2", "v1.0rc10", "v1.0"),
    *("v1.0-build7", "v1.0-patch1"),
    *("v1.1-SNAPSHOT", "v1.1-dev", "v1.1-alpha", "v1.1-alpha.2", "v1.1-beta", "v1.1-pre1", "v1.1-rc.1", "v1.1-RC2"),
    *("v1.1", "v1.1.1", "v1.9", "v1.10-rc1", "v1.10", "v1.10.1", "v2.0_rc1", "v2.0", "v10.0"),
)
"""Versions as people name them, the oldest first."""


class VersionTests(SynchronousTestCase):
    """With real git."""

    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.origin = Path(directory.name) / "origin"
        self.git("init", "--quiet", str(self.origin))
        self.git("-C", str(self.origin), "commit", "--quiet", "--allow-empty", "--message=x")

    def git(self, *words: str, env: dict[str, str] | None = None) -> str:
        who = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        nothing_else = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "PATH": os.environ["PATH"]}
        environment = {**who, **nothing_else, **(env or {})}
        return subprocess.run(["git", *words], env=environment, check=True, capture_output=True, text=True).stdout

    def tag(self, name: str, *, annotated: bool = False) -> None:
        options = ("--annotate", "--message=x") if annotated else ()
        self.git("-C", str(self.origin), "tag", *options, name)

    def ask(self, pattern: str) -> list[str]:
        patterns = (f"refs/tags/{pattern}",)
        words = ("ls-remote", *listing(patterns), str(self.origin), *asked_for(patterns))
        return list(read_refs(self.git(*words, env=dict(SORTING)), patterns))

    def test_versions_are_in_order_whatever_kind_of_tag_they_have(self) -> None:
        for number, name in enumerate(sorted(IN_ORDER, key=lambda name: name[::-1])):
            self.tag(name, annotated=bool(number % 2))
        self.assertEqual(self.ask("v*"), [f"refs/tags/{name}" for name in IN_ORDER])

    def test_tags_below_one_another_are_in_order(self) -> None:
        names = ("release/1.9", "release/1.10-rc1", "release/1.10")
        for name in reversed(names):
            self.tag(name, annotated=True)
        self.assertEqual(self.ask("release/*"), [f"refs/tags/{name}" for name in names])
        self.assertEqual(len(self.ask("*")), 3)

    def test_what_an_annotated_tag_is_of_is_told_also_for_its_bare_name(self) -> None:
        self.tag("production", annotated=True)
        patterns = ("refs/tags/production",)
        words = ("ls-remote", *listing(patterns), str(self.origin), *asked_for(patterns))
        head = self.git("-C", str(self.origin), "rev-parse", "HEAD").strip()
        self.assertEqual(read_refs(self.git(*words), patterns), {"refs/tags/production": head})
