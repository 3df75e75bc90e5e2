"""Consistency regularisation: changes that must not change a discriminator's logits, and must change the image.

Notable here:
- CR (Zhang et al. 2020): D(x) = D(T(x)) on real images. bCR (Zhao et al. 2021): on fakes, too. zCR: D(G(z)) =
  D(G(z + δ)), while the generator is rewarded for telling z and z + δ apart. ICR: bCR and zCR.
- T is a regulariser here, no augmentation: the adversarial loss is that of images without T. With the adversarial loss
  on T(x) alone, it would be DiffAugment.
- Squares are of logits, before any activation, and averaged over the batch. Both sides get a gradient.
- zCR's generator term is −‖·‖², which has no lower bound where the generator's output is linear, as StyleGAN2's is.
  Here it is the distance of images clipped to [−1, 1], which bounds it as the paper's tanh does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["none", "cr", "bcr", "zcr", "icr"]
Discriminator = Callable[[Tensor], Tensor]
"""Images [N, C, H, W] → logits."""


def _unlike(logits: Tensor, others: Tensor) -> Tensor:
    return (logits.float() - others.float()).square().mean()


def cr(discriminator: Discriminator, real: Tensor, augmented_real: Tensor, *, logits: Tensor | None = None) -> Tensor:
    """E (D(x) − D(T(x)))² (Zhang et al. 2020, equation 3, last layer only, without λ).

    Args:
        discriminator: images → logits.
        real: x [N, C, H, W].
        augmented_real: T(x), the same shape.
        logits: D(x), where the caller has it already.
    """
    return _unlike(discriminator(real) if logits is None else logits, discriminator(augmented_real))


def bcr(
    discriminator: Discriminator,
    real: Tensor,
    augmented_real: Tensor,
    fake: Tensor,
    augmented_fake: Tensor,
    *,
    real_logits: Tensor | None = None,
    fake_logits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """E (D(x) − D(T(x)))² and E (D(G(z)) − D(T(G(z))))², to be weighted each (Zhao et al. 2021, algorithm 1).

    For the discriminator only: the generator gets no gradient from it.
    """
    on_real = cr(discriminator, real, augmented_real, logits=real_logits)
    return on_real, cr(discriminator, fake.detach(), augmented_fake.detach(), logits=fake_logits)


def zcr_discriminator(
    discriminator: Discriminator, fake: Tensor, fake_near: Tensor, *, logits: Tensor | None = None
) -> Tensor:
    """E (D(G(z)) − D(G(z + δ)))², which the discriminator minimises (Zhao et al. 2021, algorithm 2, without λ).

    Args:
        discriminator: images → logits.
        fake: G(z) [N, C, H, W].
        fake_near: G(z + δ), the same shape.
        logits: D(G(z)), where the caller has it already.
    """
    fake = fake.detach()
    return _unlike(discriminator(fake) if logits is None else logits, discriminator(fake_near.detach()))


def zcr_generator(fake: Tensor, fake_near: Tensor) -> Tensor:
    """−E (G(z) − G(z + δ))², which the generator minimises, hence the sign (Zhao et al. 2021, algorithm 2, without λ).

    Args:
        fake: G(z) [N, C, H, W] in about [−1, 1].
        fake_near: G(z + δ), the same shape, of the same noise maps and style mixing, so that only z tells them apart.

    The mean is over N, C, H and W, so that a weight fits any resolution. Images are clipped to [−1, 1] first, which
    keeps the term in [−4, 0]: range that no display shows is not diversity.
    """
    return -(fake.float().clamp(-1, 1) - fake_near.float().clamp(-1, 1)).square().mean()


@dataclass(frozen=True)
class Consistency:
    """Selection of terms, and their weights: by default the papers', found with SNGAN and BigGAN at 32² to 128²."""

    kind: Kind = "none"
    real_weight: float = 10.0
    fake_weight: float = 10.0
    z_discriminator_weight: float = 5.0
    z_generator_weight: float = 0.5
    sigma: float = 0.05
    """Standard deviation of δ in each latent dimension."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, not {self.kind!r}")

    @property
    def needs_transform(self) -> bool:
        """True if the discriminator sees T(x)."""
        return self.kind in ("cr", "bcr", "icr")

    @property
    def needs_near(self) -> bool:
        """True if G(z + δ) is needed, in the discriminator's step and in the generator's."""
        return self.kind in ("zcr", "icr")

    def near(self, z: Tensor) -> Tensor:
        """Return z + δ with δ ~ N(0, σ²): the same shape."""
        return z + self.sigma * torch.randn_like(z)

    def discriminator_term(
        self,
        discriminator: Discriminator,
        transform: Callable[[Tensor], Tensor],
        real: Tensor,
        fake: Tensor,
        fake_near: Tensor | None,
        *,
        real_logits: Tensor,
        fake_logits: Tensor,
        of_fakes: Discriminator | None = None,
    ) -> Tensor:
        """Return the weighted terms that the discriminator adds to its loss: 0-dim, a constant 0 where `kind` is none.

        Args:
            discriminator: images → logits, without the augmentation that trains it: asked to overlook what ADA does to
                images, D would let it leak into fakes.
            transform: T, images → images, random anew at each call.
            real: x [N, C, H, W].
            fake: G(z) [N, C, H, W].
            fake_near: G(z + δ); None unless `needs_near`.
            real_logits: `discriminator(real)`, from this step and with its graph.
            fake_logits: `discriminator(fake)`, likewise.
            of_fakes: the discriminator for fakes, where it depends on their classes; left out: `discriminator`.
        """
        of_fakes = of_fakes or discriminator
        term = real_logits.new_zeros((), dtype=torch.float32)
        if self.needs_transform:
            term = term + self.real_weight * cr(discriminator, real, transform(real), logits=real_logits)
        if self.kind in ("bcr", "icr"):
            fake = fake.detach()
            term = term + self.fake_weight * cr(of_fakes, fake, transform(fake), logits=fake_logits)
        if self.needs_near:
            on_z = zcr_discriminator(of_fakes, fake, _required(fake_near), logits=fake_logits)
            term = term + self.z_discriminator_weight * on_z
        return term

    def generator_term(self, fake: Tensor, fake_near: Tensor | None) -> Tensor:
        """Return the weighted term that the generator adds to its loss: 0-dim, at most 0; a constant 0 without zCR."""
        if not self.needs_near:
            return fake.new_zeros((), dtype=torch.float32)
        return self.z_generator_weight * zcr_generator(fake, _required(fake_near))


def _required(fake_near: Tensor | None) -> Tensor:
    if fake_near is None:
        raise ValueError("zCR needs G(z + δ): sample it where needs_near is true")
    return fake_near
