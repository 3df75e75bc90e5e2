"""Augmentation of a discriminator's inputs, for when there are few images: ADA with its controller, and DiffAugment."""
