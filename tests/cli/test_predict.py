"""`binep predict`: classes and scores of pictures and arrays, or one line that says why not."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import binep
from binep.cli.main import main
from binep.core.costs import SquaredError
from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.synapses import Conv, Dense
from binep.export import packed
from binep.export.packed import Trained


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Three classes of 12 × 20 pixels in colour, normalised."""
    network = Network([Conv((3, 12, 20), 2), Dense((2, 6, 10), 3)], Real(), SquaredError(3))
    path = tmp_path / "network.safetensors"
    packed.save(packed.Trained(network, ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3), path)
    return path


def lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_pictures_and_arrays_get_the_network_s_own_answer(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 12, 20), np.uint8)
    Image.fromarray(pixels[0].transpose(1, 2, 0)).save(tmp_path / "one.png")
    np.save(tmp_path / "one.npy", pixels[0])
    np.savez(tmp_path / "all.npz", x=pixels, y=np.arange(5))
    np.savez(tmp_path / "floats.npz", pixels.astype(np.float64) / 255)
    names = [str(tmp_path / name) for name in ("one.png", "one.npy", "all.npz", "floats.npz")]
    assert main(["predict", str(saved), *names, "--batch-size", "2"]) == 0
    found = lines(capsys.readouterr().out)
    x = (torch.tensor(pixels).float() / 255 - 0.5) / 0.25
    scores = binep.load(saved)(x)
    wanted = [scores[0], scores[0], *scores, *scores]
    assert len(found) == len(wanted)
    for row, expected in zip(found, wanted, strict=True):
        given = torch.tensor([float(row[f"score {name}"]) for name in "abc"])
        torch.testing.assert_close(given, expected, atol=1e-5, rtol=0)
        assert row["class"] == "abc"[int(given.argmax())]
    assert [row["row"] for row in found] == list("000123401234")
    output = tmp_path / "found.csv"
    assert main(["predict", str(saved), *names[:1], "--output", str(output)]) == 0
    assert lines(output.read_text()) == found[:1]


def test_a_run_reads_its_own_test_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    flags = "--layers.1.size 16 --epochs 1 --max-batches 3 --threads 1 --warn-flip-rate 1"
    assert main(["train", "quickstart", *flags.split(), "--run-dir", str(folder)]) == 0
    from binep.runs import folder as runs

    images = runs.load(folder).data.test.images[:20]
    Image.fromarray(images[0, 0].numpy()).convert("RGB").save(tmp_path / "digit.png")  # to grey
    np.save(tmp_path / "digits.npy", images[:, 0].numpy())  # without the channel
    capsys.readouterr()
    names = [str(tmp_path / "digit.png"), str(tmp_path / "digits.npy")]
    assert main(["predict", str(folder), *names]) == 0
    found = lines(capsys.readouterr().out)
    assert {**found[0], "file": ""} == {**found[1], "file": ""}
    labels = [str(int(label)) for label in binep.load(folder).predict(images.float() / 255)]
    assert [row["class"] for row in found[1:]] == labels
    for name, floats in {"unit": images.float() / 255, "whole": images.float()}.items():
        np.save(tmp_path / f"{name}.npy", floats.numpy())
        assert main(["predict", str(folder), str(tmp_path / f"{name}.npy")]) == 0
        said = capsys.readouterr()
        assert len(lines(said.out)) == 20
        assert said.err == (
            f"binep: warning: {tmp_path / 'whole.npy'}: floats from 0 to 255, taken as they are; "
            "the network has learnt bytes as x/255, from 0 to 1\n"
            if name == "whole"
            else ""
        )


def test_of_bytes_for_a_network_that_has_learnt_floats_it_warns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"sha256": "", "train": 1, "test": 1, "classes": []}
    network, path = Network([Dense((1, 4, 5), 2)], Real()), tmp_path / "network.safetensors"
    pixels = np.arange(40, dtype=np.uint8).reshape(2, 4, 5)
    np.save(tmp_path / "bytes.npy", pixels)
    np.save(tmp_path / "floats.npy", pixels.astype(np.float32))
    Image.fromarray(pixels[0]).save(tmp_path / "one.png")
    for floats in (True, False, None):
        run = None if floats is None else {"config": "", "data": {**data, "floats": floats}}
        packed.save(Trained(network, run=run), path)
        names = [str(tmp_path / name) for name in ("bytes.npy", "floats.npy", "one.png")]
        assert main(["predict", str(path), *names]) == 0
        said = [line for line in capsys.readouterr().err.splitlines() if line]
        reasons = [
            (names[0], "bytes, taken as x/255; the network has learnt floats as they are"),
            (names[1], "floats from 0 to 39, taken as they are; the network has learnt bytes"),
            (names[2], "bytes, taken as x/255; the network has learnt floats as they are"),
        ]
        expected = {True: reasons[::2], False: reasons[1:2], None: []}[floats]
        for line, (name, reason) in zip(said, expected, strict=True):
            assert line.startswith(f"binep: warning: {name}: {reason}")


def test_a_network_of_features_asks_for_an_array(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "network.safetensors"
    Network([Dense(4, 5), Dense(5, 2)], Real()).save(path)
    assert main(["predict", str(path), "new.csv"]) == 2
    said = capsys.readouterr().err
    wanted = "the network reads no pictures: must be an array (N, 4) in .npy or .npz"
    assert said == f"binep: new.csv: {wanted}\n"


def arrays(folder: Path) -> None:
    good = np.zeros((2, 3, 12, 20), np.float32)
    np.save(folder / "nan.npy", good + np.nan)
    np.save(folder / "int.npy", good.astype(np.int64))
    np.save(folder / "large.npy", good.astype(np.float64) + 1e300)
    np.save(folder / "none.npy", good[:0])
    np.save(folder / "other.npy", good[..., :-1])
    np.save(folder / "turned.npy", good.swapaxes(2, 3))
    np.save(folder / "number.npy", np.float32(1))
    np.save(folder / "objects.npy", np.array([{}]), allow_pickle=True)
    np.savez(folder / "two.npz", a=good, b=good)
    np.savez(folder / "empty.npz")
    Image.new("RGB", (12, 20)).save(folder / "turned.png")
    Image.new("I;16", (20, 12)).save(folder / "deep.png")
    (folder / "text.png").write_text("no picture")
    (folder / "text.npz").write_text("no array")
    for name in ("fifo.npy", "fifo.npz"):
        os.mkfifo(folder / name)


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_is_of_one_sample_or_more(
    size: int, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays(tmp_path)
    words = ["predict", str(saved), str(tmp_path / "bytes.npy"), "--batch-size", str(size)]
    assert main(words) == 2
    assert capsys.readouterr().err == (
        f"binep: --batch-size {size}: must be a whole number from 1\n"
    )


BAD = {
    "": "predict what?",
    "missing.png": "cannot be read as a picture: No such file",
    "missing.npy": "cannot be read: No such file",
    "nan.npy": "finite",
    "int.npy": "holds int64: must be uint8",
    "large.npy": "finite",
    "none.npy": "at least one sample",
    "other.npy": "holds samples of shape (2, 3, 12, 19): must be (N, 3, 12, 20)",
    "turned.npy": "holds samples of shape (2, 3, 20, 12): must be (N, 3, 12, 20)",
    "number.npy": "holds samples of shape (): must be (N, 3, 12, 20)",
    "objects.npy": "cannot be read: ",
    "two.npz": "holds a, b: one must be called x",
    "empty.npz": "holds no array",
    "turned.png": "12 × 20 pixels (width × height): must be 20 × 12",
    "deep.png": "its pixels are I;16: must be of 8 bits per channel",
    "text.png": "cannot be read as a picture: ",
    "text.npz": "cannot be read: ",
    "fifo.npy": "cannot be read: a FIFO, not a file",
    "fifo.npz": "cannot be read: a FIFO, not a file",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_input_is_refused_in_one_line(
    saved: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays(tmp_path)
    assert main(["predict", str(saved), *([str(tmp_path / name)] if name else [])]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert BAD[name] in said.err
