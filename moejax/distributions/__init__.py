"""Probability distributions at the end of a network: components, mixtures, and affine maps."""

from moejax.distributions.components import KINDS
from moejax.distributions.distribution import WEIGHTS, Distribution, DistributionConfig

__all__ = ["KINDS", "WEIGHTS", "Distribution", "DistributionConfig"]
