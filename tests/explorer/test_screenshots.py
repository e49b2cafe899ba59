"""The screenshots of the README: the script that takes them, on the sample."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import explorer_screenshots


def test_takes_each_page(browser, sample, tmp_path: Path):
    pages = {"overview": "overview?filter=cds+>+0.05", "phone": "latent/3"}
    files = explorer_screenshots.take_screenshots(browser, sample, tmp_path / "out", pages)
    assert [file.name for file in files] == ["overview.webp", "phone.webp"]
    pictures = [Image.open(file) for file in files]
    assert [picture.size for picture in pictures] == [(1280, 860), (390, 860)]
    assert all(len(set(picture.convert("L").getdata())) > 50 for picture in pictures)  # no blank pages


@pytest.mark.parametrize("arguments", [["nowhere", "out"], ["nowhere"], ["nowhere", "out", "page=1"]])
def test_refuses_what_is_no_explorer(arguments, capsys: pytest.CaptureFixture[str]):
    assert explorer_screenshots.main(arguments) == 2
    assert capsys.readouterr().err.startswith("explorer_screenshots: Expected ")
