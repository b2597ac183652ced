"""config.json of T5, Chronos, Chronos-Bolt and Chronos-MoE folders."""

from collections.abc import Mapping
from dataclasses import fields as fields_of
from typing import Any

from moejax.layers.t5 import FeedForward
from moejax.models.chronos import ChronosModelConfig
from moejax.models.chronos2 import Chronos2Config
from moejax.models.chronos_bolt import BoltConfig
from moejax.models.chronos_config import ChronosConfig
from moejax.models.t5 import T5Config

Fields = Mapping[str, Any]
Config = ChronosModelConfig | BoltConfig | Chronos2Config

_FEED_FORWARDS: dict[str, FeedForward] = {"relu": "relu", "gated-gelu": "gated_gelu"}
_NEEDED = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
_BOLT, _TWO = "ChronosBoltModelForForecasting", "Chronos2Model"


def read_t5(found: Fields, dtype: str = "float32") -> T5Config:
    """The sizes of a T5; ValueError for what is missing or not T5."""
    missing = [name for name in _NEEDED if name not in found]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}, which every T5 has")
    kind = found.get("feed_forward_proj", "relu")
    if kind not in _FEED_FORWARDS:
        raise ValueError(
            f"config.json: feed_forward_proj is {kind!r}; choose {' or '.join(_FEED_FORWARDS)}"
        )
    names = {one.name for one in fields_of(T5Config)} - {"feed_forward", "dtype"}
    # null stands for the default of transformers, which is to have as many of both
    values = {name: found[name] for name in names if found.get(name) is not None}
    values.setdefault("num_decoder_layers", values["num_layers"])
    values.setdefault("initializer_factor", 1.0)
    return T5Config(feed_forward=_FEED_FORWARDS[kind], dtype=dtype, **values)


def read_config(found: Fields, has_decoder: bool = True, dtype: str = "float32") -> Config:
    """The whole model; a mixture without a decoder among its tensors is of head mode "encoder"."""
    if "t5" in found:  # a mixture written with its parts side by side
        chronos = found.get("chronos_config", {}) | found.get("moe", {}) | {"use_moe": True}
        found = found["t5"] | {"chronos_config": chronos}
    if not isinstance(found.get("chronos_config"), dict):
        raise ValueError(
            "config.json has no chronos_config, which says how series become tokens: this is a T5,"
            " but no Chronos model. Give chronos=ChronosConfig(...) to use it as one"
        )
    if _TWO in (found.get("architectures") or ()):
        return Chronos2Config.from_fields(read_t5(found, dtype), found)
    if _BOLT in (found.get("architectures") or ()) or "quantiles" in found["chronos_config"]:
        return BoltConfig.from_fields(read_t5(found, dtype), found["chronos_config"])
    chronos = dict(found["chronos_config"])
    if chronos.get("use_moe") and "head_mode" not in chronos:
        chronos["head_mode"] = "decoder" if has_decoder else "encoder"
    return ChronosModelConfig(t5=read_t5(found, dtype), chronos=ChronosConfig.from_fields(chronos))


def write_t5(config: T5Config) -> dict[str, Any]:
    """The fields that transformers reads as the same model."""
    names = {one.name for one in fields_of(T5Config)} - {"feed_forward", "dtype"}
    gated = config.feed_forward == "gated_gelu"
    return {name: getattr(config, name) for name in sorted(names)} | {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "dense_act_fn": "gelu_new" if gated else "relu",
        "is_gated_act": gated,
        "torch_dtype": "float32",
    }


def write_config(config: Config) -> dict[str, Any]:
    """The fields of a whole model; those of a mixture are of our own."""
    if isinstance(config, BoltConfig):
        return write_t5(config.t5) | {
            "architectures": [_BOLT],
            "chronos_pipeline_class": "ChronosBoltPipeline",
            "reg_token_id": 1,
            "chronos_config": config.to_fields(),
        }
    if isinstance(config, Chronos2Config):
        size = config.input_patch_size
        ours = [name for name in config.__dataclass_fields__ if name not in ("t5", "rope_theta")]
        fields = {name: getattr(config, name) for name in ours}
        fields |= {"output_patch_size": size, "input_patch_stride": size}
        return write_t5(config.t5) | {
            "architectures": [_TWO],
            "chronos_pipeline_class": "Chronos2Pipeline",
            "reg_token_id": 1,
            "rope_theta": config.rope_theta,
            "chronos_config": fields | {"quantiles": list(config.quantiles)},
        }
    return write_t5(config.t5) | {"chronos_config": config.chronos.to_fields()}
