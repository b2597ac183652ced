"""Folders of published models: on this machine, or downloaded from the Hugging Face hub by id."""

import re
from pathlib import Path

PATTERNS = ("config.json", "*.safetensors", "*.safetensors.index.json")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def model_folder(source: str | Path, *, revision: str | None = None) -> Path:
    """The folder itself where there is one; else that of the hub's model with this id, downloaded
    into the hub's own cache (config.json and safetensors alone).

    ValueError for what is neither, without the extra `hub`, and where the download fails.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if not isinstance(source, str) or not _ID.fullmatch(source):
        raise ValueError(
            f"{str(source)!r} is neither a folder nor a hub id such as 'owner/name'; give one"
        )
    instead = "; or download it elsewhere and give the folder with config.json and its safetensors"
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise ValueError(
            f"there is no folder {source!r}; to download a model by its hub id, install the extra"
            f" `hub`: pip install 'moejax[hub]'{instead}"
        ) from error
    try:
        path = snapshot_download(source, revision=revision, allow_patterns=list(PATTERNS))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"there is no folder {source!r}, and the hub's model of that id cannot be had"
            f" ({reason}). Check the id and the network{instead}"
        ) from error
    return Path(path)
