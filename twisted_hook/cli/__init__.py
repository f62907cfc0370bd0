"""``hookdeploy``, the command: what a person types beside the server. It never imports the reactor.

Each subcommand lives in a module of its own that is imported when it is asked for, so that the others cost nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import click

from twisted_hook import __version__

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

GOOD, FAILED, USAGE, NOT_RUNNING = 0, 1, 2, 3
"""Exit codes of every command; click itself ends with 2 where it does not understand."""

COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "demo": ("twisted_hook.cli.demo:demo", "Show all of it on this machine, from a push to a new page."),
        "init": ("twisted_hook.cli.init:init", "Write a configuration, a secret and a systemd unit."),
        "check": ("twisted_hook.cli.check:check", "Read the configuration and name everything that is wrong with it."),
        "doctor": ("twisted_hook.cli.doctor:doctor", "Look at all that a deployment needs, and say how to mend it."),
        "status": ("twisted_hook.cli.status:status", "Show what runs, and which secrets have verified a delivery."),
        "history": ("twisted_hook.cli.history:history", "Show what was deployed, and what came of it."),
        "deliveries": ("twisted_hook.cli.history:deliveries", "Show what arrived, and what it led to."),
        "log": ("twisted_hook.cli.log:log", "Print a deployment's output; with -f until it ends."),
        "why": ("twisted_hook.cli.why:why", "Say why something was deployed or not, and what to do next."),
        "open": ("twisted_hook.cli.open:open_", "Open the dashboard in a browser that it logs in."),
        "deploy": ("twisted_hook.cli.steer:deploy", "Deploy the tip of a branch, or a revision, now."),
        "rollback": ("twisted_hook.cli.steer:rollback", "Put an earlier release back."),
        "pin": ("twisted_hook.cli.steer:pin", "Keep an app at its current release."),
        "unpin": ("twisted_hook.cli.steer:unpin", "End that."),
        "pause": ("twisted_hook.cli.steer:pause", "Let what is pushed wait."),
        "resume": ("twisted_hook.cli.steer:resume", "End that, and deploy the newest of what waits."),
        "cancel": ("twisted_hook.cli.steer:cancel", "End a deployment that runs or waits."),
        "replay": ("twisted_hook.cli.steer:replay", "Deploy once more what a delivery is for."),
        "secret": ("twisted_hook.cli.secret:secret", "Make the next secret of a hook, and see which ones verify."),
        "send": ("twisted_hook.cli.send:send", "Send a correctly signed test delivery to a running server."),
        "completion": ("twisted_hook.cli.completion:completion", "Print what makes a shell complete all this."),
    }
)
"""Where each subcommand is, and its line in the help, in the order in which one meets them."""


class LazyGroup(click.Group):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        return command if isinstance(command, click.Command) else None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """By name, so that none is imported: somebody has typed a tabulator and waits."""
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=line) for name, (_, line) in COMMANDS.items() if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


# The commands named here stand in for the real ones where only their names count: in "Did you mean …?".
@click.group(
    cls=LazyGroup,
    commands=[click.Command(name) for name in COMMANDS],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="hookdeploy")
def hookdeploy() -> None:
    """Push-to-deploy for plain Python web applications: git push, and the site is new.

    The server itself is started with: twistd -n hookdeploy --config hookdeploy.toml
    """


def main() -> None:
    """The console script."""
    hookdeploy(prog_name="hookdeploy")
