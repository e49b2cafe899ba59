"""A small CLIP learns what goes with what, goes on where it was stopped, and is read back by open_clip."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from infoscope.runtime.errors import InputError
from infoscope.vision.config import ContrastiveConfig, ModelConfig
from infoscope.vision.load import load_backbone
from infoscope.vision.open_clip import contrastive
from infoscope.vision.open_clip.backbone import OpenClipBackbone
from infoscope.vision.open_clip.contrastive import CaptionedBatches, compute_retrieval, squash, train_clip
from infoscope.vision.open_clip.tokenizer import WordTokenizer
from infoscope.vision.open_clip.weights import SHIPPED_FOLDER

WORDS = ["a", "light", "dark", "red", "green", "blue"]
COLOURS = {"red": (1.0, 0.2, 0.2), "green": (0.2, 1.0, 0.2), "blue": (0.2, 0.2, 1.0)}
CONFIG = ContrastiveConfig(
    n_images=24,
    n_steps=30,
    batch_size=6,
    lr=3e-3,
    warmup_steps=2,
    patch_dropout=0.25,
    width=32,
    layers=1,
    text_layers=1,
    embed_dim=16,
    patch_px=8,
    grid=4,
    context_length=6,
)
OPTIONS: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
quiet = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*`IterableDataset` has `__len__`")


def make_images(n: int = 24, size_px: int = 40) -> np.ndarray:
    """Image i: one of three colours, light or dark, and some noise."""
    rng = np.random.default_rng(0)
    colours = np.array(list(COLOURS.values()))
    level = np.where(np.arange(n) % 2 == 0, 220, 100)
    values = colours[np.arange(n) % 3] * level[:, None]
    return np.clip(values[:, None, None] + rng.normal(0, 20, (n, size_px, size_px, 3)), 0, 255).astype(np.uint8)


@dataclasses.dataclass
class Swatches:
    images: np.ndarray

    def caption(self, index: int, rng: np.random.Generator | None = None) -> str:
        words = [("light", "dark")[index % 2]] if rng is None or rng.random() < 0.7 else []
        return " ".join(["a", *words, list(COLOURS)[index % 3]])


def make_batches(images: np.ndarray, first_step: int = 0, **changes: Any) -> CaptionedBatches:
    config = dataclasses.replace(CONFIG, **changes)
    tokenizer = WordTokenizer(WORDS, config.context_length)
    return CaptionedBatches(Swatches(images), tokenizer, config, first_step)


def train(folder: Path, *callbacks: L.Callback, **changes: Any) -> open_clip.CLIP:
    for needed in (folder / "made", folder / "progress"):
        needed.mkdir(parents=True, exist_ok=True)
    return train_clip(
        dataclasses.replace(CONFIG, **changes),
        Swatches(make_images()),
        WORDS,
        folder / "made",
        folder / "progress",
        trainer_options={**OPTIONS, "callbacks": list(callbacks)},
    )


class Diary(L.Callback):
    """Notes the loss and the batch of every step; stops with an error after `stop_after` steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.losses: list[float] = []
        self.ids: list[torch.Tensor] = []
        self.dropout: list[float] = []
        self.stop_after = stop_after

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        self.ids.append(batch[1])
        self.dropout.append(getattr(pl_module.clip.visual.patch_dropout, "prob", 0.0))
        if self.stop_after is not None and len(self.losses) == self.stop_after:
            raise RuntimeError("the plug was pulled")


class TestTokenizer:
    def test_words_become_ids_and_the_end_mark_is_the_largest(self):
        tokenizer = WordTokenizer(["red", "ball"], 6)
        assert tokenizer.vocab_size == 5
        assert tokenizer("Red  BALL").tolist() == [[2, 3, 4, 0, 0, 0]]
        assert tokenizer(["ball", ""]).tolist() == [[3, 4, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0]]
        ids = tokenizer(["red", "ball red ball"])
        assert ids.dtype == torch.int64
        assert ids.argmax(1).tolist() == [1, 3]  # where open_clip's text tower pools

    def test_unknown_words_share_an_id(self):
        assert WordTokenizer(["red"], 5)("a red zebra").tolist() == [[1, 2, 1, 3, 0]]

    def test_long_texts_are_cut_before_the_end_mark(self):
        tokenizer = WordTokenizer(["red", "ball"], 3)
        assert tokenizer("red ball red ball").tolist() == [[2, 3, 4]]
        assert tokenizer("red ball red ball", context_length=4).tolist() == [[2, 3, 2, 4]]

    def test_a_vocabulary_without_repeats(self):
        with pytest.raises(ValueError, match="without duplicates"):
            WordTokenizer(["red", "red"], 4)


class TestBatches:
    @pytest.fixture(scope="class")
    def numbered(self) -> np.ndarray:
        """Image i is filled with i."""
        return np.broadcast_to(np.arange(24, dtype=np.uint8)[:, None, None, None], (24, 40, 40, 3)).copy()

    def test_a_batch_is_a_function_of_seed_and_step(self):
        images = make_images()
        one, other = make_batches(images), make_batches(images)
        expected = [other.batch(step) for step in range(8)]
        for step in (5, 0, 7):  # in any order
            for mine, theirs in zip(one.batch(step), expected[step], strict=True):
                assert torch.equal(mine, theirs)
        assert not torch.equal(make_batches(images, seed=1).batch(0)[0], expected[0][0])

    def test_iteration_goes_through_the_steps_that_are_left(self):
        images = make_images()
        whole, rest = list(make_batches(images)), list(make_batches(images, first_step=27))
        assert (len(whole), len(rest)) == (CONFIG.n_steps, 3)
        assert all(torch.equal(a, b) for x, y in zip(whole[27:], rest, strict=True) for a, b in zip(x, y, strict=True))

    def test_helpers_take_turns(self):
        batches = make_batches(make_images(), first_step=20)
        loaded = list(CaptionedBatches(batches.scenes, batches.tokenizer, batches.config, 20, n_helpers=2))
        assert len(loaded) == 10
        assert all(torch.equal(a, b) for x, y in zip(loaded, batches, strict=True) for a, b in zip(x, y, strict=True))

    def test_shapes_and_types(self):
        images, ids = make_batches(make_images(size_px=32)).batch(0)
        assert images.shape == (6, 3, 32, 32)
        assert images.dtype == torch.uint8
        assert images.is_contiguous()
        assert ids.shape == (6, CONFIG.context_length)

    @pytest.mark.parametrize("size", [6, 7])  # with 7, batches reach over the end of an epoch
    def test_every_image_comes_once_per_epoch(self, numbered, size):
        batches = make_batches(numbered, batch_size=size)
        seen = torch.cat([batches.batch(step)[0][:, 0, 0, 0] for step in range(24)]).tolist()
        orders = [seen[start : start + 24] for start in range(0, len(seen) - 23, 24)]
        assert all(sorted(order) == list(range(24)) for order in orders)
        assert len({tuple(order) for order in orders}) == len(orders)

    def test_image_and_text_belong_together(self, numbered):
        batches = make_batches(numbered)
        for step in range(6):
            images, ids = batches.batch(step)
            for i, row in zip(images[:, 0, 0, 0].tolist(), ids.tolist(), strict=True):
                assert WORDS.index(list(COLOURS)[i % 3]) + 2 in row

    def test_crops_and_whole_images_plain_and_mirrored(self):
        """A crop has the model's side, a whole image its own; column numbers tell whether it is mirrored."""
        ramp = np.broadcast_to(4 * np.arange(40, dtype=np.uint8)[None, None, :, None], (6, 40, 40, 3)).copy()
        batches = make_batches(ramp)
        seen = set()
        for step in range(40):
            row = batches.batch(step)[0][0, 0, 16].int()
            seen.add((len(row), bool((row.diff() == 4).all()), bool((row.diff() == -4).all())))
        assert seen == {(32, True, False), (32, False, True), (40, True, False), (40, False, True)}

    def test_images_of_the_models_size_are_left_alone(self):
        images = torch.from_numpy(make_images(2, 32)).permute(0, 3, 1, 2)
        assert torch.equal(squash(images, 32), images.float())
        small = squash(images, 16)
        assert (small.shape, small.dtype) == ((2, 3, 16, 16), torch.float32)
        assert small.min() >= 0
        assert small.max() <= 255


@quiet
class TestTraining:
    @pytest.fixture(scope="class")
    def trained(self, tmp_path_factory) -> tuple[open_clip.CLIP, Path, Diary]:
        folder, diary = tmp_path_factory.mktemp("trained"), Diary()
        return train(folder, diary), folder / "made", diary

    def test_the_loss_falls(self, trained):
        losses = trained[2].losses
        assert len(losses) == CONFIG.n_steps
        assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2

    def test_patches_are_left_out_until_the_last_steps(self, tmp_path):
        diary = Diary()
        clip = train(tmp_path, diary, n_steps=8, patch_dropout=0.5, full_share=0.25)
        assert diary.dropout == [0.5] * 6 + [0.0] * 2
        stored = json.loads((tmp_path / "made" / "open_clip_config.json").read_text())
        assert "patch_dropout" not in stored["model_cfg"]["vision_cfg"]
        theirs = open_clip.create_model(f"local-dir:{tmp_path / 'made'}").eval()
        pixels = torch.zeros(1, 3, 32, 32)
        torch.testing.assert_close(theirs.encode_image(pixels), clip.encode_image(pixels))

    def test_open_clip_loads_the_folder(self, trained):
        clip, folder, _ = trained
        names = {"open_clip_config.json", "open_clip_model.safetensors", "vocabulary.json"}
        assert {path.name for path in folder.iterdir()} == names
        theirs = open_clip.create_model(f"local-dir:{folder}").eval()
        pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        ids = WordTokenizer(WORDS, CONFIG.context_length)(["a red", "a blue"])
        with torch.inference_mode():
            assert torch.equal(theirs.encode_image(pixels), clip.encode_image(pixels))
            assert torch.equal(theirs.encode_text(ids), clip.encode_text(ids))

    def test_load_backbone_loads_it_with_equal_outputs(self, trained):
        clip, folder, _ = trained
        images = torch.from_numpy(make_images(4, 32)).permute(0, 3, 1, 2)
        for config, where in (
            (ModelConfig("mine", pretrained=f"local-dir:{folder}"), None),
            (ModelConfig("mine", pretrained="train_clip"), folder),
        ):
            backbone = load_backbone(config, where)
            assert isinstance(backbone, OpenClipBackbone)
            assert (backbone.grid, backbone.patch_px) == (4, 8)
            with torch.inference_mode():
                expected = clip.encode_image((images / 255 - 0.5) / 0.25, normalize=True)
            torch.testing.assert_close(backbone.embed_images(images), expected)

    def test_the_vocabulary_is_kept(self, trained):
        stored = json.loads((trained[1] / "vocabulary.json").read_text())
        assert WordTokenizer(**stored)("a red")[0, :3].tolist() == [2, 5, 8]

    def test_the_same_seed_gives_the_same_weights(self, trained, tmp_path):
        again = train(tmp_path)
        for name, value in trained[0].state_dict().items():
            torch.testing.assert_close(again.state_dict()[name], value, rtol=1e-4, atol=1e-5)

    @pytest.mark.long
    def test_a_stopped_training_goes_on_to_the_same_end(self, trained, tmp_path, monkeypatch):
        whole, _, through = trained
        monkeypatch.setattr(contrastive, "CHECKPOINT_EVERY_N_STEPS", 10)
        before, after = Diary(stop_after=26), Diary()
        with pytest.raises(RuntimeError, match="the plug was pulled"):
            train(tmp_path, before)
        assert torch.load(tmp_path / "progress" / "last.ckpt", weights_only=True)["global_step"] == 20
        assert not list((tmp_path / "made").iterdir())
        resumed = train(tmp_path, after)
        assert before.losses == pytest.approx(through.losses[:26], rel=1e-3, abs=1e-4)
        assert len(after.losses) == 10
        assert all(torch.equal(a, b) for a, b in zip(after.ids, through.ids[20:], strict=True))
        assert after.losses == pytest.approx(through.losses[20:], rel=1e-3, abs=1e-4)
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(resumed.state_dict()[name], value, rtol=1e-3, atol=1e-4)

    def test_a_loss_that_is_no_number_stops_it(self, tmp_path):
        with pytest.raises(InputError, match=r"contrastive loss became nan at step \d+: lower clip\.lr"):
            train(tmp_path, lr=1e30, warmup_steps=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_steps": 0}, "clip.n_steps to be at least 1, got 0"),
        ({"batch_size": 25}, r"clip.batch_size to be at most clip.n_images \(24\), got 25"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **changes)


class Perfect:
    """Reads the number that an image is filled with and the number of its caption's word."""

    visual = SimpleNamespace(image_size=(8, 8))

    def encode_image(self, pixels: torch.Tensor, normalize: bool) -> torch.Tensor:
        number = ((pixels.mean((1, 2, 3)) * 0.25 + 0.5) * 255 / 20).round().long()
        return torch.nn.functional.one_hot(number, 16).float()

    def encode_text(self, ids: torch.Tensor, normalize: bool) -> torch.Tensor:
        return torch.nn.functional.one_hot(ids[:, 0] - 2, 16).float()


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 0.0)])
def test_retrieval_of_a_perfect_model_is_one_and_of_a_mistaken_one_zero(shift, expected):
    words = [f"w{i}" for i in range(12)]
    images = np.broadcast_to(20 * np.arange(12, dtype=np.uint8)[:, None, None, None], (12, 12, 12, 3))
    captions = [words[(i + shift) % 12] for i in range(12)]
    tokenizer: Any = WordTokenizer(words, 4)
    clip: Any = Perfect()
    found = compute_retrieval(clip, images[:11], captions[:11], tokenizer, batch_size=5)  # the eleventh is left out
    if shift:
        assert found["image_to_text_top1"] < 0.3  # argmax of nothing but zeros is the first
    else:
        assert found == {"image_to_text_top1": 1.0, "text_to_image_top1": 1.0, "among": 5.0}


@quiet
def test_it_may_begin_with_the_weights_of_scenes_clip_and_see_some_of_the_scenes(tmp_path: Path) -> None:
    shipped = load_file(SHIPPED_FOLDER / "open_clip_model.safetensors")
    config = ContrastiveConfig(n_images=6, n_steps=1, batch_size=2, warmup_steps=1, lr=1e-6, init="shipped")
    pictures = Swatches(make_images(6, config.image_px))
    words = json.loads((SHIPPED_FOLDER / "vocabulary.json").read_text())["words"]
    trained = train_clip(config, pictures, words, tmp_path, tmp_path / "progress", OPTIONS, rows=np.array([1, 4]))
    change = max(float((value - shipped[name]).abs().max()) for name, value in trained.state_dict().items())
    assert 0 < change < 1e-5
    batches = CaptionedBatches(pictures, WordTokenizer(words, 8), config, rows=np.array([1, 4]))
    seen, _ = batches.batch(0)
    mine = {pictures.images[row].tobytes() for row in (1, 4)}
    mine |= {pictures.images[row][:, ::-1].tobytes() for row in (1, 4)}
    assert {image.permute(1, 2, 0).numpy().tobytes() for image in seen} <= mine
    small = dataclasses.replace(CONFIG, init="shipped")
    with pytest.raises(InputError, match=r"clip\.init=shipped begins with the weights of scenes_clip"):
        train_clip(small, pictures, words, tmp_path, tmp_path / "other", OPTIONS)


@quiet
def test_it_may_learn_more_words_than_scenes_clip_knows(tmp_path: Path) -> None:
    shipped = load_file(SHIPPED_FOLDER / "open_clip_model.safetensors")["token_embedding.weight"]
    config = ContrastiveConfig(n_images=6, n_steps=1, batch_size=2, warmup_steps=1, lr=1e-6, init="shipped")
    words = [*json.loads((SHIPPED_FOLDER / "vocabulary.json").read_text())["words"], "marks", "alike"]
    pictures = Swatches(make_images(6, config.image_px))
    train_clip(config, pictures, words, tmp_path, tmp_path / "progress", OPTIONS)
    table = load_file(tmp_path / "open_clip_model.safetensors")["token_embedding.weight"]
    assert len(table) == len(shipped) + 2
    torch.testing.assert_close(table[[*range(len(shipped) - 1), -1]], shipped, rtol=0, atol=1e-5)
    assert table[-3:-1].std() > 0
    with pytest.raises(InputError, match=r"clip\.init=shipped begins"):
        train_clip(config, pictures, words[::-1], tmp_path, tmp_path / "other", OPTIONS)


def test_only_what_is_new_in_the_settings_moves_their_key() -> None:
    fields = CONFIG.cache_key_fields()
    assert {"init", "place"}.isdisjoint(fields)
    assert fields["width"] == 32
    assert dataclasses.replace(CONFIG, place="sea").cache_key_fields() == {**fields, "place": "sea"}
