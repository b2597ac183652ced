"""Published language models, folders of config.json and safetensors <-> LMConfig and variables."""

from moejax.interop.lm.load import load_lm
from moejax.interop.lm.save import save_lm

__all__ = ["load_lm", "save_lm"]
