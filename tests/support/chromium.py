"""The browser that tests open pages in."""

from __future__ import annotations

import shutil

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
"""Debian's Chromium, or Chrome; None: neither is installed."""
MISSING = "there is no Chromium: apt install chromium"
