"""Output of a run while it trains: a progress bar with losses and time left, TensorBoard scalars, sample grids.

Without a terminal (a log file, CI) a line is printed now and then instead of a bar.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from torch import Tensor

from kizu.training.data.pool import Progress

LINE_SECONDS = 15.0


class StageProgress:
    """Progress of one stage."""

    def __init__(self, name: str, steps: int, done: int, progress: RichProgress | None, console: Console):
        self.name, self.steps, self.done = name, steps, done
        self._progress = progress
        self._console = console
        self._task: TaskID | None = (
            progress.add_task(name, total=steps, completed=done, losses="") if progress else None
        )
        self._started, self._began_at = time.monotonic(), done
        self._last_line = self._started
        self._losses = ""

    def advance(self) -> None:
        """Count one step."""
        self.done += 1
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)
        elif time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            rate = (self.done - self._began_at) / (self._last_line - self._started)
            left = (self.steps - self.done) / rate
            self._console.print(f"{self.name}: {self.done}/{self.steps} steps, {left:.0f} s left  {self._losses}")

    def losses(self, values: dict[str, float]) -> None:
        """Show the latest losses."""
        self._losses = "  ".join(f"{name.removesuffix('/total')} {value:.3g}" for name, value in values.items())
        if self._progress is not None and self._task is not None:
            totals = {n: v for n, v in values.items() if n.endswith("/total")}
            shown = "  ".join(f"{name.removesuffix('/total')} {value:.3g}" for name, value in totals.items())
            self._progress.update(self._task, losses=shown)


class RunLog:
    """Log of a run: messages, bars, scalars, pictures. `folder` None: nothing is written; `quiet`: nothing is shown."""

    def __init__(self, folder: Path | None, *, quiet: bool = False):
        self.console = Console(file=sys.stderr, quiet=quiet)
        self.folder = folder
        self.spent: dict[str, float] = {}
        """Seconds that this process spent in each stage; for a part of the run, under `part/stage`."""
        self._part = ""
        self._stage: StageProgress | None = None
        self._writer = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"))

    def child(self, name: str) -> RunLog:
        """Return a log for a part of the run with a folder of its own, as quiet as this one."""
        log = RunLog(self.folder / name if self.folder is not None else None, quiet=self.console.quiet)
        log.spent, log._part = self.spent, f"{self._part}{name}/"
        return log

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Progress]:
        """Show a progress bar for work other than training; yields what advances it."""
        with RichProgress(console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(what, total=total)
            yield lambda more: progress.advance(task, more)

    @contextmanager
    def stage(self, name: str, steps: int, done: int) -> Iterator[StageProgress]:
        """Show progress while a stage runs, and note its duration."""
        began = time.monotonic()
        try:
            with self._shown(name, steps, done) as progress:
                yield progress
        finally:
            key = self._part + name
            self.spent[key] = self.spent.get(key, 0.0) + time.monotonic() - began

    @contextmanager
    def _shown(self, name: str, steps: int, done: int) -> Iterator[StageProgress]:
        if not self.console.is_terminal or self.console.quiet:
            self._stage = StageProgress(name, steps, done, None, self.console)
            yield self._stage
            return
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
        )
        with RichProgress(*columns, console=self.console) as progress:
            self._stage = StageProgress(name, steps, done, progress, self.console)
            yield self._stage

    def scalars(self, stage: str, values: dict[str, float], step: int) -> None:
        """Show and record losses at a control point."""
        if self._stage is not None:
            self._stage.losses(values)
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{stage}/{name}", value, step)

    def picture(self, stage: str, images: Tensor, step: int) -> None:
        """Write a grid of images [rows · 8, C, H, W] in [−1, 1] to TensorBoard and to `samples/`."""
        if self.folder is None or self._writer is None:
            return
        grid = tile_grid(images, 8)
        self._writer.add_image(f"{stage}/samples", grid, step, dataformats="HWC")
        path = self.folder / "samples" / f"{stage}_{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid).save(path)

    def say(self, text: str) -> None:
        """Print a message."""
        self.console.print(text, highlight=False)

    def close(self) -> None:
        """Flush what is buffered."""
        if self._writer is not None:
            self._writer.close()


def tile_grid(images: Tensor, columns: int) -> NDArray[np.uint8]:
    """Tile images [N, C, H, W] in [−1, 1], row by row: uint8 [rows · H, columns · W, 3]."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    pixels = (
        ((images.float().clamp(-1, 1) + 1) * 127.5)
        .round()
        .byte()
        .cpu()
        .expand(n, 3 if channels == 1 else channels, -1, -1)
    )
    grid = np.zeros((rows * height, columns * width, 3), np.uint8)
    for i, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        row, column = divmod(i, columns)
        grid[row * height : (row + 1) * height, column * width : (column + 1) * width] = image
    return grid


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Write images uint8 [N, C, H, W] as one PNG, grey where the images are."""
    grid = Image.fromarray(tile_grid(images.float() / 127.5 - 1, columns))
    grid.convert("L" if images.shape[1] == 1 else "RGB").save(path, optimize=True)
