"""Ways to make synthetic NG: one module each, and one line here."""

from __future__ import annotations

from typing import Any

from kizu.errors import UserError
from kizu.models.stylegan2 import PRESETS, StyleGAN2Config
from kizu.training import options
from kizu.training.augment.ada import AugmentConfig
from kizu.training.generators.stylegan2_ada import PRESETS as TRAINING_PRESETS
from kizu.training.generators.stylegan2_ada import StyleGAN2ADAConfig
from kizu.training.recipe import GeneratorSection

GENERATORS = ("stylegan2-ada",)

SHAPE = ("height", "width", "channels", "classes")
"""Fields of the network's configuration that the data decides."""
SECTION = ("batch_size", "learning_rate", "discriminator_learning_rate", "augment", "freeze")
"""Fields of the method's configuration that have a key of their own in `[generator]`."""


def configure(
    section: GeneratorSection, size: tuple[int, int], channels: int, classes: int
) -> tuple[StyleGAN2Config, StyleGAN2ADAConfig, AugmentConfig]:
    """What a recipe's `[generator]` asks for, for images of `size` (height, width) and so many classes (0: none).

    Raises:
        UserError: unknown kind, preset, option or augmentation, or a value out of range.
    """
    if section.kind not in GENERATORS:
        raise UserError(f"Unknown generator '{section.kind}'.", f"Known generators: {', '.join(GENERATORS)}.")
    what = f"generator '{section.kind}'"
    preset = options.preset(PRESETS, section.preset, what)
    known = sorted(options.known_options(StyleGAN2Config, *SHAPE) + options.known_options(StyleGAN2ADAConfig, *SECTION))
    options.check_names(section.options, known, "generator.options", what)
    data: dict[str, Any] = {"height": size[0], "width": size[1], "channels": channels, "classes": classes}
    shape = options.configure(StyleGAN2Config, data, {**preset, **section.options}, "generator.options")
    batch = section.batch_size or max(4, min(4096 // max(size), 32))
    keyed = {
        "batch_size": batch,
        "learning_rate": section.learning_rate or (0.002 if max(size) >= 1024 else 0.0025),
        "discriminator_learning_rate": section.discriminator_learning_rate,
        "augment": section.augment,
        "freeze": section.freeze_discriminator,
    }
    if section.start_from is not None:  # transfer: overfitting is near from the start, and the average is good already
        keyed |= {"ada_kimg": 100.0, "ema_ramp_up": None}
    before_last = 1 + 3 * shape.depth
    if section.freeze_discriminator > before_last:
        raise UserError(
            f"generator.freeze_discriminator must be at most {before_last}, not {section.freeze_discriminator}.",
            "So many layers come before the discriminator's last ones, which have to train.",
        )
    chosen = {**TRAINING_PRESETS.get(section.preset, {}), **section.options}
    config = options.configure(StyleGAN2ADAConfig, keyed, chosen, "generator.options")
    switches = options.known_options(AugmentConfig)
    options.check_names(section.augmentations, switches, "generator.augmentations", "ADA")
    return shape, config, options.configure(AugmentConfig, {}, section.augmentations, "generator.augmentations")
