"""A Chronos model as a whole: T5 or the mixture, and what its checkpoint says about forecasts."""

from dataclasses import dataclass

from moejax.models.chronos_config import ChronosConfig
from moejax.models.chronos_moe import ChronosMoE, shared_layers
from moejax.models.t5 import T5, T5Config


@dataclass(frozen=True, kw_only=True)
class ChronosModelConfig:
    """Both configs, which must agree on the tokens."""

    t5: T5Config
    chronos: ChronosConfig

    def __post_init__(self):
        if self.chronos.n_tokens > self.t5.vocab_size:
            raise ValueError(
                f"n_tokens is {self.chronos.n_tokens}, but the model has a vocabulary of"
                f" {self.t5.vocab_size}"
            )
        if self.chronos.model_type != "seq2seq":
            raise ValueError(
                f"model_type is {self.chronos.model_type!r}; of the tokenizer alone that is fine,"
                " but models must be 'seq2seq'"
            )
        shared_layers(self.t5, self.chronos)

    def module(self) -> T5 | ChronosMoE:
        """The Linen module."""
        if self.chronos.use_moe:
            return ChronosMoE(self.t5, self.chronos)
        return T5(self.t5)
