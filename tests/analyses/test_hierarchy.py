from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from infoscope.analyses.hierarchy import compute_meeting_depth, make_family_hierarchy, read_hierarchy
from infoscope.analyses.top_sets import TopSets
from infoscope.data.scenes.factors import FAMILIES, KINDS
from infoscope.runtime.errors import InputError

TREE = """
entity animal
entity thing
animal dog
animal cat
dog terrier

thing cup
"""
CLASSES = ("cat", "terrier", "cup", "dog")


def write(folder: Path, text: str) -> Path:
    (folder / "tree.txt").write_text(text)
    return folder / "tree.txt"


def test_classes_meet_at_their_lowest_common_ancestor(tmp_path: Path) -> None:
    meeting = read_hierarchy(write(tmp_path, TREE), CLASSES).meeting
    assert meeting.tolist() == [[2, 1, 0, 1], [1, 3, 0, 2], [0, 0, 2, 0], [1, 2, 0, 2]]


def test_of_several_parents_the_longest_way_counts(tmp_path: Path) -> None:
    pet = TREE + "entity pet\npet dog\npet cup\nelsewhere other"  # what is above no class is not looked at
    meeting = read_hierarchy(write(tmp_path, pet), CLASSES).meeting
    assert meeting[3, 3] == 2
    assert meeting[2, 3] == 1  # in "pet"
    assert meeting[0, 3] == 1  # in "animal"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TREE.replace("animal cat", ""), "Expected every class in .*tree.txt, but it lacks cat: add a line"),
        (TREE + "terrier animal", "but .* lie in a circle: remove one"),
        (TREE + "other dog", "Expected one root in .*, found 2 above the classes"),
        (TREE + "entity red cup", "Expected `parent child` in line 9 of .*, got 'entity red cup'"),
    ],
)
def test_what_is_no_hierarchy_of_the_classes_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_hierarchy(write(tmp_path, text), CLASSES)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tree.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match=r"describe\.tree to be a text file"):
        read_hierarchy(tmp_path / "tree.txt", CLASSES)


def test_scenes_have_families() -> None:
    meeting = make_family_hierarchy(FAMILIES, KINDS).meeting
    assert sorted(name for members in FAMILIES.values() for name in members) == sorted(KINDS)
    assert (np.diagonal(meeting) == 2).all()
    assert meeting[KINDS.index("ball"), KINDS.index("ring")] == 1
    assert meeting[KINDS.index("ball"), KINDS.index("cube")] == 0


def test_the_depth_of_a_latent_is_the_mean_over_pairs_of_its_images() -> None:
    hierarchy = make_family_hierarchy(FAMILIES, KINDS)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(KINDS), 40)
    columns = np.stack([rng.choice(40, 6, replace=False) for _ in range(5)])
    columns[1, 2:] = columns[2, 1:] = columns[3] = -1
    found = compute_meeting_depth(TopSets(columns, np.ones(columns.shape)), labels, hierarchy)
    for row, images in enumerate(columns):
        pairs = [hierarchy.meeting[labels[a], labels[b]] for a, b in combinations(images[images >= 0], 2)]
        np.testing.assert_allclose(found[row], np.mean(pairs) if pairs else np.nan)
    assert np.isnan(found).tolist() == [False, False, True, True, False]
