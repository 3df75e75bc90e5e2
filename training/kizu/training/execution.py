"""Execution of a run: log, device and processes, none of which decides the result."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from kizu.training.loop import LoopSettings
from kizu.training.parallel import Processes
from kizu.training.progress import RunLog


@dataclass(frozen=True)
class Execution:
    """Log, device and processes of a run, and whether it continues an earlier one."""

    log: RunLog
    device: torch.device
    """This process's own."""
    processes: Processes = field(default_factory=Processes)
    resume: bool = False
    """Continue from checkpoints where there are any."""
    settings: LoopSettings = field(default_factory=LoopSettings)
