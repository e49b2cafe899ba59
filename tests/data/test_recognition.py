"""Data sets that are taken for each other, as trees of tiny files: each is refused by its name, with what to give."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infoscope.data.ade20k import ADE20K
from infoscope.data.celeba import CelebA
from infoscope.data.class_folders import open_class_folders
from infoscope.data.image_folder import ImageFolder
from infoscope.data.image_list import ImageList
from infoscope.data.imagenet import ImageNet
from infoscope.data.layouts import LAYOUTS
from infoscope.data.nyud import NYUd
from infoscope.data.recognition import identify
from infoscope.data.tar_images import TarImages
from infoscope.data.waterbirds import Waterbirds
from infoscope.runtime.errors import InputError
from tests.support.data_sets import configure, open_set

READERS: dict[str, Callable[[Path], object]] = {
    "imagenet": lambda root: open_set(ImageNet, root, "train"),
    "ade20k": lambda root: open_set(ADE20K, root, "train"),
    "nyud": lambda root: open_set(NYUd, root, "train"),
    "class_folders": lambda root: open_class_folders(configure("class_folders", root)),
    "celeba": lambda root: open_set(CelebA, root, "train"),
    "waterbirds": lambda root: open_set(Waterbirds, root, "train"),
}

TREES: dict[str, list[str]] = {
    "the full ADE20K": ["images/ADE/training/urban/street/ADE_train_1.jpg", "images/ADE/training/urban/x_seg.png"],
    "the full ADE20K (2016)": ["ADE20K_2016_07_26/images/training/a/abbey/ADE_train_1.jpg"],
    "the full ADE20K (index)": ["index_ade20k.pkl", "objects.txt"],
    "the full ADE20K (renamed)": ["images/validation/a/abbey/ADE_val_1_seg.png"],
    "NYU Depth v1": ["nyu_depth_data_labeled.mat"],
    "raw NYU Depth v2": ["bathroom_0001/d-1315166703.129542-3139137410.pgm", "bathroom_0001/r-1315166703.2-31.ppm"],
    "raw NYU Depth v2 (nested)": ["nyu_depth_v2_raw/bathroom_0001/a-1.dump"],
    "NYU Depth v2 in 8 bits": ["data/nyu2_train/basement_0001a_out/1.jpg", "data/nyu2_test/00000_colors.png"],
    "NYU Depth v2 as FCRN": ["train/basement_0001a/00001.h5", "val/official/00001.h5"],
    "Tiny ImageNet": ["wnids.txt", "words.txt", "train/n01443537/images/n01443537_0.JPEG", "val/images/val_0.JPEG"],
    "ImageNet-21k": [f"n{i:08d}/" for i in range(1001)],
    "ImageNet-21k (tars)": ["n00004475.tar", "n00005787.tar"],
    "ImageNet-V2": ["imagenetv2-matched-frequency-format-val/0/1.jpeg"],
    "ImageNet-V2 (inside)": ["0/1.jpeg", "9/1.jpeg", "999/1.jpeg"],
    "ImageNet-R": ["n01443537/art_0.jpg", "n01443537/cartoon_1.jpg", "README.txt"],
    "ImageNet-A or -O": ["n01498041/0.000116_digital clock _ digital clock_0.865662.jpg"],
    "ImageNet-Sketch": ["sketch/n01440764/sketch_0.JPEG"],
    "ImageNet-C": ["gaussian_noise/1/n01440764/ILSVRC2012_val_00000293.JPEG"],
    "the archives of ILSVRC2012": [
        "ILSVRC2012_img_train.tar",
        "ILSVRC2012_img_val.tar",
        "ILSVRC2012_devkit_t12.tar.gz",
    ],
    "the archives of ILSVRC2012 (half)": ["train/n01440764.tar", "val/ILSVRC2012_img_val.tar"],
    "Places365": ["places365_standard/train/abbey/00000001.jpg"],
    "Places365 (easy)": ["train/abbey/00000001.jpg", "val/abbey/1.jpg"],
    "Places365 (256)": ["data_256/a/abbey/00000001.jpg", "val_256/Places365_val_00000001.jpg"],
    "Cityscapes": ["leftImg8bit/train/aachen/a_leftImg8bit.png", "gtFine/train/aachen/a_gtFine_labelIds.png"],
    "COCO": ["train2017/000000000009.jpg", "annotations/instances_train2017.json"],
    "COCO-Stuff": ["images/train2017/000000000009.jpg", "stuffthingmaps_trainval2017/train2017/000000000009.png"],
    "Pascal VOC": ["VOCdevkit/VOC2012/JPEGImages/1.jpg", "VOCdevkit/VOC2012/SegmentationClass/1.png"],
    "Pascal VOC (inside)": ["JPEGImages/1.jpg", "Annotations/1.xml"],
    "Pascal Context": ["trainval_merged.json"],
    "KITTI": ["2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0.png"],
    "KITTI (depth)": ["data_depth_annotated/train/2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02/5.png"],
    "SUN RGB-D": ["SUNRGBD/kv1/NYUdata/NYU0001/image/NYU0001.jpg"],
    "iNaturalist": ["train_mini/00000_Animalia_Annelida_Clitellata_Lumbricus/1.jpg"],
    "iNaturalist (2018)": ["train_val2018/Actinopterygii/2229/1.jpg", "train2018.json"],
    "CIFAR": ["cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/batches.meta"],
    "CIFAR (inside)": ["data_batch_1", "batches.meta"],
    "Food-101": ["meta/classes.txt", "images/apple_pie/1.jpg"],
    "Open Images": ["oidv6-train-annotations-bbox.csv", "train/000002b66c9c498e.jpg"],
    "SUN397": ["SUN397/a/abbey/1.jpg"],
    "ScanNet": ["scans/scene0000_00/scene0000_00.sens"],
    "DIODE": ["val/indoors/scene_00019/scan_00183/00019_00183_indoors_000_010_depth.npy"],
    "Hypersim": ["ai_001_001/images/scene_cam_00_final_preview/frame.0000.tonemap.jpg"],
    "ObjectNet": ["objectnet-1.0/images/air_freshener/1.png"],
    "CelebA": ["img_align_celeba/000001.jpg", "list_attr_celeba.txt"],
    "CelebA (as published)": ["Img/img_align_celeba/000001.jpg", "Anno/list_attr_celeba.txt"],
    "CelebA-HQ": ["CelebA-HQ-img/0.jpg", "CelebAMask-HQ-mask-anno/0/00000_hair.png"],
    "Waterbirds": ["metadata.csv", "001.Black_footed_Albatross/Black_Footed_Albatross_0001_796111.jpg"],
    "Flowers-102": ["jpg/image_00001.jpg", "imagelabels.mat", "setid.mat"],
    "STL-10 or SVHN": ["train_32x32.mat", "test_32x32.mat"],
    "a data set of Hugging Face": ["data/train-00000-of-00294-e6cb1ac2.parquet", "README.md"],
    "a data set of Hugging Face (arrow)": ["dataset_info.json", "imagenet-1k-train-00000-of-00257.arrow"],
    "a data set in LMDB": ["data.mdb", "lock.mdb"],
    "a data set of TensorFlow": ["train-00000-of-01024", "imagenet2012-train.tfrecord-00000-of-01024"],
    "a folder of archives": ["ADEChallengeData2016.zip"],
}


def plant(root: Path, paths: list[str]) -> Path:
    for path in paths:
        if path.endswith("/"):
            (root / path).mkdir(parents=True)
            continue
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def assert_one_sentence(error: BaseException, *parts: str) -> None:
    message = str(error)
    assert "\n" not in message
    assert message.endswith(".")
    assert re.search(r"[^.]\. [A-Z]", message) is None
    for part in parts:
        assert part in message


def refuse(read: Callable[[Path], object], root: Path, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        read(root)
    assert_one_sentence(caught.value, *parts)


@pytest.mark.long
@pytest.mark.parametrize("name", TREES)
def test_each_is_told_by_its_name_to_whoever_expects_another(tmp_path: Path, name: str) -> None:
    root = plant(tmp_path / "set", TREES[name])
    given = {"imagenet": "ImageNet-1k", "ade20k": "ADEChallengeData2016", "nyud": "nyu_depth_v2_labeled.mat"}
    for kind in given:
        with pytest.raises(InputError) as caught:
            READERS[kind](root)
        message = str(caught.value)
        assert_one_sentence(caught.value, f"{root} is {name.partition(' (')[0]}")
        found = identify(root)
        assert found is not None
        assert given[kind] in message or found[0].advice in message


def test_names_are_of_entries_and_each_pattern_is_one() -> None:
    named = {name.partition(" (")[0] for name in TREES}
    assert all(any(layout.name.startswith(name) for layout in LAYOUTS) for name in named)
    for layout in LAYOUTS:
        assert re.compile(layout.maps).groups == 0  # the alternatives are told apart by their groups


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("ImageNet-R", ""),
        ("ImageNet-Sketch", "sketch"),
        ("Food-101", "images"),
        ("Caltech-101 or -256", "101_ObjectCategories"),
        ("Imagenette or Imagewoof", ""),
        ("Tiny ImageNet", "train"),
    ],
)
def test_class_folders_are_named_to_whoever_expects_imagenet(tmp_path: Path, name: str, below: str) -> None:
    trees = {**TREES, "Caltech-101 or -256": ["101_ObjectCategories/ant/1.jpg"]}
    trees["Imagenette or Imagewoof"] = ["noisy_imagenette.csv", "train/n01440764/1.JPEG", "val/n01440764/1.JPEG"]
    root = plant(tmp_path / "set", trees[name])
    refuse(
        READERS["imagenet"], root, f"is {name} (", f"set data=class_folders data.root={root / below}, or for classes"
    )
    if below:
        refuse(READERS["class_folders"], root, f"is {name} (", f"): set data.root={root / below}.")


def test_one_class_folder_alone(tmp_path: Path) -> None:
    root = plant(tmp_path / "set", ["n01440764/x.JPEG"])
    refuse(READERS["class_folders"], root, "got one (n01440764): set data.root to a folder whose subfolders are")
    refuse(READERS["class_folders"], root / "n01440764", f"set data.root={root}.")


def make_right(root: Path) -> Path:
    """A folder that holds ImageNet, ADEChallengeData2016, NYU, Waterbirds and CelebA, as far as names go."""
    plant(root, ["imagenet/train/n01440764/x.JPEG", "imagenet/val/n01440764/x.JPEG"])
    plant(root, [f"nyu/official_splits/{split}/room/rgb_00000.jpg" for split in ("train", "test")])
    for split in ("training", "validation"):
        plant(root, [f"ade/{kind}/{split}/.keep" for kind in ("images", "annotations")])
    plant(root, ["birds/metadata.csv", "birds/001.Black_footed_Albatross/1.jpg"])
    plant(root, ["faces/Img/img_align_celeba/000001.jpg", "faces/Anno/list_attr_celeba.txt", "faces/Eval/.keep"])
    return root


@pytest.mark.parametrize(
    ("kind", "given", "named"),
    [
        ("imagenet", ".", "imagenet"),
        ("imagenet", "imagenet/train", "imagenet"),
        ("imagenet", "..", "imagenet"),
        ("imagenet", "imagenet/val/n01440764", "imagenet"),
        ("ade20k", ".", "ade"),
        ("ade20k", "ade/images", "ade"),
        ("ade20k", "ade/annotations/validation", "ade"),
        ("nyud", ".", "nyu"),
        ("nyud", "nyu/official_splits", "nyu"),
        ("waterbirds", ".", "birds"),
        ("waterbirds", "birds/001.Black_footed_Albatross", "birds"),
        ("celeba", ".", "faces"),
        ("celeba", "faces/Anno", "faces"),
    ],
)
def test_a_folder_above_or_below_the_right_one(tmp_path: Path, kind: str, given: str, named: str) -> None:
    root = make_right(tmp_path / "all")
    refuse(READERS[kind], (root / given).resolve(), f"set data.root={root / named}.")


@pytest.mark.parametrize(
    ("kind", "given", "advice"),
    [
        ("ade20k", "imagenet", "set data=imagenet data.root="),
        ("nyud", "ade", "set data=ade20k data.root="),
        ("imagenet", "nyu", "set data=nyud data.root="),
        ("imagenet", "birds", "set data=waterbirds data.root="),
        ("waterbirds", "faces", "set data=celeba data.root="),
        ("celeba", "birds", "set data=waterbirds data.root="),
    ],
)
def test_the_data_of_another_reader(tmp_path: Path, kind: str, given: str, advice: str) -> None:
    root = make_right(tmp_path / "all") / given
    alone = tmp_path / "alone" / given  # with nothing right beside it
    alone.parent.mkdir()
    root.rename(alone)
    refuse(READERS[kind], alone, f"{advice}{alone}, or for ")


def test_the_right_folder_keeps_its_own_sentences(tmp_path: Path) -> None:
    root = make_right(tmp_path)
    refuse(READERS["imagenet"], root / "imagenet", "data.subset=true takes a subset")
    refuse(READERS["ade20k"], root / "ade", "there is none: unpack ADEChallengeData2016.zip")
    refuse(READERS["nyud"], root / "nyu", "a depth map for every file")
    refuse(READERS["nyud"], root / "nowhere", "no such file or directory; check data.root")


def test_the_mat_file_and_what_is_not_unpacked(tmp_path: Path) -> None:
    file = tmp_path / "x" / "nyu_depth_v2_labeled.mat"
    plant(tmp_path / "x", [file.name])
    refuse(READERS["ade20k"], file, "is NYU Depth v2 (by its name): set data=nyud")
    (tmp_path / "y" / "ADEChallengeData2016.zip").parent.mkdir()
    (tmp_path / "y" / "ADEChallengeData2016.zip").touch()
    refuse(READERS["ade20k"], tmp_path / "y" / "ADEChallengeData2016.zip", "is an archive (by its name): unpack it")
    refuse(ImageFolder, tmp_path / "y" / "ADEChallengeData2016.zip", "is an archive (by its name): unpack it")
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("n01440764.tar"))
    refuse(TarImages, tmp_path / "ILSVRC2012_img_train.tar", "1 .tar (n01440764.tar)", "holds a tar for each class")


def test_a_folder_without_images_is_told_too(tmp_path: Path) -> None:
    for name in ("a data set of Hugging Face", "CIFAR", "a data set in LMDB"):
        root = plant(tmp_path / name.replace(" ", "_"), TREES[name])
        refuse(lambda root: ImageFolder(root), root, f"{root} is {name}", "save ", " as ")


MAPS: dict[str, tuple[list[str], list[str], str]] = {
    # photographs, maps, what is to be given below the root
    "ADEChallengeData2016": (["images/training/ADE_train_1.jpg"], ["annotations/training/ADE_train_1.png"], "images"),
    "Cityscapes": (["leftImg8bit/val/a/a.png"], ["gtFine/val/a/a_gtFine_labelIds.png"], "leftImg8bit"),
    "Pascal VOC": (["VOC2012/JPEGImages/1.jpg"], ["VOC2012/SegmentationClass/1.png"], "VOC2012/JPEGImages"),
    "COCO-Stuff": (["images/val2017/1.jpg"], ["stuffthingmaps/val2017/000000000139.png"], "images"),
    "COCO": (["val2017/1.jpg"], ["annotations/panoptic_val2017/000000000139.png"], "val2017"),
    "KITTI": (["training/image_2/000000_10.png"], ["training/semantic/000000_10.png"], "training/image_2"),
    "ImageNet-S": (["train-semi/n0/a.JPEG"], ["train-semi-segmentation/n0/a.png"], "train-semi"),
    "the Oxford-IIIT pets": (["images/a.jpg"], ["annotations/trimaps/a.png"], "images"),
    "a folder of pictures and": (["images/a.jpg"], ["masks/a.png"], "images"),
    "SUN RGB-D": (["kv1/a/image/1.jpg"], ["kv1/a/depth_bfx/1.png"], "kv1/a/image"),
}
MIXED = {
    "the full ADE20K": (["images/training/a/ADE_train_1.jpg"], ["images/training/a/ADE_train_1_seg.png"], "ADE_*.jpg"),
    "raw NYU": (["room/r-13.1-2.ppm"], ["room/d-13.1-2.pgm"], "r-*.ppm"),
    "NYU Depth v2 in the layout": (
        ["official_splits/test/a/rgb_00001.jpg"],
        ["official_splits/test/a/sync_depth_00001.png"],
        "rgb_*.jpg",
    ),
    "NYU Depth v2 in 8 bits": (["nyu2_train/a/1.jpg"], ["nyu2_train/a/1.png"], "*.jpg"),
}


class TestMapsAmongPhotographs:
    @pytest.mark.parametrize("name", MAPS)
    def test_the_folder_to_give_is_named_and_works(self, tmp_path, name):
        photographs, maps, below = MAPS[name]
        root = plant(tmp_path / "set", [*photographs, *maps])
        given = root / below
        refuse(ImageFolder, root, f"1 images below {root} are maps", name, maps[0], f"set data.root={given}")
        assert len(ImageFolder(given, test_share=0.0)) == 1
        refuse(ImageFolder, (root / maps[0]).parent, f"set data.root={given}")  # nothing but maps
        refuse(ImageFolder, tmp_path, f"set data.root={given}")

    @pytest.mark.parametrize("name", MIXED)
    def test_where_both_lie_together_a_list_of_the_pictures(self, tmp_path, name):
        photographs, maps, pattern = MIXED[name]
        root = plant(tmp_path / "a set", [*photographs, *maps])
        refuse(ImageFolder, root, name, f"find '{root}' -name '{pattern}' > pictures.txt")

    def test_in_a_list_and_in_a_tar(self, tmp_path):
        root = plant(tmp_path / "ade", ["images/training/ADE_train_1.jpg", "annotations/training/ADE_train_1.png"])
        paths = [path for path in root.rglob("*.*") if path.is_file()]
        (tmp_path / "all.txt").write_text("\n".join(map(str, paths)))
        refuse(ImageList, tmp_path / "all.txt", "1 images below", f"set data.root={root / 'images'}, or ")
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for path in paths:
                tar.add(path, path.relative_to(tmp_path))
        images = TarImages(tmp_path / "a.tar", test_share=0.0)
        assert images.image_ids == ["ade/images/training/ADE_train_1"]
        assert images.left_out.counts == {"maps of ADEChallengeData2016": 1}

    def test_what_is_to_be_given_can_be_typed(self, tmp_path):
        root = plant(tmp_path / "a set", ["images/a.jpg", "masks/a.png"])
        refuse(ImageFolder, root, f"""set 'data.root="{root / "images"}"'.""")

    def test_the_reader_that_knows_them_is_named(self, tmp_path):
        for name, kind in (("NYU Depth v2 in the layout", "nyud"), ("ADEChallengeData2016", "ade20k")):
            photographs, maps, _ = {**MAPS, **MIXED}[name]
            root = plant(tmp_path / kind, [*photographs, *maps])
            refuse(ImageFolder, root, f"or data={kind} data.root={root}.")

    def test_other_trees_pass(self, tmp_path):
        """Class folders with such names, without photographs beside them; labelled sets without maps."""
        names = [
            "with_mask/1.png",
            "mask/1.png",
            "depth/x/1.png",
            "labels/1.jpg",
            "train2017/000000000139.jpg",
            "seg.png",
        ]
        assert len(ImageFolder(plant(tmp_path / "a", names), test_share=0.0)) == len(names)
        assert len(ImageFolder(make_right(tmp_path / "b") / "imagenet", test_share=0.0)) == 2

    @pytest.mark.parametrize(
        ("suffix", "is_named_after"), [("png", False), ("jpg", False), ("gif", False), ("jpg", True)]
    )
    def test_photographs_are_no_maps_whatever_they_are_called(self, tmp_path, suffix, is_named_after):
        """Labels of bottles, people with masks: they have the colours of photographs."""
        root = plant(tmp_path / "set", ["images/cat.jpg", "labels/wine.txt"])
        file = root / ("images/cat_mask.jpg" if is_named_after else f"labels/wine.{suffix}")
        colours = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(colours // 128).save(file)
        refuse(ImageFolder, root, f"1 images below {root} are maps", file.relative_to(root).as_posix())
        if suffix != "gif":  # of 256 colours at most
            Image.fromarray(colours).save(file)
            assert len(ImageFolder(root, test_share=0.0)) == 2


class TestRealSamples:
    @pytest.fixture
    def samples(self) -> Path:
        if not os.environ.get("INFOSCOPE_SAMPLES"):
            pytest.skip("INFOSCOPE_SAMPLES is not set")
        return Path(os.environ["INFOSCOPE_SAMPLES"]).resolve()

    def test_photographs_that_know_more(self, samples):
        ade = samples / "ADEChallengeData2016"
        refuse(ImageFolder, ade, "2 images below", f"set data.root={ade / 'images'}, or data=ade20k data.root={ade}.")
        assert len(ImageFolder(ade / "images", test_share=0.0)) == 2
        assert len(ImageFolder(samples / "imagenet", test_share=0.0)) == 400
        refuse(
            ImageFolder,
            samples / "nyu",
            "NYU Depth v2 in the layout of BTS",
            f"or data=nyud data.root={samples / 'nyu'}.",
        )
        with Image.open(samples / "nyu" / "official_splits" / "test" / "sample" / "sync_depth_00000.png") as image:
            assert image.mode.startswith("I")  # what would have been taken for a photograph

    def test_one_for_the_other(self, samples):
        refuse(READERS["nyud"], samples / "ADEChallengeData2016", "is ADEChallengeData2016", "set data=ade20k")
        refuse(READERS["nyud"], samples / "nyu" / "official_splits" / "test", f"set data.root={samples / 'nyu'}.")
        refuse(READERS["ade20k"], samples / "nyu", "is NYU Depth v2 in the layout of BTS", "set data=nyud")
