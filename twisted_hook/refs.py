"""What a remote says of its refs: how ``git ls-remote`` is asked, how its answer is read, which tag is the newest.

And which words of a commit's message git is asked for. Pure. Full names everywhere. The order of versions is git's own:
the answer comes sorted, and stays so.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

HEAD, HEADS, TAGS = "HEAD", "refs/heads/", "refs/tags/"

_UNRELEASED = ("SNAPSHOT", "dev", "a", "alpha", "b", "beta", "pre", "rc", "RC")
"""What stands behind a version that is still to come, the earliest first: semver's words and those of PEP 440."""
_SUFFIXES = tuple(
    f"{separator}{word}" for word in _UNRELEASED for separator in ("", "-", ".", "_") if len(word) > 1 or not separator
)  # a single letter behind a separator may begin any word, such as v1.0-build7

_PEELED = "^{}"
"""Behind the name of an annotated tag, whose own id stands a line before: what it is of (gitrevisions)."""

SORTING: Mapping[str, str] = {
    "GIT_CONFIG_COUNT": str(len(_SUFFIXES)),
    **{f"GIT_CONFIG_KEY_{number}": "versionsort.suffix" for number in range(len(_SUFFIXES))},
    **{f"GIT_CONFIG_VALUE_{number}": suffix for number, suffix in enumerate(_SUFFIXES)},
}
"""The environment in which git puts v1.0-rc1 and 1.0rc1 before 1.0 (git documentation, versionsort.suffix)."""


SKIPPING = ("[skip deploy]", "[deploy skip]")
"""Words of a commit's message that ask that it not be deployed, in whichever case they are written."""


def searching(words: Collection[str]) -> tuple[str, ...]:
    """The options of ``git log`` that pass over a commit whose message has none of these words.

    git searches it all, whatever its size and its encoding, and prints none of it.
    """
    return ("--regexp-ignore-case", "--fixed-strings", *(f"--grep={each}" for each in words))


def matches(name: str, pattern: str) -> bool:
    """Whether git would say that the name of a ref is of a pattern: it compares bytes, so that ``?`` is no ``é``."""
    return fnmatchcase(name.encode("utf-8", "replace"), pattern.encode("utf-8", "replace"))


def listing(patterns: Collection[str]) -> tuple[str, ...]:
    """The options of ``git ls-remote`` for these patterns; ``asked_for`` gives what stands behind the remote.

    The kinds are named where that is possible: a forge has a ref for each pull request that there ever was.
    """
    if HEAD in patterns:
        return ("--symref", "--sort=v:refname")
    kinds = {"--heads": HEADS, "--tags": TAGS}
    there = tuple(option for option, kind in kinds.items() if any(name.startswith(kind) for name in patterns))
    return (*there, "--sort=v:refname")


def asked_for(patterns: Collection[str]) -> tuple[str, ...]:
    """The patterns for git, with those of what annotated tags are of: git compares them with the name to its end."""
    return (*patterns, *(f"{name}{_PEELED}" for name in patterns if name.startswith(TAGS)))


def read_refs(said: str, patterns: Collection[str]) -> Mapping[str, str]:
    """The refs of these patterns from the answer of ``git ls-remote``, in its order: see ``Checkout.advertised``.

    git compares a pattern with the end of a name, so that the answer also has refs of that name elsewhere.
    """
    refs: dict[str, str] = {}
    for line in said.split("\n"):
        if found := re.fullmatch(r"ref: (refs/heads/[^\t]+)\tHEAD", line):
            refs[HEAD] = found[1]
        elif found := re.fullmatch(r"([0-9a-f]{40}(?:[0-9a-f]{24})?)\t(.+)", line):
            revision, name = found[1], found[2].removesuffix(_PEELED)
            if name == HEAD and HEAD in refs:
                refs[refs[HEAD]] = revision
            elif name != HEAD and any(matches(name, pattern) for pattern in patterns):
                refs[name] = revision if found[2].endswith(_PEELED) else refs.get(name, revision)
    return refs


def followed(advertised: Mapping[str, str], pattern: str) -> str | None:
    """The full name of the branch or tag that this stands for now; None if the remote has none.

    ``pattern`` is a branch, ``HEAD`` for the branch that the remote's HEAD is on, or the pattern of tags for the newest
    of them.
    """
    wanted = advertised.get(HEAD, HEAD) if pattern == HEAD else pattern
    return next((name for name in reversed(list(advertised)) if name != HEAD and matches(name, wanted)), None)
