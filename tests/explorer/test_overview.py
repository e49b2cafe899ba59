"""The overview: what is brushed, filtered, sorted and saved is what numpy finds in the same columns."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.explorer_sample import EVIL

N = 300


def read(sample: Path, name: str) -> np.ndarray:
    """A column of the first view, as it lies on the disk."""
    text = (sample.parent / f"data/seed0/columns/{name}.js").read_text()
    found = json.loads(text[text.index(",") + 1 : text.rindex(")")])
    packed = found.get("codes", found)
    values = np.frombuffer(base64.b64decode(packed["base64"]), packed["dtype"])
    return np.array(found["texts"])[values] if "texts" in found else values


def order(page, **state) -> list[int]:
    page.evaluate("(state) => infoscope.go(state)", state)
    return page.evaluate("infoscope.order(infoscope.view()).then((rows) => Array.from(rows))")


def wait_for_rows(page, words: str) -> None:
    page.wait_for_function("(words) => document.querySelector('#n-rows')?.textContent === words", arg=words)


def shown_latents(page) -> list[int]:
    rows = page.locator(".slick-row").evaluate_all(
        "(rows) => rows.map((row) => [+row.dataset.row, +row.querySelector('a').textContent])"
    )
    return [latent for _, latent in sorted(rows)]


def test_filters_let_pass_what_numpy_finds(open_page, sample):
    page = open_page(sample.as_uri())
    cds, low, rate, ms, n_valid = (read(sample, name) for name in ("cds", "cds_low", "firing_rate", "ms", "n_valid"))
    group, name, undecided = read(sample, "group"), read(sample, "name"), read(sample, "undecided") == 1
    expected = {
        "cds > 0.1 & rate < 0.01": (cds > 0.1) & (rate < 0.01),
        "cds>.05&&firing_rate<=1%": (cds > 0.05) & (rate <= 0.01),
        "cds < 0.05 or not undecided": (cds < 0.05) | ~undecided,
        "!(cds >= 5e-2)": ~(cds >= 0.05),
        "!(cds >= 0.05) & known(cds)": ~(cds >= 0.05) & ~np.isnan(cds),
        "cds != 0": (cds != 0) & ~np.isnan(cds),
        "undecided & MONO < 0.25": undecided & (ms < 0.25),
        "undecided = false": ~undecided,
        'group = "high"': group == "high",
        "group != high & undecided": (group != "high") & undecided,
        'name ~ "NAME 4"': np.char.find(name, "name 4") >= 0,
        "name ~ 'onerror=\"'": name == EVIL,
        "n_valid = 8 | n_valid = 6": (n_valid == 8) | (n_valid == 6),
        "0.05 < cds_low": low > 0.05,
        "cds_low > support": low > read(sample, "support"),
        "latent >= 290 | latent < 3 & undecided": (np.arange(N) >= 290) | ((np.arange(N) < 3) & undecided),
        "entropy > 1.5 & (rate > 0.1 | rate < 0.0001)": (read(sample, "label_entropy") > 1.5)
        & ((rate > 0.1) | (rate < 0.0001)),
        "": np.ones(N, bool),
        "selected": np.isin(np.arange(N), [3, 17, 40, 41, 42]),
    }
    for text, mask in expected.items():
        text = text.replace("MONO", "monosemanticity")
        found = order(page, filter=text, sort="latent", selected="3,17,40-42")
        assert found == np.flatnonzero(mask).tolist(), text
        assert 0 < len(found) <= N, text


def test_a_filter_that_is_none_is_said_and_the_last_one_holds(open_page, sample):
    page = open_page(sample.as_uri())
    said = {
        "cds >": 'Expected a number or a column of numbers after ">", but the filter ends.',
        "cds > 0.1 rate": 'Expected & or | or the end after "0.1", but found "rate".',
        "lab > 1": 'Expected one column, but "lab" could be label_entropy, label_effect.',
        "(cds > 1": 'Expected ) after "1", but the filter ends.',
        "group > 3": 'Expected =, != or ~ (contains), for group holds text, after "group", but found ">".',
        "cds > 1x": 'Expected a number such as 0.01, 1e-3 or 5%, but found "1x".',
        'name = "x': 'Expected " at the end of the text that begins here.',
        "toString": 'Expected a column, but there is none called "toString": the names are those under Columns.',
        "(" * 3000: 'Expected at most 100 of ! and ( within each other after "(", but found "(".',
        "!" * 3000: 'Expected at most 100 of ! and ( within each other after "!", but found "!".',
        "cds<1&" * 1000: "Expected at most 4000 letters, but there are 6000.",
        "ring > 1": 'Expected a column, but there is none called "ring": did you mean firing_rate?',
    }
    ask = "([text, columns]) => { try { infoscope.parseFilter(text, columns) } catch (error) { return error.message } }"
    names = [("cds", "number"), ("firing_rate", "number"), ("label_entropy", "number"), ("label_effect", "number")]
    columns = [{"name": name, "kind": kind} for name, kind in [*names, ("group", "text"), ("name", "text")]]
    assert {text: page.evaluate(ask, [text, columns]) for text in said} == said

    n = int((read(sample, "cds") > 0.1).sum())
    page.fill("#filter", "cds > 0.1")
    wait_for_rows(page, f"{n} of 300 latents")
    page.fill("#filter", "cds > 0.1 & nothing < 1")
    page.wait_for_selector("#filter-error .error")
    assert page.inner_text("#filter-error .error").startswith('Expected a column, but there is none called "nothing"')
    assert page.inner_text("#filter-error pre").splitlines()[1] == " " * 12 + "^" * 7
    assert page.inner_text("#n-rows") == f"{n} of 300 latents"
    assert page.get_attribute("#filter", "aria-invalid") == "true"


def test_headers_sort_with_unknown_values_last(open_page, sample):
    page = open_page(sample.as_uri())
    page.wait_for_selector(".slick-row")
    cds, group = read(sample, "cds"), read(sample, "group")
    unknown = np.flatnonzero(np.isnan(cds))
    down = np.concatenate([np.argsort(-cds, kind="stable")[: N - len(unknown)], unknown])
    up = np.argsort(cds, kind="stable")
    assert len(unknown) > 10
    assert shown_latents(page)[:15] == down[:15].tolist()

    header = page.locator(".slick-header-column[data-id=cds]")
    assert header.get_attribute("aria-sort") == "descending"
    header.click()
    page.wait_for_function("() => infoscope.state().sort === 'cds'")
    page.wait_for_selector(".slick-header-column[data-id=cds][aria-sort=ascending]")
    assert shown_latents(page)[:15] == up[:15].tolist()
    assert order(page, sort="-cds") == down.tolist()
    assert order(page, sort="cds") == up.tolist()
    assert order(page, sort="-group") == sorted(range(N), key=lambda i: (-ord(group[i][0]), i))

    page.focus(".slick-header-column[data-id=group]")
    page.keyboard.press("Enter")
    page.wait_for_selector(".slick-header-column[data-id=group][aria-sort=ascending]")
    assert shown_latents(page)[:15] == np.argsort(group, kind="stable")[:15].tolist()


def test_ranges_that_are_dragged_or_typed_choose_rows(open_page, sample):
    page = open_page(sample.as_uri())
    cds, rate = read(sample, "cds"), read(sample, "firing_rate")
    page.wait_for_selector(".chart .u-over")
    page.wait_for_selector(".slick-row")
    histogram, scatter = (page.locator(".chart .u-over").nth(i) for i in (0, 1))
    box = histogram.bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 60, steps=3)
    page.mouse.up()
    page.wait_for_function("() => infoscope.state().brush !== ''")
    low, high = map(float, page.evaluate("infoscope.state().brush").split(","))
    inside = (cds >= low) & (cds <= high)
    assert 10 < inside.sum() < 250
    wait_for_rows(page, f"{inside.sum()} of 300 latents")
    assert float(page.get_by_role("spinbutton", name="CDS from").input_value()) == low

    page.get_by_role("spinbutton", name="CDS from").fill("0.05")
    page.get_by_role("spinbutton", name="CDS from").press("Enter")
    inside = (cds >= 0.05) & (cds <= high)
    wait_for_rows(page, f"{inside.sum()} of 300 latents")

    box = scatter.bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.2 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.95 * box["height"], steps=3)
    page.mouse.up()
    page.wait_for_function("() => infoscope.state().box !== ''")
    left, right, bottom, top = map(float, page.evaluate("infoscope.state().box").split(","))
    inside &= (rate >= left) & (rate <= right) & (cds >= bottom) & (cds <= top)
    assert inside.sum() > 3
    wait_for_rows(page, f"{inside.sum()} of 300 latents")
    page.get_by_text("Clear the box").click()
    page.get_by_text("Clear the range").click()
    wait_for_rows(page, "300 latents")


def test_what_is_shown_is_in_the_address(open_page, sample):
    page = open_page(sample.as_uri())
    page.wait_for_selector(".slick-row")
    first, second, third, fourth = shown_latents(page)[:4]
    cells = page.locator(".slick-row .slick-cell.l2")
    cells.nth(0).click()
    cells.nth(3).click(modifiers=["Shift"])
    cells.nth(1).click(modifiers=["Control"])
    wait_for_rows(page, "300 latents, 3 selected")
    chosen = sorted([first, third, fourth])
    page.fill("#filter", "cds > 0.02")
    page.press("#filter", "Enter")
    n = int((read(sample, "cds") > 0.02).sum())
    wait_for_rows(page, f"{n} of 300 latents, 3 selected")
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    wait_for_rows(page, f"{n} of 300 latents, 3 selected")
    assert page.input_value("#filter") == "cds > 0.02"
    assert page.locator(".slick-row[aria-selected=true]").count() == 3
    assert page.evaluate("infoscope.state().selected") == ",".join(map(str, chosen))

    page.evaluate("infoscope.go({ filter: 'cds > 0.1', x: 'mass', sort: 'mass', columns: 'mass,cds' })")
    page.wait_for_function("() => document.querySelectorAll('.slick-header-column').length === 4")
    page.go_back()
    wait_for_rows(page, f"{n} of 300 latents, 3 selected")
    assert page.input_value("#filter") == "cds > 0.02"
    assert page.locator(".slick-header-column").count() > 6

    # the table by keys: one stop, arrows, Space and Enter
    page.evaluate("infoscope.go({ selected: '', filter: '' })")
    wait_for_rows(page, "300 latents")
    page.focus(".slick-viewport-top.slick-viewport-left")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    wait_for_rows(page, "300 latents, 1 selected")
    assert page.evaluate("infoscope.state().selected") == str(second)
    page.keyboard.press("Tab")
    assert not page.evaluate("document.activeElement.closest('.latents .slick-viewport')")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.closest('.latents .slick-viewport') !== null")
    page.keyboard.press("Enter")
    page.wait_for_function("() => infoscope.state().page === 'latent'")
    assert page.evaluate("infoscope.state().latent") == second


def test_files_hold_what_is_chosen(open_page, sample):
    page = open_page(sample.as_uri() + "#/overview?selected=3,17,40-60")
    page.wait_for_selector(".slick-row")
    with page.expect_download() as download:
        page.get_by_text("Save the selection as csv").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_bytes().decode(), newline="")))
    latents = [3, 17, *range(40, 61)]
    assert [int(row["latent"]) for row in rows] == latents
    for name in ("cds", "firing_rate", "ms"):
        values = np.array([float(row[name] or "nan") for row in rows])
        np.testing.assert_array_equal(values, read(sample, name)[latents].astype(float))
    assert [row["name"] for row in rows] == read(sample, "name")[latents].tolist()
    assert [row["undecided"] == "true" for row in rows] == (read(sample, "undecided")[latents] == 1).tolist()
    guard = """(async () => {
      const view = { id: "made", columns: [{ name: "name", kind: "text" }] }, texts = ["=1+1", "@x", "a,\\"b\\"", "-2"];
      const { load } = infoscope;
      infoscope.load = async () => ({ texts, codes: { dtype: "int32", base64: "AAAAAAEAAAACAAAAAwAAAA==" } });
      const text = await (await infoscope.makeCsv(view, [0, 1, 2, 3])).text();
      infoscope.load = load;
      return text;
    })()"""
    assert page.evaluate(guard) == 'latent,name\r\n0,\'=1+1\r\n1,\'@x\r\n2,"a,""b"""\r\n3,\'-2\r\n'

    with page.expect_download() as download:
        page.get_by_text("Save the selection as PNG").click()
    picture = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
    assert picture.shape[1] > 1000
    assert picture.shape[0] > len(latents) * 100
    for rank in range(4):  # the crops of each latent's images
        left = 190 + rank * 240
        assert picture[44 : 44 + 112, left : left + 112].std() > 20
        assert picture[-118:-10, left + 116 : left + 200].std() > 20


LOOK = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const found = parse(getComputedStyle(one).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = {};
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const isSeen = walker.currentNode.data.trim() && element.checkVisibility();
    if (!isSeen || element.closest("button:disabled, option, script")) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))].sort((x, y) => y - x);
    found[element.tagName + "." + element.className] = (a + 0.05) / (b + 0.05);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_and_fit_a_phone(open_page, sample, scheme):
    page = open_page(
        sample.as_uri() + "#/overview?selected=3&filter=latent<9",
        color_scheme=scheme,
        viewport={"width": 390, "height": 844},
    )
    wait_for_rows(page, "9 of 300 latents, 1 selected")
    page.get_by_text("About this explorer").click()
    page.get_by_text("How filters are written").click()
    page.get_by_text("Columns: 14").click()
    found = page.evaluate(LOOK)
    assert len(found) > 12
    assert min(found.values()) > 4.5, min(found.items(), key=lambda item: item[1])
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == {
        "light": "rgb(255, 255, 255)", "dark": "rgb(23, 25, 28)"}[scheme]  # fmt: skip

    page.locator(".slick-viewport-top.slick-viewport-left").evaluate("(one) => { one.scrollLeft = 700 }")
    page.locator(".slick-row").get_by_text(EVIL).wait_for()
    assert page.title() == "scenes_clip on scenes <b>sample</b>"


def test_a_point_of_the_scatter_is_named_and_opens_its_latent(open_page, sample):
    page = open_page(sample.as_uri())
    page.wait_for_selector(".slick-row")
    cds, rate = read(sample, "cds"), np.log10(read(sample, "firing_rate"))
    latent = int(np.nanargmax(cds))
    share = (rate[latent] - rate.min() + np.log10(1.2)) / (np.ptp(rate) + 2 * np.log10(1.2))
    box = page.locator(".chart .u-over").nth(1).bounding_box()
    top = 1 - 1.03 / 1.06  # the largest CDS, 3% of the range below the upper edge
    page.mouse.move(box["x"] + share * box["width"], box["y"] + top * box["height"] + 1)
    assert page.inner_text(".chart .tip").startswith(f"latent {latent}, name {latent % 50}, firing rate ")
    page.mouse.down()
    page.mouse.up()
    page.wait_for_function("() => infoscope.state().page === 'latent'")
    assert page.evaluate("infoscope.state().latent") == latent
