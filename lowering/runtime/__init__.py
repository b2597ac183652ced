"""Runs a saved Program on a Tenstorrent device: ttnn, numpy and safetensors, nothing else.

    folder = load("program")
    with open_device() as device:
        outputs = Session(folder.program, folder.weights, device).run({"x": window, "mark": mark})

Nothing in the folder is executed: `program.json` is interpreted, and only ops of `lowering.ops.OPS`
are called. `python -m lowering.runtime FOLDER` runs a folder's sample and compares the results.
"""

from lowering.runtime.devices import open_device
from lowering.runtime.executor import Session
from lowering.runtime.folder import Folder, load
from lowering.runtime.metrics import Metrics, compare
from lowering.runtime.pipeline import Pipeline

__all__ = ["Folder", "Metrics", "Pipeline", "Session", "compare", "load", "open_device"]
