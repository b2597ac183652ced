"""Mixture-of-Experts models as pure Flax Linen modules. The names below are the public ones."""

from moejax.forecasting.chronos.bolt import ChronosBoltPipeline
from moejax.forecasting.chronos.forecaster import ChronosForecaster
from moejax.forecasting.chronos.pipeline import ChronosMoEPipeline, ChronosPipeline
from moejax.forecasting.moirai.forecaster import MoiraiMoEForecaster
from moejax.generation.generate import GenerationConfig, Generator
from moejax.layers.latent_attention import LatentAttentionConfig
from moejax.layers.rope import RopeConfig
from moejax.layers.self_attention import AttentionConfig
from moejax.models.chronos import ChronosModelConfig
from moejax.models.chronos_config import ChronosConfig
from moejax.models.moe_lm import CausalLM, LMConfig, LMOutput, next_token_loss
from moejax.models.moirai_moe import MoiraiMoE, MoiraiMoEConfig, empty_tokens
from moejax.models.mole import Forecast, MoLE, MoLEConfig
from moejax.models.t5 import T5Config
from moejax.moe.balancing import update_router_state
from moejax.moe.block import BlockConfig, MoEBlock
from moejax.moe.config import CapacityConfig, RoutingConfig
from moejax.moe.layer import MoEConfig, MoELayer
from moejax.moe.usage import aux_loss
from moejax.regions import region

__all__ = [
    "AttentionConfig",
    "BlockConfig",
    "CapacityConfig",
    "CausalLM",
    "ChronosBoltPipeline",
    "ChronosConfig",
    "ChronosForecaster",
    "ChronosMoEPipeline",
    "ChronosModelConfig",
    "ChronosPipeline",
    "Forecast",
    "GenerationConfig",
    "Generator",
    "LMConfig",
    "LMOutput",
    "LatentAttentionConfig",
    "MoEBlock",
    "MoEConfig",
    "MoELayer",
    "MoLE",
    "MoLEConfig",
    "MoiraiMoE",
    "MoiraiMoEConfig",
    "MoiraiMoEForecaster",
    "RopeConfig",
    "RoutingConfig",
    "T5Config",
    "aux_loss",
    "empty_tokens",
    "next_token_loss",
    "region",
    "update_router_state",
]
