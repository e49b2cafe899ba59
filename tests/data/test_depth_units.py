"""Depth in a wrong unit is refused by its name; unusual rooms are not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infoscope.data.check import ALL, check_images, check_sample
from infoscope.data.depth_units import DepthCounts, describe_wrong_map, refuse_unit
from infoscope.data.nyud import NYUd
from infoscope.runtime.errors import InputError
from tests.support.data_sets import open_set


def make_rooms(n: int, seed: int = 0, scale: float = 1.0) -> list[np.ndarray]:
    """Depth in metres of n rooms, 0.7 to 9.9 m, the median of all near 2.6 m."""
    rng = np.random.default_rng(seed)
    return [
        np.clip(scale * rng.uniform(1.6, 3.6) * np.exp(rng.normal(0, 0.4, (24, 32))), 0.72, 9.9).astype(np.float32)
        for _ in range(n)
    ]


def count(maps: list[np.ndarray]) -> DepthCounts:
    counts = DepthCounts()
    for depth in maps:
        counts.add(np.minimum(depth, 20).astype(np.float32))
    return counts


def refused(maps: list[np.ndarray], is_png: bool) -> str:
    with pytest.raises(InputError) as caught:
        refuse_unit(count(maps), len(maps), "the test split of /nyu", is_png)
    message = str(caught.value)
    assert message.endswith(".")
    assert ". " not in message
    return message


Coding = Callable[[np.ndarray], np.ndarray]
PNG: dict[str, Coding] = {  # metres -> what is read as metres
    "1/256 m, as KITTI": lambda metres: metres * 256 / 1000,
    "centimetres": lambda metres: metres / 10,
    "10 bits, 1023 for 10 m": lambda metres: metres * 1.023 / 10,
    "8 bits, 255 for 10 m": lambda metres: metres * 0.255 / 10,
    "1/5000 m, as TUM": lambda metres: metres * 5,
    "1/4000 m": lambda metres: metres * 4,
    "16 bits, 65535 for 10 m": lambda metres: metres * 6.5535,
    "whole metres": lambda metres: np.rint(metres) / 1000,
}
FLOAT: dict[str, Coding] = {
    "centimetres": lambda metres: metres * 100,
    "0 to 1 for 0 to 10 m": lambda metres: metres / 10,
    "inverse depth": lambda metres: np.divide(1, metres, out=np.zeros_like(metres), where=metres > 0),
}


class TestUnits:
    @pytest.mark.parametrize("unit", PNG)
    def test_of_png_files(self, unit):
        coded = [PNG[unit](room) for room in make_rooms(8)]
        if np.max(coded) < 20:
            assert unit in refused(coded, is_png=True)
        else:  # such maps are refused one by one
            assert unit in describe_wrong_map(np.concatenate(coded), is_png=True)
            refused([np.minimum(depth, 19.9) for depth in coded], is_png=True)

    def test_millimetres_in_floating_point(self):
        assert "looks like millimetres (median" in describe_wrong_map(make_rooms(1)[0] * 1000, is_png=False)

    @pytest.mark.parametrize("unit", ["0 to 1 for 0 to 10 m", "inverse depth"])
    def test_of_floating_point_maps(self, unit):
        assert unit in refused([FLOAT[unit](room) for room in make_rooms(8)], is_png=False)

    def test_what_fits_is_told_with_its_median(self):
        message = refused([room * 0.256 for room in make_rooms(20)], is_png=True)
        median = np.median(make_rooms(20))
        assert f"1/256 m, as KITTI stores it (median {median:.2f} m then): multiply what is stored by 3.906" in message

    def test_one_pixel_of_a_map_in_metres(self):
        room = make_rooms(1)[0]
        room[0, 0] = 655
        assert describe_wrong_map(room, is_png=False).startswith("the rest of it looks like metres")

    def test_no_unit_fits(self):
        noise = [np.linspace(0.01, 19, 768, dtype=np.float32).reshape(24, 32)] * 5
        assert "no unit that is known here" in refused(noise, is_png=True)

    def test_nothing_measured(self):
        assert "not one pixel was measured" in refused([np.zeros((4, 4), np.float32)], is_png=True)

    def test_metres_and_unusual_rooms_pass(self):
        for maps in (make_rooms(100), make_rooms(1), make_rooms(3, scale=0.35), make_rooms(3, scale=2.5)):
            refuse_unit(count(maps), len(maps), "x", is_png=True)
        desk = np.random.default_rng(0).uniform(0.72, 1.1, (24, 32)).astype(np.float32)
        for n in (1, 2, 3):
            refuse_unit(count([desk] * n), n, "x", is_png=True)
        assert "the median is" in refused([desk] * 4, is_png=True)  # a whole set of nothing but desks


class TestCounts:
    def test_quantiles_by_numpy(self):
        maps = make_rooms(5)
        maps[0][:3] = 0
        counts, valid = count(maps), np.concatenate([depth[depth > 0] for depth in maps])
        for q in (0.0, 0.01, 0.5, 0.99, 1.0):
            assert counts.quantile(q) == pytest.approx(np.quantile(valid, q, method="inverted_cdf"), abs=0.0006)
        share = len(valid) / sum(depth.size for depth in maps)
        assert counts.summary()["measured_share"] == pytest.approx(share, abs=1e-4)
        assert DepthCounts().summary() == {}


def write_bts(root: Path, maps: list[np.ndarray], coding: Coding) -> Path:
    for split in ("train", "test"):
        folder = root / "official_splits" / split / "room"
        folder.mkdir(parents=True)
        for i, depth in enumerate(maps):
            Image.new("RGB", (32, 24)).save(folder / f"rgb_{i:05d}.jpg")
            Image.fromarray(np.rint(coding(depth) * 1000).astype(np.uint16)).save(folder / f"sync_depth_{i:05d}.png")
    return root


class TestNyu:
    def test_a_whole_check_prints_and_refuses(self, tmp_path):
        root = write_bts(tmp_path, make_rooms(6), PNG["1/256 m, as KITTI"])
        found = check_images(open_set(NYUd, root, "train"))
        assert list(found.errors) == [ALL]
        assert "1/256 m" in found.errors[ALL]
        assert "official_splits" not in found.errors[ALL]
        right = check_images(
            open_set(NYUd, write_bts(tmp_path / "right", make_rooms(6), lambda metres: metres), "train")
        )
        assert right.errors == {}
        assert right.depth["median_m"] == pytest.approx(np.median(make_rooms(6)), abs=0.02)
        assert right.depth["min_m"] >= 0.7
        assert right.depth["measured_share"] == 1

    def test_a_sample_is_refused_before_anything_is_built(self, tmp_path):
        images = open_set(NYUd, write_bts(tmp_path, make_rooms(6), PNG["centimetres"]), "train")
        with pytest.raises(InputError, match=r"looks like .*centimetres"):
            check_sample(images)

    @pytest.mark.parametrize(("coding", "named"), [("1/5000 m, as TUM", "1/5000 m"), ("whole", "store 0 for that")])
    def test_one_map_that_reaches_too_far(self, tmp_path, coding, named):
        def mark_invalid(metres: np.ndarray) -> np.ndarray:
            return np.where(metres > 3, 65.535, metres)

        root = write_bts(tmp_path, make_rooms(1, scale=1.5), PNG.get(coding, mark_invalid))
        with pytest.raises(InputError, match=f"at most 20 m.*{named}"):
            open_set(NYUd, root, "train").depth_m(0)


class TestRealSamples:
    """Two pairs as BTS gives them, together and each alone."""

    @pytest.fixture
    def maps(self) -> list[np.ndarray]:
        samples = os.environ.get("INFOSCOPE_SAMPLES")
        if not samples:
            pytest.skip("INFOSCOPE_SAMPLES is not set")
        images = open_set(NYUd, Path(samples) / "nyu", "test")
        check_sample(images)
        return [images.depth_m(i) for i in range(2)]

    @pytest.mark.parametrize("rows", [[0, 1], [0], [1]])
    def test_metres_pass_and_no_other_unit_does(self, maps, rows):
        chosen = [maps[i] for i in rows]
        refuse_unit(count(chosen), len(rows), "x", is_png=True)
        for unit, coding in PNG.items():
            message = refused([np.minimum(coding(depth), 19.9) for depth in chosen], is_png=True)
            if coding(np.float32(1)) < 1 and unit != "whole metres":
                assert unit in message
            elif unit != "whole metres":
                assert unit in describe_wrong_map(np.concatenate([coding(depth) for depth in chosen]), is_png=True)
        for unit, coding in FLOAT.items():
            assert "metres" in refused([np.minimum(coding(depth), 19.9) for depth in chosen], is_png=False), unit
