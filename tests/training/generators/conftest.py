"""Small generators for the tests of this folder."""

import pytest
import torch

from kizu.models.stylegan2 import StyleGAN2Config
from kizu.training.augment.ada import AugmentConfig
from kizu.training.data.batches import Batches
from kizu.training.generators.stylegan2_ada import StyleGAN2ADAConfig, StyleGAN2ADAMethod
from kizu.training.loop import LoopSettings, TrainingLoop
from kizu.training.progress import RunLog

QUICK = LoopSettings(checkpoint_seconds=1e9, control_every=1, sample_every=10**9)


@pytest.fixture
def pictures():
    """uint8 [24, 1, 16, 16]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (24, 1, 16, 16), dtype=torch.uint8, generator=generator)


@pytest.fixture
def make_method(pictures):
    """A method for 16-pixel images of two classes, or of none; options are those of `StyleGAN2ADAConfig`."""

    def make(steps=8, classes=2, shape=None, held_out=None, augmentations=None, **options):
        torch.manual_seed(0)
        network = {"latent": 16, "mapping_layers": 2, "capacity": 128, "max_channels": 16} | (shape or {})
        config = StyleGAN2ADAConfig(**({"batch_size": 4, "r1_every": 4, "path_length_every": 2} | options))
        return StyleGAN2ADAMethod(
            StyleGAN2Config(16, 16, 1, classes, **network),
            config,
            augmentations or AugmentConfig(),
            steps * config.batch_size * config.critic_updates / 1000,
            torch.arange(24) % max(1, classes),
            images=pictures,
            held_out=held_out,
        )

    return make


@pytest.fixture
def make_loop(pictures):
    """A loop for a method on `pictures`."""

    def make(method, folder, log=None, settings=QUICK):
        torch.manual_seed(1)
        batches = Batches(pictures, method.config.batch_size, seed=3, labels=method.labels)
        return TrainingLoop(
            method, batches, folder, identity="test", log=log or RunLog(None, quiet=True), settings=settings
        )

    return make
