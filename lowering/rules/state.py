"""State that lies on the device from run to run, and the cache update that writes it in place."""

from lowering.builder import Builder, logical_dtype
from lowering.graph import Graph, Known
from lowering.ir import TILE, Source, Value
from lowering.rules.context import DECLINED, Context, Operand, expand, lowers
from lowering.rules.shape import slab

UPDATE = "moejax.kv_update"
MOST_SEQUENCES = 64  # each has a core of its own while its cache is written; Wormhole has 64


def add_state(builder: Builder, graph: Graph, env: dict[int, Operand]) -> None:
    """Declare the graph's state, and which nodes may write it in place.

    A cache update may, where nothing else reads the state and its result is the new state.
    """
    readers = graph.readers()
    for name, tensor in graph.state.items():
        env[id(tensor)] = builder.add_state(name, tensor.shape, logical_dtype(tensor.dtype))
        match readers.get(id(tensor)):
            case [node] if node is not None and node.primitive == UPDATE:
                if node.inputs[0] is tensor and node.outputs[0] is graph.kept[name]:
                    builder.in_place.add(id(node))


def keep_state(builder: Builder, graph: Graph, env: dict[int, Operand]) -> None:
    """Copy to its place what is new state and was not written there."""
    for name, tensor in graph.kept.items():
        result = env.get(id(tensor), tensor)
        if isinstance(result, Known):
            result = builder.weight(result.numpy(), result.name or "constant")
        assert isinstance(result, Value)
        if result.name != builder.kept[name]:
            source = Source(primitive="new state")
            builder.emit("copy", (result, builder.values[builder.kept[name]]), source)


@lowers(UPDATE)
def kv_update(ctx: Context, cache, new, start):
    """From the first slot on by ttnn.fill_cache, one slot by paged_update_cache."""
    if not ctx.writes_state:
        return DECLINED
    if isinstance(start, Known):
        return _fill(ctx, cache, new, int(start.numpy()))
    batch, groups, steps, width = new.shape
    if steps != 1:
        raise ctx.fail("several slots from a computed one on; write one, or the first ones")
    if batch > MOST_SEQUENCES or groups > TILE:
        raise ctx.fail(f"at most {MOST_SEQUENCES} sequences of {TILE} key heads can be written")
    slots = expand(ctx, ctx.reshape(start, (1,)), (batch,))
    return ctx.emit("paged_update_cache", cache, ctx.reshape(new, (1, batch, groups, width)), slots)


def _fill(ctx: Context, cache: Operand, new: Operand, start: int) -> Operand:
    """The first slots of each sequence; ttnn writes whole blocks of rows."""
    batch, steps, slots = new.shape[0], new.shape[2], cache.shape[2]
    if start or (steps % TILE and steps != slots):
        raise ctx.fail(f"only the first slots can be filled at once, in multiples of {TILE}")
    for index in range(batch):
        rows = slab(ctx, new, 0, index, index + 1)
        cache = ctx.emit("fill_cache", cache, rows, batch_idx=index)
    return cache
