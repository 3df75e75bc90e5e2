"""False alarms that letterboxing causes, by what fills the rest: grey, the image's edges repeated, its mirror image.

Notable here:
- Rendered boards are cut to 36×56 pixels. *None*: the detector sees just these, without any rest. The others: it sees
  56×56 pixels, of which the rest is 36 %.
- Scores are of the calibration and test splits together; nothing was chosen by them.
- *Peak in the rest*: share of the OK images whose highest heat lies in the rest. *Far*: more than 4 pixels from the
  image, where no convolution of the first layers sees it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, get_args
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import mannwhitneyu
from torch import Tensor

from benchmarks.command import main, progress, single_command
from kizu.models.inspector import Geometry
from kizu.training.data.manifest import NG, Manifest, Row
from kizu.training.data.render import render_boards
from kizu.training.pipeline import train

Rest = Literal["none", "grey", "edges", "mirror"]
SIDE, WIDTH, NEAR = 56, 36, 4
DETECTORS = {
    "memory": ('kind = "memory"\nepochs = 1', "memory = 500"),
    "padim": ('kind = "padim"\nepochs = 1', ""),
    "supersimplenet": ('kind = "supersimplenet"\nepochs = 20', "steps = 300"),
    "own memory": ('kind = "memory"\npreset = "self-supervised"\nepochs = 20', "filters = 8\nmemory = 500"),
    "classifier": ('kind = "classifier"\nepochs = 20', "features = 12\nblocks = 1"),
    "draem": ('kind = "draem"\nepochs = 25', "features = 12\nsegmentation_features = 12"),
    "ganomaly": ('kind = "ganomaly"\nepochs = 100', 'features = 16\nscore = "peak"'),
}
"""Name → its section and its options: small, for minutes on a CPU."""


@dataclass(frozen=True)
class Figures:
    """Figures of one training."""

    auroc: float
    specificity: float
    """At an FNR of 10 %."""
    peak: float | None
    """Share of OK images whose highest heat lies in the rest."""
    far: float | None

    def __str__(self) -> str:
        shares = ("–" if share is None else f"{share:.0%}" for share in (self.peak, self.far))
        return " | ".join([f"{self.auroc:.3f}", f"{self.specificity:.0%}", *shares])


def narrow_boards(folder: Path) -> Manifest:
    """Render boards and cut them to their middle; NG whose defect is mostly cut off are left out."""
    whole = render_boards(folder / "whole", boards=16, count_ok=320, count_ng=200, size=SIDE, channels=1)
    left, rows = (SIDE - WIDTH) // 2, []
    for row in whole.rows:
        mask = whole.mask(row)
        shown = None if mask is None else mask[:, left : left + WIDTH]
        if mask is not None and shown is not None and shown.sum() < max(3, mask.sum() / 2):
            continue
        pictures = {row.path: whole.image(row)[:, left : left + WIDTH, 0]}
        if shown is not None:
            pictures[row.mask] = shown.astype(np.uint8) * 255
        for name, pixels in pictures.items():
            path = folder / "narrow" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        rows.append(Row(row.path, row.label, row.defect, row.group, mask=row.mask))
    manifest = Manifest(folder / "narrow", rows)
    manifest.write()
    return manifest


@contextmanager
def filled(rest: Rest) -> Iterator[None]:
    """Have the rest filled so, and heatmaps cover all that the detector sees."""

    def continued(self: Geometry, x: Tensor) -> Tensor:
        """Letterbox with the image's own pixels in the rest; of a mask alike."""
        height, width = self.shown(x.shape[2], x.shape[3])
        x = F.interpolate(x, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
        for dim, side, length in ((2, self.geometry.height, height), (3, self.geometry.width, width)):
            pixel = torch.arange(side) - (side - length) // 2
            if rest == "mirror":
                pixel = pixel % torch.full_like(pixel, 2 * length)
                x = x.index_select(dim, torch.minimum(pixel, 2 * length - 1 - pixel))
            else:
                x = x.index_select(dim, pixel.clamp(0, length - 1))
        return x

    grey = Geometry._letterboxed
    letterboxed = continued if rest in ("edges", "mirror") else grey
    with (
        patch.object(Geometry, "_letterboxed", letterboxed),
        patch.object(Geometry, "of_image", lambda *arguments: arguments[1]),
    ):
        yield


def trained(manifest: Manifest, kind: str, rest: Rest, seed: int, folder: Path) -> Figures:
    """Train a detector on images with such a rest, and look at its scores and heatmaps."""
    size = f"size = [{SIDE}, {WIDTH}]" if rest == "none" else f'size = {SIDE}\nfit = "letterbox"'
    section, options = DETECTORS[kind]
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'name = "letterbox"\ndataset = "{manifest.root}"\nseed = {seed}\ntarget_fnr = 0.1\n'
        f"[image]\nchannels = 1\n{size}\n[detector]\nbatch_size = 16\n{section}\n"
        f"[detector.options]\n{options}\n",
        encoding="utf-8",
    )
    with filled(rest):
        bundle = train(recipe, folder / f"{kind}-{rest}-{seed}", device="cpu", quiet=True)
    assert bundle is not None
    with (bundle.path.parent / "scores.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    ng, ok = (np.array([float(line["score"]) for line in lines if (line["label"] == NG) == is_ng]) for is_ng in (1, 0))
    auroc = float(mannwhitneyu(ng, ok).statistic / len(ng) / len(ok))
    specificity = float((ok < np.quantile(ng, 0.1)).mean())
    if rest == "none":
        return Figures(auroc, specificity, None, None)
    paths = {line["path"] for line in lines if line["label"] != NG}
    images = np.stack([manifest.image(row) for row in manifest.rows if row.path in paths])
    columns = bundle.open("cpu").score(images)[1].max(axis=1)
    return Figures(auroc, specificity, beyond(columns, 0), beyond(columns, NEAR))


def beyond(columns: NDArray[np.float32], distance: int) -> float:
    """Share of the images whose highest column, of [N, SIDE], is further than `distance` from what shows the image."""
    outside = np.abs(np.arange(SIDE) + 0.5 - SIDE / 2) > WIDTH / 2 + distance
    return float(outside[columns.argmax(axis=1)].mean())


def measure(
    kinds: Annotated[list[str] | None, typer.Argument(help="Detectors; left out: all of the page.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each.")] = 2,
) -> None:
    """Print the table of benchmarks/letterbox.md."""
    say, table = progress(), []
    with TemporaryDirectory() as folder:
        manifest = narrow_boards(Path(folder))
        counts: dict[str, Any] = manifest.counts()
        say(f"{counts['OK']} OK and {counts['NG']} NG images")
        for kind in kinds or DETECTORS:
            for rest in get_args(Rest):
                for seed in range(seeds):
                    table.append(f"| {kind} | {rest} | {seed} | {trained(manifest, kind, rest, seed, Path(folder))} |")
                    say(table[-1])
    typer.echo("| detector | rest | seed | AUROC | specificity at FNR 10 % | peak in the rest | far |")
    typer.echo("|---|---|---|---|---|---|---|")
    for line in table:
        typer.echo(line)


app = single_command(measure)

if __name__ == "__main__":
    main(app)
