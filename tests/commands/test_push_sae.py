"""push-sae: an SAE and its model card are gathered, and uploaded only when that is confirmed."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants

from infoscope.commands.push_sae import Pushed, push_sae
from infoscope.runtime.errors import InputError
from infoscope.runtime.manifests import compute_checksum
from infoscope.sae.activations import TopK
from infoscope.sae.checkpoint import save_sae
from infoscope.sae.export import export_sae
from infoscope.sae.loading import load_sae
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import Origin
from infoscope.sae.source import Source
from tests.support.hub_server import HubServer, serve_hub

REPO = "owner/my-sae"
METRICS = {"fvu": 0.25, "l0": 2.0, "dead_share": 0.5, "cosine": 0.75, "mse": 1.5}
SCOPE = "**Information scope of the features**\n\n|  | SAE seed 0 |\n| :--- | ---: |\n| gamma | 0.0449 |\n"
REMOVAL = "**Feature removal**\n\n| tokens | top-1 |\n| :--- | ---: |\n| original tokens | 25.0 |\n"


def make_sae() -> SparseAutoencoder:
    sae = SparseAutoencoder(4, 8, TopK(2), seed=0)
    sae.origin = Origin(layer=3)
    return sae


def write_artifact(outputs: Path, stage: str, name: str, hash: str, **upstream: str) -> Path:
    """Write the manifest of an artifact, and a configuration that is nobody's business."""
    folder = outputs / stage / f"{name}-{hash}"
    folder.mkdir(parents=True)
    manifest = {"format_version": 2, "stage": stage, "name": name, "hash": hash, "files": {}, "upstream": upstream}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.yaml").write_text("output_dir: /home/somebody/secret\n")
    return folder


@pytest.fixture
def artifact(tmp_path) -> Path:
    folder = write_artifact(tmp_path / "artifacts", "train_sae", "clip-topk-seed0", "5ae0000000000000")
    save_sae(folder, make_sae())
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    return folder


def write_report(folder: Path) -> Path:
    (folder / "tables").mkdir(parents=True)
    context = {"model": "clip_b16, block 3", "data": "photos, 9 training images", "hardware": "a secret machine"}
    (folder / "summary.json").write_text(json.dumps({"title": "T", "context": context}))
    for name, text in {"scope": SCOPE, "removal": REMOVAL, "cuts": "a table of others"}.items():
        (folder / f"tables/{name}.md").write_text(text)
    return folder


@pytest.fixture
def report(tmp_path) -> Path:
    """A report that was made from the scores of that SAE."""
    write_artifact(tmp_path / "artifacts", "score", "clip", "5c00000000000000", sae="5ae0000000000000")
    folder = write_artifact(
        tmp_path / "artifacts", "report", "clip", "4e90000000000000", score_seed0="5c00000000000000"
    )
    return write_report(folder)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[HubServer]:
    with serve_hub(tmp_path / "hub", monkeypatch) as server:
        yield server


def push(folder: Path, out: Path, repo: str = REPO, **options: Any) -> Pushed:
    return push_sae(folder, repo, **{"report": None, "private": False, "confirm": False, "out": out, **options})


def refuse(words: str, folder: Path, out: Path, repo: str = REPO, **options: Any) -> None:
    with pytest.raises(InputError, match=words) as caught:
        push(folder, out, repo, **options)
    assert "\n" not in str(caught.value)


def test_without_confirmation_nothing_leaves_the_machine(artifact, report, hub, tmp_path):
    made = push(artifact, tmp_path / "out", report=report)
    assert made == Pushed(tmp_path / "out", ["README.md", "sae.json", "sae.safetensors", "metrics.json"], None, [])
    assert hub.requests == []
    assert sorted(path.name for path in made.folder.iterdir()) == sorted(made.files)
    for name in made.files[1:]:
        assert (made.folder / name).read_bytes() == (artifact / name).read_bytes()


def test_the_card_says_what_it_is_how_to_load_it_and_what_was_measured(artifact, report, tmp_path):
    push(artifact, tmp_path / "out", report=report)
    card = (tmp_path / "out/README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front == {"library_name": "infoscope", "tags": ["sparse-autoencoder", "interpretability", "vision"]}
    for words in (
        f"# {REPO}\n",
        "A sparse autoencoder of 8 latents on tokens of width 4",
        "| kind | topk |",
        "<br>z = the 2 largest of ReLU(a), else 0<br>",
        "| trained on | block 3 |",
        f'sae = infoscope.load_sae("hf:{REPO}")\n',
        "z = sae.encode(tokens)  # [..., 8] of tokens [..., 4]",
        f"`infoscope sae=import sae.path=hf:{REPO}`",
        "- model: clip_b16, block 3\n- data: photos, 9 training images\n",
        SCOPE,
        REMOVAL,
    ):
        assert words in card, words
    for words in ("secret", "a table of others", str(tmp_path)):
        assert words not in card
    push(artifact, tmp_path / "bare")
    bare = (tmp_path / "bare/README.md").read_text()
    assert "0.2500" in bare  # the SAE's own metrics
    assert "Information scope" not in bare


def test_with_confirmation_it_is_uploaded_and_loaded_again(artifact, report, hub, tmp_path):
    made = push(artifact, tmp_path / "out", report=report, confirm=True)
    sha = hub.refs[REPO]["main"]
    assert made.url == f"{hub.url}/{REPO}/commit/{sha}"
    assert hub.private[REPO] is False
    held = hub.commits[REPO][sha]
    assert held.keys() == {".gitattributes", "README.md", "sae.json", "sae.safetensors", "metrics.json"}
    assert held["README.md"] == (tmp_path / "out/README.md").read_bytes()
    again = load_sae(f"hf:{REPO}")
    assert again.origin.layer == 3
    for name, value in make_sae().state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_a_card_that_was_edited_stays(artifact, report, hub, tmp_path):
    out = tmp_path / "out"
    push(artifact, out, report=report)
    card = (out / "README.md").read_text().replace("# license: none is given", "license: mit #")
    (out / "README.md").write_text(card)
    made = push(artifact, out, report=report, confirm=True)
    assert made.notes == [f"{out}/README.md stays as it is: delete it to have it written anew."]
    assert hub.commits[REPO][hub.refs[REPO]["main"]]["README.md"].decode() == card
    (out / "README.md").write_text("another card")
    refuse("README.md is the card of another SAE: delete it", artifact, out)


def test_a_report_on_an_imported_sae_is_known_by_the_file(tmp_path):
    exported, other = tmp_path / "exported", tmp_path / "other"
    (_, weights), _ = export_sae(make_sae(), exported), export_sae(SparseAutoencoder(4, 9, TopK(2)), other)
    made = write_artifact(tmp_path / "artifacts", "import_sae", "clip", "5ae0000000000000")
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["source"] = {"sha256": compute_checksum(weights)}
    save_sae(made, make_sae())
    (made / "manifest.json").write_text(json.dumps(manifest))
    report = write_artifact(tmp_path / "artifacts", "report", "clip", "4e90000000000000", sae="5ae0000000000000")
    write_report(report)
    assert push(exported, tmp_path / "out", report=report).notes == []
    refuse(rf"on other SAEs \(clip\), not on {other}", other, tmp_path / "out2", report=report)
    export_sae(make_sae(), tmp_path / "plain", "plain")  # the same tensors
    assert push(tmp_path / "plain", tmp_path / "out3", report=report).notes == []
    export_sae(SparseAutoencoder(4, 8, TopK(2), seed=1), tmp_path / "again")  # of these sizes, too
    notes = push(tmp_path / "again", tmp_path / "out4", report=report).notes
    assert notes == [f"Whether the report is on this SAE was not checked, for {tmp_path / 'again'} does not say."]


def test_an_exported_sae_is_pushed_as_it_is(report, hub, tmp_path):
    exported = tmp_path / "exported"
    export_sae(make_sae(), exported)
    made = push(exported, tmp_path / "out", report=report, confirm=True)
    assert made.files == ["README.md", "cfg.json", "sae_weights.safetensors"]
    assert made.notes == [f"Whether the report is on this SAE was not checked, for {report} does not say."]
    tokens = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(load_sae(f"hf:{REPO}").encode(tokens), make_sae().encode(tokens), atol=1e-6)
    export_sae(make_sae(), tmp_path / "plain", "plain")
    made = push(tmp_path / "plain", tmp_path / "other", "owner/plain", confirm=True)
    assert made.files == ["README.md", "plain.json", "plain.safetensors"]
    assert load_sae("hf:owner/plain").origin.layer == 3


def test_a_report_on_other_saes_is_refused(artifact, tmp_path):
    outputs = tmp_path / "artifacts"
    write_artifact(outputs, "train_sae", "clip-topk-seed1", "5ae1111111111111")
    write_artifact(outputs, "score", "clip", "5c11111111111111", sae="5ae1111111111111")
    other = write_report(write_artifact(outputs, "report", "clip", "4e91111111111111", score_seed0="5c11111111111111"))
    refuse(r"is on other SAEs \(clip-topk-seed1\), not on .*clip-topk-seed0", artifact, tmp_path / "out", report=other)
    write_artifact(outputs, "score", "clip", "5c22222222222222", sae="5ae0000000000000")
    upstream = {"score_seed0": "5c22222222222222", "score_seed1": "5c11111111111111"}
    both = write_report(write_artifact(outputs, "report", "clip", "4e92222222222222", **upstream))
    made = push(artifact, tmp_path / "out", report=both)
    assert made.notes == ["The report is on 2 SAEs, of which this one is clip-topk-seed0."]


def test_a_card_shows_what_a_file_says_as_it_stands(artifact, tmp_path):
    words = "a | b <script>alert(1)</script> [x](http://evil) `c` *d* _e_ f_g"
    sae = make_sae()
    sae.origin = Origin(source=Source("saelens", "topk", backbone=words, facts={"a": words}, warnings=(words,)))
    save_sae(artifact, sae)
    push(artifact, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    shown = r"a \| b &lt;script&gt;alert(1)&lt;/script&gt; \[x\](http:\//evil) \`c\` \*d\* \_e\_ f_g"
    assert card.count(shown) == 3
    assert "<script>" not in card


class TestRefusals:
    @pytest.mark.parametrize("name", ["cfg.json", "sae.json", "plain.json"])
    def test_of_what_others_wrote(self, tmp_path, name):
        export_sae(make_sae(), tmp_path / "theirs", "plain" if name == "plain.json" else "saelens")
        folder, out = tmp_path / "theirs", tmp_path / "out"
        info = next(folder.glob("*.json"))
        said = json.loads(info.read_text())
        del said["written_by"]
        said.get("metadata", {}).pop("infoscope", None)
        info.unlink()
        (folder / name).write_text(json.dumps(said))
        if name == "sae.json":
            next(folder.glob("*.safetensors")).rename(folder / "sae.safetensors")
        refuse("or a folder of export-sae .* that infoscope wrote, got .*: run export-sae on", folder, out)

    def test_of_what_is_no_sae(self, artifact, tmp_path):
        out = tmp_path / "out"
        refuse(r"Expected an artifact of train_sae .* \(sae\.json and sae\.safetensors, or cfg", tmp_path, out)
        (artifact / "metrics.json").write_text("[1]")
        refuse(r"metrics\.json is damaged", artifact, out)
        (artifact / "sae.safetensors").write_bytes(b"x")
        refuse(r"sae\.safetensors is damaged", artifact, out)
        assert not out.exists()

    def test_of_what_is_no_report(self, artifact, tmp_path):
        refuse("Expected report= to be the folder of a report", artifact, tmp_path / "out", report=tmp_path)

    @pytest.mark.parametrize("repo", ["", "name", "a/b/c", "/name", "owner/", "hf:owner/name", "owner/..", "a b/c"])
    def test_of_what_is_no_repository(self, artifact, tmp_path, repo):
        refuse(f"Expected a repository on the hub as owner/name, got '{repo}'", artifact, tmp_path / "out", repo)

    def test_of_a_folder_with_other_files(self, artifact, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/thesis.tex").write_text("")
        refuse(r"Expected out= to be an empty folder, .* holds thesis\.tex", artifact, tmp_path / "out")
        export_sae(make_sae(), tmp_path / "exported")
        refuse("holds the SAE itself", tmp_path / "exported", tmp_path / "exported")

    def test_without_a_network(self, artifact, tmp_path, monkeypatch):
        def fail(*_args, **_options):
            raise OSError("no network in this test")

        monkeypatch.setattr(socket, "create_connection", fail)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        refuse(
            f"Cannot upload to {REPO}, for there is no network: what .* lies in",
            artifact,
            tmp_path / "out",
            confirm=True,
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        refuse("for HF_HUB_OFFLINE is set", artifact, tmp_path / "out", confirm=True)

    def test_by_the_hub(self, artifact, hub, tmp_path):
        for status, headers, words in (
            (401, {}, r"you are not logged in|is private and you are not logged in \(hf auth login\)"),
            (403, {}, r"you are not logged in to the hub as one who may do that to owner/my-sae"),
            (400, {"X-Error-Message": "the name is taken"}, "the name is taken"),
        ):
            hub.refuses = (status, headers)
            refuse(f"Cannot upload to {REPO}: .*({words}).*; .*out holds", artifact, tmp_path / "out", confirm=True)

    def test_to_publish_what_is_to_be_private(self, artifact, hub, tmp_path):
        push(artifact, tmp_path / "out", "owner/hidden", private=True, confirm=True)
        assert hub.private["owner/hidden"]
        sha = hub.commit("owner/public", {})
        refuse(
            "owner/public exists and is public", artifact, tmp_path / "b", "owner/public", private=True, confirm=True
        )
        assert hub.refs["owner/public"]["main"] == sha
