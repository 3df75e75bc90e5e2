"""Ways to synthesise NG: one module each, and one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kizu.errors import UserError
from kizu.models.stylegan2 import PRESETS, StyleGAN2Config, auto_capacity
from kizu.training.augment.ada import AugmentConfig
from kizu.training.generators.classic import Classic, ClassicConfig
from kizu.training.generators.cutpaste import CutPaste, CutPasteConfig
from kizu.training.generators.perlin import Perlin, PerlinConfig
from kizu.training.generators.placing import PlacingConfig
from kizu.training.generators.poisson import Poisson, PoissonConfig
from kizu.training.generators.sampling import Sampler
from kizu.training.generators.stylegan2_ada import DIFFAUGMENT, StyleGAN2ADAConfig, auto_batch_size
from kizu.training.generators.stylegan2_ada import PRESETS as TRAINING_PRESETS
from kizu.training.generators.views import Materials
from kizu.training.options import Options, option_names, preset
from kizu.training.recipe import GeneratorSection

GAN = "stylegan2-ada"


@dataclass(frozen=True)
class UntrainedKind:
    """A kind that does not train: its options, its sampler and what that needs."""

    config: type
    sampler: Callable[[Any, Materials], Sampler]
    needs_ok: bool = True
    needs_ng: bool = False
    located_ng_if: Callable[[Any], bool] | None = None
    """Predicate on the configuration: it needs NG whose defects are located."""


UNTRAINED = {
    "classic": UntrainedKind(ClassicConfig, Classic, needs_ok=False, needs_ng=True),
    "cutpaste": UntrainedKind(CutPasteConfig, CutPaste),
    "poisson": UntrainedKind(PoissonConfig, Poisson, located_ng_if=lambda config: bool(config.patches == "ng")),
    "perlin": UntrainedKind(PerlinConfig, Perlin),
}
GENERATORS = (GAN, *UNTRAINED)
OF_EVERY_KIND = {"kind", "count", "filter", "keep", "options"}
"""Keys of `[generator]` that apply whatever the kind."""


def configure(
    section: GeneratorSection, size: tuple[int, int], channels: int, classes: int, processes: int = 1
) -> tuple[StyleGAN2Config, StyleGAN2ADAConfig, AugmentConfig]:
    """Configure a recipe's `[generator]` for images of `size` (height, width) and so many classes (0: none).

    Args:
        processes: that train together, one per GPU; a batch that follows the size counts them.

    Raises:
        UserError: unknown kind, preset, option or augmentation, or a value out of range.
    """
    check_keys(section)
    training = TRAINING_PRESETS.get(section.preset, {})
    values = {**training, **preset(PRESETS, section.preset, f"generator '{section.kind}'")}
    if section.preset == "auto":
        values["capacity"] = auto_capacity(*size)
    if section.start_from is not None:  # transfer: overfitting is near from the start, and the average is good already
        values |= {"ada_kimg": 100.0, "ema_ramp_up": None}
    options = Options("generator.options", section.options, values)
    options.check(*option_configs(section.kind, placed=section.placed))
    shape = options.make(StyleGAN2Config, height=size[0], width=size[1], channels=channels, classes=classes)
    before_last = 1 + 3 * shape.depth
    if section.freeze_discriminator > before_last:
        raise UserError(
            f"generator.freeze_discriminator must be at most {before_last}, not {section.freeze_discriminator}.",
            "So many layers come before the discriminator's last ones, which have to train.",
        )
    config = options.make(
        StyleGAN2ADAConfig,
        batch_size=section.batch_size or training.get("batch_size") or auto_batch_size(size, processes),
        learning_rate=section.learning_rate
        or training.get("learning_rate")
        or (0.002 if max(size) >= 1024 else 0.0025),
        discriminator_learning_rate=section.discriminator_learning_rate,
        augment=section.augment,
        freeze=section.freeze_discriminator,
    )
    return shape, config, _augmentations(section)


def _augmentations(section: GeneratorSection) -> AugmentConfig:
    """Return the transformations that may happen; other kinds of augmentation than ADA know only some, or none.

    Raises:
        UserError: an unknown one, or one that is switched on and that this kind of augmentation has not.
    """
    known = {"ada": option_names(AugmentConfig), "diffaugment": list(DIFFAUGMENT), "none": []}[section.augment]
    values = {} if section.augment == "ada" else {name: name in known for name in option_names(AugmentConfig)}
    switches = Options("generator.augmentations", section.augmentations, values)
    switches.check(AugmentConfig)
    for name, on in section.augmentations.items():
        if on and name not in known:
            raise UserError(
                f'generator.augmentations.{name}: augment = "{section.augment}" has no such transformation.',
                f'It has {", ".join(known) or "none"}; leave {name} out, or choose augment = "ada".',
            )
    return switches.make(AugmentConfig)


def option_configs(kind: str, *, placed: bool = False) -> tuple[type, ...]:
    """List the configurations whose fields are options of a kind."""
    if kind != GAN:
        return (UNTRAINED[kind].config,)
    return (StyleGAN2Config, StyleGAN2ADAConfig, *((PlacingConfig,) if placed else ()))


def check_keys(section: GeneratorSection) -> None:
    """Refuse an unknown kind, and keys that do not apply to what the section asks for.

    Raises:
        UserError: names the key.
    """
    if section.kind not in GENERATORS:
        raise UserError(f"Unknown generator '{section.kind}'.", f"Known generators: {', '.join(GENERATORS)}.")
    if section.kind != GAN and (extra := sorted(section.model_fields_set - OF_EVERY_KIND)):
        raise UserError(
            f"generator.{extra[0]} does not apply to '{section.kind}', which does not train.",
            f"Leave {', '.join(extra)} out; {section.kind}'s own settings stand in [generator.options].",
        )
    if section.kind != GAN and section.filter == "discriminator":
        raise UserError(
            f"generator.filter: '{section.kind}' has no discriminator.", 'Choose the filter "classifier", or none.'
        )
    if section.freeze_discriminator and section.start_from is None:
        raise UserError(
            "generator.freeze_discriminator keeps the weights that training starts from, and these are random.",
            "Give generator.start_from a run to start from, or leave generator.freeze_discriminator out.",
        )
    if section.filter == "none" and section.keep is not None:
        raise UserError(
            "generator.keep says what share a filter keeps, and there is none.",
            'Choose generator.filter = "classifier" or "discriminator", or leave generator.keep out.',
        )


def check_options(section: GeneratorSection, size: tuple[int, int], channels: int) -> None:
    """Refuse a slip in the section, before anything is read or made.

    Args:
        size: (height, width) that the detector sees.

    Raises:
        UserError: as `check_keys`, `configure`, `placing_config` and `untrained_config`.
    """
    check_keys(section)
    if section.kind != GAN:
        untrained_config(section)
        return
    configure(section, section.sides or size, channels, classes=0)
    if section.placed:
        placing_config(section)


def untrained_config(section: GeneratorSection) -> Any:
    """Return the configuration of a kind that does not train.

    Raises:
        UserError: unknown option, or a value out of range.
    """
    options = Options("generator.options", section.options)
    options.check(*option_configs(section.kind))
    return options.make(UNTRAINED[section.kind].config)


def placing_config(section: GeneratorSection) -> PlacingConfig:
    """Configure how the defects of a generator are placed; the other options are the generator's own.

    Raises:
        UserError: a value out of range.
    """
    return Options("generator.options", section.options).make(PlacingConfig)


def own_options(section: GeneratorSection) -> dict[str, bool | int | float | str]:
    """The options that make a trained generator what it is: all but those of placing."""
    if not section.placed:
        return dict(section.options)
    return {name: value for name, value in section.options.items() if name not in option_names(PlacingConfig)}
