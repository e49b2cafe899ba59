"""Where weights may come from, what is refused, and fingerprints that need no model."""

from __future__ import annotations

import copy
import json
import shutil
import socket
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.load import compute_model_fingerprint, load_backbone
from infoscope.vision.open_clip import family
from infoscope.vision.open_clip.backbone import OpenClipBackbone
from infoscope.vision.open_clip.weights import SHIPPED_FOLDER
from tests.support.clip_samples import MEAN, make_clip, make_clip_cfg, make_images

ARCH = "ViT-B-16"


@pytest.fixture
def tiny_arch(monkeypatch) -> dict:
    """Make open_clip's ViT-B-16 a tower of four narrow blocks, so that a file of it is a few kilobytes."""
    cfg = make_clip_cfg()
    get_model_config = open_clip.get_model_config
    monkeypatch.setattr(
        open_clip, "get_model_config", lambda name: copy.deepcopy(cfg) if name == ARCH else get_model_config(name)
    )
    return cfg


@pytest.fixture
def clip(tiny_arch) -> open_clip.CLIP:
    return make_clip(tiny_arch)


@pytest.fixture
def weights(clip, tmp_path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_file(clip.state_dict(), path)
    return path


def with_file(path: Path, quick_gelu: bool | None = False, **options) -> ModelConfig:
    return ModelConfig("tiny", arch=ARCH, pretrained=str(path), quick_gelu=quick_gelu, **options)


def load(config: ModelConfig | str) -> OpenClipBackbone:
    backbone = load_backbone(config)
    assert isinstance(backbone, OpenClipBackbone)
    return backbone


def encode(clip: torch.nn.Module, backbone: OpenClipBackbone, images: Tensor) -> Tensor:
    """The plain forward of another model on the same pixels."""
    with torch.inference_mode():
        return clip.encode_image(backbone.normalise(images), normalize=True)


def assert_one_sentence(error: BaseException) -> None:
    message = str(error)
    assert "\n" not in message
    assert message.endswith(".")
    assert len(message) < 700


class TestFiles:
    def test_safetensors(self, clip, weights):
        backbone, images = load(with_file(weights)), make_images(3)
        assert torch.equal(backbone.embed_images(images), encode(clip, backbone, images))
        assert not backbone.training
        assert not any(parameter.requires_grad for parameter in backbone.parameters())
        assert backbone.mean.flatten().tolist() == pytest.approx(MEAN)

    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_state_dicts(self, clip, tmp_path, suffix, wrapped):
        state = clip.state_dict()
        if wrapped:  # as open_clip's distributed training leaves it
            state = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}
        path = tmp_path / f"tiny{suffix}"
        torch.save(state, path)
        backbone, images = load(with_file(path)), make_images(2)
        assert torch.equal(backbone.embed_images(images), encode(clip, backbone, images))

    def test_the_short_form(self, clip, weights):
        backbone, images = load_backbone(f"{ARCH}:{weights}", quick_gelu=False), make_images(2)
        assert isinstance(backbone, OpenClipBackbone)
        assert torch.equal(backbone.embed_images(images), encode(clip, backbone, images))

    @pytest.mark.parametrize("file_name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
    def test_local_dir_as_open_clip_writes_it(self, tmp_path, file_name):
        cfg = make_clip_cfg(ls_init_value=0.2)
        clip = make_clip(cfg)
        preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
        content = {"model_cfg": cfg, "preprocess_cfg": preprocess}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
        if file_name.endswith(".safetensors"):
            save_file(clip.state_dict(), tmp_path / file_name)
        else:
            torch.save(clip.state_dict(), tmp_path / file_name)
        backbone = load(ModelConfig("tiny", pretrained=f"local-dir:{tmp_path}"))
        theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
        images = make_images(2)
        assert backbone.mean.flatten().tolist() == pytest.approx(preprocess["mean"])
        assert backbone.std.flatten().tolist() == pytest.approx(preprocess["std"])
        torch.testing.assert_close(backbone.embed_images(images), encode(theirs, backbone, images))

    def test_own_mean_and_std_win(self, weights):
        backbone = load(with_file(weights, mean=[0.5, 0.6, 0.7], std=[0.1, 0.2, 0.3]))
        assert backbone.mean.flatten().tolist() == pytest.approx([0.5, 0.6, 0.7])
        assert backbone.std.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])

    def test_quick_gelu_is_another_activation(self, tiny_arch, weights):
        images = make_images(2)
        plain, quick = load(with_file(weights)), load(with_file(weights, quick_gelu=True))
        expected = make_clip({**tiny_arch, "quick_gelu": True})
        assert torch.equal(quick.embed_images(images), encode(expected, quick, images))
        assert (plain.tokens(images, -2).patches - quick.tokens(images, -2).patches).abs().max() > 1e-4
        assert plain.fingerprint != quick.fingerprint

    def test_another_image_size_interpolates_the_positions(self, tiny_arch, clip, weights, tmp_path):
        backbone = load(with_file(weights, image_px=48))
        assert (backbone.grid, backbone.image_px) == (6, 48)
        assert backbone.tokens(make_images(2, 48), -2).patches.shape == (2, 36, backbone.d_in)
        folder = tmp_path / "local"
        folder.mkdir()
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": tiny_arch}))
        shutil.copy(weights, folder / "open_clip_model.safetensors")
        theirs = open_clip.create_model(f"local-dir:{folder}", force_image_size=48).eval()
        torch.testing.assert_close(backbone.visual.positional_embedding, theirs.visual.positional_embedding)
        assert torch.equal(backbone.visual.positional_embedding[0], clip.visual.positional_embedding[0])
        images = make_images(2, 48)
        torch.testing.assert_close(backbone.embed_images(images), encode(theirs, backbone, images))


class TestRandomAndShipped:
    def test_random_weights_are_a_function_of_the_seed(self, tiny_arch):
        def first_weights(seed: int) -> Tensor:
            return load(ModelConfig("tiny", arch=ARCH, pretrained="random", seed=seed)).visual.conv1.weight

        before = torch.get_rng_state()
        assert torch.equal(first_weights(0), first_weights(0))
        assert not torch.equal(first_weights(0), first_weights(1))
        assert torch.equal(torch.get_rng_state(), before)

    def test_scenes_clip_ships(self):
        backbone = load("scenes_clip")
        assert (backbone.grid, backbone.patch_px, backbone.d_in, backbone.n_layers) == (12, 8, 128, 4)
        theirs = open_clip.create_model(f"local-dir:{SHIPPED_FOLDER}").eval()
        images = make_images(2, 96)
        torch.testing.assert_close(backbone.embed_images(images), encode(theirs, backbone, images))

    def test_scenes_clip_with_random_weights_is_a_control(self):
        config = ModelConfig(pretrained="random", seed=3)
        backbone, shipped = load(config), load(ModelConfig())
        assert backbone.d_in == shipped.d_in
        assert not torch.equal(backbone.visual.proj, shipped.visual.proj)
        assert backbone.fingerprint["weights"] == "random:3"

    def test_trained_weights_need_their_folder(self):
        with pytest.raises(InputError, match="needs the artifact of stage train_clip"):
            load_backbone(ModelConfig(pretrained="train_clip"))
        found = load_backbone(ModelConfig(pretrained="train_clip"), SHIPPED_FOLDER)
        assert torch.equal(found.get_buffer("mean"), load("scenes_clip").mean)

    def test_the_planted_ones(self):
        for kind in (ModelKind.planted_registers, ModelKind.context_free):
            config = ModelConfig(kind.name, kind=kind, pretrained=None)
            assert load_backbone(config).d_in > 0
            assert compute_model_fingerprint(config) == {"kind": kind.name, "seed": 0}


class TestRefusals:
    def test_an_unknown_architecture(self):
        with pytest.raises(InputError, match=r"one of open_clip's, such as ViT-.*; got 'ViT-B-17'") as caught:
            load_backbone("ViT-B-17:random")
        assert_one_sentence(caught.value)

    def test_an_unknown_tag(self):
        with pytest.raises(InputError, match=r"a tag of ViT-B-16 \(openai, laion400m_e31.*got 'openia'") as caught:
            load_backbone("ViT-B-16:openia")
        assert_one_sentence(caught.value)

    def test_no_weights_named(self):
        with pytest.raises(InputError, match=r'"<arch>:<weights>", such as "ViT-B-16:openai".* got \'ViT-B-16\''):
            load_backbone("ViT-B-16")
        with pytest.raises(InputError, match=r"model\.pretrained is missing"):
            ModelConfig("b16", arch="ViT-B-16", pretrained=None)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(InputError, match=r"gone\.safetensors is no file") as caught:
            load_backbone(with_file(tmp_path / "gone.safetensors"))
        assert_one_sentence(caught.value)

    def test_a_missing_or_empty_local_dir(self, tmp_path):
        with pytest.raises(InputError, match=r"Expected open_clip_config\.json in .*nowhere"):
            load_backbone(ModelConfig("tiny", pretrained=f"local-dir:{tmp_path / 'nowhere'}"))
        (tmp_path / "open_clip_config.json").write_text("{}")
        with pytest.raises(InputError, match="to be JSON with a `model_cfg`"):
            load_backbone(ModelConfig("tiny", pretrained=f"local-dir:{tmp_path}"))
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": make_clip_cfg()}))
        with pytest.raises(InputError, match="found neither"):
            load_backbone(ModelConfig("tiny", pretrained=f"local-dir:{tmp_path}"))

    @pytest.mark.parametrize("arch", ["RN50", "coca_ViT-B-32", "convnext_base"])
    def test_other_towers(self, arch, monkeypatch):
        cfg = copy.deepcopy(open_clip.get_model_config(arch))
        assert cfg is not None
        text = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
        vision = cfg["vision_cfg"]
        if arch == "RN50":
            vision.update(layers=[1, 1, 1, 1], width=8, image_size=64)
        elif arch == "convnext_base":
            vision.update(timm_model_name="convnext_atto")
        else:
            vision.update(layers=1, width=64, head_width=16, image_size=64, attn_pooler_heads=4)
        monkeypatch.setattr(open_clip, "get_model_config", lambda _name: {**cfg, "embed_dim": 16, "text_cfg": text})
        with pytest.raises(InputError, match=r"vision transformer .*, got .*(choose|or) a ViT-") as caught:
            load_backbone(f"{arch}:random")
        assert_one_sentence(caught.value)

    def test_an_image_size_that_cuts_patches(self, tiny_arch):
        with pytest.raises(
            InputError, match=r"model\.image_px to be a multiple of the patch \(8 px\), got 50"
        ) as caught:
            load_backbone(ModelConfig("tiny", arch=ARCH, pretrained="random", image_px=50))
        assert_one_sentence(caught.value)

    def test_weights_of_another_architecture(self, tiny_arch, tmp_path):
        path = tmp_path / "wide.safetensors"
        save_file(make_clip(make_clip_cfg(width=128)).state_dict(), path)
        with pytest.raises(InputError, match=r"does not fit model\.arch=ViT-B-16") as caught:
            load_backbone(with_file(path))
        assert_one_sentence(caught.value)

    def test_damaged_weights(self, weights, tmp_path):
        data = weights.read_bytes()
        for name, content in {"cut": data[: len(data) // 2], "empty": b"", "text": b"this is no model"}.items():
            for suffix in (".safetensors", ".pt"):
                path = tmp_path / f"{name}{suffix}"
                path.write_bytes(content)
                with pytest.raises(InputError, match=f"Cannot read .*{name}{suffix}") as caught:
                    load_backbone(with_file(path))
                assert_one_sentence(caught.value)

    def test_weights_with_nan(self, clip, tiny_arch, tmp_path):
        state = clip.state_dict()
        state["visual.proj"] = state["visual.proj"].clone()
        state["visual.proj"][2, 3] = torch.nan
        path = tmp_path / "nan.safetensors"
        save_file(state, path)
        with pytest.raises(InputError, match=r"holds NaN or Inf in visual\.proj"):
            load_backbone(with_file(path))

    @pytest.mark.parametrize("content", [{}, [1, 2], {"visual.proj": "text"}, {"state_dict": None}])
    def test_a_file_that_holds_no_state_dict(self, tiny_arch, tmp_path, content):
        torch.save(content, tmp_path / "odd.pt")
        with pytest.raises(InputError, match=r"odd\.pt to hold a state dict of tensors"):
            load_backbone(with_file(tmp_path / "odd.pt"))


class Malicious:
    """An object whose unpickling would make a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_refused_and_does_not_run(clip, tmp_path, suffix, legacy):
    trace, path = tmp_path / "it_ran", tmp_path / f"evil{suffix}"
    torch.save({**clip.state_dict(), "extra": Malicious(trace)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=f"Cannot read weights file .*evil{suffix}") as caught:
        load_backbone(with_file(path))
    assert_one_sentence(caught.value)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # the file was indeed dangerous


class TestFingerprints:
    @pytest.fixture(autouse=True)
    def _no_model(self, monkeypatch):
        """Building a model would be an error here."""
        monkeypatch.setattr(family, "_make_clip", lambda _cfg: pytest.fail("a model was built"))

    def test_a_moved_file_keeps_it(self, weights, tmp_path):
        before = compute_model_fingerprint(with_file(weights))
        moved = tmp_path / "elsewhere"
        moved.mkdir()
        shutil.copy(weights, moved / "renamed.safetensors")
        assert compute_model_fingerprint(with_file(moved / "renamed.safetensors")) == before
        assert str(tmp_path) not in json.dumps(before)

    def test_what_changes_the_numbers_changes_it(self, weights, tiny_arch, tmp_path):
        other = tmp_path / "other.safetensors"
        save_file(make_clip(tiny_arch, seed=1).state_dict(), other)
        configs = [
            with_file(weights),
            with_file(other),
            with_file(weights, quick_gelu=True),
            with_file(weights, image_px=48),
            with_file(weights, precision="bfloat16"),
            with_file(weights, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25]),
            with_file(weights, mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]),
            ModelConfig("tiny", arch=ARCH, pretrained="random"),
            ModelConfig("tiny", arch=ARCH, pretrained="random", seed=1),
            ModelConfig("tiny", arch=ARCH, pretrained="openai"),
            ModelConfig("tiny", arch=ARCH, pretrained="laion400m_e32"),
            ModelConfig(),
        ]
        assert len({json.dumps(compute_model_fingerprint(config)) for config in configs}) == len(configs)

    def test_what_does_not_change_the_numbers_does_not(self, weights):
        first = with_file(weights, layer=-2)
        assert compute_model_fingerprint(first) == compute_model_fingerprint(with_file(weights, layer=1, seed=5))


def test_the_backbone_carries_the_same_fingerprint(weights):
    config = with_file(weights, precision="bfloat16")
    backbone = load(config)
    assert backbone.fingerprint == compute_model_fingerprint(config)
    assert backbone.fingerprint["precision"] == "bfloat16"
    assert torch.isfinite(backbone.embed_images(make_images(2))).all()


class TestTags:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch) -> Path:
        """An empty cache of the hub and an empty home; no network."""
        from huggingface_hub import constants

        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

        def refuse(*_args, **_options):
            raise OSError("Network is unreachable")

        monkeypatch.setattr(socket, "create_connection", refuse)
        return tmp_path / "hub"

    @pytest.mark.parametrize("tag", ["openai", "laion400m_e32", "metaclip_400m"])
    def test_without_cache_and_network_it_fails_at_once(self, tag, monkeypatch):
        def never(*_args, **_options):
            raise AssertionError("nothing may be built or downloaded")

        monkeypatch.setattr(family, "_make_clip", never)
        monkeypatch.setattr(open_clip, "download_pretrained", never)
        message = rf"The weights ViT-B-16:{tag} are not in the cache \(.*hub\) and there is no network: give a local"
        with pytest.raises(InputError, match=message) as caught:
            load_backbone(f"ViT-B-16:{tag}")
        assert_one_sentence(caught.value)

    def put_into_cache(self, cache: Path, clip: open_clip.CLIP) -> None:
        snapshot = cache / "models--timm--vit_base_patch16_clip_224.openai" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        refs = snapshot.parents[1] / "refs"
        refs.mkdir()
        (refs / "main").write_text("abc")
        save_file(clip.state_dict(), snapshot / "open_clip_model.safetensors")

    def test_a_cached_file_is_used_without_network(self, cache, tiny_arch):
        clip = make_clip({**tiny_arch, "quick_gelu": True})  # as the tag demands
        self.put_into_cache(cache, clip)
        backbone, images = load("ViT-B-16:openai"), make_images(2)
        assert torch.equal(backbone.embed_images(images), encode(clip, backbone, images))
        assert backbone.fingerprint["weights"] == "tag:ViT-B-16:openai"

    def test_the_flag_and_the_image_size_hold_for_tags_too(self, cache, tiny_arch):
        self.put_into_cache(cache, make_clip(tiny_arch))
        config = ModelConfig("tiny", arch=ARCH, pretrained="openai", quick_gelu=False)
        backbone, images = load(config), make_images(2)
        assert torch.equal(backbone.embed_images(images), encode(make_clip(tiny_arch), backbone, images))
        larger = load(ModelConfig("tiny", arch=ARCH, pretrained="openai", image_px=48))
        assert larger.tokens(make_images(1, 48), -2).patches.shape[1] == 36

    def test_a_damaged_cached_file_is_named(self, cache, tiny_arch):
        self.put_into_cache(cache, make_clip(make_clip_cfg(width=128)))
        with pytest.raises(InputError, match=r"Cannot load the weights ViT-B-16:openai from .*safetensors") as caught:
            load_backbone("ViT-B-16:openai")
        assert_one_sentence(caught.value)

    def test_a_failing_download_is_one_sentence(self, monkeypatch, tiny_arch):
        class Connection:
            def close(self) -> None: ...

        def fail(_cfg):
            raise RuntimeError("the hub said no\nand more")

        monkeypatch.setattr(socket, "create_connection", lambda *_args, **_options: Connection())
        monkeypatch.setattr(open_clip, "download_pretrained", fail)
        with pytest.raises(InputError, match=r"Cannot download .* ViT-B-16:openai: the hub said no\.") as caught:
            load_backbone("ViT-B-16:openai")
        assert_one_sentence(caught.value)
