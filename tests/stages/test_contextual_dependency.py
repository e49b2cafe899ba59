"""The measurement as one calls it from Python: what it takes, what it refuses, and that it equals the chain."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import infoscope
from infoscope import InputError, contextual_dependency, load_backbone, load_sae
from infoscope.config.tree import compose
from infoscope.data.config import Resize
from infoscope.data.image_folder import ImageFolder
from infoscope.data.images import resize_image
from infoscope.data.pictures import Pictures
from infoscope.pipeline.run import run
from infoscope.runtime import progress
from infoscope.runtime.calls import say_in_python
from infoscope.runtime.progress import Display
from infoscope.sae.activations import TopK
from infoscope.sae.config import TokenChoice
from infoscope.sae.latent_table import LatentColumn, LatentTable
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import Origin
from infoscope.scope.ranking import RankBy, Ranking
from infoscope.scope.scores import Scores
from infoscope.vision.backbone import Backbone
from infoscope.vision.planted import PlantedRegisters

QUIET: dict[str, Any] = {"k_cds": 3, "n_workers": 1, "progress": False}
README = Path(infoscope.__file__).parents[2] / "README.md"


@pytest.fixture
def backbone() -> Backbone:
    return PlantedRegisters(grid=6, patch_px=4, d_in=32)


@pytest.fixture
def sae(backbone: Backbone) -> SparseAutoencoder:
    sae = SparseAutoencoder(32, 40, TopK(4)).requires_grad_(False)
    sae.origin = Origin.of(backbone, 0, TokenChoice.patch)
    return sae


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (6, 26, 26, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(noise: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The noise as six files, a list of them, and a tar of them beside the folder."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "all").mkdir()
    for i, picture in enumerate(noise):
        Image.fromarray(picture).save(root / "all" / f"{i}.png")
    (root / "list.txt").write_text("".join(f"all/{i}.png\n" for i in range(6)))
    for shard in range(2):
        with tarfile.open(root / f"s-{shard}.tar", "w") as tar:
            for i in range(3 * shard, 3 * shard + 3):
                tar.add(root / "all" / f"{i}.png", f"{i}.png")
    return root / "all"


# -- images ------------------------------------------------------------------------------------------------------------


class DataSet(torch.utils.data.Dataset):
    """As torch's data sets are: numbered, not iterable as such."""

    def __init__(self, pictures: np.ndarray) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pictures[index])


def test_images_of_every_kind_are_the_same_images(
    backbone: Backbone, sae: SparseAutoencoder, noise: np.ndarray, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    tensor, files = torch.from_numpy(noise).permute(0, 3, 1, 2), sorted(folder.iterdir())
    alpha = np.concatenate([noise, noise[..., :1]], axis=3)
    on_disk = [folder, str(folder), "~/all", folder.parent / "list.txt", "~/list.txt", "~/s-{0..1}.tar"]
    given = [noise, list(noise), tensor, list(tensor), torch.from_numpy(noise), tensor.numpy(), alpha, Pictures(noise)]
    given += [files, [str(file) for file in files], (file for file in files), np.array([str(file) for file in files])]
    given += [[Image.open(file) for file in files], DataSet(noise), ImageFolder(folder, test_share=0)]
    given += [[files[0], noise[1], tensor[2], Image.fromarray(noise[3]), *noise[4:]]]
    found = [contextual_dependency(backbone, sae, one, **QUIET, test_share=0) for one in on_disk]
    found += [contextual_dependency(backbone, sae, one, **QUIET) for one in given]
    assert found[0].cds.shape == found[0].chance.shape == (40,)
    assert found[0].emd.shape == (40, 16)
    assert np.isfinite(found[0].cds).any()
    assert found[0].image_ids == [f"{i}.png" for i in range(6)]
    assert found[len(on_disk) + 8].image_ids == [str(file) for file in files]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].emd, other.emd)
        np.testing.assert_array_equal(found[0].ranking.top_images, other.ranking.top_images)


def test_grey_pictures_and_other_modes_are_read_as_files_are(noise: np.ndarray, folder: Path) -> None:
    grey = noise[..., 0]
    pictures = Pictures([grey[0], grey[1][None], torch.from_numpy(grey[2]), Image.fromarray(grey[3])])
    for i in range(4):
        np.testing.assert_array_equal(pictures.photograph(i), np.repeat(grey[i][..., None], 3, axis=2))
    turned = Image.fromarray(noise[0][:, :20])
    turned.getexif()[0x0112] = 6
    assert Pictures([turned]).photograph(0).shape == (20, 26, 3)
    assert Pictures(noise).fingerprint == Pictures(list(noise)).fingerprint != Pictures(noise[:5]).fingerprint
    squashed, cropped = (Pictures([noise[0][:, :13]], resize).load(0, 13) for resize in (Resize.squash, Resize.crop))
    assert np.array_equal(cropped, resize_image(noise[0][:, :13], 13, Resize.crop))
    assert not np.array_equal(cropped, squashed)


BAD_IMAGES = {
    "nothing": (None, "got NoneType"),
    "a number": (3, "got int"),
    "a mapping": ({"a": 1}, "got dict"),
    "a set": ({"a.png"}, "got set"),
    "bytes": (b"x", "got bytes"),
    "a function": (len, "got builtin"),
    "an empty list": ([], "images= is empty"),
    "an empty array": (np.zeros((0, 8, 8, 3), np.uint8), "images= is empty"),
    "an empty text": ("", "images= not to be empty"),
    "one picture": (np.zeros((8, 8, 3), np.uint8), r"got \[8, 8, 3\]: give single pictures as a list"),
    "one PIL image": (Image.new("RGB", (8, 8)), "got PIL"),
    "floats in 0..1": (np.full((2, 8, 8, 3), 0.5), "float64.*multiply by 255"),
    "floats in 0..255": (torch.full((2, 3, 8, 8), 200.0), "float32.*round them"),
    "normalised": (torch.full((2, 3, 8, 8), -1.5), "before any normalisation"),
    "NaN": (torch.full((2, 3, 8, 8), torch.nan), "before any normalisation"),
    "integers": (np.zeros((2, 8, 8, 3), np.int64), "int64.*convert them to uint8"),
    "16 bits": (np.full((2, 8, 8, 3), 40_000, np.uint16), r"uint16.*40000.*bring them to 0\.\.255"),
    "seven colours": (np.zeros((2, 8, 8, 7), np.uint8), "neither its first nor its last axis"),
    "two sides that could be colours": ([np.zeros((4, 8, 4), np.uint8)], "either could be its colours"),
    "with labels": ([(np.zeros((8, 8, 3), np.uint8), 1)], "got tuple; leave out what comes with the pictures"),
    "batches": ([np.zeros((2, 8, 8, 3), np.uint8)], r"got \[2, 8, 8, 3\] at position 0"),
    "no folder": ("/no/where", "check images="),
    "no list": ("/no/where.txt", "check images="),
    "a pattern": ("/no/*.jpg", r"got the pattern /no/\*\.jpg: give a list"),
    "no tars": ("/no/s-{0..2}.tar", "3 that are missing"),
    "tars in a list": (["a.tar"], "give it by itself, images='a.tar'"),
    "no file in a list": (["/no/where.png"], r'1 of 1 that are missing.*on_error="skip"'),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_what_is_no_image_is_refused_by_one_sentence(backbone: Backbone, sae: SparseAutoencoder, name: str) -> None:
    images, words = BAD_IMAGES[name]
    with pytest.raises(InputError, match=words) as told:
        contextual_dependency(backbone, sae, images, **QUIET)
    assert "\n" not in str(told.value)
    assert not re.search(r"\b(data|scope|model)\.\w", str(told.value))
    assert backbone.n_images_encoded == 0


def test_files_in_a_list_are_given_once(backbone: Backbone, sae: SparseAutoencoder, folder: Path) -> None:
    file = folder / "1.png"
    with pytest.raises(InputError, match=r"1\.png is given more than once"):
        contextual_dependency(backbone, sae, [file, file], **QUIET)
    with pytest.raises(InputError, match="got the folder"):
        contextual_dependency(backbone, sae, [folder], **QUIET)


@pytest.mark.parametrize("as_list", [True, False])
def test_unreadable_images_stop_or_are_listed(
    backbone: Backbone, sae: SparseAutoencoder, folder: Path, tmp_path: Path, as_list: bool
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 200 if file.name == "2.png" else None])
    images: Any = sorted(tmp_path.iterdir()) if as_list else tmp_path
    options = QUIET if as_list else {**QUIET, "test_share": 0}
    with pytest.raises(InputError, match=r'2\.png.*set on_error="skip"'):
        contextual_dependency(backbone, sae, images, **options)
    found = contextual_dependency(backbone, sae, images, **options, on_error="skip")
    [(name, reason)] = found.skipped.items()
    assert name.endswith("2.png")
    assert reason
    assert found.ranking.n_images == 5
    assert 2 not in found.ranking.top_images
    assert "5 images, 0 held out, 1 skipped" in repr(found)
    with pytest.raises(InputError, match="at least k_cds=6 images to rank, got 5"):
        contextual_dependency(backbone, sae, images, **{**options, "k_cds": 6}, on_error="skip")


def test_readers_and_resize_are_options(backbone: Backbone, sae: SparseAutoencoder, tmp_path: Path) -> None:
    wide = np.random.default_rng(2).integers(0, 256, (4, 26, 60, 3), dtype=np.uint8)
    squash, crop, read = (
        contextual_dependency(backbone, sae, wide, **QUIET, **options)
        for options in ({}, {"resize": "crop"}, {"n_readers": 1})
    )
    np.testing.assert_array_equal(squash.emd, read.emd)
    assert not np.array_equal(squash.emd, crop.emd, equal_nan=True)


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k_cd": 3}, r"no option 'k_cd' \(did you mean k_cds\?\)"),
        ({"chek_origin": False}, r"did you mean check_origin\?"),
        ({"k_cds": "8"}, "k_cds to be a whole number, got '8'"),
        ({"k_cds": True}, "k_cds to be a whole number, got True"),
        ({"k_cds": float("nan")}, "k_cds to be a whole number, got nan"),
        ({"k_cds": 7}, "at least k_cds=7 images, got 6"),
        ({"k_cds": 0}, "k_cds to be at least 1"),
        ({"k_max": 2}, r"k_max to be at least k_cds \(3\).*set None"),
        ({"layer": 1.5}, r"layer to be a whole number, got 1\.5"),
        ({"layer": "1"}, "layer to be a whole number, got '1'"),
        ({"layer": 2}, r"Expected layer in -2\.\.1"),
        ({"layer": 1}, "layer=1 is block 1 of 2: leave out layer="),
        ({"shift_patches": 5}, r"Expected shift_patches .* use at most 4"),
        ({"sinkhorn_blur": float("nan")}, "sinkhorn_blur to be a number, got nan"),
        ({"sinkhorn_blur": float("inf")}, "sinkhorn_blur"),
        ({"rank_by": "maximum"}, r"rank_by to be one of max, mean, drawn.*did you mean \"max\""),
        ({"emd": None}, "emd to be one of exact, sinkhorn, got None"),
        ({"on_error": "ignore"}, "on_error to be one of raise, skip"),
        ({"resize": "squeeze"}, "resize to be one of squash, crop"),
        ({"n_readers": -1}, "n_readers to be at least 0"),
        ({"max_train": 2.0}, "max_train to be a whole number"),
        ({"test_share": 0.1}, "test_share= divides photographs on the disk"),
        ({"progress": "yes"}, "progress= to be True, False or a function"),
    ],
    ids=str,
)
def test_a_wrong_option_is_one_sentence_before_anything_is_encoded(
    backbone: Backbone, sae: SparseAutoencoder, noise: np.ndarray, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as told:
        contextual_dependency(backbone, sae, noise, **{**QUIET, **options})
    assert "\n" not in str(told.value)
    assert not re.search(r"\b(data|scope|model)\.\w", str(told.value))
    assert backbone.n_images_encoded == 0


def test_numbers_of_any_kind_and_names_are_taken(backbone: Backbone, sae: SparseAutoencoder, noise: np.ndarray) -> None:
    options = {
        "rank_by": "mean",
        "k_cds": np.int64(3),
        "sinkhorn_blur": 1,
        "k_max": np.uint8(4),
        "layer": torch.tensor(0),
    }
    found = contextual_dependency(backbone, sae, noise, **{**QUIET, **options})
    same = contextual_dependency(backbone, sae, noise, **QUIET, rank_by=RankBy.mean, k_max=4)
    np.testing.assert_array_equal(found.emd, same.emd)
    assert found.ranking.rank_by is RankBy.mean
    assert found.layer == 0


def test_latents_are_divided_as_on_the_command_line(
    backbone: Backbone, sae: SparseAutoencoder, noise: np.ndarray
) -> None:
    with torch.no_grad():
        sae.W_dec[::2] *= 3.0  # rows of any length, as other people's SAEs have
    found = contextual_dependency(backbone, sae, noise, **QUIET)
    halves, scored = found.divide(), np.isfinite(found.cds)
    mass = found.ranking.mean_act * np.where(np.arange(40) % 2, 1, 3) * sae.W_dec[1].norm().item()
    np.testing.assert_allclose(found.mass, mass, rtol=1e-5)
    assert mass[halves.low].sum() >= 0.5 * mass[scored].sum() > mass[found.cds < halves.gamma].sum()
    assert np.array_equal(found.divide(gamma=0.2).high, found.cds > 0.2)
    assert len(found.divide(n_bands=3).groups) == 3
    for options, words in {
        "gama": ({"gama": 0.1}, "gamma"),
        "range": ({"gamma": 1.5}, "Expected gamma to be in 0..1"),
        "contradiction": (
            {"rule": "otsu", "gamma": 0.1},
            'nothing to rule="otsu": drop it, or choose rule="threshold"',
        ),
        "type": ({"quantile": "half"}, "quantile"),
        "windows": ({"by": "extent"}, "takes no option 'by'"),
    }.values():
        with pytest.raises(InputError, match=words):
            found.divide(**options)


def test_arguments_of_other_types_are_named(backbone: Backbone, sae: SparseAutoencoder, noise: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"backbone= .* load_backbone .* got infoscope\.sae\.model\.SparseAuto"):
        contextual_dependency(sae, backbone, noise)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="sae= to be what load_sae returns, got str"):
        contextual_dependency(backbone, "an/sae", noise)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="load_sae takes no option 'device'"):
        load_sae("x", device="cpu")  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        ("scenes_clip", {"imgae_px": 96}, r"load_backbone takes no option 'imgae_px' \(did you mean image_px\?\)"),
        ("scenes_clip", {"image_px": "96"}, "image_px to be a whole number, got '96'"),
        ("scenes_clip", {"image_px": 100}, "Expected image_px to be a multiple of the patch"),
        ("scenes_clip", {"mean": 0.5}, r"mean to hold three numbers .*, got 0\.5"),
        ("scenes_clip", {"quick_gelu": "yes"}, "quick_gelu to be True or False, got 'yes'"),
        ("scenes_clip", {"precision": "half"}, "precision to be float32 or bfloat16"),
        ("ViT-B-16:random", {"seed": -1}, "Expected seed to be at least 0"),
        (Path("ViT-B-16:a"), {}, "Expected a name .* got pathlib"),
        ("scenes_clip", {"progress": 1.5}, "progress= to be True, False"),
    ],
)
def test_options_of_a_backbone_are_checked(config: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_backbone(config, **options)


def test_a_backbone_has_the_options_of_the_command_line() -> None:
    loaded = load_backbone("scenes_clip", image_px=np.int64(128), precision="bfloat16", progress=False)
    assert (loaded.image_px, loaded.precision) == (128, "bfloat16")


def test_an_sae_of_cls_tokens_or_another_backbone_is_refused(
    backbone: Backbone, sae: SparseAutoencoder, noise: np.ndarray
) -> None:
    other = PlantedRegisters(grid=6, patch_px=4, d_in=32, seed=1)
    with pytest.raises(InputError, match="another backbone than the one given: seed 0, given 1"):
        contextual_dependency(other, sae, noise, **QUIET)
    assert contextual_dependency(other, sae, noise, **QUIET, check_origin=False).layer == 0
    sae.origin = Origin(0, tokens=TokenChoice.cls)
    with pytest.raises(InputError, match=r'SAE of CLS tokens .* tokens="patch" or all'):
        contextual_dependency(backbone, sae, noise, **QUIET)


def test_sentences_about_settings_become_sentences_about_arguments() -> None:
    settings = {"data.root", "data.on_error", "data.n_workers", "scope.k_cds", "scope.k_max", "scope.emd", "model.mean"}
    for said, expected in {
        "check data.root, or set data.on_error=skip.": 'check images=, or set on_error="skip".',
        "at least scope.k_cds=8 images: lower scope.k_cds.": "at least k_cds=8 images: lower k_cds.",
        "set scope.k_max=null (scope.emd=exact).": 'set k_max=None (emd="exact").',
        "raise data.n_workers, give model.mean=[0.5,0.5,0.5]": "raise n_readers, give mean=[0.5,0.5,0.5]",
        "no /data.root/data.txt beside sae.json, a-data.root": "no /data.root/data.txt beside sae.json, a-data.root",
    }.items():
        assert say_in_python(said, settings) == expected


# -- progress ----------------------------------------------------------------------------------------------------------


def test_a_function_is_told_how_far_it_is(backbone: Backbone, sae: SparseAutoencoder, noise: np.ndarray) -> None:
    told: list[tuple[str, int, int | None]] = []
    contextual_dependency(backbone, sae, noise, **{**QUIET, "progress": lambda *args: told.append(args)})
    last = {what: (done, total) for what, done, total in told}
    assert list(last) == ["finding top-activating images", "encoding crops", "computing EMD"]
    assert all(done == total for done, total in last.values())
    assert last["finding top-activating images"] == (6, 6)


def test_long_work_says_how_far_it_is_on_stderr(
    backbone: Backbone,
    sae: SparseAutoencoder,
    noise: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    contextual_dependency(backbone, sae, noise, k_cds=3, n_workers=1)
    assert capsys.readouterr().err == ""  # short work is quiet
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    contextual_dependency(backbone, sae, noise, k_cds=3, n_workers=1)
    told = capsys.readouterr()
    assert "finding top-activating images: 6 of 6 images (100%)" in told.err
    assert "scoring: encoding crops: 6 of 6" in told.err
    assert "scoring: computing EMD: " in told.err
    assert told.out == ""


# -- the same photographs through both doors ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for i in range(24):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        coarse.resize((60 + 5 * i, 130 - 3 * i), Image.Resampling.BICUBIC).save(root / f"{i:02d}.jpg")
    return root


@pytest.fixture(scope="module")
def scored(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What the command line makes of the photographs: the artifacts, and what it says."""
    output_dir, text = tmp_path_factory.mktemp("outputs"), io.StringIO()
    settings = ["stage=score", "data=image_folder", f"data.root={photographs}", f"output_dir={output_dir}", "seeds=[0]"]
    settings += ["sae.expansion_factor=1", "sae.k=4", "sae.n_tokens=8192", "sae.eval_tokens=1024", "scope.k_cds=4"]
    settings += ["scope.k_max=4", "scope.n_workers=1", "logger=none", "trainer.device=cpu", "trainer.progress=false"]
    threads = torch.get_num_threads()
    try:
        run(compose(settings), Display(Console(file=text, width=160), bars=False))
    finally:
        torch.set_num_threads(threads)
    return output_dir / "artifacts", text.getvalue()


def only(folder: Path) -> Path:
    [found] = folder.glob("[!.]*")
    return found


@pytest.mark.long
def test_both_doors_give_the_same_numbers_to_the_bit(photographs: Path, scored: tuple[Path, str]) -> None:
    artifacts, text = scored
    sae = load_sae(only(artifacts / "train_sae"))
    found = contextual_dependency(load_backbone(), sae, photographs, k_cds=4, k_max=4, n_workers=1, progress=False)
    ranking, scores = Ranking.load(only(artifacts / "rank")), Scores.load(only(artifacts / "score"))
    for name in ("top_images", "top_values", "firing_rate", "mean_act"):
        np.testing.assert_array_equal(getattr(found.ranking, name), getattr(ranking, name))
    for name in ("emd", "chance_emd", "mass1", "mass2", "maps"):
        np.testing.assert_array_equal(getattr(found.scores, name), getattr(scores, name))
    assert 0 < np.isfinite(found.cds).sum() == np.isfinite(scores.cds(4).values).sum()
    n = found.ranking.n_images
    assert (n, found.n_held_out) == (ranking.n_images, 24 - n)
    assert 0 < found.n_held_out < 10
    assert f"{n} training images, {24 - n} held out as test images (data.test_share=0.1)" in " ".join(text.split())


@pytest.mark.long
def test_all_of_the_photographs_are_taken_if_one_says_so(photographs: Path, scored: tuple[Path, str]) -> None:
    sae, backbone = load_sae(only(scored[0] / "train_sae")), load_backbone()
    options: dict[str, Any] = {"k_cds": 4, "k_max": 4, "n_workers": 1, "progress": False}
    everything = contextual_dependency(backbone, sae, photographs, test_share=0, **options)
    listed = contextual_dependency(backbone, sae, sorted(photographs.iterdir()), **options)
    assert (everything.ranking.n_images, everything.n_held_out, listed.n_held_out) == (24, 0, 0)
    np.testing.assert_array_equal(everything.emd, listed.emd)
    few = contextual_dependency(backbone, sae, photographs, max_train=9, seed=2, **options)
    assert few.ranking.n_images == 9
    with pytest.raises(InputError, match=r"at least k_cds=24 images, got \d\d images without the \d held out"):
        contextual_dependency(backbone, sae, photographs, k_cds=24, progress=False)


def test_another_artifact_is_named(scored: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = scored[0]
    folder = only(artifacts / "train_sae")
    for stage in ("score", "rank"):
        with pytest.raises(InputError, match=f"artifact of the stage {stage}: its SAE is {re.escape(str(folder))}"):
            load_sae(only(artifacts / stage))
    with pytest.raises(InputError, match="artifact of the stage tokens: give a folder of train_sae"):
        load_sae(next((artifacts / "tokens").glob("[!.]*")))
    with pytest.raises(InputError, match=f"give one of the folders in it, such as {folder.name}"):
        load_sae(artifacts / "train_sae")
    with pytest.raises(InputError, match=rf"there is no .* \(did you mean {folder.name}\?\)"):
        load_sae(artifacts / "train_sae" / folder.name.replace("seed0", "seed1"))
    with pytest.raises(InputError, match=r"file or folder of an SAE, and there is no .*/no/where\."):
        load_sae("~/no/where")
    with pytest.raises(InputError, match=r"config\.yaml: it holds text, not weights"):
        load_sae(folder / "config.yaml")
    with pytest.raises(InputError, match="path= to be the file or folder of an SAE, got NoneType"):
        load_sae(None)  # pyright: ignore[reportArgumentType]
    monkeypatch.setenv("HOME", str(artifacts))
    assert load_sae(f"~/train_sae/{folder.name}").origin.layer == 2


def test_the_readme_runs(
    photographs: Path, scored: tuple[Path, str], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code, and that of the package's page, on these photographs with this SAE."""
    pages = README.read_text(), (Path(infoscope.__file__).parent / "README.md").read_text()
    code = "\n".join(block for page in pages for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    columns = {"ms": rng.random(1000), "group": np.array(["low", "high"] * 500), "cds": rng.random(1000)}
    LatentTable(0, [LatentColumn(name, values, "") for name, values in columns.items()]).save(tmp_path)
    for said, here in {
        "/photos/dog.jpg": str(photographs / "00.jpg"),
        '"dog.jpg"': f'"{photographs / "00.jpg"}"',
        'load_latents("outputs"': f'load_latents("{tmp_path}"',
        "PATH": str(only(scored[0] / "train_sae")),
        "ViT-B-16:/ckpt/b16.safetensors": "scenes_clip",
        "outputs/artifacts/train_sae/clip_b16-topk-seed0-<hash>": str(only(scored[0] / "train_sae")),
        "/photos": str(photographs),
        '"a photo of a dog", "a photo of a cat"': '"a ball", "a cube"',
    }.items():
        assert said in code
        code = code.replace(said, here)
    names: dict[str, Any] = {"images": torch.zeros(2, 3, 96, 96, dtype=torch.uint8)}
    exec(code, names)  # our own page
    assert names["z"].shape == (2, 144, names["sae"].d_sae)
    assert names["x_hat"].shape == (2, 144, names["sae"].d_in)
    assert names["found"].ranking.n_images < 24
    np.testing.assert_array_equal(names["ms_of_low"], columns["ms"][::2])
    assert (names["patch"].row, names["patch"].column) == (6, 4)
    assert list(names["told"]) == names["patch"].latents.tolist()
    assert names["said"].texts == ("a ball", "a cube")
    assert (tmp_path / "prediction.png").stat().st_size > 0
    assert (tmp_path / "patch.png").stat().st_size > 0
    assert np.isfinite(names["found"].cds).any()
    assert "images without the" in capsys.readouterr().err


def test_what_lies_beside_the_images_is_said(
    backbone: Backbone, sae: SparseAutoencoder, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "notes.doc").write_text("no picture")
    contextual_dependency(backbone, sae, tmp_path, k_cds=2, n_workers=1)
    told = capsys.readouterr()
    assert "1 .doc (notes.doc)" in told.err
    assert told.out == ""
    contextual_dependency(backbone, sae, tmp_path, **{**QUIET, "k_cds": 2})
    assert capsys.readouterr().err == ""
