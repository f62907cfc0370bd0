"""What reads text or bytes from outside is total: it gives a value, or refuses in its own word, and is never slow.

Beside the properties that stand with the tests of each reader: here are those of all forges, and those that had none.
"""

from __future__ import annotations

import contextlib  # as a name of a module, "suppress" would be a word to trial
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import Mock
from urllib.parse import unquote_to_bytes

import msgspec
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.payloads import SECRET, TIP
from tests.seeds import HOOKS, NOW, corpus, filled
from tests.test_config import EVERYTHING, SMALLEST
from twisted_hook import addresses, api, configvalues, keeper, serverrecords
from twisted_hook.config import Config, ConfigError, from_environment, parse
from twisted_hook.forges import FORGES, parts
from twisted_hook.generation import ServerProcess
from twisted_hook.hooks import Hook, Subscription
from twisted_hook.journal.rows import key_of, public
from twisted_hook.model import Message, Push, Refused
from twisted_hook.outward.redeliveries import leads_to
from twisted_hook.refs import HEADS, TAGS, asked_for, listing, read_refs
from twisted_hook.survey import read_env_file

GENUINE = {
    path: (dict(lines), body)
    for seed in corpus()
    if seed.answers == (202,) and len(seed.templates) == 1 and "chunk" not in seed.name
    for head, _, body in [filled(seed.templates, "1", NOW).partition(b"\r\n\r\n")]
    for path, *rest in [head.split(b"\r\n")]
    for lines in [[(name.lower(), value) for name, _, value in (line.partition(b": ") for line in rest)]]
}
"""One genuine message for each path."""
EVENTS = (b"push", b"repo:push", b"repo:refs_changed", b"ping", b"diagnostics:ping", b"issues")
TEXTS = st.text(max_size=20) | st.sampled_from(["refs/heads/main", "acme/web", TIP, "0" * 40, "branch", "push"])
KEYS = (
    *("ref", "after", "repository", "full_name", "default_branch", "deleted", "push", "changes", "new", "old", "type"),
    *("name", "target", "hash", "project", "key", "slug", "refId", "toHash", "object_kind", "event_name"),
    "path_with_namespace",
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda of: st.lists(of, max_size=3) | st.dictionaries(st.sampled_from(KEYS), of, max_size=6),
    max_leaves=20,
)


def hook_of(line: bytes) -> Hook:
    """The hook that a request line is for."""
    path = line.split(b" ")[1].partition(b"?")[0].decode()
    return next(hook for hook in HOOKS if hook.path == path)


def asked(hook: Hook, headers: Mapping[bytes, Sequence[bytes]], body: bytes) -> Message:
    """What a message says, asked as the door asks."""
    forge = FORGES[hook.forge]

    def values(name: bytes) -> Sequence[bytes]:
        return headers.get(name, ())

    forge.screen(values, allow_sha1=hook.allow_sha1)
    forge.verify(values, body, secrets=hook.keys, allow_sha1=hook.allow_sha1, now=NOW)
    return forge.read(values, body)


class ForgeTests(SynchronousTestCase):
    """P01 to P45: a message, or ``Refused``, and never anything else."""

    def test_each_forge_is_here(self) -> None:
        self.assertEqual({hook_of(line).forge for line in GENUINE}, FORGES.keys())

    def test_what_is_genuine_is_read(self) -> None:
        for line, (headers, body) in GENUINE.items():
            self.assertIsInstance(
                asked(hook_of(line), {name: [value] for name, value in headers.items()}, body), Message
            )

    @settings(deadline=None)
    @given(
        st.sampled_from(sorted(GENUINE)),
        st.dictionaries(
            st.sampled_from(sorted({name for headers, _ in GENUINE.values() for name in headers})),
            st.lists(st.binary(max_size=20) | st.sampled_from([*EVENTS, SECRET, b"1700000000"]), max_size=2),
            max_size=3,
        ),
        st.none() | st.binary(),
    )
    def test_whatever_comes_in_the_place_of_a_genuine_message_is_read_or_refused(
        self, line: bytes, replaced: dict[bytes, list[bytes]], body: bytes | None
    ) -> None:
        headers, genuine = GENUINE[line]
        try:
            asked(hook_of(line), {name: [value] for name, value in headers.items()} | replaced, body or genuine)
        except Refused as refused:
            self.assertIn(refused.status, (400, 401))

    @settings(deadline=None)
    @given(st.sampled_from(sorted(FORGES)), JSON.map(msgspec.json.encode) | st.binary(), st.sampled_from(EVENTS))
    def test_whatever_is_signed_is_a_message_or_malformed(self, name: str, body: bytes, event: bytes) -> None:
        headers = {b"x-event-key": event, **{b"x-%b-event" % kin: event for kin in (b"github", b"gitea", b"forgejo")}}
        try:
            message = FORGES[name].read(lambda each: [headers[each]] if each in headers else [], body)
        except Refused as refused:
            self.assertEqual(refused.status, 400)
            return
        self.assertNotEqual(bool(message.pushes), bool(message.reason))
        for push in message.pushes:
            self.assertTrue(push.after is None or re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", push.after))
            self.assertNotRegex(push.ref + push.repository, "[\x00-\x1f\x7f]")
            (push.ref + push.repository).encode()

    @settings(deadline=None)
    @given(
        st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30),
        st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30),
        st.sampled_from([TIP, "a" * 64]),
    )
    def test_names_come_through_to_the_letter(self, repository: str, branch: str, after: str) -> None:
        """No case is folded, nothing is trimmed, and no letter is composed in another way."""
        ref, headers = HEADS + branch, {b"x-event-key": b"repo:push"}
        headers |= {b"x-%b-event" % kin: b"push" for kin in (b"github", b"gitea", b"forgejo")}
        github = {"ref": ref, "after": after, "repository": {"full_name": repository}}
        project = {"path_with_namespace": repository}
        new = {"type": "branch", "name": branch, "target": {"hash": after}}
        payloads: dict[str, object] = {
            **dict.fromkeys(("github", "gitea", "forgejo", "standard"), github),
            "gitlab": {"object_kind": "push", "ref": ref, "after": after, "project": project},
            "bitbucket": {"repository": {"full_name": repository}, "push": {"changes": [{"new": new}]}},
        }
        for name, payload in payloads.items():
            body = msgspec.json.encode(payload)
            message = FORGES[name].read(lambda each: [headers[each]] if each in headers else [], body)
            self.assertEqual(message.pushes, (Push(repository, ref, after),), name)

    def test_no_signed_body_takes_long(self) -> None:
        """P32 to P39, 4 MB of each: what is slow in proportion to more than its length would take minutes."""
        bodies = {
            "deep": b"[" * 4_000_000,
            "deep objects": b'{"ref":' * 600_000,
            "many keys": b'{"a":1,' + b'"a":1,' * 600_000 + b'"b":2}',
            "a long number": b'{"ref":' + b"9" * 4_000_000 + b"}",
            "a long ref": b'{"ref":"' + b"\\u0061" * 700_000 + b'"}',
            "many changes": b'{"push":{"changes":[' + b"{}," * 1_000_000 + b"{}]}}",
        }
        headers = {b"x-event-key": b"repo:push", b"x-github-event": b"push", b"x-gitea-event": b"push"}
        for body in bodies.values():
            for name in FORGES:
                started = time.process_time()
                with contextlib.suppress(Refused):
                    FORGES[name].read(lambda each: [headers[each]] if each in headers else [], body)
                self.assertLess(time.process_time() - started, 5)

    @settings(deadline=None)
    @given(
        st.lists(st.sampled_from([b"%7B", b"%7d", b"+", b"_", b".", b" ", b"\t", b"%20", b"a", b"\xff", b"%0A", b"~"]))
    )
    def test_a_form_is_read_as_the_library_reads_it(self, pieces: list[bytes]) -> None:
        value = b"".join(pieces)
        self.assertEqual(parts.form_payload(b"payload=" + value), unquote_to_bytes(value.replace(b"+", b" ")))

    @settings(deadline=None)
    @given(st.binary())
    def test_any_form_is_read_or_refused(self, body: bytes) -> None:
        for whole in (body, b"payload=" + body):
            try:
                parts.form_payload(whole)
            except ValueError:
                continue


class ConfigurationTests(SynchronousTestCase):
    """What people write by hand is a configuration, or a ``ConfigError`` that says what is wrong."""

    def read(self, text: str) -> None:
        try:
            self.assertIsInstance(parse(text, Path("/etc/hookdeploy")), Config)
        except ConfigError as error:
            self.assertTrue(str(error))

    @settings(deadline=None)
    @given(st.text())
    def test_any_text(self, text: str) -> None:
        self.read(text)

    @settings(deadline=None)
    @given(st.sampled_from([SMALLEST, EVERYTHING]), st.data())
    def test_a_good_file_with_something_changed(self, text: str, data: st.DataObject) -> None:
        lines = text.splitlines()
        place = data.draw(st.integers(0, len(lines) - 1))
        key, equals, _ = lines[place].partition(" = ")
        value = data.draw(
            st.sampled_from(
                ["", "0", "-1", '""', "[]", "{}", "nan", "true", '["", 1]', "1979-05-27", '"\\u0000"', "[[]]"]
            )
            | st.text(max_size=12).map(lambda text: f"'{text}'")
        )
        self.read("\n".join([*lines[:place], key + equals + value, *lines[place + 1 :]]))

    @settings(deadline=None)
    @given(
        st.dictionaries(
            st.sampled_from(
                [
                    *("APP_PATH", "APP_REPO", "APP_NAME", "APP_BRANCH", "APP_WSGI", "APP_BIND", "APP_POLL"),
                    *("HOOK_SECRET", "HOOK_PATH", "HOOK_LISTEN", "HOOK_FORGE", "GITHUB_SECRET", "HOOKDEPLOY_STATE"),
                ]
            ),
            st.text(st.characters(exclude_characters="\0"), max_size=12),
        )
    )
    def test_any_environment(self, environ: dict[str, str]) -> None:
        try:
            self.assertIsInstance(from_environment(environ, Path("/srv")), Config)
        except ConfigError as error:
            self.assertTrue(str(error))

    @settings(deadline=None)
    @given(st.text() | st.text("tcpsunix6:=[]./0123456789\\*"))
    def test_any_address(self, value: str) -> None:
        for read in (addresses.endpoint, addresses.bind):
            try:
                found = read(value, Path("/srv"))
            except ValueError:
                continue
            addresses.endpoint_address(found)
            addresses.bound_address(found)
            addresses.is_open_and_plain(found)

    @settings(deadline=None)
    @given(st.text() | st.text("aB/.*?[]!:@-{}\\ \n\0"))
    def test_any_value(self, value: str) -> None:
        readers: tuple[Callable[[str], object], ...] = (
            *(configvalues.branch, configvalues.tag, configvalues.repository_name, configvalues.hook_path),
            *(configvalues.network, configvalues.public_url, configvalues.wsgi, configvalues.duration),
            *(configvalues.declared_variable, configvalues.gunicorn_argument, configvalues.inner_path),
            lambda text: configvalues.argv(text, shell=False),
            lambda text: configvalues.repository(text, Path("/srv")),
            configvalues.server_command,
        )
        for read in readers:
            try:
                read(value)
            except ValueError as error:
                self.assertTrue(str(error))

    @given(st.binary() | st.text("aB_= \"'\\#$\n\r\t\0x{}").map(str.encode))
    @settings(max_examples=50, deadline=None)
    def test_any_env_file(self, content: bytes) -> None:
        with TemporaryDirectory() as directory:
            file = Path(directory) / "env"
            file.write_bytes(content)
            try:
                variables = read_env_file(file)
            except ConfigError:
                return
            for name, value in variables.items():
                self.assertNotIn("\0", name + value)
                self.assertNotIn("=", name)

    @settings(deadline=None)
    @given(st.text() | st.text("htps:/[]@.0123456789?#"), st.none() | st.just("https://deploy.example.com"))
    def test_any_address_of_a_webhook(self, url: str, ours: str | None) -> None:
        self.assertIsInstance(leads_to(url, "/hooks/github", ours), bool)


class MessageTests(SynchronousTestCase):
    """What comes from the API's clients, from workers, from the keeper's, and out of files that may be damaged."""

    @settings(deadline=None)
    @given(st.binary() | JSON.map(msgspec.json.encode))
    def test_any_wish(self, body: bytes) -> None:
        for kind in (api.DeployWish, api.RollbackWish, api.PlainWish):
            try:
                api._wish(Mock(body=body), kind)
            except Refused as refused:
                self.assertEqual(refused.status, 400)

    @settings(deadline=None)
    @given(st.lists(st.binary() | st.integers().map(lambda number: b"%d" % number), max_size=2))
    def test_any_limit(self, values: list[bytes]) -> None:
        try:
            self.assertIn(api._limit(Mock(args={b"limit": values})), range(1, api.LONGEST_LIST + 1))
        except Refused as refused:
            self.assertEqual(refused.status, 400)

    @settings(deadline=None)
    @given(st.binary() | JSON.map(msgspec.json.encode))
    @example(b"[" * 60_000)
    @example(b'{"event": "starting", "workers": 1e400}')
    def test_any_report_of_a_worker(self, line: bytes) -> None:
        ServerProcess._read(Mock(pid=1, _retired=set()), line)

    @settings(deadline=None)
    @given(
        st.binary(min_size=1)
        | st.fixed_dictionaries(
            {},
            optional={"do": st.sampled_from(["hold", "keep only", "take"]) | JSON, "names": st.lists(TEXTS) | JSON},
        ).map(msgspec.json.encode)
    )
    @example(b"[" * 60_000)
    def test_whatever_a_client_asks_the_keeper_lives_on(self, request: bytes) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            theirs.send(request)
            theirs.shutdown(socket.SHUT_WR)
            held = {"door": os.dup(0)}
            try:
                self.assertTrue(keeper.serve(ours, held) or not held)
            finally:
                keeper.let_go(held, list(held))

    @given(st.binary() | JSON.map(msgspec.json.encode))
    @settings(max_examples=50, deadline=None)
    def test_any_record_of_a_server(self, content: bytes) -> None:
        with TemporaryDirectory() as directory:
            (Path(directory) / "1.json").write_bytes(content)
            self.assertIsNone(serverrecords._read(Path(directory) / "1.json"))

    @settings(deadline=None)
    @given(st.text() | st.text("0123456789abcdef", max_size=18))
    def test_any_id_of_a_row(self, id: str) -> None:
        key = key_of(id)
        self.assertTrue(key == -1 or public(key) == id or id.startswith("0"))
        self.assertLess(key, 2**63)


# --- the refs, and what git makes of them

LETTERS = st.sampled_from(
    ["a", "B", "b", "v", "1", ".", "-", "/", "@", "{", "*", "?", "[", "]", "!", "~", "^", ":", "\\"]
)
ODD = st.sampled_from([" ", "\x01", "\x7f", "\n", ".lock", "..", "@{", "é", "e\u0301", "\u212a", "\u200b", "ﬁ", "İ"])
NAMES = st.lists(LETTERS | LETTERS | ODD, max_size=8).map("".join)
BRANCHES = st.lists(
    st.sampled_from(["a", "B", "b", "1", "a.b", "-b", "/b", "@b", "{", "]", "!", "é", "e\u0301", "\u212a", "ﬁ", "İ"]),
    max_size=8,
).map("".join)
"""Most of them are names that may be configured."""
PATTERNS = st.lists(
    st.sampled_from(["a", "b", "v", "1", ".", "-", "/", "*", "?", "[ab]", "[!a]", "[a-v]", "é"]), max_size=6
)
TAG_NAMES = st.lists(st.sampled_from("abv1.-/é"), min_size=1, max_size=6).map("".join)


class RefTests(SynchronousTestCase):
    """How a ref that was delivered is compared with a configured one: exactly, and as git does it."""

    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.repository = Path(directory.name)
        self.git("init", "--quiet", "--bare")
        tree = self.git("hash-object", "-t", "tree", "-w", "--stdin").strip()
        self.commit = self.git("commit-tree", tree, "-m", "x").strip()

    def git(self, *words: str, input: str = "") -> str:
        who = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        environ = {**who, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "PATH": os.environ["PATH"]}
        done = subprocess.run(
            ["git", *words], cwd=self.repository, env=environ, input=input.encode(), capture_output=True, check=True
        )
        return done.stdout.decode()

    def is_valid(self, ref: str) -> bool:
        """What ``git check-ref-format`` says."""
        return subprocess.run(["git", "check-ref-format", ref], check=False).returncode == 0

    @given(NAMES)
    @settings(max_examples=150, deadline=None)
    def test_a_branch_that_is_configured_is_one_that_git_has(self, name: str) -> None:
        valid = self.is_valid(HEADS + name)
        try:
            branch = configvalues.branch(name)
        except ValueError:
            # Beyond git: what stands for something else, or looks like an option, is not taken for a branch.
            self.assertTrue(
                not valid or name in {"@", "HEAD"} or name.startswith(("-", "refs/")) or not name.isprintable()
            )
            return
        self.assertTrue(valid)
        self.assertEqual(branch, name)

    @settings(deadline=None)
    @given(BRANCHES, NAMES)
    @example("main", "MAIN")
    @example("é", "e\u0301")
    @example("k", "\u212a")
    def test_a_branch_is_itself_alone(self, configured: str, delivered: str) -> None:
        try:
            ref = HEADS + configvalues.branch(configured)
        except ValueError:
            assume(False)
        subscription = Subscription("web", ("acme/web",), ref)
        for name in (delivered, configured, configured + " ", configured + "\n", configured.upper(), f"{configured}/"):
            wanted = subscription.wants(Push("acme/web", HEADS + name, TIP))
            self.assertEqual(wanted, name.encode() == configured.encode())
        self.assertFalse(subscription.wants(Push("acme/web", TAGS + configured, TIP)))
        self.assertFalse(subscription.wants(Push("acme/web", configured, TIP)))

    @given(PATTERNS.map("".join), st.lists(TAG_NAMES, min_size=1, max_size=8, unique=True))
    @example("*", ["a/b", "a"])
    @example("?", ["/", "a"])
    @example("v[!a]1", ["v/1", "va1", "vb1"])
    @example("v?", ["vé", "v1"])
    @example("v??", ["vé", "v11"])
    @example("v[!a]", ["vé", "vb"])
    @example("v[é]", ["vé"])
    @settings(max_examples=60, deadline=None)
    def test_the_pattern_of_tags_means_what_it_means_to_git(self, pattern: str, names: list[str]) -> None:
        """``*`` and ``?`` stand for a slash too, as for ``git ls-remote``, which looks for the tag in the end."""
        try:
            pattern = configvalues.tag(pattern)
        except ValueError:
            assume(False)
        made = self.made([name for name in names if self.is_valid(TAGS + name)])
        subscription = Subscription("web", ("acme/web",), tag=pattern)
        wanted = {name for name in made if subscription.wants(Push("acme/web", TAGS + name, TIP))}
        patterns = (f"{TAGS}{pattern}",)
        said = self.git("ls-remote", *listing(patterns), ".", *asked_for(patterns))
        self.assertEqual({TAGS + name for name in wanted}, read_refs(said, patterns).keys())
        listed = {line.partition("\t")[2] for line in said.splitlines()}
        self.assertEqual({TAGS + name for name in wanted}, {ref for ref in listed if not ref.endswith("^{}")})

    def made(self, names: Sequence[str]) -> list[str]:
        """Those of the tags that can be side by side, made; and no others."""
        self.git("update-ref", "--stdin", input=self.git("for-each-ref", "--format=delete %(refname)"))
        kept: list[str] = []
        for name in names:
            if not any(name.startswith(f"{other}/") or other.startswith(f"{name}/") for other in kept):
                kept.append(name)
        self.git("update-ref", "--stdin", input="".join(f"create {TAGS}{name} {self.commit}\n" for name in kept))
        return kept

    @given(NAMES, PATTERNS.map("".join))
    @settings(max_examples=150, deadline=None)
    def test_what_git_refuses_as_a_branch_is_never_wanted(self, name: str, pattern: str) -> None:
        """And what is wanted begins as no option does, whatever the payload says."""
        assume(not self.is_valid(HEADS + name) or name.startswith("-"))
        for configured in (name, pattern):
            try:
                subscription = Subscription("web", (), HEADS + configvalues.branch(configured))
            except ValueError:
                continue
            self.assertFalse(subscription.wants(Push("acme/web", HEADS + name, TIP)))

    @settings(deadline=None)
    @given(TEXTS | NAMES, st.none() | NAMES)
    def test_no_text_of_a_push_that_is_wanted_looks_like_an_option(self, ref: str, default_branch: str | None) -> None:
        try:
            push = parts.push("acme/web", ref, TIP, default_branch)
        except ValueError:
            assume(False)
        for subscription in (Subscription("a"), Subscription("b", ref="refs/heads/main"), Subscription("c", tag="*")):
            if subscription.wants(push):
                self.assertTrue(push.ref.startswith((HEADS, TAGS)))
