"""Published language models <-> our config and variables: folders of config.json and safetensors."""

from moejax.interop.lm.load import load_lm

__all__ = ["load_lm"]
