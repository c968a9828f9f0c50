"""What a parser says of flags that do not fit, in one line without a help text."""

from __future__ import annotations

import re
from collections.abc import Collection

from binep.registry import did_you_mean

_NUMBERS = {"int()": "must be a whole number", "to float": "must be a number"}
"""Parts of what Python says of a word that is no number, and what is said instead."""
_HELP = " (?:Perhaps you meant|Arguments similar to|Argument helptext|For full helptext)"


def refusal(text: str, flags: Collection[str], prog: str) -> str:
    """The first problem, by its flag, the value and what would be right.

    Args:
        text: what tyro printed, in one line.
        flags: those that there are.
        prog: the command.
    """
    said = re.split(_HELP, text)[0]
    if found := re.match(r"Unrecognized options: (.*)", said):
        return _unknown(found[1].split(", "), flags, prog)
    if found := re.match(r"Error parsing (\S+): (.*)", said):
        name, why = found.groups()
        value = why.split(": ", 1)[-1].strip("[]'").replace("', '", " ")
        for part, needed in _NUMBERS.items():
            if part in why:
                return f"{name} {value}: {needed}"
        if why.startswith("Could not find valid parse"):
            return f"{name} {value}: is not what {prog} --help says it takes"
        return f"{name}: {why}"
    if found := re.match(r"invalid choice '(.*)' for argument '(\S+)'. Expected one of (.*)", said):
        value, name, choices = found.groups()
        listed = ", ".join(re.findall(r"'(.*?)'", choices))
        return f"{name} {value}: must be one of {listed}"
    if found := re.match(r"Missing value for argument '(\S+)'", said):
        return f"{found[1]}: needs a value"
    if found := re.match(r"Missing from .*?: (\S+) (.*?)\.? \(required\)", said):
        return f"{found[1]} is missing: {found[2][:1].lower()}{found[2][1:]}"
    return said


def _unknown(words: Collection[str], flags: Collection[str], prog: str) -> str:
    names = [word.split("=")[0] for word in words if word.startswith("--")]
    if not names:
        return f"unexpected {' '.join(words)}: {prog} takes no more there"
    last = f"--{names[0].removeprefix('--').rsplit('.', 1)[-1]}"
    hint = did_you_mean(names[0], flags) or did_you_mean(last, flags)
    return f"unknown flag {names[0]}{hint}: {prog} --help lists all"
