"""Watching activations: sown where asked for, printed by a callback only in debug mode."""

import flax.linen as nn
import jax
import jax.numpy as jnp

COLLECTION = "debug"


def watch(module: nn.Module, report: bool, **values: jax.Array) -> None:
    """Sow [rms, largest magnitude, count of NaN and infinite entries] of each value by its name.

    Only where the collection "debug" is mutable, or with `report`, which prints them too, with the
    module's path, from a host callback. Otherwise nothing is computed.
    """
    if module.is_initializing() or not (report or module.is_mutable_collection(COLLECTION)):
        return
    path = "/".join(module.path)
    for name, value in values.items():
        found = jax.lax.stop_gradient(value.astype(jnp.float32))
        rms = jnp.sqrt(jnp.mean(jnp.square(found)))
        largest, bad = jnp.max(jnp.abs(found)), jnp.sum(~jnp.isfinite(found))
        module.sow(COLLECTION, name, jnp.stack([rms, largest, bad.astype(jnp.float32)]))
        if report:
            text = f"{path}/{name}: rms {{rms:.3g}}, largest {{largest:.3g}}, not finite {{bad}}"
            jax.debug.print(text, rms=rms, largest=largest, bad=bad)
