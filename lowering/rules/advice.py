"""What to do about primitives that have no rule."""

import difflib
from collections.abc import Iterable

_RANDOM = "draw on the host and pass the numbers as an input, or fix the key when lowering"
_LINALG = "compute it on the host; if it depends on parameters alone, compute it before lowering"
_WINDOW = "use jnp.maximum / jnp.minimum of shifted slices"
_INTEGER = "do index arithmetic on the host, or in floats"
_LOOP = "unroll it in Python, or write it with cumsum or lax.scan of static length"

ADVICE = {
    "conv_general_dilated": "write it as a sum over kernel taps of slices times [in, out] matrices",
    "random_bits": _RANDOM,
    "threefry2x32": _RANDOM,
    "reduce_window_max": _WINDOW,
    "reduce_window_min": _WINDOW,
    "cummax": _LOOP,
    "cummin": _LOOP,
    "cumlogsumexp": _LOOP,
    "pure_callback": "the device cannot call the host; make its result an input",
    "io_callback": "the device cannot call the host; make its result an input",
    "fft": "multiply by constant sine and cosine matrices",
    "erf_inv": "draw normal numbers on the host and pass them as an input",
    **dict.fromkeys(("lu", "qr", "cholesky", "eigh", "svd", "triangular_solve"), _LINALG),
    **dict.fromkeys(
        ("shift_left", "shift_right_arithmetic", "shift_right_logical", "population_count"),
        _INTEGER,
    ),
}


def advice(primitive: str, known: Iterable[str]) -> str:
    """Advice for a primitive without a rule, and the supported ones that are called alike."""
    text = ADVICE.get(primitive, "rewrite it with supported operations")
    near = difflib.get_close_matches(primitive, [name for name in known if "." not in name], n=3)
    alike = f"; supported names like it: {', '.join(near)}" if near else ""
    return f"{text}, or add a rule in lowering/rules{alike}"
