"""Addresses of the hub: taken from its cache, downloaded where they have to be, and refused by one sentence."""

from __future__ import annotations

import io
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from infoscope.runtime.errors import InputError
from infoscope.sae.formats.configs import Configs
from infoscope.sae.hub import Located, list_config_folders, resolve
from infoscope.sae.loading import load_sae
from tests.support.foreign.arrays import draw_weights
from tests.support.hub_server import HubServer, serve_hub

REPO = "owner/clip-saes"
FILES = {
    "README.md": b"# SAEs",
    "plots/a.png": b"png",
    "layer_8/cfg.json": b"{}",
    "layer_8/sae.safetensors": b"8",
    "layer_8/notes.txt": b"x",
    "layer_9/config.yaml": b"k: 1",
    "layer_9/sae.pt": b"9",
    "layer_9/deeper/other.pt": b"o",
    **{f"many/ae_{i}.pt": b"%d" % i for i in range(6)},
    "many/config.json": b"{}",
}


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[HubServer]:
    with serve_hub(tmp_path / "hub", monkeypatch) as server:
        server.commit(REPO, FILES)
        yield server


@pytest.fixture
def no_network(monkeypatch):
    """Return what takes the network away."""

    def refuse(*_args, **_options):
        raise OSError("no network in this test")

    def take_away() -> None:
        monkeypatch.setattr(socket, "create_connection", refuse)
        monkeypatch.setattr(socket.socket, "connect", refuse)

    return take_away


def list_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def refuse(address: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        resolve(address)
    assert "\n" not in str(caught.value)


def test_a_path_is_a_path():
    assert resolve("a/b.pt") == Located(Path("a/b.pt"), None, None)
    assert resolve("~/a") == Located(Path.home() / "a", None, None)


@pytest.mark.parametrize(
    ("page", "advice"),
    [
        ("https://huggingface.co/owner/name", "give hf:owner/name@main"),
        ("https://huggingface.co/owner/name/tree/v1/a/b", "give hf:owner/name/a/b@v1"),
        ("HTTPS://hf.co/owner/name/resolve/main/a%20b/ae.pt?download=true#x", "give hf:owner/name/a b/ae.pt@main"),
        ("https://huggingface.co/datasets/owner/name/tree/main", "fetch the file and give its path"),
        ("https://hub.example/owner/name/blob/main/ae.pt", "fetch the file and give its path"),
    ],
)
def test_a_web_page_is_told_its_address(page, advice):
    refuse(page, f"got the web page {re.escape(page)}: {advice}\\.$")


def test_a_folder_is_downloaded_once_and_nothing_but_it(hub, no_network):
    sha = hub.refs[REPO]["main"]
    found = resolve(f"hf:{REPO}/layer_8")
    assert found == Located(found.path, f"hf:{REPO}/layer_8", sha)
    assert list_files(found.path) == {"cfg.json", "sae.safetensors"}
    assert list_files(found.path.parent) == {"layer_8/cfg.json", "layer_8/sae.safetensors"}
    assert (found.path / "sae.safetensors").read_bytes() == b"8"
    asked = len(hub.requests)
    hub.commit(REPO, {"layer_8/sae.safetensors": b"newer"})
    no_network()
    assert resolve(f"hf:{REPO}/layer_8/") == found
    assert resolve(f"hf:{REPO}/layer_8@main") == found
    assert resolve(f"hf:{REPO}/layer_8@{sha}") == found
    assert resolve(f"hf:{REPO}/layer_8/sae.safetensors").path == found.path / "sae.safetensors"
    assert len(hub.requests) == asked


def test_configurations_come_first(hub):
    """So that weights in the cache have theirs beside them, even if the download was interrupted."""
    resolve(f"hf:{REPO}/layer_9")
    files = [re.sub(r".*/resolve/\w+/", "", request) for request in hub.requests if request.startswith("GET /owner")]
    assert files == ["layer_9/config.yaml", "layer_9/sae.pt"]


def test_a_file_comes_with_the_configurations_beside_it(hub):
    found = resolve(f"hf:{REPO}/many/ae_3.pt")
    assert found.path.read_bytes() == b"3"
    assert found.path.name == "ae_3.pt"
    assert list_files(found.path.parent) == {"ae_3.pt", "config.json"}
    assert found.address == f"hf:{REPO}/many/ae_3.pt"


@pytest.mark.parametrize("above", ["", "run/trainer_0/"])
@pytest.mark.parametrize("asked", ["checkpoints", "checkpoints/ae_5.pt"])
def test_a_checkpoint_of_a_training_comes_with_the_configurations_above_it(hub, no_network, above, asked):
    repo, folder = "owner/runs", f"{above}checkpoints"
    beside = {
        f"{above}config.json": b"{}",
        f"{above}ae.pt": b"a",
        "run/config.json": b"{}",
        f"{above}x/cfg.json": b"{}",
    }
    hub.commit(repo, {f"{folder}/ae_5.pt": b"5", f"{folder}/config.yaml": b"k: 1", **beside})
    found = resolve(f"hf:{repo}/{above}{asked}")
    place = found.path if found.path.is_dir() else found.path.parent
    assert list_files(place.parent) == {"checkpoints/ae_5.pt", "checkpoints/config.yaml", "config.json"}
    no_network()
    assert resolve(f"hf:{repo}/{above}{asked}") == found
    assert set(Configs(*list_config_folders(place))) == {"config.json", "config.yaml"}


def test_the_class_of_a_checkpoint_is_known_from_the_hub_as_from_the_disk(hub, no_network):
    w, repo, content = draw_weights(1), "owner/runs", io.BytesIO()
    names = {"encoder.weight": w.tensor("W_enc", True), "decoder.weight": w.tensor("W_dec", True)}
    torch.save(names | {"encoder.bias": w.tensor("b_enc"), "b_dec": w.tensor("b_dec")}, content)
    config = {"trainer": {"dict_class": "AutoEncoderTopK", "k": 3}}
    files = {"t/checkpoints/ae_5.pt": content.getvalue(), "t/config.json": json.dumps(config).encode()}
    hub.commit(repo, files)
    for _ in range(2):
        source = load_sae(f"hf:{repo}/t/checkpoints").origin.source
        assert source is not None
        assert (source.format, source.kind, source.facts["k"]) == ("dictionary_learning", "topk", 3)
        no_network()


def test_the_root_of_a_repository_may_hold_the_weights(hub):
    sha = hub.commit("owner/one", {"sae.pt": b"1", "config.json": b"{}", "logs/a.pt": b"2"})
    found = resolve("hf:owner/one")
    assert found.revision == sha
    assert list_files(found.path) == {"sae.pt", "config.json"}


def test_a_revision_is_a_branch_or_a_commit(hub, no_network):
    first = hub.refs[REPO]["main"]
    second = hub.commit(REPO, {"layer_8/sae.safetensors": b"two"}, "runs/2")
    hub.commit(REPO, {"layer_8/cfg.json": b"{}", "layer_8/sae.safetensors": b"three"})
    assert (resolve(f"hf:{REPO}/layer_8@{first}").path / "sae.safetensors").read_bytes() == b"8"
    found = resolve(f"hf:{REPO}/layer_8@runs/2")
    assert found.revision == second
    assert (found.path / "sae.safetensors").read_bytes() == b"two"
    no_network()
    assert resolve(f"hf:{REPO}/layer_8@runs/2") == found
    refuse(f"hf:{REPO}/layer_8", "is not in the cache, and there is no network")  # of main it knows nothing


class TestRefusals:
    def test_what_is_not_in_the_cache_needs_a_network(self, hub, no_network, monkeypatch):
        resolve(f"hf:{REPO}/layer_8")
        resolve(f"hf:{REPO}/layer_9@{hub.refs[REPO]['main']}")
        asked = len(hub.requests)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        held = rf"hub holds hf:{REPO}/layer_8, hf:{REPO}/layer_9; give one that is there, or fetch it where"
        refuse(f"hf:{REPO}/many", rf"^hf:{REPO}/many is not in the cache, and HF_HUB_OFFLINE is set: .*{held}")
        refuse("hf:owner/other/a@v1", r"^hf:owner/other/a@v1 is not .*hub holds nothing of owner/other; give one")
        assert len(hub.requests) == asked
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        no_network()
        refuse(f"hf:{REPO}/many", f"is not in the cache, and there is no network: .*{held}")

    def test_a_cached_folder_above_the_weights_is_not_guessed(self, hub, monkeypatch):
        resolve(f"hf:{REPO}/layer_8")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        refuse(f"hf:{REPO}", rf"^hf:{REPO} is not in the cache.* holds hf:{REPO}/layer_8; give one that is there")

    def test_folders_are_listed_where_none_is_named(self, hub):
        words = rf"hf:{REPO} holds no weights of an SAE: give the folder that they lie in, such as hf:{REPO}/layer_8"
        refuse(f"hf:{REPO}", rf"{words} \(layer_8, layer_9, layer_9/deeper, many\)")
        refuse(f"hf:{REPO}/gone", r"such as .*/layer_8 \(layer_8, layer_9, layer_9/deeper, many\)")
        refuse(f"hf:{REPO}/plots/a.png", "holds no weights of an SAE: give the folder")
        hub.commit("owner/numpy", {"sae/params.npz": b""})
        refuse("hf:owner/numpy/sae", r"has no file of weights .*; of numpy's arrays \(\.npz\) give the file itself")
        hub.commit("owner/deep", {f"runs/{i:02}/sae.pt": b"" for i in range(40)}, "dev")
        refuse("hf:owner/deep/runs@dev", r"such as hf:owner/deep/runs/00@dev \(runs/00, .*runs/29 and 10 more\)")
        assert not any("/resolve/" in request for request in hub.requests)

    def test_files_are_listed_where_they_are_many(self, hub):
        refuse(
            f"hf:{REPO}/many",
            rf"holds 6 files of weights: give one of them, such as hf:{REPO}/many/ae_0\.pt",
        )

    def test_a_repository_without_weights_is_named(self, hub):
        hub.commit("owner/text", {"README.md": b""})
        refuse("hf:owner/text", r"the repository owner/text has no file of weights \(\.safetensors, \.pt, ")

    def test_unknown_repositories_and_revisions_are_named(self, hub):
        refuse("hf:owner/gone/a", "Cannot download hf:owner/gone/a: the hub has no repository owner/gone, or")
        refuse(f"hf:{REPO}/layer_8@gone", f"Cannot download hf:{REPO}/layer_8@gone: {REPO} has no such branch, tag")
        hub.refuses = (403, {"X-Error-Code": "GatedRepo"})
        refuse(f"hf:{REPO}/layer_8", f"{REPO} wants you to accept its terms on the hub first, and to be logged in")
        hub.refuses = (400, {"X-Error-Message": "not today"})
        refuse(f"hf:{REPO}/layer_8", "Cannot download hf:.*not today")

    @pytest.mark.parametrize(
        "address",
        [
            *("hf:", "hf:owner", "hf:owner/", "hf:/owner/name", "hf://owner/name", "hf:owner//name", "hf:owner/name@"),
            *("hf:owner/name/../other", "hf:owner/name/a/..", "hf:owner/name/./a", "hf:../name", "hf:owner/.."),
            *("hf:owner/name@../main", "hf:owner/name@a/../b", "hf:owner/name@/etc", "hf:owner/name/a//b"),
            *("hf:ow ner/name", "hf:owner/na--me", "hf:owner/name/a\nb", "hf:owner/name@ma in", "hf:owner/name@@main"),
        ],
    )
    def test_malformed_addresses_are_refused(self, hub, address):
        refuse(address, "Expected an address of the hub such as hf:owner/name/folder@revision, got 'hf:")
        assert hub.requests == []

    def test_a_commit_that_is_none_is_not_a_place(self, hub, tmp_path):
        """The server's word is no path of ours."""
        refs = tmp_path / "hub/models--owner--clip-saes/refs"
        refs.mkdir(parents=True)
        (refs / "main").write_text("../../../..")
        assert resolve(f"hf:{REPO}/layer_8").revision == hub.refs[REPO]["main"]


def test_an_sae_of_the_hub_knows_where_it_comes_from(hub):
    state = {"W_enc": torch.eye(3, 6), "b_enc": torch.zeros(6), "W_dec": torch.eye(6, 3), "b_dec": torch.ones(3)}
    cfg = {"d_in": 3, "d_sae": 6, "architecture": "standard", "normalize_activations": "none", "dtype": "float32"}
    cfg["apply_b_dec_to_input"] = True
    files = {"l/cfg.json": json.dumps(cfg).encode(), "l/sae_weights.safetensors": save(state)}
    sha = hub.commit("owner/sae", files)
    sae = load_sae("hf:owner/sae/l")
    source = sae.origin.source
    assert source is not None
    assert (source.address, source.revision) == ("hf:owner/sae/l", sha)
    assert (source.format, source.file) == ("saelens", "sae_weights.safetensors")
    assert sae.encode(torch.tensor([[2.0, 1, 0]])).tolist() == [[1, 0, 0, 0, 0, 0]]
