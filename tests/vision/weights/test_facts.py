"""With which activation, mean and std weights are run: as open_clip has it for tags, as somebody says it for files."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import yaml
from open_clip import factory
from safetensors.torch import save_file
from torch import nn

from infoscope.config.tree import CONF_FOLDER, compose
from infoscope.pipeline.context import Context
from infoscope.runtime.errors import InputError
from infoscope.stages.backbone import say_model
from infoscope.vision import load
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.load import compute_model_fingerprint, find_facts, load_backbone
from infoscope.vision.open_clip.accounts import find_agreement
from infoscope.vision.open_clip.source import find_source, is_of_origin
from tests.support.clip_samples import make_clip, make_clip_cfg, make_images
from tests.support.pipeline_samples import Recorder

PAIRS = open_clip.list_pretrained()
PRESETS = ("clip_b32", "clip_b16", "clip_l14", "clip_l14_336")
HALF, OPENAI = [0.5] * 3, list(open_clip.OPENAI_DATASET_MEAN)
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def load_preset(name: str, **changes: Any) -> ModelConfig:
    content = yaml.safe_load((CONF_FOLDER / "model" / f"{name}.yaml").read_text())
    return ModelConfig(**{**content, "kind": ModelKind[content["kind"]], **changes})


def is_quick(config: ModelConfig) -> bool:
    return bool(find_source(config, None).model_cfg.get("quick_gelu"))


class Recorded(nn.Module):
    """Stands for open_clip's models: keeps what open_clip's factory would build them with."""

    def __init__(self, **cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg
        self.visual = nn.Identity()
        self.visual.image_size = cfg["vision_cfg"].get("image_size", 224)


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what open_clip's own factory makes of an architecture and a tag, with its warnings as errors."""
    for name in ("CLIP", "CustomTextCLIP", "CoCa"):
        monkeypatch.setattr(factory, name, Recorded)
    monkeypatch.setattr(factory, "download_pretrained", lambda *_args, **_options: "weights")
    monkeypatch.setattr(factory, "load_checkpoint", lambda *_args, **_options: None)

    def make(arch: str, tag: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return open_clip.create_model(arch, tag)

    return make


class TestTags:
    def test_every_pair_is_what_open_clip_makes_of_it(self, theirs):
        """Where the tag needs QuickGELU, open_clip wants its -quickgelu architecture, and warns of the other one."""
        assert len(PAIRS) > 150
        for arch, tag in PAIRS:
            is_warned = open_clip.get_pretrained_cfg(arch, tag).get("quick_gelu") and not arch.endswith("-quickgelu")
            if arch == "roberta-ViT-B-32":  # QuickGELU by its architecture, of which its tag says nothing
                with pytest.raises(UserWarning, match="QuickGELU mismatch"):
                    theirs(arch, tag)
                assert is_quick(ModelConfig("m", arch=arch, pretrained=tag))
                continue
            made = theirs(f"{arch}-quickgelu" if is_warned else arch, tag)
            source = find_source(ModelConfig("m", arch=arch, pretrained=tag), None)
            found = bool(source.model_cfg.get("quick_gelu")), *source.facts.normalisation.values()
            expected = made.visual.preprocess_cfg
            assert found == (made.cfg.get("quick_gelu", False), list(expected["mean"]), list(expected["std"])), (
                arch,
                tag,
            )
            assert source.model_cfg["vision_cfg"].get("image_size", 224) == expected["size"]
            assert not source.facts.is_contradicted

    @pytest.mark.parametrize("name", PRESETS)
    def test_a_preset_adds_nothing_to_a_tag(self, name):
        preset = load_preset(name)
        for tag in open_clip.list_pretrained_tags_by_model(str(preset.arch)):
            plain = ModelConfig("m", arch=preset.arch, pretrained=tag)
            assert compute_model_fingerprint(replace(preset, pretrained=tag)) == compute_model_fingerprint(plain)

    def test_the_command_line(self):
        assert is_quick(compose(["model=clip_b16"]).model)
        laion = compose(["model=clip_b16", "model.pretrained=laion2b_s34b_b88k"]).model
        assert not is_quick(laion)
        assert find_source(laion, None).facts.words.startswith("GELU, mean [0.4815,0.4578,0.4082], std [0.2686,")
        assert "(by the tag laion2b_s34b_b88k)" in find_source(laion, None).facts.words

    def test_a_tag_needs_its_architecture(self):
        with pytest.raises(InputError, match=r"model\.arch is missing: model\.pretrained=openai needs it"):
            find_source(compose(["model.pretrained=openai"]).model, None)

    def test_who_insists_is_obeyed_and_it_is_said(self, monkeypatch):
        config = load_preset("clip_l14", quick_gelu=False, mean=HALF, std=HALF)
        source = find_source(config, None)
        assert (is_quick(config), *source.facts.normalisation.values()) == (False, HALF, HALF)
        assert source.facts.is_contradicted
        assert "GELU (by model.quick_gelu against QuickGELU of the tag openai)" in source.facts.words
        assert "std [0.5,0.5,0.5] (by model.mean and model.std against mean [0.4815," in source.facts.words
        monkeypatch.setattr(load, "make_backbone", lambda *_: SimpleNamespace(notes=""))
        with pytest.warns(UserWarning, match=r"runs with QuickGELU \(by quick_gelu against GELU of the tag laion400m"):
            load_backbone("ViT-B-16:laion400m_e32", quick_gelu=True)

    @pytest.mark.parametrize(
        ("arch", "pretrained"), [("hf-hub:laion/CLIP", "random"), ("ViT-B-16", "hf-hub:laion/CLIP")]
    )
    def test_hub_names_are_refused_before_anything_is_asked_of_the_hub(self, arch, pretrained, monkeypatch):
        monkeypatch.setattr(open_clip, "get_model_config", lambda _name: pytest.fail("the hub was asked"))
        with pytest.raises(InputError, match=r"hf-hub:laion/CLIP is not read: .*local-dir:<folder>"):
            find_source(ModelConfig("m", arch=arch, pretrained=pretrained), None)
        with pytest.raises(InputError, match=r"^hf-hub:laion/CLIP is not read"):
            load_backbone("hf-hub:laion/CLIP")


@pytest.fixture(scope="module")
def archs() -> Iterator[None]:
    """Make towers of OpenAI's architectures a few kilobytes large; their names and tags stay."""
    get_model_config, cfg = open_clip.get_model_config, make_clip_cfg()
    patch = pytest.MonkeyPatch()
    tiny = dict.fromkeys(("ViT-B-16", "ViT-B-32", "ViT-L-14", "ViT-L-14-336"), cfg)
    tiny["ViT-B-16-quickgelu"] = {**cfg, "quick_gelu": True}
    patch.setattr(
        open_clip,
        "get_model_config",
        lambda name: copy.deepcopy(tiny[name]) if name in tiny else get_model_config(name),
    )
    yield
    patch.undo()


@pytest.fixture
def file(archs, tmp_path) -> Path:
    path = tmp_path / "b16.safetensors"
    save_file(make_clip().state_dict(), path)
    return path


def refuse(config: ModelConfig, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        find_source(config, None)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


class TestFiles:
    """A file of weights does not say with which activation, mean and std it was trained."""

    def test_architectures_whose_tags_disagree(self):
        """All of open_clip's, by a loop: which files are asked about, and of what."""
        agreed = {arch: find_agreement(arch, {}) for arch, _ in PAIRS}
        asked = {arch for arch, account in agreed.items() if account.quick_gelu is None}
        assert asked == {"ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-bigG-14"}
        assert {arch for arch, account in agreed.items() if account.preprocessing is None} == {"ViT-L-14"}

    def test_it_is_asked_for(self, file):
        bare = ModelConfig("m", arch="ViT-B-16", pretrained=str(file))
        refuse(
            bare, r"b16\.safetensors does not say whose .* of ViT-B-16 differ in activation: give model\.origin.*true"
        )
        refuse(
            replace(bare, arch="ViT-L-14"), r"differ in activation, mean and std: give .*, model\.mean and model\.std\."
        )
        refuse(replace(bare, arch="ViT-L-14", quick_gelu=False), r"differ in mean and std: give .*model\.mean and")
        refuse(replace(bare, arch="ViT-L-14", mean=HALF, std=HALF), r"differ in activation: give .*model\.quick_gelu")
        refuse(
            replace(bare, origin="openia"),
            r"model\.origin to be a tag of ViT-B-16 \(openai, .*\) or null, got 'openia'",
        )

    def test_python_is_asked_in_its_own_words(self, file):
        with pytest.raises(InputError, match=r"give origin, the tag .*, or quick_gelu=True or False\.$") as caught:
            load_backbone(f"ViT-B-16:{file}")
        assert "model." not in str(caught.value)

    @pytest.mark.long
    def test_the_command_line_and_python_make_the_same_model(self, file):
        images = make_images(2)
        answers: list[dict[str, Any]] = [{"quick_gelu": True}, {"quick_gelu": False}]
        for options in ({"origin": "openai"}, {"origin": "laion400m_e32"}, *answers):
            ours = [f"model.{name}={str(value).lower()}" for name, value in options.items()]
            config = compose(["model=clip_b16", f"model.pretrained={file}", *ours]).model
            backbone, same = load_backbone(f"ViT-B-16:{file}", **options), load_backbone(config)
            assert backbone.fingerprint == same.fingerprint == compute_model_fingerprint(config)
            assert backbone.tokens(images, -2).patches.equal(same.tokens(images, -2).patches)

    def test_equal_answers_have_one_fingerprint(self, file):
        bare = ModelConfig("m", arch="ViT-B-16", pretrained=str(file))
        for origin, quick_gelu in (("openai", True), ("laion400m_e32", False)):
            by_origin = compute_model_fingerprint(replace(bare, origin=origin))
            assert by_origin == compute_model_fingerprint(replace(bare, quick_gelu=quick_gelu))
        by_name = compute_model_fingerprint(replace(bare, arch="ViT-B-16-quickgelu"))
        assert by_name == compute_model_fingerprint(replace(bare, quick_gelu=True))

    @pytest.mark.parametrize("name", PRESETS)
    def test_a_preset_takes_it_for_openais_and_says_so(self, file, name):
        config = load_preset(name, pretrained=str(file))
        source = find_source(config, None)
        assert (source.model_cfg["quick_gelu"], source.origin) == (True, "openai")
        assert source.facts.normalisation["mean"] == OPENAI
        assert source.facts.is_assumed
        assert not source.facts.is_contradicted
        assert "(by model.origin=openai, for the file does not say)" in source.facts.words
        assert is_of_origin(config, "openai")

    def test_the_folder_of_a_file_without_a_name_of_its_own_speaks_for_it(self, file):
        folder = file.with_name("CLIP-ViT-B-16-DataComp.L-s1B-b8K")
        folder.mkdir()
        refuse(
            load_preset("clip_b16", pretrained=str(file.rename(folder / "open_clip_pytorch_model.bin"))),
            "its name speaks of datacomp",
        )

    def test_an_origin_of_what_is_no_file_is_refused_in_python(self):
        with pytest.raises(InputError, match=r"^origin says whose weights a file holds, but openai is a tag"):
            load_backbone("ViT-B-16:openai", origin="laion400m_e31")

    def test_another_origin_answers_everything_at_once(self, file):
        config = load_preset("clip_l14", pretrained=str(file), origin="laion2b_s32b_b82k")
        source = find_source(config, None)
        assert (source.model_cfg["quick_gelu"], *source.facts.normalisation.values()) == (False, HALF, HALF)
        assert not is_of_origin(config, "openai")

    def test_what_contradicts_the_origin_puts_it_aside(self, file):
        """Who says GELU says that the file is not OpenAI's: its mean is not known from OpenAI then."""
        config = load_preset("clip_l14", pretrained=str(file))
        refuse(
            replace(config, quick_gelu=False), r"not taken for openai's, .* contradicts it\), .* differ in mean and std"
        )
        refuse(replace(config, mean=HALF, std=HALF), r"differ in activation: give")
        found = find_source(replace(config, quick_gelu=False, mean=HALF, std=HALF), None)
        assert (found.model_cfg["quick_gelu"], found.facts.normalisation["mean"], found.origin) == (False, HALF, None)
        of_b16 = find_source(load_preset("clip_b16", pretrained=str(file), quick_gelu=False), None)
        assert of_b16.model_cfg["quick_gelu"] is False
        assert of_b16.facts.normalisation["mean"] == OPENAI  # on which all tags agree
        assert "(by all tags of ViT-B-16)" in of_b16.facts.words

    @pytest.mark.parametrize(
        "name",
        [
            "CLIP-ViT-B-16-laion2B-s34B-b88K.safetensors",
            "metaclip_b16.safetensors",
            "models--laion--CLIP-ViT-B-16/snapshots/1d2a/open_clip_model.safetensors",  # in the hub's cache
        ],
    )
    def test_a_name_that_speaks_of_another_origin_is_not_taken_for_openais(self, file, name):
        (file.parent / name).parent.mkdir(parents=True, exist_ok=True)
        config = load_preset("clip_b16", pretrained=str(file.rename(file.parent / name)))
        refuse(config, r"\(not taken for openai's, as model\.origin says: its name speaks of (laion|metaclip)\)")
        assert not is_quick(replace(config, origin="laion2b_s34b_b88k"))
        assert is_quick(replace(config, quick_gelu=True))

    def test_architectures_that_agree_need_no_answer(self, file):
        plain = ModelConfig("m", arch="ViT-L-14-336", pretrained=str(file))
        assert find_source(plain, None).facts.words.startswith("QuickGELU, mean [0.4815,")
        assert "(by all tags of ViT-L-14-336)" in find_source(plain, None).facts.words
        assert "(by open_clip's default for ViT-S-16)" in find_source(replace(plain, arch="ViT-S-16"), None).facts.words

    def test_random_weights_are_those_of_the_preset(self):
        config = load_preset("clip_l14", pretrained="random")
        assert (is_quick(config), find_source(config, None).facts.normalisation["mean"]) == (True, OPENAI)
        assert not is_of_origin(config, "openai")
        bare = ModelConfig("m", arch="ViT-L-14", pretrained="random")
        assert (is_quick(bare), find_source(bare, None).facts.normalisation["mean"]) == (False, OPENAI)


class TestFilesThatSay:
    def test_by_their_checksum(self, file, monkeypatch):
        checksum = hashlib.sha256(file.read_bytes()).hexdigest()
        get_cfg = open_clip.get_pretrained_cfg

        def publish(arch: str, tag: str) -> dict[str, Any]:
            url = f"https://github.com/mlfoundations/open_clip/releases/v0.2-weights/vit_b_16-{tag}-{checksum[:8]}.pt"
            return {**get_cfg(arch, tag), "url": url} if tag == "laion400m_e31" else get_cfg(arch, tag)

        monkeypatch.setattr(open_clip, "get_pretrained_cfg", publish)
        source = find_source(load_preset("clip_b16", pretrained=str(file)), None)
        assert (source.model_cfg["quick_gelu"], source.origin) == (False, "laion400m_e31")
        assert "(by the file's checksum, that of laion400m_e31)" in source.facts.words

    def test_by_open_clips_configuration_beside_them(self, file):
        file = file.rename(file.with_name("open_clip_model.safetensors"))
        path = file.with_name("open_clip_config.json")
        content = {"model_cfg": {**make_clip_cfg(), "quick_gelu": False}, "preprocess_cfg": IMAGENET}
        path.write_text(json.dumps(content))
        for config in (
            load_preset("clip_l14", pretrained=str(file)),
            ModelConfig("m", arch="ViT-L-14", pretrained=str(file)),
        ):
            source = find_source(config, None)
            assert (source.model_cfg["quick_gelu"], *source.facts.normalisation.values()) == (False, *IMAGENET.values())
            assert "(by open_clip_config.json)" in source.facts.words
        insisting = find_source(load_preset("clip_l14", pretrained=str(file), quick_gelu=True), None)
        assert insisting.facts.is_contradicted
        path.write_text("{")
        refuse(load_preset("clip_l14", pretrained=str(file)), r"open_clip_config\.json to be JSON")

    @pytest.mark.parametrize(("activation", "expected"), [("quick_gelu", True), ("gelu", False), (None, True)])
    def test_by_the_configuration_of_transformers_beside_them(self, file, activation, expected):
        file = file.rename(file.with_name("model.safetensors"))
        tower = {"hidden_act": activation} if activation else None  # transformers' own default is QuickGELU
        file.with_name("config.json").write_text(json.dumps({"model_type": "clip", "vision_config": tower}))
        pixels = {"image_mean": HALF, "image_std": HALF}
        file.with_name("preprocessor_config.json").write_text(json.dumps(pixels))
        source = find_source(ModelConfig("m", arch="ViT-L-14", pretrained=str(file)), None)
        assert (source.model_cfg["quick_gelu"], *source.facts.normalisation.values()) == (expected, HALF, HALF)

    @pytest.mark.parametrize(
        ("preprocess", "message"),
        [
            (
                {"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]},
                r"config\.json: mean=\[0\.4851,0\.4561,0\.4059\]",
            ),
            ({"mean": [0.5, 0.5], "std": HALF}, r"config\.json: mean to hold three numbers"),
            ({"mean": HALF}, r"config\.json: mean comes without .*config\.json: std"),
            ({"mean": [float("nan")] * 3, "std": HALF}, "to be finite numbers"),
            ({"mean": "half", "std": HALF}, "to hold three numbers"),
            ([0.5], "perhaps a `preprocess_cfg`"),
        ],
    )
    def test_folders_that_make_no_sense_are_refused(self, file, preprocess, message):
        content = {"model_cfg": make_clip_cfg(), "preprocess_cfg": preprocess}
        file.rename(file.with_name("open_clip_model.safetensors"))
        file.with_name("open_clip_config.json").write_text(json.dumps(content))
        refuse(ModelConfig("m", pretrained=f"local-dir:{file.parent}"), message)
        with pytest.raises(InputError, match=message):
            load_backbone(f"local-dir:{file.parent}")

    @pytest.mark.parametrize("model_cfg", [{}, [1], {"vision_cfg": {}}, {**make_clip_cfg(), "quick_gelu": "yes"}])
    def test_model_configurations_that_make_no_sense_are_refused(self, file, model_cfg):
        file.rename(file.with_name("open_clip_model.safetensors"))
        file.with_name("open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
        refuse(ModelConfig("m", pretrained=f"local-dir:{file.parent}"), r"^Expected .*open_clip_config\.json")

    def test_a_folder_of_another_model_than_the_architecture_is_refused(self, file):
        file.rename(file.with_name("open_clip_model.safetensors"))
        pretrained = f"local-dir:{file.parent}"
        for model_cfg in (make_clip_cfg(layers=3), {**make_clip_cfg(), "embed_dim": 32}):
            file.with_name("open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
            refuse(
                ModelConfig("m", arch="ViT-B-32", pretrained=pretrained), "ViT-B-32, as model.arch says .* 3.*folder"
            )
            assert find_source(ModelConfig("m", pretrained=pretrained), None).model_cfg == model_cfg

    def test_sizes_that_make_no_model_are_one_sentence(self, file):
        file.rename(file.with_name("open_clip_model.safetensors"))
        content = {"model_cfg": {**make_clip_cfg(), "embed_dim": "wide"}}
        file.with_name("open_clip_config.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"Cannot make the model that local-dir:.* describes: .*\.$"):
            load_backbone(f"local-dir:{file.parent}")

    def test_a_folder_by_its_short_form(self, file):
        file.rename(file.with_name("open_clip_model.safetensors"))
        file.with_name("open_clip_config.json").write_text(json.dumps({"model_cfg": make_clip_cfg()}))
        found = load_backbone(f"local-dir:{file.parent}")
        assert found.fingerprint == compute_model_fingerprint(ModelConfig("m", pretrained=f"local-dir:{file.parent}"))
        scalar = {"model_cfg": make_clip_cfg(), "preprocess_cfg": {"mean": 0.5, "std": 0.5}}  # open_clip reads it so
        file.with_name("open_clip_config.json").write_text(json.dumps(scalar))
        assert load_backbone(f"local-dir:{file.parent}").mean.flatten().tolist() == HALF


class TestSaid:
    def say(self, *overrides: str) -> str:
        recorder = Recorder()
        say_model(Context(compose(["data=image_folder", "data.root=photos", *overrides]), recorder))
        return " ".join(recorder.text.split())

    @pytest.mark.long
    def test_at_the_start_of_a_run(self, file):
        said = self.say("model=clip_b16", f"model.pretrained={file}")
        assert said.startswith(
            "clip_b16 runs with QuickGELU, mean [0.4815,0.4578,0.4082], std [0.2686,0.2613,0.2758] (by"
        )
        assert said.endswith("; if it is of another origin, give its tag as model.origin.")
        assert self.say("model=clip_b16", "model.quick_gelu=false").startswith("Warning: clip_b16 runs with GELU (by")
        assert "another origin" not in self.say("model=clip_b16", "model.pretrained=random")
        assert self.say() == (
            "scenes_clip runs with GELU, mean [0.5,0.5,0.5], std [0.25,0.25,0.25] (by open_clip_config.json)."
        )
        assert self.say("model=planted_registers") == ""

    def test_what_is_not_known_is_refused_there(self, file):
        with pytest.raises(InputError, match=r"differ in activation: give model\.origin"):
            self.say("model.arch=ViT-B-16", f"model.pretrained={file}")


class TestTimm:
    """timm has architectures with GELU for weights that were trained with QuickGELU."""

    def with_timm(self, arch: str, pretrained: object, **options: Any) -> ModelConfig:
        return ModelConfig("m", kind=ModelKind.timm, arch=arch, pretrained=str(pretrained), **options)

    def test_that_is_said(self, monkeypatch):
        found = find_facts(self.with_timm("vit_base_patch16_clip_224", "openai"))
        assert found is not None
        assert found.is_contradicted
        assert "GELU (by the architecture vit_base_patch16_clip_224 against QuickGELU, with which openai" in found.words
        quick = find_facts(self.with_timm("vit_base_patch16_clip_quickgelu_224", "openai"))
        assert quick is not None
        assert not quick.is_contradicted
        assert quick.words.startswith("QuickGELU (by the architecture")
        monkeypatch.setattr(load, "make_backbone", lambda *_: SimpleNamespace(notes=""))
        with pytest.warns(UserWarning, match="against QuickGELU, with which openai was trained"):
            load_backbone("timm:vit_base_patch16_clip_224:openai")

    def test_a_file_of_theirs_is_asked_about(self, file):
        refuse_timm = pytest.raises(
            InputError, match=r"activation(, mean and std)? of vit_large_patch14_clip_224 depend"
        )
        with refuse_timm:
            find_facts(self.with_timm("vit_large_patch14_clip_224", file))

    def test_origins_are_tags_of_the_architecture_there(self):
        for named in ("vit_x", "vit_x.mae"):
            with pytest.raises(InputError, match=r"set model\.origin=null and model\.arch=vit_x\.<tag>"):
                self.with_timm(named, "random", origin="openai")

    def test_the_hubs_configuration_beside_a_file_decides(self, file):
        file = file.rename(file.with_name("model.safetensors"))
        arch = "vit_base_patch16_224"
        content = {"architecture": arch, "pretrained_cfg": {"tag": "mae", **IMAGENET}}
        file.with_name("config.json").write_text(json.dumps(content))
        for named in (arch, f"{arch}.augreg_in21k"):
            found = find_facts(self.with_timm(named, file))
            assert found is not None
            assert list(found.preprocessing.value.mean) == IMAGENET["mean"]
            assert found.preprocessing.by == "the config.json next to the file"
        content["pretrained_cfg"]["mean"] = [123.7, 116.3, 103.5]
        file.with_name("config.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match="divide by 255"):
            find_facts(self.with_timm(arch, file))

    def test_so_does_that_of_transformers(self, file):
        """Google's ViT under MAE's preset; of a CLIP it says nothing about the activation."""
        file = file.rename(file.with_name("model.safetensors"))
        pixels = {"image_mean": HALF, "image_std": HALF}
        file.with_name("preprocessor_config.json").write_text(json.dumps(pixels))
        for named in ("vit_base_patch16_224", "vit_base_patch16_224.mae"):
            found = find_facts(self.with_timm(named, file))
            assert found is not None
            assert list(found.preprocessing.value.mean) == HALF
            assert found.preprocessing.by == "the preprocessor_config.json next to the file"
        with pytest.raises(InputError, match="activation, mean and std of vit_large_patch14_clip_224 depend"):
            find_facts(self.with_timm("vit_large_patch14_clip_224", file))
