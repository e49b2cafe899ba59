"""The page itself: its scripts, styles and libraries, copied beside the data that they show."""

from __future__ import annotations

import hashlib
import html
import shutil
from pathlib import Path
from string import Template

PAGE = Path(__file__).parent / "page"


def write_page(folder: Path, title: str) -> Path:
    """Copy the page into the explorer's folder and return its index.html.

    Args:
        title: of the page; any text.
    """
    shutil.copytree(PAGE, folder / "page", ignore=shutil.ignore_patterns("index.html"), dirs_exist_ok=True)
    # styles that the table makes for its columns carry this word; scripts can come from files alone
    nonce = hashlib.sha256(title.encode()).hexdigest()[:24]
    index = folder / "index.html"
    text = Template((PAGE / "index.html").read_text(encoding="utf-8"))
    index.write_text(text.substitute(title=html.escape(title), nonce=nonce), encoding="utf-8")
    return index
