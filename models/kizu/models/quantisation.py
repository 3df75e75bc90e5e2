"""What a bundle says of 8-bit arithmetic in its graph.

Notable here:
- Imports no torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


def saturates(machine: str, cpuinfo: str) -> bool:
    """Tell if a processor's sums of uint8 × int8 may saturate: x86-64 without VNNI, or not known to have it.

    Args:
        machine: `platform.machine()`.
        cpuinfo: content of `/proc/cpuinfo`.
    """
    return machine.lower() in ("x86_64", "amd64") and "_vnni" not in cpuinfo


class Quantisation(BaseModel):
    """The int8 graph that a recipe asked for, compared with the float32 graph on the calibration split.

    Differences of scores are relative to the score, or to the scores' median size where that is larger.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Literal["int8"] = "int8"
    refused: str | None = None
    """Why the float32 graph ships after all; None: the int8 graph ships."""
    convolutions: int
    """Convolutions in 8 bits."""
    backbone_convolutions: int
    """Convolutions of the backbones, in 8 bits or not."""
    images: int
    """Calibration images that both graphs scored."""
    auroc: float | None
    """Of the int8 graph; None: the split has no OK or no NG."""
    float_auroc: float | None
    """Of the float32 graph."""
    difference: float
    """Largest difference of a score from the float32 graph's."""
    verdicts_differing: int
    """Images whose verdict the float32 graph, with its own threshold, gives differently."""
    batch_difference: float
    """Largest difference between scores of images alone and in batches: rounding in float32 alone."""
    plain_difference: float
    """Largest difference from the same graph without ONNX Runtime's optimisations, whose roundings fall differently:
    what to expect of another kind of processor."""
    plain_images: int
    """Calibration images that were scored so."""

    @property
    def applied(self) -> bool:
        """True if the int8 graph ships."""
        return self.refused is None

    def statement(self) -> str:
        """What became of the wish, in a few sentences."""
        ranks = f"AUROC {_figure(self.auroc)}, in float32 {_figure(self.float_auroc)}"
        if self.refused is not None:
            return f"Not quantised to int8, {self.refused}: on the calibration split {ranks}. The float32 graph ships."
        return (
            f"Quantised to int8: {self.convolutions} of {self.backbone_convolutions} convolutions of pretrained "
            f"backbones. On {self.images} calibration images {ranks}; scores differ by at most {self.difference:.1e} "
            f"from float32, {self.verdicts_differing} verdicts differ, each graph with its own threshold. Another kind "
            f"of processor may round differently: expect scores to differ by {self.plain_difference:.1e}."
        )


def _figure(auroc: float | None) -> str:
    return "unknown" if auroc is None else f"{auroc:.4f}"
