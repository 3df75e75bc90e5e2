"""One training loop for all adversarial methods.

Notable here:
- A method is stages; a stage is phases; a phase trains some networks with one optimiser on one loss. Critic repeats and
  lazily applied penalties are numbers on the phase.
- During a phase only its networks require gradients; networks that no phase of a stage trains are in eval mode, so a
  frozen network keeps its very bits, batch-norm statistics included.
- A run that is killed and resumed gives the same weights as one left alone: networks, averages, optimisers, random
  state and the position in the data are in the checkpoint.
- Nothing in a step waits for the device; losses are read at control points only.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kizu.errors import DivergedError, UserError
from kizu.training import checkpoint
from kizu.training.data.batches import Batch, Batches
from kizu.training.parallel import Processes
from kizu.training.progress import RunLog

Losses = dict[str, Tensor]


@dataclass
class Phase:
    """One optimiser's turn in a step."""

    name: str
    trains: nn.Module
    optimizer: torch.optim.Optimizer
    losses: Callable[[Batch], Losses]
    """From a batch to named scalars; `total` is differentiated."""
    repeats: int = 1
    """Updates per step, each on a batch of its own (n_critic)."""
    every: int = 1
    """The phase runs in every n-th step only (lazy regularisation)."""
    clip: float | None = None
    """Largest norm of its gradients; None: any."""


@dataclass
class Ema:
    """Exponential moving average of a network, buffers copied (Karras et al. 2018)."""

    source: nn.Module
    average: nn.Module
    decay: float | Callable[[int], float]
    """Per step, or as a function of the step."""
    ramp_up: bool = True
    """Let the average catch up quickly at the start: decay ≤ (1 + step) / (10 + step)."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the source."""
        decay = self.decay(step) if callable(self.decay) else self.decay
        if self.ramp_up:
            decay = min(decay, (1 + step) / (10 + step))
        for average, source in zip(self.average.parameters(), self.source.parameters(), strict=True):
            average.lerp_(source, 1 - decay)
        for copied, buffer in zip(self.average.buffers(), self.source.buffers(), strict=True):
            copied.copy_(buffer)


@dataclass
class Stage:
    """Phases that alternate for a number of steps."""

    name: str
    steps: int
    phases: list[Phase]
    averages: list[Ema] = field(default_factory=list)
    at_control: Callable[[dict[str, float]], None] | None = None
    """Takes the losses at control points, to correct what the paper corrects."""
    problem: Callable[[], str | None] | None = None
    """Returns, at control points, a description of what has collapsed, or None."""
    measure: Callable[[int], dict[str, float]] | None = None
    """Returns figures to log every `measure_every` steps and at the end; the random state is restored afterwards."""
    measure_every: int = 1


class Method(Protocol):
    """An adversarial method: its networks and how they train."""

    @property
    def networks(self) -> nn.Module:
        """All networks; what a checkpoint holds."""
        ...

    def stages(self, images: int) -> list[Stage]:
        """Return the stages, given the number of training images."""
        ...

    def samples(self, images: Tensor) -> Tensor:
        """Return a picture of the state of training: [rows · 8, C, H, W] in [−1, 1], from 8 fixed images."""
        ...


class Interrupted(Exception):  # noqa: N818 - not an error: the run can be resumed
    """The run was asked to stop; its checkpoint is on disk."""


@dataclass
class LoopSettings:
    """Settings of a run that do not change its result."""

    checkpoint_seconds: float = 60.0
    control_every: int = 10
    sample_every: int = 500
    patience: int = 5
    """Control points in a row that a collapse must last before the run is stopped."""


class TrainingLoop:
    """Runs a method's stages on batches.

    Args:
        method: what to train.
        batches: its images.
        folder: where the checkpoint goes.
        identity: names recipe and data; a checkpoint of another identity is refused.
        log: progress, scalars and sample grids.
    """

    def __init__(
        self,
        method: Method,
        batches: Batches,
        folder: Path,
        *,
        identity: str,
        log: RunLog,
        processes: Processes | None = None,
        settings: LoopSettings | None = None,
    ):
        self.method = method
        self.batches = batches
        self.folder = folder
        self.identity = identity
        self.log = log
        self.processes = processes or Processes()
        self.settings = settings or LoopSettings()
        self.device = batches.device
        self.stages = method.stages(batches.epoch)
        self.stage_index = 0
        self.step = 0
        self._stop_requested = False
        self._collapsed_for = 0
        self._watched = batches.at(torch.tensor([i * len(batches) // 8 for i in range(8)])).images

    def resume(self) -> bool:
        """Continue from the folder's checkpoint; False where there is none.

        Raises:
            UserError: the checkpoint belongs to another recipe or data set, or another number of processes.
        """
        state = checkpoint.load(self.folder)
        if state is None:
            return False
        if state["identity"] != self.identity:
            raise UserError(
                f"{self.folder / checkpoint.FILE} belongs to another recipe or data set.",
                "Give --out a new folder, or restore the recipe and data that the run began with.",
            )
        self._restore(state)
        return True

    def run(self) -> None:
        """Train to the end.

        Raises:
            DivergedError: a loss is NaN or infinite, or the method reports a collapse.
            Interrupted: SIGINT or SIGTERM came; a checkpoint was written.
        """
        with self._catching_signals():
            while self.stage_index < len(self.stages):
                self._run_stage(self.stages[self.stage_index])
                self.stage_index, self.step = self.stage_index + 1, 0
                self._save()

    def _run_stage(self, stage: Stage) -> None:
        trained = {id(m) for phase in stage.phases for m in phase.trains.modules()}
        for module in self.method.networks.modules():
            module.training = id(module) in trained
        for parameter in self.method.networks.parameters():
            parameter.requires_grad_(False)
        last_save = time.monotonic()
        losses: Losses = {}
        with self.log.stage(stage.name, stage.steps, self.step) as progress:
            while self.step < stage.steps:
                losses |= self._run_step(stage)
                self.step += 1
                progress.advance()
                at_control = self.step % self.settings.control_every == 0 or self.step == stage.steps
                if at_control:
                    self._control(stage, losses)
                if self.step % self.settings.sample_every == 0 or self.step == stage.steps:
                    self._picture(stage)
                if stage.measure and (self.step % stage.measure_every == 0 or self.step == stage.steps):
                    self._measure(stage, stage.measure)
                due = at_control and time.monotonic() - last_save > self.settings.checkpoint_seconds
                save, stop = False, False
                if at_control or self.processes.world_size == 1:
                    save, stop = self.processes.agree(due, self._stop_requested)
                if stop:
                    if not at_control:
                        self._control(stage, losses)
                    self._save()
                    raise Interrupted
                if save:
                    self._save()
                    last_save = time.monotonic()

    def _run_step(self, stage: Stage) -> Losses:
        seen: Losses = {}
        for phase in stage.phases:
            if self.step % phase.every:
                continue
            for _ in range(phase.repeats):
                losses = self._update(phase, self.batches.next())
            seen |= {f"{phase.name}/{name}": value.detach() for name, value in losses.items()}
        for average in stage.averages:
            average.update(self.step)
        return seen

    def _update(self, phase: Phase, batch: Batch) -> Losses:
        if self.device.type == "cuda":
            batch = batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last))
        phase.trains.requires_grad_(True)
        phase.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            losses = phase.losses(batch)
        torch.autograd.backward(losses["total"])
        self.processes.average_gradients(phase.trains)
        if phase.clip is not None:
            clip_gradients(phase.trains, phase.clip)
        phase.optimizer.step()
        phase.trains.requires_grad_(False)
        return losses

    def _autocast(self) -> Any:
        if self.device.type == "cuda":
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return nullcontext()

    def _control(self, stage: Stage, losses: Losses) -> None:
        if not losses:
            return
        values = dict(zip(losses, torch.stack([v.float() for v in losses.values()]).tolist(), strict=True))
        if bad := [name for name, value in values.items() if not math.isfinite(value)]:
            raise DivergedError(
                f"Training diverged in stage '{stage.name}' at step {self.step}: {', '.join(bad)} is not finite.",
                "Lower the learning rate in the recipe, or start from another seed. "
                f"The last good checkpoint is in {self.folder}.",
            )
        problem = stage.problem() if stage.problem else None
        self._collapsed_for = self._collapsed_for + 1 if problem else 0
        if self._collapsed_for >= self.settings.patience:
            raise DivergedError(
                f"Training collapsed in stage '{stage.name}' at step {self.step}: {problem}.",
                "Train on more varied images, lower the learning rate in the recipe, or start from another seed.",
            )
        if stage.at_control is not None and self.step % self.settings.control_every == 0:
            stage.at_control(values)
        self.log.scalars(stage.name, values, self.step)

    def _picture(self, stage: Stage) -> None:
        with self._evaluating():
            self.log.picture(stage.name, self.method.samples(self._watched), self.step)

    def _measure(self, stage: Stage, measure: Callable[[int], dict[str, float]]) -> None:
        if self.processes.is_main:
            with self._evaluating():
                self.log.scalars(stage.name, measure(self.step), self.step)
        self.processes.barrier()

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Put networks into eval mode, without gradients, and restore modes and random state afterwards."""
        modes = {module: module.training for module in self.method.networks.modules()}
        self.method.networks.eval()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
        for module, training in modes.items():
            module.training = training

    def _save(self) -> None:
        rng = self.processes.gather_rng(self.device)
        if self.processes.is_main:
            checkpoint.save(
                self.folder,
                {
                    "identity": self.identity,
                    "world_size": self.processes.world_size,
                    "stage": self.stage_index,
                    "step": self.step,
                    "position": self.batches.position,
                    "rng": rng,
                    "networks": self.method.networks.state_dict(),
                    "optimizers": {f"{s}/{p}": phase.optimizer.state_dict() for s, p, phase in self._phases()},
                    "averages": {
                        f"{s}/{i}": average.average.state_dict()
                        for s, stage in enumerate(self.stages)
                        for i, average in enumerate(stage.averages)
                    },
                },
            )
        self.processes.barrier()

    def _restore(self, state: dict[str, Any]) -> None:
        if state["world_size"] != self.processes.world_size:
            raise UserError(
                f"The run in {self.folder} used {state['world_size']} processes, not {self.processes.world_size}.",
                f"Resume it with torchrun --nproc-per-node {state['world_size']}.",
            )
        self.stage_index, self.step = state["stage"], state["step"]
        self.batches.position = state["position"]
        self.method.networks.load_state_dict(state["networks"])
        for s, p, phase in self._phases():
            phase.optimizer.load_state_dict(state["optimizers"][f"{s}/{p}"])
        for s, stage in enumerate(self.stages):
            for i, average in enumerate(stage.averages):
                average.average.load_state_dict(state["averages"][f"{s}/{i}"])
        self.processes.restore_rng(state["rng"], self.device)

    def _phases(self) -> Iterator[tuple[int, int, Phase]]:
        for s, stage in enumerate(self.stages):
            for p, phase in enumerate(stage.phases):
                yield s, p, phase

    @contextmanager
    def _catching_signals(self) -> Iterator[None]:
        """Stop at the next control point with a checkpoint at the first signal, at once at the second."""

        def request_stop(number: int, frame: object) -> None:
            del frame
            if self._stop_requested:
                raise KeyboardInterrupt
            self._stop_requested = True
            self.log.say(f"{signal.Signals(number).name}: writing a checkpoint, then stopping (again to stop now)")

        try:
            previous = {s: signal.signal(s, request_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread, where signals go to whoever called us
            yield
            return
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def clip_gradients(network: nn.Module, largest: float) -> None:
    """Scale a network's gradients, together, to a norm of `largest` at most (Pascanu et al. 2013)."""
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    factor = (largest / norm.clamp(min=1e-12)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(factor)
