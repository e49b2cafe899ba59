"""describe-sae, export-sae and push-sae on the command line: what they print, exit codes, one sentence for failures."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from infoscope.commands import saes
from infoscope.config.tree import compose
from infoscope.sae.activations import TopK
from infoscope.sae.checkpoint import save_sae
from infoscope.sae.config import TokenChoice
from infoscope.sae.export import export_sae
from infoscope.sae.import_config import ImportedConfig
from infoscope.sae.loading import load_sae
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import Origin
from infoscope.sae.source import Source
from infoscope.vision.hooks import POOLED
from infoscope.vision.load import compute_model_fingerprint
from infoscope.vision.names import find_backbone_name, name_model
from tests.support.app_samples import run_infoscope
from tests.support.hub_server import serve_hub

SOURCE = Source("patchsae", "topk", "vit.pt", "ab" * 32, "openai/clip-vit-base-patch16", warnings=("Beware.",))
COMMANDS = ("describe-sae", "export-sae", "push-sae")


class Result(NamedTuple):
    code: int
    out: str
    err: str

    def sentence(self) -> str:
        (line,) = self.err.splitlines()
        return line.removeprefix("infoscope: ")


Run = Callable[..., Result]


@pytest.fixture
def infoscope(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        code = run_infoscope(*arguments)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def make_sae(origin: Origin | None = None) -> SparseAutoencoder:
    sae = SparseAutoencoder(4, 8, TopK(2), seed=0).requires_grad_(False)
    sae.origin = origin or Origin(-2, tokens=TokenChoice.all, site="resid_post", source=SOURCE)
    return sae


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """An artifact as import_sae leaves one."""
    save_sae(tmp_path / "my artifact", make_sae())
    return tmp_path / "my artifact"


def find_command(run: Run, *arguments: str) -> list[str]:
    """Return the arguments of the command that describe-sae ends with."""
    result = run("describe-sae", *arguments)
    assert result.code == 0, result.err
    last = result.out.splitlines()[-1]
    assert last.startswith("to score  ")
    assert (
        json.loads(run("describe-sae", *arguments, "json=true").out)["command"] == last.removeprefix("to score").strip()
    )
    return shlex.split(last)[3:]


def test_describe_says_where_an_artifact_came_from_and_how_it_is_scored(infoscope: Run, artifact: Path) -> None:
    result = infoscope("describe-sae", str(artifact))
    assert (result.code, result.err) == (0, "")
    for words in ("patchsae (PatchSAE, Hugo Fry", "vit.pt, sha256 abab", "block -2, resid_post, all tokens", "Beware."):
        assert words in result.out
    config = compose([one.replace("root=...", "root=/photos") for one in find_command(infoscope, "my artifact")])
    assert (config.model.name, config.model.layer, config.stage.name) == ("clip_b16", -2, "score")
    assert isinstance(config.sae, ImportedConfig)
    assert config.sae.path == "my artifact"
    assert not GlobalHydra.instance().is_initialized()
    assert sorted(path.name for path in artifact.parent.iterdir()) == ["my artifact"]


def test_json_has_typed_values(infoscope: Run, artifact: Path) -> None:
    facts = json.loads(infoscope("describe-sae", str(artifact), "--json").out)
    expected = {
        "format": "patchsae",
        "file": "vit.pt",
        "sha256": "ab" * 32,
        "address": None,
        "kind": "topk",
        "k": 2,
        "threshold": None,
        "d_in": 4,
        "d_sae": 8,
        "token_norm": "none",
        "backbone": "openai/clip-vit-base-patch16",
        "known_as": "ViT-B-16 openai",
        "layer": -2,
        "tokens": "all",
        "warnings": ["Beware."],
        "has_maps": True,
    }
    assert {name: facts[name] for name in expected} == expected
    documented = saes.describe_sae.__doc__ or ""
    assert [name for name in facts if f"{name}:" not in documented and f"{name}," not in documented] == []


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("ViT-L/14", ["model=clip_l14"]),
        ("facebook/dinov2-base", ["model=dinov2_b14"]),
        ("facebook/dinov2-with-registers-base", ["model=dinov2_b14_reg"]),
        ("google/siglip-base-patch16-224", ["model=siglip_b16"]),
        ("open-clip:laion/CLIP-ViT-L-14-laion2B-s32B-b82K", ["model=clip_l14", "model.pretrained=laion2b_s32b_b82k"]),
        ("facebook/dino-vitb16", ["model=mae_b16", "model.arch=vit_base_patch16_224.dino", "model.pretrained=dino"]),
        ("ViT-H-14/dfn5b", ["model=clip_b16", "model.arch=ViT-H-14", "model.pretrained=dfn5b"]),
        ("gpt2", ["model=..."]),
    ],
)
def test_the_command_names_the_backbone(infoscope: Run, tmp_path: Path, backbone: str, expected: list[str]) -> None:
    save_sae(tmp_path / "a", make_sae(Origin(-1, site="post_norm", source=replace(SOURCE, backbone=backbone))))
    command = find_command(infoscope, "a")
    assert [
        one for one in (*expected, "model.layer=-1", "model.site=post_norm", "stage=score") if one not in command
    ] == []
    if "model=..." not in command:
        config = compose([one.replace("root=...", "root=/photos") for one in command])
        assert name_model(config.model) == find_backbone_name(backbone)
        assert config.model.site == "post_norm"


def test_the_command_of_an_sae_of_the_scenes(infoscope: Run, tmp_path: Path) -> None:
    fingerprint = compute_model_fingerprint(compose([]).model)
    save_sae(tmp_path / "a", make_sae(Origin(2, fingerprint, 96, TokenChoice.patch)))
    assert "scenes_clip, which infoscope ships, block 2" in infoscope("describe-sae", "a").out
    assert find_command(infoscope, "a") == [
        "sae=import",
        "sae.path=a",
        "model=scenes_clip",
        "model.layer=2",
        "stage=score",
    ]
    save_sae(tmp_path / "b", make_sae(Origin(2, {"kind": "open_clip", "weights": "tag:ViT-B-16:openai"}, 336)))
    assert "model.image_px=336" in find_command(infoscope, "b")


def test_weights_of_a_file_are_to_be_given_to_their_architecture(infoscope: Run, tmp_path: Path) -> None:
    fingerprint = {"kind": "timm", "arch": "vit_small_patch14_dinov2", "weights": "sha256:" + "ab" * 32}
    save_sae(tmp_path / "a", make_sae(Origin(2, fingerprint, tokens=TokenChoice.patch)))
    assert "vit_small_patch14_dinov2 with weights of a file, sha256:abab" in infoscope("describe-sae", "a").out
    assert find_command(infoscope, "a")[2:4] == ["model=dinov2_s14", "model.pretrained=..."]


@pytest.mark.parametrize(
    "options",
    [
        ["keys={W_enc: a.T, W_dec: b}"],
        ["sae.keys={W_enc:a.T,W_dec:b}"],
        ["sae.keys.W_enc=a.T", "keys.W_dec=b"],
    ],
    ids=" ".join,
)
def test_settings_are_read_as_hydra_reads_them_and_stand_in_the_command(
    infoscope: Run, tmp_path: Path, options: list[str]
) -> None:
    torch.save({"a": torch.randn(8, 4), "b": torch.randn(8, 4)}, tmp_path / "my sae=1.pt")
    options = [*options, "format=plain", "--kind", "topk", "sae.k=3"]
    config = compose(
        [
            one.replace("root=...", "root=/x")
            for one in find_command(infoscope, "my sae=1.pt", *options)
            if one not in ("model=...", "model.layer=...")
        ]
    )
    assert isinstance(config.sae, ImportedConfig)
    assert (config.sae.k, config.sae.kind, config.sae.format) == (3, "topk", "plain")
    assert config.sae.keys.given() == {"W_enc": "a.T", "W_dec": "b"}
    assert config.sae.path == "my sae=1.pt"
    exported = [
        "export-sae",
        "my sae=1.pt",
        "out",
        "--format",
        "saelens",
        "sae.format=plain",
        *options[:-4],
        *options[-3:],
    ]
    result = infoscope(*exported)
    assert (result.code, result.err) == (0, "")
    assert load_sae(tmp_path / "out").d_sae == 8


@pytest.mark.parametrize(
    ("origin", "words", "stage"),
    [
        (
            Origin(site=POOLED, source=SOURCE),
            "reads pooled embeddings",
            "import_sae",
        ),
        (Origin(tokens=TokenChoice.cls, source=SOURCE), "An SAE of CLS tokens has no activation maps", "import_sae"),
    ],
)
def test_what_has_no_maps_has_no_scores_but_what_can_be_done(
    infoscope: Run, tmp_path: Path, origin: Origin, words: str, stage: str
) -> None:
    save_sae(tmp_path / "a", make_sae(origin))
    said = infoscope("describe-sae", "a").out
    (maps,) = [line for line in said.splitlines() if line.startswith("maps ")]
    assert words in maps
    assert "from Python, sae.encode(" in maps
    facts = json.loads(infoscope("describe-sae", "a", "json=true").out)
    assert facts["has_maps"] is False
    assert facts["command"].endswith(f"stage={stage}")
    assert ("model.site=pooled" in facts["command"]) == (origin.site == POOLED)
    assert ("model.layer=" in facts["command"]) == (origin.site != POOLED)  # behind all blocks
    assert said.splitlines()[-1] == f"to measure  {facts['command']}"


def test_what_reads_another_site_is_said_to_be_refused(infoscope: Run, tmp_path: Path) -> None:
    save_sae(tmp_path / "a", make_sae(Origin(2, tokens=TokenChoice.all, site="mlp_out", source=SOURCE)))
    facts = json.loads(infoscope("describe-sae", "a", "json=true").out)
    assert (facts["has_maps"], facts["command"]) == (False, None)
    assert facts["maps"].startswith("it reads mlp_out, and infoscope resid_post, post_norm, pooled or projected:")


def test_export_says_what_it_exported_and_describe_the_chain(infoscope: Run, artifact: Path) -> None:
    for form in ("saelens", "plain"):
        result = infoscope("export-sae", str(artifact), form, "--format", form)
        assert (result.code, result.err) == (0, "")
        chain = "topk in the format of patchsae, vit.pt, sha256 abababababab"
        assert result.out.splitlines()[0] == f"exported {chain}"
        assert f"exported    by infoscope, from {chain}\n" in infoscope("describe-sae", form).out


def test_push_gathers_and_uploads_when_told_to(
    infoscope: Run, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_hub(tmp_path / "hub", monkeypatch) as hub:
        result = infoscope("push-sae", "my artifact", "owner/name", "private=true")
        assert (result.code, result.err, hub.requests) == (0, "", [])
        again = "infoscope push-sae 'my artifact' owner/name private=true confirm=true"
        assert result.out.splitlines()[-1].strip() == again
        assert (tmp_path / "push-sae/owner/name/README.md").is_file()
        result = infoscope(*shlex.split(again)[1:])
        assert (result.code, result.err) == (0, "")
        assert f"uploaded: {hub.url}/owner/name/commit/" in result.out
        assert hub.private["owner/name"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(infoscope: Run, name: str) -> None:
    for flag in ("--help", "-h"):
        result = infoscope(name, flag)
        assert (result.code, result.err) == (0, "")
        usage = result.out.splitlines()[0]
        assert usage.startswith(f"infoscope {name} PATH")
        assert [word for word in ("True", "False", "None") if word in usage] == []
    assert name in infoscope("--help").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["describe-sae"], "got no PATH."),
        (["describe-sae", "a", "b"], "got b too: quote"),
        (["describe-sae", "nowhere"], "there is no nowhere"),
        (["describe-sae", "a", "kk=3"], "takes no kk= (did you mean k=?)"),
        (["describe-sae", "a", "--formt", "plain"], "takes no formt= (did you mean format=?)"),
        (["describe-sae", "a", "statistics=estimate"], "takes no statistics="),
        (["describe-sae", "a", "k=many"], "Expected k to be a whole number, got 'many'"),
        (["describe-sae", "a", "json=maybe"], "Expected json=true or json=false, got json=maybe"),
        (["describe-sae", "a", "--format"], "Expected a value after --format"),
        (["export-sae", "a"], "got no OUT."),
        (["export-sae", "a", "b", "c"], "expected infoscope export-sae PATH OUT [format=saelens]"),
        (["export-sae", "my artifact", "b", "format=pickle"], "one of saelens, plain, got 'pickle'"),
        (["export-sae", "my artifact", "b", "fromat=plain"], "(did you mean format=?)"),
        (["push-sae", "my artifact"], "push-sae PATH REPO [report=...] [private=false] [confirm=false] [out=...]"),
        (["push-sae", "my artifact", "name"], "Expected a repository on the hub as owner/name, got 'name'"),
        (["push-sae", "my artifact", "owner/name", "confrim=true"], "takes no confrim= (did you mean confirm=?)"),
        (["push-sae", "my artifact", "owner/name", "k=3"], "takes no k="),
        (["push-sae", "my artifact", "owner/name", "report=nowhere"], "Expected report= to be the folder of a report"),
        (["push-sae", "nowhere", "owner/name"], "Expected an artifact of train_sae or import_sae"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_one_can_mend_is_one_sentence(infoscope: Run, artifact: Path, arguments: list[str], words: str) -> None:
    result = infoscope(*arguments)
    assert (result.code, result.out) == (2, "")
    assert words.lower() in result.sentence().lower()


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interruption_is_one_line(infoscope: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(saes, name.replace("-", "_"), interrupt)
    result = infoscope(name)
    assert result.code == 130
    assert result.sentence() == "interrupted; the same command begins anew."


def test_a_folder_that_cannot_be_written_is_one_sentence(infoscope: Run, artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert infoscope("export-sae", "my artifact", "file/below").code == 2
    assert infoscope("push-sae", "my artifact", "owner/name", "out=file/below").code == 2


@pytest.mark.long
def test_a_closed_pipe_is_no_fault(tmp_path: Path) -> None:
    export_sae(make_sae(), tmp_path / "a")
    command = f"{shlex.quote(sys.executable)} -m infoscope.app describe-sae a | head -1"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "format      saelens (SAELens)\n"
