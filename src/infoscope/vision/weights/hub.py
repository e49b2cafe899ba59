"""The Hugging Face hub's cache, and whether there is a network: asked before the hub's client, which retries long."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlparse

from infoscope.runtime.errors import InputError, get_first_line

_PROBE_S = 3.0


def get_cache_folder() -> Path:
    """Return where the hub's client keeps what it downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def find_cached(repo: str, names: Sequence[str]) -> Path | None:
    """Return the first of these files of a repository that lies in the cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(repo, name) for name in names]
    return next((Path(file) for file in found if isinstance(file, str)), None)


def download(weights: str, get: Callable[[], str | Path], cache_folder: Path, url: str = "") -> Path:
    """Download weights, if the host of a URL (empty: the hub's) answers within seconds.

    Args:
        weights: what they are called, and `cache_folder` where they were looked for: said in the error.
        get: downloads them.

    Raises:
        InputError: if there is no answer, or the download fails.
    """
    _check_network(weights, cache_folder, url)
    try:
        return Path(get())
    except Exception as error:  # of the network or the hub, of every kind
        raise InputError(f"Cannot download the weights {weights}: {get_first_line(error)}.") from error


def _check_network(weights: str, cache_folder: Path, url: str) -> None:
    if not url:
        from huggingface_hub import constants

        url = constants.ENDPOINT
    try:
        socket.create_connection((urlparse(url).hostname or "", 443), timeout=_PROBE_S).close()
    except OSError as error:
        raise InputError(
            f"The weights {weights} are not in the cache ({cache_folder}) and there is no network: give a local file"
            " by model.pretrained=<file>.safetensors, or fill the cache."
        ) from error
