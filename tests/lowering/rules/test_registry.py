"""The tables agree: rules have cases, ops have a reference, regions have a rule or a reason."""

import inspect
import pkgutil

import moejax.layers
import moejax.moe
from lowering.backends.definitions import REFERENCE
from lowering.ops import OPS
from lowering.rules import RULES
from moejax.regions import all_regions
from tests.lowering.rules.cases.table import CASES, TRACED

# regions without a device rule: their body is lowered operation by operation
BODY_ONLY = {
    "moejax.channel_time_linear": "one batched product of the weights: nothing to fuse",
    "moejax.embedding": "the gather rule knows it",
    "moejax.swiglu": "four programs by the passes that fuse silu into a product",
    "moejax.revin_norm": "multiply-adds that the fusing passes find",
    "moejax.stats_router": "a chain of regions that have rules",
    "moejax.time_router": "a chain of regions that have rules",
    "moejax.top_k_mask": "topk and comparisons, as written",
    "moejax.top_k_softmax": "a chain of regions that have rules",
    "moejax.packed_scale": "sums over axes that are kept; a product would cut them to TF32",
    "moejax.standardise": "two ops",
}


def regions_of_the_layers() -> set[str]:
    for package in (moejax.layers, moejax.moe):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            __import__(module.name)
    return {name for name in all_regions() if name.startswith("moejax.")}


def test_every_rule_has_a_case():
    covered = {case.rule for case in CASES}
    assert not RULES.keys() - covered


def test_every_case_names_a_rule():
    known = RULES.keys() | TRACED | BODY_ONLY.keys() | {"function"}
    assert not {case.rule for case in CASES} - known


def test_every_region_has_a_rule_or_a_reason():
    regions = regions_of_the_layers()
    with_rule = {name for name in RULES if name.startswith("moejax.")}
    assert not regions - with_rule - BODY_ONLY.keys()
    assert not with_rule & BODY_ONLY.keys()


def test_rules_take_the_attributes_of_their_regions():
    for name, region in all_regions().items():
        if name in RULES:
            attrs = [
                p.name
                for p in inspect.signature(region.function).parameters.values()
                if p.kind is p.KEYWORD_ONLY
            ]
            accepted = inspect.signature(RULES[name]).parameters
            assert set(attrs) <= set(accepted), name


def test_every_op_has_a_reference():
    assert REFERENCE.keys() == OPS.keys()
