"""Workers: processes that train one network together, each on its share of every batch.

`torchrun` starts them. Every worker holds the network and the data, and draws the same batches and
signs of β. It settles its share of a batch; the gradients are summed, and all make the same update.

With binary neurons a gradient is a whole number times 1/(β·batch), so the whole numbers are sent,
whose sum is exact: any number of workers flips the same weights. With real ones sums are rounded.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import Tensor, distributed

from binep.core.gradients import EquilibriumPropagation, GradientEstimator
from binep.core.grey_levels import GREY_LEVEL, grey_levels
from binep.core.neurons import Binary
from binep.core.synapses import Conv, Dense
from binep.experiment.checks import device_problem
from binep.experiment.settings import ConfigError, WorkerError

if TYPE_CHECKING:
    from binep.core.network import Network
    from binep.core.phases import Equilibrium


WAIT = timedelta(minutes=10)
"""How long workers wait for one that does not come or answer."""


class Settled(NamedTuple):
    """The end of a batch's free phase, without the states of hidden layers; see `Equilibrium`."""

    output: Tensor
    moved: Tensor
    residual: Tensor


class Alone:
    """A process that trains by itself: what `Workers` do together, for one."""

    rank, count = 0, 1
    splits_momenta = False

    def device(self, device: torch.device) -> torch.device:
        """That of this worker."""
        return device

    def relax(self, network: Network, x: Tensor, steps: int, tolerance: float) -> Settled:
        """The end of a free phase of a batch."""
        return _settled(network.relax(x, steps, tolerance=tolerance, output_only=True))

    def estimate(self, estimator: GradientEstimator, x: Tensor, target: Tensor) -> Settled:
        """The end of a batch's free phase, with every ``.grad`` filled."""
        return _settled(estimator(x, target))

    def largest(self, number: int) -> int:
        """The largest number that a worker has."""
        return number

    def is_due(self, late: bool) -> bool:
        """Whether a checkpoint is to be made; with split momenta all workers make it together."""
        return bool(self.largest(int(late))) if self.splits_momenta else late

    def check_parameters(self, network: Network) -> None:
        """Refuse parameters that are no longer the same on all workers."""


class Workers(Alone):
    """One of the processes of torch's default group.

    Args:
        splits_momenta: whether each keeps the momenta of its own rows of binary weights alone.

    Attributes:
        rank: its number, from 0. Worker 0 alone writes files and prints.
        count: how many there are.
    """

    def __init__(self, splits_momenta: bool = False) -> None:
        self.splits_momenta = splits_momenta
        self.rank, self.count = distributed.get_rank(), distributed.get_world_size()

    def device(self, device: torch.device) -> torch.device:
        """The GPU of its own on its machine."""
        if device.type == "cuda":
            index = int(os.environ["LOCAL_RANK"]) if device.index is None else device.index
            device = torch.device("cuda", index)
            torch.cuda.set_device(device)
        return device

    def share(self, samples: int) -> slice:
        """Which samples of a batch are its own."""
        return slice(*self._bounds(samples)[self.rank : self.rank + 2])

    def _bounds(self, samples: int) -> list[int]:
        """Where the workers' shares begin, and the end of the last."""
        return [samples * rank // self.count for rank in range(self.count + 1)]

    def relax(self, network: Network, x: Tensor, steps: int, tolerance: float) -> Settled:
        """The end of a batch's free phase, of which each worker settles its share."""
        if len(x) < self.count:
            return super().relax(network, x, steps, tolerance)
        return self._whole(super().relax(network, x[self.share(len(x))], steps, tolerance), len(x))

    def estimate(self, estimator: GradientEstimator, x: Tensor, target: Tensor) -> Settled:
        """The end of a batch's free phase, with every ``.grad`` that of the whole batch.

        Where there are fewer samples than workers, each worker takes all of them.
        """
        if len(x) < self.count:
            return super().estimate(estimator, x, target)
        own = self.share(len(x))
        free = super().estimate(estimator, x[own], target[own])
        with torch.no_grad():
            self._sum_gradients(estimator, x)
        return self._whole(free, len(x))

    def largest(self, number: int) -> int:
        """The largest number that a worker has."""
        return int(_most(torch.tensor(number, device=self._sent_from)))

    def check_agreement(self, facts: Mapping[str, Any]) -> None:
        """Refuse workers whose facts differ.

        Raises:
            WorkerError: the first fact that does.
        """
        everyone: list[Any] = [None] * self.count
        with _together():
            distributed.all_gather_object(everyone, dict(facts))
        for rank, theirs in enumerate(everyone):
            for name, value in everyone[0].items():
                if theirs[name] != value:
                    self._end(
                        f"worker {rank}: {name} {theirs[name]}, that of worker 0 {value}: all "
                        "workers must have the same"
                    )

    def check_parameters(self, network: Network) -> None:
        """Refuse parameters that are no longer the same on all workers.

        Raises:
            WorkerError: they are not, as where processors of several kinds round otherwise.
        """
        parts = [p.detach().contiguous().view(torch.int32).sum() for p in network.parameters()]
        sums = torch.stack(parts).to(self._sent_from)
        most = _most(torch.cat([sums, -sums]))
        if not bool((most[: len(sums)] == -most[len(sums) :]).all()):
            self._end(
                "the parameters are no longer the same on all workers: they must compute the same "
                "bits, as processors of one kind do, with --deterministic on GPUs"
            )

    def _end(self, why: str) -> NoReturn:
        """End all workers, of which the first says why."""
        raise SystemExit(2) if self.rank else WorkerError(why)

    @property
    def _sent_from(self) -> str:
        """The type of device that is sent from."""
        return "cuda" if distributed.get_backend() == "nccl" else "cpu"

    def gathered(self, tensor: Tensor) -> Tensor:
        """The tensors of all workers, of one shape, (count, *shape)."""
        sent = tensor.to(self._sent_from).contiguous().flatten()
        sent = sent.view(torch.uint8)  # Gloo does not know all types
        parts = sent.new_empty(self.count, len(sent))
        with _together():
            distributed.all_gather(list(parts), sent)
        return parts.view(tensor.dtype).view(self.count, *tensor.shape).to(tensor.device)

    def joined_rows(self, own: Tensor, rows: int) -> Tensor:
        """The whole of so many rows, (rows, …), from each worker's share of them."""
        padded = own.new_zeros(-(-rows // self.count), *own.shape[1:])
        padded[: len(own)] = own
        sizes = [b - a for a, b in pairwise(self._bounds(rows))]
        parts = zip(self.gathered(padded), sizes, strict=True)
        return torch.cat([part[:size] for part, size in parts])

    def _whole(self, mine: Settled, samples: int) -> Settled:
        """The end of a batch's phase from that of this worker's share."""
        last = _most(torch.cat([mine.moved.double(), mine.residual.double()]))
        output = self.joined_rows(mine.output, samples)
        moved, residual = last.view(2, -1)
        return Settled(output, moved.long(), residual.to(mine.residual.dtype))

    def _sum_gradients(self, estimator: GradientEstimator, x: Tensor) -> None:
        """Make every ``.grad`` that of the whole batch, of which it is the mean."""
        share = self.share(len(x))
        own = share.stop - share.start
        wholes = _wholes(estimator, x)
        for parameter in estimator.network.parameters():
            if parameter.grad is None:
                continue
            whole = wholes.get(parameter)
            if whole is None:
                parameter.grad = _sum(parameter.grad.to_dense() * (own / len(x)))
            else:
                parameter.grad = self._sum_counts(parameter.grad, whole, own, len(x))
        for synapse in estimator.network.learning_synapses():
            scale, gradient = synapse.scale, synapse.values.grad
            if scale is None or scale.grad is None or gradient is None:
                continue
            if synapse.values in wholes:  # from the sum, which one process takes in this order, too
                scale.grad = synapse.per_scale(gradient)

    def _sum_counts(self, gradient: Tensor, whole: _Whole, own: int, samples: int) -> Tensor:
        """The gradient of the whole batch, by the sum of whole numbers."""
        if not gradient.is_sparse:
            counts = _sum(whole.counts(gradient, own))
            return counts.to(gradient.dtype).mul_(whole.unit(samples))
        mine, values = gradient.indices()[0], gradient.values()
        touched = torch.zeros(len(gradient), dtype=torch.uint8, device=gradient.device)
        touched[mine] = 1
        touched = _most(touched)
        rows = touched.nonzero().flatten()
        places = touched.cumsum(0)[mine] - 1  # of the own rows among all that are sent
        counts = torch.zeros(len(rows), *values.shape[1:], dtype=whole.sent_as, device=rows.device)
        counts[places] = whole.counts(values, own)
        values = _sum(counts).to(values.dtype).mul_(whole.unit(samples))
        return torch.sparse_coo_tensor(
            rows[None], values, gradient.shape, is_coalesced=True, check_invariants=False
        )


class _Whole(NamedTuple):
    """A gradient that is a whole number times a unit.

    Attributes:
        between: see `EquilibriumPropagation`.
        level: the unit of the states below.
        sent_as: the type in which the whole number is sent.
    """

    between: float
    level: float
    sent_as: torch.dtype

    def unit(self, samples: int) -> float:
        """The unit, but for its sign, of the gradient of so many samples, in float32."""
        return float(torch.tensor(1 / (self.between * samples) * self.level, dtype=torch.float32))

    def counts(self, gradient: Tensor, samples: int) -> Tensor:
        """The whole numbers that a gradient of so many samples stands for."""
        return (gradient / self.unit(samples)).round_().to(self.sent_as)


def _wholes(estimator: GradientEstimator, x: Tensor) -> Mapping[Tensor, _Whole]:
    """The parameters whose gradients are whole numbers times a unit."""
    network = estimator.network
    bits = all(type(neurons) is Binary for neurons in network.neurons)
    if not bits or type(estimator) is not EquilibriumPropagation:
        return {}
    between = abs(estimator.between)
    found: dict[Tensor, _Whole] = {}
    for i, synapse in enumerate(network.synapses):
        if type(synapse) not in (Dense, Conv):  # one of a user's own may weigh them otherwise
            continue
        found[synapse.bias] = _Whole(between, 1, torch.int32)
        window = synapse.pool**2 if isinstance(synapse, Conv) and synapse.averages else 1
        if i > 0:
            small = type(synapse) is Dense and len(x) < 2**7
            sent_as = torch.int8 if small else torch.int32
            found[synapse.values] = _Whole(between, 1 / window, sent_as)
        elif grey_levels(x) is not None:
            found[synapse.values] = _Whole(between, GREY_LEVEL / window, torch.int32)
    return found


def _settled(free: Equilibrium) -> Settled:
    return Settled(free.output, free.moved, free.residual)


ALONE = Alone()


def are_started() -> bool:
    """Whether torchrun has started this process beside others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


@contextlib.contextmanager
def joined(device: str, splits_momenta: bool = False) -> Iterator[Alone]:
    """The workers that torchrun has started, met; `ALONE` where it has not.

    Args:
        device: of the configuration: GPUs send by NCCL, CPUs by Gloo.
        splits_momenta: see `Workers`.

    Raises:
        ConfigError: a device that this worker cannot have.
        WorkerError: they do not meet.
    """
    if not are_started():
        yield ALONE
        return
    _check_device(device)
    with _together():
        try:
            distributed.init_process_group(
                "nccl" if device.startswith("cuda") else "gloo", timeout=WAIT
            )
        except ValueError as error:
            raise WorkerError(f"torchrun's variables of the environment: {error}") from None
    try:
        workers = Workers(splits_momenta)
        workers.device(torch.device(device))  # whoever asks for a GPU gets this worker's
        yield workers
    finally:
        with contextlib.suppress(RuntimeError):
            distributed.destroy_process_group()


def _check_device(device: str) -> None:
    """Refuse what this worker cannot have, before others wait for it.

    Raises:
        ConfigError: no such device, or one GPU for several workers.
    """
    own = device
    if device.startswith("cuda") and os.environ.get("LOCAL_WORLD_SIZE", "1") != "1":
        if device != "cuda":
            raise ConfigError(f"device = {device}: must be cuda: each worker takes a GPU")
        own = f"cuda:{os.environ['LOCAL_RANK']}"
    for problem in device_problem(own):
        raise ConfigError(problem)


def _sum(tensor: Tensor) -> Tensor:
    """The sum of the tensors of all workers."""
    return _reduced(tensor, distributed.ReduceOp.SUM)


def _most(tensor: Tensor) -> Tensor:
    """The largest of the tensors of all workers, number by number."""
    return _reduced(tensor, distributed.ReduceOp.MAX)


def _reduced(tensor: Tensor, operation: Any) -> Tensor:
    tensor = tensor.contiguous()  # Gloo takes together what lies at one place of their memory
    with _together():
        distributed.all_reduce(tensor, operation)
    return tensor


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """A context in which workers wait for each other."""
    try:
        yield
    except RuntimeError as error:
        # Gloo says where in its source, and closes with advice about its own bugs.
        reason = re.sub(r"^\[.*?\] |\. This is typically.*", "", str(error).splitlines()[0])
        raise WorkerError(f"another worker has ended, or does not answer: {reason}") from error
