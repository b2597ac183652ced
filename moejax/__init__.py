"""Mixture-of-Experts models as pure Flax Linen modules. The names below are the public ones."""

from moejax.models.mole import Forecast, MoLE, MoLEConfig
from moejax.moe.balancing import update_router_state
from moejax.moe.block import BlockConfig, MoEBlock
from moejax.moe.config import CapacityConfig, RoutingConfig
from moejax.moe.layer import MoEConfig, MoELayer
from moejax.moe.usage import aux_loss
from moejax.regions import region

__all__ = [
    "BlockConfig",
    "CapacityConfig",
    "Forecast",
    "MoEBlock",
    "MoEConfig",
    "MoELayer",
    "MoLE",
    "MoLEConfig",
    "RoutingConfig",
    "aux_loss",
    "region",
    "update_router_state",
]
