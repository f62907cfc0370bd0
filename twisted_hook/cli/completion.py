"""``hookdeploy completion``: what a shell reads so that it completes commands, options and the names of apps."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command(
    epilog='For this shell alone: eval "$(hookdeploy completion bash)". For each new one, put that line into ~/.bashrc '
    "or ~/.zshrc; fish: hookdeploy completion fish > ~/.config/fish/completions/hookdeploy.fish"
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete hookdeploy's commands, their options, and the names of apps."""
    script = get_completion_class(shell)
    if script is None:
        raise click.UsageError(f"{shell} cannot complete")
    click.echo(script(context.find_root().command, {}, "hookdeploy", "_HOOKDEPLOY_COMPLETE").source())
