"""Exported SAEs give the same z and the same reconstruction by the formula of their file, and are read again."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.sae import export as export_module
from infoscope.sae.activations import TopK
from infoscope.sae.config import KINDS, TokenNorm
from infoscope.sae.export import FILES, export_sae
from infoscope.sae.loading import load_sae
from infoscope.sae.metrics import compute_sae_metrics
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.config import ScopeConfig
from infoscope.vision.planted import PlantedRegisters
from tests.support import imported_samples
from tests.support.exported_samples import EXPORTED, make_activation, make_sae
from tests.support.imported_samples import D_IN, make_tokens
from tests.support.scope_samples import make_noise, measure


def compute(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return z and x_hat of raw tokens [n, D_IN], by what lies in the folder and nothing else."""
    is_plain = (folder / "plain.json").exists()
    info_name, weights_name = FILES["plain" if is_plain else "saelens"]
    info, x = json.loads((folder / info_name).read_text()), x.double()
    tensors = {name: tensor.double() for name, tensor in load_file(folder / weights_name).items()}
    norm = info["formula"]["x_n"] if is_plain else info["normalize_activations"]
    m, s, eps = torch.zeros(len(x), 1), torch.ones(len(x), 1), 0.0
    if norm.startswith(("layer", "(x - m)")):
        m, s, eps = x.mean(1, keepdim=True), x.std(1, keepdim=True), 1e-5
    elif norm.startswith(("constant", "x sqrt")):
        s = x.norm(dim=1, keepdim=True) / D_IN**0.5
    products = (x - m) / (s + eps) @ tensors["W_enc"]
    kind = info["kind"] if is_plain else info["architecture"]
    if kind == "gated" and not is_plain:
        opens = products + tensors["b_gate"] > 0
        z = opens * torch.relu(products * tensors["r_mag"].exp() + tensors["b_mag"])
    else:
        a = products + tensors["b_enc"]
        z = torch.relu(a)
        if kind == "gated":
            z = torch.relu(a * tensors["mag_scale"] + tensors["mag_bias"]) * (a + tensors["gate_bias"] > 0)
        elif "threshold" in tensors:
            z = z * (a > tensors["threshold"])
        elif info.get("k"):
            z = z * (a >= a.topk(info["k"]).values[:, -1:])
    return z, (z @ tensors["W_dec"] + tensors["b_dec"]) * s + m


@pytest.mark.parametrize("form", ["saelens", "plain"])
@pytest.mark.parametrize("token_norm", imported_samples.NORMS)
@pytest.mark.parametrize("kind", EXPORTED)
def test_the_file_alone_gives_the_same(tmp_path: Path, kind: str, token_norm: TokenNorm, form: Any) -> None:
    sae, x = make_sae(kind, token_norm), make_tokens(200, dtype=torch.float32)
    files = export_sae(sae, tmp_path / "new" / "folder", form)
    assert tuple(file.name for file in files) == FILES[form]
    assert sorted(files[0].parent.iterdir()) == files
    z, x_hat = compute(files[0].parent, x)
    ours = sae(x)
    assert 0.03 < (z > 0).double().mean() < 0.7
    torch.testing.assert_close(ours.latent_acts.double(), z, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(ours.x_hat.double(), x_hat, rtol=1e-4, atol=2e-5)
    info = json.loads(files[0].read_text())
    facts = info if form == "plain" else info["metadata"]["infoscope"]
    assert facts["kind"] == kind
    assert facts["origin"]["tokens"] == "patch"
    assert facts["origin"]["layer"] == 3
    if form == "saelens":
        assert info["metadata"]["model_name"] == "ViT-B-16 openai"
        assert info["metadata"]["hook_name"] == "blocks.3.hook_resid_post"


@pytest.mark.parametrize("form", ["saelens", "plain"])
@pytest.mark.parametrize("kind", EXPORTED)
def test_infoscope_reads_its_own_exports(tmp_path: Path, kind: str, form: Any) -> None:
    sae, x = make_sae(kind), make_tokens(2000, dtype=torch.float32)
    export_sae(sae, tmp_path, form)
    again = load_sae(tmp_path)
    for ours, theirs in zip(sae(x), again(x), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    again.data_mean = sae.mean
    fvu, fvu_again = (compute_sae_metrics(one, [x])["fvu"] for one in (sae, again))
    assert fvu_again == pytest.approx(fvu, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_an_export_are_the_scores(tmp_path: Path, kind: str) -> None:
    backbone = PlantedRegisters(grid=6, patch_px=4, d_in=32)
    activation = make_activation(kind, 40)
    sae = SparseAutoencoder(32, 40, activation, torch.linspace(-0.5, 0.5, 32), 1.7, seed=0).requires_grad_(False)
    sae.b_dec.copy_(torch.linspace(0.2, -0.2, 32))
    export_sae(sae, tmp_path)
    config = ScopeConfig(k_cds=2, k_max=3)
    of_both = [measure(backbone, one, make_noise(9), config) for one in (sae, load_sae(tmp_path))]
    (ranking, scores), (ranking_again, scores_again) = of_both
    np.testing.assert_array_equal(ranking_again.top_images, ranking.top_images)
    np.testing.assert_allclose(scores_again.cds(2).values, scores.cds(2).values, atol=1e-5)
    assert np.isfinite(scores.cds(2).values).sum() > 10


@pytest.mark.parametrize("form", ["saelens", "plain"])
@pytest.mark.parametrize(
    ("name", "words"),
    [("signed", "a signed topk"), ("groupmax", "groupmax"), ("tanh_relu", "tanh_relu"), ("capped", "capped")],
)
def test_kinds_that_others_do_not_know_are_refused(tmp_path: Path, name: str, words: str, form: Any) -> None:
    sae = imported_samples.make_sae(name, TokenNorm.none, torch.float32)
    with pytest.raises(InputError, match=f"{words}, which has no place in format={form}:"):
        export_sae(sae, tmp_path / "out", form)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("token_norm", [TokenNorm.layer_norm, TokenNorm.constant_norm])
@pytest.mark.parametrize("name", ["mean", "scale"])
def test_a_token_norm_after_a_mean_or_scale_is_refused(tmp_path: Path, token_norm: TokenNorm, name: str) -> None:
    sae = make_sae("relu", token_norm)
    getattr(sae, name).fill_(1.5)
    with pytest.raises(InputError, match=f"{token_norm.name}.*only those of mean 0 and scale 1"):
        export_sae(sae, tmp_path / "out")


def test_what_lies_in_the_folder_is_not_written_over(tmp_path: Path) -> None:
    sae = make_sae("topk")
    export_sae(sae, tmp_path)
    with pytest.raises(InputError, match=r"cfg\.json, which is of another format: give another folder"):
        export_sae(sae, tmp_path, "plain")
    for content in ('{"architecture": "topk"}', "[]", "\xff not JSON", None):
        (tmp_path / "cfg.json").unlink()
        if content is not None:
            (tmp_path / "cfg.json").write_text(content, encoding="latin-1")
        before = {file: file.read_bytes() for file in tmp_path.iterdir()}
        with pytest.raises(InputError, match=r"which infoscope did not export: give another folder"):
            export_sae(sae, tmp_path)
        assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
        if content is None:
            break
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="Expected a folder to export to"):
        export_sae(sae, file)
    with pytest.raises(InputError, match="one of saelens, plain, got 'pickle'"):
        export_sae(sae, tmp_path / "out", "pickle")  # pyright: ignore[reportArgumentType]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = make_sae("topk")
    export_sae(sae, tmp_path / "old")
    before = {file: file.read_bytes() for file in (tmp_path / "old").iterdir()}

    def fill_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(export_module, "write_tensors", fill_disk)
    for name in ("old", "new"):
        with pytest.raises(OSError, match="No space left"):
            export_sae(make_sae("relu"), tmp_path / name)
    assert {file: file.read_bytes() for file in (tmp_path / "old").iterdir()} == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("format", FILES)
def test_the_export_of_another_sae_stays(tmp_path: Path, format: Any) -> None:
    sae = make_sae("topk")
    export_sae(sae, tmp_path, format)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    export_sae(sae, tmp_path, format)  # the same once more
    other = make_sae("topk")
    other.activation = TopK(sae.activation.k + 1)
    for one in (other, make_sae("relu")):
        with pytest.raises(InputError, match="holds the export of another SAE: give another folder"):
            export_sae(one, tmp_path, format)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_cut_export_is_written_anew(tmp_path: Path) -> None:
    _, weights = export_sae(make_sae("relu"), tmp_path)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    export_sae(make_sae("relu"), tmp_path)
    assert weights.read_bytes() == whole


def test_an_export_of_exports_names_the_first_alone(tmp_path: Path) -> None:
    sae = make_sae("relu")
    for number in range(3):
        export_sae(sae, tmp_path / str(number))
        sae = load_sae(tmp_path / str(number))
        assert sae.origin.source is not None
        assert sae.origin.source.exported_from == "relu, trained by infoscope"


SAELENS = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE

for folder in map(Path, sys.argv[1:]):
    sae, x = SAE.load_from_disk(str(folder)), load_file(folder / "x.tokens")["x"]
    with torch.no_grad():
        z = sae.encode(x)
        save_file({"z": z.contiguous(), "x_hat": sae.decode(z).contiguous()}, folder / "theirs.tokens")
"""


@pytest.fixture(scope="module")
def python_with_saelens(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with SAELens and everything that this one has: itself, or one of an environment made for it."""
    if find_spec("sae_lens") is not None:
        return sys.executable
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "ours.pth").write_text(get_path("purelib"))
    constraints = Path(__file__).parents[2] / "constraints.txt"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", constraints, "sae-lens>=6.18"], check=True)
    return python


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_saelens_loads_them_and_computes_the_same(tmp_path: Path, python_with_saelens: str) -> None:
    saes = {f"{kind}-{norm.name}": make_sae(kind, norm) for kind in EXPORTED for norm in imported_samples.NORMS}
    x = make_tokens(200, dtype=torch.float32)
    for name, sae in saes.items():
        export_sae(sae, tmp_path / name)
        save_file({"x": x}, tmp_path / name / "x.tokens")
    subprocess.run([python_with_saelens, "-c", SAELENS, *(tmp_path / name for name in saes)], check=True)
    for name, sae in saes.items():
        theirs, ours = load_file(tmp_path / name / "theirs.tokens"), sae(x)
        torch.testing.assert_close(theirs["z"], ours.latent_acts, rtol=1e-5, atol=1e-5, msg=lambda m: f"{name}: {m}")  # noqa: B023
        torch.testing.assert_close(theirs["x_hat"], ours.x_hat, rtol=1e-5, atol=1e-5, msg=lambda m: f"{name}: {m}")  # noqa: B023
