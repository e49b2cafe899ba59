"""Weights in the Hugging Face hub's cache, or downloaded into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from infoscope.runtime.errors import InputError, get_first_line
from infoscope.runtime.hub import is_reachable


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
    if not is_reachable(url):
        raise InputError(
            f"The weights {weights} are not in the cache ({cache_folder}) and there is no network: give a local file"
            " by model.pretrained=<file>.safetensors, or fill the cache."
        )
    try:
        return Path(get())
    except Exception as error:  # of the network or the hub, of every kind
        raise InputError(f"Cannot download the weights {weights}: {get_first_line(error)}.") from error
