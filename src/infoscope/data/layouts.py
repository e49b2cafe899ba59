"""Data sets that are taken for each other, known by what lies where: what a folder is, and what to give instead.

A new data set is one entry of `LAYOUTS`; the first that fits counts, so what is special comes before what is general.
"""

from __future__ import annotations

from typing import NamedTuple


class Layout(NamedTuple):
    """A data set as it lies on the disk.

    Args:
        name: of the data set.
        signs: it is there if any of them is, separated by " | ": paths below its folder, with wildcards, joined by
            " + " where all must be there; "~NAME" is the folder's (or file's) own name in small letters, "PATH x5" at
            least five of them, <wnid> as n01440764.
        photographs: where its pictures lie below its folder (the first that exists of several, separated as signs
            are), or, with a wildcard, their names.
        classes: where its class folders lie below its folder, the first that exists of several.
        maps: a regular expression of the paths, from its folder on, of images that are no photographs.
        reader: the `data=` that reads it.
        advice: what to do, where nothing general is right; for `advised`, a `data=`, alone, if that is given.
        beside_photographs: `maps` says too little alone: they count where `photographs` are there too.
    """

    name: str
    signs: str
    photographs: str = ""
    maps: str = ""
    classes: str = ""
    reader: str = ""
    advice: str = ""
    advised: str = ""
    beside_photographs: bool = False


_OF_IMAGENET = "sketch | imagenet-r | imagenet-a | imagenet-o | ."


def _of_imagenet(name: str, signs: str) -> Layout:
    """Class folders of some of ImageNet's classes."""
    return Layout(name, signs, ".", classes=_OF_IMAGENET)


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "the full ADE20K",
        "~ade20k_????_??_??* | ADE20K_????_??_?? | images/ADE | index_ade20k.pkl | index_ade20k.mat | "
        "*_seg.png | images/*/*_seg.png | images/*/*/*/*_seg.png | images/*/*/*/*/*_seg.png | "
        "*/*/*_seg.png | ADE/training",
        "ADE_*.jpg",
        r"ADE_[^/]+_(?:seg|parts_\d+)\.png|instance_\d+_ADE_\w+\.png",
    ),
    Layout(
        "ADEChallengeData2016",
        "images/training + annotations/training | images/validation + annotations/validation",
        "images",
        r"annotations\w*/(?:training|validation)/ADE_\w+\.png",
        reader="ade20k",
    ),
    Layout("NYU Depth v1", "nyu_depth_data_labeled.mat | ~nyu_depth_data_labeled.mat | nyu_depth_v1*"),
    Layout("NYU Depth v2", "nyu_depth_v2_labeled.mat | ~nyu_depth_v2_labeled.mat", reader="nyud"),
    Layout(
        "NYU Depth v2 in the layout of BTS",
        "official_splits/test | official_splits/train | sync/*/sync_depth_*.png",
        "rgb_*.jpg",
        r"(?:(?:official_splits/(?:train|test)|sync)/[^/]+/)?sync_depth_\d+\.png",
        reader="nyud",
    ),
    Layout(
        "a part of NYU Depth v2 in the layout of BTS",
        "sync_depth_*.png | */sync_depth_*.png | train/*/sync_depth_*.png | test/*/sync_depth_*.png",
        advice="set data.root to the folder that holds sync and official_splits",
    ),
    Layout(
        "raw NYU Depth v2 (videos, not labelled)",
        "d-*.pgm | */d-*.pgm | */*/d-*.pgm | r-*.ppm | */r-*.ppm | */a-*.dump | nyu_depth_v2_raw*",
        "r-*.ppm",
        r"d-[\d.]+-\d+\.pgm",
    ),
    Layout(
        "NYU Depth v2 in 8 bits, as Kaggle and DenseDepth give it",
        "data/nyu2_train | nyu2_train | nyu2_test | data/nyu2_train.csv | nyu2_train.csv | nyu_data/data",
        "*.jpg",
        r"nyu2_(?:train/[^/]+/\d+|test/\d+_depth)\.png",
    ),
    Layout(
        "NYU Depth v2 as FCRN and fast-depth give it (.h5)",
        "train/*/*.h5 | val/official/*.h5 | nyudepthv2/train/*/*.h5 | nyudepthv2/val",
    ),
    Layout(
        "the archives of ILSVRC2012, not unpacked",
        "ILSVRC2012_img_train.tar | ILSVRC2012_img_val.tar | ILSVRC2012_img_*.tar.gz | "
        "imagenet-object-local* | ~ilsvrc2012_img_* | ~imagenet-object-localization* | "
        "train/<wnid>.tar | train/ILSVRC2012_img_train.tar | val/ILSVRC2012_img_val.tar",
        advice="unpack ILSVRC2012_img_train.tar (which holds a tar for each class: train/<wnid>/*.JPEG) and the"
        " val, and set data.root to the folder that holds train and val",
    ),
    Layout(
        "Tiny ImageNet",
        "wnids.txt + words.txt | train/<wnid>/images | val/val_annotations.txt | tiny-imagenet-200",
        "train",
        classes="train | tiny-imagenet-200/train",
    ),
    Layout(
        "ImageNet-21k",
        "<wnid> x1001 | <wnid>.tar | train/<wnid> x1001 | images/<wnid> x1001 | imagenet21k_* | ~*21k* | "
        "fall11_whole* | winter21_whole* | ~fall11_whole* | ~winter21_whole* | imagenet21k*",
        "train | imagenet21k_train | .",
        classes="train | imagenet21k_train",
    ),
    Layout(
        "ImageNet-V2",
        "imagenetv2-* | 0 + 9 + 999 | ~imagenetv2* | ~imagenet-v2* | ~imagenet_v2*",
        ".",
        advice="it has no training images and numbered classes: for classes give ImageNet-1k, for the scope alone"
        " set data=image_folder",
        advised="imagenet",
    ),
    Layout(
        "ImageNet-C",
        "gaussian_noise | noise/gaussian_noise | defocus_blur | blur/defocus_blur | */1/<wnid>",
        advice="it has no training images: for classes give ImageNet-1k, for the scope alone set"
        " data=image_folder and data.root to one corruption and strength",
        advised="imagenet",
    ),
    _of_imagenet("Imagenette or Imagewoof", "noisy_imagenette.csv | noisy_imagewoof.csv"),
    Layout(
        "ImageNet-1k",
        "train/<wnid> | val/<wnid> | ILSVRC/Data/CLS-LOC | Data/CLS-LOC | *train*.tar + *val*.tar | train/*.tar | "
        "CLS-LOC/train",
        reader="imagenet",
    ),
    Layout(
        "ImageNet-S, the segmentation of ImageNet",
        "train-semi + train-semi-segmentation | validation-segmentation | ImageNetS919 | ImageNetS300 | ImageNetS50",
        "train-semi | train | validation",
        r"(?:train-semi|validation)-segmentation[\w-]*/[^/]+/[^/]+\.png",
        classes="train-semi | train",
    ),
    Layout(
        "ObjectNet",
        "objectnet-1.0 | mappings/folder_to_objectnet_label.json | ~objectnet*",
        "images | objectnet-1.0/images",
        classes="images | objectnet-1.0/images",
    ),
    _of_imagenet("ImageNet-Sketch", "<wnid>/sketch_* | sketch/<wnid>"),
    _of_imagenet("ImageNet-R", "<wnid>/art_* | <wnid>/cartoon_* | imagenet-r | ~imagenet-r"),
    _of_imagenet("ImageNet-A or -O", "<wnid>/0.*_* | imagenet-a | ~imagenet-a | ~imagenet-o"),
    _of_imagenet("class folders of an ImageNet without train and val", "<wnid>"),
    Layout(
        "Places365",
        "places365_standard | places365_*.txt | categories_places365.txt | data_256/a | data_large* | "
        "val_256* | train/abbey | train/airfield | a/abbey | train/a/abbey | "
        "filelist_places365-standard | data_256* | train_256_places* | *_places365*.tar* | ~places365*",
        "data_256 | data_large | train | places365_standard/train",
        classes="places365_standard",
    ),
    Layout("SUN397", "SUN397 | ClassName.txt | ~sun397", "SUN397"),
    Layout(
        "Cityscapes",
        "leftImg8bit | gtFine | gtCoarse | leftImg8bit_trainvaltest | gtFine_trainvaltest.zip",
        "leftImg8bit",
        r"(?:gt(?:Fine|Coarse)/.*_gt(?:Fine|Coarse)_\w+|disparity/.*_disparity)\.png",
    ),
    Layout(
        "COCO-Stuff",
        "stuffthingmaps* | */stuffthingmaps* | annotations/stuff_*",
        "images | train2017 | val2017",
        r"(?:annotations/)?(?:stuffthingmaps\w*|stuff_\w+_pixelmaps)/(?:[^/]+/)?\d{12}[^/]*\.png",
    ),
    Layout(
        "COCO",
        "annotations/instances_*.json | annotations/captions_*.json | train20?? + val20?? | "
        "images/train20?? | annotations/panoptic_* | panoptic_* | annotations_trainval20??.zip | "
        "train2017 | val2017",
        "train2017 | train2014 | images | val2017 | val2014",
        r"(?:annotations/)?panoptic_\w+/\d{12}\.png",
    ),
    Layout(
        "Pascal Context",
        "trainval_merged.json | SegmentationClassContext | */SegmentationClassContext | 33_context_labels",
        "JPEGImages",
        r"(?:SegmentationClassContext|(?:33|59)_context_labels)/[^/]+\.png",
    ),
    Layout(
        "Pascal VOC",
        "VOCdevkit | JPEGImages + Annotations | VOC20??/JPEGImages | TrainVal/VOCdevkit | VOCtrainval_*.tar",
        "JPEGImages | VOC2012/JPEGImages | VOCdevkit/VOC2012/JPEGImages | VOCdevkit/VOC2007/JPEGImages",
        r"Segmentation(?:Class|Object)\w*/[^/]+\.png",
    ),
    Layout(
        "KITTI",
        "data_depth_annotated* | ????_??_??_drive_* | ????_??_??/????_??_??_drive_* | training/image_2 | */proj_depth",
        "training/image_2 | image_2 | image_02/data",
        r"(?:(?:proj_depth|groundtruth_depth)/.*|disp_(?:noc|occ)_\d/\d+_\d+|training/(?:semantic"
        r"|instance)\w*/\d+_\d+)\.png",
    ),
    Layout(
        "SUN RGB-D",
        "SUNRGBD | SUNRGBDtoolbox | kv1 + kv2 | kv2 + xtion | SUNRGBDMeta*.mat",
        "image",
        r"depth(?:_bfx)?/[^/]+\.png",
        beside_photographs=True,
    ),
    Layout("TUM RGB-D", "rgb.txt + depth.txt | */depth.txt", "rgb", r"depth/\d+\.\d+\.png", beside_photographs=True),
    Layout("ScanNet", "scans/scene????_?? | scene????_?? | scannet_frames_25k", "color"),
    Layout("DIODE", "train/indoors | val/indoors | indoors/scene_?????", "*.png"),
    Layout("Hypersim", "ai_???_??? | evermotion_dataset", "*.tonemap.jpg"),
    Layout(
        "Mapillary Vistas",
        "training/v?.? | config_v?.?.json | training/images + training/instances",
        "images | training/images",
        r"v\d\.\d/(?:labels|instances|panoptic)/[^/]+\.png",
        beside_photographs=True,
    ),
    Layout("BDD100K", "images/100k | bdd100k | images/10k", "images", r"labels/.*\.png", beside_photographs=True),
    Layout("the Oxford-IIIT pets", "annotations/trimaps", "images", r"annotations/trimaps/[^/]+\.png"),
    Layout(
        "iNaturalist",
        "train_mini | train_val20?? | 20??_train | 20??_train_mini | */0????_*_*_* | 0????_*_*_* | "
        "train20??.json | train_val20??.tar.gz | categories.json + 20??_train.tar.gz",
        "train | train_mini | 2021_train | train_val2018",
        classes="train_mini | 2021_train_mini | 2021_train | train",
    ),
    Layout(
        "CIFAR",
        "cifar-10* | cifar-100* | data_batch_1* | batches.meta* | cifar10* | train + test + meta | ~cifar-10*",
        advice="its pictures of 32 x 32 px lie in arrays: save them as PNG files, for the scope alone",
    ),
    Layout(
        "Food-101",
        "food-101 | meta/classes.txt + images | images/apple_pie",
        "images | food-101/images",
        classes="images | food-101/images",
    ),
    Layout(
        "Open Images",
        "*-images-boxable*.csv | oidv6-*.csv | class-descriptions-boxable.csv | train_0 + train_1 | validation-images*",
        "train | validation | train_0",
    ),
    Layout(
        "CUB-200",
        "CUB_200_2011 | images.txt + image_class_labels.txt",
        "images | CUB_200_2011/images",
        classes="images | CUB_200_2011/images",
    ),
    Layout(
        "Waterbirds",
        "metadata.csv + [0-9][0-9][0-9].* | metadata.csv + ~waterbird*",
        ".",
        reader="waterbirds",
    ),
    Layout(
        "CelebA-HQ",
        "CelebA-HQ-img | CelebAMask-HQ*",
        "CelebA-HQ-img",
        r"CelebAMask-HQ-mask-anno/\d+/\d+_\w+\.png",
    ),
    Layout(
        "CelebA",
        "img_align_celeba* | Img/img_align_celeba* | list_attr_celeba.* + list_eval_partition.* | "
        "Anno/list_attr_celeba.* | img_celeba* | Img/img_celeba*",
        "img_align_celeba | Img/img_align_celeba",
        reader="celeba",
    ),
    Layout("Flowers-102", "imagelabels.mat | 102flowers.tgz | flowers-102", "jpg | flowers-102/jpg"),
    Layout(
        "STL-10 or SVHN",
        "stl10_binary | train_X.bin | train_32x32.mat",
        advice="its pictures lie in arrays: save them as PNG files, for the scope alone",
    ),
    Layout(
        "Caltech-101 or -256",
        "101_ObjectCategories | 256_ObjectCategories",
        "101_ObjectCategories",
        classes="101_ObjectCategories | 256_ObjectCategories",
    ),
    Layout("MNIST", "*-ubyte | *-ubyte.gz | */*-ubyte", advice="its pictures lie in arrays: save them as PNG files"),
    Layout("a data set in LMDB", "data.mdb | *_lmdb | */data.mdb", advice="save its pictures as files first"),
    Layout(
        "a data set of TensorFlow",
        "*.tfrecord* | */*.tfrecord* | train-?????-of-?????",
        advice="save its pictures as files first",
    ),
    Layout(
        "a data set of Hugging Face",
        "*.parquet | */*.parquet | */*/*.parquet | *.arrow | */*.arrow | dataset_info.json | dataset_dict.json | "
        "train_images_*.tar.gz | */train_images_*.tar.gz | blobs + snapshots | datasets--* | ~*.parquet | ~*.arrow",
        advice="save its pictures as files first, with load_dataset(...) and image.save(...)",
    ),
    Layout(
        "an archive",
        "~*.zip | ~*.7z | ~*.rar | ~*.tar.gz | ~*.tgz | ~*.tar",
        advice="unpack it and give the folder that comes of it",
    ),
    Layout(
        "a folder of archives",
        "*.zip | *.tar.gz | *.tgz | *.7z",
        advice="unpack them and give the folder that comes of it",
    ),
    Layout(
        "a folder of pictures and their maps",
        "",
        "images | image | imgs | img | rgb | color | photos | JPEGImages",
        r"(?:masks?|labels?|annotations?|segmentations?|depths?|gt|ground_?truth|trimaps|label_?maps?"
        r"|disparity)/(?:[^/]+/)?[^/]+\.(?:png|tiff?|pgm|gif|bmp|jpe?g)",
        beside_photographs=True,
    ),
)
