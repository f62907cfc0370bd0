"""What to run: the argument lists and environments of git, of build steps and of gunicorn.

Pure: nothing is run or looked up here, and no shell is ever involved. After a ref has been resolved only hexadecimal
ids are passed on; what could look like an option stands behind ``--end-of-options`` wherever git 2.31 knows it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from posixpath import normpath
from urllib.parse import unquote

from twisted_hook.model import Command

GIT_TIMEOUT = 300.0
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_PROXIES = tuple(
    name for lower in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") for name in (lower, lower.upper())
)

_GIT_SETTINGS = (
    "core.hooksPath=/dev/null",  # no hook of the repository runs: not at fetch, not at checkout
    "core.fsmonitor=false",  # a command in the repository's own configuration
    "core.pager=cat",
    "core.quotePath=false",  # file names as people know them
    "gc.auto=0",  # no background process that outlives its command
    "maintenance.auto=false",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "transfer.bundleURI=false",  # CVE-2025-48385
    "advice.detachedHead=false",
    "commit.gpgSign=false",
    "rebase.autoStash=false",
    "http.lowSpeedLimit=1000",  # bytes a second; git has no time limit of its own
    "http.lowSpeedTime=30",
)

_FSCK = (
    # Refuses trees with .git or .. entries. The three milder findings stand in old, honest histories.
    "fetch.fsckObjects=true",
    "fetch.fsck.badTimezone=ignore",
    "fetch.fsck.missingSpaceBeforeDate=ignore",
    "fetch.fsck.zeroPaddedFilemode=ignore",
)

_NO_LFS = (
    # git alone would check out the pointers without a word. Reads a file that is kept whole despite its attribute.
    r"filter.lfs.smudge=sed '1{/^version https:\/\/git-lfs/q1}'",
    "filter.lfs.required=true",
)

_TRANSPORTS = frozenset({"https", "http", "ssh", "git", "file"})

_SSH = (
    "ssh -oBatchMode=yes -oConnectTimeout=15 -oServerAliveInterval=15 -oServerAliveCountMax=4 -oClearAllForwardings=yes"
)


@dataclass(frozen=True, slots=True)
class Ambient:
    """What hookdeploy's own environment contributes to those of its children."""

    path: str
    home: str
    lang: str
    ssh_auth_sock: str | None
    proxies: Mapping[str, str]
    deploy_key: Path | None = None
    """The private key with which ssh, and that alone, is to show who we are; None leaves it to ssh."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Ambient:
        return cls(
            path=environ.get("PATH", DEFAULT_PATH),
            home=environ.get("HOME", "/"),
            lang=environ.get("LANG", "C.UTF-8"),
            ssh_auth_sock=environ.get("SSH_AUTH_SOCK"),
            proxies={name: environ[name] for name in _PROXIES if name in environ},
        )


@dataclass(frozen=True, slots=True)
class Git:
    """Builds git commands for one repository on this machine.

    ``protocols`` is what ``GIT_ALLOW_PROTOCOL`` lists: it beats every configuration file, so neither ``ext::`` nor a
    redirect to another scheme is followed (git documentation, GIT_ALLOW_PROTOCOL).
    """

    ambient: Ambient
    directory: Path
    protocols: str
    in_place: bool = False
    """An existing clone of the user's, and not a bare mirror of ours."""
    timeout: float = GIT_TIMEOUT

    def command(self, *arguments: str, env: Mapping[str, str] | None = None, timeout: float | None = None) -> Command:
        """``git <arguments>`` in this repository, with nothing inherited."""
        where = ("-C", str(self.directory)) if self.in_place else (f"--git-dir={self.directory}",)
        settings = (*_GIT_SETTINGS, *(() if self.in_place else (*_FSCK, *_NO_LFS)), f"safe.directory={self.directory}")
        options = tuple(word for setting in settings for word in ("-c", setting))
        name = next(word for word in arguments if not word.startswith("-"))
        return Command(
            name=f"git {name}",
            argv=("git", *where, *options, *arguments),
            env={**self.environment(), **(env or {})},
            timeout=timeout or self.timeout,
        )

    def environment(self) -> dict[str, str]:
        """The environment of every git command, built from nothing: no ``GIT_*`` of ours reaches it."""
        environment = {
            "PATH": self.ambient.path,
            "HOME": self.ambient.home,
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ALLOW_PROTOCOL": self.protocols,
            "GIT_SSH_COMMAND": self._ssh(),
            "GIT_COMMITTER_NAME": "hookdeploy",
            "GIT_COMMITTER_EMAIL": "hookdeploy@localhost",
            "GIT_EDITOR": "true",
            **self.ambient.proxies,
        }
        if self.ambient.ssh_auth_sock:
            environment["SSH_AUTH_SOCK"] = self.ambient.ssh_auth_sock
        return environment

    def _ssh(self) -> str:
        """git has a shell execute it. A forge takes the first key that it knows, be it of another repository."""
        key = self.ambient.deploy_key
        return _SSH if key is None else f"{_SSH} -oIdentitiesOnly=yes -i {shlex.quote(str(key))}"


def protocols_of(url: str) -> str:
    """What ``GIT_ALLOW_PROTOCOL`` may list for a remote: the remote's own transport, if it is one that runs no command.

    git splits the list at colons, so that ``ext::https`` in it would allow ``ext``.
    """
    if url.startswith(("/", ".")):
        return "file"
    scheme, separator, _ = url.partition("://")
    if separator and "::" not in scheme:
        return scheme if scheme in _TRANSPORTS else "none"
    host, colon, _ = url.partition(":")
    return "ssh" if colon and "/" not in host else "file"


def reading(url: str) -> tuple[str, ...]:
    """The options with which git reads a repository on this machine that belongs to somebody else.

    ``git-upload-pack`` refuses it unless told otherwise, and sees nothing of our ``-c`` (git documentation,
    safe.directory). git has a shell execute the option's value: the path in it is quoted.
    """
    if protocols_of(url) != "file":
        return ()
    path = (unquote(url.removeprefix("file://")) if url.startswith("file://") else url).rstrip("/")
    places = (path, f"{path}/.git", f"{path}.git")  # where git looks
    trusted = " ".join(f"-c safe.directory={shlex.quote(place)}" for place in places)
    return (f"--upload-pack=git {trusted} upload-pack",)


def differing(old: str, new: str, patterns: Sequence[str]) -> tuple[str, ...]:
    """git's arguments to say by its exit status, 0 or 1, whether a file of these patterns differs between two commits.

    The content, the mode and the commit of a submodule count, whatever the repository's own settings make of them.
    """
    words = ("diff-tree", "-r", "--quiet", "--no-renames", "--no-ext-diff", "--no-textconv", "--ignore-submodules=none")
    return (*words, old, new, "--", *pathspecs(patterns))


def pathspecs(patterns: Sequence[str]) -> tuple[str, ...]:
    """Patterns of an app's ``paths`` as git's pathspecs; see ``Checkout.touches``.

    A name without wildcards, and one that ends in ``/`` or ``/**``, means all that is in a directory of that name. Any
    pattern also means the file or directory that is called exactly so, as ``app/[slug]`` may be. They begin at the top
    of the repository, with or without a leading slash, and have no magic of their own (gitglossary, pathspec).
    """
    return tuple(pathspec for pattern in patterns for pathspec in _pathspecs(pattern))


def _pathspecs(pattern: str) -> Iterator[str]:
    magic = "exclude,top" if pattern.startswith("!") else "top"
    name = normpath("/" + pattern.removeprefix("!").lstrip("/"))[1:]  # which git does for clones, and not for mirrors
    whole = re.sub(r"(?:/\*\*)+$", "", name)
    if whole in ("", "**"):
        yield f":({magic},glob)**"
        return
    yield f":({magic},literal){whole}"
    if re.search(r"[*?[\\]", whole):
        yield f":({magic},glob){whole}{'/**' if pattern.endswith(('/', '/**')) else ''}"


def says_disk_is_full(output: str) -> bool:
    """Whether a program's last words are those of ``ENOSPC`` or ``EDQUOT`` (strerror(3))."""
    said = output.lower()
    return "no space left on device" in said or "disk quota exceeded" in said


def handing_over(path: str, owner: tuple[int, int], *places: Path) -> Command:
    """Gives whole trees to a user and a group, by their ids; links are given themselves, and not followed."""
    uid, gid = owner
    return Command("chown", ("chown", "-hR", f"{uid}:{gid}", "--", *map(str, places)), {"PATH": path, "LC_ALL": "C"})


def removal(path: str, *doomed: Path, nice: int = 0) -> Command:
    """Removes whole trees, in a child: a large one would hold the reactor up. ``path`` is where ``rm`` is found."""
    return Command("rm", ("rm", "-rf", "--", *map(str, doomed)), {"PATH": path, "LC_ALL": "C"}, nice=nice)


def stepping_back(nice: int, *, nice_program: str | None, ionice_program: str | None) -> tuple[str, ...]:
    """What to put before a command so that it leaves processor and disk to others: nothing at 0.

    The two programs are paths, or None where the machine has none. Each executes the next in its place. ``ionice -t``
    goes on where the kernel lets nobody change that, as in some containers.
    """
    if nice == 0:
        return ()
    processor = (nice_program, "-n", str(nice)) if nice_program else ()
    disk = (ionice_program, "-t", "-c", "2", "-n", "7") if ionice_program else ()  # best effort, behind all others
    return (*processor, *disk)


def step_environment(
    ambient: Ambient, *, declared: Mapping[str, str], context: Mapping[str, str], home: Path | None = None
) -> dict[str, str]:
    """What steps and servers see: PATH, HOME and LANG, what the app declares, and the ``HOOKDEPLOY_*`` names.

    ``home`` is that of the account as which they run; None where that is ours.
    """
    return {"PATH": ambient.path, "HOME": str(home or ambient.home), "LANG": ambient.lang, **declared, **context}


def deployment_context(
    *, app: str, revision: str, previous: str | None, branch: str | None, release: str, deployment: str
) -> dict[str, str]:
    """The ``HOOKDEPLOY_*`` variables; what is not known is empty."""
    return {
        "HOOKDEPLOY_APP": app,
        "HOOKDEPLOY_REVISION": revision,
        "HOOKDEPLOY_PREVIOUS": previous or "",
        "HOOKDEPLOY_BRANCH": branch or "",
        "HOOKDEPLOY_RELEASE": release,
        "HOOKDEPLOY_DEPLOYMENT": deployment,
    }


# For an app without gunicorn: ours, under the app's own interpreter, found last on its path.
_BORROWED = (
    "import runpy, sys; sys.path.append(sys.argv.pop(1)); "
    "runpy.run_module('gunicorn', run_name='__main__', alter_sys=True)"
)


def gunicorn(
    *,
    interpreter: Path,
    borrowed_from: Path | None,
    gate: Path,
    name: str,
    workers: int,
    graceful_timeout: float,
    arguments: tuple[str, ...],
    wsgi: str,
) -> tuple[str, ...]:
    """gunicorn's argument list. ``borrowed_from`` is the directory of our own gunicorn, for an app without one.

    The user's arguments stand last but for those that supervision needs: gunicorn takes the last of a repeated option.
    """
    start = ("-m", "gunicorn") if borrowed_from is None else ("-c", _BORROWED, str(borrowed_from))
    return (
        str(interpreter),
        *start,
        "--workers",
        str(workers),
        "--graceful-timeout",
        str(max(1, round(graceful_timeout))),
        "--name",
        f"hookdeploy-{name}",
        *arguments,
        "--config",
        str(gate),
        wsgi,
    )
