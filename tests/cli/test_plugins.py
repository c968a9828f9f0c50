"""Parts of one's own, from a file that the command line names."""

from __future__ import annotations

import html
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import samples

from binep.cli import main as cli
from binep.data.sources import SOURCES
from binep.experiment import layers, plugins
from binep.experiment.config import Config, ConfigError
from binep.experiment.kinds import FLIP_RULES, NEURONS

PARTS = """
from dataclasses import dataclass
import binep
from binep.experiment import kinds

@kinds.neurons("leaky")
@dataclass(frozen=True)
class Leaky(binep.Neurons):
    rate: kinds.Share = 0.5
    initial: float = 0.0
    differentiable = True
    hold_nudge = False
    settle_exactly = False

    def fire(self, state):
        return state

    def update(self, state, drive, nudge=None):
        goal = (drive if nudge is None else drive + nudge).clamp(0, 1)
        return state + self.rate * (goal - state)
"""
RULE = """import torch
from binep.experiment import kinds

@kinds.flip_rule("never")
class Never(torch.optim.Optimizer):
    def __init__(self, params, gamma=0.0, threshold=0.0):
        super().__init__(params, {})

    def step(self, closure=None):
        pass
"""
SMALL = "quickstart --layers.1.size 8 --max-batches 2 --threads 1 --epochs 1 --warn-flip-rate 1"
TRAIN = f"train {SMALL} --activation leaky --nudge outside --plugin parts_of_mine.py"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder, and a process that has loaded no plug-in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "_LOADED", {})
    monkeypatch.setattr(NEURONS, "_kinds", dict(NEURONS._kinds))
    monkeypatch.setattr(SOURCES, "_kinds", dict(SOURCES._kinds))
    kept = dict(layers.LAYERS)
    Path("parts_of_mine.py").write_text(PARTS)
    yield
    layers.LAYERS.clear()
    layers.LAYERS.update(kept)
    sys.modules.pop("parts_of_mine", None)


def binep(line: str) -> int:
    return cli.main(line.split())


def forget() -> None:
    """As in a new process."""
    plugins._LOADED.clear()
    NEURONS._kinds.pop("leaky", None)
    sys.modules.pop("parts_of_mine", None)


EACH = (
    "evaluate run",
    "train --resume run --epochs 2",
    "train --config run --run-dir again",
    "predict run x.npy",
    "plot run",
    "compare run",
    "report run",
    "inspect run --format png",
)


@pytest.mark.parametrize("command", EACH)
def test_a_run_needs_what_it_was_trained_with(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert binep(f"{TRAIN} --run-dir run --options.leaky.rate 0.7") == 0
    config = Config.load(Path("run/config.toml"))
    assert config.dynamics.activation == "leaky"
    assert config.options["leaky"].rate == 0.7
    assert config.plugins == plugins.loaded()
    np.save("x.npy", np.zeros((2, 28, 28), np.float32))
    forget()
    capsys.readouterr()
    assert binep(command) == 2
    error = capsys.readouterr().err
    assert error == (
        "binep: run/config.toml: was trained with 'parts_of_mine.py': give it with --plugin, "
        "in Python to binep.experiment.plugins.load\n"
    )
    assert binep(f"{command} --plugin=parts_of_mine.py") == 0
    forget()
    Path("parts_of_mine.py").write_text(PARTS + "# changed\n")
    capsys.readouterr()
    assert binep(f"{command} --plugin parts_of_mine.py") == 2
    error = capsys.readouterr().err
    assert error.startswith("binep: run/config.toml: was trained with a 'parts_of_mine.py' of SHA-")
    assert error.endswith("it was changed since\n")


def test_commands_to_go_on_with_name_the_plug_in(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my parts").mkdir()
    Path("parts_of_mine.py").rename("my parts/parts_of_mine.py")
    given = ["--plugin", "my parts/parts_of_mine.py"]
    train = TRAIN.removesuffix("--plugin parts_of_mine.py").split()
    assert cli.main([*train, *given, "--run-dir", "run"]) == 0
    assert cli.main(["report", "run", *given]) == 0
    page = html.unescape(Path("report.html").read_text())
    for command in ("train --config run", "evaluate run"):
        assert f"binep {command} --plugin 'my parts/parts_of_mine.py'" in page
    forget()
    assert binep(f"train {SMALL} --run-dir without") == 0
    assert cli.main(["report", "without", *given]) == 0
    assert "--plugin" not in Path("report.html").read_text()


def test_settings_of_a_part_go_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert binep(f"{TRAIN} --run-dir run --options.leaky.rate 0.7") == 0
    again = "train --config run --plugin parts_of_mine.py"
    assert binep(f"{again} --run-dir same") == 0
    assert Config.load(Path("same/config.toml")) == Config.load(Path("run/config.toml"))
    assert binep(f"{again} --activation hard-sigmoid --run-dir other") == 0
    assert Config.load(Path("other/config.toml")).options == {}
    capsys.readouterr()
    assert binep(f"{again} --activation hard-sigmoid --options.leaky.rate 0.6") == 2
    assert "must be left out: nothing here is of that kind" in capsys.readouterr().err


def test_a_sweep_takes_settings_of_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    flags = f"{SMALL} --activation leaky --nudge outside --plugin parts_of_mine.py"
    line = f"sweep {flags} --set beta=uniform(0.1,1) --trials 1 --options.leaky.rate"
    assert binep(f"{line} 2") == 2
    assert "options.leaky.rate = 2.0: must be above 0 and at most 1" in capsys.readouterr().err


def test_a_part_of_ones_own_is_not_exported(capsys: pytest.CaptureFixture[str]) -> None:
    assert binep(f"{TRAIN} --run-dir run") == 0
    assert binep("export run --plugin parts_of_mine.py") == 2
    assert capsys.readouterr().err.endswith("Leaky is no class of binep: it cannot be described\n")


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("nowhere.py", None, "cannot be read: No such file"),
        ("parts.txt", "", "must be a Python file NAME.py"),
        ("two-words.py", "", "must be a Python file NAME.py, NAME a word"),
        ("statistics.py", "", "statistics is a module already: must have another name"),
        ("torch.py", "", "torch is a module already"),
        ("mine.py", "x = 1\nclass", "cannot be run: SyntaxError: "),
        ("mine.py", "x = 1\nimport nowhere_at_all", "ModuleNotFoundError: No module named"),
        ("mine.py", "x = 1\nraise ValueError('a\\nb')", "cannot be run: ValueError: a b (line 2)"),
        ("mine.py", "raise SystemExit(3)", "cannot be run: SystemExit: 3 (line 1)"),
        ("mine.py", "\0", "cannot be run: SyntaxError: "),
        (
            "mine.py",
            "from binep.experiment import kinds\n@kinds.neurons('heaviside')\nclass A: ...\n",
            "activation = 'heaviside': the name is taken (line 2)",
        ),
    ],
)
def test_a_bad_plug_in_is_refused_in_a_line(
    name: str, content: str | None, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path(name).write_text(content)
    assert binep(f"train {SMALL} --plugin {name}") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"binep: --plugin {name}: ")
    assert error in said
    assert said.count("\n") == 1
    assert not Path("runs").exists()
    assert plugins.loaded() == {}
    assert "mine" not in sys.modules


def test_plug_ins_may_use_each_other_and_run_once(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine_too.py").write_text("import parts_of_mine\nprint('run', parts_of_mine.Leaky)\n")
    both = "--plugin parts_of_mine.py --plugin mine_too.py"
    try:
        assert binep(f"train {SMALL} {both} --run-dir run") == 0
        said = capsys.readouterr()
        assert said.out.count("run <class") == 1
        assert said.err == ""
        assert list(Config.load(Path("run/config.toml")).plugins) == [
            "parts_of_mine.py",
            "mine_too.py",
        ]
        assert binep(f"evaluate run {both}") == 0
        assert "run <class" not in capsys.readouterr().out
    finally:
        sys.modules.pop("mine_too", None)


def test_of_neurons_of_ones_own_no_energy_is_known() -> None:
    assert binep(f"{TRAIN} --run-dir run") == 0
    assert binep("inspect run --format png --plugin parts_of_mine.py") == 0
    head = Path("run/inspect/phases.csv").read_text().splitlines()[0]
    assert head.startswith("step,beta,cost,layer1_residual,")


def test_of_a_flip_rule_of_ones_own_there_are_no_momenta(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FLIP_RULES, "_kinds", dict(FLIP_RULES._kinds))
    Path("rule_of_mine.py").write_text(RULE)
    try:
        line = f"train {SMALL} --flip-rule never --plugin rule_of_mine.py --run-dir run"
        assert binep(line) == 0
        assert binep("inspect run --format png --plugin rule_of_mine.py") == 0
        assert "no momenta.png: Never is a flip rule of its own\n" in capsys.readouterr().out
    finally:
        sys.modules.pop("rule_of_mine", None)


def test_two_of_one_name_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("other").mkdir()
    Path("other/mine.py").write_text("second = True\n")
    Path("mine.py").write_text("first = True\n")
    try:
        line = f"train {SMALL} --plugin mine.py --plugin ./mine.py --plugin other/mine.py"
        assert binep(line) == 2
        said = capsys.readouterr().err
        assert said == "binep: --plugin other/mine.py: mine.py has the same name: rename one\n"
    finally:
        sys.modules.pop("mine", None)


def test_a_configuration_runs_nothing(tmp_path: Path) -> None:
    Path("mine.py").write_text("raise AssertionError")
    text = Config().to_toml() + '\n[plugins]\n"mine.py" = "0"\n'
    with pytest.raises(ConfigError, match=r"was trained with 'mine.py'"):
        Config.from_toml(text, "a file")
    assert "mine" not in sys.modules


def test_a_plug_in_may_bring_data(tmp_path: Path) -> None:
    samples.write_mnist(tmp_path / "data")
    Path("parts_of_mine.py").write_text(
        "from binep.data.sources import source_of\n"
        "from binep.experiment import kinds\n"
        "from binep.data.sources import Source\n"
        "@kinds.data_set('upside-down')\n"
        "class Turned(Source):\n"
        "    shape = (1, 28, 28)\n"
        "    classes = tuple('0123456789')\n"
        "    def read(self, data_dir, download):\n"
        "        return source_of('mnist').read(data_dir, download)\n"
    )
    line = TRAIN.replace("--activation leaky --nudge outside", "--dataset upside-down")
    assert binep(f"{line} --data-dir data --run-dir run") == 0
