"""The recipe: product, images, generator and detector, as a TOML file.

Unknown keys are errors that name the nearest known one; every section may be left out.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.models.config import WHOLE
from kizu.training import options

Share = Annotated[float, Field(gt=0, lt=1)]
Pixels = Annotated[int, Field(ge=32, le=1024)]
Size = Pixels | Annotated[tuple[Pixels, Pixels], Field(strict=False)]
"""A side, or [height, width]; TOML and JSON have no tuples."""
Option = bool | int | float | str
ENLARGE = 2.0
"""Most that an image smaller than `image.size` is enlarged."""


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ImageSection(_Section):
    """`[image]`: the images that the detector sees."""

    size: Size = 64
    """Pixels the detector sees: a side, or [height, width]."""
    channels: Annotated[Literal[1, 3], WHOLE] = 3
    """1 (grey) or 3 (RGB); images of the other kind are converted."""
    tile: int | None = Field(default=None, ge=16)
    """Inspect in square tiles of this many source pixels; left out: the whole image is resized to `size`."""
    stride: int | None = Field(default=None, ge=1)
    """Source pixels from tile to tile; left out: three quarters of `tile`."""
    fit: Literal["stretch", "letterbox"] = "stretch"
    """Whole images of another shape than `size`: `stretch` them to it, or keep their proportions and fill the rest with
    grey (`letterbox`)."""

    @model_validator(mode="after")
    def _tiling_is_whole(self) -> ImageSection:
        if self.stride is not None and self.tile is None:
            raise ValueError("stride needs tile")
        if self.stride is not None and self.tile is not None and self.stride > self.tile:
            raise ValueError(f"stride {self.stride} leaves gaps between tiles of {self.tile} pixels")
        if self.tile is not None and not isinstance(self.size, int) and self.size[0] != self.size[1]:
            raise ValueError("tiles are square, so size must be one number")
        if self.tile is not None and self.fit != "stretch":
            raise ValueError(f'fit = "{self.fit}" is for whole images: tiles keep their proportions anyway')
        return self

    @property
    def geometry(self) -> InputGeometry:
        """The geometry that the bundle states."""
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        stride = None if self.tile is None else self.stride or max(1, self.tile * 3 // 4)
        return InputGeometry(
            height=height,
            width=width,
            channels=self.channels,
            tile=self.tile,
            stride=stride,
            fit=self.fit,
            enlarge=ENLARGE if self.tile is None else 1.0,
        )


class GeneratorSection(_Section):
    """`[generator]`: synthetic NG; left out: none are made.

    `kind`, `count`, `filter`, `keep` and `options` are of every kind, the other keys of `stylegan2-ada` alone.
    """

    kind: str
    """`stylegan2-ada`; or `classic`, `cutpaste`, `poisson` or `perlin`, which do not train."""
    preset: str = "small"
    """Width of the networks, and how they train."""
    kimg: float = Field(default=200, gt=0)
    """Thousands of real images shown to the discriminator."""
    count: int = Field(default=2000, ge=1)
    """Synthetic NG to make."""
    truncation: float = Field(default=1.0, ge=0, le=1)
    """ψ: below 1, images are more typical and less varied."""
    size: Size | None = None
    """Pixels of the images that it draws; left out: the detector's."""
    crop: int | None = Field(default=None, ge=16)
    """Side of the window around each defect in source pixels; left out: the detector's tile, or its size."""
    context: float = Field(default=0.1, ge=0)
    """Margin around a defect that is larger than that, as a share of its longer side."""
    conditional: bool = True
    """Learn the defect classes apart, where there are several."""
    batch_size: int | None = Field(default=None, ge=2)
    """Images per update, over all GPUs; left out: the paper's for preset, size and number of GPUs."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Left out: the paper's."""
    discriminator_learning_rate: float | None = Field(default=None, gt=0)
    """Left out: the generator's; otherwise two time scales (TTUR)."""
    augment: Literal["ada", "diffaugment", "none"] = "ada"
    """Augmentation that keeps the discriminator from memorising few images."""
    augmentations: dict[str, bool] = {}
    """Single transformations, on or off: a flip or a change of brightness can make or hide a defect."""
    start_from: str | None = None
    """A run whose generator's weights to start from (transfer learning)."""
    start_partly: bool = False
    """Start from what fits where the other run's networks differ; left out: any difference is an error."""
    freeze_discriminator: int = Field(default=0, ge=0)
    """Layers of the discriminator, from the image on, that keep the weights they start from (Freeze-D)."""
    inception: str | None = None
    """File with Inception weights for KID and FID; left out: features learned from the recipe's own images."""
    measurements: int = Field(default=8, ge=0)
    """Number of times in the run that the images are measured."""
    placed: bool = False
    """Put the defects that it draws into real OK images, with their masks; left out: its crops are the synthetic NG."""
    filter: Literal["none", "discriminator", "classifier"] = "none"
    """Draw more and keep those that the generator's discriminator rates as most real, or that a quick classifier is
    most sure of as NG."""
    keep: float | None = Field(default=None, gt=0, le=1)
    """Share that a filter keeps of each defect class; left out: half."""
    options: dict[str, Option] = {}
    """Fields of the method's own configuration, for instance `latent`, `r1` or `loss`."""

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width of `size`."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


AUTO = "auto"
"""Kind of a detector that the data choose (`kizu.training.auto`)."""


class DetectorSection(_Section):
    """`[detector]`: the method that scores images."""

    kind: str = AUTO
    """Name of the method; `auto`: the data choose."""
    preset: str = "small"
    """Name of a set of option values."""
    epochs: int = Field(default=20, ge=1)
    """Passes over the training images (for methods in several stages: in each)."""
    batch_size: int = Field(default=32, ge=2)
    """Images per update."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Left out: the paper's."""
    options: dict[str, Option] = {}
    """Fields of the method's own configuration, for instance `features`, `latent` or `score`."""


class AugmentSection(_Section):
    """`[augment]`: changes to training images, for detectors that bear it."""

    flip_horizontal: bool = False
    """Off, as the other flip and turns: each can make or hide a defect."""
    flip_vertical: bool = False
    """Mirror upside down."""
    quarter_turns: bool = False
    """Turn by multiples of 90°."""
    shift: float = Field(default=0.03, ge=0, le=0.5)
    """Most that an image moves, as a share of its side; 0: not at all."""
    scale: float = Field(default=0.0, ge=0, le=1)
    """Most that an image grows, as a share; it shrinks as much. 0: not at all."""
    brightness: float = Field(default=0.05, ge=0, le=1)
    """Most that is added or taken, as a share of the range from black to white."""
    contrast: float = Field(default=0.1, ge=0, le=4)
    """Most that contrast grows, as a share; it shrinks as much."""
    noise: float = Field(default=0.01, ge=0, le=1)
    """Largest standard deviation of the noise, as a share of the range from black to white."""


class SplitsSection(_Section):
    """`[splits]`: shares of the images that go to training, calibration and test, and to the certificate alone."""

    train: Share = 0.6
    """Share that trains."""
    calibration: Share = 0.2
    """Share that fixes the threshold."""
    test: Share = 0.2
    """Share that is reported once."""
    certification: float = Field(default=0, ge=0, lt=1)
    """Share that is reserved for threshold and certificate: nothing else reads it. 0: calibration gives both."""

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> SplitsSection:
        if abs(self.train + self.calibration + self.test + self.certification - 1) > 1e-6:
            raise ValueError("train, calibration, test and certification must sum to 1")
        return self

    @property
    def fractions(self) -> tuple[float, float, float]:
        """(train, calibration, test)."""
        return self.train, self.calibration, self.test


def _as_tuple(detector: object) -> object:
    """One section, or an array of them as TOML and JSON give it, as a tuple; anything else as it is."""
    if isinstance(detector, (dict, DetectorSection)):
        return (detector,)
    return tuple(detector) if isinstance(detector, list) else detector


class Recipe(_Section):
    """A recipe; `[detector]` once, or `[[detector]]` for each of several whose scores are combined."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Name that the service's `?recipe=` asks for."""
    dataset: str
    """A manifest folder, relative to the recipe's folder or the working directory."""
    target_fnr: Share = 0.01
    """Share of NG parts that may pass."""
    confidence: Share = 0.95
    """Certainty of that statement."""
    target_specificity: Share = 0.99
    """Fixes the threshold only where no real NG is left for calibration."""
    review_band: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of OK parts, next below the threshold, that people look at as well."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of splits, initial weights and the order of images."""
    image: ImageSection = ImageSection()
    """The images that the detector sees."""
    splits: SplitsSection = SplitsSection()
    """Shares of training, calibration, test and certification."""
    generator: GeneratorSection | None = None
    """Synthetic NG; left out: none are made."""
    detector: Annotated[
        tuple[DetectorSection, ...],
        BeforeValidator(_as_tuple),
        Field(min_length=1, max_length=8),
    ] = (DetectorSection(),)
    """The method that scores; several are combined."""
    combine: Literal["weighted", "mean", "max"] = "weighted"
    """Combination of several detectors' ranks: their mean, weighted by what each that learns from OK alone sees of the
    train split's NG, or with equal weights, or their maximum."""
    augment: AugmentSection | None = None
    """Left out: the defaults, for detectors that alter their images."""


def read_recipe(path: Path) -> Recipe:
    """Read and validate a recipe.

    Raises:
        UserError: missing file, broken TOML, unknown key (with the nearest known one) or a value out of range.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"There is no recipe {path}.", "Give the path of a recipe's TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is not a TOML file: {error}") from error
    return parse_recipe(content, where=str(path))


def parse_recipe(content: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe's content; raises UserError as `read_recipe`."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = options.explain(error, known_keys)
        raise UserError(f"{where} is not a valid recipe:\n  " + "\n  ".join(lines)) from error


def find_dataset(recipe: Recipe, recipe_path: Path) -> Path:
    """Return the data set's folder: relative to the recipe first, then to the working directory.

    Raises:
        UserError: neither exists.
    """
    of_recipe, here = recipe_path.parent / recipe.dataset, Path(recipe.dataset)
    for candidate in (of_recipe, here):
        if candidate.is_dir():
            return candidate
    raise UserError(
        f"The data set '{recipe.dataset}' of {recipe_path} is neither at {of_recipe} nor at {here.resolve()}.",
        "Import it first (kizu import --help), or correct `dataset` in the recipe.",
    )


SECTIONS: dict[str, type[BaseModel]] = {
    "image": ImageSection,
    "splits": SplitsSection,
    "generator": GeneratorSection,
    "detector": DetectorSection,
    "augment": AugmentSection,
}


def known_keys(location: options.Location) -> list[str]:
    """List the keys of the section that a location lies in."""
    sections = [SECTIONS[part] for part in location if isinstance(part, str) and part in SECTIONS]
    return [key.name for key in options.describe(sections[-1] if sections else Recipe)]
