"""A real browser for the tests of the explorer's pages: Debian's Chromium; they are skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.chromium import CHROMIUM, MISSING
from tests.support.explorer_sample import write_sample


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


@pytest.fixture
def open_page(browser) -> Iterator[Callable]:
    """Open an address and return Playwright's page; a test fails if its console said anything or a script failed."""
    said, contexts = [], []

    def open_(address: str, **options):
        context = browser.new_context(**options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.goto(address)
        page.wait_for_selector("main, noscript, table")
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
