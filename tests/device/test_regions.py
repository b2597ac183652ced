"""Every region that a model is made of: its numbers on a card or the simulator."""

import jax
import numpy as np
import pytest

from lowering import lower, parity
from tests.device.runs import Call, Run
from tests.lowering.rules.cases.table import CASES

pytestmark = [pytest.mark.device, pytest.mark.slow, pytest.mark.timeout(0)]

SECTION = "Regions"
GELU = [  # the exact one, which has a kernel of its own in float32
    "moejax.experts_dense-gated_False_bias_False",
    "moejax.experts_dense-gated_False_bias_True",
    "moejax.experts_indexed-gated_False_bias_False,_1_tokens",
    "moejax.experts_indexed-gated_False_bias_True,_4_tokens",
]
NO_KERNEL = dict.fromkeys(GELU, ("float32",))
REGIONS = {str(case): case for case in CASES if case.rule.startswith("moejax.")}


def make_run(policy, name):
    case = REGIONS[name]
    inputs = case.named_inputs()
    program = lower(lambda _, *given: case.function(*given), None, inputs, policy=policy)
    with jax.default_matmul_precision("highest"):
        expected = [np.asarray(leaf) for leaf in jax.tree.leaves(case.function(*case.inputs))]
    call = Call(part="region", inputs=inputs, expected=expected)
    return Run(programs={"region": program}, calls=[call])


@pytest.mark.parametrize("policy", parity.POLICIES)
@pytest.mark.parametrize("name", REGIONS)
def test_numbers(name, policy, measured):
    """P2's thresholds."""
    assert parity.close(measured.pcc, measured.relative_l2, policy), measured
