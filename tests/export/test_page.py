"""The page, in a browser: its network goes through the same states, and learns the same."""

from __future__ import annotations

import base64
import copy
import dataclasses
import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from binep.core.gradients import EquilibriumPropagation
from binep.core.network import Network
from binep.core.neurons import Real
from binep.core.speed import SHORTCUTS, Speed
from binep.core.synapses import Dense
from binep.data import sources
from binep.experiment.build import build_optimizers
from binep.export import packed
from binep.export.packed import Trained
from binep.export.page import _samples, page

KINDS = ["real", "bits", "convolutional_real", "convolutional_bits", "readout"]
KINDS += ["brightened", "brightened_and_normalised"]
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


def written(trained: Trained, name: str, folder: Path) -> Path:
    """The page about a network."""
    saved, file = folder / f"{name}.safetensors", folder / f"{name}.html"
    packed.save(trained, saved)
    warnings: list[str] = []
    file.write_text(page(saved, warn=warnings.append), encoding="utf-8")
    assert warnings == []
    return file


@pytest.fixture(params=KINDS)
def opened(
    request: pytest.FixtureRequest, browser: Any, folder: Path
) -> Iterator[tuple[Trained, Any]]:
    """A network that has learnt a little, and its page, which says and asks nothing outside."""
    trained = request.getfixturevalue(request.param)
    file = folder / f"{request.param}.html"
    if not file.exists():
        written(trained, request.param, folder)
    tab = browser.new_page()
    said: list[str] = []
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("console", lambda message: said.append(message.text))
    tab.on("request", lambda asked: said.append(asked.url))
    tab.goto(file.as_uri())
    wait(tab, "now !== null")
    yield trained, tab
    tab.close()
    assert [text for text in said if not text.startswith((file.as_uri(), "blob:", "data:"))] == []


def wait(tab: Any, condition: str) -> None:
    """Until a condition holds; the page's policy forbids what playwright does for it."""
    tab.evaluate(
        f"async () => {{ while (!({condition})) await new Promise(requestAnimationFrame); }}"
    )


SETTLE = """async (images) => {
  const ends = [];
  for (const image of images) {
    await ask("show", Uint8Array.from(image));
    const { states, scores } = await ask("step", Infinity);
    ends.push({ states: states.map((s) => Array.from(s)), scores: Array.from(scores) });
  }
  return ends;
}"""


def plain(trained: Trained) -> Network:
    network = copy.deepcopy(trained.network)
    network.speed = Speed(off=SHORTCUTS, precision="exact")
    return network


def settled(network: Network, x: Tensor) -> list[list[Tensor]]:
    """Of each sample the states at the end of the free phase, each flat."""
    ends = []
    for sample in torch.split(x, 1):
        end = network.relax(sample, network.free_steps, tolerance=network.tolerance)
        ends.append([state.flatten() for state in end.states])
    return ends


def compare(found: Any, expected: list[list[Tensor]]) -> None:
    for end, states in zip(found, expected, strict=True):
        for state, like in zip(end["states"], states, strict=True):
            torch.testing.assert_close(like.new_tensor(state), like, atol=1e-5, rtol=0)


def test_it_settles_where_binep_settles(opened: tuple[Trained, Any], digits: Tensor) -> None:
    trained, tab = opened
    network, images = plain(trained), digits[::5]
    found = tab.evaluate(SETTLE, images.flatten(1).tolist())
    compare(found[:20], settled(network, trained.prepare(images[:20])))
    classes = torch.tensor([[*map(float, end["scores"])] for end in found]).argmax(dim=1)
    assert torch.equal(classes, network.predict(trained.prepare(images)))
    assert len(classes.unique()) > 4


TEACH = """async ({ images, labels, beta, batch, gamma }) => {
  if (gamma) {
    const layers = facts.learning.layers.map((layer) => ({ ...layer, gamma }));
    await ask("load", decoded($("network").textContent).buffer, { ...facts.learning, layers });
  }
  const lessons = [];
  for (const [i, image] of images.entries()) {
    await ask("show", Uint8Array.from(image));
    await ask("nudge", labels[i], beta);
    const { layers } = await ask("teach", batch);
    lessons.push(layers.map(({ perInput }) => perInput && Array.from(perInput)));
  }
  return lessons;
}"""


@pytest.mark.parametrize(("batch", "gamma"), [(1, None), (2, None), (1, 1.0)])
def test_it_learns_what_binep_learns(
    opened: tuple[Trained, Any], digits: Tensor, batch: int, gamma: float | None
) -> None:
    """Three images, one after the other: which weights flip, and where all settles afterwards."""
    trained, tab = opened
    network, images, labels = plain(trained), digits[[5, 355, 805]], [3, 8, 0]
    config = trained.config(Path())
    if gamma is not None:
        every = {
            name: dataclasses.replace(layer, gamma=gamma) for name, layer in config.layers.items()
        }
        config = config.replace(layers=every)
    learning = config.learning
    nudging = "centred" if learning.nudging == "centred" else "one-sided"
    estimator = EquilibriumPropagation(
        network, beta=learning.beta, nudging=nudging, free_steps=network.free_steps,
        nudged_steps=config.dynamics.nudged_steps, tolerance=network.tolerance,
    )  # fmt: skip
    quiet = config.replace(learning=dataclasses.replace(learning, momentum_noise=False))
    flip, descent = build_optimizers(quiet, network)
    expected = []
    for image, label in zip(torch.split(trained.prepare(images), 1), labels, strict=True):
        before = [synapse.values.detach().clone() for synapse in network.learning_synapses()]
        estimator(image, network.cost.target([label]))
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.grad /= batch
        for optimizer in (flip, descent):
            if optimizer is not None:
                optimizer.step()
        after = [synapse.values for synapse in network.learning_synapses()]
        pairs = zip(before, after, strict=True)
        flips = [(a != b).flatten(1).sum(dim=0).tolist() for a, b in pairs]
        expected.append(flips if flip is not None else [None] * len(flips))
    asked = {"images": images.flatten(1).tolist(), "labels": labels, "beta": learning.beta}
    found = tab.evaluate(TEACH, asked | {"batch": batch, "gamma": gamma})
    assert found == expected
    if flip is not None:
        assert sum(sum(map(sum, flips)) for flips in expected) > 10
    tested = digits[20:30]
    compare(
        tab.evaluate(SETTLE, tested.flatten(1).tolist()), settled(network, trained.prepare(tested))
    )
    tab.evaluate("ask('reset')")
    original = settled(plain(trained), trained.prepare(tested))
    compare(tab.evaluate(SETTLE, tested.flatten(1).tolist()), original)


def test_one_draws_nudges_teaches_and_takes_it_back(
    browser: Any, real: Trained, folder: Path
) -> None:
    """By mouse and by keyboard, as a person does."""
    tab = browser.new_page(viewport={"width": 390, "height": 844})
    tab.goto(written(real, "drawn", folder).as_uri())
    wait(tab, "now !== null")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.click("#clear")
    wait(tab, "now === null")
    assert tab.is_disabled("#nudge")
    box = tab.locator("#pad").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 4
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x, y + box["height"] / 2, steps=5)
    tab.mouse.up()
    wait(tab, "now !== null && now.ended")
    one = tab.evaluate("Array.from(pixels)")
    ink = torch.tensor(one).view(28, 28).nonzero()
    assert (ink[:, 0].amax() - ink[:, 0].amin() + 1) in (20, 21)  # as tall as digits of MNIST are
    tab.click("#classes label:nth-child(2)")
    tab.click("#nudge")
    wait(tab, "now.nudged && now.ended")
    tab.select_option("#batch", "1")
    tab.click("#classes label:nth-child(5)")  # for the next nudge
    tab.click("#teach")
    tab.wait_for_selector("#taught .big")
    assert "Score of 1: " in tab.inner_text("#taught")
    wait(tab, "!now.nudged && now.ended")
    flips = int(tab.inner_text("#taught .big").replace(",", ""))
    assert flips > 0
    tab.click("#reset")
    wait(tab, "document.querySelector('#taught').textContent === ''")
    tab.click("#clear")
    wait(tab, "now === null")
    tab.focus("#pad")
    for key in (" ", "ArrowDown", "ArrowDown", "ArrowDown", " "):
        tab.keyboard.press(key)
    wait(tab, "now !== null && now.taken > 0")
    assert sum(tab.evaluate("Array.from(pixels)")) > 0
    tab.close()


PRESSES = """async (presses) => {
  const nudgeable = async () => {
    $("samples").firstElementChild.click();
    await queue;
    $("nudge").click();
    await queue;
  };
  const failed = [];
  addEventListener("error", (event) => failed.push(event.message));
  addEventListener("unhandledrejection", (event) => failed.push(String(event.reason)));
  await nudgeable();
  for (const id of presses) $(id).click();
  await queue;
  await new Promise((frame) => requestAnimationFrame(() => requestAnimationFrame(frame)));
  await queue;
  if ($("status").textContent.includes("wrong")) failed.push($("status").textContent);
  return {
    failed,
    shown: now !== null,
    moved: document.querySelector(".moved figcaption").textContent,
    open: ["play", "step", "restart", "nudge", "teach"].filter((id) => !$(id).disabled),
  };
}"""
BUTTONS = ("play", "step", "restart", "nudge", "teach", "reset", "clear")


def test_buttons_pressed_faster_than_the_network_answers(
    browser: Any, bits: Trained, folder: Path
) -> None:
    """What one has made impossible the next leaves undone; Clear clears whatever was under way."""
    tab = browser.new_page()
    tab.goto(written(bits, "hasty", folder).as_uri())
    wait(tab, "now !== null")
    for first, second in itertools.product(BUTTONS, repeat=2):
        cleared = tab.evaluate(PRESSES, [first, second, "step", "clear"])
        unmoved = "What the nudge changes: nothing yet"
        nothing = {"failed": [], "shown": False, "moved": unmoved, "open": []}
        assert cleared == nothing, (first, second)
        assert tab.evaluate(PRESSES, [first, second, "teach"])["failed"] == [], (first, second)
    tab.close()


ORDER = """async (presses) => {
  $("samples").firstElementChild.click();
  await queue;
  $("classes").querySelector('[value="3"]').click();
  for (const press of presses) {
    if (press >= 0) $("classes").querySelector(`[value="${press}"]`).click();
    else $(press).click();
  }
  await queue;
  const after = { playing, taken: now.taken, nudged: now.nudged };
  if (now.nudged) after.label = (await ask("teach", 1)).label;
  return after;
}"""


def test_what_is_pressed_last_holds(browser: Any, bits: Trained, folder: Path) -> None:
    """Though what was asked for before ends later; and a nudge is of what was chosen with it."""
    tab = browser.new_page()
    tab.goto(written(bits, "ordered", folder).as_uri())
    wait(tab, "now !== null")
    step = {"playing": False, "taken": 1}
    assert tab.evaluate(ORDER, ["restart", "step"]) == {**step, "nudged": False}
    assert tab.evaluate(ORDER, ["nudge", "step", 8]) == {**step, "nudged": True, "label": 3}
    assert tab.evaluate(ORDER, ["nudge", "play", 5])["playing"] is False
    tab.close()


@pytest.mark.parametrize("beta", [0.3, -0.5, 0.02, 1e-4, 7.0])
def test_the_page_begins_with_the_beta_of_the_run(
    beta: float, browser: Any, bits: Trained, folder: Path
) -> None:
    tab = browser.new_page()
    tab.goto(written(bits, "strength", folder).as_uri())
    wait(tab, "now !== null")
    begun = tab.evaluate("(own) => { facts.learning.beta = own; makeBeta(); return beta(); }", beta)
    assert begun == pytest.approx(beta, rel=1e-6)
    assert float(tab.inner_text("#beta-value").replace("−", "-")) == beta
    most = float(tab.get_attribute("#beta", "max"))
    assert max(1, 2 * abs(beta)) <= most * 1.05 <= 1.1 * max(1, 2 * abs(beta))
    tab.evaluate("$('beta').value = 0; $('beta').dispatchEvent(new Event('input'))")
    assert tab.evaluate("beta()") == 0
    assert float(tab.inner_text("#beta-value")) == 0
    assert tab.is_disabled("#nudge")
    tab.close()


REFUSED = {
    'ask("show", [1, 2, 3])': "show: must be 784 numbers from 0 to 255",
    'ask("show", Array(784).fill(256))': "show: must be 784 numbers from 0 to 255",
    'ask("nudge", 12, 0.3)': "nudge: must be a class, 0 to 9",
    'ask("nudge", "4", 0.3)': "nudge: must be a class, 0 to 9",
    'ask("nudge", 4)': "nudge: β must be a number",
    'ask("nudge", 4, 0)': "nudge: β must be a number, and not 0",
    'ask("teach", 16)': "teach: nudge comes first",
    'ask("toString")': "must be one of load, reset, show, step, nudge, teach",
}


def test_ask_refuses_what_cannot_be(browser: Any, bits: Trained, folder: Path) -> None:
    tab = browser.new_page()
    tab.goto(written(bits, "asked", folder).as_uri())
    wait(tab, "now !== null")
    for asked, said in REFUSED.items():
        answer = tab.evaluate(f"{asked}.then(() => 'well', (error) => error.message)")
        assert said in answer, asked
    tab.close()


def test_gently_is_as_one_of_the_largest_batch_that_flips_a_weight(
    browser: Any, bits: Trained, digits: Tensor, folder: Path
) -> None:
    tab = browser.new_page()
    tab.goto(written(bits, "gentle", folder).as_uri())
    teach = """async ([image, batch]) => {
      await ask("reset");
      await ask("show", Uint8Array.from(image));
      await ask("nudge", 3, 2);
      const { batch: taken, layers } = await ask("teach", batch);
      return [taken, layers.reduce((sum, { flips }) => sum + flips, 0)];
    }"""
    image = digits[5].flatten().tolist()
    found = {size: tab.evaluate(teach, [image, size])[1] for size in (1, 2, 4, 8, 16, 32, 64)}
    assert found[1] > 0 == found[64]
    taken, flips = tab.evaluate(teach, [image, 0])
    assert taken == max(size for size, count in found.items() if count)
    assert flips == found[taken]
    tab.close()


def test_samples_are_of_all_classes_and_the_file_is_complete(real: Trained, folder: Path) -> None:
    text = written(real, "file", folder).read_text(encoding="utf-8")
    assert len(re.findall(r'"label": \d', text)) >= 10
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "http" not in re.sub(r"http://www.w3.org/2000/svg|http-equiv", "", text)


def test_what_has_no_page_is_refused_in_one_line(
    tmp_path: Path, real: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    from binep.cli.main import main

    saved = tmp_path / "network.safetensors"

    def refused(trained: Trained | Network, reason: str) -> None:
        packed.save(trained, saved)
        assert main(["page", str(saved), "--output", str(tmp_path / "digit.html")]) == 2
        said = capsys.readouterr().err
        assert reason in said
        assert said.count("\n") == 1
        assert not (tmp_path / "digit.html").exists()

    refused(Network([Dense(4, 3)], Real()), "does not say how it was trained")
    refused(Trained(Network([Dense(4, 3)], Real()), run=real.run), "a page needs images")
    assert main(["page", str(saved), "--output", str(tmp_path / "digit.txt")]) == 2
    assert "must end in .html" in capsys.readouterr().err


def test_a_run_of_a_gpu_has_a_page_without_one(real: Trained, folder: Path) -> None:
    run = {**(real.run or {})}
    run["config"] = run["config"].replace('device = "cpu"', 'device = "cuda"')
    assert 'device = "cuda"' in run["config"]
    of_gpu = written(dataclasses.replace(real, run=run), "gpu", folder).read_text(encoding="utf-8")
    assert of_gpu.count('"label"') >= 10


def test_samples_are_read_as_the_page_reads_them(brightened_and_normalised: Trained) -> None:
    """Those that come with binep are not prepared as the run's own data set was."""
    found = _samples(brightened_and_normalised, sources.load("mnist5k"))
    images = torch.tensor([list(base64.b64decode(sample["image"])) for sample in found])
    x = brightened_and_normalised.prepare(images.to(torch.uint8).view(-1, 1, 28, 28))
    assert [s["read"] for s in found] == brightened_and_normalised.network.predict(x).tolist()


def test_without_mnist_the_samples_are_those_that_come_with_binep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("pooch.retrieve", refuse)
    said: list[str] = []
    text = page(Path("mnist-fc1"), warn=said.append, data_dir=tmp_path)
    assert [line.split(":")[0] for line in said] == ["the samples are digits of mnist5k"]
    assert text.count('"label"') >= 10
