"""The Hugging Face hub's cache, and whether there is a network: asked before the hub's client, which retries long."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlparse

_PROBE_S = 3.0


def get_cache_folder() -> Path:
    """Return where the hub's client keeps what it downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def is_offline() -> bool:
    """Whether the hub's client may not use the network (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def is_reachable(url: str = "") -> bool:
    """Whether the host of a URL (empty: the hub's) answers within seconds."""
    if not url:
        from huggingface_hub import constants

        url = constants.ENDPOINT
    parts = urlparse(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 443), timeout=_PROBE_S).close()
    except OSError:
        return False
    return True
