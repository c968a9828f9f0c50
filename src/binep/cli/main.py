"""The `binep` command: which command is called, and what all commands have in common.

A command's module has the command's name, and is imported when that command is called.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from binep.cli.errors import reporting_errors
from binep.cli.output import warn

COMMANDS = {
    "train": "Train a network: PRESET, --config FILE.toml, or --resume RUN to go on with a run "
    "that was interrupted.",
    "evaluate": "Test a trained network again: RUN.",
    "predict": "Classify pictures and arrays with a trained network: RUN FILE...",
    "summary": "Show what a trained network consists of, and its flips per weight: RUN.",
    "plot": "Draw the curves of one run or of several: RUN...",
    "compare": "Show runs side by side: what differs between settings, and results: RUN...",
    "report": "Write a page about one run or several: RUN... --output FILE.html",
    "export": "Write a trained network as a file for other programs: RUN --format packed",
    "page": "Write a page that runs a trained network in a browser: RUN --output digit.html",
    "inspect": "Follow one image through a trained network: RUN --index 18",
    "sweep": "Search settings with many runs on a cluster: PRESET --set 'beta=uniform(0.1,1)'.",
    "reproduce": "Run rows of the paper's tables, and write them: ROW...",
    "check": "Compare equilibrium propagation with backpropagation: gradients PRESET.",
    "presets": "List the presets.",
    "models": "List the trained networks that come with binep.",
    "completion": "Print a script that completes words in bash and zsh.",
}
"""What each command does, as `binep --help` says it."""

ABOUT = """\
Binary neural networks trained by equilibrium propagation.
- binep COMMAND --help, or binep help COMMAND, lists what a command takes.
- binep --version prints the version.
- Bad input ends with exit code 2 and one line per problem.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 2 for bad input."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with reporting_errors() as failed:
        if arguments[:1] == ["help"]:
            arguments = [*arguments[1:], "--help"]
        if not arguments or arguments[0] in ("-h", "--help"):
            _print_help()
        elif arguments[0] == "--version":
            from binep import __version__

            print(f"binep {__version__}")
        elif arguments[0] in COMMANDS:
            _warn_of_repeated(arguments[1:])
            _load_plugins(arguments[1:])
            importlib.import_module(f"binep.cli.{arguments[0]}").main(arguments[1:])
        else:
            from binep.experiment.config import ConfigError, did_you_mean

            hint = did_you_mean(arguments[0], COMMANDS)
            raise ConfigError(f"unknown command {arguments[0]}{hint}: one of {', '.join(COMMANDS)}")
    return 2 if failed or not arguments else 0


def _warn_of_repeated(arguments: Sequence[str]) -> None:
    """Say which flags stand there twice: only the last one counts."""
    flags = (word.split("=")[0].replace("_", "-") for word in arguments if word[:2] == "--")
    counts = Counter(f"--{flag[5:]}" if flag[:5] == "--no-" else flag for flag in flags)
    for flag, count in counts.items():
        if count > 1 and flag not in ("--plugin", "--set"):
            warn(f"{flag} is given {count} times: the last one counts")


def _load_plugins(arguments: Sequence[str]) -> None:
    """Run the modules of --plugin, so that what they add can be named by all other words."""
    named: dict[str, Path] = {}
    for word, after in zip(arguments, [*arguments[1:], ""], strict=False):
        text = after if word == "--plugin" else word.removeprefix("--plugin=")
        if text != word and text:
            from binep.experiment import plugins
            from binep.experiment.settings import ConfigError

            path = Path(text)
            other = named.setdefault(path.name, path)
            if other.resolve() != path.resolve():  # a run knows its modules by these names
                raise ConfigError(f"--plugin {path}: {other} has the same name: rename one")
            plugins.load(path)


def _print_help() -> None:
    """The list of commands as tyro shows subcommands, none of which has to be imported for it."""
    import contextlib
    import io

    from tyro.extras import SubcommandApp

    app = SubcommandApp()
    for name, text in COMMANDS.items():

        def described() -> None:
            pass

        described.__doc__ = text
        app.command(name=name)(described)
    printed = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(printed):
        app.cli(prog="binep", args=["--help"], description=ABOUT)
    _, rest = printed.getvalue().split("\n", 1)  # the first line has all commands' names
    print(f"usage: binep [-h] COMMAND ...\n{rest}", end="")
