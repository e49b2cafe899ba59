"""What is stored is found again: the hash of every artifact, of configurations that cover what a key can hold.

The golden file holds {configuration: {"kind/name": hash}}, several hashes where several artifacts have one name (the
tokens of the experiment's data and of its probes'), and of one configuration the whole keys, so that a change explains
itself. Nothing is built: see `recorded_keys`. A key that is meant to change is written anew by

    INFOSCOPE_GOLDEN=write python -m pytest tests/golden/test_keys.py
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infoscope.config.tree import StageName, compose
from infoscope.runtime.manifests import Spec
from infoscope.vision.backbone import Backbone
from infoscope.vision.load import load_backbone
from tests.support.recorded_keys import FixedStore, record_keys

GOLDEN = Path(__file__).parent / "artifact_keys.json"
WRITES = os.environ.get("INFOSCOPE_GOLDEN") == "write"
WILL_CHANGE = ("group_activation", "confounds", "report")
"""Kinds whose keys are to change, in a section of their own."""
KINDS = {
    *("scenes", "train_clip", "tokens", "train_sae", "rank", "score", "image_means", "features", "probe", "outliers"),
    *("zero_shot_head", "predict", "masking", "stability", "effects", "latents", "cross", "sample", *WILL_CHANGE),
    *(
        "image_codes",
        "judge",
        "describe",
        "fidelity",
        "attribution",
        "quality",
        "image_head",
        "name",
        "vocabulary",
        "alignment",
        "adapt",
        "label_screen",
        "segment",
        "steering",
        "suppression",
        "explore",
        "levels",
        "thumbnails",
        "extent",
    ),
}
EXPLAINED = "tiny"
"""The configuration whose keys are stored as a whole."""

SCORE, REPORT = [StageName.score], [StageName.probe, StageName.report]
FEW = "debug=tiny probe.n_draws=0 "
ROOTS = "data.root={root}/imagenet probe_data.segmentation.root={root}/ADEChallengeData2016 "
CONFIGURATIONS: dict[str, tuple[str, list[StageName]]] = {
    "default": ("", [StageName.train_clip, *REPORT]),
    "tiny": (
        "debug=tiny",
        [StageName.train_clip, *REPORT, StageName.predict, StageName.stability, StageName.select, StageName.masking],
    ),
    **{
        f"sae={kind}": (FEW + f"sae={kind}", SCORE)
        for kind in ("relu", "topk", "batchtopk", "jumprelu", "matryoshka_k", "matryoshka_prefix")
    },
    "sae.*": (
        FEW + "seeds=[3] sae=matryoshka_k sae.k_levels=[2,8] sae.k=8 sae.level_weights=decreasing sae.aux_k=4"
        " sae.tokens_per_image=9 sae.checkpoint_every_n_steps=7",
        SCORE,
    ),
    "all tokens": (FEW + "sae.tokens=all probe.readouts=[patch_mean,cls_layer]", [StageName.probe]),
    "CLS alone": (FEW + "sae.tokens=cls", [StageName.train_sae]),
    "image folder": (
        FEW + ROOTS + "data=image_folder data.test_share=0.4 data.seed=2 data.resize=crop"
        " probe.tasks=[classification,segmentation] probe_data.classification.kind=scenes"
        " probe_data.segmentation.kind=ade20k",
        REPORT,
    ),
    "class folders": (
        FEW + "data=class_folders data.root={root}/imagenet/train data.test_share=0.4 data.seed=2 probe.target=class"
        " probe.tasks=[classification] probe_data.classification.kind=class_folders"
        " probe_data.classification.root={root}/imagenet",
        [*SCORE, StageName.masking, StageName.probe],
    ),
    "paper": (
        FEW + ROOTS + "data=imagenet data.subset=true data.max_train=10 data.on_error=skip probe_data=paper"
        " probe_data.depth.root={root}/nyu probe=dinov2",
        REPORT,
    ),
    "probe=clip_paper": (FEW + "probe=clip_paper probe.target=light", [StageName.probe]),
    "probe=dinov2": (FEW + "probe=dinov2 probe.n_train_images=50", [StageName.probe]),
    "probe=plain": (FEW + "probe=plain probe.readouts=[patch_mean]", [StageName.probe]),
    "live tokens": (FEW + "data.store_tokens=false sae.pool_images=8", REPORT),
    "float16": (FEW + "data.cache_dtype=float16 data.size_px=112 data.seed=1", [StageName.probe]),
    "other diagonal": (FEW + "scope.diagonal=anti stage=probe", [StageName.probe]),
    "sinkhorn": (FEW + "scope.emd=sinkhorn scope.sinkhorn_blur=0.2 scope.shift_patches=2 scope.rank_by=mean", REPORT),
    "outliers.*": (FEW + "outliers.rule=quantile outliers.quantile=0.9 outliers.n_images=12", REPORT),
    **{
        f"partition={rule}": (f"debug=tiny partition={rule}", [StageName.probe, StageName.predict])
        for rule in ("bands", "quantile", "otsu", "threshold", "mass", "energy")
    },
    "planted registers": (FEW + "experiment=planted_registers", [*REPORT, StageName.stability]),
    "planted facts": (FEW + "model=planted_facts data.planted=marks", [*SCORE, StageName.confounds]),
    "context free": (FEW + "model=context_free seeds=[0,1]", [*REPORT, StageName.stability]),
    "own CLIP": (
        FEW + "model.pretrained=train_clip clip.n_images=600 clip.n_steps=2 clip.warmup_steps=1",
        [StageName.train_clip, *SCORE],
    ),
    "random weights": (FEW + "model.pretrained=random model.seed=4 model.layer=-3", SCORE),
    "model=clip_b16": (FEW + "model=clip_b16 model.precision=bfloat16", SCORE),
    "model=dinov2_b14": (FEW + "model=dinov2_b14", SCORE),
    "predict.*": (
        FEW + "predict.templates=list predict.template_list=['{}!'] predict.n_images=9 predict.seed=5"
        " predict.n_shown=1 predict.n_candidates=3",
        [StageName.predict],
    ),
    "adapt.*": (
        FEW + "adapt.pretrained=random adapt.n_draws=3 adapt.seed=2 adapt.factor=3 describe.n_class_latents=4",
        [StageName.adapt],
    ),
    "describe.*": (
        FEW + "seeds=[0,1] judge=scenes_clip judge.pretrained=random describe.image_code=max describe.strong_above=0.3"
        " describe.n_label_images=3 describe.n_top_images=4 describe.n_clarity_images=5 describe.n_class_latents=6",
        [StageName.describe],
    ),
    "cross.*": (
        FEW + "cross.n_bands=3 cross.n_strata=4 cross.n_draws=60 cross.n_permutations=70 cross.seed=8",
        [StageName.cross],
    ),
    "stability.*": (
        FEW + "seeds=[0,1] data.n_test=3 stability.shifts=[1,3] stability.n_draws=20 stability.seed=6",
        [StageName.stability],
    ),
    "select.*": (FEW + "select.n_kept=[1,2] select.n_bands=2 select.n_draws=1 probe.seed=7", [StageName.select]),
    "masking.*": (
        "debug=tiny masking.n_latents=[1,4] masking.rank_split=test masking.n_draws=2 masking.seed=3"
        " masking.sae_bias=0.1 predict.n_images=9",
        [StageName.masking],
    ),
    "segment.*": (
        FEW + "segment.n_thresholds=3 segment.normalise=image data.n_train=30 data.n_test=6",
        [StageName.segment],
    ),
    "attribution.*": (
        "debug=tiny attribution.towards=label attribution.n_tested=3 attribution.n_steps=4 attribution.seed=2"
        " predict.n_images=9 describe.n_clarity_images=5",
        [StageName.attribute],
    ),
    "steer.*": (
        "debug=tiny steer.n_latents=3 steer.n_images=4 steer.quantile=0.9 steer.min_effect=0.5 steer.min_share=0.7"
        " steer.spurious=place steer.n_suppressed=[2] steer.n_draws=1 steer.seed=2 predict.n_images=9",
        [StageName.steer],
    ),
    "quality.*": (
        "debug=tiny seeds=[0,1] quality.n_tokens=50 quality.n_neighbours=3 quality.k_levels=[1,4] quality.seed=2"
        " quality.n_probe_images=9 probe.target=place",
        [StageName.quality],
    ),
    "name.*": (
        FEW + "model.site=pooled name.reading=row name.min_cosine=0.3 name.min_ratio=1.5 name.n_top_images=3"
        " name.n_nearest=2 name.n_draws=4 name.seed=5 name.concept=red name.text=word",
        [StageName.name],
    ),
    "explore.*": (
        FEW + "seeds=[0,1] explore.n_images=4 explore.thumbnail_px=64 explore.n_browsed=2 explore.n_near=3"
        " explore.n_level_images=9 explore.seed=2",
        [StageName.explore],
    ),
    "extent.*": (
        FEW + "scope.extent.n_images=2 scope.extent.radii=[0] scope.extent.donor=blur scope.extent.blur_patches=1.5"
        " scope.extent.budget_images=900 scope.extent.seed=3",
        [StageName.extent],
    ),
    "curve.*": ("debug=tiny curve.mass_shares=[0.3,0.6] probe.seed=7", [StageName.curve]),
}
"""Overrides, and the stages whose artifacts are recorded."""


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("scenes_clip")


UNITS = ("default", "paper", "live tokens", "partition=bands")
"""Configurations that `make check` looks at too."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in UNITS else pytest.mark.long) for name in CONFIGURATIONS]
)
def test_keys_stay(name: str, tmp_path: Path, backbone: Backbone) -> None:
    overrides, ends = CONFIGURATIONS[name]
    if "{root}" in overrides:
        make_image_trees(tmp_path)
    config = compose(
        [*overrides.replace("{root}", str(tmp_path)).split(), f"output_dir={tmp_path}/out", "trainer.precision=32"]
    )
    store = FixedStore(tmp_path / "store")
    record_keys(config, ends, store, backbone)
    changing = [spec for spec in store.specs if spec.stage in WILL_CHANGE]
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for section, specs in (
        ("lasting", [spec for spec in store.specs if spec not in changing]),
        ("to change", changing),
    ):
        hashes, keys = list_hashes(specs), list_keys(specs)
        if WRITES:
            hashes_of = golden[section]["hashes"] | {name: hashes}
            golden[section]["hashes"] = {of: hashes_of[of] for of in CONFIGURATIONS if of in hashes_of}
            golden[section]["keys"] = keys if name == EXPLAINED else golden[section]["keys"]
            GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        if name == EXPLAINED:
            assert keys == golden[section]["keys"]
        old = golden[section]["hashes"][name]
        changed = [f"{of}: {old.get(of)} -> {hashes.get(of)}" for of in hashes | old if hashes.get(of) != old.get(of)]
        assert changed == []  # the first has changed by itself, others perhaps by what they are made from


def test_the_golden_file_holds_every_kind_of_artifact() -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    kinds = set()
    for section in golden.values():
        assert section["hashes"].keys() == CONFIGURATIONS.keys()
        kinds |= {name.split("/")[0] for names in section["hashes"].values() for name in names}
    assert kinds == KINDS


def list_hashes(specs: list[Spec]) -> dict[str, str | list[str]]:
    """Return {"kind/name": hash}, several hashes where several have one name."""
    found: dict[str, set[str]] = {}
    for spec in specs:
        found.setdefault(f"{spec.stage}/{spec.name}", set()).add(spec.hash)
    return {name: hashes.pop() if len(hashes) == 1 else sorted(hashes) for name, hashes in found.items()}


def list_keys(specs: list[Spec]) -> dict[str, Any]:
    """Return {"kind/name": key}, of each kind the first in the order of the names."""
    by_name = {f"{spec.stage}/{spec.name}": spec for spec in specs}
    first = {spec.stage: name for name, spec in sorted(by_name.items(), reverse=True)}
    return {name: by_name[name].key for name in first.values()}


# -- pictures whose bytes every machine writes alike -----------------------------------------------------------------


def make_image_trees(root: Path) -> None:
    """Write three data sets in their own layouts: ImageNet, ADE20K and NYU Depth v2 as BTS lays it out."""
    for split, n_images in (("train", 12), ("val", 4)):
        for wnid in ("n01440764", "n01443537"):
            for i in range(n_images):
                save_png(root / "imagenet" / split / wnid / f"{wnid}_{i}.JPEG", make_picture(8, 9, i))
    ade, nyu = root / "ADEChallengeData2016", root / "nyu"
    for split, short, n_images in (("training", "train", 4), ("validation", "val", 2)):
        for i in range(1, n_images + 1):
            name = f"ADE_{short}_{i:08d}"
            save_png(ade / "images" / split / f"{name}.jpg", make_picture(8, 9, i))
            save_png(ade / "annotations" / split / f"{name}.png", make_picture(8, 9, i)[:, :, 0] % 4)
    for folder, n_images in (("sync/kitchen_0001", 2), ("official_splits/test/bathroom", 1)):
        for i in range(n_images):
            save_png(nyu / folder / f"rgb_{i:05d}.jpg", make_picture(480, 640, i))
            save_png(nyu / folder / f"sync_depth_{i:05d}.png", np.full((480, 640), 1000 + 500 * i, np.uint16))
    names = "\n".join(f"{i}\t0.1\t1\t1\tthing {i}, other name" for i in range(1, 151))
    (ade / "objectInfo150.txt").write_text(f"Idx\tRatio\tTrain\tVal\tName\n{names}\n", encoding="utf-8")


def make_picture(height: int, width: int, number: int) -> np.ndarray:
    """Return a pattern, [height, width, 3]."""
    values = np.arange(height * width * 3, dtype=np.int64).reshape(height, width, 3)
    return (values * (7 + number) % 251).astype(np.uint8)


def save_png(file: Path, pixels: np.ndarray) -> None:
    """Write a PNG without an encoder: rows of grey (8 or 16 bits) or RGB, stored and not compressed.

    What Pillow writes depends on the libraries that it was built with, and keys hold what files hold.
    """
    height, width = pixels.shape[:2]
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = [raw[start : start + 65535] for start in range(0, len(raw), 65535)]
    stored = [struct.pack("<BHH", part is parts[-1], len(part), 0xFFFF - len(part)) + part for part in parts]
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    body = b"\x78\x01" + b"".join(stored) + struct.pack(">I", zlib.adler32(raw))
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        out.write(b"\x89PNG\r\n\x1a\n")
        for kind, content in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b"")):
            out.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
