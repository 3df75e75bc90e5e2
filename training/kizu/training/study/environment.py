"""Environment of a measurement: machine and versions, without anything that names a person, a host or a path.

Notable here:
- The load at the start is a fact like any other: timings from a busy machine must be seen to be from one.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kizu.version import __version__

PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "numpy")


@dataclass(frozen=True)
class Environment:
    """Facts that belong with every figure."""

    date: str
    """UTC, ISO 8601, to the minute."""
    system: str
    cpu: str
    cores: int
    """Logical cores that this process may use."""
    memory_gib: float
    gpus: tuple[str, ...]
    load: float
    """Mean number of processes that wanted a core over the minute before; −1 where it is unknown."""
    python: str
    versions: dict[str, str]
    """Package → version; Kizu's own with its commit where it is known."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {**asdict(self), "gpus": list(self.gpus)}


def current_environment() -> Environment:
    """The facts of this process."""
    versions = {"kizu": _kizu_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Environment(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        system=f"{platform.system()} {platform.machine()}",
        cpu=_cpu_model(),
        cores=usable_cores(),
        memory_gib=_memory_gib(),
        gpus=_gpus(),
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else -1.0,
        python=platform.python_version(),
        versions=versions,
    )


def usable_cores() -> int:
    """Logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def environment_lines(facts: dict[str, Any]) -> list[str]:
    """`Environment.as_dict()` as the lines of a Markdown list."""
    gpu = ", ".join(facts["gpus"]) or "none"
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    return [
        f"- Date: {facts['date']}",
        f"- Machine: {facts['cpu']}, {facts['cores']} logical cores, {facts['memory_gib']:.1f} GiB memory, "
        f"GPU: {gpu}; {facts['system']}",
        f"- Load average when the run began: {'unknown' if facts['load'] < 0 else facts['load']}",
        f"- Kizu's environment: Python {facts['python']}, {versions}",
    ]


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return 0.0


def _gpus() -> tuple[str, ...]:
    try:
        import torch
    except ImportError:
        return ()
    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _kizu_version() -> str:
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "--short", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", ":/")
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__} (commit {commit}{', with uncommitted changes' if changed else ''})"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
