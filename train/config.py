"""The typed config of a run: nested frozen dataclasses, dotted overrides, JSON both ways."""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Union, cast, get_args, get_origin

from train.optim import OptimConfig
from train.sources import DataConfig
from train.tables import nearest

_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, in what pieces, from which seed.

    An epoch ends with validation and a checkpoint. It is one pass over the data, or
    `steps_per_epoch` steps where that is not 0. `patience`: epochs without a better validation
    score before stopping. `steps_per_call`: training steps in one compiled call, between which
    checkpoints can be written (`checkpoint_seconds` apart). `accumulate`: pieces in which the
    gradient of a batch is taken, to need less memory. `max_skipped`: non-finite steps in a row
    before giving up.
    """

    epochs: int = 10
    batch_size: int = 32
    eval_batch_size: int = 256
    patience: int = 3
    seed: int = 0
    steps_per_epoch: int = 0
    steps_per_call: int = 4096
    accumulate: int = 1
    checkpoint_seconds: float = 60.0
    unroll: int = 1
    max_skipped: int = 20

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            least = 0 if one.name in ("seed", "checkpoint_seconds", "steps_per_epoch") else 1
            if not getattr(self, one.name) >= least:
                raise ValueError(
                    f"loop.{one.name} is {getattr(self, one.name)}; it must be >= {least}"
                )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"loop.batch_size is {self.batch_size}; it must be a multiple of loop.accumulate,"
                f" which is {self.accumulate}"
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that determines a run. `recipe` names the function that made it; `model` and
    `data` are config dataclasses of its system."""

    recipe: str
    model: Any
    data: Any = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)


def keys(config: Any, prefix: str = "") -> list[str]:
    """Dotted names of all values."""
    names = []
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        name = f"{prefix}{one.name}"
        names += keys(value, f"{name}.") if dataclasses.is_dataclass(value) else [name]
    return names


def override(config: Config, settings: Iterable[str]) -> Config:
    """The config with settings `a.b=value` applied together; ValueError for bad keys or values."""
    tree: dict[str, Any] = {}
    known = [name for name in keys(config) if name != "recipe"]
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip()
        if not equals:
            raise ValueError(f"--set {setting!r} has no '='; write --set key=value")
        if name not in known:
            raise ValueError(
                f"unknown config key {name!r}.{_nearest_key(name, known)} Keys: {', '.join(known)}"
            )
        *path, leaf = name.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = text.strip()
    return cast(Config, _merge(config, tree, ""))


def to_json(config: Config) -> str:
    """The config as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_json(text: str, template: Config) -> Config:
    """The config saved as JSON; the template gives types, and values of keys that are absent."""
    saved = json.loads(text)
    unknown = set(saved) - {one.name for one in dataclasses.fields(template)}
    if unknown:
        raise ValueError(f"saved config has unknown sections {sorted(unknown)}")
    return cast(Config, _merge(template, saved, ""))


def config_hash(config: Config) -> str:
    """sha256 of the config's canonical JSON."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def differences(one: Config, other: Config) -> list[str]:
    """'key: a, not b' for every value that differs."""
    a, b = _flat(dataclasses.asdict(one)), _flat(dataclasses.asdict(other))
    return [
        f"{key}: {a.get(key)!r}, not {b.get(key)!r}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def _nearest_key(name: str, known: list[str]) -> str:
    """A hint by value name in another section, by initials (lr), else by spelling."""
    leaf = name.rsplit(".", 1)[-1]
    for key in known:
        value = key.rsplit(".", 1)[-1]
        if leaf in (value, "".join(word[:1] for word in value.split("_"))):
            return f" Did you mean {key!r}?"
    return nearest(name, known)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _merge(config: Any, tree: dict[str, Any], prefix: str) -> Any:
    """A copy of a config dataclass with the values of a nested dict, each coerced to its type."""
    hints = typing.get_type_hints(type(config))
    changed = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if name not in hints:
            raise ValueError(f"unknown config key {path!r}.{nearest(name, hints)}")
        old = getattr(config, name)
        if dataclasses.is_dataclass(old):
            changed[name] = _merge(old, value, f"{path}.")
        else:
            changed[name] = coerce(value, hints[name], path)
    return dataclasses.replace(config, **changed)


def coerce(value: Any, hint: Any, name: str) -> Any:
    """A value from the command line (text) or from JSON as a field's type; ValueError if not."""
    origin, options = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value in options:
            return value
        allowed = ", ".join(map(repr, options))
        raise ValueError(f"{name} is {value!r}; allowed: {allowed}.{nearest(str(value), options)}")
    if origin in (Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        return coerce(value, next(one for one in options if one is not type(None)), name)
    if origin is Mapping:
        pairs = json.loads(value) if isinstance(value, str) else value
        return {key: coerce(one, options[1], f"{name}.{key}") for key, one in pairs.items()}
    if origin is tuple:
        parts = _split(value) if isinstance(value, str) else value
        return tuple(coerce(one, options[0], name) for one in parts)
    return _scalar(value, hint, name)


def _split(text: str) -> list[Any]:
    if text.startswith("["):
        return json.loads(text)
    return [part.strip() for part in text.split(",") if part.strip()]


def _scalar(value: Any, hint: Any, name: str) -> Any:
    if hint is str and isinstance(value, str):
        return value
    if hint is bool:
        found = _WORDS.get(str(value).lower())
        if found is not None:
            return found
    elif hint is int and isinstance(value, float):
        pass
    elif hint in (int, float) and not isinstance(value, bool):
        try:
            return hint(value)
        except (TypeError, ValueError):
            pass
    raise ValueError(f"{name} is {value!r}, which is not {_KINDS.get(hint, hint)}")


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
