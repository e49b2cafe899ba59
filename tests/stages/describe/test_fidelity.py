"""What is said and shown of fidelity, and where a zero-shot head is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infoscope.analyses.fidelity import FidelityResult
from infoscope.pipeline.context import Context
from infoscope.runtime.progress import Display
from infoscope.stages.describe.fidelity import make_fidelity_table, say_fidelity, why_no_predictions
from tests.support.pipeline_samples import make_tiny_config, save_noise


def make_result(fvu: float, entropies: tuple[float, ...] = ()) -> FidelityResult:
    n = 2 * bool(entropies)
    entropy = np.repeat(np.array(entropies or np.zeros(4), np.float32)[:, None], n, axis=1)
    return FidelityResult(1600, fvu, 0.2, 0.95, 0.9, 8.0, 0.75, 3 * bool(entropies), np.arange(n), entropy, entropy < 1)


def test_a_column_per_seed_and_their_mean() -> None:
    table = make_fidelity_table({0: make_result(0.1, (0.5, 1, 2.5, 4.5)), 3: make_result(0.2, (0.5, 1.5, 2.5, 4.5))})
    rows = {(record["section"], record["quantity"]): record for record in table.records()}
    explained = rows["tokens", "explained variance (%)"]
    assert [explained[key] for key in ("seed_0", "seed_3", "mean")] == pytest.approx([0.9, 0.8, 0.85])
    entropy = "zero-shot cross-entropy (nats)"
    assert rows[entropy, "the mean token"]["mean"] == 4.5
    assert rows[entropy, "recovered, against zeros (%)"]["mean"] == pytest.approx(0.625)
    assert rows[entropy, "recovered, against the mean token (%)"]["seed_3"] == pytest.approx(0.75)
    assert rows["zero-shot top-1 (%)", "tokens as they are"]["mean"] == 1
    assert "90.00" in table.to_markdown()


def test_sentences_say_what_was_recovered() -> None:
    said = say_fidelity({0: make_result(0.1, (0.5, 1, 2.5, 4.5)), 3: make_result(0.2, (0.5, 1.5, 2.5, 4.5))})
    assert said[0].startswith("The SAEs explain 85.0 ± 7.1% of the variance of 1,600 test tokens with 8.0 latents")
    assert said[1] == (
        "Zero-shot cross-entropy on 2 test images and 3 classes is 0.500 nats, and 1.250 ± 0.354 with the"
        " reconstruction, 2.500 with zeros, 4.500 with the mean token in place of the tokens that the SAE reads: 62.5 ±"
        " 17.7% is recovered against zeros, and 81.2 ± 8.8% is recovered against the mean token."
    )
    (_, costless) = say_fidelity({0: make_result(0.1, (0.5, 1, 0.4, 4.5))})
    assert "zeros cost the prediction nothing, so there is nothing to recover" in costless


def test_without_a_head_the_table_is_of_tokens_and_a_sentence_says_why() -> None:
    results = {0: make_result(0.1)}
    assert [section.title for section in make_fidelity_table(results).sections] == ["tokens"]
    assert say_fidelity(results, "planted has no text tower.")[1:] == [
        "Zero-shot cross-entropy was not measured: planted has no text tower."
    ]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["model=scenes_clip"], ""),
        (["model=planted_registers"], "planted_registers has no text tower."),
        (["model=scenes_clip", "model.layer=-1", "probe.readouts=[patch_mean]"], "is the last: use an earlier layer."),
        (["model=scenes_clip", "predict.class_names={folder}/names.txt"], "got 'zebra'"),
        (["model=scenes_clip", "model.pretrained=train_clip", "model.layer=3"], "is the last block of scenes_clip."),
        (["model=scenes_clip", "model.pretrained=train_clip"], ""),
        (["model=scenes_clip", "data=image_folder", "data.root={folder}"], "data=image_folder knows no classes"),
    ],
)
def test_a_head_is_asked_where_there_are_words_labels_and_a_block(
    overrides: list[str], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("\n".join(["a ball", *["zebra"] * 8]))
    for seed in range(4):
        save_noise(tmp_path / f"{seed}.png", seed)
    config = make_tiny_config(tmp_path / "out", *(one.format(folder=tmp_path) for one in overrides))
    why = why_no_predictions(Context(config, Display.silent()))
    assert why == "" if not reason else reason in why
    assert not (tmp_path / "out").exists()  # nothing is built or rendered to know
