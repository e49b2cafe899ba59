"""The frame of the page: from the disk, with a strict policy, and nothing that comes from data is run."""

from __future__ import annotations

from tests.support.explorer_sample import EVIL


def test_opens_from_the_disk(open_page, sample):
    page = open_page(sample.as_uri())
    assert page.inner_text("h1") == page.title() == "scenes_clip on scenes <b>sample</b>"
    assert page.locator("header option").all_inner_texts() == ["TopK, SAE seed0", "TopK, SAE seed1"]
    assert page.evaluate("infoscope.imageName('train', 0)")["id"] == EVIL


def test_policy_refuses_what_is_not_in_the_folder(open_page, sample):
    page = open_page(sample.as_uri())
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))"
    )
    assert page.evaluate("window.ran") is None
    assert open_page.said.pop().startswith("error: Executing inline script violates")


def test_a_folder_that_is_not_whole_is_named(open_page, sample):
    page = open_page(sample.as_uri())
    page.evaluate("infoscope.load('no/such').catch((error) => { document.title = error.message })")
    page.wait_for_function("() => document.title.includes('no/such')")
    assert page.title() == "data/no/such.js cannot be read: was the folder copied whole?"
    assert "ERR_FILE_NOT_FOUND" in open_page.said.pop()
