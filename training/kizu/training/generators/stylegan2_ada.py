"""Training of a StyleGAN2-ADA (networks: `kizu.models.stylegan2`).

Karras et al., "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020 (ADA) on "Analyzing and
Improving the Image Quality of StyleGAN", CVPR 2020. Other losses, penalties, priors and augmentations are options.

Notable here:
- Four phases: G, its path-length penalty in every 4th step, D, its R1 penalty in every 16th; optimisers make up for the
  steps that a lazy penalty leaves out (CVPR paper, appendix B).
- D never sees an image without augmentation, real or fake, whoever's turn it is, R1 included. The one exception are
  consistency terms, which compare D with itself: through ADA they would ask D to overlook what ADA does to images, and
  so let it leak.
- What adapts (p, mean path length, mean w) lives in buffers: on the device, in the checkpoint, and never waited for.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, Literal, Self, cast

import torch
from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Adam

from kizu.models.config import STRICT, Fixed
from kizu.models.stylegan2 import Discriminator, Generator, StyleGAN2Config, mix
from kizu.training.augment.ada import AdaAugment, AugmentConfig
from kizu.training.augment.controller import AdaController
from kizu.training.augment.diffaugment import DiffAugment
from kizu.training.consistency import Consistency
from kizu.training.data.batches import Batch
from kizu.training.loop import Ema, Losses, Phase, Stage
from kizu.training.losses import ADVERSARIAL
from kizu.training.penalties import PathLength, gradient_penalty, r1_penalty, spectral_normalised
from kizu.training.priors import BourgainPrior, Prior, make_prior

BETAS = (0.0, 0.99)
CRITIC_PENALTY = 10.0
"""λ of Gulrajani et al. 2017, for the loss `wgan-gp`."""
BOURGAIN_WEIGHT = 0.1
"""Weight of the distance term (Xiao et al. 2018)."""


def _trains(prior: object) -> object:
    if prior == "truncated":
        raise ValueError(
            'a generator trained on a truncated z never sees the rest of it; train with "normal" and truncate when '
            "sampling, by generator.truncation below 1"
        )
    return prior


DIFFAUGMENT = {
    "brightness": "brightness",
    "saturation": "saturation",
    "contrast": "contrast",
    "integer_translation": "translation",
    "cutout": "cutout",
}
"""Switches of `AugmentConfig` → DiffAugment's transforms; it has none of the others."""


@dataclass(frozen=True, config=STRICT)
class StyleGAN2ADAConfig:
    """Configuration of the training; whatever is None follows the image size and the batch, as in the paper's code."""

    batch_size: Annotated[int, Fixed()] = Field(default=32, ge=1)
    learning_rate: Annotated[float, Fixed()] = Field(default=0.0025, gt=0)
    discriminator_learning_rate: Annotated[float | None, Fixed()] = Field(default=None, gt=0)
    """None: the generator's."""
    loss: Literal["non-saturating", "hinge", "lsgan", "wgan-gp"] = "non-saturating"
    """Or `hinge`, `lsgan`, `wgan-gp`."""
    critic_updates: int = Field(default=1, ge=1)
    """Updates of D for each one of G."""
    r1: float | None = Field(default=None, ge=0)
    """γ; None: 0.0002 · pixels / batch; 0: no R1."""
    r1_every: int = Field(default=16, ge=1)
    """Updates of D for each one with R1."""
    path_length: float = Field(default=2.0, ge=0)
    """Weight of the path-length penalty; 0: none."""
    path_length_every: int = Field(default=4, ge=1)
    """Updates of G for each one with that penalty."""
    style_mixing: float = Field(default=0.9, ge=0, le=1)
    """Probability that an image has the styles of two z."""
    ema_kimg: float | None = Field(default=None, ge=0)
    """Half-life of the generator's average; None: batch · 10 / 32."""
    ema_ramp_up: float | None = Field(default=0.05, ge=0)
    """Half-life ≤ this share of the images seen so far; None after a transfer."""
    augment: Annotated[Literal["ada", "diffaugment", "none"], Fixed()] = "ada"
    """Or `diffaugment`, `none`."""
    ada_target: float = 0.6
    """Value of the heuristic that p is steered to."""
    ada_kimg: float = Field(default=500.0, gt=0)
    """Thousands of images in which p may go from 0 to 1; 100 after a transfer."""
    ada_heuristic: Literal["r_t", "r_v"] = "r_t"
    """Or `r_v`, with a part of the reals held out."""
    ada_start: float = Field(default=0.0, ge=0, le=1)
    """p in the beginning."""
    ada_limit: float = Field(default=0.8, ge=0, le=1)
    """p never exceeds this: beyond, augmentations show in the images (section 2.2)."""
    spectral_norm: bool = False
    """Spectral normalisation of D (Miyato et al. 2018)."""
    consistency: Literal["none", "cr", "bcr", "zcr", "icr"] = "none"
    """Or `cr`, `bcr`, `zcr`, `icr`."""
    prior: Annotated[Literal["normal", "bourgain"], BeforeValidator(_trains)] = "normal"
    """Or `bourgain`."""
    freeze: Annotated[int, Fixed()] = Field(default=0, ge=0)
    """Layers of D, from the image on, that do not train (Freeze-D, Mo et al. 2020)."""
    compile: bool = False
    """torch.compile what is not differentiated twice; on CUDA only."""

    @model_validator(mode="after")
    def _one_bound_of_the_slope(self) -> Self:
        if self.loss == "wgan-gp" and self.spectral_norm:
            raise ValueError("wgan-gp and spectral_norm both bound D's slope; choose one")
        return self

    def gamma(self, pixels: int) -> float:
        """γ of R1 for images of this many pixels."""
        return 0.0002 * pixels / self.batch_size if self.r1 is None else self.r1

    @property
    def r1_steps(self) -> int:
        """Steps from one R1 to the next, since a step may hold several updates of D."""
        return max(1, round(self.r1_every / self.critic_updates))

    def decay(self, step: int) -> float:
        """β of the generator's average after so many steps."""
        half_life = 1000 * (self.batch_size * 10 / 32 if self.ema_kimg is None else self.ema_kimg)
        if self.ema_ramp_up is not None:
            half_life = min(half_life, self.ema_ramp_up * (step + 1) * self.batch_size)
        return math.pow(0.5, self.batch_size / max(half_life, 1e-8))


PRESETS: dict[str, dict[str, float | None]] = {
    # At 32 px the paper trains without both, too (its configuration for CIFAR-10).
    "demo": {"path_length": 0.0, "style_mixing": 0.0},
    "paper256": {"batch_size": 64, "learning_rate": 0.0025, "r1": 1.0, "ema_kimg": 20.0, "ema_ramp_up": None},
    "paper512": {"batch_size": 64, "learning_rate": 0.0025, "r1": 0.5, "ema_kimg": 20.0, "ema_ramp_up": None},
    "paper1024": {"batch_size": 32, "learning_rate": 0.002, "r1": 2.0, "ema_kimg": 10.0, "ema_ramp_up": None},
}
"""Training that comes with a preset of the networks; those of the paper have the values of its published code, which
trains them for 25 000 kimg on 8 GPUs. In the other presets, what is left out follows size and batch."""


def auto_batch_size(size: tuple[int, int], processes: int) -> int:
    """Return the paper's batch, over all processes, for images of `size`: 32 per GPU at most, fewer of large ones."""
    batch = max(min(processes * min(4096 // max(size), 32), 64), processes)
    return batch - batch % processes


class StyleGAN2ADAMethod:
    """G against D for `kimg` thousand real images.

    Args:
        shape: of the networks.
        config: how they train.
        augmentations: the transformations that ADA, or DiffAugment, may apply.
        kimg: thousands of real images shown to D.
        labels: class numbers of the training images, int64 [M]; fakes get classes as often as these have them.
        images: the training images, uint8 [M, C, H, W]; only the Bourgain prior looks at them.
        held_out: real images that D never trains on, for `r_v`.
        reduce: averages a tensor over processes.
    """

    def __init__(
        self,
        shape: StyleGAN2Config,
        config: StyleGAN2ADAConfig,
        augmentations: AugmentConfig,
        kimg: float,
        labels: Tensor,
        *,
        images: Tensor | None = None,
        held_out: Batch | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ):
        self.shape, self.config, self.kimg = shape, config, kimg
        self.generator, self.discriminator = Generator(shape), Discriminator(shape)
        if config.spectral_norm:
            spectral_normalised(self.discriminator)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.ada = AdaController(
            target=config.ada_target,
            speed_kimg=config.ada_kimg,
            initial_p=min(config.ada_start, config.ada_limit),
            max_p=config.ada_limit,
            heuristic=config.ada_heuristic,
            reduce=reduce,
        )
        self.path_length = PathLength(reduce=reduce)
        self._augment = AdaAugment(augmentations, shape.channels)
        centres = images.float() / 127.5 - 1 if images is not None and config.prior == "bourgain" else None
        self.prior: Prior = make_prior(cast(Any, config.prior), shape.latent, images=centres, seed=seed)
        parts = {
            "G": self.generator,
            "D": self.discriminator,
            "ada": self.ada,
            "path_length": self.path_length,
            "augment": self._augment,  # its filters are constants: on the device, and in no checkpoint
        }
        if isinstance(self.prior, nn.Module):
            parts["prior"] = self.prior
        self.networks = nn.ModuleDict(parts)
        # Convolutions and low-pass filters over channels-last memory are the faster ones, on CPU as on CUDA.
        for network in (self.generator, self.discriminator, self.average):
            network.to(memory_format=torch.channels_last)
        self.labels, self.held_out = labels, held_out
        self.measure: Callable[[int], dict[str, float]] | None = None
        self.measurements = 0
        self._diffaugment = DiffAugment([name for key, name in DIFFAUGMENT.items() if getattr(augmentations, key)])
        self._consistency = Consistency(cast(Any, config.consistency))
        self._shift = DiffAugment(("translation",))
        loss = "wasserstein" if config.loss == "wgan-gp" else config.loss
        self._adversarial = ADVERSARIAL[loss]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._fixed_z = self.prior.sample(24, "cpu")
        self._synthesise: Callable[..., Tensor] = self.generator.synthesis
        self._judge: Callable[..., Tensor] = self.discriminator

    @property
    def steps(self) -> int:
        """Steps that show D `kimg` thousand real images."""
        return max(1, round(1000 * self.kimg / (self.config.batch_size * self.config.critic_updates)))

    def stages(self, images: int) -> list[Stage]:
        """One stage."""
        del images
        config = self.config
        trained = nn.ModuleList(list(self.discriminator.layers())[config.freeze :])
        pixels = self.shape.height * self.shape.width
        gamma = config.gamma(pixels) if config.loss != "wgan-gp" else 0.0
        rate = config.learning_rate
        g_every = config.path_length_every if config.path_length else 0
        d_every = config.r1_steps if gamma else 0
        g_optimizer = _lazy_adam(self.generator, rate, g_every)
        d_optimizer = _lazy_adam(trained, config.discriminator_learning_rate or rate, d_every * config.critic_updates)
        phases = [Phase("G", self.generator, g_optimizer, self._generator_losses)]
        if g_every:
            phases.append(Phase("G-path", self.generator, g_optimizer, self._path_losses, every=g_every))
        phases.append(Phase("D", trained, d_optimizer, self._discriminator_losses, repeats=config.critic_updates))
        if d_every:
            phases.append(Phase("D-r1", trained, d_optimizer, self._r1_losses, every=d_every))
        if config.compile and next(self.generator.parameters()).is_cuda:
            self._synthesise = torch.compile(self.generator.synthesis)
            self._judge = torch.compile(self.discriminator)
        return [
            Stage(
                "stylegan2-ada",
                self.steps,
                phases,
                averages=[Ema(self.generator, self.average, config.decay, ramp_up=False)],
                problem=self._collapse,
                measure=self.measure,
                measure_every=max(1, -(-self.steps // max(1, self.measurements))),
            )
        ]

    def samples(self, images: Tensor) -> Tensor:
        """24 images of the averaged generator, then 8 training images."""
        z = self._fixed_z.to(images.device)
        classes = torch.arange(24, device=images.device) % max(1, self.shape.classes)
        return torch.cat([self.average(z, classes, noise="const").float(), images])

    def _fake_classes(self, n: int) -> Tensor:
        labels = self.labels
        return labels[torch.randint(0, len(labels), (n,), device=labels.device)]

    def _fakes(self, n: int, device: torch.device, synthesise: Callable[..., Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Images [n, C, H, W], the w that made them, their classes and z."""
        z, classes = self.prior.sample(n, device), self._fake_classes(n)
        ws = self.generator.styles(self.generator.mapping(z, classes, track=True))
        if self.config.style_mixing and self.shape.layers > 1:
            other = self.generator.styles(self.generator.mapping(self.prior.sample(n, device), classes))
            ws = mix(ws, other, self.config.style_mixing)
        return synthesise(ws), classes, z

    def _augmented(self, images: Tensor) -> Tensor:
        if self.config.augment == "ada":
            images = self._augment(images, self.ada.p)
        elif self.config.augment == "diffaugment":
            images = self._diffaugment(images)
        return images

    def _shared_weights(self) -> AbstractContextManager[None]:
        """One power iteration per update, however often D is called in it."""
        return parametrize.cached() if self.config.spectral_norm else nullcontext()

    def _generator_losses(self, batch: Batch) -> Losses:
        fake, classes, z = self._fakes(len(batch.images), batch.images.device, self._synthesise)
        self._last_fake = fake.detach()
        with self._shared_weights():
            logits = self._judge(self._augmented(fake), classes)
        losses = {"adversarial": self._adversarial.generator(logits)}
        if self._consistency.needs_near:
            losses["consistency"] = self._consistency.generator_term(*self._neighbours(z, classes))
        if isinstance(self.prior, BourgainPrior):
            half = len(z) // 2
            pair = self.generator(z[: 2 * half], classes[: 2 * half])
            distance = self.prior.distance_loss(z[:half], z[half : 2 * half], pair[:half], pair[half:])
            losses["distance"] = BOURGAIN_WEIGHT * distance
        return {"total": torch.stack(list(losses.values())).sum(), **losses}

    def _path_losses(self, batch: Batch) -> Losses:
        n = max(1, len(batch.images) // 2)
        with torch.autocast(batch.images.device.type, enabled=False):
            z, classes = self.prior.sample(n, batch.images.device), self._fake_classes(n)
            ws = self.generator.styles(self.generator.mapping(z, classes))
            if self.config.style_mixing:
                other = self.generator.styles(self.generator.mapping(self.prior.sample(n, ws.device), classes))
                ws = mix(ws, other, self.config.style_mixing)
            penalty = self.path_length(self.generator.synthesis(ws), ws)
        weight = self.config.path_length * self.config.path_length_every
        return {"total": weight * penalty, "path_length": self.path_length.mean}

    def _discriminator_losses(self, batch: Batch) -> Losses:
        real, labels = batch.images, batch.labels
        with torch.no_grad():
            fake, classes, z = self._fakes(len(real), real.device, self._synthesise)
        with self._shared_weights():
            fake_logits = self._judge(self._augmented(fake), classes)
            real_logits = self._judge(self._augmented(real), labels)
            losses = {"adversarial": self._adversarial.discriminator(real_logits, fake_logits)}
            if self.config.loss == "wgan-gp":
                slope = gradient_penalty(lambda x: self.discriminator(self._augmented(x), labels), real, fake)
                losses["penalty"] = CRITIC_PENALTY * slope
            if self.config.consistency != "none":
                losses["consistency"] = self._consistency_losses(real, labels, fake, classes, z)
            self._adapt(real_logits, fake_logits)
        figures = {"real": real_logits.mean(), "fake": fake_logits.mean(), "p": self.ada.p, "r": self.ada.r}
        return {"total": torch.stack(list(losses.values())).sum(), **losses, **figures}

    def _consistency_losses(self, real: Tensor, labels: Tensor, fake: Tensor, classes: Tensor, z: Tensor) -> Tensor:
        """Consistency terms of D without the augmentation that trains it."""
        near = None
        if self._consistency.needs_near:
            with torch.no_grad():
                fake, near = self._neighbours(z, classes)
        return self._consistency.discriminator_term(
            lambda images: self.discriminator(images, labels),
            self._shift,
            real,
            fake,
            near,
            real_logits=self.discriminator(real, labels),
            fake_logits=self.discriminator(fake, classes),
            of_fakes=lambda images: self.discriminator(images, classes),
        )

    def _neighbours(self, z: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """G(z) and G(z + δ), of the same noise maps and without style mixing: only z tells them apart."""
        near = self._consistency.near(z)
        return self.generator(z, classes, noise="const"), self.generator(near, classes, noise="const")

    def _adapt(self, real_logits: Tensor, fake_logits: Tensor) -> None:
        if self.config.augment != "ada":
            return
        if self.config.ada_heuristic == "r_t":
            self.ada.observe(real_logits)
        elif self.held_out is not None:
            n = len(real_logits)
            chosen = torch.randint(0, len(self.held_out.images), (n,), device=real_logits.device)
            with torch.no_grad():
                held_out = self._augmented(self.held_out.images[chosen])
                unseen = self.discriminator(held_out, self.held_out.labels[chosen])
            self.ada.observe_validation(real_logits, unseen, fake_logits)
        self.ada.update(self.config.batch_size)

    def _r1_losses(self, batch: Batch) -> Losses:
        pixels = self.shape.height * self.shape.width
        with self._shared_weights():
            penalty, logits = r1_penalty(
                lambda x: self.discriminator(self._augmented(x), batch.labels), batch.images, self.config.gamma(pixels)
            )
        if self.config.augment == "ada" and self.config.ada_heuristic == "r_t":
            self.ada.observe(logits)
        return {"total": self.config.r1_steps * self.config.critic_updates * penalty, "r1": penalty}

    def _collapse(self) -> str | None:
        spread = self._last_fake.float().std(0).mean().item()
        return "the generator makes one image from every noise" if spread < 1e-4 else None


def _lazy_adam(module: nn.Module, rate: float, every: int) -> Adam:
    """Adam whose rate and moments are those of `every` steps out of `every` + 1 (CVPR paper, appendix B)."""
    c = every / (every + 1) if every else 1.0
    return Adam(module.parameters(), rate * c, (BETAS[0] ** c, BETAS[1] ** c), eps=1e-8)
