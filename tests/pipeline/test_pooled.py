"""model.site=pooled: an SAE of image embeddings is trained and described, and reads patches by model.site=projected."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from infoscope.analyses.latent_orders import PLACES
from infoscope.commands.model_card import make_card
from infoscope.config.tree import compose
from infoscope.data.scenes.factors import KINDS
from infoscope.pipeline.context import Context
from infoscope.pipeline.run import check, run
from infoscope.runtime.errors import InputError
from infoscope.sae.export import export_sae
from infoscope.sae.loading import load_sae
from infoscope.sae.origin import Origin, check_has_maps, choose_layer
from infoscope.stages.attribute.stage import Attribute
from infoscope.stages.backbone import check_captions
from infoscope.stages.describe.fidelity import Fidelity, why_no_predictions
from infoscope.stages.describe.stage import Describe
from infoscope.stages.images import Scenes, open_split
from infoscope.stages.import_sae import ImportSAE, describe_imported
from infoscope.stages.judge import Judge
from infoscope.stages.latents import Latents
from infoscope.stages.score.stage import Score, scope_of
from infoscope.stages.tokens import Tokens
from infoscope.stages.train_sae import TrainSAE
from infoscope.vision.load import load_backbone
from tests.support.pipeline_samples import N_TRAIN, Recorder, draw_without_saving, make_tiny_config, run_tiny

SCENES_CLIP = ("model=scenes_clip", "data.size_px=104", "scope.shift_patches=1")
POOLED = (*SCENES_CLIP, "model.site=pooled", "sae.n_tokens=2000", "sae.batch_tokens=32", "describe.n_label_images=2")
IMPORTED = (
    *("sae=import", "logger=none", "trainer.progress=false", "trainer.device=cpu", "data.n_train=24", "data.n_test=10"),
    *("data.n_workers=0", "scope.k_cds=2", "scope.k_max=2", "scope.n_workers=1"),
)


def make_context(output_dir: Path, *overrides: str) -> Context:
    return Context(make_tiny_config(output_dir, *overrides), Recorder())


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("pooled")
    made = run_tiny(output_dir, *POOLED, "stage=describe")
    assert made.files is not None
    assert "monosemantic" in made.files.figures
    said = made.text
    assert "captions" not in said
    assert "Monosemanticity, median: all" in said
    assert "Zero-shot cross-entropy on" in said
    assert "images with a strong activation (%)" in said
    assert not re.search(r"patch(?!sae)|block", said.lower())
    assert "scope" not in said
    return output_dir


def test_a_token_is_the_embedding_that_the_model_judges_by(described: Path) -> None:
    ctx = make_context(described, *POOLED)
    tokens, judged = Tokens.at(ctx, "train").load(), Judge.at(ctx, "train").load()
    vectors = tokens.tokens(slice(None)).patches
    assert vectors.shape == (N_TRAIN, 1, 128)
    unit = (vectors / vectors.norm(dim=-1, keepdim=True))[:, 0]
    np.testing.assert_allclose(unit.numpy(), judged.embeddings, atol=1e-5)


def test_its_features_are_described_without_a_score(described: Path) -> None:
    ctx = make_context(described, *POOLED, "stage=latents")
    table = Latents.at(ctx, 0).load()
    names = {column.name for column in table}
    assert {"ms", "label_entropy", "top_class"} <= names
    assert not {"cds", "firing_rate", "peak"} & names
    assert not [column for column in table if re.search(r"patch(?!sae)", f"{column.heading} {column.unit}".lower())]
    said = Describe.at(ctx, 0).load()
    assert said.n_images == N_TRAIN
    fidelity = Fidelity.at(ctx, 0).load()
    assert fidelity.n_classes == len(KINDS)
    assert fidelity.cross_entropy[0].mean() < fidelity.cross_entropy[2].mean()  # zeros in place of the embedding
    assert not any(isinstance(node.stage, Score) for node in Describe().goals(ctx))


def test_an_export_names_no_block_and_no_patches(described: Path, tmp_path: Path) -> None:
    sae = TrainSAE.at(make_context(described, *POOLED), 0).load()
    info = json.loads(export_sae(sae, tmp_path / "plain", "plain")[0].read_text())
    assert (info["origin"]["site"], info["origin"]["layer"], info["origin"]["tokens"]) == ("pooled", None, None)
    assert load_sae(tmp_path / "plain").origin.site == "pooled"
    assert "block" not in make_card(sae, "someone/features", "", {}, None)


def test_predictions_rest_on_features_of_whole_images(described: Path) -> None:
    few = (*POOLED, "stage=attribute", "attribution.n_tested=3", "describe.n_clarity_images=2")
    made = run_tiny(described, *few)
    assert made.files is not None
    assert made.files.tables.keys() == {"attribution"}
    assert "scope" not in made.text
    found = Attribute.at(make_context(described, *few), 0).load()
    deleted = found.curves[0, PLACES["gradient"], :, :, 1].mean(axis=1)
    assert deleted[0] > deleted[1:-1].max()
    assert found.agreement[PLACES["gradient"]].mean() > 0.8
    assert "semantic_alignment" in Latents.at(make_context(described, *few), 0).load()


def test_features_of_whole_images_are_steered(described: Path) -> None:
    few = (*POOLED, "stage=steer", "steer.n_latents=4", "steer.n_images=3", "steer.n_suppressed=[2]")
    made = run_tiny(described, *few)
    assert made.files is not None
    assert made.files.tables.keys() == {"steering", "steering_words", "suppression"}
    assert "scope" not in made.text
    assert "is set to a high value in the embedding)" in made.text
    assert "patches" not in made.text


@pytest.mark.parametrize("stage", ["score", "cross", "probe", "masking", "predict", "select", "report"])
def test_what_needs_maps_says_what_can_be_done_instead(described: Path, stage: str) -> None:
    with pytest.raises(InputError, match=r"^This SAE reads pooled embeddings, .* model\.site=projected\)") as refused:
        run_tiny(described, *POOLED, f"stage={stage}")
    instead = str(refused.value).partition("stage=")[2].partition(", which")[0]
    if stage == "score":  # the words are the same for all
        for name in instead.replace(" or ", ", ").split(", "):
            check(make_context(described, *POOLED, f"stage={name}", "name.n_top_images=3"))


def test_applied_to_patches_they_have_a_score(described: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_without_saving(monkeypatch)
    sae = TrainSAE.at(make_context(described, *POOLED), 0).folder
    imported = [*IMPORTED, f"sae.path={sae}", f"output_dir={described}", "stage=score"]
    ctx = Context(compose([*imported, "model.site=projected"]), Recorder())
    run(ctx.config, Recorder())
    assert np.isfinite(scope_of(ctx, 0).cds).any()
    assert Tokens.at(ctx, "train").read_json("tokens.json")["grid"] == 12
    assert ImportSAE.at(ctx, 0).read_json("metrics.json")["fvu"] > 1
    doubts = " ".join(describe_imported(ctx))
    assert "): it was trained on embeddings of whole images or texts, and these are of single patches." in doubts
    with pytest.raises(InputError, match="This SAE reads pooled embeddings, one vector for each image or text: give"):
        run(compose(imported), Recorder())
    projected = [*imported[:-1], "model.site=projected", "name.n_top_images=3"]
    said = Recorder()
    named = run(compose([*projected, "stage=name", "name.reading=row"]), said)
    assert named is not None
    assert {"names", "names_groups", "names_listed"} <= named.tables.keys()
    assert "this SAE does not read the embeddings of whole images (model.site=pooled)" in " ".join(said.text.split())
    for stage in ("steer", "attribute", "masking", "predict"):
        with pytest.raises(InputError, match=r"nothing follows those of model\.site=projected: drop it, or use model"):
            run(compose([*projected, f"stage={stage}"]), Recorder())


def test_an_sae_of_images_reads_captions(described: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_without_saving(monkeypatch)
    ctx = make_context(described, *POOLED)
    sae, scenes = TrainSAE.at(ctx, 0).folder, Scenes.at(ctx, "train", N_TRAIN, ctx.config.data).load()
    (tmp_path / "captions.txt").write_text("\n".join(scenes.caption(i) for i in range(N_TRAIN)))
    (tmp_path / "words.txt").write_text("red\nball\ncube\nsnow\n")
    given = [one for one in IMPORTED if not one.startswith(("data.", "scope."))]
    given += [f"sae.path={sae}", "data=captions", f"data.root={tmp_path / 'captions.txt'}", "data.test_share=0.3"]
    given += ["model.site=pooled", f"output_dir={tmp_path / 'out'}", f"predict.class_names={tmp_path / 'words.txt'}"]
    few = {
        "quality": ["quality.n_neighbours=3"],
        "name": ["name.n_top_images=3", f"name.vocabulary={tmp_path / 'words.txt'}"],
        "steer": ["steer.n_latents=2", "steer.n_images=2"],
        "attribute": ["attribution.n_tested=2"],
    }
    tables, said = {}, Recorder()
    for stage, settings in few.items():
        made = run(compose([*given, f"stage={stage}", *settings]), said)
        assert made is not None
        tables[stage] = set(made.tables)
    assert tables == {
        "quality": {"fidelity", "quality", "progressive"},
        "name": {"names", "names_listed"},
        "steer": {"steering", "steering_words"},
        "attribute": {"attribution"},
    }
    assert said.stages("built").count("import_sae") == 1
    text = " ".join(said.text.split())
    for reason in ("no linear probe on reconstructions", "No classifier is swept"):
        assert re.search(rf"{reason}: data=captions knows no classes", text)
    with pytest.raises(InputError, match=r"data=captions knows no classes to name features by: give name\.vocabulary"):
        run(compose([*given, "stage=name"]), Recorder())


def test_captions_are_embedded_in_the_place_of_images(described: Path, tmp_path: Path) -> None:
    scenes = Scenes.at(make_context(described, *POOLED), "train", N_TRAIN, make_context(described, *POOLED).config.data)
    texts = [scenes.load().caption(i) for i in range(N_TRAIN)]
    (tmp_path / "captions.txt").write_text("\n".join(texts))
    given = ("model=scenes_clip", "data=captions", f"data.root={tmp_path / 'captions.txt'}", "data.test_share=0")
    given += ("model.site=pooled", "sae.n_tokens=2000", "sae.batch_tokens=32", "describe.n_label_images=2")
    found = run_tiny(tmp_path / "out", *given, "stage=describe")
    assert "Monosemanticity, median: all" in found.text
    assert found.files is not None
    assert not found.files.figures
    page = found.files.page.read_text()
    assert "Images: here captions" in page
    assert f"captions, {N_TRAIN} training captions" in page
    shown = found.files.tables["top_captions"]["csv"].read_text()
    assert any(text in shown for text in texts)
    ctx = make_context(tmp_path / "out", *given)
    vectors = Tokens.at(ctx, "train").load().tokens(slice(None)).patches[:, 0]
    expected = load_backbone("scenes_clip", progress=False).embed_texts(texts)
    np.testing.assert_allclose((vectors / vectors.norm(dim=-1, keepdim=True)).numpy(), expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(Judge.at(ctx, "train").load().embeddings, expected.numpy(), atol=1e-5)
    with pytest.raises(InputError, match=r"data=captions holds texts, of which there are embeddings alone"):
        run_tiny(tmp_path / "out", *(one for one in given if "site" not in one), "stage=describe")
    (tmp_path / "captions.txt").write_text("a photo of a zebra\na red ball\n")
    with pytest.raises(
        InputError,
        match=r"Expected captions .* in words of the model's own vocabulary .* 'zebra': .*scenes_clip/vocabulary\.json",
    ):
        run_tiny(tmp_path / "out", *given, "stage=describe")
    (tmp_path / "captions.txt").write_text(f"a red ball\n{40 * 'red '}\n")
    ctx = make_context(tmp_path / "out", *given)
    check_captions(ctx, open_split(ctx, "train"))
    assert isinstance(ctx.display, Recorder)
    assert "1 of 2 train captions are longer than the 32 tokens that the text tower reads" in ctx.display.text


def test_zero_shot_needs_no_block_behind_an_embedding_of_a_clip_that_is_yet_to_be_trained(tmp_path: Path) -> None:
    trained = ("model=scenes_clip", "model.pretrained=train_clip", "model.site=pooled", "sae.batch_tokens=32")
    assert why_no_predictions(make_context(tmp_path, *trained)) == ""
    assert "is the last block" in why_no_predictions(
        make_context(tmp_path, *trained[:2], "model.layer=-1", "stage=score")
    )


def test_an_sae_of_embeddings_reads_projected_patches_from_python(described: Path) -> None:
    sae = load_sae(TrainSAE.at(make_context(described, *POOLED), 0).folder)
    projected, pooled = (load_backbone("scenes_clip", site=site, progress=False) for site in ("projected", "pooled"))
    assert choose_layer(sae, projected) == 3
    check_has_maps(sae.origin, projected.site)
    with pytest.raises(InputError, match="reads pooled embeddings"):
        check_has_maps(Origin(), pooled.site)
