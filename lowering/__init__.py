"""Lower JAX functions to Tenstorrent ttnn programs, and prove that they compute the same.

    lowering.export(apply, params, {"x": x}, "program")     a folder with code, weights, report
    lowering.lower(apply, params, {"x": x})                 the Program alone
    lowering.parity.assert_parity(apply, params, {"x": x})  for tests

`lowering.runtime` runs a program without jax, so nothing here is imported before it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowering.api import lower
    from lowering.errors import LoweringError
    from lowering.exporter import export
    from lowering.ir import Program

_PLACES = {
    "LoweringError": "lowering.errors",
    "Program": "lowering.ir",
    "export": "lowering.exporter",
    "lower": "lowering.api",
}
__all__ = ["LoweringError", "Program", "export", "lower"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
