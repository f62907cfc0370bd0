"""Why something was deployed or not, what serves now, and what to do next, in plain words.

Pure. It reads what the journal says, and never asks the world: ``hookdeploy doctor`` does that. Texts from outside
come out as they went in; who shows them makes them harmless.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from twisted_hook.model import Delivery, Deployment, Outcome, Phase, Step, Trigger, Verdict

_WHILE = {
    Phase.QUEUED: "while it waited for its turn",
    Phase.FETCHING: "while it was being fetched",
    Phase.BUILDING: "while it was being built",
    Phase.MIGRATING: "while it migrated",
    Phase.STARTING: "while its server started",
    Phase.CHECKING: "while its server was being checked",
    Phase.SWAPPING: "while it was being put in the place of the old one",
    Phase.PROBATION: "on probation",
    Phase.DONE: "at its end",
}


@dataclass(frozen=True, slots=True)
class Present:
    """What an app is at, and how a person holds it back."""

    revision: str | None = None
    subject: str | None = None
    state: str | None = None
    """Its server's, as ``ServerStatus`` has it; None where it has no server."""
    problem: str = ""
    """What its server says for itself."""
    paused: bool = False
    pinned: bool = False
    repository: str | None = None
    """The URL that it is fetched from, where that is known."""
    user: str | None = None
    """As whom hookdeploy works, where that is known."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """Something to do."""

    words: str
    command: str = ""
    """How to do it, as it is typed; empty where there is no command for it."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What a person wants to know."""

    what: str
    """What happened, and why: a sentence or two."""
    said: str = ""
    """The last lines that what failed has printed."""
    now: str = ""
    """What is the site instead; empty where that needs no saying."""
    remedies: tuple[Remedy, ...] = ()
    """What to do, the likeliest first."""


# --- a deployment


def of_deployment(deployment: Deployment, present: Present) -> Advice:
    """Why a deployment came to what it came to."""
    return replace(_ENDS[deployment.outcome](deployment, present), now=_now(deployment, present))


def _now(deployment: Deployment, present: Present) -> str:
    ended_well = deployment.outcome in (None, Outcome.DEPLOYED, Outcome.SUPERSEDED)
    return "" if ended_well else still_there(deployment.app, present)


def still_there(app: str, present: Present) -> str:
    """What an app is at now, in a sentence."""
    if present.revision is None:
        return f"Nothing of {app} was deployed yet."
    commit = f"{present.revision[:7]} {present.subject or ''}".strip()
    if present.state is None:
        return f"{app} stays at {commit}."
    if present.state == "serving":
        return f"{app} still serves {commit}."
    return f"The server of {app} is {present.state}, with {commit}. {present.problem}".rstrip()


# --- how it ended


def _under_way(deployment: Deployment, present: Present) -> Advice:
    look = Remedy("see how it goes on", f"hookdeploy log -f {deployment.id}")
    if deployment.started_at is not None:
        end = Remedy("end it", f"hookdeploy cancel {deployment.id}")
        return Advice(f"It is under way: {deployment.phase}.", remedies=(look, end))
    if present.paused:
        remedies = (Remedy("let it go on", f"hookdeploy resume {deployment.app}"),)
        return Advice(f"It waits, since {deployment.app} is paused.", remedies=remedies)
    return Advice("It waits for its turn.", remedies=(look,))


def _deployed(deployment: Deployment, present: Present) -> Advice:
    how = "put back" if deployment.trigger is Trigger.ROLLBACK else "deployed"
    what = f"{_commit(deployment)} was {how}"
    if present.revision is not None and deployment.revision != present.revision:
        return Advice(f"{what}; by now {present.revision[:7]} has taken its place.")
    return Advice(f"{what}, and is what there is now.")


def _unchanged(deployment: Deployment, _: Present) -> Advice:
    what, app = f"Nothing was deployed: {_sentence(deployment.reason)}", deployment.app
    if "pinned" in deployment.reason:
        unpin = Remedy("let pushes be deployed again", f"hookdeploy unpin {app}")
        return Advice(what, remedies=(unpin, Remedy("or deploy the tip, pinned or not", f"hookdeploy deploy {app}")))
    if "runs already" in deployment.reason:
        return Advice(
            what, remedies=(Remedy(f"if a newer commit is missing, see whether it was pushed to what {app} deploys"),)
        )
    return Advice(what, remedies=(Remedy("deploy it all the same", f"hookdeploy deploy {app}"),))


def _superseded(deployment: Deployment, _: Present) -> Advice:
    newer = deployment.superseded_by
    remedies = (Remedy("see what became of that one", f"hookdeploy why {newer}"),) if newer else ()
    return Advice("A newer deployment took its place, and does its work.", remedies=remedies)


def _cancelled(deployment: Deployment, _: Present) -> Advice:
    what = f"It was cancelled {_WHILE[deployment.phase]}: {_sentence(deployment.reason)}"
    return Advice(what, remedies=(Remedy("if it is wanted after all", f"hookdeploy deploy {deployment.app}"),))


def _interrupted(deployment: Deployment, _: Present) -> Advice:
    look = Remedy("see how far it came", f"hookdeploy log {deployment.id}")
    what = f"It was interrupted {_WHILE[deployment.phase]}: {_sentence(deployment.reason)}"
    return Advice(what, remedies=(look, _once_more(deployment)))


def _failed(deployment: Deployment, present: Present) -> Advice:
    reason, _, said = deployment.reason.partition("\n")
    step = _failed_step(deployment)
    took = f" after {step.seconds:.1f} s" if step is not None else ""
    how = "It was taken back" if deployment.outcome is Outcome.ROLLED_BACK else "It failed"
    what = f"{how} {_WHILE[deployment.phase]}{took}: {_sentence(reason)}"
    return Advice(what, said=said, remedies=tuple(_remedies(deployment, present)))


_ENDS: Mapping[Outcome | None, Callable[[Deployment, Present], Advice]] = {
    None: _under_way,
    Outcome.DEPLOYED: _deployed,
    Outcome.UNCHANGED: _unchanged,
    Outcome.SUPERSEDED: _superseded,
    Outcome.CANCELLED: _cancelled,
    Outcome.INTERRUPTED: _interrupted,
    Outcome.FAILED: _failed,
    Outcome.ROLLED_BACK: _failed,
}


def _sentence(reason: str) -> str:
    """With a full stop, unless it has its own end."""
    first = reason.strip() or "no reason is written down"
    return first if first[-1] in ".:!?" else f"{first}."


# --- what to do about a failure


_KNOWN: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        r"^.*hookdeploy's own log has the traceback",
        ("this is a fault in hookdeploy; its log has the traceback, please report it $ journalctl -u hookdeploy",),
    ),
    (
        r"disk is full|disk of .* is nearly full|no space left on device|disk quota exceeded",
        ("make room on the disk $ df -h; df -i",),
    ),
    (
        r"^.*host key(?s:.*)remote host identification has changed",
        (
            "find out why the host key of {host} has changed: it may be somebody between you and it",
            "only if its owners say so, forget the old one{as_user} $ ssh-keygen -R {host}",
            "accept the new one{as_user} $ ssh-keyscan -t ed25519 {host} >> ~/.ssh/known_hosts",
            "compare its fingerprint with {fingerprints} $ ssh-keygen -l -F {host}",
        ),
    ),
    (
        r"^.*host key",
        (
            "accept the host key{as_user} $ ssh-keyscan -t ed25519 {host} >> ~/.ssh/known_hosts",
            "compare its fingerprint with {fingerprints} $ ssh-keygen -l -F {host}",
        ),
    ),
    (
        r"permission denied \(publickey|^.*(the remote refused the deploy key|the key may not read it)",
        (
            "show the deploy key{as_user}, unless deploy_key of {app} names another $ cat ~/.ssh/id_ed25519.pub",
            "paste it at {keys_page}; it need not be allowed to write",
            "see whether it is taken now $ hookdeploy doctor",
        ),
    ),
    (
        r"^.*(authentication: the remote|is private: then the remote wants)",
        (
            "see whether the address is right: a private repository is to strangers as if there were none",
            "make a deploy key, and let repository of {app} be git@{host}:OWNER/NAME.git $ ssh-keygen -t ed25519",
            "see what is missing $ hookdeploy doctor",
        ),
    ),
    (
        r"^.*(could not be resolved|refused the connection|the remote did not answer|answered too slowly)",
        ("see whether this machine reaches it{as_user} $ git ls-remote {repository}",),
    ),
    (
        r"^.*(no such branch or tag|has no tag that matches|HEAD names no branch)",
        (
            "see what there is{as_user} $ git ls-remote {repository}",
            "name the right branch or tag of {app} in hookdeploy.toml, and then $ hookdeploy check",
        ),
    ),
    (
        r"^.*there is no (git|such) repository",
        ("see whether the address is right{as_user} $ git ls-remote {repository}",),
    ),
    (
        r"No module named '?(?P<module>[\w.]+)",
        ("{module} is not in its environment: name what brings it in requirements.txt or pyproject.toml, and push",),
    ),
    (
        r"^step .+ failed: timeout",
        (
            "if it needs longer, set step_timeout of {app}, or timeout of that step, in hookdeploy.toml",
            "run the step by hand, in a checkout of {commit}{as_user} $ {command}",
        ),
    ),
    (
        r"^step .+ failed: could not start",
        ("install that program where hookdeploy's own PATH has it, or name it by its full path $ {command}",),
    ),
    (
        r"^step .+ failed: signal 9",
        (
            "see whether the machine ran out of memory $ dmesg | tail",
            "run the step by hand, in a checkout of {commit}{as_user} $ {command}",
        ),
    ),
    (r"^step .+ failed", ("run the step by hand, in a checkout of {commit}{as_user} $ {command}",)),
    (
        r"address already in use|cannot listen on",
        ("see who has the port, and end that or set another bind of {app} $ ss -ltnp",),
    ),
    (
        r"^.*did not pass its probation",
        (
            "it started well and failed with real requests: look for tracebacks among the last lines, mend it and push",
            "{commit} is not tried again by itself; a newer commit is",
        ),
    ),
    (
        r"^.*?(?P<path>/\S*) (answered \d+|raised|gave no)",
        (
            "{path} has to answer with 2xx or 3xx: look for its traceback among the last lines, or in the app's log",
            "if it asks for what it has not got here, give {app} its env or env_file, or name another health path",
        ),
    ),
    (
        r"^.*the app could not be loaded",
        ("import it by hand, in a checkout of {commit} and its environment $ python -c 'import wsgi'",),
    ),
    (r"^.*health_timeout", ("if it needs longer to start, set health_timeout of {app} in hookdeploy.toml",)),
    (
        r"^.*(local changes|files in the clone are in the way)",
        ('commit, stash or remove them there; update = "reset" in hookdeploy.toml overwrites them $ git status',),
    ),
    (
        r"^.*(conflict|gone different ways)",
        ("rebase in the clone by hand, and push its local commits $ git pull --rebase",),
    ),
    (r"^.*(?P<tool>uv|gunicorn) is not installed", ("install it beside hookdeploy $ pip install {tool}",)),
)
"""What is looked for in a reason, or (``^``) in its first line, in this order and whatever its case; and what helps:
words, and behind `` $ `` a command.

Most of the words are those of ``repository``, ``appserver`` and ``supervision``; the others are git's and ssh's.
"""

_FINGERPRINTS = {
    "github.com": "https://docs.github.com/authentication/keeping-your-account-and-data-secure/githubs-ssh-key-fingerprints",
    "gitlab.com": "https://docs.gitlab.com/user/gitlab_com/#ssh-host-keys-fingerprints",
    "bitbucket.org": "https://bitbucket.org/site/ssh",
}
_KEYS = {
    "github.com": "https://github.com/{name}/settings/keys",
    "gitlab.com": "https://gitlab.com/{name}/-/settings/repository#js-deploy-keys-settings",
    "bitbucket.org": "https://bitbucket.org/{name}/admin/access-keys/",
}
"""Where a deploy key of a repository is entered."""


def _remedies(deployment: Deployment, present: Present) -> Iterator[Remedy]:
    """What is known to help against the first thing that is known again in the reason; and then what always does."""
    for sign, templates in _KNOWN:
        found = re.search(sign, deployment.reason, re.IGNORECASE)
        if found is not None:
            facts = {**_facts(deployment, present), **found.groupdict()}
            yield from (_remedy(template, facts) for template in templates)
            break
    yield Remedy("read all that it has printed", f"hookdeploy log {deployment.id}")
    if deployment.transient:
        yield Remedy("there is nothing to repeat by hand: it is tried again by itself")
    else:
        yield _once_more(deployment)


def _remedy(template: str, facts: Mapping[str, str]) -> Remedy:
    words, _, command = template.partition(" $ ")
    return Remedy(words.format_map(facts), command.format_map(facts))


def _facts(deployment: Deployment, present: Present) -> Mapping[str, str]:
    """What remedies speak of."""
    step, host = _failed_step(deployment), _host(deployment, present)
    published = _FINGERPRINTS.get(host)
    return {
        "app": deployment.app,
        "commit": deployment.revision[:7] if deployment.revision else "it",
        "command": step.command if step is not None else "its command",
        "repository": present.repository or "REPOSITORY",
        "host": host,
        "keys_page": _keys_page(host, present),
        "fingerprints": f"those at {published}" if published else f"what {host} publishes",
        "as_user": f", as {present.user}" if present.user else "",
    }


def _keys_page(host: str, present: Present) -> str:
    name = re.search(r"[/:]([\w.-]+/[\w.-]+?)(\.git)?/?$", present.repository or "")
    page = _KEYS.get(host)
    if name is None or page is None:
        return f"the repository's settings at {host}, among its deploy keys"
    return page.format(name=name[1])


def _host(deployment: Deployment, present: Present) -> str:
    """That of the remote, from its address or as ssh names it; ``HOST`` if nobody tells."""
    asked = re.search(r"^(?:\w+://)?(?:[^@/]+@)?(\w[\w.-]*)(?::|/)", present.repository or "")
    named = re.search(r"(?:(?:known|key) for |\w@)\[?(\w[\w.-]*)", deployment.reason)
    found = asked or named
    return found[1].strip(".") if found is not None else "HOST"


def _failed_step(deployment: Deployment) -> Step | None:
    last = deployment.steps[-1] if deployment.steps else None
    return None if last is None or last.status == "ok" else last


def _once_more(deployment: Deployment) -> Remedy:
    return Remedy("then push a newer commit, or try this one again", f"hookdeploy deploy {deployment.app}")


def _commit(deployment: Deployment) -> str:
    return f"{(deployment.revision or '')[:7]} {deployment.subject or ''}".strip()


# --- a delivery


def of_delivery(delivery: Delivery) -> Advice:
    """Why a delivery led to what it led to; what became of its deployments, each of them tells."""
    told = ", ".join(f"{push.ref} of {push.repository}" for push in delivery.pushes)
    what = f"The hook {delivery.hook} was told of " + (told or f"an event {delivery.event}")
    if delivery.deployments:
        see = (Remedy("see what became of it", f"hookdeploy why {each}") for each in delivery.deployments)
        return Advice(f"{what}; that led to {' and '.join(delivery.deployments)}.", remedies=tuple(see))
    if delivery.verdict is not Verdict.IGNORED:
        return Advice(f"{what}; what it led to is not kept any more.")
    return Advice(f"{what}, and nothing was deployed: {delivery.reason}.", remedies=_for_the_sender(delivery))


def of_silence() -> Advice:
    """Why a push did not deploy of which no delivery tells."""
    return Advice(
        "No delivery of it is written down: the forge sent none, or it was refused before anybody believed it.",
        remedies=(
            Remedy("see at the forge, among the webhook's recent deliveries, what was sent and how it was answered"),
            Remedy("401 there means that it was signed with another secret", "hookdeploy secret list"),
            Remedy("403 there means that no app deploys that repository", "hookdeploy status"),
            Remedy("see whether all is well here", "hookdeploy doctor"),
            Remedy("send one yourself", "hookdeploy send --event push"),
        ),
    )


def _for_the_sender(delivery: Delivery) -> tuple[Remedy, ...]:
    if "no app deploys this" in delivery.reason:
        return (
            Remedy("push or merge to what an app deploys; this tells which that is", "hookdeploy status"),
            Remedy("or set branch, or tag, of the app in hookdeploy.toml, and then", "hookdeploy check"),
        )
    if "not a push" in delivery.reason:
        return (Remedy("let the webhook at the forge send push events; all others are ignored"),)
    return ()
