"""The image page against the sample's numbers: patches by mouse, finger and keys, maps, the other crop, predictions."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infoscope.explorer.format import pack, pack_maps
from tests.support.explorer_sample import EVIL, GRID, SHIFT

ROWS = """() => [...document.querySelectorAll(".patch-latents tbody tr[data-latent]")].map((row) => {
    const cells = [...row.querySelectorAll("td[data-column]")];
    const values = cells.map((cell) => [cell.dataset.column, Number.parseFloat(cell.textContent)]);
    return { latent: Number(row.dataset.latent), ...Object.fromEntries(values) };
})"""
MAP = """(crop) => {
    const canvas = document.querySelectorAll(".patch-picker canvas")[crop - 1];
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return [...pixels].filter((_, i) => i % 4 === 3).map((alpha) => alpha > 0);
}"""

DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"


def read_image(sample: Path, image: int) -> dict[str, Any]:
    text = (sample.parent / f"data/seed0/images/train-{image}.js").read_text(encoding="ascii")
    return json.loads(text.split(", ", 1)[1].removesuffix(");\n"))


def unpack(packed: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["base64"]), packed["dtype"])


def read_crops(sample: Path, image: int) -> list[dict[int, np.ndarray]]:
    """{latent: its map} of the whole image, crop 1 and crop 2."""
    found = []
    for crop in read_image(sample, image)["crops"]:
        packed, maps = crop["maps"], np.zeros((crop["maps"]["n"], GRID * GRID))
        which = np.repeat(np.arange(packed["n"]), unpack(packed["counts"]))
        maps[which, unpack(packed["places"])] = unpack(packed["values"]) / 65535 * packed["scale"]
        found.append(dict(zip(crop["latents"], maps.reshape(-1, GRID, GRID), strict=True)))
    return found


def open_image(open_page, sample: Path, address: str = "#/image/train/1", **options):
    page = open_page(sample.as_uri() + address, **options)
    page.wait_for_selector(".patch-latents tbody tr")
    return page


def find_patch(page, crop: int, row: int, column: int) -> tuple[float, float]:
    box = page.locator(".patch-picker").nth(crop - 1).bounding_box()
    return box["x"] + (column + 0.5) / GRID * box["width"], box["y"] + (row + 0.5) / GRID * box["height"]


def check_rows(page, crops: list[dict[int, np.ndarray]], rows: slice, columns: slice) -> None:
    """The table against means over a box of crop 1, of which crop 2 shows the part that is shifted by one patch."""
    shared = slice(max(rows.start, SHIFT), rows.stop), slice(max(columns.start, SHIFT), columns.stop)
    moved = tuple(slice(one.start - SHIFT, one.stop - SHIFT) for one in shared)
    zero, expected = np.zeros((GRID, GRID)), {}
    for latent in {*crops[1], *crops[2]}:
        own, other = (crops[crop].get(latent, zero) for crop in (1, 2))
        one, two = own[shared].mean(), other[moved].mean()
        if own[rows, columns].any() or two > 0:
            expected[latent] = {
                "mean": own[rows, columns].mean(),
                "peak": own[rows, columns].max(),
                "one": one,
                "two": two,
                "difference": two - one,
            }
    found = page.evaluate(ROWS)
    assert {row["latent"] for row in found} == set(expected)
    assert [row["mean"] for row in found] == sorted((row["mean"] for row in found), reverse=True)
    for row in found:
        for name, value in expected[row["latent"]].items():
            assert row[name] == pytest.approx(value, rel=6e-3, abs=1e-6), (row["latent"], name)


def test_a_click_and_a_drag_list_what_fires_there_in_both_crops(open_page, sample):
    page = open_image(open_page, sample)
    page.mouse.click(*find_patch(page, 1, 3, 4))
    page.wait_for_url(re.compile(r"patches=3%2C4"))
    assert page.inner_text(".patch-said").startswith("Row 4, column 5 of crop 1: ")
    check_rows(page, read_crops(sample, 1), slice(3, 4), slice(4, 5))
    boxes = page.eval_on_selector_all(
        ".chosen.over", "(all) => all.map((one) => [one.x, one.y].map((n) => n.baseVal.value))"
    )
    assert boxes == [[4, 3], [4 - SHIFT, 3 - SHIFT]]  # the same place of the image
    page.mouse.click(*find_patch(page, 1, 0, 0))
    page.wait_for_selector("text=Crop 2 does not show this patch")

    # a drag chooses a box, and its part outside of the other crop is told
    page.mouse.move(*find_patch(page, 1, 4, 6))
    page.mouse.down()
    page.mouse.move(*find_patch(page, 1, 2, 3))
    page.mouse.move(*find_patch(page, 1, 0, 2))
    page.mouse.up()
    page.wait_for_url(re.compile(r"patches=4%2C6-0%2C2"))
    assert page.inner_text(".patch-said").startswith("Rows 1 to 5, columns 3 to 7 of crop 1: ")
    assert "Crop 2 does not show 5 of these 25 patches" in page.inner_text(".patch-found")
    check_rows(page, read_crops(sample, 1), slice(0, 5), slice(2, 7))
    page.locator("thead button", has_text=re.compile("crop 2 . crop 1")).click()
    sizes = [abs(row["difference"]) for row in page.evaluate(ROWS)]
    assert sizes == sorted(sizes, reverse=True)


def test_keys_move_and_extend_and_are_told(open_page, sample):
    page = open_image(open_page, sample, "#/image/train/1?patches=3%2C4")
    page.locator(".image-chooser .skip").press("Enter")
    assert page.evaluate("document.activeElement.className") == "image-title"
    page.locator(".patch-picker").first.focus()
    for key in ("ArrowDown", "ArrowLeft", "Shift+ArrowUp", "Shift+ArrowRight"):
        page.keyboard.press(key)
    page.wait_for_url(re.compile(r"patches=4%2C3-3%2C4"))
    said = page.locator("[role=status].patch-said")
    assert said.inner_text().startswith("Rows 4 to 5, columns 4 to 5 of crop 1: ")
    check_rows(page, read_crops(sample, 1), slice(3, 5), slice(3, 5))
    page.keyboard.press("Escape")
    page.wait_for_url(re.compile(r"^[^?]*$"))
    assert said.inner_text().startswith("All patches of crop 1: ")


def test_a_row_shows_its_map_on_both_crops(open_page, sample):
    page, crops = open_image(open_page, sample), read_crops(sample, 1)
    assert page.locator(".patch-picker canvas").count() == 0
    both = sorted(set(crops[1]) & set(crops[2]))
    page.locator(f"tr[data-latent='{both[0]}']").hover()
    page.locator(".patch-picker canvas").nth(1).wait_for()
    page.evaluate(DRAWN)
    for crop in (1, 2):
        assert page.evaluate(MAP, crop) == (crops[crop][both[0]] > 0).ravel().tolist()
    page.locator(f"tr[data-latent='{both[-1]}'] a").focus()
    page.wait_for_selector(f"text=Latent {both[-1]} is active")
    page.evaluate(DRAWN)
    assert page.evaluate(MAP, 2) == (crops[2][both[-1]] > 0).ravel().tolist()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(rf"#/latent/{both[-1]}\b"))


def test_the_address_says_which_crop_and_the_whole_image_has_its_own_numbers(open_page, sample):
    page = open_image(open_page, sample, "#/image/train/2?patches=2%2C3&side=2")
    assert page.inner_text(".patch-said").startswith("Row 3, column 4 of crop 2: ")
    page.locator("text=the whole image").click()
    page.wait_for_url(re.compile(r"side=0"))
    # the middle of that patch is at 3.5 and 4.5 of 9 patches of the square, so at 3.1 and 4.0 of the image's 8
    assert page.inner_text(".patch-said").startswith("Row 4, column 5 of the whole image: ")
    whole = {latent: of[3, 4] for latent, of in read_crops(sample, 2)[0].items() if of[3, 4] > 0}
    found = page.evaluate(ROWS)
    assert {row["latent"]: row["mean"] for row in found} == pytest.approx(whole, rel=6e-3)
    assert all("one" not in row for row in found)


def test_predictions_switch(open_page, sample):
    page = open_image(open_page, sample)
    said, after = page.locator(".prediction-said"), page.locator(".class-bars tbody td:last-child")
    assert said.inner_text() == "With nothing switched off, bird is most probable: 70.00%."
    page.locator("input[value='group high']").check()
    change = (
        "the most probable class changes from bird (70.00% before, 4.00% after) to house (4.00% before, 70.00% after)."
    )
    assert said.inner_text() == f"Without all latents of the group high, {change}"
    assert after.all_inner_texts() == ["4.00%", "6.00%", "20.00%", "70.00%"]
    widths = page.eval_on_selector_all(".class-bars .bar.after", "(all) => all.map((one) => one.style.width)")
    assert widths == ["4%", "6%", "20%", "70%"]
    page.reload()  # a link holds what is switched off
    page.wait_for_selector(".switches")
    assert said.inner_text() == f"Without all latents of the group high, {change}"
    found = read_image(sample, 1)["predictions"]["latents"][1]
    page.locator(f"input[value='latent {found['latent']}']").check()
    assert after.all_inner_texts() == [f"{100 * p:.2f}%" for p in found["probabilities"]]
    assert EVIL in page.inner_text(".class-bars")
    title = page.title()  # the class is called what would change it
    assert title == "Image 1 of train · scenes_clip on scenes <b>sample</b>"


def test_what_is_missing_is_told(open_page, sample):
    page = open_image(open_page, sample, "#/image/train/0", anew=True)
    assert page.inner_text(".image-title").startswith(EVIL)
    page.evaluate("infoscope.go({ image: 7 })")
    page.wait_for_selector("text=explore.n_browsed=6")
    assert "only what fires in the 3 images above" in page.inner_text(".image-page")
    page.evaluate("infoscope.go({ set: 'else' })")
    page.wait_for_selector("text=There is no set of images “else” here")
    page.evaluate("infoscope.load('seed0/images/train-2').then((value) => { delete value.predictions; })")
    page.evaluate("infoscope.go({ set: 'train', image: 2 })")
    page.wait_for_selector(".predictions code >> text=infoscope stage=predict")
    page.evaluate("infoscope.manifest.views[0].images.train.push(9); infoscope.go({ image: 9 })")
    page.wait_for_selector("text=data/seed0/images/train-9.js cannot be read")
    assert "ERR_FILE_NOT_FOUND" in open_page.said.pop()
    page.evaluate("infoscope.manifest.views[0].images = {}; infoscope.go({})")
    page.wait_for_selector("text=explore.n_browsed=24")


def test_a_finger_on_a_phone(open_page, sample):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    page = open_image(open_page, sample, reduced_motion="reduce", **phone)
    page.locator(".patch-picker").first.scroll_into_view_if_needed()
    page.touchscreen.tap(*find_patch(page, 1, 5, 2))
    page.wait_for_url(re.compile(r"patches=5%2C2"))
    check_rows(page, read_crops(sample, 1), slice(5, 6), slice(2, 3))
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator("tr[data-latent]").first.tap(position={"x": 150, "y": 10})
    assert page.locator(".patch-latents .picture canvas").count() == 2
    page.locator(".patch-picker").first.evaluate("(picker) => picker.scrollIntoView()")
    touch = page.context.new_cdp_session(page)
    (x, y), chosen = find_patch(page, 1, GRID - 2, 3), page.evaluate("infoscope.state().patches")
    start = page.evaluate("scrollY")
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for step in range(1, 6):
        moved = [{"x": x, "y": y - 30 * step}]
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": moved})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_function("(start) => scrollY > start + 50", arg=start)  # a finger that scrolls chooses nothing
    said = page.locator(".patch-said")
    assert said.inner_text().startswith("Row 6, column 3 of crop 1: ")
    assert page.evaluate("infoscope.state().patches") == chosen == "5,2"


def test_what_the_stage_writes_beyond_the_sample(open_page, sample):
    """Maps as shares of peaks of very different size, latents that are left out, and the other diagonal."""
    page = open_image(open_page, sample)
    square, maps = np.random.default_rng(0).random((2, 6, 6)) * np.array([1e-3, 5e3])[:, None, None], []
    for row, column in ((0, 0), (0, 2), (2, 0)):  # whole (not of the square, in truth), crop 1 and crop 2 of "anti"
        maps.append(square[:, row : row + 4, column : column + 4])
    crops = []
    for of in maps:
        peaks = of.max((1, 2)).astype(np.float32)
        shares = of / peaks[:, None, None]
        crops.append({"latents": [3, 8], "peaks": pack(peaks), "maps": pack_maps(shares), "n_left_out": 5})
    view = {"grid": 4, "shift": 2, "diagonal": "anti"}
    box = {"top": 1, "bottom": 3, "left": 0, "right": 1, "isAll": False}
    found = page.evaluate(
        """([view, crops, box]) => {
            const read = crops.map(infoscope.readCrop), found = infoscope.measureBox(view, read, 1, box);
            const moved = [infoscope.movePatch(view, [1, 3], 1, 0), infoscope.movePatch(view, [2, 1], 0, 2)];
            return [found, read[1].nLeftOut, ...moved];
        }""",
        [view, crops, box],
    )
    own, both = maps[1][:, 1:4, 0:2], square[:, 2:4, 2:4]  # what crop 2 also shows of it, by the square
    assert (found[0]["nPatches"], found[0]["nShared"], found[1]) == (6, 4, 5)
    for i, row in enumerate(sorted(found[0]["rows"], key=lambda row: row["latent"])):
        assert row["mean"] == pytest.approx(own[i].mean(), rel=1e-4)
        assert row["peak"] == pytest.approx(own[i].max(), rel=1e-4)
        assert row["one"] == pytest.approx(both[i].mean(), rel=1e-4)
        assert row["two"] == pytest.approx(both[i].mean(), rel=1e-4)
    assert found[2:] == [[1, 3], [1, 2]]  # (1.5, 5.5) of 6 is (1, 3.7) of 4; (2.5, 1.5) of 4 is (3.75, 2.25) of 6
