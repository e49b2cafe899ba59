"""timm's towers: every way of pooling, registers without CLS, SigLIP through open_clip, and what is refused."""

from __future__ import annotations

import copy
import json
import socket
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from infoscope.runtime.errors import InputError
from infoscope.vision.backbone import Tokens
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.load import compute_model_fingerprint, load_backbone
from infoscope.vision.open_clip.backbone import TimmClipBackbone
from infoscope.vision.timm.backbone import TimmBackbone
from infoscope.vision.timm.weights import EXAMPLES
from tests.support.clip_samples import check_gradient, make_images
from tests.support.timm_samples import TOWERS, make_tower, randomise, wrap

TINY = "vit_tiny_patch16_224"


@pytest.fixture(params=TOWERS, ids=[name.replace(" ", "_") for name in TOWERS])
def tower(request) -> VisionTransformer:
    return make_tower(**TOWERS[request.param])


class TestTowers:
    def test_tokens_are_what_a_hook_on_the_block_sees(self, tower):
        backbone, images, seen = wrap(tower), make_images(2), []
        hooks = [
            block.register_forward_hook(lambda _module, _inputs, output: seen.append(output)) for block in tower.blocks
        ]
        tower(backbone.normalise(images))
        for hook in hooks:
            hook.remove()
        for layer, expected in enumerate(seen):
            prefix, patches = backbone.tokens(images, layer)
            assert prefix.shape == (2, tower.num_prefix_tokens, 32)
            assert patches.shape == (2, 16, 32)
            torch.testing.assert_close(torch.cat([prefix, patches], 1), expected)

    def test_after_the_last_block_tokens_can_go_through_the_final_norm(self, tower):
        images, plain, normed = make_images(2), wrap(tower), wrap(tower).read_at("post_norm")
        expected = tower.forward_features(plain.normalise(images))
        prefix, patches = normed.tokens(images, -1)
        torch.testing.assert_close(torch.cat([prefix, patches], 1), expected)
        for ours, theirs in zip(normed.tokens(images, 0), plain.tokens(images, 0), strict=True):
            assert torch.equal(ours, theirs)
        with pytest.raises(InputError, match="Going on from the last block"):
            normed.resume(Tokens(prefix, patches), -1)

    def test_going_on_with_unedited_tokens_is_the_plain_forward(self, tower):
        backbone, images = wrap(tower), make_images(2)
        expected = tower.forward_head(tower.forward_features(backbone.normalise(images)), pre_logits=True)
        for layer in range(backbone.n_layers - backbone.pools_prefix):
            pooled = backbone.resume(backbone.tokens(images, layer), layer)
            torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)

    def test_an_edit_of_one_patch_reaches_the_pooled_vector_or_is_refused(self, tower):
        backbone, images = wrap(tower), make_images(2)
        for layer in range(backbone.n_layers):
            tokens = backbone.tokens(images, layer)
            patches = tokens.patches.clone()
            patches[0, 5, :4] += 30.0
            edited = Tokens(tokens.prefix, patches)
            if backbone.pools_prefix and layer == backbone.n_layers - 1:
                with pytest.raises(InputError, match=r"cannot change CLS"):
                    backbone.resume(edited, layer)
                continue
            before, after = backbone.resume(tokens, layer), backbone.resume(edited, layer)
            assert (after[0] - before[0]).norm() > 1e-4 * before[0].norm()
            torch.testing.assert_close(after[1], before[1])

    def test_a_gradient_goes_through_the_blocks_that_are_left(self, tower):
        backbone = wrap(tower).requires_grad_(False)
        for layer in range(backbone.n_layers - backbone.pools_prefix):
            check_gradient(backbone, backbone.tokens(make_images(2), layer), layer)

    def test_bfloat16_is_close_and_leaves_float32(self, tower):
        exact, rough, images = wrap(tower), wrap(tower, precision="bfloat16"), make_images(2)
        layer = 0
        tokens = rough.tokens(images, layer)
        assert tokens.patches.dtype == tokens.prefix.dtype == rough.resume(tokens, layer).dtype == torch.float32
        expected = exact.tokens(images, layer).patches
        assert not torch.equal(tokens.patches, expected)
        assert (tokens.patches - expected).norm() < 0.02 * expected.norm()


def test_cls_comes_first_then_registers():
    tower = make_tower(reg_tokens=4, no_embed_class=True, pos_embed="none")
    for block in tower.blocks:
        nn.init.zeros_(block.attn.proj.weight), nn.init.zeros_(block.attn.proj.bias)
        nn.init.zeros_(block.mlp.fc2.weight), nn.init.zeros_(block.mlp.fc2.bias)
    tokens = wrap(tower).tokens(make_images(1), 0)
    torch.testing.assert_close(tokens.prefix, torch.cat([tower.cls_token, tower.reg_token], 1))


def test_registers_are_no_cls():
    assert wrap(make_tower()).has_cls
    assert wrap(make_tower(reg_tokens=4)).has_cls
    assert not wrap(make_tower(class_token=False, reg_tokens=2, global_pool="avg")).has_cls
    assert not wrap(make_tower(class_token=False, global_pool="map")).has_cls


def test_pixels_beyond_the_last_whole_patch_are_cut_off():
    tower = make_tower(img_size=35)
    expected = tower(torch.ones(1, 3, 35, 35))
    backbone = wrap(tower)
    assert (backbone.grid, backbone.image_px) == (4, 32)
    torch.testing.assert_close(backbone.trunk(torch.ones(1, 3, 32, 32)), expected)


@pytest.mark.parametrize("options", [{"global_pool": ""}, {"img_size": (32, 16)}, {"patch_size": (8, 4)}])
def test_towers_that_have_no_vector_or_no_square_are_refused(options):
    with pytest.raises(InputError, match=r"Expected (a plain vision transformer|square patches)"):
        wrap(make_tower(**options))


def with_timm(pretrained: object, arch: str = TINY, **options) -> ModelConfig:
    return ModelConfig("tiny", kind=ModelKind.timm, arch=arch, pretrained=str(pretrained), **options)


def refuse(config: ModelConfig | str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_backbone(config)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert len(text) < 800


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """timm's smallest plain tower, with its classifier, as timm's hub has it."""
    path = tmp_path_factory.mktemp("timm") / "model.safetensors"
    save_file(randomise(timm.create_model(TINY)).state_dict(), path)
    return path


class TestFiles:
    @pytest.mark.long
    def test_a_file_with_a_classifier(self, weights):
        backbone, images = load_backbone(with_timm(weights)), make_images(1, 224)
        theirs = timm.create_model(TINY, pretrained=True, pretrained_cfg_overlay={"file": str(weights)}).eval()
        with torch.inference_mode():
            expected = theirs.forward_head(theirs.forward_features(backbone.normalise(images)), pre_logits=True)
        torch.testing.assert_close(backbone.resume(backbone.tokens(images, -2), -2), expected, rtol=1e-4, atol=1e-5)
        assert not backbone.training
        assert not any(parameter.requires_grad for parameter in backbone.parameters())

    @pytest.mark.long
    @pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
    def test_wrapped_state_dicts(self, weights, tmp_path, wrapper):
        backbone = load_backbone(with_timm(weights))
        assert isinstance(backbone, TimmBackbone)
        state = {f"module.{name}": value for name, value in backbone.trunk.state_dict().items()}
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "tiny.pth")
        again = load_backbone(with_timm(tmp_path / "tiny.pth"))
        images = make_images(1, 224)
        assert torch.equal(again.tokens(images, 0).patches, backbone.tokens(images, 0).patches)

    def test_another_image_size_interpolates_as_timm_does(self, weights):
        backbone = load_backbone(with_timm(weights, image_px=96))
        assert isinstance(backbone, TimmBackbone)
        assert (backbone.grid, backbone.image_px) == (6, 96)
        theirs = timm.create_model(TINY, pretrained=True, pretrained_cfg_overlay={"file": str(weights)}, img_size=96)
        assert torch.equal(backbone.trunk.get_parameter("pos_embed"), theirs.get_parameter("pos_embed"))
        assert backbone.tokens(make_images(1, 96), 0).patches.shape == (1, 36, 192)

    def test_the_decoder_of_maes_pretraining_is_left_out(self, weights, tmp_path):
        backbone = load_backbone(with_timm(weights))
        assert isinstance(backbone, TimmBackbone)
        more = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 192)}
        torch.save({"model": {**backbone.trunk.state_dict(), **more}}, tmp_path / "mae.pth")
        again = load_backbone(with_timm(tmp_path / "mae.pth"))
        images = make_images(1, 224)
        assert torch.equal(again.tokens(images, 0).patches, backbone.tokens(images, 0).patches)

    @pytest.mark.long
    def test_files_that_do_not_fit(self, weights, tmp_path):
        refuse(with_timm(tmp_path / "gone.safetensors"), r"gone\.safetensors is no file")
        refuse(
            with_timm(weights, "vit_small_patch16_224.augreg_in1k"), r"does not fit model\.arch=vit_small_patch16_224"
        )
        refuse(
            with_timm(weights, "vit_small_patch14_dinov2"),
            r"its image tower is 192 wide, 12 blocks deep, with patches of 16 px",
        )
        refuse(with_timm(weights, "deit3_small_patch16_224"), r"does not fit model\.arch=deit3_small_patch16_224")
        (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:999])
        refuse(with_timm(tmp_path / "cut.safetensors"), r"Cannot read .*cut\.safetensors")

    def test_mean_and_std_must_be_known(self, weights):
        """vit_base_patch16_224 is ViT-B/16 of ten origins: a wrong mean would not be noticed."""
        base = "vit_base_patch16_224"
        refuse(with_timm(weights, base), r"depend on whose weights .*model\.arch=vit_base_patch16_224\.<tag> .* mae\)")
        found = compute_model_fingerprint(with_timm(weights, f"{base}.mae"))
        assert found["mean"] == pytest.approx([0.485, 0.456, 0.406])
        own = compute_model_fingerprint(with_timm(weights, base, mean=[0.1, 0.2, 0.3], std=[1.0, 1.0, 1.0]))
        assert (own["arch"], own["mean"]) == (base, [0.1, 0.2, 0.3])


class TestConfigurations:
    def test_random_weights_are_a_function_of_the_seed(self):
        def first(seed: int) -> Tensor:
            return load_backbone(with_timm("random", seed=seed)).get_parameter("trunk.pos_embed")

        before = torch.get_rng_state()
        assert torch.equal(first(0), first(0))
        assert not torch.equal(first(0), first(1))
        assert torch.equal(torch.get_rng_state(), before)

    def test_the_short_form(self):
        assert isinstance(load_backbone(f"timm:{TINY}:random"), TimmBackbone)

    def test_what_changes_the_numbers_changes_the_fingerprint_and_no_path_is_in_it(self, weights):
        configs = [
            with_timm(weights),
            with_timm("random"),
            with_timm("random", seed=1),
            with_timm("random", image_px=96),
            with_timm("random", precision="bfloat16"),
            with_timm("random", mean=[0.5, 0.5, 0.4], std=[0.5, 0.5, 0.5]),
            with_timm("random", mean=[0.5, 0.5, 0.4], std=[0.5, 0.5, 0.4]),
            with_timm("random", arch="vit_small_patch16_224"),
            with_timm("augreg_in21k"),
        ]
        found = [json.dumps(compute_model_fingerprint(config)) for config in configs]
        assert len(set(found)) == len(found)
        assert not any(str(weights.parent) in text for text in found)
        assert compute_model_fingerprint(with_timm(weights, layer=3, seed=9)) == json.loads(found[0])

    @pytest.mark.parametrize("arch", ["vit_base_patch17", "convnext_base", "vit_small_patch16_dinov3", "ViT-B-16"])
    def test_other_architectures(self, arch):
        refuse(with_timm("random", arch), r"a plain vision transformer of timm's, such as vit_base_patch14_dinov2")

    def test_a_pair_for_cls(self):
        refuse(with_timm("random", "deit_tiny_distilled_patch16_224"), "got VisionTransformerDistilled")

    def test_unknown_and_contradictory_tags(self):
        refuse(
            with_timm("openai"), r"a tag of vit_tiny_patch16_224 \(augreg_in21k_ft_in1k, augreg_in21k\); got 'openai'"
        )
        refuse(with_timm("random", f"{TINY}.mae"), r"\(augreg_in21k_ft_in1k, augreg_in21k\); got 'mae'")
        refuse(with_timm("augreg_in21k", f"{TINY}.augreg_in21k_ft_in1k"), "name two tags")

    @pytest.mark.parametrize("pretrained", [None, "shipped", "train_clip", "local-dir:/x"])
    def test_what_is_open_clips_alone(self, pretrained):
        with pytest.raises(InputError, match=r"one of timm's tags, a local file .* with model\.kind=timm, got"):
            ModelConfig("tiny", kind=ModelKind.timm, arch=TINY, pretrained=pretrained)

    def test_what_is_missing_or_has_no_meaning(self):
        with pytest.raises(InputError, match=r"model\.arch is missing: model\.kind=timm"):
            ModelConfig("tiny", kind=ModelKind.timm, pretrained="random")
        with pytest.raises(InputError, match=r"model\.quick_gelu is for open_clip's towers"):
            with_timm("random", quick_gelu=True)

    def test_an_image_size_that_cuts_patches(self):
        refuse(with_timm("random", image_px=100), r"model\.image_px to be a multiple of the patch \(16 px\), got 100")

    def test_there_are_no_predictions(self):
        backbone = wrap(make_tower())
        with pytest.raises(InputError, match="TimmBackbone has no text tower"):
            _ = backbone.logit_scale


class TestTags:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch) -> Path:
        """An empty cache of the hub; no network."""
        from huggingface_hub import constants

        def refuse_connection(*_args, **_options):
            raise OSError("Network is unreachable")

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(socket, "create_connection", refuse_connection)
        return tmp_path / "hub"

    def test_without_cache_and_network_it_fails_at_once(self, monkeypatch):
        def never(*_args, **_options):
            raise AssertionError("nothing may be built or downloaded")

        monkeypatch.setattr(timm, "create_model", never)
        message = (
            r"vit_base_patch14_dinov2\.lvd142m are not in the cache \(.*hub\) and there is no network: give a local"
        )
        refuse("timm:vit_base_patch14_dinov2:lvd142m", message)

    def test_a_cached_file_is_used_without_network(self, cache, weights):
        snapshot = cache / f"models--timm--{TINY}.augreg_in21k" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        refs = snapshot.parents[1] / "refs"
        refs.mkdir()
        (refs / "main").write_text("abc")
        (snapshot / "model.safetensors").symlink_to(weights)
        backbone, images = load_backbone(f"timm:{TINY}:augreg_in21k"), make_images(1, 224)
        expected = load_backbone(with_timm(weights))
        assert torch.equal(backbone.tokens(images, 0).patches, expected.tokens(images, 0).patches)
        assert backbone.fingerprint["weights"] == f"tag:{TINY}:augreg_in21k"

    def test_a_failing_download_is_one_sentence(self, monkeypatch):
        class Connection:
            def close(self) -> None: ...

        def fail(*_args):
            raise RuntimeError("the hub said no\nand more")

        import huggingface_hub

        monkeypatch.setattr(socket, "create_connection", lambda *_args, **_options: Connection())
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
        refuse(f"timm:{TINY}:augreg_in21k", rf"Cannot download the weights {TINY}\.augreg_in21k: the hub said no\.")


SIGLIP_TEXT = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1, "no_causal_mask": True}


def shrink_siglip(**vision) -> dict:
    cfg = copy.deepcopy(open_clip.get_model_config("ViT-B-16-SigLIP"))
    assert cfg is not None
    cfg["vision_cfg"].update(timm_model_name=TINY, **vision)
    return {**cfg, "embed_dim": 192, "text_cfg": SIGLIP_TEXT}


class TestSigLIP:
    @pytest.fixture(params=["map", "linear"])
    def siglip(self, request, monkeypatch) -> TimmClipBackbone:
        """Pooled by attention without projection, as SigLIP; or from CLS, with one."""
        own = {} if request.param == "map" else {"timm_pool": "token", "timm_proj": "linear"}
        cfg = shrink_siglip(**own)
        monkeypatch.setattr(open_clip, "get_model_config", lambda _name: copy.deepcopy(cfg))
        backbone = load_backbone("ViT-B-16-SigLIP:random")
        assert isinstance(backbone, TimmClipBackbone)
        randomise(backbone)
        return backbone

    def test_embeddings_of_tokens_are_those_of_encode_image(self, siglip):
        images = make_images(2, 224)
        embedded = siglip.embed_tokens(siglip.tokens(images, -2), -2)
        with torch.inference_mode():
            expected = siglip.clip.encode_image(siglip.normalise(images), normalize=True)
        torch.testing.assert_close(embedded, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(siglip.embed_images(images), expected)

    def test_scale_and_bias_give_its_logits(self, siglip):
        siglip.clip.logit_scale.fill_(4.77)  # 118: SigLIP's scale is not bounded by CLIP's 100
        assert siglip.logit_scale == pytest.approx(117.9, abs=0.1)
        assert siglip.logit_bias == pytest.approx(-10, abs=0.5)
        images, texts = make_images(2, 224), torch.randint(1, 20, (3, 8))
        with torch.inference_mode():
            expected, _ = siglip.clip.get_logits(siglip.normalise(images), texts)
            text = siglip.clip.encode_text(texts, normalize=True)
        ours = siglip.logit_scale * siglip.embed_images(images) @ text.T + siglip.logit_bias
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)

    def test_its_mean_and_std_hold_for_any_weights(self, siglip):
        assert siglip.mean.flatten().tolist() == siglip.std.flatten().tolist() == [0.5, 0.5, 0.5]

    def test_another_image_size(self, siglip):
        config = ModelConfig("siglip", arch="ViT-B-16-SigLIP", pretrained="random", image_px=96)
        backbone = load_backbone(config)
        assert (backbone.grid, backbone.image_px) == (6, 96)
        images = make_images(1, 96)
        assert backbone.tokens(images, 0).patches.shape == (1, 36, 192)
        assert backbone.embed_tokens(backbone.tokens(images, 0), 0).shape == (1, 192)
        assert backbone.fingerprint != siglip.fingerprint

    def test_its_tokenizer_needs_a_package(self, siglip, monkeypatch):
        def fail(_name):
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")

        monkeypatch.setattr(open_clip, "get_tokenizer", fail)
        with pytest.raises(InputError, match=r"tokenizer of ViT-B-16-SigLIP needs a package: pip install transformers"):
            siglip.embed_texts(["a dog"])


def test_no_tag_of_clip_loses_its_own_mean():
    """ViT-L-14 laion2b_s32b_b82k was trained with 0.5, the other tags of ViT-L-14 with OpenAI's."""
    tag = ModelConfig("l14", arch="ViT-L-14", pretrained="laion2b_s32b_b82k")
    assert compute_model_fingerprint(tag)["mean"] == compute_model_fingerprint(tag)["std"] == [0.5, 0.5, 0.5]
    for pretrained in ("openai", "datacomp_xl_s13b_b90k", "random"):
        found = compute_model_fingerprint(ModelConfig("l14", arch="ViT-L-14", pretrained=pretrained))
        assert found["mean"] == pytest.approx(open_clip.OPENAI_DATASET_MEAN)


def test_timms_own_names_are_known():
    """The families this project names exist in the installed timm, under these tags."""
    for name in EXAMPLES.split(", "):
        assert timm.is_model(name)
