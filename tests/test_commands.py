"""What is run: argument lists and environments that are built from nothing."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import os
import shlex
import socket
import subprocess
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

from tests.gitorigin import Origin, ambient
from tests.patient import is_called, up_when
from tests.proctable import told
from twisted_hook.commands import (
    Ambient,
    Git,
    deployment_context,
    differing,
    gunicorn,
    pathspecs,
    protocols_of,
    reading,
    removal,
    step_environment,
    stepping_back,
)
from twisted_hook.process import SpawningRunner

AMBIENT = Ambient("/usr/bin:/bin", "/home/ada", "C.UTF-8", "/run/agent.sock", {"https_proxy": "http://proxy:3128"})

ADDED_BY_GIT = {"GIT_CONFIG_PARAMETERS", "GIT_EXEC_PATH", "GIT_PREFIX"}

HOSTILE = {
    "GIT_DIR": "/nonexistent",
    "GIT_WORK_TREE": "/nonexistent",
    "GIT_INDEX_FILE": "/nonexistent/index",
    "GIT_OBJECT_DIRECTORY": "/nonexistent",
    "GIT_SSH_COMMAND": "touch {pwn}; false",
    "GIT_CONFIG_PARAMETERS": "'core.fsmonitor'='touch {pwn}; false'",
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "core.fsmonitor",
    "GIT_CONFIG_VALUE_0": "touch {pwn}; false",
    "GIT_CONFIG_KEY_1": "core.hooksPath",
    "GIT_CONFIG_VALUE_1": "{hooks}",
    "GIT_EXEC_PATH": "/nonexistent",
    "GIT_EXTERNAL_DIFF": "touch {pwn}",
    "GIT_ASKPASS": "touch {pwn}",
    "GIT_PAGER": "touch {pwn}",
    "GIT_EDITOR": "touch {pwn}",
    "GIT_TRACE": "{pwn}",
}
"""P62: what in hookdeploy's own environment would break git, or make it run something."""


def set_hostile_environment(monkeypatch: pytest.MonkeyPatch, directory: Path) -> Path:
    """Put it into ``os.environ``; the path given is one that exists as soon as some of it took effect."""
    pwn, hooks = directory / "PWN", directory / "hostile-hooks"
    plant_hooks(hooks, pwn)
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value.format(pwn=pwn, hooks=hooks))
    return pwn


def plant_hooks(directory: Path, pwn: Path) -> None:
    """Hooks of every kind that git may run here, each of which leaves a trace and fails."""
    directory.mkdir(exist_ok=True)
    for name in (
        *("post-checkout", "post-merge", "post-rewrite", "pre-rebase", "post-index-change", "reference-transaction"),
        *("pre-auto-gc", "pre-commit", "prepare-commit-msg", "commit-msg", "post-commit", "pre-applypatch"),
    ):
        (directory / name).write_text(f"#!/bin/sh\necho {name} >> '{pwn}'\nexit 1\n")
        (directory / name).chmod(0o755)


class ProtocolsTests(SynchronousTestCase):
    def test_a_remote_may_be_reached_by_its_own_transport_and_no_other(self) -> None:
        for url, protocol in (
            ("https://github.com/acme/blog.git", "https"),
            ("http://localhost:8000/acme/blog.git", "http"),
            ("ssh://git@example.com:2222/acme/blog.git", "ssh"),
            ("git@github.com:acme/blog.git", "ssh"),
            ("example.com:blog.git", "ssh"),
            ("file:///srv/blog.git", "file"),
            ("/srv/blog.git", "file"),
            ("../blog.git", "file"),
            ("./a:b/blog.git", "file"),
        ):
            self.assertEqual(protocols_of(url), protocol, url)

    def test_a_command_as_a_transport_is_never_allowed(self) -> None:
        """P60: git splits ``GIT_ALLOW_PROTOCOL`` at colons."""
        for url in ("ext::sh -c touch% PWN", "ext::https://x", "ext://x", "fd::17", "ext::a://b:c", "HTTPS:ext://x"):
            self.assertIn(protocols_of(url), {"ssh", "none"}, url)


class EnvironmentTests(SynchronousTestCase):
    def test_of_our_own_environment_only_these_are_passed_on(self) -> None:
        wanted = {
            "PATH": "/bin",
            "HOME": "/root",
            "LANG": "de_DE.UTF-8",
            "SSH_AUTH_SOCK": "/s",
            "NO_PROXY": "localhost",
        }
        environ = {
            "GITHUB_SECRET": "hunter2",
            "LD_PRELOAD": "/evil.so",
            "PYTHONPATH": "/evil",
            **{name: value.format(pwn="PWN", hooks="hooks") for name, value in HOSTILE.items()},
            **wanted,
        }
        expected = Ambient("/bin", "/root", "de_DE.UTF-8", "/s", {"NO_PROXY": "localhost"})
        self.assertEqual(Ambient.from_environ(environ), expected)

    def test_an_empty_environment_is_enough(self) -> None:
        found = Ambient.from_environ({})
        self.assertIn("/usr/bin", found.path.split(":"))
        self.assertEqual((found.ssh_auth_sock, found.proxies), (None, {}))

    def test_git_gets_the_agent_and_the_proxies_but_nobodys_configuration(self) -> None:
        environment = Git(AMBIENT, Path("/srv/blog"), "https").environment()
        self.assertEqual(environment["SSH_AUTH_SOCK"], "/run/agent.sock")
        self.assertEqual(environment["https_proxy"], "http://proxy:3128")
        self.assertEqual(environment["GIT_CONFIG_GLOBAL"], "/dev/null")
        self.assertEqual(environment["GIT_ALLOW_PROTOCOL"], "https")
        self.assertEqual(environment["GIT_TERMINAL_PROMPT"], "0")

    def test_a_step_sees_the_declared_and_the_context_and_no_secret_of_ours(self) -> None:
        context = deployment_context(
            app="blog", revision="a" * 40, previous=None, branch=None, release="r1", deployment="d1"
        )
        seen = step_environment(AMBIENT, declared={"KEY": "value", "LANG": "C"}, context=context)
        self.assertEqual(
            seen,
            {
                "PATH": "/usr/bin:/bin",
                "HOME": "/home/ada",
                "LANG": "C",
                "KEY": "value",
                "HOOKDEPLOY_APP": "blog",
                "HOOKDEPLOY_REVISION": "a" * 40,
                "HOOKDEPLOY_PREVIOUS": "",
                "HOOKDEPLOY_BRANCH": "",
                "HOOKDEPLOY_RELEASE": "r1",
                "HOOKDEPLOY_DEPLOYMENT": "d1",
            },
        )

    def test_an_app_cannot_declare_a_deployment_of_its_own(self) -> None:
        seen = step_environment(AMBIENT, declared={"HOOKDEPLOY_APP": "other"}, context={"HOOKDEPLOY_APP": "blog"})
        self.assertEqual(seen["HOOKDEPLOY_APP"], "blog")

    def test_the_home_of_another_account_takes_the_place_of_ours(self) -> None:
        seen = step_environment(AMBIENT, declared={}, context={}, home=Path("/home/blog"))
        self.assertEqual(seen["HOME"], "/home/blog")
        declared = step_environment(AMBIENT, declared={"HOME": "/srv/blog"}, context={}, home=Path("/home/blog"))
        self.assertEqual(declared["HOME"], "/srv/blog")


class SteppingBackTests(SynchronousTestCase):
    """A build leaves processor and disk to the app that runs."""

    def test_both_programs_stand_before_the_command(self) -> None:
        self.assertEqual(
            stepping_back(10, nice_program="/usr/bin/nice", ionice_program="/usr/bin/ionice"),
            ("/usr/bin/nice", "-n", "10", "/usr/bin/ionice", "-t", "-c", "2", "-n", "7"),
        )

    def test_a_machine_may_have_one_of_them_or_none(self) -> None:
        self.assertEqual(stepping_back(19, nice_program="/bin/nice", ionice_program=None), ("/bin/nice", "-n", "19"))
        disk = stepping_back(1, nice_program=None, ionice_program="/bin/ionice")
        self.assertEqual(disk, ("/bin/ionice", "-t", "-c", "2", "-n", "7"))
        self.assertEqual(stepping_back(1, nice_program=None, ionice_program=None), ())

    def test_who_does_not_step_back_is_started_as_ever(self) -> None:
        self.assertEqual(stepping_back(0, nice_program="/bin/nice", ionice_program="/bin/ionice"), ())

    def test_a_removal_may_step_back(self) -> None:
        self.assertEqual(removal("/bin", Path("/doomed"), nice=10).nice, 10)
        self.assertEqual(removal("/bin", Path("/doomed")).nice, 0)


class GitCommandTests(SynchronousTestCase):
    def test_a_mirror_is_named_by_its_directory_and_a_clone_is_entered(self) -> None:
        mirror = Git(AMBIENT, Path("/m.git"), "https").command("fetch")
        clone = Git(AMBIENT, Path("/srv/blog"), "https", in_place=True).command("fetch")
        self.assertEqual(mirror.argv[:2], ("git", "--git-dir=/m.git"))
        self.assertEqual(clone.argv[:3], ("git", "-C", "/srv/blog"))

    def test_a_mirror_examines_what_it_fetches(self) -> None:
        self.assertIn("fetch.fsckObjects=true", Git(AMBIENT, Path("/m.git"), "https").command("fetch").argv)

    def test_a_command_is_called_by_its_name_also_behind_options(self) -> None:
        git = Git(AMBIENT, Path("/m.git"), "https")
        self.assertEqual(git.command("--work-tree=/t", "read-tree", "HEAD").name, "git read-tree")

    def test_a_command_may_have_more_environment_and_another_limit(self) -> None:
        command = Git(AMBIENT, Path("/m.git"), "https").command("gc", env={"GIT_INDEX_FILE": "/i"}, timeout=7)
        self.assertEqual((command.env["GIT_INDEX_FILE"], command.timeout), ("/i", 7))

    @given(st.text(max_size=20))
    def test_an_argument_is_passed_on_as_it_is(self, word: str) -> None:
        self.assertEqual(Git(AMBIENT, Path("/m.git"), "https").command("log", word).argv[-2:], ("log", word))


class ReadingTests(SynchronousTestCase):
    def test_only_a_repository_on_this_machine_needs_to_be_trusted(self) -> None:
        for url in ("https://github.com/acme/blog.git", "git@github.com:acme/blog.git", "ext::sh -c x"):
            self.assertEqual(reading(url), ())

    @given(st.text(st.characters(exclude_characters="\0\n", exclude_categories=["Cs"]), max_size=20))
    def test_a_shell_takes_the_path_for_one_word(self, name: str) -> None:
        path = f"/srv/{name}x"
        (option,) = reading(path)
        trusted = [
            word for place in (path, f"{path}/.git", f"{path}.git") for word in ("-c", f"safe.directory={place}")
        ]
        self.assertEqual(shlex.split(option.removeprefix("--upload-pack=")), ["git", *trusted, "upload-pack"])


class GunicornTests(SynchronousTestCase):
    def argv(self, *, borrowed_from: Path | None = None, arguments: tuple[str, ...] = ()) -> tuple[str, ...]:
        return gunicorn(
            interpreter=Path("/env/bin/python"),
            borrowed_from=borrowed_from,
            gate=Path("/ours/gate.py"),
            name="blog",
            workers=2,
            graceful_timeout=0.4,
            arguments=arguments,
            wsgi="wsgi:application",
        )

    def test_an_apps_own_gunicorn_runs_under_its_own_interpreter(self) -> None:
        self.assertEqual(self.argv()[:3], ("/env/bin/python", "-m", "gunicorn"))

    def test_a_borrowed_gunicorn_stands_last_on_the_apps_path(self) -> None:
        argv = self.argv(borrowed_from=Path("/ours"))
        self.assertEqual((argv[0], argv[1], argv[3]), ("/env/bin/python", "-c", "/ours"))
        self.assertIn("sys.path.append", argv[2])

    def test_the_gate_stands_behind_what_the_user_asks_for(self) -> None:
        argv = self.argv(arguments=("--workers", "9", "--config", "mine.py"))
        self.assertEqual(argv[-4:], ("mine.py", "--config", "/ours/gate.py", "wsgi:application"))
        self.assertLess(argv.index("2"), argv.index("9"))

    def test_a_short_drain_is_still_a_whole_second(self) -> None:
        argv = self.argv()
        self.assertEqual(argv[argv.index("--graceful-timeout") + 1], "1")


@pytest_twisted.ensureDeferred
async def test_nothing_of_a_hostile_environment_reaches_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P62: what git runs sees what was built for it, and what git and the shell add."""
    origin = Origin.create(tmp_path)
    pwn = set_hostile_environment(monkeypatch, tmp_path)
    git = Git(ambient(tmp_path), origin.work, "file", in_place=True)
    result = await SpawningRunner(reactor).run(git.command("-c", "alias.seen=!env", "seen"))
    assert result.ok, result.tail
    seen = dict(line.partition("=")[::2] for line in result.stdout.decode().splitlines())
    assert set(seen) <= {*git.environment(), *ADDED_BY_GIT, "PWD", "OLDPWD", "SHLVL", "_"}
    assert str(pwn) not in str(seen)
    assert not pwn.exists()


def test_a_git_that_inherits_a_hostile_environment_obeys_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P62: the test above has teeth."""
    origin = Origin.create(tmp_path)
    pwn = set_hostile_environment(monkeypatch, tmp_path)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_EXEC_PATH", "GIT_TRACE"):
        monkeypatch.delenv(name)
    subprocess.run(["git", "-C", str(origin.work), "status"], capture_output=True, check=False)
    assert pwn.exists()


@pytest_twisted.ensureDeferred
async def test_a_remote_that_says_nothing_is_given_up_with_all_that_git_has_started(tmp_path: Path) -> None:
    """P64: git itself would wait for ever, and its own children would outlive it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/blog.git"
        git = Git(ambient(tmp_path), tmp_path, "http", in_place=True, timeout=0.5)
        asking = SpawningRunner(up_when(lambda: is_called(silent), 0.5))
        result = await asking.run(git.command("ls-remote", url))
    assert result.verdict == "timeout after 0.5 s"
    assert not told(url)


class Pathspecs(SynchronousTestCase):
    """What an app is about, as git is asked for it."""

    def test_a_name_means_what_is_called_so_and_a_glob_what_it_matches(self) -> None:
        self.assertEqual(
            pathspecs(("services/blog", "services/shop/", "lib/**", "*.md", "!lib/v?/")),
            (
                ":(top,literal)services/blog",
                ":(top,literal)services/shop",
                ":(top,literal)lib",
                ":(top,literal)*.md",
                ":(top,glob)*.md",
                ":(exclude,top,literal)lib/v?",
                ":(exclude,top,glob)lib/v?/**",
            ),
        )

    def test_the_whole_repository_has_many_names(self) -> None:
        for pattern in ("", "/", ".", "./", "**", "/**", "**/", "**/**", ".."):
            self.assertEqual(pathspecs((pattern,)), (":(top,glob)**",), pattern)

    @given(st.lists(st.text(st.characters(exclude_characters="\0"))))
    def test_whatever_a_pattern_is_it_has_no_magic_of_its_own(self, patterns: list[str]) -> None:
        words = differing("a" * 40, "b" * 40, patterns)
        found = words[words.index("--") + 1 :]
        for pathspec in found:
            magic, separator, name = pathspec.partition(")")
            self.assertIn(magic, (":(top,literal", ":(top,glob", ":(exclude,top,literal", ":(exclude,top,glob"))
            self.assertTrue(separator)
            self.assertFalse({"..", "."} & set(name.split("/")) or name.startswith("/"), name)
        self.assertTrue(len(patterns) <= len(found) <= 2 * len(patterns))


NAMES = st.text(st.sampled_from(":()!^/*?[]\\-. \n\tab\u00fc\u2028\U0001f600\"'{}$`~#"), min_size=1, max_size=8).filter(
    lambda name: not name.startswith("!") and all(part not in ("", ".", "..") for part in name.split("/"))
)


@dataclass(frozen=True)
class Objects:
    """A repository with nothing in it but a file of no content, and a tree that has it."""

    directory: Path

    def git(self, *words: str, said: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        words = ("git", f"--git-dir={self.directory}", *words)
        environment = Origin(self.directory).environment
        return subprocess.run(words, input=said, capture_output=True, env=environment, check=False)

    def tree(self, *entries: bytes) -> str:
        return self.git("mktree", "-z", said=b"".join(entries)).stdout.decode().strip()

    @cached_property
    def empty(self) -> str:
        return self.tree()

    @cached_property
    def blob(self) -> bytes:
        return self.git("hash-object", "-w", "--stdin").stdout.strip()

    @cached_property
    def inside(self) -> str:
        return self.tree(b"100644 blob " + self.blob + b"\tin it\0")


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    made = Objects(tmp_path_factory.mktemp("objects") / "bare.git")
    assert made.git("init", "--quiet", "--bare").returncode == 0
    return made


@given(NAMES, st.sampled_from(["", "/", "/**"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_git_finds_the_file_and_the_directory_of_any_name(objects: Objects, name: str, end: str, inside: bool) -> None:
    """Names that are hostile to shells, options and pathspecs; the trees are made by git, and never checked out."""
    git, empty = objects.git, objects.empty
    kind = b"040000 tree " + objects.inside.encode() if inside else b"100644 blob " + objects.blob
    for part in reversed(os.fsencode(name).split(b"/")):
        whole = objects.tree(kind + b"\t" + part + b"\0")
        kind = b"040000 tree " + whole.encode()
    assert git(*differing(empty, whole, (name + end,))).returncode == 1
    assert git(*differing(empty, whole, ("!" + name + end,))).returncode == 0
    assert git(*differing(empty, whole, ("somewhere else",))).returncode == 0


class TheDeployKey(SynchronousTestCase):
    """With which key ssh shows who we are."""

    def test_ssh_shows_it_and_no_other(self) -> None:
        """GitHub takes the first key that it knows, and then refuses the repository to which that does not belong."""
        ambient = replace(AMBIENT, deploy_key=Path("/etc/it's mine/key"))
        words = shlex.split(Git(ambient, Path("/m.git"), "ssh").environment()["GIT_SSH_COMMAND"])
        self.assertEqual(words[-3:], ["-oIdentitiesOnly=yes", "-i", "/etc/it's mine/key"])

    def test_without_one_ssh_finds_it_by_itself(self) -> None:
        words = shlex.split(Git(AMBIENT, Path("/m.git"), "ssh").environment()["GIT_SSH_COMMAND"])
        self.assertNotIn("-i", words)
        self.assertNotIn("-oIdentitiesOnly=yes", words)
