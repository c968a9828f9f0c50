"""`binep completion`."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from binep.cli.options import parse
from binep.experiment.config import preset_names

_NAMED = {"train": (), "reproduce": (), "check": ("gradients",)}
"""Commands that take presets, and what else they take by name."""

_SCRIPT = """\
# Completes the words of binep; written by `binep completion`.
if [ -n "$ZSH_VERSION" ]; then
    autoload -Uz compinit bashcompinit && compinit -u && bashcompinit
fi
_binep() {{
    local words word="${{COMP_WORDS[COMP_CWORD]}}"
    case "$COMP_CWORD ${{COMP_WORDS[1]}}" in
    "1 "* | "2 help") words="{commands}" ;;
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _binep binep
"""


@dataclass(frozen=True)
class Options:
    """Print a script that completes commands, flags and presets in bash and zsh.

    Written to a file that the shell reads when it starts:

    - binep completion > ~/.binep-completion
    - echo '. ~/.binep-completion' >> ~/.bashrc

    or ~/.zshrc in the place of ~/.bashrc.
    """


def main(arguments: Sequence[str]) -> None:
    """Print the script."""
    parse(Options, arguments, prog="binep completion")
    from binep.cli.main import COMMANDS

    cases = [f'    *" {name}") words="{" ".join(_words(name))}" ;;' for name in COMMANDS]
    print(_SCRIPT.format(commands=" ".join([*COMMANDS, "help"]), cases="\n".join(cases)), end="")


def _words(command: str) -> list[str]:
    """What may stand behind a command, besides files."""
    named = _NAMED.get(command)
    help = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(help):
        importlib.import_module(f"binep.cli.{command}").main([*(named or ()), "--help"])
    flags = re.findall(r"(?m)^[ │]*(?:-h, )?(--[a-z][\w.-]*)(?:, (--no-[\w.-]+))?", help.getvalue())
    presets = preset_names() if named is not None else []
    return [*(named or ()), *presets, *(flag for pair in flags for flag in pair if flag)]
