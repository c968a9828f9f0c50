"""Captured steps: the plain solver's steps on a CUDA device, launched some at a time.

Each of a step's operations is a kernel that the host launches, and in small networks the launch
takes longer than the kernel. A CUDA graph records the kernels of some steps with the memory that
they read and write, and launches all of them at once, as often as asked.
"""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from binep.core.costs import Cost, CrossEntropy, SquaredError
from binep.core.network import Network
from binep.core.neurons import Binary, Real
from binep.core.phases import Clamped, Equilibrium, Phase
from binep.core.solvers import Loop, Solver, odd_even
from binep.core.synapses import Conv, Dense
from binep.core.versions import Version
from binep.solvers.halves import halved, in_halves, is_bounded

AT_ONCE = 8
"""The most steps in a graph."""

_KEPT = 8
"""Kinds of phases that a solver keeps graphs of: free and nudged, whole and last batches, tests."""

Work = Callable[[], None]
F = TypeVar("F")


class CapturedSolver(Solver):
    """The loop over `Network.step` on a CUDA device, captured as CUDA graphs.

    Wide dense layers multiply in float16 halves, unless `Speed.precision` is "exact".

    A graph reads the parameters where they were when it was captured, so it follows what changes in
    place; where a parameter lies elsewhere, all are captured anew.
    """

    name = "captured"
    device: ClassVar[str] = "cuda"
    """The type of device that it is for."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._frames: Frames[_Frame] = Frames(network, _KEPT)
        self._stepping: dict[str, Network] = {}

    @classmethod
    def fits(cls, network: Network, phase: Phase) -> bool:
        """What comes with binep, on a CUDA device, in float32 or float64, not compiled."""
        return (  # a subclass may make the host wait, or keep other memory
            phase.x.device.type == cls.device
            and not network.speed.compile
            and phase.x.dtype in (torch.float32, torch.float64)
            and all(type(neurons) in (Real, Binary) for neurons in network.neurons)
            and all(type(synapse) in (Dense, Conv) for synapse in network.learning_synapses())
            and type(network.cost) in (SquaredError, CrossEntropy)
            and not (cls.device == "cuda" and torch.cuda.is_current_stream_capturing())
        )

    def solve(self, phase: Phase, memory: object) -> Equilibrium:
        """Step until all has settled, or the steps are used up."""
        clamped = phase.clamped or self.network.clamp(phase.x)
        with one_at_a_time(phase.x.device):
            stepping = self._followed(phase)
            frame = self._frame(phase, clamped, stepping)
            frame.load(phase, clamped)
            left = phase.steps
            while left:
                steps = min(left, phase.check_every) if phase.tolerance > 0 else left
                frame.take(steps)
                left -= steps
                if left and not frame.unsettled:
                    break
            return phase.ended(self, clamped, *frame.end())

    def _followed(self, phase: Phase) -> Network:
        """What takes the steps at the network's precision, with its parameters as they are."""
        network, precision = self.network, self.network.speed.precision
        if not self._frames.are_current(phase.x.device):
            self._stepping.clear()
        if (
            precision == "exact"
            or phase.x.dtype != torch.float32
            or network.has_own_steps
            or not all(map(is_bounded, network.neurons))
        ):
            return network
        if precision not in self._stepping:
            self._stepping[precision] = in_halves(network, 1 if precision == "fast" else 2)
        stepping = self._stepping[precision]
        for synapse in halved(stepping):
            synapse.follow()
        stepping.neurons = network.neurons
        return stepping

    def _frame(self, phase: Phase, clamped: Clamped, stepping: Network) -> _Frame:
        """The frame of a kind of phase, which then is the one used last."""
        network = self.network
        kind = (
            clamped.drive.shape,
            phase.target is None or phase.beta == 0,
            phase.tolerance,
            odd_even(phase),
            stepping,
            network.cost,
            *network.neurons,
            *_kernel_settings(),
        )
        return self._frames.of(
            kind, lambda graphs: _Frame(phase, clamped, stepping, graphs.capture)
        )


class _Frame:
    """The memory in which the steps of one kind of phase read and write, and their graphs.

    Args:
        phase: one of that kind.
        clamped: its input.
        stepping: the network that takes the steps.
        capture: `Graphs.capture`.
    """

    def __init__(
        self, phase: Phase, clamped: Clamped, stepping: Network, capture: Callable[[Work], Work]
    ) -> None:
        self._drive = torch.empty_like(clamped.drive)
        self._beta = phase.x.new_empty(())
        self._target, self._held = (
            None if nudge is None or phase.beta == 0 else torch.empty_like(nudge)
            for nudge in (phase.target, phase.held)
        )
        self._loop = Loop.of(phase, Clamped(self._drive, self._drive))  # no step reads x
        self._loop.step = stepping.step
        self._loop.nudge = _nudge(phase.network.cost, self._beta, self._target, self._held)
        self._loop.states = [torch.empty_like(state) for state in self._loop.states]
        self.unsettled = torch.ones((), dtype=torch.bool, device=phase.x.device)
        self._capture = capture
        self._graphs: dict[int, Work] = {}

    def load(self, phase: Phase, clamped: Clamped) -> None:
        """Copy what a phase of this kind begins with."""
        begun = Loop.of(phase, clamped)
        for mine, given in zip(self._loop.tensors(), begun.tensors(), strict=True):
            mine.copy_(given)
        self._drive.copy_(clamped.drive)
        self._beta.fill_(phase.beta)
        for kept, nudge in ((self._target, phase.target), (self._held, phase.held)):
            if kept is not None and nudge is not None:
                kept.copy_(nudge)

    def take(self, steps: int) -> None:
        """Take steps, and look whether all has settled: `unsettled`, () bool on the device."""
        whole, rest = divmod(steps, AT_ONCE)
        for _ in range(whole):
            self._replay(AT_ONCE)
        if rest:
            self._replay(rest)

    def end(self) -> tuple[list[Tensor], Tensor, Tensor]:
        """Copies of the states, `Equilibrium.moved` and `Equilibrium.residual`."""
        loop = self._loop
        return [state.clone() for state in loop.states], loop.moved.clone(), loop.residual.clone()

    def _replay(self, steps: int) -> None:
        if steps in self._graphs:
            self._graphs[steps]()
        else:
            self._graphs[steps] = self._capture(lambda: self._advance(steps))

    def _advance(self, steps: int) -> None:
        loop = self._loop.copy()
        for _ in range(steps):
            loop.advance()
        for kept, new in zip(self._loop.tensors(), loop.tensors(), strict=True):
            kept.copy_(new)
        self.unsettled.copy_(loop.moving.any())


def _nudge(
    cost: Cost, beta: Tensor, target: Tensor | None, held: Tensor | None
) -> Callable[[Tensor], Tensor | None]:
    """`Phase.nudge`, with β on the device: +β and −β share a graph."""

    def nudge(output: Tensor) -> Tensor | None:
        return held if held is not None or target is None else beta * cost.force(output, target)

    return nudge


# CUDA --------------------------------------------------------------------------------------------


class Graphs:
    """CUDA graphs that share their memory: what one leaves there, another may overwrite.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool = device, torch.cuda.graph_pool_handle()

    def capture(self, work: Work) -> Work:
        """Do some work on the device, and return what does it again, where that can be captured.

        Args:
            work: kernels on memory that stays where it is.

        Returns:
            The graph's replay; the work itself, with a warning, if it cannot be captured.
        """
        mine, side = torch.cuda.current_stream(self.device), _of(self.device).stream
        side.wait_stream(mine)
        with torch.cuda.stream(side):  # the first time libraries set memory aside for a stream
            work()
        mine.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may go on with what would break the capture if it were this thread's.
            mode = "thread_local"
            with _CAPTURING, _kept(), torch.cuda.graph(graph, self.pool, side, mode):
                work()
        except RuntimeError as error:
            torch.cuda.set_stream(mine)  # a capture that fails may leave its own
            reason = str(error).splitlines()[0]
            warnings.warn(f"steps are not captured: {reason}", RuntimeWarning, stacklevel=2)
            return work
        return graph.replay


class Frames(Generic[F]):
    """What a network's graphs work on, by kind of phase, while its parameters lie where they lay.

    Args:
        network: whose.
        most: frames that are kept, those used last.
    """

    def __init__(self, network: Network, most: int) -> None:
        self._network, self._most = network, most
        self._parameters: tuple[Version, ...] = ()
        self._graphs: Graphs | None = None
        self._frames: dict[Hashable, F] = {}

    def __len__(self) -> int:
        return len(self._frames)

    def are_current(self, device: torch.device) -> bool:
        """Whether the parameters still lie where they were; otherwise all frames are forgotten."""
        parameters = tuple(self._network.parameters())
        if (
            self._graphs is not None
            and len(parameters) == len(self._parameters)
            and all(map(Version.is_at, self._parameters, parameters))
        ):
            return True
        self._frames.clear()
        self._parameters = tuple(map(Version, parameters))
        self._graphs = Graphs(device)
        return False

    def of(self, kind: Hashable, make: Callable[[Graphs], F]) -> F:
        """The frame of a kind of phase, made if there is none, which then is the one used last."""
        assert self._graphs is not None, "after `are_current`"
        frame = self._frames.pop(kind, None)
        if frame is None:
            frame = make(self._graphs)
        self._frames[kind] = frame
        while len(self._frames) > self._most:
            del self._frames[next(iter(self._frames))]
        return frame


_CAPTURING = threading.Lock()
"""A process captures one graph at a time."""


@contextmanager
def _kept() -> Iterator[None]:
    """A context in which nothing is collected: graphs of networks that are gone, say."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Device:
    """What the graphs of a device have in common: whose turn it is, and where they are captured."""

    def __init__(self, device: torch.device) -> None:
        self.lock = threading.RLock()
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.last = torch.cuda.Event()  # type: ignore[no-untyped-call]


_device = cache(_Device)
_MADE_ONCE = threading.Lock()


def _of(device: torch.device) -> _Device:
    with _MADE_ONCE:
        return _device(device)


@contextmanager
def one_at_a_time(device: torch.device) -> Iterator[None]:
    """A context for the memory of graphs, which threads and streams enter one after the other.

    The graphs of a device have cuBLAS's workspace in common.
    """
    with torch.cuda.device(device), _of(device).lock:
        stream, last = torch.cuda.current_stream(device), _of(device).last
        stream.wait_event(last)
        try:
            yield
        finally:
            last.record(stream)


def _kernel_settings() -> tuple[object, ...]:
    """PyTorch's settings by which kernels are chosen."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(cudnn, "conv"):  # since PyTorch 2.9, which may refuse to say it in the former way
        tf32 = matmul.fp32_precision, cudnn.conv.fp32_precision
    else:
        tf32 = matmul.allow_tf32, cudnn.allow_tf32
    deterministic = torch.are_deterministic_algorithms_enabled()
    return (*tf32, cudnn.enabled, cudnn.benchmark, cudnn.deterministic, deterministic)
