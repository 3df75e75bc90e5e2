"""Transfer learning: start from the weights of another run's generator and discriminator.

Notable here:
- Strict: every tensor must find its namesake of the same shape, or the run does not start. A configuration that differs
  silently gives garbage; so a partial start is asked for by name, and says what it left out.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from kizu.errors import UserError
from kizu.training import checkpoint
from kizu.training.generators.stylegan2_ada import StyleGAN2ADAMethod
from kizu.training.run import GENERATOR_FOLDER

_SHOWN = 8


def start_from(method: StyleGAN2ADAMethod, run: Path, *, partly: bool = False) -> str:
    """Copy weights from the checkpoint of `run` (a run's folder, or its `generator` folder); return a report.

    p, the mean path length and the optimisers start afresh.

    Raises:
        UserError: there is no such checkpoint; a tensor is missing or of another shape (with `partly`: all are).
    """
    folder = run / GENERATOR_FOLDER if (run / GENERATOR_FOLDER).is_dir() else run
    state = checkpoint.load(folder)
    if state is None:
        raise UserError(
            f"{run} holds no generator to start from.", "Give generator.start_from the folder of a run with one."
        )
    networks: dict[str, Tensor] = state["networks"]
    sources = {
        "G": (method.generator, _below(networks, "G.")),
        "D": (method.discriminator, _below(networks, "D.")),
        "average of G": (method.average, state["averages"].get("0/0", {})),
    }
    matched, lines, left = 0, [], 0
    for name, (network, found) in sources.items():
        fitting, problems = _fitting(network, found)
        network.load_state_dict(fitting, strict=False)
        matched += len(fitting)
        left += len(problems)
        lines.append(f"{name}: {len(fitting)} of {len(network.state_dict())} tensors match")
        lines += [f"  {problem}" for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"  … and {len(problems) - _SHOWN} more")
    report = f"starting from {run}:\n" + "\n".join(lines)
    if not matched or (left and not partly):
        raise UserError(
            f"The networks of {run} are not those of this recipe.\n{report}",
            "Give both runs the same preset, size, channels and classes; or set generator.start_partly = true.",
        )
    return report


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _fitting(network: nn.Module, found: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors that fit, and a line for each that does not."""
    fitting, problems = {}, []
    for name, own in network.state_dict().items():
        if name not in found:
            problems.append(f"{name} {tuple(own.shape)} is not there")
        elif found[name].shape != own.shape:
            problems.append(f"{name} is {tuple(found[name].shape)}, not {tuple(own.shape)}")
        else:
            fitting[name] = found[name]
    problems += [f"{name} has no place" for name in found if name not in network.state_dict()]
    return fitting, problems
