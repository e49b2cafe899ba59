"""The frame of the page: from the disk, with a strict policy, and nothing that comes from data is run."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from urllib.parse import urlencode

import numpy as np

from infoscope.explorer.format import pack, put
from infoscope.explorer.page_files import PAGE
from tests.support.explorer_sample import EVIL


def test_opens_from_the_disk_and_runs_nothing_but_its_own_files(open_page, sample):
    page = open_page(sample.as_uri())
    assert page.inner_text("h1") == page.title() == "scenes_clip on scenes <b>sample</b>"
    assert page.locator("header option").all_inner_texts() == ["TopK, SAE seed0", "TopK, SAE seed1"]
    assert page.evaluate("infoscope.imageName('train', 0)")["id"] == EVIL

    # the policy refuses what is not in the folder
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))"
    )
    assert page.evaluate("window.ran") is None
    assert open_page.said.pop().startswith("error: Executing inline script violates")

    # a folder that is not whole is named
    page.evaluate("infoscope.load('no/such').catch((error) => { document.title = error.message })")
    page.wait_for_function("() => document.title.includes('no/such')")
    assert page.title() == "data/no/such.js cannot be read: was the folder copied whole?"
    assert "ERR_FILE_NOT_FOUND" in open_page.said.pop()

    # another page has the focus at its beginning
    page.get_by_role("link", name="Latent").click()
    page.wait_for_selector(".latent-head")
    assert page.evaluate("document.activeElement.id") == "content"

    # what is chosen of an SAE's latents is not of another's
    page.evaluate("infoscope.go({ selected: '3', box: '0,1,0,1', off: 'latent 3', pair: '3-4' })")
    chosen = ["selected", "box", "off", "pair"]
    assert all(page.evaluate(f"infoscope.state().{name}") for name in chosen)
    assert "selected=3" in page.evaluate("infoscope.address({ view: 'seed0', page: 'overview' })")
    page.locator("header select").select_option("seed1")
    assert [page.evaluate(f"infoscope.state().{name}") for name in chosen] == [""] * 4

    # what was loaded for one is never shown for another
    seen = page.evaluate("""async () => {
      const seen = [], One = ({ name }) => {
        seen.push([name, infoscope.useLoaded(async () => `of ${name}`, [name]).value]);
        return null;
      };
      const root = document.createElement("p");
      for (const name of ["a", "b"]) {
        preact.render(infoscope.html`<${One} name=${name} />`, root);
        while (!seen.some(([one, value]) => one === name && value)) await new Promise(requestAnimationFrame);
      }
      return seen;
    }""")
    assert {tuple(one) for one in seen} == {(n, v) for n in "ab" for v in (None, f"of {n}")}


def test_what_fails_is_said_and_the_rest_lives(open_page, sample):
    page = open_page(sample.as_uri() + "#/latent/3", anew=True)
    page.evaluate("infoscope.RankPlot = () => { throw new Error('of <b>one</b> plot') }; infoscope.go({ latent: 4 })")
    page.wait_for_function("() => document.querySelector('h2').textContent.startsWith('Latent 4')")
    alert = page.locator("[aria-labelledby=by-rank] [role=alert]")
    alert.wait_for()
    assert alert.inner_text().startswith("This part failed (of <b>one</b> plot): the folder is damaged")
    assert page.locator(".pair").count() == 16
    assert page.locator("#removal").count() == 1
    assert page.title().startswith("Latent 4 · ")
    assert page.inner_text("main ~ [role=status]") == "Latent 4"
    assert open_page.said.pop().startswith("error: ")

    # a page that fails says so until another is asked for
    page.evaluate("infoscope.view().columns[0].heading = null; infoscope.view().images = { train: 3 }")
    page.evaluate("infoscope.go({ page: 'image' })")
    page.wait_for_selector("main > .warning")
    assert page.inner_text("main").startswith("This page failed (")
    assert open_page.said.pop().startswith("error: ")
    page.get_by_role("link", name="The overview").click()
    page.wait_for_selector(".slick-row")


def test_an_address_of_nothing_is_said(open_page, sample):
    page = open_page(sample.as_uri() + "#/overview?view=seed7&filter=cds+%3E&brush=a,b&sort=-none&columns=none&x=none")
    page.wait_for_selector(".slick-row")
    assert page.inner_text(".warning").startswith('There is no SAE "seed7" in this explorer: this is TopK, SAE seed0')
    assert page.inner_text(".error").endswith('after ">", but the filter ends. Nothing is filtered.')
    assert page.inner_text("#n-rows") == "300 latents"


# words that every object in JavaScript knows, numbers that are none, and what is text in an address alone
ODD = ["constructor", "__proto__", "<img src=x onerror=alert(1)>", "%ff", "1e999", "0-49999", ","]


def test_an_address_that_somebody_wrote_by_hand_breaks_no_page(open_page, sample):
    page = open_page(sample.as_uri())
    keys = "view other patches side filter sort columns selected x y xScale brush box gamma minimal order pair opacity"
    addresses = []
    for word in ODD:
        every = urlencode(dict.fromkeys([*keys.split(), word], word))
        paths = (f"{path}?{every}" for path in ("overview", "latent/3", "image", "compare"))
        addresses += [word, f"latent/{word}", f"image/{word}/0", f"image/{word}", *paths]
    look = """async (addresses) => {
        const texts = (selector) => [...document.querySelectorAll(selector)].map((one) => one.innerText);
        const shown = [], frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
        for (const address of addresses) {
            location.hash = `#/${address}`;
            do await frame(); while (document.querySelector('main').innerText.length <= 30);
            shown.push([address, texts('main [role=alert]'), texts('.warning')]);
        }
        return shown;
    }"""
    for address, alerts, warnings in page.evaluate(look, addresses):
        assert alerts == [], address
        # "There is no SAE ..." alone, and never a page that failed
        assert all(text.startswith("There is no SAE") for text in warnings), address
    for word in ("abc", "3abc", "1e1", "300"):
        page.evaluate("(word) => { location.hash = `#/latent/${word}` }", word)
        page.wait_for_selector(f"main >> text=There is no latent {word}: this SAE has 300, 0 to 299.")


def test_files_that_are_large_are_kept_for_a_while_alone(open_page, sample, tmp_path):
    folder = tmp_path / "explorer"
    shutil.copytree(sample.parent, folder)
    page = open_page((folder / "index.html").as_uri())
    load = "async (keys) => { for (const key of keys) await infoscope.load(key) }"
    keys = {kind: [f"x/{kind}/{i}" for i in range(60)] for kind in ("latents", "columns")}
    for kind in keys.values():
        for key in kind:
            put(folder, key, "as it was")
        page.evaluate(load, kind)
        for key in kind:
            put(folder, key, "as it is")
    find = "(keys) => Promise.all(keys.map(infoscope.load))"
    ends = [keys["latents"][0], keys["latents"][-1], keys["columns"][0]]
    assert page.evaluate(find, ends) == ["as it is", "as it was", "as it was"]


def test_a_column_of_another_length_is_said(open_page, sample, tmp_path):
    folder = tmp_path / "explorer"
    shutil.copytree(sample.parent, folder)
    put(folder, "seed0/columns/cds", pack(np.zeros(3)))
    page = open_page((folder / "index.html").as_uri())
    page.get_by_text("data/seed0/columns/cds.js is damaged: it has 3 of 300 values.").wait_for()


def test_a_column_that_could_not_be_read_is_asked_for_again(open_page, sample, tmp_path):
    folder = tmp_path / "explorer"
    shutil.copytree(sample.parent, folder)
    file = folder / "data/seed0/columns/n_valid.js"
    file.rename(tmp_path / "aside.js")
    page = open_page((folder / "index.html").as_uri())
    ask = "infoscope.column('seed0', 'n_valid').then(({ values }) => values.length, (error) => error.message)"
    assert page.evaluate(ask) == "data/seed0/columns/n_valid.js cannot be read: was the folder copied whole?"
    assert "ERR_FILE_NOT_FOUND" in open_page.said.pop()
    (tmp_path / "aside.js").rename(file)
    assert page.evaluate(ask) == 300


def test_letters_that_turn_a_line_around_stay_within_their_name(open_page, sample, tmp_path):
    folder = tmp_path / "explorer"
    shutil.copytree(sample.parent, folder)
    names = {i: {"id": "\u202egnp.exe", "label": 1} for i in range(40)}
    put(folder, "sets/train/names/0", names)
    page = open_page((folder / "index.html").as_uri() + "#/latent/3")
    page.wait_for_selector(".pair .image-name bdi:nth-of-type(2)")
    name = page.locator(".pair .image-name").first
    assert name.inner_text() == "\u202egnp.exe (boat)"
    first, second = (name.locator("bdi").nth(i).bounding_box() for i in (0, 1))
    assert first["x"] + first["width"] < second["x"]


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


def test_missing_images_are_counted_from_the_first_page_on_and_not_asked_for(open_page, sample, tmp_path):
    folder = shutil.copytree(sample.parent, tmp_path / "copy", ignore=shutil.ignore_patterns("images"))
    read = lambda key: json.loads((folder / f"data/{key}.js").read_text().split(", ", 1)[1].rstrip(");\n"))  # noqa: E731
    manifest, names = read("manifest"), read("sets/train/names/0")
    manifest["sets"]["train"]["n_missing"] = len(names)
    put(folder, "manifest", manifest)
    put(folder, "sets/train/names/0", {image: {**of, "is_missing": True} for image, of in names.items()})
    page = open_page((folder / "index.html").as_uri())
    told = f"{len(names)} images could not be shown: gone or changed when the explorer was written"
    assert page.inner_text("p.warning").startswith(told)
    page.get_by_role("link", name="Latent").click()
    page.wait_for_function("() => document.querySelectorAll('.pair .missing').length >= 32")  # the console is silent
    assert page.inner_text("p.warning").startswith(told)
