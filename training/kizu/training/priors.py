"""Distributions of the latent z.

Notable here:
- StyleGAN2's mapping divides z by the root of its second moment and so erases its radius. It hardly touches a normal z,
  whose radius is nearly constant; a prior whose radius carries meaning would lose it. `BourgainPrior` therefore puts
  what it knows on a sphere of the radius that the division leaves alone.
- For the same reason a truncated z does little to StyleGAN2, whose truncation is of w. Truncating z is for sampling
  from a trained generator (Brock et al. 2019, section 3.1); a generator trained with it has never seen the rest, and
  its narrower range is no finding about its diversity. Recipes that train with it are refused; `TruncatedPrior` stays
  for generators that were trained so.
- Random numbers are the device's; nothing here waits for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prior(Protocol):
    """A distribution of latents."""

    latent: int
    """Dimensions of z."""

    def sample(self, n: int, device: torch.device | str) -> Tensor:
        """Return n samples: [n, latent]."""
        ...

    def state(self) -> dict[str, Any]:
        """Return plain values and tensors from which `make_prior` makes the same prior."""
        ...


@dataclass
class NormalPrior:
    """z ~ N(0, I)."""

    latent: int

    def sample(self, n: int, device: torch.device | str) -> Tensor:
        """Return n samples: [n, latent]."""
        return torch.randn(n, self.latent, device=device)

    def state(self) -> dict[str, Any]:
        """Return the kind alone."""
        return {"kind": "normal"}


@dataclass
class TruncatedPrior:
    """z ~ N(0, I) with each |z_i| > τ resampled, never clipped (Brock et al. 2019, section 3.1).

    Sampled as Φ⁻¹(u) with u ~ U(Φ(−τ), Φ(τ)), which is the distribution that resampling ends with, without its loop.
    """

    latent: int
    threshold: float = 2.0
    """τ."""

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ValueError(f"threshold must be positive, not {self.threshold}")

    def sample(self, n: int, device: torch.device | str) -> Tensor:
        """Return n samples: [n, latent], all in [−τ, τ]."""
        inside = math.erf(self.threshold / math.sqrt(2))  # Φ(τ) − Φ(−τ)
        # In fp32, u would come too near to 1 for the upper tail.
        u = 0.5 + inside * (torch.rand(n, self.latent, device=device, dtype=torch.float64) - 0.5)
        # The clamp is for the last bit that rounding may put outside.
        quantiles: Tensor = torch.special.ndtri(u)
        return quantiles.clamp(-self.threshold, self.threshold).float()

    def state(self) -> dict[str, Any]:
        """Return kind and τ."""
        return {"kind": "truncated", "threshold": self.threshold}


class BourgainPrior(nn.Module):
    """A mixture of Gaussians whose centres lie to each other as training images do (Xiao et al. 2018, BourGAN).

    Args:
        images: [M, C, H, W] in [−1, 1], at least 2; of more than `most`, that many are sampled: distances cost O(n²).
        latent: dimensions of z, at least 2.
        seed: of the random choices made here. The samples' randomness is the device's.
        sigma: standard deviation of the Gaussians in each dimension of z.
        most: how many images become centres.
        repeats: m, subsets of each size.

    Bourgain's embedding: for j = 1 … K = ⌈log₂ n⌉, `repeats` (m) random subsets that hold each image with probability
    2⁻ʲ; an image's m·K coordinates are its distances to the nearest member of each. They are centred. A subset that
    came out empty gets one random image: no subset, no information.

    From there to z: the coordinates, scaled until the longest is 0.8·R, with R² = latent·(1 − σ²); one coordinate more,
    √(R² − ‖·‖²), which lifts them onto the sphere of radius R and stretches a distance by 5/3 at most; then a random
    rotation into all dimensions, which changes no distance. With its noise, z has a mean square of 1, and the mapping's
    normalisation leaves it as it is. Where the coordinates are more than latent − 1, their principal components stand
    for them.

    Distances are L2 of pixels, on images of at most 32 px. That sees colour, layout and large defects; it is a poor
    measure for parts that lie shifted, of which two good images can be as far apart as good from bad. One image far
    from all others takes the room from them: look at the data first.
    """

    rows: Tensor
    scale: Tensor

    def __init__(
        self, images: Tensor, latent: int, *, seed: int = 0, sigma: float = 0.1, most: int = 4096, repeats: int = 5
    ):
        super().__init__()
        if len(images) < 2 or latent < 2:
            raise ValueError(f"needs 2 images and 2 dimensions, not {len(images)} and {latent}")
        self.latent = latent
        self.sigma = sigma
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(images), generator=generator)[:most].sort().values
        distances = _distances(images[chosen.to(images.device)])
        coordinates = _bourgain(distances, repeats, generator)
        rows = _onto_sphere(coordinates, latent, math.sqrt(latent * (1 - sigma**2)), generator)
        self.register_buffer("rows", rows.float())
        self.register_buffer("scale", _scale(distances, rows, sigma).float())

    def sample(self, n: int, device: torch.device | str) -> Tensor:
        """Return n samples, a random centre plus N(0, σ²) each: [n, latent]."""
        rows = self.rows.to(device)
        centres = rows[torch.randint(len(rows), (n,), device=rows.device)]
        return centres + self.sigma * torch.randn(n, self.latent, device=rows.device)

    def state(self) -> dict[str, Any]:
        """Return kind, centres, scale and σ."""
        return {"kind": "bourgain", "rows": self.rows.cpu(), "scale": self.scale.cpu(), "sigma": self.sigma}

    @classmethod
    def restored(cls, state: dict[str, Any], latent: int) -> BourgainPrior:
        """Restore the prior that gave this state, without its images."""
        prior = cls.__new__(cls)
        nn.Module.__init__(prior)
        prior.latent, prior.sigma = latent, state["sigma"]
        prior.register_buffer("rows", state["rows"])
        prior.register_buffer("scale", state["scale"])
        return prior

    def distance_loss(self, z1: Tensor, z2: Tensor, image1: Tensor, image2: Tensor) -> Tensor:
        """E (log ‖G(z₁) − G(z₂)‖ − log(s·‖z₁ − z₂‖))² (Xiao et al. 2018, equation 3); the paper weights it by 0.1.

        Args:
            z1: [N, latent].
            z2: the same shape, sampled independently.
            image1: G(z1) [N, C, H, W], of the size of the training images.
            image2: G(z2), the same shape.

        s is what makes the loss smallest for a generator that turns each z into its centre's image. (The published code
        takes the maximum of √(d/d_emb) instead. That is a length only by chance, and on images of low contrast asks for
        fakes many times as far apart as real images are.)

        Images are measured as the training images were. Squares have 10⁻⁶ added, so that neither pairs that coincide
        nor their gradients leave the finite.
        """
        of_images = (_small(image1) - _small(image2)).flatten(1).square().sum(1)
        of_latents = self.scale.square() * (z1 - z2).float().square().sum(1)
        return (0.5 * (torch.log(of_images + 1e-6) - torch.log(of_latents + 1e-6))).square().mean()


def _small(images: Tensor, side: int = 32) -> Tensor:
    """Images [N, C, H, W], area-averaged to at most `side` pixels per side, in fp32."""
    shrink = max(1.0, max(images.shape[2:]) / side)
    height, width = (max(1, round(s / shrink)) for s in images.shape[2:])
    return F.adaptive_avg_pool2d(images.float(), (height, width))


def _distances(images: Tensor) -> Tensor:
    """Euclidean distances of images [n, C, H, W]: [n, n], fp64, exactly 0 between images that coincide."""
    pixels = _small(images).flatten(1).double()
    distances = torch.cdist(pixels - pixels.mean(0), pixels - pixels.mean(0))
    # By matrix products, which leave about 1e-8 of the images' norm between equal ones.
    return distances.masked_fill(distances <= 1e-6 * distances.max(), 0)


def _bourgain(distances: Tensor, repeats: int, generator: torch.Generator) -> Tensor:
    """Centred distances to the nearest member of random subsets: [n, n] → [n, repeats·⌈log₂ n⌉]."""
    n = len(distances)
    columns = []
    for j in range(1, math.ceil(math.log2(n)) + 1):
        for _ in range(repeats):
            members = (torch.rand(n, generator=generator) < 0.5**j).nonzero()[:, 0]
            if not len(members):
                members = torch.randint(n, (1,), generator=generator)
            columns.append(distances[:, members.to(distances.device)].amin(1))
    coordinates = torch.stack(columns, 1)
    return coordinates - coordinates.mean(0)


def _onto_sphere(coordinates: Tensor, latent: int, radius: float, generator: torch.Generator) -> Tensor:
    """Centred coordinates [n, d] → points of that radius [n, latent]; see `BourgainPrior`."""
    if coordinates.shape[1] > latent - 1:
        components = torch.linalg.svd(coordinates, full_matrices=False).Vh[: latent - 1]
        coordinates = coordinates @ components.T
    longest = coordinates.norm(dim=1).max()
    flat = coordinates * (0.8 * radius / longest.clamp_min(1e-12))
    lift = (radius**2 - flat.square().sum(1, keepdim=True)).sqrt()
    lifted = torch.cat([flat, lift], 1)
    random = torch.randn(latent, lifted.shape[1], generator=generator, dtype=torch.float64)
    rotation: Tensor = torch.linalg.qr(random).Q.T
    return lifted @ rotation.to(lifted.device)


def _scale(distances: Tensor, rows: Tensor, sigma: float) -> Tensor:
    """Geometric mean of image distance / latent distance over pairs of centres whose images differ: 0-dim."""
    of_images = torch.triu(distances, 1)
    of_latents = torch.cdist(rows, rows).square().add(2 * rows.shape[1] * sigma**2).sqrt()
    ratios = (of_images / of_latents)[of_images > 0]
    return ratios.log().mean().exp() if len(ratios) else distances.new_ones(())


def make_prior(
    kind: Literal["normal", "truncated", "bourgain"],
    latent: int,
    *,
    images: Tensor | None,
    threshold: float = 2.0,
    seed: int = 0,
    state: dict[str, Any] | None = None,
) -> Prior:
    """Make the prior of that name.

    Args:
        kind: which.
        latent: dimensions of z.
        images: [M, C, H, W] in [−1, 1], for "bourgain" alone.
        threshold: τ of "truncated".
        seed: of the embedding of "bourgain".
        state: what `Prior.state` gave; takes the place of images and threshold.
    """
    if kind == "normal":
        return NormalPrior(latent)
    if kind == "truncated":
        return TruncatedPrior(latent, state["threshold"] if state else threshold)
    if kind == "bourgain" and state is not None:
        return BourgainPrior.restored(state, latent)
    if kind == "bourgain":
        if images is None:
            raise ValueError("the Bourgain prior is made from training images")
        return BourgainPrior(images, latent, seed=seed)
    raise ValueError(f"kind must be normal, truncated or bourgain, not {kind!r}")
