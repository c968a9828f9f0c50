"""Which shortcuts the dynamics may take: settings, without PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import InitVar, dataclass
from typing import Literal

SHORTCUTS = (
    *("events", "digits", "changes", "in-cache", "bits-on-gpu", "captured", "int8", "bfloat16"),
    *("leaving", "odd-even", "certain-outputs", "zero-nudge", "linearised", "one-pass-flips"),
)
"""Names of what comes with binep and can be switched off; a solver of one's own adds its name."""

FORMER = {
    "follow_events": "events",
    "fused_steps": "in-cache",
    "alternate": "odd-even",
    "fused_flips": "one-pass-flips",
}
"""Switches of version 0.1, each true or false, and the names that they have in `Speed.off`."""


@dataclass(frozen=True)
class Speed:
    """Shortcuts, each of which can be switched off.

    They change rounding and, with odd-even updates, the path to an equilibrium; docs/speed.md has
    what each may change. The names of `off`:

    - events: binary activations on a CPU, event-driven updates: work only where bits change.
    - digits: real activations on a CPU, quantised updates with error feedback.
    - changes: real activations on a CPU, real weights in convolutions: only what has moved in a
      step is multiplied, in float32.
    - in-cache: real activations on a CPU, small dense networks: each sample settles in cache.
    - bits-on-gpu: binary activations and weights on a CUDA device, dense layers: only the rows of
      weights are read whose bits change.
    - captured: on a CUDA device, the steps between two looks at whether all has settled are
      launched at once, as a CUDA graph.
    - int8: real activations on a CPU that multiplies 8-bit integers quickly: as leaving, with most
      products of wide dense layers, as with real weights, in these.
    - bfloat16: where int8 does not fit or is off, and the CPU multiplies bfloat16 quickly: the same
      in that.
    - leaving: real activations on a CPU, free phase: where none of these fits, samples that have
      settled leave the batch.
    - odd-even: real activations, free phase: layers 1, 3, … then 2, 4, … move, each half from
      what the other has just become (Gauss–Seidel), with adaptive over-relaxation.
    - certain-outputs: real activations, digits, changes, int8, bfloat16 or leaving: samples
      whose output is certain leave the free phase before their hidden layers have settled, in
      evaluation, and in training where it is their target.
    - zero-nudge: real activations on a CPU: samples whose output is their target after the free
      phase are left out of the nudged phase and of the gradients.
    - linearised: real activations, backpropagation through time: samples at their equilibrium by
      the derivative of one step, which all steps share.
    - one-pass-flips: momenta and flips in one pass over memory.

    Raises:
        ValueError: an unknown precision.
    """

    off: tuple[str, ...] = ()
    """Solvers and shortcuts not to use: events, digits, changes, in-cache, bits-on-gpu, captured,
    int8, bfloat16, leaving, odd-even, certain-outputs, zero-nudge, linearised, one-pass-flips."""
    precision: Literal["exact", "split", "fast"] = "split"
    """How real states are multiplied with binary weights. On a CPU exact: in float32; split:
    state changes quantised to 8 bits, with the error carried over, in the free phase, and to 16 in
    the nudged one; fast: to 8 always; with both, wide layers of real weights mostly in int8 or
    bfloat16, and convolutions of them of what has moved alone. On a GPU exact: in float32; split:
    wide dense layers, of real weights too, in float16 halves, which keep 22 bits; fast: they in one
    half, 11 bits, and all else in TF32."""
    compile: bool = False
    """Where the plain solver takes the steps, as on a GPU, where they are then not captured: let
    torch.compile fuse a step's operations into few kernels. The first batches then take a minute or
    two."""
    # What runs of version 0.1 call these: False is the name in `off`.
    follow_events: InitVar[bool] = True
    fused_steps: InitVar[bool] = True
    alternate: InitVar[bool] = True
    fused_flips: InitVar[bool] = True

    def __post_init__(
        self, follow_events: bool, fused_steps: bool, alternate: bool, fused_flips: bool
    ) -> None:
        if self.precision not in ("exact", "split", "fast"):
            raise ValueError(f"precision = {self.precision!r}: must be 'exact', 'split' or 'fast'")
        if isinstance(self.off, str) or not isinstance(self.off, Iterable):
            raise ValueError(f"off = {self.off!r}: must be a collection of names")
        former = (follow_events, fused_steps, alternate, fused_flips)
        named = [name for name, on in zip(FORMER.values(), former, strict=True) if not on]
        object.__setattr__(self, "off", tuple(sorted({*self.off, *named})))

    def uses(self, name: str) -> bool:
        """Whether a solver or shortcut may be used."""
        return name not in self.off
