import jax
import jax.numpy as jnp
import pytest

from train import profile
from train.profile import Step, cost_all
from train.profiles import moe

TINY = moe.Sizes(
    batch=2, length=16, width=16, hidden=24, experts=4, heads=2, rounds=1, dispatches=("gather",)
)


@pytest.fixture(scope="module")
def sections():
    return moe.measure(lambda _: None, TINY)


def test_layer_is_taken_apart(sections):
    router, layer, block = sections
    assert [cost.name for cost in layer.steps] == ["router", "dispatch", "experts", "combine"]
    assert {"logits", "scores and choice"} <= {cost.name for cost in router.steps}
    assert {"attention", "MoE layer"} <= {cost.name for cost in block.steps}
    for section in sections:
        for cost in (*section.steps, section.whole, *section.extra):
            assert cost.seconds > 0, cost.name
    # what the dispatch hands over is what the experts read: rows in order of the experts
    assert layer.steps[1].outputs > 2 * 32 * 16 * 4


def test_cost_counts_a_matmul_and_leaves_out_loops():
    a = jnp.ones((32, 64))

    def loop(a):
        return jax.lax.fori_loop(0, 7, lambda _, x: jnp.sin(x) + a.sum(), a)

    steps = [
        Step(name="product", function=lambda a: a @ a.T, arguments=(a,)),
        Step(name="loop", function=loop, arguments=(a,)),
    ]
    product, loop_cost = cost_all(steps, rounds=1)
    assert product.flops == pytest.approx(2 * 32 * 32 * 64, rel=0.05)
    assert product.arguments == a.nbytes
    assert product.outputs == 32 * 32 * 4
    assert loop_cost.flops is None


def test_reports_are_written(sections, tmp_path):
    paths = profile.write(sections, tmp_path / "deep")
    assert [path.name for path in paths] == [
        "router_profiling_report.md",
        "moe_layer_profiling_report.md",
        "transformer_block_profiling_report.md",
        "consolidated_profiling_report.md",
    ]
    layer = paths[1].read_text()
    for part in ("router", "dispatch", "experts", "combine"):
        assert f"\n| {part} |" in layer
    whole = paths[-1].read_text()
    assert all(f"## {section.title}\n" in whole for section in sections)
    # shares are of the steps and sum to all of them
    shares = [line.split("|")[3].strip() for line in layer.splitlines() if line.startswith("| ")]
    total = sum(float(share[:-1]) for share in shares if share.endswith("%"))
    assert total == pytest.approx(100, abs=0.3)


def test_unknown_suite_suggests_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'moe'"):
        profile.measure("mo")
