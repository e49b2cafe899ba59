"""stage=quality: what it builds for SAEs of patch tokens and of pooled embeddings, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from infoscope.config.tree import compose
from infoscope.pipeline.context import Context
from infoscope.pipeline.run import run
from infoscope.runtime.errors import InputError
from infoscope.sae.metrics import compute_sae_metrics
from infoscope.stages.describe.fidelity import Fidelity
from infoscope.stages.latents import Latents
from infoscope.stages.quality.stage import Quality, measured_of
from infoscope.stages.sae import sae_of
from infoscope.stages.tokens import Tokens
from tests.support.foreign.dictionaries import write_dictionary
from tests.support.pipeline_samples import (
    N_TEST,
    Recorder,
    collect_tiny,
    copy_run,
    finish_tiny_run,
    make_tiny_config,
    run_tiny,
    save_noise,
)

QUALITY = ("stage=quality", "seeds=[0,1]", "quality.n_tokens=500")
POOLED = ("model=scenes_clip", "model.site=pooled", "data.size_px=104", "sae.n_tokens=2000", "sae.batch_tokens=32")


IMPORTED = (
    *("sae=import", "logger=none", "trainer.progress=false", "trainer.device=cpu", "data.n_train=24", "data.n_test=10"),
    *("data.n_workers=0", "stage=quality"),
)


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs of imported SAEs share scenes and tokens."""
    return tmp_path_factory.mktemp("imported")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    folder = tmp_path_factory.mktemp("quality")
    output_dir = copy_run(finish_tiny_run(tmp_path_factory)[0], folder / "run", but=("report",))
    return output_dir, run_tiny(output_dir, *QUALITY)


def make_context(output_dir: Path, *overrides: str) -> Context:
    return Context(make_tiny_config(output_dir, *QUALITY, *overrides), Recorder())


def test_its_page_needs_no_scores(measured: tuple[Path, Recorder]) -> None:
    output_dir, record = measured
    assert record.stages("built").count("image_head") == 1
    assert len(record.names("built", "quality")) == 2
    assert "score" not in record.stages("built")
    assert record.files is not None
    assert record.files.tables.keys() == {"fidelity", "quality", "progressive", "alignment"}
    assert record.files.figures.keys() == {"progressive"}
    assert re.search(r"A linear probe of \d+ classes is right on [\d.]+% of 16 test images", record.text)
    again = run_tiny(output_dir, *QUALITY)
    assert again.stages("built") == []


def test_the_curve_ends_at_the_sae_itself_where_k_is_its_own(measured: tuple[Path, Recorder]) -> None:
    ctx = make_context(measured[0], "quality.k_levels=[1,4]", "quality.n_tokens=10000")
    found = Quality.at(ctx, 0).load()
    whole = compute_sae_metrics(
        sae_of(ctx, 0).load(), [Tokens.at(ctx, "test").load().tokens(slice(None)).patches.flatten(0, 1)]
    )
    assert found.n_tokens == N_TEST * ctx.config.clip.grid**2 == Fidelity.at(ctx, 0).load().n_tokens
    assert found.fvu[0] > found.fvu[1] == pytest.approx(whole["fvu"], rel=1e-5)
    assert found.l0[1] == pytest.approx(whole["l0"])
    summary = measured_of(make_context(measured[0]), 0).summary
    assert summary["zeros"] == pytest.approx(1 - whole["l0"] / sae_of(ctx, 0).load().d_sae)
    assert 0 < summary["match_decoder"] <= 1  # pyright: ignore[reportOperatorIssue]


def test_rows_and_columns_of_others(measured: tuple[Path, Recorder]) -> None:
    collected = collect_tiny(measured[0], *QUALITY)
    assert collected.state == "done"
    assert len(collected.rows) == 2
    assert all(0 < float(str(row["cknna"])) <= 1 for row in collected.rows)
    ctx = make_context(measured[0], "stage=latents")
    nearest = Latents.at(ctx, 0).load()["nearest_row"]
    np.testing.assert_array_equal(nearest, Quality.at(ctx, 0).load().nearest_row)


def test_pooled_embeddings_are_measured_too(tmp_path: Path) -> None:
    record = run_tiny(tmp_path, *QUALITY, *POOLED, "seeds=[0]", "sae=matryoshka_k")
    assert record.files is not None
    assert record.files.tables.keys() == {"fidelity", "quality", "progressive"}
    assert "k stands in the place of the SAE's own number" in record.files.page.read_text(encoding="utf-8")
    found = Quality.at(make_context(tmp_path, *POOLED, "seeds=[0]", "sae=matryoshka_k"), 0).load()
    assert found.n_tokens == found.n_images == N_TEST
    assert found.ks[-1] == len(found.nearest_row) == 128


def test_what_cannot_be_measured_is_said_first(tmp_path: Path) -> None:
    for overrides, words in {
        (
            "quality.n_neighbours=12",
            "data.n_test=8",
            *POOLED,
        ): "needs more than 12 test tokens, .*, got 8: use more test images",
        ("quality.k_levels=[4096]", *POOLED): "quality.k_levels to hold a number up to 128, that of the latents",
        ("probe.target=smell", *POOLED): "smell",
    }.items():
        with pytest.raises(InputError, match=words):
            run_tiny(tmp_path, *QUALITY, "seeds=[0]", *overrides)
    assert not (tmp_path / "artifacts" / "train_sae").exists()


def test_without_classes_there_is_no_probe(tmp_path: Path) -> None:
    for i in range(12):
        save_noise(tmp_path / "photographs" / f"{i}.png", i)
    folder = (
        "data=image_folder",
        f"data.root={tmp_path / 'photographs'}",
        "data.test_share=0.5",
        "model=planted_registers",
    )
    record = run_tiny(tmp_path, *QUALITY, *folder, "seeds=[0]", "sae.n_tokens=1000")
    assert "There is no linear probe on reconstructions: data=image_folder knows no classes." in record.text
    assert "image_head" not in record.stages("built")


@pytest.mark.parametrize("name", ["prisma", "saev", "attributing_clip", "msae"])
def test_saes_of_others_are_measured(name: str, output_dir: Path, tmp_path: Path) -> None:
    """With a norm of each token, codes below 0, rows of any length; of pooled embeddings, with a ReLU."""
    place = write_dictionary(name, tmp_path, 128, 24)
    site = ["model.site=pooled", "quality.n_neighbours=3", "sae.ignore_origin=true"] if name == "msae" else []
    config = compose([*IMPORTED, f"output_dir={output_dir}", f"sae.path={place}", *site])
    run(config, Recorder())
    ctx = Context(config, Recorder())
    found, fidelity = Quality.at(ctx, 0).load(), Fidelity.at(ctx, 0).load()
    assert -0.5 < found.cknna_unit <= 1
    assert np.isfinite([found.agreement, found.kl_nats, found.orthogonality]).all()
    own = {"saev": 4, "attributing_clip": 4}.get(name, 24)  # the file's own k, or all
    if name != "prisma":
        assert found.fvu[found.ks.tolist().index(own)] == pytest.approx(fidelity.fvu, rel=1e-4)
        assert found.l0[found.ks.tolist().index(own)] == pytest.approx(fidelity.l0)
