"""A real browser for the tests of the explorer's pages: Debian's Chromium; they are skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.chromium import CHROMIUM, MISSING
from tests.support.explorer_sample import write_sample

NOTHING = "There is no page of this name"


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """One browser for all tests of a process."""
    if CHROMIUM is None:
        pytest.skip(MISSING)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def kept() -> dict:
    """The page of the sample that tests share, and what takes what consoles say."""
    return {}


@pytest.fixture
def open_page(browser, sample: Path, kept: dict) -> Iterator[Callable]:
    """Open an address and return Playwright's page; a test fails if its console said anything or a script failed.

    A new page costs a second of processor time. So that of the sample is kept, and the next test takes it to another
    address; with options, or `anew=True` for a test that changes the scripts, a page is a new one.
    """
    said, contexts = [], []
    kept["said"] = said

    def make(address: str, **options):
        context = browser.new_context(**options)
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.on("console", lambda message: kept["said"].append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: kept["said"].append(f"error: {error}"))
        page.goto(address)
        page.wait_for_selector("main, noscript, table")
        return page

    def open_(address: str, *, anew: bool = False, **options):
        of_sample = f"{sample.as_uri()}#/"
        if anew or options or not f"{address}#/".startswith(of_sample):
            page = make(address, **options)
            contexts.append(page.context)
            return page
        page = kept["page"] = kept.get("page") or make(f"{of_sample}nothing")
        page.mouse.move(0, 0)
        page.goto(f"{of_sample}nothing")  # what parts of a page remember beside the address is gone
        page.wait_for_selector(f"main >> text={NOTHING}")
        page.goto(address)
        page.wait_for_selector(f"main:not(:has-text('{NOTHING}'))")
        return page

    open_.said = said  # a test that expects something to be said takes it away
    yield open_
    for context in contexts:
        context.close()
    assert not said, said


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Path:
    """The index.html of an explorer of invented latents, which tests only read."""
    return write_sample(tmp_path_factory.mktemp("explorer"))
