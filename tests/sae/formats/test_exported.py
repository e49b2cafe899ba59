"""What infoscope exports comes back knowing what it was; what was edited is refused by one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from infoscope.runtime.errors import InputError
from infoscope.sae.activations import Threshold
from infoscope.sae.checkpoint import save_sae
from infoscope.sae.config import TokenChoice, TokenNorm
from infoscope.sae.export import FILES, ExportFormat, export_sae
from infoscope.sae.imported_activations import Gated
from infoscope.sae.loading import load_sae
from infoscope.sae.origin import Origin, find_mismatches
from infoscope.sae.source import Source, read_prefix_sizes
from infoscope.vision.names import find_backbone_name
from tests.support.exported_samples import EXPORTED, make_sae
from tests.support.imported_samples import make_sae as make_imported

FORMS: tuple[ExportFormat, ...] = ("saelens", "plain")
OURS = Origin(3, {"kind": "open_clip", "weights": "tag:ViT-B-16:openai"}, 224, TokenChoice.all, "resid_post")
FOREIGN = Origin(
    layer=-2,
    tokens=TokenChoice.patch,
    site="mlp_out",
    source=Source(
        format="patchsae",
        kind="batchtopk",
        file="vit.pt",
        sha256="abc" * 20,
        backbone="openai/clip-vit-base-patch16",
        address="hf:owner/saes",
        revision="f00d",
        facts={"dataset": "imagenet", "folded": "b_dec", "prefix_sizes": [4, 8]},
        warnings=("Beware of it.",),
    ),
)


def read_threshold(activation: Any) -> torch.Tensor | None:
    threshold = getattr(activation, "threshold", None)
    return None if threshold is None else threshold.detach().clamp_min(0).expand(24)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", EXPORTED)
def test_kind_k_threshold_and_origin_come_back(tmp_path: Path, kind: str, form: ExportFormat) -> None:
    sae = make_sae(kind)
    sae.origin = OURS
    export_sae(sae, tmp_path, form)
    again = load_sae(tmp_path)
    source = again.origin.source
    assert source is not None
    assert replace(again.origin, source=None) == OURS
    assert (again.activation.kind, source.kind) == (kind, kind)
    assert getattr(again.activation, "k", None) == getattr(sae.activation, "k", None)
    before, after = read_threshold(sae.activation), read_threshold(again.activation)
    assert (before is None) == (after is None)
    if before is not None and after is not None:
        torch.testing.assert_close(after, before)
    if isinstance(sae.activation, Gated) and form == "plain":
        for name, values in sae.activation.named_buffers():
            assert torch.equal(again.activation.state_dict()[name], values)
    assert source.exported_from == f"{kind}, trained by infoscope"
    assert source.format == {"saelens": "saelens", "plain": "exported"}[form]


@pytest.mark.parametrize("form", FORMS)
def test_the_levels_of_a_matryoshka_sae_come_back(tmp_path: Path, form: ExportFormat) -> None:
    save_sae(tmp_path / "ours", make_sae("matryoshka_prefix"), training={"prefixes": [0.25, 0.5, 1.0]})
    sae = load_sae(tmp_path / "ours")
    assert sae.prefix_sizes == (6, 12, 24)
    export_sae(sae, tmp_path / "out", form)
    again = load_sae(tmp_path / "out")
    assert again.prefix_sizes == (6, 12, 24)
    save_sae(tmp_path / "kept", again)  # as an import is kept
    export_sae(load_sae(tmp_path / "kept"), tmp_path / "last", form)
    assert load_sae(tmp_path / "last").prefix_sizes == (6, 12, 24)


@pytest.mark.parametrize(
    ("said", "sizes"),
    [
        ([6, 24], (6, 24)),
        *(([said, ()]) for said in ([6, 12], [6, 6, 24], ["6", 24], [True, 24], [], {}, "24", 24, None)),
    ],
)
def test_prefixes_that_cannot_be_are_none(said: Any, sizes: tuple[int, ...]) -> None:
    assert read_prefix_sizes(said, 24) == sizes


@pytest.mark.parametrize("said", [None, "half", [0.25, "1"], [2.0, 1.0], [float("nan"), 1.0], [1e300, 0.5]])
def test_shares_of_prefixes_that_cannot_be_are_none(tmp_path: Path, said: Any) -> None:
    save_sae(tmp_path, make_sae("matryoshka_prefix"), training={"prefixes": said})
    assert load_sae(tmp_path).prefix_sizes == ()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("token_norm", list(TokenNorm))
def test_what_was_imported_comes_back_with_all_that_its_file_said(
    tmp_path: Path, token_norm: TokenNorm, form: ExportFormat
) -> None:
    sae = make_sae("threshold", token_norm)
    sae.activation, sae.origin = Threshold(torch.tensor(0.25)), FOREIGN
    export_sae(sae, tmp_path / "a", form)
    again = load_sae(tmp_path / "a")
    known, source = FOREIGN.source, again.origin.source
    assert known is not None
    assert source is not None
    assert again.token_norm is token_norm
    assert replace(again.origin, source=None) == replace(FOREIGN, source=None)
    assert (source.kind, source.backbone, source.warnings) == (known.kind, known.backbone, known.warnings)
    assert known.facts.items() <= (source.facts | {"folded": "b_dec"}).items()
    assert again.activation.threshold.ndim == 0
    words = "batchtopk in the format of patchsae, vit.pt of hf:owner/saes at f00d, sha256 abcabcabcabc"
    assert source.exported_from == words
    export_sae(again, tmp_path / "b")  # and once more
    last = load_sae(tmp_path / "b").origin.source
    assert last is not None
    assert last.exported_from == words
    save_sae(tmp_path / "c", again)
    assert load_sae(tmp_path / "c").origin == again.origin


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("origin", [OURS, FOREIGN], ids=["ours", "imported"])
def test_another_layer_or_backbone_is_refused_as_with_the_original(
    tmp_path: Path, origin: Origin, form: ExportFormat
) -> None:
    sae = make_sae("relu")
    sae.origin = origin
    export_sae(sae, tmp_path, form)
    again = load_sae(tmp_path).origin
    given = Origin(5, {"kind": "open_clip", "weights": "tag:ViT-L-14:openai"}, 224, site="post_norm")
    name = find_backbone_name("ViT-L-14 openai")
    found = find_mismatches(again, given, 12, name)
    assert found == find_mismatches(origin, given, 12, name)
    assert len(found) == 3


def edit(form: ExportFormat, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / FILES[form][0]
        info = json.loads(file.read_text())
        change(info if form == "plain" else info["metadata"])
        file.write_text(json.dumps(info))

    return apply


def edit_tensors(form: ExportFormat, change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / FILES[form][1]
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return apply


NOT_OURS = "of its origin is not as infoscope wrote it: export the SAE again"


@pytest.mark.parametrize(
    ("kind", "form", "change", "words"),
    [
        ("topk", "plain", edit("plain", lambda i: i.update(k=7)), "formula in plain.json"),
        ("topk", "plain", edit("plain", lambda i: i.update(k=10**9)), "formula in plain.json"),
        ("topk", "plain", edit("plain", lambda i: i.update(k="many")), NOT_OURS),
        ("topk", "plain", edit("plain", lambda i: i.update(k=None)), "formula in plain.json"),
        ("topk", "plain", edit("plain", lambda i: i.update(kind="relu")), "says that it is of kind relu with k 5"),
        ("topk", "plain", edit("plain", lambda i: i.update(kind="capped")), "says that it is of kind capped"),
        ("topk", "plain", edit("plain", lambda i: i.update(kind="gelu")), NOT_OURS),
        ("topk", "plain", edit("plain", lambda i: i.update(kind=["topk"])), NOT_OURS),
        ("topk", "plain", edit("plain", lambda i: i.update(d_in=9)), "d_in|9"),
        ("topk", "plain", edit("plain", lambda i: i.update(token_norm="batch")), "token_norm of plain.json"),
        ("topk", "plain", edit("plain", lambda i: i.update(token_norm="layer_norm")), "formula in plain.json"),
        ("topk", "plain", edit("plain", lambda i: i["formula"].update(x_n="x - 3")), "formula in plain.json"),
        ("topk", "plain", edit("plain", lambda i: i.pop("formula")), "formula in plain.json"),
        ("topk", "plain", edit("plain", lambda i: i.pop("origin")), NOT_OURS),
        ("topk", "plain", edit("plain", lambda i: i["origin"].update(layer="3")), NOT_OURS),
        ("topk", "plain", edit("plain", lambda i: i["origin"].update(layer=True)), NOT_OURS),
        ("topk", "plain", edit("plain", lambda i: i["origin"].update(layer=10**30)), NOT_OURS),
        ("topk", "plain", edit("plain", lambda i: i["origin"].update(tokens="half")), NOT_OURS),
        ("topk", "plain", edit("plain", lambda i: i["origin"].update(source=3)), NOT_OURS),
        ("topk", "plain", edit("plain", lambda i: i["origin"].update(source={"format": "x"})), NOT_OURS),
        ("topk", "plain", edit("plain", lambda i: i["origin"].update(extra=1)), NOT_OURS),
        ("topk", "plain", edit("plain", lambda i: i.update(comment="mine")), None),
        ("topk", "plain", edit("plain", lambda i: i.update(written_by="me")), "written by infoscope, found 'me'"),
        ("topk", "plain", edit_tensors("plain", lambda t: t.pop("b_enc")), "Expected a tensor b_enc"),
        ("topk", "plain", edit_tensors("plain", lambda t: t.update(threshold=torch.ones(24))), "formula in plain.json"),
        ("topk", "plain", edit_tensors("plain", lambda t: t.update(extra=torch.ones(24))), "something else: extra"),
        ("relu", "plain", edit_tensors("plain", lambda t: t.update(gate_bias=torch.ones(24))), "tensor mag_bias"),
        ("jumprelu", "plain", edit_tensors("plain", lambda t: t.update(threshold=torch.ones(3))), "thresholds"),
        (
            "jumprelu",
            "plain",
            edit_tensors("plain", lambda t: t.update(threshold=torch.tensor(1.0))),
            "formula in plain.json",
        ),
        ("batchtopk", "plain", edit_tensors("plain", lambda t: t["threshold"][0].fill_(9)), "of kind batchtopk with k"),
        ("gated", "plain", edit_tensors("plain", lambda t: t.pop("mag_bias")), "Expected a tensor mag_bias"),
        ("topk", "saelens", edit("saelens", lambda i: i.pop("infoscope")), None),
        ("topk", "saelens", edit("saelens", lambda i: i.update(infoscope=[1])), NOT_OURS),
        ("topk", "saelens", edit("saelens", lambda i: i["infoscope"].update(k=4)), "of kind topk with k 4"),
        ("topk", "saelens", edit("saelens", lambda i: i["infoscope"].update(kind="jumprelu")), "of kind jumprelu"),
        ("topk", "saelens", edit("saelens", lambda i: i["infoscope"]["origin"].update(layer=4)), "says hook_name"),
        ("topk", "saelens", edit("saelens", lambda i: i.update(model_name="ViT-L-14 openai")), "says model_name"),
        ("topk", "saelens", edit("saelens", lambda i: i.update(hook_name=7)), "says hook_name 7"),
    ],
)
def test_what_was_edited_is_refused_or_harmless(
    tmp_path: Path, kind: str, form: ExportFormat, change: Callable[[Path], None], words: str | None
) -> None:
    sae = make_sae(kind)
    export_sae(sae, tmp_path, form)
    change(tmp_path)
    if words is None:
        assert load_sae(tmp_path).d_sae == sae.d_sae
        return
    with pytest.raises(InputError, match=words) as caught:
        load_sae(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_lacks_the_statistics_of_its_tokens_is_not_exported(tmp_path: Path) -> None:
    sae = make_imported("topk", TokenNorm.none, torch.float32)
    sae.origin = Origin(source=Source("saev", "topk", facts={"needs_statistics": True}))
    with pytest.raises(InputError, match="its file holds neither"):
        export_sae(sae, tmp_path / "out")
    assert not list(tmp_path.iterdir())
