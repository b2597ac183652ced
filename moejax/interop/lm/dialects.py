"""Published config files, read in either spelling.

Files of 2023 to 2025 keep the base of RoPE at the top level, what stretches it under
`rope_scaling` (its kind under `type` or `rope_type`), and say `torch_dtype`; later ones say
`rope_parameters` and `dtype`. The number of experts has three names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moejax.layers.rope import KINDS, RopeConfig

# Other spellings of a field, in the order in which they count.
_SPELLINGS = {
    "dtype": ("dtype", "torch_dtype"),
    "num_experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "num_extra_layers": ("num_nextn_predict_layers", "num_mtp_layers"),
}
# RoPE parameters beside base and kind, by kind: our name, the published one.
_STRETCHES = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_max_len", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        *("factor", "original_max_len", "beta_fast", "beta_slow", "truncate"),
        *("mscale", "mscale_all_dim", "attention_factor"),
    ),
    "longrope": (
        *("factor", "original_max_len", "attention_factor", "short_factors", "long_factors"),
    ),
}
_PUBLISHED_NAMES = {
    "original_max_len": "original_max_position_embeddings",
    "short_factors": "short_factor",
    "long_factors": "long_factor",
}


@dataclass(frozen=True)
class Published:
    """The fields of a config file, and what the architecture takes a missing one to be."""

    fields: Mapping[str, Any]
    defaults: Mapping[str, Any]

    def get(self, name: str) -> Any:
        """A field's value; None where the file says null, or says nothing and has no default."""
        found = [self.fields[one] for one in _SPELLINGS.get(name, (name,)) if one in self.fields]
        if not found:
            return self.defaults.get(name)
        return next((value for value in found if value is not None), None)

    def size(self, name: str, default: int | None = None) -> int:
        """A field that is a whole number >= 0; `default` where it is null or missing."""
        value = self.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"config.json: {name} is {value!r}; it must be a whole number >= 0")
        return value

    def number(self, name: str) -> float:
        """A field that is a number."""
        value = self.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"config.json: {name} is {value!r}; it must be a number")
        return float(value)

    def flag(self, name: str) -> bool:
        """A field that is true or false; false where it is null or missing."""
        value = self.get(name)
        if value not in (None, True, False):
            raise ValueError(f"config.json: {name} is {value!r}; it must be true or false")
        return bool(value)

    def require(self, name: str, allowed: tuple[Any, ...]) -> None:
        """ValueError unless the field has one of these values, or is null or missing."""
        value = self.get(name)
        if value is not None and value not in allowed:
            raise ValueError(
                f"config.json: {name} is {value!r}, which is not implemented; it can be"
                f" {', '.join(map(repr, allowed))}"
            )


def read_rope(published: Published, *, interleaved: bool = False) -> RopeConfig:
    """The rotary positions that a config file asks for."""
    stated = published.get("rope_scaling") or published.get("rope_parameters") or {}
    if not isinstance(stated, Mapping) or any(isinstance(v, Mapping) for v in stated.values()):
        raise ValueError(
            f"config.json: the RoPE parameters are {stated!r}; one set of them for all layers is"
            " what can be read"
        )
    kind = stated.get("rope_type") or stated.get("type") or "default"
    top = {name: published.get(name) for name in ("rope_theta", "partial_rotary_factor")}
    rope = Published({"rope_type": kind} | {k: v for k, v in stated.items() if v is not None}, top)
    rope.require("rope_type", KINDS)
    rope.require("partial_rotary_factor", (1,))
    found = {ours: rope.get(_PUBLISHED_NAMES.get(ours) or ours) for ours in _STRETCHES[kind]}
    if kind != "default":
        _complete(found, kind, published)
    kept: dict[str, Any] = {
        name: tuple(map(float, value)) if name.endswith("factors") else value
        for name, value in found.items()
        if value is not None
    }
    return RopeConfig(kind=kind, base=rope.number("rope_theta"), interleaved=interleaved, **kept)


def _complete(found: dict[str, Any], kind: str, published: Published) -> None:
    """Fill in lengths and factor as they follow from the longest text of the model."""
    longest = published.size("max_position_embeddings")
    if kind == "dynamic":
        found["original_max_len"] = longest
    elif kind != "linear":
        outside = published.get("original_max_position_embeddings")
        found["original_max_len"] = outside or found["original_max_len"] or longest
    if found["factor"] is None and kind in ("yarn", "longrope"):
        found["factor"] = longest / found["original_max_len"]
    if found["factor"] is None:
        raise ValueError(f"config.json: RoPE of type {kind!r} needs a factor; it is missing")


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    """The published RoPE parameters, in the later spelling."""
    values: dict[str, Any] = {
        _PUBLISHED_NAMES.get(ours) or ours: getattr(rope, ours) for ours in _STRETCHES[rope.kind]
    }
    stated = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value is not None
    }
    return {"rope_type": rope.kind, "rope_theta": rope.base, **stated}
