"""stage=name: names of the features of pooled embeddings and of patches, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from infoscope.analyses.concepts import Search
from infoscope.pipeline.context import Context
from infoscope.runtime.errors import InputError
from infoscope.stages.images import open_split
from infoscope.stages.latents import Latents
from infoscope.stages.name.stage import Name
from infoscope.stages.name.vocabulary import EmbeddedWords, find_values, list_values, vocabulary_of
from infoscope.stages.sae import sae_of
from tests.support.pipeline_samples import Recorder, collect_tiny, make_tiny_config, run_tiny

CLIP = ("model=scenes_clip", "data.size_px=104", "scope.shift_patches=1", "stage=name", "name.n_top_images=3")
POOLED = (*CLIP, "model.site=pooled", "sae.n_tokens=2000", "sae.batch_tokens=32", "seeds=[0,1]")
LOOSE = ("name.min_cosine=0.1", "name.min_ratio=1.01")
"""Of an SAE that has hardly been trained nothing is valid else."""


def make_context(output_dir: Path, *overrides: str) -> Context:
    return Context(make_tiny_config(output_dir, *overrides), Recorder())


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    output_dir = tmp_path_factory.mktemp("name")
    return output_dir, run_tiny(output_dir, *POOLED, *LOOSE)


def test_features_of_pooled_embeddings_are_named_by_their_rows(named: tuple[Path, Recorder]) -> None:
    output_dir, record = named
    assert record.files is not None
    tables = {"names", "names_listed", "names_search", "names_bias", "names_misled"}
    assert record.files.tables.keys() == tables
    assert record.files.figures.keys() == {"names_search", "names_bias"}
    assert "valid names that can be held against the images are right" in record.text
    ctx = make_context(output_dir, *POOLED, *LOOSE)
    found, sae = Name.at(ctx, 0).load(), sae_of(ctx, 0).load()
    texts = EmbeddedWords.at(ctx).load().weights.numpy()
    vocabulary = vocabulary_of(ctx)
    row, latent = sae.W_dec.detach().numpy(), int(np.flatnonzero(found.is_named)[0])
    by_row = (texts - texts.mean(axis=0)) @ row[latent]
    by_row /= np.linalg.norm(texts - texts.mean(axis=0), axis=1) * np.linalg.norm(row[latent])
    assert found.names[latent] == vocabulary.concepts[vocabulary.concept_of[by_row.argmax()]]
    assert found.cosines[found.place, latent, 0] == pytest.approx(by_row.max(), abs=1e-5)
    assert found.readings == ["centred", "row", "shifted"]
    assert (found.names[found.n_firing < 3] == "").all()
    one = next(iter(found.find_distinct(found.place)))
    assert np.isfinite(found.slopes[one]).all()
    assert (np.isfinite(found.slopes_random) <= np.isfinite(found.slopes)).all()
    assert np.isfinite(found.slopes_random).any()
    assert np.isfinite(found.association[one]).all()
    assert np.isfinite(found.searches[one, Search._fields.index("base")])


def test_columns_of_the_table_of_latents_and_rows(named: tuple[Path, Recorder]) -> None:
    table = Latents.at(make_context(named[0], *POOLED, *LOOSE), 0).load()
    found = Name.at(make_context(named[0], *POOLED, *LOOSE), 0).load()
    np.testing.assert_array_equal(table["name"], found.names)
    assert np.isnan(table["name_valid"][~found.is_named]).all()
    assert np.nansum(table["name_valid"]) == found.valid[found.place].sum()
    rows = collect_tiny(named[0], *POOLED, *LOOSE).rows
    assert len(rows) == 2 * 3
    assert all(float(str(row["n_valid"])) >= float(str(row["n_distinct"])) for row in rows)


def test_a_concept_can_be_asked_for(named: tuple[Path, Recorder]) -> None:
    found = Name.at(make_context(named[0], *POOLED, *LOOSE), 0).load()
    other = [name for i, name in enumerate(found.concepts) if i not in found.find_distinct(found.place)]
    with pytest.raises(InputError, match=r"SAE seed 0 has none called .* \(valid names: "):
        run_tiny(named[0], *POOLED, *LOOSE, f"name.concept={other[0]}")


def test_features_of_patches_are_named_by_the_images_on_which_they_fire(tmp_path: Path) -> None:
    record = run_tiny(tmp_path, *CLIP, "seeds=[0]", *LOOSE)
    assert record.files is not None
    assert "names_groups" in record.files.tables
    assert "No classifier is swept, and no embedding edited" in record.text
    said = " ".join(record.text.split())
    counts = r"\d+ by direction and text, each less its mean \(ours\), \d+ different ones \(by chance [\d.]+ with the"
    assert re.search(rf"Of \d+ features so many have a valid name \(cosine above .*: {counts}", said)
    rows = (record.files.page.parent / "tables" / "names.md").read_text().splitlines()
    assert re.search(r"\(ours\) .* \| \d+ \| \d+ \| \d+ \| \d+\.\d \|", "".join(rows))  # of one seed they are counts
    found = Name.at(make_context(tmp_path, *CLIP, "seeds=[0]", *LOOSE), 0).load()
    assert found.readings == ["centred", "shifted"]
    assert found.class_names == []
    assert np.isfinite(found.cosines[0, found.is_named, 0]).all()


def test_values_of_scenes_and_their_synonyms(named: tuple[Path, Recorder], tmp_path: Path) -> None:
    ctx = make_context(named[0], *POOLED)
    vocabulary, images = vocabulary_of(ctx), open_split(ctx, "test")
    of = dict(zip(vocabulary.words, vocabulary.concept_of, strict=True))
    assert vocabulary.concepts[of["sphere"]] == "ball" == vocabulary.concepts[of["ball"]]
    values = find_values(images, np.arange(len(images)))
    known = list(list_values(images))
    np.testing.assert_array_equal(values[:, known.index("red")], images.labels("colour") == 0)
    (tmp_path / "words.txt").write_text("sphere\n\nzebra crossing\nball\n")
    own = vocabulary_of(make_context(named[0], *POOLED, f"name.vocabulary={tmp_path / 'words.txt'}"))
    assert own.concepts == ("ball", "zebra crossing")
    assert own.words == ("sphere", "ball", "zebra crossing")


def test_what_cannot_be_named_is_said_first(tmp_path: Path) -> None:
    files = {"twice": "red\nblue\nRed\n", "unknown": "red\nzebra\n", "one": "red\n"}
    files |= {"spaces": "traffic light\nred\ntraffic  light\n", "long": "red\nblue\n" + 40 * "red "}
    for name, text in files.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "words.npz").write_bytes(b"\0")
    refused = {
        "name.vocabulary=twice.txt": r"Expected each word of name\.vocabulary once, .* 'red' in lines 1 and 3",
        "name.vocabulary=spaces.txt": "'traffic light' in lines 1 and 3",
        "name.vocabulary=long.txt": r"at most 32 tokens, .* got 4 longer, first 'a red red .*: choose shorter ones",
        "name.vocabulary=unknown.txt": r"Expected words \(name\.vocabulary=FILE\) .* own vocabulary .* 'zebra'",
        "name.vocabulary=one.txt": "at least two concepts to choose names from, got 1",
        "name.vocabulary=words.npz": "embeddings of another language model",
        "name.vocabulary=none.txt": r"none\.txt, got: no such file",
        "name.concept=zebra": r"Expected name\.concept to be one of the 39 concepts",
        "name.n_top_images=17": "the test split has 16",
        "judge=dinov2_s14": r"drop judge=",
        "model=planted_registers": "has no text tower",
    }
    for override, words in refused.items():
        given = override.replace("vocabulary=", f"vocabulary={tmp_path}/")
        site = () if "planted" in override else ("model.site=pooled",)
        clip = CLIP[1:] if "planted" in override else CLIP
        with pytest.raises(InputError, match=words):
            run_tiny(tmp_path / "out", *clip, *site, "seeds=[0]", given)
    with pytest.raises(InputError, match=r"name\.reading=row compares decoder rows"):
        run_tiny(tmp_path / "out", *CLIP, "name.reading=row")
    assert not (tmp_path / "out" / "artifacts" / "train_sae").exists()
