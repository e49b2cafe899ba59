"""stage=describe: one reading of the tokens, what the data cannot give, whose hierarchy it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from infoscope.data.scenes.factors import KINDS
from infoscope.pipeline.context import Context
from infoscope.runtime.errors import InputError
from infoscope.stages.describe.stage import Describe, find_hierarchy, find_seed
from infoscope.stages.judge import Judge, name_others
from infoscope.stages.latents import Latents
from tests.support.clip_samples import make_clip
from tests.support.pipeline_samples import (
    N_TRAIN,
    READ_ONCE,
    Recorder,
    collect_tiny,
    copy_run,
    draw_without_saving,
    finish_tiny_run,
    make_tiny_config,
    run_tiny,
    save_noise,
)

MADE = ("rank", "score", *READ_ONCE, "describe", "fidelity")


@pytest.fixture
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish_tiny_run(tmp_path_factory)[0]


def make_context(output_dir: Path, *overrides: str) -> Context:
    return Context(make_tiny_config(output_dir, *overrides), Recorder())


def test_a_command_reads_the_tokens_once(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_without_saving(monkeypatch)
    output_dir = copy_run(finished, tmp_path, but=(*MADE, "latents", "report", "probe"))
    found = run_tiny(output_dir, "stage=describe")
    assert set(found.stages("built")) == {*MADE, "report"}
    reading = [what for what in found.shown if what.startswith("reading tokens")]
    assert reading == ["reading tokens for image_codes, rank of seed 0"]
    assert "Monosemanticity, median: high-scope features" in found.text
    assert "The SAE explains" in found.text
    collected = collect_tiny(output_dir, "stage=describe")
    assert collected.state == "done"
    assert {row["variant"] for row in collected.rows} == {"high", "low", "unscored", "all"}


def test_features_have_columns(finished: Path) -> None:
    ctx = make_context(finished)
    table, said = Latents.at(ctx, 0).load(), Describe.at(ctx, 0).load()
    assert said.n_images == N_TRAIN
    assert said.class_latents is not None
    assert said.class_latents.shape == (len(KINDS), ctx.config.describe.n_class_latents)
    for name in ("ms", "clarity", "top_overlap", "label_entropy", "tree_depth", "top_class_share"):
        np.testing.assert_array_equal(table[name], getattr(said, name))
    np.testing.assert_array_equal(table["label_entropy_excess"], said.beyond_chance("label_entropy"))
    assert "label_entropy_share_excess" not in table
    assert np.isfinite(table["ms"]).any()
    assert set(table["top_class"]) <= {*KINDS, ""}
    fires = table["firing_rate"] > 0
    per_token = table["mean_firing"][fires] * table["firing_rate"][fires]
    np.testing.assert_allclose(per_token, table["mean_act"][fires], rtol=1e-5)
    assert (table["strong_rate"] <= table["firing_rate"] + 1e-6).all()
    assert find_seed(ctx, 0).table["cds"] is not None


def test_a_hierarchy_of_ones_own(finished: Path, tmp_path: Path) -> None:
    output_dir, tree = copy_run(finished, tmp_path / "run"), tmp_path / "tree.txt"
    tree.write_text("".join(f"thing {kind}\n" for kind in KINDS))
    ctx = make_context(output_dir, f"describe.tree={tree}")
    found, before = Describe.at(ctx, 0), Describe.at(make_context(output_dir), 0)
    assert found.hash != before.hash
    depth = found.load().tree_depth
    assert depth is not None
    known = np.isfinite(depth)
    assert (depth[known] < before.load().tree_depth[known]).any()  # there were families
    tree.rename(tmp_path / "moved.txt")
    assert Describe.at(make_context(output_dir, f"describe.tree={tmp_path / 'moved.txt'}"), 0).hash == found.hash
    (tmp_path / "moved.txt").write_text("thing ball\n")
    with pytest.raises(InputError, match=r"Expected every class in .*moved\.txt, but it lacks cube, cone, ring and 5"):
        run_tiny(output_dir, f"describe.tree={tmp_path / 'moved.txt'}", "stage=describe")


def test_photographs_without_classes_are_described_too(tmp_path: Path) -> None:
    for number in range(20):
        save_noise(tmp_path / "photographs" / f"{number}.png", number)
    folder = ("data=image_folder", f"data.root={tmp_path / 'photographs'}", "data.test_share=0", "sae.n_tokens=2000")
    ctx = make_context(tmp_path / "out", *folder, "stage=describe")
    found = Describe.at(ctx, 0).load()
    assert np.isfinite(found.ms).any()
    assert found.label_entropy is None
    assert not any("fidelity" in node.stage.kind for node in Describe().goals(ctx))  # no test images
    assert not {"label_entropy", "top_class", "tree_depth"} & {column.name for column in Describe().latents(ctx, 0)}
    (tmp_path / "tree.txt").write_text("thing ball\n")
    given = make_context(tmp_path / "out", *folder, f"describe.tree={tmp_path / 'tree.txt'}", "stage=describe")
    with pytest.raises(InputError, match=r"describe\.tree holds a hierarchy of classes, but data=image_folder knows"):
        Describe().check(given, 0)


def test_the_classes_of_imagenet_are_named_by_their_wnids(tmp_path: Path) -> None:
    fish = ("n01440764", "n01443537")
    for number, wnid in enumerate(2 * fish):
        for split in ("train", "val"):
            save_noise(tmp_path / "imagenet" / split / wnid / f"{wnid}_{number}.JPEG", number)
    tree = tmp_path / "wordnet.is_a.txt"
    tree.write_text(f"n00001740 n00015388\nn00015388 {fish[0]}\nn00015388 {fish[1]}\nn00001740 n00002137\n")
    given = (f"data.root={tmp_path / 'imagenet'}", f"describe.tree={tree}", "stage=describe")
    imagenet = ("data=imagenet", "data.subset=true")
    for data in (imagenet, (*imagenet, "data.max_train=3"), ("data=class_folders",)):
        hierarchy = find_hierarchy(make_context(tmp_path / "out", *data, *given))
        assert hierarchy is not None
        assert hierarchy.meeting.tolist() == [[2, 1], [1, 2]]


def test_a_judge_whose_weights_do_not_fit_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    save_file(make_clip().state_dict(), tmp_path / "other.safetensors")
    weights = ("judge=scenes_clip", f"judge.pretrained={tmp_path / 'other.safetensors'}")
    for stage in ("describe", "report"):
        with pytest.raises(InputError, match=r"does not fit judge\.arch=scenes_clip: its image tower is 64 wide"):
            run_tiny(tmp_path / "out", f"stage={stage}", *weights)
    assert not list(tmp_path.glob("out/artifacts/*/*"))


def test_captions_are_judged_by_a_model_with_a_text_tower(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a red ball\na blue cube\n")
    given = ("model=scenes_clip", "model.site=pooled", "data=captions", f"data.root={tmp_path / 'captions.txt'}")
    ctx = make_context(tmp_path / "out", *given, "judge=scenes_clip", "judge.kind=planted_registers")
    with pytest.raises(InputError, match=r"has no text tower .* such as judge=scenes_clip or judge=clip_b16"):
        Judge().check(ctx, "train")
    assert "dinov2" not in name_others(ctx)
    assert "dinov2" in name_others(make_context(finished))


def test_another_model_may_judge(finished: Path, tmp_path: Path) -> None:
    output_dir = copy_run(finished, tmp_path)
    own, other = (Describe.at(make_context(output_dir, *given), 0).load() for given in ((), ("judge=scenes_clip",)))
    np.testing.assert_array_equal(own.label_entropy, other.label_entropy)
    known = np.isfinite(own.ms)
    assert not np.isclose(own.ms[known], other.ms[known]).any()
    said = run_tiny(output_dir, "stage=describe", "judge=scenes_clip").text
    assert "judged by scenes_clip." in said
    assert "judges its own features" not in said
