"""The frame of the page: from the disk, with a strict policy, and nothing that comes from data is run."""

from __future__ import annotations

import re
from collections import Counter

from infoscope.explorer.page_files import PAGE
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


def test_an_address_of_nothing_is_said(open_page, sample):
    page = open_page(sample.as_uri() + "#/overview?view=seed7&filter=cds+%3E&brush=a,b&sort=-none&columns=none&x=none")
    page.wait_for_selector(".slick-row")
    assert page.inner_text(".warning").startswith('There is no SAE "seed7" in this explorer: this is TopK, SAE seed0')
    assert page.inner_text(".error").endswith('after ">", but the filter ends. Nothing is filtered.')
    assert page.inner_text("#n-rows") == "300 latents"


def test_a_link_to_a_latent_has_its_group_and_name(open_page, sample):
    page = open_page(sample.as_uri())
    page.wait_for_selector(".slick-row")
    page.evaluate(
        "preact.render(infoscope.html`<${infoscope.LatentLink} view=${infoscope.view()} latent=${3} />`,"
        " document.body.appendChild(document.createElement('p')))"
    )
    link = page.locator("a.latent-link")
    link.get_by_text(EVIL).wait_for()
    assert link.inner_text().split()[0] == "3"
    assert link.locator(".swatch").get_attribute("aria-label").startswith("group ")
    link.click()
    page.wait_for_function("() => infoscope.state().page === 'latent' && infoscope.state().latent === 3")
    assert page.evaluate("document.activeElement.id") == "content"


def test_scripts_share_each_name_once_and_make_no_markup_of_text():
    scripts = {path.name: path.read_text() for path in PAGE.glob("*.js")}
    names = Counter(
        name for text in scripts.values() for name in re.findall(r"^ *infoscope\.(\w+) = ", text, re.MULTILINE)
    )
    assert len(names) > 30
    assert [name for name, n in names.items() if n > 1] == []
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\(.on"
    )
    assert {name: forbidden.findall(text) for name, text in scripts.items() if forbidden.search(text)} == {}
    listed = re.findall(r'src="page/(\w+\.js)"', (PAGE / "index.html").read_text())
    assert sorted(listed) == sorted(scripts)
