"""The page about runs: complete in itself, and its numbers are those of the logs."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import matplotlib.image
import numpy as np
import pooch  # type: ignore[import-untyped]
import pytest
import torch
from samples import write_mnist

import binep
from binep.analysis import readings, report
from binep.cli import main as cli
from binep.data.sources import Files
from binep.experiment import kinds
from binep.experiment.config import Config, Dynamics, Layer, Learning
from binep.experiment.experiment import Experiment
from binep.experiment.kinds import COSTS, ESTIMATORS
from binep.export import packed
from binep.runs import curves as plots
from binep.runs import folder as runs
from binep.runs.metrics import read_metrics

HOSTILE = '<script>"&</script>'
RENDERED = plots.rendered

# ---- reading a page


@dataclass
class Page(HTMLParser):
    """Elements, tables and text of a page."""

    text: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(self.text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def table(self, first: str) -> list[list[str]]:
        """The table whose heading begins so."""
        (found,) = (rows for rows in self.tables if rows[0][0] == first)
        return found

    def column(self, name: str, first: str = "run") -> list[str]:
        head, *rows = self.table(first)
        return [row[head.index(name)] for row in rows]

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.words).split())

    def images(
        self, label: str
    ) -> list[tuple[str, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]]:
        """The images of a kind: what they are called, and their pixels (H, W, 3)."""
        found = []
        for tag, attributes in self.tags:
            name = attributes.get("alt") or ""
            if tag == "img" and name.startswith(f"{label}: "):
                kind, data = (attributes["src"] or "").split(",")
                assert kind == "data:image/png;base64"
                pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(data)))
                found.append((name, np.rint(255 * pixels[..., :3]).astype(np.uint8)))
        return found


def written(folders: list[Path], output: Path, *flags: str) -> Page:
    """The page that the command writes."""
    arguments = ["report", *map(str, folders), "--output", str(output), *flags]
    assert cli.main(arguments) == 0
    return Page(output.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network; and figures, which are slow, are drawn for the one page that is looked at."""

    def refuse(*arguments: object, **options: object) -> str:
        raise ConnectionError("refused")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    monkeypatch.setattr(plots, "rendered", lambda *_: b'<svg viewBox="0 0 1 1"></svg>')
    monkeypatch.delenv("BINEP_DATA", raising=False)


# ---- two runs


CONFIG = Config(
    title=HOSTILE,
    max_batches=3,
    epochs=2,
    threads=1,
    test_batch_size=300,
    learning=Learning(gamma_decay=2.0, gamma_decay_epochs=3),
    layers={"1": Layer(8, threshold=1e-7, bias_lr=0.05), "2": Layer(10, bias_lr=0.05)},
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs of two seeds; the first was begun by a command full of marks."""
    root = tmp_path_factory.mktemp("runs")
    found = []
    for seed in (3, 5):
        found.append(root / f"a&b<i>{seed}")
        found[-1].mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plots, "rendered", lambda *_: b"")
            runs.train(Experiment(CONFIG.replace(seed=seed)), found[-1])
    about = json.loads((found[0] / "environment.json").read_text())
    about |= {"command": ["binep", HOSTILE], "platform": HOSTILE}
    (found[0] / "environment.json").write_text(json.dumps(about))
    return found


@pytest.fixture(scope="module")
def page(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Page:
    return written(folders, tmp_path_factory.mktemp("page") / "page.html")


def test_nothing_is_fetched_and_nothing_runs(page: Page) -> None:
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "i"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "data", "poster"):
                assert (value or "").startswith(("data:image/png;base64,", "#")), (tag, value)
    assert set(re.findall(r"url\((.)", page.text)) == {"#"}
    assert "@import" not in page.text


def test_ids_are_unique_and_what_they_are_used_for_exists(page: Page) -> None:
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert max(ids.values()) == 1
    used = re.findall(r'(?:url\(|href=")#([^")]+)', page.text)
    assert used
    assert set(used) <= set(ids)


def test_texts_from_files_are_text(page: Page) -> None:
    assert page.said.count(HOSTILE) >= 3  # the title, the command and the platform
    assert "a&b<i>3" in page.said
    assert "[layers.1]" in page.said  # config.toml


def test_pictures_have_words(page: Page) -> None:
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
        if tag == "img":
            assert attributes["alt"]
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 5  # its α is fixed
    assert page.text.count("<text ") > 50  # text is kept as text


def test_results_are_those_of_the_logs(page: Page, folders: list[Path]) -> None:
    last = [read_metrics(folder / "metrics.csv")[-1] for folder in folders]
    assert page.column("run") == [*map(str, folders), "mean ± SD, n = 2"]
    assert page.column("seed") == ["3", "5", ""]
    for name in ("train", "test"):
        errors = [row[f"{name}_error"] or 0 for row in last]
        average = f"{mean(errors):.2f} ± {stdev(errors):.2f}"
        assert page.column(f"{name} error (%)") == [*(f"{e:.2f}" for e in errors), average]
    assert f"Test error {average} %" in page.said
    assert page.column("tested again (%)")[:2] == page.column("test error (%)")[:2]
    assert "seeds 3, 5." in page.said
    assert "no row of the paper's tables" in page.said


def test_captions_say_where_the_lines_begin_and_end(page: Page, folders: list[Path]) -> None:
    metrics = [read_metrics(folder / "metrics.csv") for folder in folders]
    for name, column in (("test", "test_loss"), ("layer 2", "layer2_settle_steps")):
        ends = [f"{mean(rows[i][column] or 0 for rows in metrics):.3g}" for i in (0, 1)]
        assert f"{name}: {ends[0]} → {ends[1]}" in page.said


def test_rates_that_decay_are_told(page: Page, folders: list[Path]) -> None:
    assert page.said.count("momentum γ divided by 2 every 3 epochs") == 1
    assert "α rate divided by" not in page.said


def test_speed_is_the_median(page: Page, folders: list[Path]) -> None:
    for i, folder in enumerate(folders):
        seconds = median(row["train_seconds"] or 0 for row in read_metrics(folder / "metrics.csv"))
        assert page.column("training (s per epoch)", "seed")[i] == f"{seconds:.3g}"
        assert page.column("samples/s", "seed")[i] == f"{3 * 64 / seconds:.0f}"


def test_the_confusion_matrix_adds_up_over_the_runs(page: Page, folders: list[Path]) -> None:
    head, *rows = page.table("")
    assert head == ["", *map(str, range(10)), "misread (%)"]
    shown = torch.tensor([[int(cell) for cell in row[1:11]] for row in rows])
    expected = torch.zeros(10, 10, dtype=torch.int64)
    for folder in folders:
        experiment = runs.load(folder)
        scores, labels = experiment.class_scores()
        for label, prediction in zip(labels, scores.argmax(dim=1), strict=True):
            expected[label, prediction] += 1
    assert shown.equal(expected)
    totals, right = expected.sum(dim=1).tolist(), expected.diag().tolist()
    shares = [f"{100 - 100 * r / n:.1f}" if n else "" for r, n in zip(right, totals, strict=True)]
    assert [row[11] for row in rows] == shares


def test_misread_images_are_those_of_the_test_set(page: Page, folders: list[Path]) -> None:
    experiment = runs.load(folders[0])
    scores, labels = experiment.class_scores()
    order = readings.most_confident_errors(scores, labels, 24)
    images = page.images("Misread")
    assert len(images) == len(order) == 24
    for (name, pixels), i in zip(images, order, strict=True):
        assert name == f"Misread: {labels[i]} as {scores[i].argmax()}"
        assert np.array_equal(255 - pixels[..., 0], experiment.data.test.images[i, 0].numpy())


def test_weights_are_those_of_the_network(page: Page, folders: list[Path]) -> None:
    values = runs.load(folders[0]).network.synapses[0].values
    images = page.images("Weights")
    assert len(images) == 8
    for (_, pixels), signs in zip(images, values, strict=True):
        assert np.array_equal(pixels[..., 1], np.where(signs.view(28, 28) > 0, 255, 0))


def test_the_same_runs_give_the_same_bytes(
    page: Page, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "rendered", RENDERED)
    assert report.page(readings.gather(folders)) == page.text


# ---- what is not at hand


def test_a_log_alone_gives_a_page_that_says_what_it_lacks(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in ("config.toml", "metrics.csv"):
        shutil.copy(folders[0] / name, kept / name)
    page = written([kept], tmp_path / "page.html")
    lacks = f"{kept} holds no model.safetensors: only its log is shown"
    assert capsys.readouterr().err == f"binep: warning: {lacks}\n"
    assert lacks in page.said
    assert not page.images("Weights")
    assert all(rows[0][0] for rows in page.tables)  # no confusion matrix
    assert page.column("samples/s", "seed") == ["not known"]
    assert page.column("machine", "seed") == ["not recorded"]
    assert page.column("run") == [str(kept)]
    # Beside a run that has its network, the other parts are that one's.
    page = written([kept, folders[1]], tmp_path / "page.html")
    assert len(page.images("Weights")) == 8
    assert "Seed 5. Rows" in page.said


def test_parts_of_ones_own_are_shown_by_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    for kinds_of in (COSTS, ESTIMATORS):
        monkeypatch.setattr(kinds_of, "_kinds", dict(kinds_of._kinds))

    @kinds.cost("read-out")
    class ReadOut(binep.CrossEntropy):
        pass

    @kinds.estimator("one-sided")
    class OneSided(binep.EquilibriumPropagation):
        def __init__(self, network: Any, beta: float, free_steps: int, nudged_steps: int) -> None:
            super().__init__(network, beta, free_steps, nudged_steps)

    bits = Config(
        dynamics=Dynamics("heaviside"),
        learning=Learning(cost="read-out", estimator="one-sided", beta=0.5),
        layers={"1": Layer(20), "2": Layer(10)},
    )
    head, rows = report._layers(bits)
    assert [row[head.index("fires from")] for row in rows] == ["0.5", ""]
    assert dict(report._setting(bits))["nudge"] == "β = 0.5, of the current output"


def test_without_the_data_set_the_weights_are_still_shown(tmp_path: Path) -> None:
    data = write_mnist(tmp_path / "data")
    layers = {"1": Layer(4, kind="conv", firing_threshold=0.25), "2": Layer(20)}
    bits = Config(
        dataset="mnist",
        epochs=1,
        threads=1,
        dynamics=Dynamics("heaviside"),
        learning=Learning(output_copies=2),
        layers=layers,
    )
    (tmp_path / "run").mkdir()
    runs.train(Experiment(bits.replace(data_dir=data, validation=0.1)), tmp_path / "run")
    page = written([tmp_path / "run"], tmp_path / "page.html")
    row = read_metrics(tmp_path / "run" / "metrics.csv")[-1]
    for label, column in report.READOUTS.items():
        assert page.column(column) == [f"{row[label]:.2f}"]
    assert page.column("fires from", "layer") == ["0.25", "0.5"]
    assert f"{row['test_error']:.2f}; from fired bits {row['test_error_bits']:.2f}" in page.said

    page = written([tmp_path / "run"], tmp_path / "page.html", "--data-dir", str(tmp_path / "no"))
    assert "could not be tested again: mnist: " in page.said
    assert "tested again (%)" not in page.said
    assert [pixels.shape for _, pixels in page.images("Weights")] == [(5, 5, 3)] * 4


def test_of_data_that_have_moved_the_log_and_the_weights_are_shown(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).random((12, 1, 6, 6), np.float32), np.arange(12) % 3
    own = tmp_path / "own.npz"
    np.savez(own, x_train=x, y_train=y, x_test=x, y_test=y)
    layers = {"1": Layer(4), "2": Layer(3)}
    (tmp_path / "run").mkdir()
    config = Config(dataset=str(own), epochs=1, threads=1, layers=layers)
    runs.train(Experiment(config), tmp_path / "run")
    (tmp_path / "moved").mkdir()
    own.rename(tmp_path / "moved/own.npz")
    page = written([tmp_path / "run"], tmp_path / "page.html")
    assert "could not be tested again: " in page.said
    assert len(page.images("Weights")) == 4
    moved = ("--data-dir", str(tmp_path / "moved"))
    page = written([tmp_path / "run"], tmp_path / "page.html", *moved)
    assert "tested again (%)" in page.said


# ---- the paper's claims


def test_a_row_stands_beside_its_claim_and_its_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BINEP_DATA", str(write_mnist(tmp_path / "data")))
    root = tmp_path / "rows"
    for name, seeds in (("mnist-fc1-ep-alpha", "2"), ("mnist-fc1-100-reference", "1")):
        command = ["reproduce", name, "--seeds", seeds, "--epochs", "1", "--threads", "1"]
        assert cli.main([*command, "--output", str(root)]) == 0
        if name == "mnist-fc1-ep-alpha":
            found = [root / name / f"seed{seed}" for seed in (0, 1)]
            page = written(found, tmp_path / "page.html")  # of 20 images in the place of MNIST's
            assert dict(page.tables[1][1:])["measured"] == (
                f"not compared: {found[0]} was trained on other data than mnist, 20 + 10 samples"
            )
            monkeypatch.setattr(Files, "is_whole", lambda source, identity: True)
            page = written(found, tmp_path / "page.html")
            assert dict(page.tables[1][1:])["full-precision reference mnist-fc1-100-reference"] == (
                "not run"
            )
            assert "the claim is not tested here" in page.said
    page = written(found, tmp_path / "page.html")
    reference = root / "mnist-fc1-100-reference/seed0"
    ours = [read_metrics(f / "metrics.csv")[-1]["test_error"] or 0 for f in found]
    theirs = read_metrics(reference / "metrics.csv")[-1]["test_error"] or 0
    assert page.tables[1][1:] == [
        ["the paper's claim", "equal to full precision, trained by equilibrium propagation"],
        ["measured", f"{mean(ours):.2f} ± {stdev(ours):.2f} (n = 2, epochs: 1 of 50)"],
        [
            "full-precision reference mnist-fc1-100-reference",
            f"{theirs:.2f} (n = 1)",
        ],
    ]
    assert (
        f"reference is {mean(ours) - theirs:+.2f} points, after fewer epochs than the" in page.said
    )
    assert "Preset mnist-fc1-ep-alpha" in page.said


def test_the_first_epochs_stand_beside_the_papers_own(tmp_path: Path) -> None:
    log = Path(__file__).parents[2] / "results/mnist-fc1-ep/seed0"
    page = written([log], tmp_path / "page.html")
    head, ours, theirs = page.table("test error (%) after epoch")
    errors = [row["test_error"] for row in read_metrics(log / "metrics.csv")]
    assert ours == ["binep, seed 0", *(f"{error:.2f}" for error in errors[:4])]
    assert theirs[1:] == ["4.21", "3.26", "2.80", "2.60"]
    assert head[1:] == ["1", "2", "3", "4"]


# ---- exported files, which hold no log


@pytest.fixture(scope="module")
def exported(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("exported")
    files = [root / f"{i}.safetensors" for i in range(len(folders))]
    for folder, file in zip(folders, files, strict=True):
        assert cli.main(["export", str(folder), "--output", str(file)]) == 0
    return files


def test_of_exported_files_the_networks_are_shown(
    folders: list[Path], page: Page, exported: list[Path], tmp_path: Path
) -> None:
    found = written(exported, tmp_path / "page.html")
    *of_each, _ = found.column("test error (%)", "file")
    assert of_each == page.column("tested again (%)")[:-1]
    assert found.column("file", "file") == [*map(str, exported), "mean ± SD, n = 2"]
    assert found.table("") == page.table("")  # of confusions
    for kind in ("Misread", "Weights"):
        ours, runs_ = found.images(kind), page.images(kind)
        assert [name for name, _ in ours] == [name for name, _ in runs_]
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(ours, runs_, strict=True))
    assert "An exported file holds no log" in found.said
    assert "Curves" not in found.said
    assert f"binep evaluate {exported[0]}" in found.said


def test_a_network_that_comes_with_binep_is_known_by_its_name(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:  # its whole data set need not be here
        patch.setattr(Experiment, "class_scores", lambda self: (torch.eye(10), torch.arange(10)))
        patch.setattr(packed, "experiment", lambda path, **_: Experiment(CONFIG))
        found = written([Path("mnist-fc1")], tmp_path / "page.html")
    assert found.column("file", "file") == ["mnist-fc1"]
    assert "mnist-fc1-ep-alpha-final" in found.said
    assert any(["of this network", "0.00"] in rows for rows in found.tables)


# ---- what is wrong


def test_bad_input_ends_with_one_line_before_any_work(
    folders: list[Path],
    exported: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other, damaged = tmp_path / "other", tmp_path / "damaged"
    for copy in (other, damaged):
        shutil.copytree(folders[0], copy)
    layers = {**CONFIG.layers, "1": replace(CONFIG.layers["1"], gamma=0.5)}
    (other / "config.toml").write_text(CONFIG.replace(layers=layers).to_toml())
    (damaged / "environment.json").write_text('{"versions": 3}')
    first, output = str(folders[0]), tmp_path / "page.html"
    bad = [
        ([], output, "report what? Name one run folder or more"),
        ([first], tmp_path / "page.pdf", "page.pdf: must end in .html"),
        ([first], tmp_path / "no" / "page.html", "there is no folder"),
        ([first, str(other)], output, f"{other}: its settings are not those of {first}"),
        ([str(tmp_path / "no")], output, "no: not a run folder"),
        ([str(exported[0]), str(tmp_path / "no")], output, "no: not a run folder, nor a file"),
        ([str(damaged)], output, "environment.json: does not say what a run ran on"),
        ([first, "--device", "cuda:99"], output, "device = cuda:99: this machine has"),
    ]
    for arguments, place, message in bad:
        capsys.readouterr()
        assert cli.main(["report", *arguments, "--output", str(place)]) == 2
        said = capsys.readouterr()
        assert message in said.err
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert not place.exists()
    assert cli.main(["report", first, str(exported[0]), "--output", str(output)]) == 2
    assert f"{exported[0]}: holds no log, unlike run folders" in capsys.readouterr().err
    model = other / "model.safetensors"
    shutil.copy(folders[0] / "config.toml", other / "config.toml")
    model.write_bytes(model.read_bytes()[:-1])
    assert cli.main(["report", str(other), "--output", str(output)]) == 2
    assert "model.safetensors: damaged" in capsys.readouterr().err


def test_a_seed_given_twice_is_told(
    folders: list[Path], exported: list[Path], tmp_path: Path
) -> None:
    for path in (folders[0], exported[0]):
        page = written([path] * 2, tmp_path / "page.html")
        assert "some runs share a seed" in page.said


def test_runs_of_other_lengths_are_shown_but_not_averaged(
    folders: list[Path], tmp_path: Path
) -> None:
    short = tmp_path / "short"
    shutil.copytree(folders[0], short)
    lines = (short / "metrics.csv").read_text().splitlines(keepends=True)
    (short / "metrics.csv").write_text("".join(lines[:2]))
    (short / "checkpoint.safetensors").unlink()
    page = written([short, folders[1]], tmp_path / "page.html")
    assert page.column("epochs") == ["1", "2"]
    assert "only of the runs of most epochs, 1 of 2" in page.said
    last = read_metrics(folders[1] / "metrics.csv")[-1]
    assert f"Test error {last['test_error']:.2f} %" in page.said
