"""MoLE: a mixture of linear experts for long-term forecasting (Ni et al., AISTATS 2024).

Every expert is a linear map from the input window to the forecast. A router weighs the experts for
each window and, in the published model, for each channel. From the window to the forecast time
stays on the row axis and channels on the column axis, so nothing is transposed. With one expert and
no router a model is its base: DLinear, RLinear or RMLP. Axes: see moejax/shapes.py.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from moejax.checks import require_choice, require_positive, require_probability
from moejax.layers.decompose import DecomposedLinear
from moejax.layers.linear import TimeLinear, TimeMLP
from moejax.layers.mixture import StatsRouter, TimeRouter, mixture
from moejax.layers.revin import RevIN
from moejax.layers.softmax import softmax, top_k_mask
from moejax.moe.losses import load_balance

Base = Literal["dlinear", "rlinear", "rmlp"]
Router = Literal["none", "time", "stats"]


@dataclass(frozen=True, kw_only=True)
class MoLEConfig:
    """Sizes and options of a MoLE; ValueError for values and combinations that mean nothing.

    Router "time" is the published one (calendar features of the window's first step), "stats"
    looks at the window's values, "none" is for a single expert. Fields that only one part reads:
    kernel_size (dlinear), revin (rlinear, rmlp), dropout (rlinear: on its normalised window),
    d_model (rmlp), num_time_features and head_dropout (router "time"), top_k and router_layers
    (router "stats"). `individual` gives every channel projections of its own.
    """

    base: Base = "dlinear"
    seq_len: int = 336
    pred_len: int = 96
    num_channels: int = 7
    num_experts: int = 4
    router: Router = "time"
    num_time_features: int = 4
    kernel_size: int = 25
    individual: bool = False
    revin: bool = True
    d_model: int = 512
    dropout: float = 0.0
    head_dropout: float = 0.0
    top_k: int | None = None
    router_hidden: int | None = None
    router_layers: int = 2
    load_balance_weight: float = 0.0

    def __post_init__(self):
        require_choice("base", self.base, get_args(Base))
        require_choice("router", self.router, get_args(Router))
        require_choice("router_layers", self.router_layers, (2, 3))
        for name in ("seq_len", "pred_len", "num_channels", "num_experts", "num_time_features"):
            require_positive(name, getattr(self, name))
        for name in ("kernel_size", "d_model", "router_width"):
            require_positive(name, getattr(self, name))
        require_probability("dropout", self.dropout)
        require_probability("head_dropout", self.head_dropout)
        self._require_combinations()

    def _require_combinations(self):
        if self.kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size is {self.kernel_size}; a moving average needs an odd one"
            )
        if self.router == "none" and self.num_experts != 1:
            raise ValueError(
                f"num_experts is {self.num_experts} with router 'none'; set num_experts=1, or"
                " router to 'time' or 'stats'"
            )
        needs = {
            "dropout": (self.base == "rlinear", "base 'rlinear'"),
            "head_dropout": (self.router == "time", "router 'time'"),
            "top_k": (self.router == "stats", "router 'stats'"),
            "load_balance_weight": (self.router != "none", "router 'time' or 'stats'"),
        }
        for name, (allowed, need) in needs.items():
            if getattr(self, name) and not allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)} with base {self.base!r} and router"
                    f" {self.router!r}; it needs {need}, or leave it out"
                )
        if self.top_k is not None and not 1 <= self.top_k <= self.num_experts:
            raise ValueError(
                f"top_k is {self.top_k}; it must be 1 to num_experts={self.num_experts}, or None"
            )
        if self.load_balance_weight < 0:
            raise ValueError(f"load_balance_weight is {self.load_balance_weight}; it must be >= 0")

    @property
    def router_width(self) -> int:
        """Hidden size of the router: as published K * C ("time") or 64 ("stats") unless set."""
        if self.router_hidden is not None:
            return self.router_hidden
        return self.num_experts * self.num_channels if self.router == "time" else 64

    @property
    def normalises(self) -> bool:
        """Whether the window goes through RevIN."""
        return self.revin and self.base != "dlinear"


@flax.struct.dataclass
class Forecast:
    """What MoLE returns.

    y [B, P, C]: the forecast. gate [B, K, C]: the experts' weights. aux_loss: a scalar to add to
    the training loss, already weighted.
    """

    y: jax.Array
    gate: jax.Array
    aux_loss: jax.Array


class MoLE(nn.Module):
    """y = restore(sum_k gate_k * expert_k(normalise(x))); DLinear experts do not normalise.

    Shapes: x [B, S, C], mark [B, F] -> Forecast. `mark` holds the calendar features of each
    window's first step; only router "time" reads it. `train` with a dropout needs rng "dropout".
    """

    config: MoLEConfig

    def setup(self):
        config = self.config
        sizes = config.seq_len, config.num_experts * config.pred_len
        channels = config.num_channels if config.individual else None
        if config.base == "dlinear":
            self.experts = DecomposedLinear(*sizes, channels, config.kernel_size)
        else:
            self.experts = TimeLinear(*sizes, channels)
        if config.base == "rmlp":
            self.temporal = TimeMLP(config.seq_len, config.d_model)
        if config.normalises:
            self.revin = RevIN(config.num_channels)
        if config.router != "none":
            self.router = _router(config)
        self.dropout = nn.Dropout(config.dropout)

    def __call__(
        self, x_BSC: jax.Array, mark_BF: jax.Array | None = None, train: bool = False
    ) -> Forecast:
        config = self.config
        _check_inputs(config, x_BSC, mark_BF)
        gate_BKC, aux_loss = self.gate(x_BSC, mark_BF, train)
        if config.normalises:
            stats = self.revin.stats(x_BSC)
            heads_BKPC = self.heads(self.revin.normalise(x_BSC, stats), train)
            y_BPC = self.revin.restore(self.mix(heads_BKPC, gate_BKC), stats)
        else:
            y_BPC = self.mix(self.heads(x_BSC, train), gate_BKC)
        shape = (x_BSC.shape[0], config.num_experts, config.num_channels)
        return Forecast(y=y_BPC, gate=jnp.broadcast_to(gate_BKC, shape), aux_loss=aux_loss)

    def heads(self, window_BSC: jax.Array, train: bool = False) -> jax.Array:
        """Every expert's forecast of a (normalised) window: [B, S, C] -> [B, K, P, C]."""
        config = self.config
        if config.base == "rmlp":
            window_BSC = self.temporal(window_BSC)
        window_BSC = self.dropout(window_BSC, deterministic=not train)
        heads_BQC = self.experts(window_BSC)
        batch, _, channels = heads_BQC.shape
        return heads_BQC.reshape(batch, config.num_experts, config.pred_len, channels)

    def gate(
        self, x_BSC: jax.Array, mark_BF: jax.Array | None, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """(weights [B, K, C], or [B, K, 1] if the channels share them; weighted auxiliary loss)."""
        config = self.config
        if config.router == "none":
            return jnp.ones((x_BSC.shape[0], 1, 1), x_BSC.dtype), jnp.zeros((), x_BSC.dtype)
        if config.router == "time":
            gate_BKC = self.router(mark_BF, train)
            probs_TE = chosen_TE = gate_BKC.swapaxes(1, 2).reshape(-1, config.num_experts)
        else:
            logits_BK, gate_BK = self.router(x_BSC)
            gate_BKC = gate_BK[:, :, None]
            probs_TE = chosen_TE = softmax(logits_BK, axis=-1)
            if config.top_k is not None:
                chosen_TE = top_k_mask(logits_BK, k=config.top_k)
        return gate_BKC, config.load_balance_weight * load_balance(probs_TE, chosen_TE)

    def mix(self, heads_BKPC: jax.Array, gate_BKC: jax.Array) -> jax.Array:
        """The gate's weighted sum of the experts' forecasts: [B, P, C]."""
        if self.config.router == "none":
            return jnp.squeeze(heads_BKPC, axis=1)
        return mixture(heads_BKPC, gate_BKC[:, :, None, :])


def _router(config: MoLEConfig) -> nn.Module:
    if config.router == "time":
        return TimeRouter(
            num_experts=config.num_experts,
            num_channels=config.num_channels,
            num_time_features=config.num_time_features,
            num_hidden=config.router_width,
            head_dropout=config.head_dropout,
        )
    return StatsRouter(
        num_experts=config.num_experts,
        num_channels=config.num_channels,
        num_hidden=config.router_width,
        num_layers=config.router_layers,
        top_k=config.top_k,
    )


def _check_inputs(config: MoLEConfig, x_BSC: jax.Array, mark_BF: jax.Array | None) -> None:
    if x_BSC.ndim != 3:
        raise ValueError(f"x has shape {x_BSC.shape}; expected [batch, seq_len, num_channels]")
    for axis, name in ((1, "seq_len"), (2, "num_channels")):
        if x_BSC.shape[axis] != getattr(config, name):
            raise ValueError(
                f"x has shape {x_BSC.shape}: {name} is {x_BSC.shape[axis]}, but this model has"
                f" {name}={getattr(config, name)}; give it such windows or change its config"
            )
    if config.router != "time":
        return
    expected = (x_BSC.shape[0], config.num_time_features)
    found = None if mark_BF is None else mark_BF.shape
    if found != expected:
        raise ValueError(
            f"mark has shape {found}; router 'time' needs {expected}, [batch, num_time_features]:"
            " the calendar features of each window's first step"
        )


# The published models on the ETT data sets (7 channels, 96 steps ahead), and a tiny one.
SIZES: dict[str, MoLEConfig] = {
    "mole_debug": MoLEConfig(seq_len=24, pred_len=12, num_experts=2, kernel_size=5),
    "mole_dlinear_96": MoLEConfig(base="dlinear", seq_len=96),
    "mole_dlinear_336": MoLEConfig(base="dlinear", seq_len=336),
    "mole_rlinear_96": MoLEConfig(base="rlinear", seq_len=96),
    "mole_rlinear_336": MoLEConfig(base="rlinear", seq_len=336),
    "mole_rmlp_96": MoLEConfig(base="rmlp", seq_len=96),
    "mole_rmlp_336": MoLEConfig(base="rmlp", seq_len=336),
}
