"""`binep completion`."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from binep.cli.options import parse, wide
from binep.experiment.config import preset_names

_NAMED = {"train": (), "reproduce": (), "check": ("gradients",), "sweep": ()}
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
    case "${{COMP_WORDS[1]}} ${{COMP_WORDS[COMP_CWORD - 1]}}" in
{choices}
    *" --help" | *" --no-"*{switches}) ;;
    *" --"*) words="" ;; # a number, a name or a file
    esac
    case "$word" in
    -*) ;;
    *) words=" $words" words="${{words%% --*}}" ;;
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

    cases, choices, switches = [], [], set()
    for command in COMMANDS:
        flags = _flags(command)
        named = _NAMED.get(command)
        presets = preset_names() if named is not None else []
        words = [*(named or ()), *presets, *(word for words in flags for word in words[:2] if word)]
        cases.append(f'    *" {command}") words="{" ".join(words)}" ;;')
        for flag, without, values in flags:
            if without:
                switches.add(f' | *" {flag}"')
            elif choosable := [word for word in values.split(",") if word not in ("", "None")]:
                choices.append(f'    "{command} {flag}") words="{" ".join(choosable)}" ;;')
    print(
        _SCRIPT.format(
            commands=" ".join([*COMMANDS, "help"]),
            cases="\n".join(cases),
            choices="\n".join(choices),
            switches="".join(sorted(switches)),
        ),
        end="",
    )


def _flags(command: str) -> list[tuple[str, str, str]]:
    """A command's flags, each with its --no- form and what it chooses from, with commas between."""
    help = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(help), wide():
        importlib.import_module(f"binep.cli.{command}").main([*_NAMED.get(command, ()), "--help"])
    pattern = r"(?m)^[ │]*(?:-h, )?(--[a-z][\w.-]*)(?:, (--no-[\w.-]+))?(?: \{([\w,.-]+)\})?"
    return re.findall(pattern, help.getvalue())
