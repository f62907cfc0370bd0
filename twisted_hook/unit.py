"""The systemd unit for a configuration: keeps hookdeploy running, and takes away what neither it nor an app needs.

Pure. What the unit allows is allowed to the apps, which run in it too, and which outlive a restart of it: it has only
what breaks no ordinary app. Each reason stands in the unit itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from twisted_hook import addresses
from twisted_hook.config import Config

_STOP_SECONDS = 90
"""What stopping takes at the most besides the drains: every step of it has 15 s."""
_TO_BECOME_OTHERS = (
    "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE",
)  # fmt: skip
"""Running apps as ``user``, giving them their trees, reading their ``/proc`` entries, and ending them."""


def unit(config: Config, *, file: Path, twistd: Path, user: str) -> str:
    """The text of hookdeploy.service for the configuration in this file; all paths are absolute."""
    sections = (_about(config), _service(config, file, twistd, user), _hardening(config, user), _choices(config))
    text = "".join(f"{line}\n" for section in sections for line in (*section, ""))
    return f"{text}[Install]\nWantedBy=multi-user.target\n"


def _about(config: Config) -> Iterator[str]:
    yield "[Unit]"
    yield f"Description=hookdeploy for {', '.join(config.apps)}"
    yield "Wants=network-online.target"
    yield "After=network-online.target"
    yield "StartLimitIntervalSec=0"


def _service(config: Config, file: Path, twistd: Path, user: str) -> Iterator[str]:
    yield "[Service]"
    yield "# Started once it takes hooks. Since systemd 253, Type=notify-reload without ExecReload= lets"
    yield "# systemctl reload wait until the configuration was read."
    yield "Type=notify"
    yield f"User={user}"
    if user == "root" and not _lends(config):
        yield "# Better a user of its own: whoever may push to the branch runs code as this user."
    yield f"WorkingDirectory={_path(file.parent)}"
    words = (str(twistd), "-n", "--pidfile=", "hookdeploy", "--config", str(file))
    yield f"ExecStart={' '.join(map(_word, words))}"
    yield "ExecReload=/bin/kill -HUP $MAINPID"
    yield "Restart=always"
    yield "RestartSec=1"
    yield "# Not the apps, nor the keeper of the sockets: they are hookdeploy's to end, or to leave to the next one."
    yield "KillMode=process"
    yield "# At a restart the apps serve on (systemd 244 and later)."
    yield "RestartKillSignal=SIGQUIT"
    drain = max((app.drain for app in config.apps.values()), default=0.0)
    yield "# Beyond the longest drain, for a reload that is under way as well."
    yield f"TimeoutSec={_STOP_SECONDS + 2 * int(drain + 0.999)}"
    yield "# hookdeploy is restarted if it is stuck; the apps serve on."
    yield "WatchdogSec=60"
    yield "# A build that takes all memory ends alone, and not with everything else."
    yield "OOMPolicy=continue"
    yield "# A connection is a descriptor, and the usual 1024 of them are few."
    yield "LimitNOFILE=65536"
    yield "# What a build makes is to be read by the web server; the state directory keeps to itself by its mode."
    yield "UMask=0022"
    yield "SyslogIdentifier=hookdeploy"
    yield from _directories(config)


def _directories(config: Config) -> Iterator[str]:
    """systemd makes them where only root may."""
    if config.state.parent == Path("/var/lib"):
        yield f"StateDirectory={_path(Path(config.state.name))}"
        yield "StateDirectoryMode=0700"
    sockets = (*(app.bind for app in config.apps.values() if app.served), *config.server.listen)
    unix = [each.removeprefix("unix:").partition(":")[0] for each in sockets if each.startswith("unix:")]
    paths = map(PurePosixPath, unix)
    names = sorted({path.parts[2] for path in paths if path.parts[:2] == ("/", "run") and len(path.parts) > 3})
    if names:
        yield f"RuntimeDirectory={' '.join(_item(name) for name in names)}"
        yield "# The sockets in there outlive a restart."
        yield "RuntimeDirectoryPreserve=restart"


def _hardening(config: Config, user: str) -> Iterator[str]:
    yield "# Nobody becomes more than he is: sudo does not work in a step, as most of what follows asks for this too."
    yield "NoNewPrivileges=true"
    yield from _capabilities(config, user)
    yield "# /usr, /boot and /etc are read-only; apps keep their files where they like besides."
    yield "ProtectSystem=full"
    for path in (config.state, *(app.path for app in config.apps.values() if app.path is not None)):
        if path.is_relative_to("/etc") or path.is_relative_to("/usr"):
            yield f"ReadWritePaths={_item(f'-{path}')}"
    yield "# No devices but /dev/null and its like: an app that computes on a graphics card needs this away."
    yield "PrivateDevices=true"
    for name in ("KernelTunables", "KernelModules", "KernelLogs", "ControlGroups", "Clock", "Hostname"):
        yield f"Protect{name}=true"
    yield "RestrictRealtime=true"
    yield "LockPersonality=true"
    yield "# The network, the sockets of this machine, and the question which addresses it has."
    yield "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK"
    yield "# No containers inside: an app that runs a browser with its sandbox, or bubblewrap, needs this away."
    yield "RestrictNamespaces=true"
    yield "# What services need; a program that tries something else is refused it, and not killed."
    yield "SystemCallFilter=@system-service"
    yield "SystemCallErrorNumber=EPERM"
    yield "SystemCallArchitectures=native"
    if not _lends(config):
        yield "# Nobody else's processes can be seen."
        yield "ProtectProc=invisible"


def _capabilities(config: Config, user: str) -> Iterator[str]:
    low = ["CAP_NET_BIND_SERVICE"] if _listens_low(config) else []
    if _lends(config):
        yield "# Root, only to run each app as its own user."
        yield f"CapabilityBoundingSet={' '.join([*_TO_BECOME_OTHERS, *low])}"
    elif user != "root":
        yield f"CapabilityBoundingSet={' '.join(low)}"
        if low:
            yield "# For the ports below 1024."
            yield f"AmbientCapabilities={low[0]}"


def _choices(config: Config) -> Iterator[str]:
    """What is good where it is possible; nobody but the administrator can know that."""
    kept = (config.state, *(app.path for app in config.apps.values() if app.path is not None))
    yield "# To choose from, with the # taken away:"
    yield "# If nothing that is deployed lies in /home, and neither do the keys and caches of the user:"
    yield "#ProtectHome=true"
    yield "# If the apps write nowhere else; more places can be added:"
    yield "#ProtectSystem=strict"
    yield f"#ReadWritePaths={' '.join(_item(str(path)) for path in kept)}"
    yield "# If no step and no app sets a set-group-id bit, as on a directory that a group shares:"
    yield "#RestrictSUIDSGID=true"
    yield "# If no app compiles at run time; PyPy, numba, node and the callbacks of cffi do:"
    yield "#MemoryDenyWriteExecute=true"
    yield "# Never PrivateTmp=, DynamicUser= or RemoveIPC=: systemd would take away at a restart what the apps, which"
    yield "# serve on, have in /tmp, on disk or in shared memory. Delegate= is of no use here."


def _lends(config: Config) -> bool:
    """Whether it must be root to run apps as others."""
    return any(app.user is not None for app in config.apps.values())


def _listens_low(config: Config) -> bool:
    doors = [addresses.endpoint_address(each) for each in config.server.listen]
    bound = [addresses.bound_address(app.bind) for app in config.apps.values() if app.served]
    return any(address and 0 < address[1] < 1024 for address in (*doors, *bound))


def _path(path: Path) -> str:
    return str(path).replace("%", "%%")


def _word(word: str) -> str:
    """A word of a command line as systemd reads it (systemd.service(5), "Command lines")."""
    return _item(word.replace("$", "$$"))


def _item(word: str) -> str:
    """An item of a list as systemd reads it (systemd.syntax(7), "Quoting")."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if escaped != word or any(letter in word for letter in " \t';#$") else escaped
