"""What a Chronos checkpoint says about its tokens and its forecasts: `chronos_config`."""

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from moejax.checks import require_choice, require_positive

Architecture = Literal["shared_then_expert", "expert_only"]


@dataclass(frozen=True, kw_only=True)
class ChronosConfig:
    """Names as published; the values are those of the published checkpoints.

    From `use_moe` on: of the mixture. `expert_capacity`: contexts that an expert takes of a
    training batch. `shared_layers`: decoder blocks that all experts share, None: all of them.
    `head_mode`: experts after the decoder, or on the encoder's positions without any decoder.
    `expert_norm`: the layer norm of "shared_then_expert" heads. `expert_dispatch`: every expert on
    every context, or the parameters of the chosen ones picked for each; "auto" by what is less.
    """

    tokenizer_class: str = "MeanScaleUniformBins"
    tokenizer_kwargs: Mapping[str, float] = field(
        default_factory=lambda: {"low_limit": -15.0, "high_limit": 15.0}, hash=False
    )
    context_length: int = 512
    prediction_length: int = 64
    n_tokens: int = 4096
    n_special_tokens: int = 2
    pad_token_id: int = 0
    eos_token_id: int = 1
    use_eos_token: bool = True
    model_type: Literal["seq2seq", "causal"] = "seq2seq"
    num_samples: int = 20
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    use_moe: bool = False
    num_experts: int = 8
    num_active_experts: int = 2
    expert_capacity: int | None = None
    load_balancing_weight: float = 0.01
    router_hidden_dim: int = 256
    moe_architecture: Architecture = "shared_then_expert"
    shared_layers: int | None = None
    head_mode: Literal["decoder", "encoder"] = "decoder"
    expert_norm: bool = True
    expert_dispatch: Literal["auto", "dense", "indexed"] = "auto"

    def __post_init__(self):
        require_choice("tokenizer_class", self.tokenizer_class, ("MeanScaleUniformBins",))
        require_choice("model_type", self.model_type, ("seq2seq", "causal"))
        sizes = ("context_length", "prediction_length", "n_tokens", "n_special_tokens")
        counts = ("num_samples", "num_experts", "num_active_experts", "router_hidden_dim")
        for name in (*sizes, *counts):
            require_positive(name, getattr(self, name))
        for name in ("pad_token_id", "eos_token_id"):
            if not 0 <= getattr(self, name) < self.n_special_tokens:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must be one of the"
                    f" {self.n_special_tokens} special tokens, 0 to {self.n_special_tokens - 1}"
                )
        if self.n_tokens < self.n_special_tokens + 3:
            raise ValueError(
                f"n_tokens is {self.n_tokens}; {self.n_special_tokens} special tokens and two bins"
                f" need at least {self.n_special_tokens + 3}"
            )
        self._check_mixture()

    def _check_mixture(self):
        require_choice("moe_architecture", self.moe_architecture, Architecture.__args__)
        require_choice("head_mode", self.head_mode, ("decoder", "encoder"))
        require_choice("expert_dispatch", self.expert_dispatch, ("auto", "dense", "indexed"))
        if self.num_active_experts > self.num_experts:
            raise ValueError(
                f"num_active_experts is {self.num_active_experts}; there are only"
                f" {self.num_experts} experts"
            )
        for name in ("expert_capacity", "shared_layers"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))
        if not self.load_balancing_weight >= 0:
            raise ValueError(
                f"load_balancing_weight is {self.load_balancing_weight}; it must be >= 0"
            )

    @classmethod
    def from_fields(cls, found: Mapping[str, Any]) -> "ChronosConfig":
        """Of the fields of a file; unknown ones are left out."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in found.items() if name in known})

    def to_fields(self) -> dict[str, Any]:
        """The published fields, and those of the mixture where there is one."""
        found = asdict(self) | {"tokenizer_kwargs": dict(self.tokenizer_kwargs)}
        names = list(inspect.signature(type(self)).parameters)
        return found if self.use_moe else {n: found[n] for n in names[: names.index("use_moe")]}
