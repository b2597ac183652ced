"""Mixture-of-Experts models as pure Flax Linen modules. The names below are the public ones."""

from moejax.models.mole import Forecast, MoLE, MoLEConfig
from moejax.regions import region

__all__ = ["Forecast", "MoLE", "MoLEConfig", "region"]
