"""Screenshots of an explorer's pages, as the README has them.

    infoscope stage=predict                  # so that the image page has predictions
    infoscope stage=explore
    python experiments/explorer_screenshots.py outputs/artifacts/explore/NAME FOLDER

Needs Playwright (`pip install playwright`) and a Chromium on the path; nothing is downloaded. An address behind the
places, such as `latent=latent/123`, shows something else under that name.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from infoscope.runtime.errors import InputError

PAGES = {
    "overview": "overview?filter=cds+>+0.05+%26+rate+>+0.001&selected=123",
    "latent": "latent/123",
    "image": "image/train/12?patches=4%2C5-8%2C7",
    "compare": "compare?other=seed1",
    "phone": "latent/123",
}
"""Name of the file: what is shown, as it stands behind "#/" in the address."""
WINDOW, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 860}
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
QUALITY = 85
"""Of WebP, in which a page takes 60 kB."""


@contextmanager
def open_chromium() -> Iterator[Any]:
    """Give Playwright's browser.

    Raises:
        InputError: there is no Chromium or no Playwright.
    """
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        raise InputError("Expected Chromium to take screenshots with, found none: apt install chromium.")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise InputError("Screenshots need Playwright, which is not installed: pip install playwright.") from None
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])


def take_screenshots(browser: Any, index: Path, folder: Path, pages: dict[str, str]) -> list[Path]:
    """Save a picture of each page, once all of it that is in the window is there, and return the files.

    Args:
        browser: Playwright's.
        index: an explorer's index.html.
        pages: name of the file -> what is shown, behind "#/".
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, address in pages.items():
        page = browser.new_page(viewport=PHONE if name == "phone" else WINDOW, color_scheme="light")
        page.goto(f"{index.resolve().as_uri()}#/{address}")
        page.wait_for_selector("main h2")
        page.wait_for_load_state("networkidle")
        files.append(folder / f"{name}.webp")
        Image.open(BytesIO(page.screenshot())).save(files[-1], quality=QUALITY)
        page.close()
    return files


def main(arguments: list[str]) -> int:
    """Take the screenshots and return the exit code."""
    places = [one for one in arguments if "=" not in one]
    own = dict(one.split("=", 1) for one in arguments if "=" in one)
    try:
        if len(places) != 2 or own.keys() - PAGES.keys():
            raise InputError(f"Expected EXPLORER FOLDER, then {', '.join(PAGES)} as NAME=ADDRESS, got {arguments}.")
        index = Path(places[0]) / "index.html"
        if not index.is_file():
            raise InputError(f"Expected an explorer's folder, got {places[0]}: make one with infoscope stage=explore.")
        with open_chromium() as browser:
            print(*take_screenshots(browser, index, Path(places[1]), {**PAGES, **own}), sep="\n")
    except InputError as error:
        print(f"explorer_screenshots: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
