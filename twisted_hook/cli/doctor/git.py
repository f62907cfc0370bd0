"""git itself, and how it reaches each app's remote: its version, the key that ssh shows, and the remote's answer.

It asks by the very commands of the server, in its environment and as its user, and fetches nothing.
"""

from __future__ import annotations

import gzip
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from twisted_hook.boundaries import Checkout
from twisted_hook.cli.doctor.finding import Finding, ok, problem, skipped, warning
from twisted_hook.cli.doctor.patient import LIMIT, Patient, finished
from twisted_hook.cli.forge import GITHUB_HOSTS, host_of
from twisted_hook.clone import Clone
from twisted_hook.commands import Ambient, protocols_of
from twisted_hook.config import AppConfig
from twisted_hook.configvalues import is_scp_like, name_of
from twisted_hook.localgit import OLDEST_GIT, NotUsable, look_at_clone
from twisted_hook.mirror import Mirror
from twisted_hook.model import StepFailed
from twisted_hook.redaction import Redactor, clean
from twisted_hook.refs import followed

FINGERPRINTS = (
    "https://docs.github.com/en/authentication/keeping-your-account-and-data-secure/githubs-ssh-key-fingerprints"
)
_HOLE = "CVE-2025-48384"
_MENDED: Mapping[tuple[int, int], int] = MappingProxyType(
    {(2, 43): 7, (2, 44): 4, (2, 45): 4, (2, 46): 4, (2, 47): 3, (2, 48): 2, (2, 49): 1, (2, 50): 1}
)
"""The first release of each line without CVE-2025-48384, -48385 and -48386 (git's release notes of July 2025)."""
_CHANGELOG = Path("/usr/share/doc/git/changelog.Debian.gz")


# --- the version


def version(patient: Patient) -> Iterator[Finding]:
    """Whether git is there, new enough, and without known holes."""
    said = patient.ask("git", "version")
    if not said.ok:
        yield problem("git", f"git {said.verdict}", "sudo apt-get install git")
        return
    yield judge_version(said.stdout.decode("utf-8", "replace"), backported=_distribution_says_mended(_CHANGELOG))


def judge_version(said: str, *, backported: bool) -> Finding:
    """What ``git version`` prints, judged; ``backported`` is whether the distribution says that it mended the hole."""
    match = re.match(r"git version (\d+)\.(\d+)(?:\.(\d+))?", said)
    if match is None:
        return warning("git", f"git does not tell its version: {clean(said).strip()[:80]!r}", "git version")
    line, patch = (int(match[1]), int(match[2])), int(match[3] or 0)
    number = ".".join(match.groups("0"))
    if line < OLDEST_GIT:
        oldest = ".".join(map(str, OLDEST_GIT))
        return problem("git", f"git is {number}; hookdeploy needs {oldest}", "sudo apt-get install git")
    if line > max(_MENDED) or patch >= _MENDED.get(line, patch + 1):
        return ok("git", f"git {number}")
    if backported:
        return ok("git", f"git {number}, in which the distribution has mended {_HOLE}")
    return warning(
        "git",
        f"git {number} has {_HOLE} unless the distribution has mended it, which the number alone does not tell",
        "sudo apt-get update && sudo apt-get install --only-upgrade git",
    )


def _distribution_says_mended(changelog: Path) -> bool:
    try:
        with gzip.open(changelog, "rt", errors="replace") as file:
            return _HOLE in file.read(1 << 20)
    except (OSError, EOFError):
        return False


# --- remotes


@dataclass(frozen=True, slots=True)
class Remote:
    """Where an app's commits come from."""

    app: AppConfig
    url: str = ""
    clone: Path | None = None
    password: str | None = None

    @property
    def over_ssh(self) -> bool:
        return protocols_of(self.url) == "ssh"

    @property
    def host(self) -> str:
        return host_of(self.url)

    @property
    def destination(self) -> tuple[str, ...]:
        """What ssh is told: the options and the destination."""
        if is_scp_like(self.url):
            return (self.url.partition(":")[0],)
        parts = urlsplit(self.url)
        port = ("-p", str(parts.port)) if parts.port else ()
        return (*port, f"{parts.username}@{self.host}" if parts.username else self.host)

    @property
    def port(self) -> tuple[str, ...]:
        """The option of ssh-keyscan."""
        port = None if is_scp_like(self.url) else urlsplit(self.url).port
        return ("-p", str(port)) if port else ()

    def ambient(self, ambient: Ambient) -> Ambient:
        return replace(ambient, deploy_key=self.app.deploy_key)

    def checkout(self, patient: Patient) -> Checkout | Mirror:
        ambient, app = self.ambient(patient.ambient), self.app
        state = patient.state or Path("/nonexistent")
        if self.clone is not None:
            return Clone(self.clone, app.branch or "", app.update, state, ambient, time.time, LIMIT)
        return Mirror(self.url, app.branch, app.tag, state, "refs/hookdeploy/tip", ambient, LIMIT)


def remote_of(patient: Patient, app: AppConfig) -> Remote:
    """Raises ``NotUsable`` if an app's clone cannot be read."""
    if app.path is None:
        return Remote(app, app.repository or "")
    clone = look_at_clone(patient.ambient, app.path)
    branch = app.branch or clone.branch
    return Remote(replace(app, branch=branch), clone.origin or "", app.path, clone.password)


def remotes(patient: Patient, app: AppConfig) -> Iterator[Finding]:
    """The key, the answer and the branch."""
    try:
        remote = remote_of(patient, app)
    except (NotUsable, OSError) as error:
        yield problem(f"remote of {app.name}", clean(str(error)), f"hookdeploy check {patient.source or ''}".rstrip())
        return
    yield credentials(remote)
    public = ""
    if remote.over_ssh:
        key = deploy_key(patient, remote)
        public = key.public
        yield key.finding
    else:
        yield skipped(f"deploy key of {app.name}", "the remote is not reached by ssh, so it needs none")
    yield _asked(patient, remote, public)


def credentials(remote: Remote) -> Finding:
    """A password in a URL is in the process list of whoever looks, and in every error message."""
    name = f"credentials of {remote.app.name}"
    if remote.password is None:
        return ok(name, "there are none in the remote's URL")
    parts = urlsplit(remote.url)
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    remedy = f"git -C {shlex.quote(str(remote.clone))} remote set-url origin {shlex.quote(plain)}"
    return warning(
        name, "the clone's origin has a password in its URL; ~/.netrc or a deploy key keeps it to itself", remedy
    )


def _asked(patient: Patient, remote: Remote, public: str) -> Finding:
    name, app, checkout = f"remote of {remote.app.name}", remote.app, remote.checkout(patient)
    pattern = checkout.follows if isinstance(checkout.follows, str) else next(iter(checkout.follows), "")
    try:
        refs = finished(checkout.advertised(patient.runner, [pattern]))
    except StepFailed as failure:
        reason = failure.summary.removeprefix("the remote could not be asked: ")
        said = Redactor([remote.password or ""]).text(f"{reason} ({_last_line(failure.tail)})")
        return problem(name, said, _remedy(patient, remote, failure, public))
    found = followed(refs, pattern)
    shown = patient.redactor.text(remote.url if remote.password is None else remote.host)
    if found is None:
        wanted = f"tag {app.tag}" if app.tag else f"branch {app.branch}" if app.branch else "default branch"
        kind = "--tags" if app.tag else "--heads"
        listing = _by_hand(patient, remote, kind)
        return problem(name, f"{shown} answers, and has no {wanted}", f"name one that it has: {listing}")
    return ok(name, f"{shown} answers, and has {found.removeprefix('refs/')} at {refs[found][:7]}")


def _last_line(tail: str) -> str:
    lines = [line.strip() for line in clean(tail).splitlines() if line.strip()]
    fatal = [
        line for line in lines if not line.startswith(("fatal: Could not read", "and the repository", "Please make"))
    ]
    return (fatal or lines or ["git says nothing"])[-1][:200]


def _remedy(patient: Patient, remote: Remote, failure: StepFailed, public: str) -> str:
    """What to do about git's words, which are those of ``repository``."""
    said = failure.tail.lower()
    known = patient.ssh_directory / "known_hosts"
    if "remote host identification has changed" in said:
        target = f"[{remote.host}]:{remote.port[1]}" if remote.port else remote.host
        forget = shlex.join(("ssh-keygen", "-f", str(known), "-R", target))
        return (
            f"find out why its key is another one now; then {patient.as_user(forget)}, and {_keyscan(patient, remote)}"
        )
    if "host key verification failed" in said:
        return _keyscan(patient, remote)
    if remote.over_ssh and ("permission denied" in said or "repository not found" in said):
        return _to_paste(remote, public)
    if "terminal prompts disabled" in said or "authentication failed" in said or "returned error: 40" in said:
        return (
            f"if it is private: hookdeploy init --deploy-key with an address such as git@{remote.host}:acme/blog.git, "
            f"or a line for {remote.host} in {patient.ssh_directory.parent / '.netrc'}"
        )
    if "could not resolve host" in said:
        return f"getent hosts {shlex.quote(remote.host)}"
    return f"try by hand: {_by_hand(patient, remote)}"


def _to_paste(remote: Remote, public: str) -> str:
    page = f"https://{remote.host}/{name_of(remote.url)}/settings/keys/new"
    where = page if remote.host in GITHUB_HOSTS else f"the deploy keys of {name_of(remote.url)} at {remote.host}"
    if not public:
        return f"make a key with: hookdeploy init --deploy-key; and paste its public half at {where}"
    return f"paste this at {where} (read access is enough): {public}"


def _keyscan(patient: Patient, remote: Remote) -> str:
    directory = shlex.quote(str(patient.ssh_directory))
    scan = f"ssh-keyscan {' '.join((*remote.port, '-t ed25519', shlex.quote(remote.host)))}"
    add = f"mkdir -p -m 700 {directory} && {scan} | tee -a {directory}/known_hosts | ssh-keygen -lf -"
    compare = FINGERPRINTS if remote.host in GITHUB_HOSTS else "what its owner publishes"
    return f"{patient.as_user(add)}   and compare the fingerprint with {compare}"


def _by_hand(patient: Patient, remote: Remote, *options: str) -> str:
    words = ["git", *(("-C", str(remote.clone)) if remote.clone else ()), "ls-remote", *options]
    words.append("origin" if remote.clone else remote.url)
    key = f"GIT_SSH_COMMAND='ssh -oBatchMode=yes -i {remote.app.deploy_key}' " if remote.app.deploy_key else ""
    return patient.as_user(key + shlex.join(words))


# --- the key


@dataclass(frozen=True, slots=True)
class Key:
    """What was found about the key that ssh shows, and its public half if there is one to paste."""

    finding: Finding
    public: str = ""


def deploy_key(patient: Patient, remote: Remote) -> Key:
    """Which key ssh would show to this remote, and what keeps it from doing so."""
    name = f"deploy key of {remote.app.name}"
    candidates = [remote.app.deploy_key] if remote.app.deploy_key else _configured_keys(patient, remote)
    for path in candidates:
        if patient.ask("test", "-e", str(path)).ok:
            return _judged(patient, name, path)
    if remote.app.deploy_key:
        return Key(problem(name, f"{remote.app.deploy_key} does not exist", _new_key(patient, remote.app.deploy_key)))
    if patient.ambient.ssh_auth_sock and patient.ask("ssh-add", "-l").ok:
        words = "ssh has no key of its own, and uses an agent's; a service has no agent unless it is given one"
        return Key(warning(name, words, _new_key(patient, patient.ssh_directory / "id_ed25519")))
    words = f"{patient.user} has no key that ssh would show to {remote.host}"
    return Key(problem(name, words, _new_key(patient, patient.ssh_directory / "id_ed25519")))


def _configured_keys(patient: Patient, remote: Remote) -> list[Path]:
    """What ssh would try, by its own word (ssh(1), ``-G``)."""
    said = patient.ask("ssh", "-G", *remote.destination).stdout.decode("utf-8", "replace")
    files = re.findall(r"^identityfile (.+)$", said, re.MULTILINE)
    home = patient.ssh_directory.parent
    return [home / file[2:] if file.startswith("~/") else Path(file) for file in files]


def _judged(patient: Patient, name: str, path: Path) -> Key:
    quoted = shlex.quote(str(path))
    said = patient.ask("ssh-keygen", "-y", "-P", "", "-f", str(path))
    public = said.stdout.decode("utf-8", "replace").strip() if said.ok else ""
    told = said.tail.lower()
    if "too open" in told or "bad permissions" in told:
        return Key(
            problem(
                name, f"{path} can be read by others, so ssh does not use it", patient.as_user(f"chmod 600 {quoted}")
            )
        )
    if "permission denied" in told:
        return Key(problem(name, f"{patient.user} may not read {path}", f"sudo chown {patient.user} {quoted}"))
    if "incorrect passphrase" in told:
        words = f"{path} has a passphrase, which nobody is there to type"
        return Key(problem(name, words, f"make one without: {_new_key(patient, path.with_name('hookdeploy_ed25519'))}"))
    if not said.ok:
        return Key(problem(name, f"{path} is no private key: {_last_line(said.tail)}", _new_key(patient, path)))
    fingerprint = patient.ask("ssh-keygen", "-lf", str(path)).stdout.decode("utf-8", "replace").split()
    return Key(ok(name, f"ssh shows {path}{f' ({fingerprint[1]})' if len(fingerprint) > 1 else ''}"), clean(public))


def _new_key(patient: Patient, path: Path) -> str:
    quoted = shlex.quote(str(path))
    return patient.as_user(f"ssh-keygen -q -t ed25519 -N '' -f {quoted} && cat {quoted}.pub")
