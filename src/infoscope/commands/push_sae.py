"""push-sae: an SAE with a model card on the Hugging Face hub. Nothing leaves this machine before confirm=true."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from infoscope.commands.model_card import make_card
from infoscope.runtime.errors import InputError, list_some
from infoscope.runtime.hub import is_offline, is_reachable
from infoscope.runtime.manifests import compute_checksum, read_manifest
from infoscope.sae.checkpoint import INFO_NAME, WEIGHTS_NAME, holds_ours, load_sae_info
from infoscope.sae.export import FILES, is_exported
from infoscope.sae.hub import check_repo, explain
from infoscope.sae.import_config import ImportedConfig
from infoscope.sae.loading import import_alone
from infoscope.sae.model import SparseAutoencoder

CARD, METRICS = "README.md", "metrics.json"
_KINDS = ((INFO_NAME, WEIGHTS_NAME), *FILES.values())
"""The files of an SAE that is read without any setting: infoscope's own, or as export-sae writes them."""
_SAE_STAGES = {"train_sae", "import_sae"}


class Pushed(NamedTuple):
    """What was done, or would be.

    folder: what is uploaded; files: their names. url: of the commit on the hub; None: nothing was uploaded.
    notes: sentences.
    """

    folder: Path
    files: list[str]
    url: str | None
    notes: list[str]


def push_sae(folder: Path, repo: str, *, report: Path | None, private: bool, confirm: bool, out: Path) -> Pushed:
    """Gather an SAE and its model card in a folder, and with `confirm` upload it.

    A card that lies there already is left as it is, if it is this SAE's: between the two calls it can be edited.

    Args:
        folder: an artifact of train_sae or import_sae, or what export-sae has written. Of an artifact nothing
            else is taken: its configuration names places on this machine.
        repo: owner/name on the hub; it is made where it does not exist.
        report: the folder of a report on this SAE, whose numbers stand in the card.
        private: only its owner may see it; a repository that is public already is refused.
        out: the folder to gather in, which is made.

    Raises:
        InputError: there is no such SAE or report, the report is of another SAE, files of others lie in `out`, or the
            hub refuses.
    """
    check_repo(repo)
    names = _find_files(folder)
    sae, weights = import_alone(ImportedConfig(path=str(folder))), compute_checksum(folder / names[1])
    notes = [] if report is None else list(_check_report(folder, sae, weights, report))
    metrics = _read_metrics(folder / METRICS) if METRICS in names else {}
    mark = f"<!-- infoscope: {names[1]} of sha256 {weights} -->"
    card = make_card(sae, repo, mark, metrics, report)
    notes += _gather(folder, names, card, mark, out)
    files = [CARD, *names]
    url = _upload(out, files, repo, private) if confirm else None
    return Pushed(out, files, url, notes)


def _find_files(folder: Path) -> list[str]:
    """Return what describes the SAE of a folder, its weights, and its metrics where they are."""
    for info, weights in _KINDS:
        is_ours = holds_ours(folder) if info == INFO_NAME else is_exported(folder / info)
        if is_ours and (folder / info).is_file() and (folder / weights).is_file():
            return [info, weights, *([METRICS] if (folder / METRICS).is_file() else [])]
    kinds = ", or ".join(" and ".join(names) for names in _KINDS)
    raise InputError(
        f"Expected an artifact of train_sae or import_sae, or a folder of export-sae ({kinds}) that infoscope wrote,"
        f" got {folder}: run export-sae on an SAE of others first."
    )


def _read_metrics(file: Path) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in json.loads(file.read_text(encoding="utf-8")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged: expected JSON of numbers by name; make it again.") from error


def _check_report(folder: Path, sae: SparseAutoencoder, weights: str, report: Path) -> Iterator[str]:
    """Refuse a report on other SAEs, and say where that cannot be known.

    An artifact is known by its hash. What was exported is known by its weights in a report on its import, and has the
    sizes of that which it was exported from.

    Args:
        weights: checksum of the SAE's file.

    Raises:
        InputError: it is one.
    """
    manifest = read_manifest(folder)
    saes = [(place, found) for place, found in _list_upstream(report) if found["stage"] in _SAE_STAGES]
    if manifest is None:
        own, known = weights, [found.get("source", {}).get("sha256") for _, found in saes]
        is_other = all(_has_other_sizes(sae, place) for place, _ in saes)
    else:
        own, known = manifest["hash"], [found["hash"] for _, found in saes]
        is_other = own not in known
    names = [found["name"] for _, found in saes]
    if own in known:
        if len(saes) > 1:
            yield f"The report is on {len(saes)} SAEs, of which this one is {names[known.index(own)]}."
    elif saes and is_other:
        raise InputError(
            f"The report {report} is on other SAEs ({list_some(names)}), not on {folder}: give the report of the run"
            " that this SAE belongs to, or none."
        )
    else:
        yield f"Whether the report is on this SAE was not checked, for {folder if saes else report} does not say."


def _has_other_sizes(sae: SparseAutoencoder, artifact: Path) -> bool:
    """Whether the SAE of an artifact, as far as it is there, is another one than this by its sizes alone."""
    try:
        info = load_sae_info(artifact)
    except InputError:
        return False
    return (info["d_in"], info["d_sae"]) != (sae.d_in, sae.d_sae)


def _list_upstream(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield an artifact and all that it was made from, as far as they are there, with their manifests."""
    waiting, seen = [folder], set[str]()
    while waiting:
        place = waiting.pop()
        manifest = read_manifest(place)
        if manifest is None or manifest["hash"] in seen:
            continue
        seen.add(manifest["hash"])
        yield place, manifest
        for upstream in manifest.get("upstream", {}).values():
            waiting += folder.parent.parent.glob(f"*/*-{upstream}")


def _gather(folder: Path, names: list[str], card: str, mark: str, out: Path) -> list[str]:
    """Copy the files into `out`, and write the card unless this SAE's lies there; return what is to be known of that.

    Raises:
        InputError: other files lie there.
    """
    out.mkdir(parents=True, exist_ok=True)
    others = sorted(path.name for path in out.iterdir() if path.name not in (CARD, METRICS, *sum(_KINDS, ())))
    if others or out.resolve() == folder.resolve():
        held = list_some(others) or "the SAE itself"
        raise InputError(f"Expected out= to be an empty folder, or one of an earlier push-sae; {out} holds {held}.")
    ours = out / CARD
    if ours.is_file() and mark not in ours.read_text(encoding="utf-8"):
        raise InputError(f"{ours} is the card of another SAE: delete it, or give another out=.")
    for name in names:
        shutil.copyfile(folder / name, out / name)
    if ours.is_file() and ours.read_text(encoding="utf-8") != card:
        return [f"{ours} stays as it is: delete it to have it written anew."]
    ours.write_text(card, encoding="utf-8")
    return []


def _upload(out: Path, files: list[str], repo: str, private: bool) -> str:
    if is_offline() or not is_reachable():
        why = "HF_HUB_OFFLINE is set" if is_offline() else "there is no network"
        raise InputError(f"Cannot upload to {repo}, for {why}: what would be uploaded lies in {out}.")
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise InputError(f"{repo} exists and is public: give another name, or make it private on the hub first.")
        message = f"An SAE by infoscope: {', '.join(files)}"
        patterns = [escape(name) for name in files]
        made = api.upload_folder(repo_id=repo, folder_path=out, allow_patterns=patterns, commit_message=message)
    except InputError:
        raise
    except Exception as error:  # of the network or the hub, of every kind
        raise InputError(f"Cannot upload to {repo}: {explain(error, repo)}; {out} holds what was to be.") from error
    return made.commit_url
