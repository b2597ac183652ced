"""A router's matmul grows columns that are never chosen, so that the top-k needs no padding."""

import pytest

from lowering.passes.topk import NEVER, WIDTH, widen_topk
from tests.lowering.passes.programs import Tiny, names, unchanged


def router(p: Tiny, *, columns: int = 8, bias: bool = False):
    product = p.op("matmul", p.input(5, 12), p.weight(12, columns))
    if bias:
        product = p.op("linear", p.input(5, 12), p.weight(12, columns), p.weight(1, columns))
    return product, p.op("topk", product, k=2, dim=1, largest=True, sorted=True, stable=True)


@pytest.mark.parametrize("bias", [True, False])
def test_a_narrow_router_is_widened(bias):
    p = Tiny()
    _, values = router(p, bias=bias)
    after = unchanged(widen_topk, p.done(values))
    assert names(after) == ["linear", "topk"]
    kernel, columns = (after.arrays[name] for name in after.ops[0].inputs[1:])
    assert kernel.shape == (12, WIDTH)
    assert (columns[0, 8:] == NEVER).all()
    assert not (columns[0, :8] == NEVER).any()


def test_a_wide_router_stays():
    p = Tiny()
    _, values = router(p, columns=WIDTH)
    assert names(unchanged(widen_topk, p.done(values))) == ["matmul", "topk"]


def test_logits_that_others_read_stay():
    p = Tiny()
    logits, values = router(p)
    assert names(unchanged(widen_topk, p.done(values, logits))) == ["matmul", "topk"]
