"""Fidelity as an artifact of a seed, of a model with text and of one without; alignment as one of two seeds."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Handle
from infoscope.runtime import processes
from infoscope.sae.metrics import compute_sae_metrics
from infoscope.stages.describe.alignment import alignments_of, make_alignment_columns
from infoscope.stages.describe.fidelity import Fidelity, why_no_predictions
from infoscope.stages.sae import sae_of
from infoscope.stages.tokens import Tokens
from tests.support.pipeline_samples import N_TEST, Recorder, copy_run, finish_tiny_run, make_tiny_config, run_tiny

CLIP = ("model=scenes_clip", "data.n_train=24", "sae.n_tokens=4000", "predict.n_images=10")


def test_a_model_without_text_is_measured_on_tokens_alone(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    output_dir, record = copy_run(finish_tiny_run(tmp_path_factory)[0], tmp_path / "run", but=("fidelity",)), Recorder()
    found = Fidelity.at(Context(make_tiny_config(output_dir), record), 0).load()
    assert record.stages("built") == ["fidelity"]
    assert not found.has_predictions
    assert 0 < found.explained_variance < 1
    assert found.l0 == pytest.approx(4, abs=0.1)


def test_the_head_of_a_clip_is_asked_about_the_test_images(tmp_path: Path) -> None:
    record = Recorder()
    ctx = Context(make_tiny_config(tmp_path, *CLIP), record)
    assert why_no_predictions(ctx) == ""
    made = Fidelity.at(ctx, 0)
    found = made.load()
    assert record.stages("built")[-2:] == ["zero_shot_head", "fidelity"]
    assert "fidelity, seed 0" in record.shown
    assert found.n_tokens == N_TEST * ctx.config.clip.grid**2
    assert len(found.image_index) == 10
    assert found.mean_cross_entropy("tokens") < min(found.mean_cross_entropy(v) for v in ("zeros", "mean"))
    tokens = Tokens.at(ctx, "test").load()
    metrics = compute_sae_metrics(sae_of(ctx, 0).load(), (patches.flatten(0, 1) for _, patches in tokens.batches(8)))
    measured = [found.fvu, found.l0, found.cosine_centred, 1 - found.alive_share]
    assert measured == pytest.approx([metrics[name] for name in ("fvu", "l0", "cosine", "dead_share")], rel=1e-6)
    again = Context(make_tiny_config(tmp_path, *CLIP, "predict.batch_images=3", "predict.n_shown=1"), Recorder())
    assert Fidelity.at(again, 0).hash == made.hash
    others = Context(make_tiny_config(tmp_path, *CLIP, "predict.seed=1"), Recorder())
    assert Fidelity.at(others, 0).hash != made.hash
    np.testing.assert_array_equal(Fidelity.at(again, 0).load().image_index, found.image_index)


def test_what_is_there_is_found_without_loading_the_model(tmp_path: Path) -> None:
    made = Fidelity.at(Context(make_tiny_config(tmp_path, *CLIP), Recorder()), 0)
    made.get()
    ctx = Context(make_tiny_config(tmp_path, *CLIP), record := Recorder())
    assert why_no_predictions(ctx) == ""
    assert Fidelity.at(ctx, 0).get().hash == made.hash
    assert record.stages("reused") == ["fidelity"]
    assert "loading the backbone" not in record.shown


def test_what_the_main_process_opens_alone_was_opened_by_all_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the others ask later whether it exists, and wait for an answer for ever."""
    small = ("model=planted_registers", "data.n_train=8", "sae.n_tokens=500", "data.store_tokens=false", "seeds=[0]")
    config = make_tiny_config(tmp_path, *small)
    Fidelity.at(Context(config, Recorder()), 0).get()
    shutil.rmtree(tmp_path / "artifacts" / "fidelity")
    asked, exists = [], Handle.exists

    def note(handle: Handle) -> bool:
        if processes._n_alone and not handle.is_known_to_exist:
            asked.append(handle.stage.kind)
        return exists(handle)

    monkeypatch.setattr(Handle, "exists", note)
    record = Recorder()
    Fidelity.at(Context(config, record), 0).get()
    assert record.stages("built") == ["fidelity"]
    assert asked == []


def test_seeds_are_aligned_two_by_two(tmp_path: Path) -> None:
    record = Recorder()
    ctx = Context(make_tiny_config(tmp_path, *CLIP, "seeds=[3,0]"), record)
    ((pair, handle),) = alignments_of(ctx).items()
    assert pair == (0, 3)
    found = handle.load()
    assert record.stages("built")[-2:] == ["image_codes", "alignment"]
    assert found.n_images == 24
    assert found.n_pairs("decoder") == found.d_sae_other == found.partner.shape[1]
    for seed, values in ((0, found.values("decoder")), (3, found.values_of_other("decoder"))):
        decoder, activation = make_alignment_columns(ctx, seed)
        assert [decoder.name, activation.name] == ["match_decoder", "match_activation"]
        np.testing.assert_allclose(decoder.values, values)
        assert activation.n_known == found.n_pairs("activation") < decoder.n_known
    alone = Context(make_tiny_config(tmp_path, *CLIP, "seeds=[0]"), Recorder())
    assert list(make_alignment_columns(alone, 0)) == []
    more = Context(make_tiny_config(tmp_path, *CLIP, "seeds=[0,3,5]"), Recorder())
    assert alignments_of(more)[0, 3].hash == handle.hash
    assert set(alignments_of(more, 3)) == {(0, 3), (3, 5)}


def test_seeds_are_measured_in_one_reading(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    output_dir = copy_run(finish_tiny_run(tmp_path_factory)[0], tmp_path / "run", but=("fidelity",))
    record = run_tiny(output_dir, "stage=describe", "seeds=[0,1]")
    assert [what for what in record.shown if what.startswith("fidelity")] == ["fidelity, seed 0, 1"]
    assert len(record.names("built", "fidelity")) == 2
    alone = Fidelity.at(Context(make_tiny_config(finish_tiny_run(tmp_path_factory)[0]), Recorder()), 0).load()
    found = Fidelity.at(Context(make_tiny_config(output_dir), Recorder()), 0).load()
    assert (found.fvu, found.l0, found.alive_share) == (alone.fvu, alone.l0, alone.alive_share)
    assert Fidelity.at(Context(make_tiny_config(output_dir, "seeds=[1]"), Recorder()), 1).load().fvu != found.fvu
