"""The `binep` command.

What draws is imported where it is used: matplotlib takes a while, and 25 MB.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar, cast

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from binep.analysis import claims, gradient_check, inspection, measurements, tables
from binep.core.neurons import Binary
from binep.core.synapses import Weights
from binep.data import sources as data
from binep.data.sources import DataError
from binep.experiment.config import Config, ConfigError, did_you_mean, preset, preset_names
from binep.experiment.experiment import EpochResult, Experiment, initial_network
from binep.experiment.training import Meter, Scores
from binep.experiment.warnings import Guards
from binep.runs import checkpoints, files, metrics, settings
from binep.runs import folder as runs
from binep.runs.files import RunError
from binep.runs.tensorboard import Board

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")

USAGE = """\
usage: binep COMMAND ...

  binep train PRESET [--epochs 3 --seed 1 ...]   train; --help lists every setting
  binep train --config FILE.toml [...]           the same from a file
  binep train --resume RUN                       go on with a run that was interrupted
  binep evaluate RUN                             test a trained network again
  binep plot RUN ...                             draw the curves of one run or of several
  binep report RUN ... --output FILE.html        write a page about one run or several
  binep inspect RUN [--index 18 ...]             follow one image through a trained network
  binep reproduce ROW ...                        run rows of the paper's tables, and write them
  binep check gradients PRESET                   equilibrium propagation against backpropagation
  binep presets                                  list the presets

binep COMMAND --help says more. Bad input ends with exit code 2 and one line per problem."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 2 for bad input."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with reporting_errors() as failed:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(USAGE)
        elif arguments[0] == "--version":
            print(f"binep {version('binep')}")
        elif arguments[0] in COMMANDS:
            COMMANDS[arguments[0]](arguments[1:])
        else:
            hint = did_you_mean(arguments[0], COMMANDS)
            raise ConfigError(f"unknown command {arguments[0]}{hint}: one of {', '.join(COMMANDS)}")
    return 2 if failed or not arguments else 0


@contextlib.contextmanager
def reporting_errors() -> Iterator[list[str]]:
    """Print errors in the user's input, a line each, instead of a traceback.

    A pipe that nobody reads any more ends the command quietly.
    """
    failed: list[str] = []
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal need not have every letter
    try:
        try:
            yield failed
        finally:
            print(end="", flush=True)
    except BrokenPipeError:  # `binep ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("binep: interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except (MemoryError, torch.OutOfMemoryError) as error:
        failed.append(f"not enough memory: {str(error).splitlines()[0]}")
        print(f"binep: {failed[0]}", file=sys.stderr)
    except (ConfigError, DataError, RunError) as error:
        failed.extend(str(error).splitlines())
        print("\n".join(f"binep: {line}" for line in failed), file=sys.stderr)


def parse(kind: type[T], arguments: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """Parse flags into a dataclass, with errors as one line.

    Raises:
        ConfigError: an unknown flag, or a value of the wrong type.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed: T = tyro.cli(
                kind,
                args=list(arguments),
                prog=prog,
                default=cast(T, default),
                config=(tyro.conf.AvoidSubcommands, tyro.conf.HelptextFromCommentsOff),
            )
            return parsed
    except SystemExit as exit:
        if not exit.code:
            raise
    # tyro draws a box: leave out colours, borders (dashes where there is no UTF-8) and the title.
    lines = re.sub(r"\x1b\[[\d;]*m|[─-╿]|-{3,}", "", said.getvalue()).splitlines()[1:]
    text = " ".join(" ".join(lines).split())
    raise ConfigError(text.split(" For full helptext")[0])


# train -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainOptions:
    """Train a network, and keep all of the run in a folder.

    A preset, or a file given by --config, says what to train; every setting of it can be
    replaced. Layers count from 1 above the input to the output.
    """

    config: Path | None = None
    """A TOML file in the place of a preset; or a run folder, to run the same again."""
    resume: Path | None = None
    """The folder of a run to go on with, in the place of a preset; takes no other setting."""
    run_dir: Path | None = None
    """Folder for the run, new or empty; otherwise runs/PRESET/TIME-SEED."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard, too, in the run's folder; goes with --resume, too."""
    experiment: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def train_command(arguments: Sequence[str]) -> None:
    """The command `binep train`."""
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    flags = list(arguments[1:] if name else arguments)
    file = _value_of("--config", flags)
    others = [flag for flag in flags if flag != "--tensorboard"]
    if any(flag.split("=")[0] == "--resume" for flag in others):
        resume_training(_resumed(others, name), Board() if others != flags else None)
        return
    if name is not None and file is not None:
        raise ConfigError(f"both the preset {name} and --config {file}: name one of them")
    if name is not None:
        config = preset(name)
    elif file is not None:
        path = Path(file) / "config.toml" if Path(file).is_dir() else Path(file)
        config = Config.load(path)
        folder = path.resolve().parent
        name = folder.name if path.name == "config.toml" else path.stem
        if folder == (Path("runs") / name).resolve():  # not into the run that it repeats
            name = f"{name}-again"
    elif {"-h", "--help"} & set(flags):
        config = preset("quickstart")
    else:
        raise ConfigError("train what? Name a preset (binep presets lists them) or --config FILE")
    options = parse(
        TrainOptions,
        flags,
        prog=f"binep train {name or 'PRESET'}",
        default=TrainOptions(experiment=config),
    )
    board = Board() if options.tensorboard else None
    run_training(options.experiment, name or "run", options.run_dir, board)


def _resumed(flags: Sequence[str], name: str | None) -> Path:
    folder = _value_of("--resume", flags)
    if name is not None or folder is None or len(flags) != 1 + (flags[0] == "--resume"):
        raise ConfigError("--resume takes one run folder and no other setting: they are the run's")
    return Path(folder)


def _value_of(flag: str, flags: Sequence[str]) -> str | None:
    for i, text in enumerate(flags):
        if text == flag:
            return flags[i + 1] if i + 1 < len(flags) else None
        if text.startswith(f"{flag}="):
            return text.removeprefix(f"{flag}=")
    return None


def run_training(
    config: Config, name: str, run_dir: Path | None, board: Board | None = None
) -> None:
    """Train, showing progress, and leave a run folder."""
    experiment = Experiment(config)
    folder = runs.claim_folder(run_dir) if run_dir else runs.new_folder(name, config.seed)
    _train(experiment, folder, [], Guards(), f"{config.summary()}: training", board)


def resume_training(folder: Path, board: Board | None = None) -> None:
    """Go on with a run, showing progress."""
    experiment, rows, guards = runs.resume(folder)
    place = f"going on at epoch {experiment.epoch + 1}, batch {experiment.batch + 1}"
    if experiment.epoch == experiment.config.epochs:
        place = "has ended; nothing left to do"
    what = f"{experiment.config.summary()}: {place}"
    _train(experiment, folder, rows, guards, what, board)


def _train(
    experiment: Experiment,
    folder: Path,
    rows: Sequence[metrics.Row],
    guards: Guards,
    what: str,
    board: Board | None,
) -> None:
    print(f"{what} on {experiment.device}, run folder {folder}", flush=True)
    stopped = ""
    so_far = list(rows)

    def after_epoch(result: EpochResult) -> None:
        reporter.after_epoch(result)
        so_far.append(metrics.row_of(result))
        if board is not None:
            board.show(folder, so_far)

    with (
        board or contextlib.nullcontext(),
        _Reporter(experiment) as reporter,
        _stop_on_interrupt() as stop,
    ):
        try:
            rows = runs.train(
                experiment,
                folder,
                rows=rows,
                after_batch=reporter.after_batch,
                after_epoch=after_epoch,
                stop=stop.is_set,
                warn=reporter.warn,
                guards=guards,
            )
            if board is not None:  # of a run that had ended before
                board.show(folder, rows)
        except runs.Stopped:
            stopped = f"stopped in epoch {experiment.epoch + 1} after batch {experiment.batch}"
    if stopped:
        print(f"{stopped}; go on with: binep train --resume {shlex.quote(str(folder))}")
        raise SystemExit(128 + signal.SIGINT)
    print(f"test error {rows[-1]['test_error']:.2f} % after epoch {len(rows)}; see {folder}")


@contextlib.contextmanager
def _stop_on_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C, or a request to terminate, sets an event; a second one ends the process at once."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Reporter:
    """Shows training: a progress bar on a terminal, a line per epoch elsewhere."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.console = Console()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TimeRemainingColumn(),
            TextColumn("{task.fields[scores]}", table_column=Column()),  # which may wrap
            console=self.console,
            disable=not self.console.is_terminal,
        )
        total = experiment.config.epochs * experiment.batches_per_epoch
        self.task = self.progress.add_task("", total=total, scores="")
        self.shown = 0.0

    def __enter__(self) -> _Reporter:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def after_batch(self, meter: Meter) -> None:
        # Reading the scores makes the host wait for the device: seldom enough not to matter.
        last = meter.batches == self.experiment.batches_per_epoch
        if self.progress.disable or not (last or time.monotonic() - self.shown > 0.5):
            return
        self.shown = time.monotonic()
        scores = meter.read()
        flips = [int(n) for n in self.experiment.flip.flips()] if self.experiment.flip else []
        text = (
            f"error {scores.error:5.2f} %  flips {_join(flips)}  "
            f"settles in {_join(scores.settle_steps)}  {scores.samples / scores.seconds:.0f}/s"
        )
        done = self.experiment.epoch * self.experiment.batches_per_epoch + meter.batches
        description = f"epoch {self.experiment.epoch + 1}/{self.experiment.config.epochs}"
        self.progress.update(self.task, completed=done, description=description, scores=text)

    def warn(self, text: str) -> None:
        if self.progress.disable:
            print(f"binep: warning: {text}", file=sys.stderr)
        else:
            self.console.print(f"warning: {text}", highlight=False, soft_wrap=True, markup=False)

    def after_epoch(self, result: EpochResult) -> None:
        flips = _join([change.flips for change in result.layers if change])
        line = (
            f"epoch {result.epoch}/{self.experiment.config.epochs}"
            f"  train error {result.train.error:.2f} %  test error {_errors(result.test)}"
            + (f"  flips {flips}" if flips else "")
            + f"  settles in {_join(result.train.settle_steps)} steps"
            f"  {result.train.samples / result.train.seconds:.0f} samples/s"
            f"  {result.train.seconds + result.test.seconds:.1f} s"
        )
        if self.progress.disable:
            print(line, flush=True)
        else:
            self.console.print(line, highlight=False, soft_wrap=True)


def _errors(scores: Scores) -> str:
    others = [
        f"{name.removeprefix('error_').replace('_', ' ')} {value:.2f}"
        for name, value in scores.errors.items()
        if name != "error"
    ]
    return f"{scores.error:.2f} %" + (f" ({', '.join(others)})" if others else "")


def _join(values: Sequence[float]) -> str:
    return " ".join(f"{value:.0f}" for value in values)


# evaluate ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluateOptions:
    """Test a trained network again."""

    run: tyro.conf.Positional[Path]
    """A run folder."""
    data_dir: Path | None = None
    """Folder of the data sets, if not the run's."""
    device: str | None = None
    """cpu, cuda or cuda:N, if not the run's."""


def evaluate_command(arguments: Sequence[str]) -> None:
    """The command `binep evaluate`."""
    options = parse(EvaluateOptions, arguments, prog="binep evaluate")
    chosen = {"data_dir": options.data_dir, "device": options.device}
    experiment = runs.load(options.run, **{k: v for k, v in chosen.items() if v is not None})
    scores = experiment.evaluate()
    print(
        f"test error {_errors(scores)}  test loss {scores.loss:.6g}  "
        f"settles in {_join(scores.settle_steps)} steps  {scores.samples} samples"
    )


# plot --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlotOptions:
    """Draw the curves of one run, or the mean and standard deviation of many."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    output: Path = Path("curves.png")
    """A file that ends in .png, .pdf or .svg."""


def plot_command(arguments: Sequence[str]) -> None:
    """`binep plot`."""
    options = parse(PlotOptions, arguments, prog="binep plot")
    kind = options.output.suffix.removeprefix(".")
    if kind not in ("png", "pdf", "svg"):
        raise ConfigError(f"--output {options.output}: must end in .png, .pdf or .svg")
    if not options.runs:
        raise ConfigError("plot what? Name one run folder or more")
    found = metrics.read_alike(options.runs)
    for folder, rows in zip(options.runs, found, strict=True):
        if len(rows) != min(map(len, found)):
            print(f"{folder}: drawn as far as the shortest run goes, not to epoch {len(rows)}")
    from binep.runs import curves as plots

    files.write(options.output, plots.rendered(plots.curves(found), kind))
    print(options.output)


# reproduce ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReproduceOptions:
    """Run rows of the paper's tables, and write the tables from the logs of all runs so far.

    What has been run is not run again; what was interrupted goes on. Without a row only the
    tables are written.
    """

    rows: tyro.conf.Positional[tuple[str, ...]] = ()
    """Presets, or all: every row of the paper's tables."""
    seeds: int = 3
    """Runs of each row, from seed 0."""
    output: Path = Path("reproduced")
    """Folder of the runs, and of README.md with the tables."""
    epochs: int | None = None
    """Fewer epochs than a row's own; the tables say so."""
    data_dir: Path | None = None
    """Folder of the data sets; otherwise $BINEP_DATA, otherwise a cache folder."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    threads: int | None = None
    """CPU threads; otherwise what PyTorch chooses."""


def reproduce_command(arguments: Sequence[str]) -> None:
    """The command `binep reproduce`."""
    options = parse(ReproduceOptions, arguments, prog="binep reproduce")
    known = preset_names()
    for name in options.rows:
        if name not in (*known, "all"):
            raise ConfigError(
                f"no row {name}{did_you_mean(name, known)}: one of {', '.join(known)}"
            )
    if options.seeds < 1:
        raise ConfigError(f"--seeds {options.seeds}: must be at least 1")
    chosen = {"data_dir": options.data_dir, "device": options.device, "threads": options.threads}
    jobs = {}
    for name in claims.rows() if "all" in options.rows else dict.fromkeys(options.rows):
        for seed in range(options.seeds):
            config = preset(name).replace(seed=seed, **chosen)
            if options.epochs is not None:
                config = config.replace(epochs=min(options.epochs, config.epochs))
            config.check()
            jobs[measurements.folder_of(options.output, name, seed)] = config
    unfinished = {f: c for f, c in jobs.items() if measurements.is_unfinished(f, c)}
    tables.table(options.output)  # what cannot be read is said before any work
    files.make_folder(options.output)
    try:
        for folder, config in unfinished.items():
            if (folder / "config.toml").exists():
                resume_training(folder)
            else:
                run_training(config, folder.parent.name, folder)
    finally:
        files.write(options.output / "README.md", tables.page(options.output).encode())
        _print_rows(options.output, {folder.parent.name for folder in jobs})


def _print_rows(root: Path, wanted: Collection[str]) -> None:
    """The rows that were asked for, or have been run; all of them are in README.md."""
    table = Table("row", "test error (%)", "runs", "epochs", "reference (%)", "claimed")
    for row in tables.rows(root, wanted):
        found = measurements.longest(measurements.measured(root, row.preset))
        beside: list[measurements.Measured] = []
        if row.reference:
            beside = measurements.longest(measurements.measured(root, row.reference))
        if not found and row.preset not in wanted:
            continue
        table.add_row(
            escape(row.preset),  # brackets are no markup
            measurements.mean_of(found) if found else "not run",
            str(len(found)) if found else "",
            measurements.epochs_of(found, preset(row.preset)) if found else "",
            measurements.mean_of(beside) if beside else "",
            row.claim or "none",
        )
    console = Console()
    Console(width=console.width if console.is_terminal else 120).print(table)
    print(root / "README.md")


# report ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReportOptions:
    """Write a page about one run, or about several that differ in their seeds.

    One HTML file, complete: results beside the paper's claims, curves, confusion matrix, misread
    images, weights, speed, setting and machine.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    output: Path = Path("report.html")
    """A file that ends in .html."""
    data_dir: Path | None = None
    """Folder of the data sets, if not the run's."""
    device: str | None = None
    """cpu, cuda or cuda:N, if not the run's."""


def report_command(arguments: Sequence[str]) -> None:
    """The command `binep report`."""
    options = parse(ReportOptions, arguments, prog="binep report")
    if options.output.suffix != ".html":
        raise ConfigError(f"--output {options.output}: must end in .html")
    if not options.output.parent.is_dir():
        raise ConfigError(f"--output {options.output}: there is no folder {options.output.parent}")
    if not options.runs:
        raise ConfigError("report what? Name one run folder or more")
    chosen = {"data_dir": options.data_dir, "device": options.device}
    from binep.analysis import readings, report

    found = readings.gather(options.runs, **{k: v for k, v in chosen.items() if v is not None})
    for reason in found.missing:
        print(f"binep: warning: {reason}", file=sys.stderr)
    files.write(options.output, report.page(found).encode())
    print(options.output)


# inspect -----------------------------------------------------------------------------------------

ACTIVITY = 500
"""Test images over which it is counted which neurons ever fire."""


@dataclass(frozen=True)
class InspectOptions:
    """Follow one test image through a trained network, and draw what happens.

    phases: scores, states, residuals, energy and cost in the free and in the nudged phase; bits:
    what each layer fires; momenta: how far weights are from their flip; flips: which weights
    differ from their start. phases.csv has the numbers. Runs on the CPU.
    """

    run: tyro.conf.Positional[Path]
    """A run folder."""
    index: int = 0
    """Which test image, from 0."""
    output: Path | None = None
    """Folder for the figures; otherwise RUN/inspect."""
    format: Literal["pdf", "svg", "png"] = "pdf"
    """Of the figures."""
    neurons: int = 12
    """How many neurons of each layer are drawn."""
    data_dir: Path | None = None
    """Folder of the data sets, if not the run's."""


def inspect_command(arguments: Sequence[str]) -> None:
    """The command `binep inspect`."""
    options = parse(InspectOptions, arguments, prog="binep inspect")
    if options.neurons < 1:
        raise ConfigError(f"--neurons {options.neurons}: must be at least 1")
    chosen = {"device": "cpu"} | ({"data_dir": options.data_dir} if options.data_dir else {})
    whole = (options.run / checkpoints.CHECKPOINT).exists()
    experiment = (runs.load_checkpoint if whole else runs.load)(options.run, **chosen)
    data, config = experiment.data, experiment.config
    if not 0 <= options.index < len(data.test):
        last = len(data.test) - 1
        raise ConfigError(
            f"--index {options.index}: must be from 0 to {last}, the test images of {data.name}"
        )
    image, label = data.test.images[options.index], int(data.test.labels[options.index])
    found = inspection.follow(
        experiment.network,
        data.prepare(image[None])[0],
        label,
        free_steps=config.dynamics.free_steps,
        nudged_steps=config.dynamics.nudged_steps,
        beta=config.learning.beta,
        tolerance=config.dynamics.settle_tol,
    )
    from binep.analysis import inspection_figures as inspection_plots
    from binep.runs import curves as plots

    phases = inspection_plots.phases(
        found,
        image.numpy(),
        data.classes,
        label,
        neurons=options.neurons,
        thresholds=[n.threshold for n in experiment.network.neurons if isinstance(n, Binary)],
    )
    drawn = {"phases": phases} | _drawings(experiment, found, whole)
    output = options.output or options.run / "inspect"
    files.make_folder(output)
    read = data.classes[int(found.scores[found.free_steps].argmax())]
    print(
        f"test image {options.index} of {data.name}: label {data.classes[label]}, read as {read}; "
        f"settles in {_join(found.settled[0])} steps, nudged in {_join(found.settled[1])}"
    )
    few = data.test.images[:ACTIVITY]
    often, ever = inspection.activity(
        experiment.network,
        data.prepare(few),
        free_steps=config.dynamics.free_steps,
        tolerance=config.dynamics.settle_tol,
    )
    print(
        f"of {len(few)} test images, one activates {_percents(often)} of the layers' neurons, "
        f"all together {_percents(ever)}"
    )
    files.write(output / "phases.csv", metrics.table(found.rows(), digits=9).encode())
    print(output / "phases.csv")
    for name, figure in drawn.items():
        path = output / f"{name}.{options.format}"
        if isinstance(figure, str):
            print(f"no {path.name}: {figure}")
        else:
            files.write(path, plots.rendered(figure, options.format))
            print(path)


def _percents(shares: Iterable[float]) -> str:
    return " ".join(f"{100 * share:.1f}" for share in shares) + " %"


def _drawings(
    experiment: Experiment, found: inspection.Phases, whole: bool
) -> dict[str, Figure | str]:
    """The figures besides the phases by name, or why there is none."""
    from binep.analysis import inspection_figures as inspection_plots

    drawn: dict[str, Figure | str] = {}
    network, flip = experiment.network, experiment.flip
    drawn["bits"] = inspection_plots.bits(found) if found.bits else "its neurons fire no bits"
    if flip is None:
        return drawn | dict.fromkeys(("momenta", "flips"), "its weights are real and do not flip")
    if whole:
        drawn["momenta"] = inspection_plots.momenta(inspection.momenta(network, flip))
    else:
        drawn["momenta"] = f"the run has no {checkpoints.CHECKPOINT}, which holds the momenta"
    try:
        signs = inspection.signs(network, initial_network(experiment.config))
        drawn["flips"] = inspection_plots.flips(signs)
    except ValueError as error:
        drawn["flips"] = f"{error}, which its seed gives now"
    return drawn


# check -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckOptions:
    """Compare equilibrium propagation with backpropagation through time, layer by layer.

    On one batch, in float64: for every time step of the nudged phase and every β, nudge inside and
    outside ρ, one-sided and centred, with binary weights and with real ones. It leaves
    gradients.csv, weights.csv and a figure; docs/gradients.md explains them.
    """

    source: tyro.conf.Positional[str]
    """A preset or a TOML file, with its initial weights; or a run folder, with its trained ones."""
    output: Path = Path("gradients")
    """Folder of the tables and the figure; what it holds under their names is replaced."""
    formats: tuple[Literal["pdf", "png", "svg"], ...] = ("pdf", "png")
    """Of the figure."""
    betas: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    """Nudging strengths; the β that the network is trained with comes with them."""
    samples: int = 32
    """Training samples to take the gradients of."""
    steps: int | None = None
    """Steps of the nudged phase, and of backpropagation; otherwise nudged_steps of the source."""
    free_steps: int = 5000
    """The most steps of the free phase, which ends where no state moves by more than 1e-12."""
    seed: int | None = None
    """Of the initial weights and the samples, if not the source's."""
    dataset: Literal["mnist5k", "mnist", "fashion-mnist", "cifar10"] | None = None
    """Another data set than the source's."""
    data_dir: Path | None = None
    """Folder of the data sets, if not the source's."""
    threads: int | None = None
    """CPU threads, if not the source's."""


def check_command(arguments: Sequence[str]) -> None:
    """`binep check gradients`."""
    if not arguments or arguments[0] not in ("gradients", "-h", "--help"):
        raise ConfigError("check what? binep check gradients PRESET")
    flags = arguments[1:] if arguments[0] == "gradients" else arguments
    options = parse(CheckOptions, flags, prog="binep check gradients")
    for name in ("samples", "steps", "free_steps"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    for beta in options.betas:
        if not 1e-6 <= beta < math.inf:
            raise ConfigError(f"--betas {beta}: must be finite and at least 1e-6")
    experiments = _to_check(options)
    for experiment in experiments:
        if options.samples > len(experiment.data.train):
            raise ConfigError(
                f"--samples {options.samples}: must be at most {len(experiment.data.train)}, the "
                f"training samples of {experiment.config.dataset}"
            )
    files.make_folder(options.output)
    agreements: list[gradient_check.Agreement] = []
    traced: list[gradient_check.Traced] = []
    for experiment in experiments:
        found = _checked(experiment, options)
        agreements += found.agreements
        traced += found.traced
    learning = experiments[0].config.learning
    from binep.analysis import gradient_figure as gradient_plots
    from binep.runs import curves as plots

    own = gradient_plots.Setting(learning.synapses, abs(learning.beta))
    figure = gradient_plots.drawn(agreements, traced, own)
    files.write(options.output / "gradients.csv", gradient_check.table(agreements).encode())
    files.write(options.output / "weights.csv", gradient_check.table(traced).encode())
    for kind in options.formats:
        files.write(options.output / f"gradients.{kind}", plots.rendered(figure, kind))
    _print_agreements(agreements)
    print(options.output)


def _to_check(options: CheckOptions) -> list[Experiment]:
    """The network itself, then, of one that is not trained, the same with the other weights."""
    names = ("seed", "dataset", "data_dir", "threads")
    chosen = {n: getattr(options, n) for n in names if getattr(options, n) is not None}
    path, trained = Path(options.source), False
    if options.source in preset_names():
        config = preset(options.source)
    elif path.is_dir():
        config, trained = settings.comparable(settings.read_config(path)), True
    else:
        config = Config.load(path) if path.suffix == ".toml" else preset(options.source)
    if config.dynamics.activation == "heaviside":
        raise ConfigError(
            f"{options.source}: activation = heaviside, a step without a derivative, so there is "
            "no gradient to compare with: it must be hard-sigmoid"
        )
    if trained:
        return [runs.load(path, **chosen, device="cpu")]
    own = config.learning.synapses
    kinds: list[Weights] = ["binary", "real"]
    return [
        Experiment(
            config.replace(
                **chosen, device="cpu", learning=dataclasses.replace(config.learning, synapses=kind)
            )
        )
        for kind in sorted(kinds, key=lambda kind: kind != own)
    ]


def _checked(experiment: Experiment, options: CheckOptions) -> gradient_check.Check:
    config, split = experiment.config, experiment.data.train
    images, labels = next(data.batches(split, options.samples, generator=experiment.order))
    found = gradient_check.check(
        experiment.network,
        experiment.data.prepare(images),
        experiment.network.cost.target(labels),
        betas=sorted({*options.betas, abs(config.learning.beta)}),
        steps=options.steps or config.dynamics.nudged_steps,
        free_steps=options.free_steps,
        generator=torch.Generator().manual_seed(config.seed),
    )
    kind = config.learning.synapses
    print(
        f"{kind} weights: free phase of {found.free_steps} steps, residual {found.residual:.1g}; "
        f"{100 * found.stuck:.1f} % of the outputs are wrong where ρ is flat",
        flush=True,
    )
    if found.residual > gradient_check.SETTLED:
        print(
            f"binep: warning: {kind} weights: the free phase has not settled, and only in a "
            "settled one does EP tend to BPTT: try a larger --free-steps",
            file=sys.stderr,
        )
    return found


def _print_agreements(rows: Sequence[gradient_check.Agreement]) -> None:
    """The layer of the least agreement, after all steps: cosine and relative error."""
    from binep.analysis.gradient_figure import power

    last = [row for row in rows if row.step == rows[-1].step and row.parameter == "weight"]
    betas = [power(b) for b in dict.fromkeys(row.beta for row in last)]
    table = Table("weights", "nudge", "nudging", "BPTT", *(f"β = {beta}" for beta in betas))
    found: dict[tuple[str, ...], dict[float, list[gradient_check.Agreement]]] = {}
    for row in last:
        key = (row.weights, row.nudge, row.nudging, row.reference)
        found.setdefault(key, {}).setdefault(row.beta, []).append(row)
    for about, by_beta in found.items():
        cells = []
        for layers in by_beta.values():
            # So few steps may not have reached a layer: then there is nothing to compare in it.
            reached = [row for row in layers if not math.isnan(row.error)]
            worst = max(reached, key=lambda row: row.error, default=None)
            cells.append(f"{worst.cosine:.3f} ({worst.error:.0e})" if worst else "")
        table.add_row(*about, *cells)
    console = Console()
    Console(width=console.width if console.is_terminal else 150).print(table)
    print("cosine (relative error) after all steps, in the layer where the error is largest")


# presets -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PresetsOptions:
    """List the presets."""


def presets_command(arguments: Sequence[str]) -> None:
    """The command `binep presets`."""
    parse(PresetsOptions, arguments, prog="binep presets")
    table = Table("preset", "title", "what", "epochs")
    for name in preset_names():
        config = preset(name)
        table.add_row(name, config.title, config.summary(), str(config.epochs))
    console = Console()
    Console(width=console.width if console.is_terminal else 120).print(table)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train_command,
    "evaluate": evaluate_command,
    "plot": plot_command,
    "report": report_command,
    "inspect": inspect_command,
    "reproduce": reproduce_command,
    "check": check_command,
    "presets": presets_command,
}
