"""What README and docs say is so: their commands and Python run, their links and presets exist."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import operator
import re
import shlex
import shutil
import subprocess
import tomllib
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pooch  # type: ignore[import-untyped]
import pytest
import samples
import torch
import torch.distributed.run
from markdown_it import MarkdownIt
from PIL import Image

import binep
from binep.cli import main as cli
from binep.cli import paper as seed_cli
from binep.cluster import space
from binep.core import solvers
from binep.experiment import plugins
from binep.experiment.config import Config, Layer, preset, preset_names
from binep.experiment.experiment import Experiment
from binep.runs import folder as runs

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *ROOT.glob("results/*.md")]

RUN_BY_CI = {"make test", "make docs"}
"""What runs this file, and what runs beside it."""
INSTALLS = ("pip install", "apt-get install", "python3 -m venv", ". .venv/bin/activate")
"""What CI did before, in its own way."""

SHORT = {
    "train": "--epochs 1 --max-batches 1 --threads 1",
    "check": "--samples 1 --steps 1 --free-steps 9 --betas 1e-2 --threads 1",
    "reproduce": "--epochs 1 --seeds 1 --threads 1",
    "main.py": "--epochs 1 --max-batches 1 --threads 1",
}
"""Flags at the end of a command replace the page's own, so that it takes a second."""
PLACEHOLDERS = {
    "COMMAND": "train",
    "PRESET": "quickstart",
    "ROW": "mnist-fc1-ep-alpha",
    "RUN": "runs/yours",
}
"""What a page means by a word in capitals; RUN is a run that every page finds."""


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """The code of a page in its order: "python", "toml", a "command" or, in a line, a "word"."""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        language = token.info.split(" ")[0]
        if language in ("python", "toml"):
            yield language, token.content
        elif token.type in ("fence", "code_block"):
            for line in token.content.replace("\\\n", " ").splitlines():
                if is_command(line):
                    yield "command", line
                else:
                    assert language not in ("sh", "bash", "console"), f"unknown command: {line}"
        elif token.type == "inline":
            for child in token.children or []:
                if child.type == "code_inline" and is_command(child.content):
                    yield "command", child.content
                elif child.type == "code_inline":
                    yield "word", child.content


def is_command(line: str) -> bool:
    programs = r"(\.venv/bin/)?(binep|python3?|make|pip|tensorboard) \S"
    return bool(re.match(programs, line)) or line.startswith(INSTALLS)


def named_runs() -> set[str]:
    """Folders that some page trains into."""
    lines = [line for page in PAGES for kind, line in blocks(page) if kind == "command"]
    return {folder for line in lines for folder in re.findall(r"--run-dir[ =](\S+)", line)}


def call(main: Callable[[Sequence[str]], int], words: Sequence[str]) -> str:
    """What a command prints; it must end well."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            code: object = main(words)
        except SystemExit as exit:
            code = exit.code
    assert not code, f"exit code {code}"
    return said.getvalue()


class Reader:
    """Does what a page says, in a folder of its own.

    Args:
        yours: a run that has ended, for a page that speaks of one which it does not train.
    """

    def __init__(self, yours: Path) -> None:
        self.yours = yours
        self.names: dict[str, object] = {}

    def do(self, kind: str, text: str) -> None:
        if kind == "python" and (named := re.match(r"# (\w+\.py)\n", text)):
            Path(named[1]).write_text(text)  # for the page's other blocks to import
        elif kind == "python":
            exec(compile(text, "block", "exec", dont_inherit=True), self.names)
        elif kind == "toml":
            Config.from_toml(text, "block")
            if named := re.match(r"# (\S+\.toml)\n", text):
                Path(named[1]).write_text(text)
        elif kind == "command":
            self.run(shlex.split(text.removeprefix(".venv/bin/"), comments=True))

    def run(self, words: list[str]) -> None:
        line = " ".join(words)
        if line in RUN_BY_CI:
            return
        if line.startswith(INSTALLS):
            for extra in re.findall(r"\[(.*?)\]", line):
                project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
                assert set(extra.split(",")) <= project["optional-dependencies"].keys()
        elif words[0] == "make":
            dry = ["make", "-Bn", *words[1:]]  # all that it would do
            for recipe in subprocess.check_output(dry, cwd=ROOT, text=True).splitlines():
                if recipe.startswith(".venv/bin/binep"):
                    self.do("command", recipe)
        elif words[:2] == ["tensorboard", "--logdir"]:  # a server: it finds what it shows
            assert list(Path(words[2]).rglob("events.out.tfevents.*"))
        elif words[:2] == ["python", "-m"]:  # a benchmark: it is there
            assert importlib.util.find_spec(words[2]) is not None
        elif words[:2] == ["python", "main.py"]:
            flags = SHORT["main.py"].split()
            call(seed_cli.main, [*words[2:], *flags] if words[2:] != ["..."] else ["--help"])
        else:
            assert words[0] == "binep", f"unknown command: {line}"
            self.binep(words[1:])

    def binep(self, words: list[str]) -> None:
        if ">" in words:  # into a file of the shell's
            words = words[: words.index(">")]
        words = [self.word(words, i) for i in range(len(words)) if words[i] != "..."]
        command = words[0]
        named = len(words) == 1 or words == ["check", "gradients"]
        if named or words[-1] in ("--config", "--from", "--resume", "--run-dir"):
            # Named, not run: it is there, and so is its flag.
            assert "".join(words[1:]) in call(cli.main, [command, "--help"])
        elif command == "sweep" or "--address" in words:  # tests/cluster runs such
            said = call(cli.main, [command, "--help"])
            assert all(word in said for word in words if word.startswith("--"))
            sets = [after for word, after in pairwise(words) if word == "--set"]
            assert len(space.read(sets, preset("quickstart"))) == words.count("--set")
        elif words == ["compare", "sweeps/first"]:
            assert "sweep" in call(cli.main, ["compare", "--help"])
        elif "--resume" in words:
            call(cli.main, words)
        else:
            call(cli.main, [*words, *SHORT.get(command, "").split()])

    def word(self, words: Sequence[str], i: int) -> str:
        word = PLACEHOLDERS["RUN"] if words[i].endswith("/...") else words[i]
        word = PLACEHOLDERS.get(word, word)
        assert not re.fullmatch("[A-Z]{2,}", word), f"what does {word} stand for?"
        if word.startswith("cuda") and not torch.cuda.is_available():
            return "cpu"
        elsewhere = word in named_runs() and words[i - 1] not in ("--run-dir", "--output")
        if (word == PLACEHOLDERS["RUN"] or elsewhere) and not Path(word).exists():
            shutil.copytree(self.yours, word)
        return word


@pytest.fixture(scope="module")
def yours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("yours")
    layers = {"1": Layer(8, bias_lr=0.05), "2": Layer(10, bias_lr=0.05)}
    runs.train(Experiment(Config(layers=layers, max_batches=2, epochs=2, threads=1)), folder)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_to_run_runs(
    page: Path, yours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a page registers is not for the tests after it.
    monkeypatch.setattr(solvers, "_REGISTERED", list(solvers._REGISTERED))
    monkeypatch.setattr(plugins, "_LOADED", {})

    def refuse(*arguments: object, **options: object) -> str:
        raise ConnectionError("refused")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    data = samples.write_mnist(tmp_path / "data")
    samples.write_mnist(data, name="FashionMNIST")
    monkeypatch.setenv("BINEP_DATA", str(data))
    monkeypatch.chdir(tmp_path)
    pixels = np.zeros((3, 28, 28), np.uint8)  # of one's own
    Image.fromarray(pixels[0]).save("digit.png")
    np.savez("more.npz", x=pixels)
    samples.write_own()
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    reader = Reader(yours)
    for kind, text in blocks(page):
        try:
            reader.do(kind, text)
        except Exception:
            pytest.fail(f"{page.relative_to(ROOT)}: {text}\n{traceback.format_exc(limit=-3)}")


def test_flags_that_pages_name_exist() -> None:
    said = [call(cli.main, [command, "--help"]) for command in cli.COMMANDS]
    said.append(torch.distributed.run.get_args_parser().format_help())  # torchrun's
    flags = set(re.findall(r"--[\w.-]+", " ".join([*said, call(seed_cli.main, ["--help"])])))
    for page in PAGES:
        for kind, text in blocks(page):
            if kind == "word":
                assert set(re.findall(r"(?<!\S)--[\w.-]+", text)) <= flags, (page, text)


def test_the_python_of_the_readme_learns(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (text for kind, text in blocks(ROOT / "README.md") if kind == "python")
    exec(code, {})
    errors = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(errors) == 10
    assert errors[-1] < 5 < errors[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_presets_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in link or (page.parent / link).exists(), link
    for name in re.findall(r"binep train ([a-z][\w-]*)", text):
        assert name in preset_names()


def test_what_the_architecture_points_at_is_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    found = re.findall(r"`([\w/]+\.(?:py|toml))(?:::([\w.]+))?`", text)
    assert len(found) > 15
    for path, name in found:
        file = ROOT / path if path.startswith(("docs/", "tests/")) else ROOT / "src/binep" / path
        assert file.exists(), path
        if name:
            module = importlib.import_module(f"binep.{path.removesuffix('.py').replace('/', '.')}")
            assert callable(operator.attrgetter(name)(module)), (path, name)


def test_every_public_name_is_documented() -> None:
    text = (ROOT / "docs" / "python.md").read_text()
    assert set(re.findall(r"auto(?:class|function):: (\w+)$", text, re.MULTILINE)) == set(
        binep.__all__
    )


def test_the_notebook_is_committed_without_what_it_shows() -> None:
    """Building the site runs it, and fails where it does."""
    cells = json.loads((ROOT / "docs" / "one-neuron.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
