"""The command line: what it leaves, what it prints, and one line for each thing that is wrong."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import matplotlib.image
import pooch  # type: ignore[import-untyped]
import pytest
import samples
from rich.console import Console

from binep.cli import main as cli
from binep.cli import progress, training
from binep.experiment.config import Config, Dynamics, Layer, Learning, preset, preset_names
from binep.experiment.experiment import Experiment
from binep.experiment.workers import ALONE
from binep.runs import curves as plots
from binep.runs import folder as runs

SMALL = "--layers.1.size 8 --max-batches 2 --threads 1 --warn-flip-rate 1"
"""Scales the preset quickstart down."""
RENDERED = plots.rendered


@dataclass
class Said:
    code: int
    out: str
    err: str


Command = Callable[[str], Said]


@pytest.fixture
def binep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """The command, run in an empty folder without a network."""

    def refuse(*arguments: object, **options: object) -> str:
        raise ConnectionError("refused")

    def run(line: str) -> Said:
        capsys.readouterr()
        try:
            code = cli.main(line.split())
        except SystemExit as exit:
            code = int(exit.code or 0)
        return Said(code, *capsys.readouterr())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pooch, "retrieve", refuse)
    monkeypatch.setattr(plots, "rendered", lambda figure, kind="png": b"")  # slow
    monkeypatch.delenv("BINEP_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was trained without the command line."""
    folder = tmp_path_factory.mktemp("trained")
    layers = {"1": Layer(8, bias_lr=0.05), "2": Layer(10, bias_lr=0.05)}
    runs.train(Experiment(Config(layers=layers, max_batches=2, epochs=2, threads=1)), folder)
    return folder


@pytest.fixture
def bad_files(tmp_path: Path, trained: Path) -> None:
    """What the bad lines below speak of, in the folder where they are run."""
    for folder in ("empty", "full", "damaged"):
        (tmp_path / folder).mkdir()
    (tmp_path / "full" / "file").touch()
    images = samples.write_mnist(tmp_path / "damaged") / "MNIST/raw/train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    (tmp_path / "unknown.toml").write_text("[layers.1]\nsize = 10\nwidth = 3\n")
    (tmp_path / "broken.toml").write_text("epochs =")
    (tmp_path / "good.toml").write_text(preset("quickstart").to_toml())
    shutil.copytree(trained, tmp_path / "truncated")
    model = tmp_path / "truncated" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    shutil.copytree(trained, tmp_path / "other")
    text = (trained / "metrics.csv").read_text().replace("layer2", "layer3")
    (tmp_path / "other" / "metrics.csv").write_text(text)
    (tmp_path / "other" / "checkpoint.safetensors").unlink()  # which it would have to agree with


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of a run but for the seconds, which no two runs share."""
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]


# ---- train


def test_training_on_a_pipe_prints_a_line_per_epoch(binep: Command, tmp_path: Path) -> None:
    said = binep(f"train quickstart {SMALL} --epochs 2 --seed 7")
    (folder,) = (tmp_path / "runs" / "quickstart").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-7", folder.name)
    assert (said.code, said.err) == (0, "")
    first, titles, names, *epochs, last = said.out.splitlines()
    place = folder.relative_to(tmp_path)
    summary = "mnist5k, 784-8-10, real activations, EP, fixed α"
    assert first == f"{summary}: training on cpu, run folder {place}"
    assert re.fullmatch(r" +error \(%\) +flips by layer  steps by layer", titles)
    assert names.split() == ["epoch", "train", "test", "1", "2", "1", "2", "samples/s", "s"]
    rows = metrics(folder)
    assert len(epochs) == len(rows) == 2
    for number, (line, row) in enumerate(zip(epochs, rows, strict=True), 1):
        train, test = float(row["train_error"]), float(row["test_error"])
        cells = [f"{number}/2", f"{train:.2f}", f"{test:.2f}"]
        cells += [row["layer1_flips"], row["layer2_flips"]]
        assert line.split()[:5] == cells
        assert re.search(r" \d+  +\d+ +\d+\.\d$", line)
        assert len(line) == len(names) <= 80
    assert last == f"test error {test:.2f} % after epoch 2; see {place}"


def test_flags_replace_settings_and_a_run_replays_from_its_file(
    binep: Command, tmp_path: Path
) -> None:
    flags = "--beta -0.5 --layers.2.gamma 0.25 --seed 3 --device cpu --no-clip-nudged --title x"
    assert binep(f"train quickstart {SMALL} --epochs 1 --run-dir first {flags}").code == 0
    config = Config.load(tmp_path / "first" / "config.toml")
    start = preset("quickstart")
    assert config == start.replace(
        title="x",
        epochs=1,
        max_batches=2,
        threads=1,
        warn_flip_rate=1.0,
        seed=3,
        learning=dataclasses.replace(start.learning, beta=-0.5, clip_nudged=False),
        layers={
            "1": dataclasses.replace(start.layers["1"], size=8),
            "2": dataclasses.replace(start.layers["2"], gamma=0.25),
        },
    )
    assert binep("train --config=first/config.toml --run-dir second").code == 0
    assert metrics(tmp_path / "second") == metrics(tmp_path / "first")
    assert Config.load(tmp_path / "second" / "config.toml") == config
    assert not (tmp_path / "runs").exists()


def test_a_file_gives_its_name_to_the_run(binep: Command, tmp_path: Path) -> None:
    start = preset("quickstart").replace(epochs=1)
    (tmp_path / "mine.toml").write_text(start.to_toml())
    assert binep(f"train --config mine.toml {SMALL}").code == 0
    assert len(list((tmp_path / "runs" / "mine").iterdir())) == 1
    # The run of a run's folder goes beside it, not into it.
    assert binep(f"train quickstart {SMALL} --epochs 1 --run-dir runs/small").code == 0
    before = sorted((tmp_path / "runs" / "small").iterdir())
    assert binep("train --config runs/small").code == 0
    assert sorted((tmp_path / "runs" / "small").iterdir()) == before
    assert len(list((tmp_path / "runs" / "small-again").iterdir())) == 1


def test_a_terminal_shows_a_bar(binep: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the epoch that is under way."""
    screen = io.StringIO()
    terminal = functools.partial(
        Console, file=screen, force_terminal=True, width=60, _environ={"TERM": "xterm"}
    )
    monkeypatch.setattr(progress, "Console", terminal)
    said = binep(f"train quickstart {SMALL} --epochs 2")
    assert (said.code, len(said.out.splitlines())) == (0, 2)
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue())
    lines = shown.replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= 60
    assert [line.split()[0] for line in lines if line.count(".") == 3][-1] == "2/2"
    assert re.search(r"2/2 +\d+\.\d\d  +\d+ +\d+.*\n━+ 0:00:00 to go", shown)


ORDERS = [
    "train quickstart --epochs 3 --layers.1.size 512 --off events digits --no-clip-nudged",
    "train --epochs 3 quickstart --layers.1.size=512 --no-clip-nudged --off events digits",
    "train --layers.1.size 512 quickstart --off events digits --epochs=3 --no-clip-nudged",
    "train --off events digits --no-clip-nudged --layers.1.size 512 --epochs 3 quickstart",
    "train --title mnist-fc1-ep --no-clip-nudged --epochs 3 quickstart --layers.1.size 512 "
    "--off digits events --title Quick\\ start",
]


@pytest.mark.parametrize("line", ORDERS)
def test_the_preset_may_stand_anywhere(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    given: list[tuple[object, ...]] = []
    monkeypatch.setattr(training, "run_training", lambda *arguments: given.append(arguments))
    start = preset("quickstart")
    wanted = start.replace(
        title="Quick start",
        epochs=3,
        learning=dataclasses.replace(start.learning, clip_nudged=False),
        speed=dataclasses.replace(start.speed, off=("digits", "events")),
        layers=start.layers | {"1": dataclasses.replace(start.layers["1"], size=512)},
    )
    assert cli.main(shlex.split(line)) == 0
    assert given == [(wanted, "quickstart", None, None, None, None, ALONE)]


# ---- evaluate, plot, presets, help


def test_evaluating_a_run_gives_the_error_of_its_last_epoch(binep: Command, trained: Path) -> None:
    error, loss = (float(metrics(trained)[-1][f"test_{name}"]) for name in ("error", "loss"))
    said = binep(f"evaluate {trained} --device cpu")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"test error {error:.2f} %  test loss {loss:.6g}  settles in ")


def test_runs_are_drawn(
    binep: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained: Path
) -> None:
    monkeypatch.setattr(plots, "rendered", RENDERED)
    for name, start in (("one.png", b"\x89PNG"), ("two.pdf", b"%PDF"), ("two.svg", b"<?xml")):
        folders = " ".join([str(trained)] * (2 if "two" in name else 1))
        said = binep(f"plot {folders} --output {name}")
        assert said == Said(0, f"{name}\n", "")
        assert (tmp_path / name).read_bytes().startswith(start)
    assert matplotlib.image.imread(tmp_path / "one.png").std() > 0


def test_presets_are_listed(binep: Command) -> None:
    said = binep("presets")
    assert (said.code, said.err) == (0, "")
    title = ""
    for line in said.out.splitlines()[2:]:
        name, *others = line.split() or [""]
        if name in preset_names():
            config = preset(name)
            assert others == [str(config.epochs), *config.summary().split()]
            assert title == config.title
        else:
            title = line.strip().removesuffix(":")
    assert all(f"  {name}  " in said.out for name in preset_names())


def test_tables_fit_a_terminal_and_cut_no_name(
    binep: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, beta in (("a", "0.3"), ("b", "0.5")):
        flags = f"--beta {beta} --run-dir {folder}"
        assert binep(f"train quickstart {SMALL} --epochs 1 {flags}").code == 0
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich takes the output for a terminal
    monkeypatch.setenv("TERM", "xterm")

    def printed(line: str) -> str:
        return re.sub(r"\x1b\[[\d;]*m", "", binep(line).out)

    shown = [printed(line) for line in ("presets", "compare a b")]
    assert max(len(line) for said in shown for line in said.splitlines()) <= 80
    assert all(name in shown[0].split() for name in preset_names())
    assert "…" not in "".join(shown)
    monkeypatch.setenv("COLUMNS", "30")  # a column for each run
    across = [line.split() for line in printed("compare a b").splitlines()]
    assert ["learning.beta", "0.3", "0.5"] in across


def test_help_is_broken_only_where_there_is_no_room(
    binep: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    said = binep("train --help").out
    assert "A run that was trained with one needs it, unchanged." in said
    assert "Of its settings --epochs, --device, --data-dir, --threads, --checkpoint" in said


def test_help_says_what_there_is(binep: Command) -> None:
    said = binep("--help")
    assert said.code == 0
    for command in cli.COMMANDS:
        assert re.search(rf"• {command} +[A-Z]", said.out)
    kinds = {"": Config, "layers.1.": Layer, "layers.2.": Layer}
    names = [p + f.name for p, kind in kinds.items() for f in dataclasses.fields(kind)]
    names += [
        f.name
        for kind in (Dynamics, Learning, type(Config().speed))
        for f in dataclasses.fields(kind)
    ]
    flags = {
        f"--{n.replace('_', '-')}"
        for n in names
        if n not in ("dynamics", "learning", "speed", "layers", "options", "start", "plugins")
    }
    for line in ("train --help", "train -h", "train quickstart --help"):
        said = binep(line)
        assert (said.code, said.err) == (0, "")
        assert flags | {"--config", "--run-dir"} <= set(re.findall(r"--[\w.-]+", said.out))
    for command in ("", *cli.COMMANDS):
        usage, *lines = binep(f"{command} --help").out.splitlines()
        assert max(map(len, lines)) <= 80
        assert len(usage) <= 100  # which a terminal breaks
    for command, flag in (("evaluate", "--device"), ("plot", "--output"), ("presets", "--help")):
        said = binep(f"{command} --help")
        assert (said.code, said.err) == (0, "")
        assert flag in said.out


# ---- what is wrong

MORE = "binep presets takes no more there\n"
BAD = {
    "trian": "unknown command trian (did you mean train?): one of train, ",
    "train": "train what? ",
    "train mnst": "unknown preset 'mnst': binep presets lists",
    "train good.toml": "unknown preset 'good.toml': --config good.toml reads it",
    "train quickstart --config good.toml": "both the preset quickstart and --config good.toml",
    "train --config good.toml quickstart": "both the preset quickstart and --config good.toml",
    "train quickstart mnist-fc1-ep": "unexpected mnist-fc1-ep: binep train takes no more there",
    "train --momentum 0.9 quickstart": "unknown flag --momentum (did you mean --keep-momentum?)",
    "train --epochs quickstart": "--epochs quickstart: must be a whole number",
    "train --layers.3.size 9 quickstart": "unknown flag --layers.3.size (did you mean --layers.",
    "train quickstart --follow-events True": "unknown flag --follow-events",
    "train --off events quickstart": "train what? Name a preset (binep presets lists them) or "
    "--config FILE; quickstart was read as a value of --off: name it first",
    "train --config missing.toml": "missing.toml: cannot be read: ",
    "train --config empty": "empty/config.toml: cannot be read: No such file",
    "train --config unknown.toml": "unknown.toml: unknown key layers.1.width: one of size, ",
    "train --config broken.toml": "broken.toml: not TOML: ",
    "train quickstart --epoch 9": "unknown flag --epoch (did you mean --epochs?): binep train "
    "--help lists all",
    "train quickstart --lerning.beta=1": "unknown flag --lerning.beta (did you mean --beta?)",
    "train quickstart --epochs many": "--epochs many: must be a whole number",
    "train quickstart --epochs 1.5": "--epochs 1.5: must be a whole number",
    "train quickstart --beta strong": "--beta strong: must be a number",
    "train quickstart --epochs": "--epochs: needs a value",
    "train quickstart --cost none": "--cost none: must be one of squared-error, cross-entropy",
    "train quickstart --beta 0": "beta = 0.0: must be a finite number, at least",
    "train quickstart --beta nan": "beta = nan: must be a finite number, at least",
    "train quickstart --free-steps 0": "free_steps = 0: must be a whole number from 1",
    "train quickstart --layers.1.threshold -1": "layers.1.threshold = -1.0: must be a finite",
    "train quickstart --layers.2.size 11": "layers.2.size = 11: must be 10, the 10 classes of",
    "train quickstart --dataset cifar10 --layers.2.size 9": "layers.2.size = 9: must be 10",
    "train quickstart --layers.2.kind conv": "layers.2: a convolution needs (channels, ",
    "train quickstart --device tpu": "device = tpu: must be cpu, cuda or cuda:N",
    "train quickstart --device cuda:99": "device = cuda:99: this machine has ",
    "train quickstart --dataset mnist --data-dir empty": "mnist: empty/MNIST/raw lacks train-",
    "train mnist-fc1-ep --data-dir empty": "mnist: empty/MNIST/raw lacks train-images-idx3-ubyte",
    "train quickstart --dataset mnist --data-dir damaged": "damaged/MNIST/raw/train-images-idx3-u",
    "train quickstart --run-dir full": "full: holds files already: ",
    "train quickstart --run-dir full/file": "full/file: cannot be made: ",
    "evaluate": "RUN is missing: a run folder",
    "evaluate missing": "missing: no run folder, no file, and none of the networks ",
    "evaluate empty": "empty: not a run folder: ",
    "evaluate truncated": "truncated/model.safetensors: damaged or ",
    "evaluate other --device cuda:99": "device = cuda:99: this machine has ",
    "evaluate other --data-dir": "--data-dir: needs a value",
    "plot": "plot what? ",
    "plot missing": "missing: not a run folder: ",
    "plot truncated other": "other: its settings are not those of truncated: ",
    "plot other --output curves.bmp": "--output curves.bmp: must end in ",
    "presets all": "unexpected all: binep presets takes no more there",
}


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize("line", BAD)
def test_bad_input_ends_with_one_line_before_any_work(
    binep: Command, tmp_path: Path, line: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    said = binep(line)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"binep: {BAD[line]}")
    assert said.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["title", "data-dir"])
def test_what_a_file_of_settings_cannot_hold_is_refused(binep: Command, name: str) -> None:
    """Such as a path in UTF-8 where the locale is not, or the other way round."""
    said = binep(f"train quickstart {SMALL} --epochs 1 --{name} d\udcff")
    setting = name.replace("-", "_")
    assert said.code == 2
    assert said.err.startswith(f"binep: {setting} = d")
    assert said.err.endswith(": must be text that UTF-8 can hold\n")


def test_an_error_breaks_no_word(binep: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    word = "a/long/path/" * 20 + "---│"
    for columns in ("80", "20"):
        monkeypatch.setenv("COLUMNS", columns)
        assert binep(f"presets {word}").err == f"binep: unexpected {word}: {MORE}"
        assert os.environ["COLUMNS"] == columns


def test_every_problem_has_its_line(binep: Command) -> None:
    said = binep("train quickstart --beta 0 --free-steps 0 --layers.1.size 0")
    names = [line.split(" = ")[0] for line in said.err.splitlines()]
    assert names == ["binep: free_steps", "binep: beta", "binep: layers.1.size"]


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_terminal_with_colours_or_without_letters(
    binep: Command, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """Neither paints an error, nor does a title's Greek end in one."""
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", Terminal(screen, encoding=encoding))
    monkeypatch.setenv("TERM", "xterm")
    assert binep("presets all").err == f"binep: unexpected all: {MORE}"
    assert binep("presets").code == binep("train --help").code == 0
    assert b"quickstart" in screen.getvalue()
    assert binep(f"train quickstart {SMALL} --epochs 1 --title α").code == 0


def test_no_command_is_told_the_commands(binep: Command) -> None:
    assert binep("") == dataclasses.replace(binep("--help"), code=2)


# ---- as a process of its own


def process(line: str, folder: Path, output: IO[str] | int) -> subprocess.CompletedProcess[bytes]:
    """The command as a shell runs it: what it prints to a pipe is buffered."""
    command = [sys.executable, "-m", "binep", *line.split()]
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    return subprocess.run(
        command, cwd=folder, env=env, stdout=output, stderr=subprocess.PIPE, check=False
    )


def test_the_console_command_runs(tmp_path: Path) -> None:
    done = process("presets", tmp_path, subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"quickstart" in done.stdout


def unread() -> int:
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_a_process_whose_pipe_nobody_reads_ends_quietly(tmp_path: Path) -> None:
    with os.fdopen(unread(), "w") as pipe:
        done = process("--help", tmp_path, pipe)
    assert (done.returncode, done.stderr) == (0, b"")


def test_training_goes_on_when_nobody_reads(
    binep: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither its progress nor its warnings."""
    with os.fdopen(unread(), "w") as out, os.fdopen(unread(), "w") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        said = binep(f"train quickstart {SMALL} --warn-flip-rate 0 --epochs 3 --run-dir run")
    assert said.code == 0
    assert len(metrics(tmp_path / "run")) == 3
    assert "warning: layer 1" in (tmp_path / "run" / "log.txt").read_text()


def test_the_first_line_of_a_training_can_be_read_alone(tmp_path: Path) -> None:
    """As `binep train ... | head -1` does."""
    line = f"train quickstart {SMALL} --epochs 3 --run-dir run"
    command = [sys.executable, "-m", "binep", *line.split()]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as training:
        assert training.stdout is not None
        assert b"training on cpu" in training.stdout.readline()
        training.stdout.close()
        assert training.stderr is not None
        assert training.stderr.read() == b""
    assert training.returncode == 0
    assert len(metrics(tmp_path / "run")) == 3


def test_a_figure_is_written_when_nobody_reads(
    binep: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained: Path
) -> None:
    """Also one that comes after a line that is printed at once."""
    with os.fdopen(unread(), "w", buffering=1) as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert binep(f"inspect {trained} --output figures").code == 0
    assert {"phases.csv", "phases.pdf", "flips.pdf"} <= {
        path.name for path in (tmp_path / "figures").iterdir()
    }
