"""What a sweep searches: its settings are read, checked, and put into configurations."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from binep.cli import main as cli
from binep.cluster import importance, space, sweeps
from binep.cluster.sweeps import Sweep, Trial
from binep.core.neurons import Real
from binep.data import own
from binep.experiment import kinds
from binep.experiment.config import ConfigError, differing, preset
from binep.experiment.kinds import NEURONS

BASE = preset("quickstart").replace(validation=0.1)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--set bta=uniform(.1,1)", "unknown setting bta (did you mean beta?)"),
        ("--set layers.3.size=randint(1,3)", "unknown setting layers.3.size"),
        ("--set epochs=randint(1,3)", "epochs is one for all trials: give --epochs"),
        ("--set data-dir=choice(a,b)", "data-dir is one for all trials: give --data-dir"),
        ("--set plugins=choice(a,b)", "plugins is one for all trials: give --plugin"),
        ("--set speed.off=choice(a,b)", "speed.off is one for all trials: give --off"),
        ("--set precision=choice(fast)", "precision is one for all trials: give --precision"),
        ("--set beta", "must be NAME=DISTRIBUTION(...)"),
        ("--set beta=normal(0,1)", "unknown distribution normal"),
        ("--set beta=uniform(1,1)", "the range is empty"),
        ("--set beta=uniform(1,.1)", "the range is empty"),
        ("--set beta=uniform(1)", "uniform takes two numbers"),
        ("--set beta=uniform(0.1,nan)", "the range is empty"),
        ("--set beta=uniform(0,1)", "beta = 0.0: must be a finite number, at least 1e-6 away"),
        ("--set layers.1.threshold=loguniform(0,1)", "loguniform must begin above 0"),
        ("--set layers.1.size=uniform(8,32)", "is a whole number: must be randint"),
        ("--set layers.1.size=randint(8,32.5)", "randint takes two whole numbers"),
        ("--set nudging=choice(up)", "must be one of one-sided"),
        ("--set nudging=choice()", "must name values"),
        ("--set seed=grid(1,1)", "has a value twice"),
        ("--set beta=uniform(.1,1) --set beta=grid(1)", "beta is set twice"),
        ("--set seed=grid(0,1) --trials 2", "--trials 2: must be 1 where there are grids alone"),
        ("--set beta=uniform(.1,1) --trials 10001", "are 10001 trials: at most 10000"),
        ("--set beta=uniform(.1,1) --trials 0", "--trials 0: must be at least 1"),
        ("--set beta=uniform(.1,1) --gpus=-1", "--gpus -1: must be from 0"),
        ("--set beta=uniform(.1,1) --beta 0", "beta = 0.0: must be"),
        ("--set beta=uniform(.1,1) --validation 0", "--validation 0: must be above 0"),
        ("", "--set: name a setting at least"),
        ("--config x.toml --set beta=uniform(.1,1)", "both the preset quickstart and --config"),
        ("--set beta=uniform(.1,1) --address ray://a:1", "must be auto, or HOST:PORT"),
    ],
)
def test_bad_input_is_one_line(
    words: str,
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", "quickstart", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert error in err
    assert err.count("\n") == 1
    assert out == ""
    assert not [*tmp_path.iterdir()]  # nothing was begun


def test_a_sweep_starts_anew() -> None:
    found = Sweep(Path("x"), BASE.replace(start="0" * 64), ("seed=grid(0,1)",), 1, 1, 1, 0.0)
    with pytest.raises(ConfigError, match=r"start = 0{16}: trials of a sweep start anew"):
        found.check()


def test_data_of_ones_own_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = np.zeros((8, 28, 28), np.uint8), np.arange(8) % 2
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    base = BASE.replace(dataset=str(tmp_path / "own.npz"))
    base = base.fitted(base.source())
    read, calls = own.read_own, []
    monkeypatch.setattr(own, "read_own", lambda path: calls.append(path) or read(path))
    sets = ("beta=uniform(0.1,1)", "layers.1.size=choice(8,16,32)", "seed=grid(0,1)")
    found = Sweep(tmp_path, base, sets, 1, 1, 1, 0.0)
    found.check()
    assert len(calls) == 1
    for values in found.points:  # as in a trial, which reads them to train on
        found.config({"beta": 0.5, "layers.1.size": 8, **values})
    assert len(calls) == 1


def test_numbers_may_begin_or_end_with_their_point() -> None:
    (beta,) = space.read(["beta=grid(.5,1.,-.25e1,2)"], BASE)
    assert beta.values == (0.5, 1.0, -2.5, 2)


def test_of_grids_alone_all_points_are_trained_once() -> None:
    assert sweeps.usual_samples(("seed=grid(0,1)", "beta=grid(.2,.4)"), BASE) == 1
    assert sweeps.usual_samples(("seed=grid(0,1)", "beta=uniform(.2,.4)"), BASE) == 20


def test_a_grid_of_1e9_is_refused_at_once() -> None:
    values = ",".join(map(str, range(1, 1001)))
    names = ("seed", "free-steps", "nudged-steps")
    with pytest.raises(ConfigError, match="1000 × 1000 × 1000 = 1000000000 points: at most 10000"):
        space.read([f"{name}=grid({values})" for name in names], BASE)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("sweep", "search what? Name a preset"),
        ("sweep quikstart --set beta=uniform(.1,1)", "unknown preset 'quikstart'"),
        ("sweep --resume nowhere", "nowhere: not the folder of a sweep"),
    ],
)
def test_a_sweep_needs_something_to_train(
    words: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words.split()) == 2
    assert error in capsys.readouterr().err


@given(some.sampled_from(sorted(space.paths(BASE))))
def test_every_setting_is_replaced_where_it_stands(name: str) -> None:
    """And is that of the flag of its name, as `binep train --help` has it."""
    path = space.paths(BASE)[name]
    setting = space.Setting(name, path, "grid", (), False)
    held = setting.of(BASE)
    if isinstance(held, str | bool) or held is None:
        return
    changed = space.replaced(BASE, {path: held + 1})
    assert differing(BASE, changed) == [".".join(path)]
    assert setting.of(changed) == held + 1


def test_settings_have_the_names_of_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    shown = capsys.readouterr().out
    missing = [name for name in space.paths(BASE) if f"--{name}"[:24] not in shown]
    assert missing == []


def test_a_sweep_is_read_as_it_was_written(tmp_path: Path) -> None:
    sets = ("beta=uniform(.1,1)", "layers.1.threshold = loguniform(1e-8, 1e-5)", "seed=grid(0,1)")
    sweep = Sweep(tmp_path, BASE, sets, samples=3, grace=2, cpus=1, gpus=0.5)
    sweep.check()
    sweep.write()
    again = sweeps.read(tmp_path)
    assert again == sweep
    assert again.trials == 6
    assert again.points == [{"seed": 0}, {"seed": 1}]
    config = again.config({"beta": 0.5, "layers.1.threshold": 1e-7, "seed": 1})
    assert (config.learning.beta, config.layers["1"].threshold, config.seed) == (0.5, 1e-7, 1)


@pytest.mark.parametrize("words", ["", "--each", "--format csv", "--plot beta"])
def test_a_sweep_that_has_just_begun_has_nothing_to_compare(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Sweep(tmp_path, BASE, ("beta=uniform(.1,1)",), 3, grace=2, cpus=1, gpus=0.0).write()
    assert cli.main(["compare", str(tmp_path), *words.split()]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: no trial has ended an epoch yet\n"


@pytest.mark.parametrize("text", ["", "set = 3", "x = [", "samples = 1\nset = []\nbase = 1"])
def test_a_damaged_sweep_is_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.toml").write_text(text)
    assert cli.main(["compare", str(tmp_path)]) == 2
    assert "does not describe a sweep" in capsys.readouterr().err


def trial(number: int, error: float, **settings: float) -> Trial:
    config = BASE.replace(seed=int(settings.pop("seed", 0)))
    chosen = {space.paths(BASE)[name]: value for name, value in settings.items()}
    return Trial(number, Path(str(number)), space.replaced(config, chosen), 10, error)


def test_settings_are_ranked_by_the_mean_over_their_seeds() -> None:
    found = [
        trial(0, 4.0, seed=0, beta=0.2),
        trial(1, 9.0, seed=1, beta=0.2),
        trial(2, 5.0, seed=0, beta=0.3),
        trial(3, 6.0, seed=1, beta=0.3),
        Trial(4, Path("4"), BASE, 0, None),
    ]
    groups = sweeps.ranked(found)
    assert [[t.number for t in group.trials] for group in groups] == [[2, 3], [0, 1]]
    assert [group.error for group in groups] == [5.5, 6.5]


def test_what_the_error_depends_on_is_important_and_drawn() -> None:
    settings = space.read(["beta=uniform(0.1,1)", "layers.1.gamma=loguniform(1e-5,1e-1)"], BASE)
    found = [
        trial(i, 5 + 30 * abs(beta - 0.4), **{"beta": beta, "layers.1.gamma": gamma})
        for i, (beta, gamma) in enumerate(
            (0.1 + 0.9 * k / 29, 10 ** (-5 + 4 * (7 * k % 30) / 30)) for k in range(30)
        )
    ]
    groups = sweeps.ranked(found)
    shares = importance.importance(groups, settings)
    assert [*shares] == ["beta", "layers.1.gamma"]
    assert shares["beta"] > 0.7
    assert importance.importance(groups[:2], settings) == {}  # of two, nothing can be told
    lines = importance.parallel(groups, settings, 10).axes[0].lines
    assert sum(len(line.get_xdata()) == 3 for line in lines) == 30
    best = [line for line in lines if line.get_linewidth() > 2]
    assert len(best) == 1
    assert best[0].get_ydata()[2] == 0  # type: ignore[index]


def test_a_setting_of_a_kind_is_of_the_trials_of_that_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(NEURONS, "_kinds", dict(NEURONS._kinds))

    @kinds.neurons("ranged")
    @dataclass(frozen=True)
    class Ranged(Real):
        bound: kinds.Share = 0.5

    base = BASE.replace(dynamics=replace(BASE.dynamics, activation="ranged"))
    lines = ["activation=choice(ranged,hard-sigmoid)", "options.ranged.bound=loguniform(.1,1)"]
    settings = space.read(lines, base)
    space.check(lines, settings, base, None)
    found = []
    for i in range(12):
        values = ("hard-sigmoid" if i % 3 else "ranged", 0.1 * 10 ** (i / 11))
        paths = {s.path: value for s, value in zip(settings, values, strict=True)}
        config = space.replaced(base, paths)
        assert [*config.options] == ([] if i % 3 else ["ranged"])
        found.append(Trial(i, Path(str(i)), config, 10, 5.0 + i))
    groups = sweeps.ranked(found)
    assert "activation" in importance.importance(groups, settings)
    axes = importance.parallel(groups, settings, 10).axes[0]
    heights = [line.get_ydata()[1] for line in axes.lines if len(line.get_xdata()) == 3]
    assert sum(height < 0 for height in heights) == 8
    assert sum(0 <= height < 1 for height in heights) == 4
    assert "none" in [text.get_text() for text in axes.texts]


def test_without_ray_the_command_to_install_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray.tune", None)
    assert cli.main(["sweep", "quickstart", "--set", "beta=uniform(.1,1)"]) == 2
    assert capsys.readouterr().err == ("binep: Ray is not installed: pip install 'binep[sweep]'\n")


@pytest.mark.parametrize("name", ["mnist-conv-ep", "mnist-fc1-ep"])
def test_a_configuration_keeps_its_kinds_when_a_setting_is_replaced(name: str) -> None:
    assert space.replaced(preset(name), {("seed",): 5}) == preset(name).replace(seed=5)
