"""hookdeploy as a service: whether its public door answers, and what systemd makes of its unit."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from twisted_hook import addresses
from twisted_hook.cli.doctor.finding import Finding, ok, problem, skipped, warning
from twisted_hook.cli.doctor.patient import Patient
from twisted_hook.unit import unit

UNIT = "hookdeploy.service"
_PROPERTIES = ("LoadState", "ActiveState", "NeedDaemonReload", "Restart", "UnitFileState", "FragmentPath", "MainPID")


# --- the door


def answers_here(patient: Patient) -> Iterator[Finding]:
    """What the doors answer on this machine."""
    for endpoint in patient.config.server.listen if patient.config else ():
        name, address = f"answer of {endpoint}", addresses.endpoint_address(endpoint)
        if patient.running is None:
            yield skipped(name, "no server runs")
        elif addresses.is_claimed(endpoint) or address is None:
            yield skipped(name, "only a proxy can ask there")
        else:
            host = f"[{address[0]}]" if ":" in address[0] else address[0] or "127.0.0.1"
            scheme = "https" if endpoint.startswith(("ssl:", "tls:")) else "http"
            problem_of = _unwell(f"{scheme}://{host}:{address[1]}/healthz", verify=False)  # it is for the public name
            if problem_of:
                yield problem(name, problem_of, "journalctl -u hookdeploy -n 50")
            else:
                yield ok(name, "it answers /healthz")


def answers_in_public(patient: Patient) -> Iterator[Finding]:
    """What is answered at the address by which the forge knows us, as seen from here."""
    config = patient.config
    url = config.server.public_url if config else None
    if url is None or config is None:
        yield skipped("public address", "server.public_url is not set", 'public_url = "https://…" under [server]')
        return
    if patient.running is None:
        yield skipped("public address", "no server runs")
        return
    wrong = _unwell(f"{url}/healthz", verify=True)
    if wrong and not any(_is_our_hook(url + hook.path) for hook in config.hooks):
        remedy = (
            f"from another machine: curl -i {shlex.quote(f'{url}/healthz')}   and look at the proxy, DNS and firewall"
        )
        yield warning("public address", f"seen from here, {wrong}", remedy)
    else:
        yield ok("public address", f"{url} leads to hookdeploy")


def _unwell(url: str, *, verify: bool) -> str:
    """What is wrong with an address of ours; empty if nothing is."""
    try:
        answer = httpx.get(url, timeout=10.0, trust_env=False, verify=verify)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return f"{url} does not answer: {str(error) or type(error).__name__}"
    if answer.status_code == 200 and answer.content.strip() == b"ok":
        return ""
    return f"{url} answers {answer.status_code}, and not as hookdeploy would"


def _is_our_hook(url: str) -> bool:
    """A proxy may pass on nothing but the hooks, which are for POST alone."""
    try:
        answer = httpx.get(url, timeout=10.0, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL, OSError):
        return False
    return answer.status_code == 405 and answer.headers.get("allow") == "POST"


# --- systemd


def systemd(patient: Patient) -> Iterator[Finding]:
    """What systemd makes of the unit."""
    if shutil.which("systemctl") is None or not Path("/run/systemd/system").is_dir():  # sd_booted(3)
        yield skipped("systemd", "it does not run on this machine")
        return
    said = patient.ask("systemctl", "show", UNIT, *(f"--property={name}" for name in _PROPERTIES))
    if not said.ok:
        yield skipped("systemd", f"systemctl {said.verdict}")
        return
    lines = said.stdout.decode("utf-8", "replace").splitlines()
    properties = {name: value for name, _, value in (line.partition("=") for line in lines)}
    running = patient.running.pid if patient.running else None
    yield from judge_unit(properties, running=running, source=patient.source, wanted=_wanted(patient))


def _wanted(patient: Patient) -> str:
    """What ``init`` would write now; empty where there is no file that it could be for."""
    if patient.config is None or patient.source is None:
        return ""
    twistd = Path(sys.executable).with_name("twistd")
    return unit(patient.config, file=patient.source, twistd=twistd, user=patient.user)


def judge_unit(said: Mapping[str, str], *, running: int | None, source: Path | None, wanted: str) -> Iterator[Finding]:
    """``said`` are properties of systemctl(1); ``source`` is the configuration, and ``wanted`` the unit for it."""
    if said.get("LoadState") == "not-found":
        written = source.with_name(UNIT) if source else None
        start = f"sudo systemctl enable --now {shlex.quote(str(written))}"
        remedy = start if written and written.exists() else "hookdeploy init"
        yield warning("systemd", f"there is no {UNIT}, so nothing starts hookdeploy after a reboot", remedy)
        return
    wrong = list(_wrong(said, running))
    fragment = Path(said.get("FragmentPath") or "/nonexistent")
    if wanted and source and _says_otherwise(fragment, wanted):
        show = f"hookdeploy init --print-unit --directory {shlex.quote(str(source.parent))}"
        copy = f"{show} | sudo tee {shlex.quote(str(fragment))} && sudo systemctl daemon-reload"
        words = f"{fragment} is not what hookdeploy init would write for {source} now"
        remedy = f"{show} | diff {shlex.quote(str(fragment))} -   and if that is better: {copy}"
        wrong.append(warning("systemd", words, remedy))
    yield from wrong or [ok("systemd", f"{UNIT} is {said.get('ActiveState')}, and starts with the machine")]


def _wrong(said: Mapping[str, str], running: int | None) -> Iterator[Finding]:
    if said.get("LoadState") not in {None, "loaded"}:
        yield problem("systemd", f"{UNIT} cannot be loaded ({said['LoadState']})", f"systemd-analyze verify {UNIT}")
    if said.get("ActiveState") == "failed":
        yield problem("systemd", f"{UNIT} has failed", f"journalctl -u {UNIT} -n 50; sudo systemctl restart {UNIT}")
    elif said.get("ActiveState") != "active":
        yield warning("systemd", f"{UNIT} is {said.get('ActiveState')}", f"sudo systemctl start {UNIT}")
    elif running and said.get("MainPID") not in {None, "0", str(running)}:
        words = f"{UNIT} is pid {said['MainPID']}, and who works in the state directory is pid {running}"
        yield warning("systemd", words, f"systemctl status {UNIT}")
    if said.get("NeedDaemonReload") == "yes":
        yield warning("systemd", f"{UNIT} was changed, and systemd has not read it", "sudo systemctl daemon-reload")
    if said.get("Restart") in {"no", "on-abort"}:
        yield warning(
            "systemd", "nobody starts hookdeploy again if it ends", f"sudo systemctl edit {UNIT}   # Restart=always"
        )
    if said.get("UnitFileState") == "disabled":
        yield warning("systemd", f"{UNIT} does not start with the machine", f"sudo systemctl enable {UNIT}")


def _says_otherwise(fragment: Path, wanted: str) -> bool:
    try:
        return fragment.read_text() != wanted
    except (OSError, ValueError):
        return False
