"""config.json of MOIRAI-MoE checkpoints, and the names of distributions in it.

Names are looked up in a table; nothing is imported by them.
"""

import re
import warnings
from collections.abc import Mapping
from typing import Any

from moejax.distributions import DistributionConfig
from moejax.models.moirai_moe import MoiraiMoEConfig

Fields = dict[str, Any]

# ours -> (module, class) of the published package
CLASSES = {
    "student_t": ("student_t", "StudentTOutput"),
    "normal": ("normal", "NormalOutput"),
    "normal_fixed_scale": ("normal", "NormalFixedScaleOutput"),
    "negative_binomial": ("negative_binomial", "NegativeBinomialOutput"),
    "log_normal": ("log_normal", "LogNormalOutput"),
    "laplace": ("laplace", "LaplaceOutput"),
    "laplace_fixed_scale": ("laplace", "LaplaceFixedScaleOutput"),
    "pareto": ("pareto", "ParetoOutput"),
}
MIXTURE = ("mixture", "MixtureOutput")
FIXED_SCALE = 1e-3
# a published field -> (ours, what it must be)
FIELDS: dict[str, tuple[str, type]] = {
    "d_model": ("d_model", int),
    "d_ff": ("d_ff", int),
    "num_layers": ("num_layers", int),
    "max_seq_len": ("max_seq_len", int),
    "dropout_p": ("dropout", float),
    "attn_dropout_p": ("attention_dropout", float),
    "scaling": ("scaling", bool),
}
# settings that published checkpoints cannot say, in a field of our own
EXTENSION = "moejax"
OPTIONS: dict[str, type] = {
    "routing": str,
    "num_experts": int,
    "top_k": int,
    "num_shared_experts": int,
}
_TARGET = re.compile(r"uni2ts\.distribution\.(?:(\w+)\.)?(\w+)")


def read_config(fields: Mapping[str, Any]) -> MoiraiMoEConfig:
    """The config of a config.json; ValueError that lists what is missing or of the wrong kind."""
    known = {*FIELDS, "patch_sizes", "distr_output"}
    missing = sorted(known - fields.keys())
    if missing:
        raise ValueError(
            f"config.json lacks {', '.join(missing)}; a MOIRAI-MoE checkpoint has"
            f" {', '.join(sorted(known))}"
        )
    unknown = sorted(name for name in fields.keys() - known - {EXTENSION} if name[0] != "_")
    if unknown:
        text = f"config.json has fields that MOIRAI-MoE does not know: {', '.join(unknown)}"
        warnings.warn(text, UserWarning, stacklevel=2)
    ours = {name: _value(theirs, fields[theirs], kind) for theirs, (name, kind) in FIELDS.items()}
    patches = fields["patch_sizes"]
    if not isinstance(patches, list | tuple):
        raise ValueError(f"patch_sizes of config.json is {patches!r}; it must be a list of numbers")
    ours["patch_sizes"] = tuple(_value("patch_sizes", size, int) for size in patches)
    ours["distribution"] = read_distribution(fields["distr_output"])
    return MoiraiMoEConfig(**ours, **_read_options(fields.get(EXTENSION, {})))


def write_config(config: MoiraiMoEConfig) -> Fields:
    """The fields of config.json; those of our own only where a published model has no words."""
    fields: Fields = {theirs: getattr(config, ours) for theirs, (ours, _) in FIELDS.items()}
    fields["patch_sizes"] = list(config.patch_sizes)
    fields["distr_output"] = write_distribution(config.distribution)
    published = MoiraiMoEConfig()
    options = {name: getattr(config, name) for name in OPTIONS}
    if any(value != getattr(published, name) for name, value in options.items()):
        fields[EXTENSION] = options
    return dict(sorted(fields.items()))


def read_distribution(tree: Any) -> DistributionConfig:
    """The distribution of a tree of `_target_` names, each with or without its module."""
    if _class(tree) != MIXTURE:
        kind, scale = _component(tree)
        return DistributionConfig(components=(kind,), fixed_scales=scale, mixture=False)
    components = tree.get("components")
    if not isinstance(components, list | tuple) or not components:
        raise ValueError(f"a mixture's components are {components!r}; it must be a list of them")
    _refuse(tree, {"components"})
    kinds, scales = zip(*map(_component, components), strict=True)
    return DistributionConfig(components=kinds, fixed_scales=sum(scales, ()))


def write_distribution(config: DistributionConfig) -> Fields:
    """The tree of a distribution, names with their modules."""

    def component(index: int) -> Fields:
        module, name = CLASSES[config.components[index]]
        fields: Fields = {"_target_": f"uni2ts.distribution.{module}.{name}"}
        if config.components[index].endswith("_fixed_scale"):
            fields["scale"] = config.fixed_scale(index)
        return fields

    parts = [component(index) for index in range(len(config.components))]
    if not config.mixture:
        return parts[0]
    return {"_target_": "uni2ts.distribution.{}.{}".format(*MIXTURE), "components": parts}


def _component(tree: Any) -> tuple[str, tuple[float, ...]]:
    """(kind, its fixed scale if it has one)."""
    found = _class(tree)
    if found == MIXTURE:
        raise ValueError("distr_output has a mixture within a mixture; a mixture holds components")
    kind = next(kind for kind, name in CLASSES.items() if name == found)
    if not kind.endswith("_fixed_scale"):
        _refuse(tree, set())
        return kind, ()
    _refuse(tree, {"scale"})
    return kind, (_value("scale", tree.get("scale", FIXED_SCALE), float),)


def _class(tree: Any) -> tuple[str, str]:
    """(module, class) that a tree's `_target_` names; ValueError if it is not in the table."""
    target = tree.get("_target_") if isinstance(tree, Mapping) else None
    known = {name: (module, name) for module, name in (*CLASSES.values(), MIXTURE)}
    match = _TARGET.fullmatch(target) if isinstance(target, str) else None
    if match is None or match[2] not in known or match[1] not in (None, known[match[2]][0]):
        raise ValueError(
            f"distr_output of config.json names {target!r}; known are uni2ts.distribution.<name>,"
            f" its module in between or not, of {', '.join(known)}"
        )
    return known[match[2]]


def _refuse(tree: Mapping[str, Any], allowed: set[str]) -> None:
    unknown = sorted(tree.keys() - allowed - {"_target_"})
    if unknown:
        raise ValueError(f"{tree['_target_']} of config.json has unknown {', '.join(unknown)}")


def _read_options(options: Any) -> dict[str, Any]:
    if not isinstance(options, Mapping) or options.keys() - OPTIONS:
        raise ValueError(
            f"{EXTENSION} of config.json is {options!r}; it may hold {', '.join(OPTIONS)}"
        )
    return {name: _value(name, value, OPTIONS[name]) for name, value in options.items()}


def _value(name: str, value: Any, kind: type) -> Any:
    """A value that is of the kind (a whole number may stand for a real one)."""
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} of config.json is {value!r}; it must be of type {kind.__name__}")
    return value
