"""explore.beside: views of other explorers in this one, such as of another layer, SAE, threshold or model."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infoscope.analyses.neighbours import Matchable, find_matches
from infoscope.explorer.finding import find_explorer, read_explorer
from infoscope.explorer.format import name_thumbnail, put, read
from infoscope.pipeline.context import Context
from infoscope.runtime.errors import InputError
from infoscope.runtime.experiments import list_differing, read_settings
from infoscope.runtime.manifests import flatten_determining, read_manifest
from infoscope.stages.explore.matches import Matches, list_matches, read_matchable, say_matches, write_matches

_HASH = re.compile(r"[0-9a-f]{16}")
_READ = {"levels": "levels_seed{seed}", "sae": "sae_seed{seed}", "ranking": "ranking_seed{seed}", "tokens": "tokens"}
"""What latents are matched by, and the roles of these artifacts in the key of an explorer."""


@dataclass(frozen=True)
class Beside:
    """Another explorer.

    Args:
        folder: of the artifact.
        hash: of the artifact.
        made_from: hashes of what it was made from, by role.
        manifest: of its data.
        differing: settings by which it differs from this one, with its own values, those that tell most first.
    """

    folder: Path
    hash: str
    made_from: Mapping[str, str]
    manifest: Mapping[str, Any]
    differing: Mapping[str, Any]

    @property
    def views(self) -> list[dict[str, Any]]:
        """Its own views, without those that it has taken in itself."""
        return [view for view in self.manifest["views"] if "from" not in view]

    @property
    def words(self) -> str:
        """What differs, in words."""
        return ", ".join(f"{key} {value}" for key, value in self._told[:3]) or f"hash {self.hash[:8]}"

    def name_view(self, view: str) -> str:
        """Return the id of a view in this explorer: what differs, and its own."""
        told = [value if isinstance(value, str) else f"{key}{value}" for key, value in self._told[:2]]
        slugs = [re.sub(r"[^A-Za-z0-9.]+", "_", one)[-30:].strip("._") for one in told]
        return "-".join([*filter(None, slugs), self.hash[:8], view])

    @property
    def _told(self) -> list[tuple[str, Any]]:
        """The settings that differ by their last names; of a path its last part: where it lies is nobody's business."""
        return [
            (key.rpartition(".")[2], value.rpartition("/")[2] if isinstance(value, str) else value)
            for key, value in self.differing.items()
        ]


def read_besides(ctx: Context) -> list[Beside]:
    """Return the explorers of explore.beside.

    Raises:
        InputError: a folder is none, holds several, is not whole, of another format, or is named twice.
    """
    settings, found = flatten_determining(ctx.tree), dict[str, Beside]()
    for path in map(Path, ctx.config.explore.beside):
        folder = find_explorer(path.expanduser())
        if folder is None:
            raise InputError(
                f"Expected in explore.beside= the folders of explorers, got {path}, which holds none: stage=explore"
                " makes one, with the settings of that experiment."
            )
        about = read_manifest(folder)
        made_from = about["key"].get("made_from") if about is not None and about["stage"] == "explore" else None
        if about is None or not isinstance(made_from, dict) or not _HASH.fullmatch(about["hash"]):
            raise InputError(
                f"The explorer in {folder} lacks its manifest.json, or has that of something else: give the folder that"
                " stage=explore has made, or a whole copy of it."
            )
        if about["hash"] in found:
            raise InputError(f"explore.beside= names the explorer {folder.name} twice: name it once.")
        differing = list_differing(settings, read_settings(folder))
        found[about["hash"]] = Beside(folder, about["hash"], made_from, read_explorer(folder), differing)
    return list(found.values())


def refuse_itself(besides: Sequence[Beside], made_from: Mapping[str, str]) -> None:
    """Refuse an explorer that shows the same.

    Raises:
        InputError: there is one.
    """
    for beside in besides:
        if dict(beside.made_from) == dict(made_from):
            raise InputError(
                f"explore.beside= names {beside.folder}, which is the explorer of these same settings: give one of"
                " another layer, SAE, model or threshold."
            )


def read_matchables(ctx: Context, besides: Sequence[Beside]) -> dict[str, Matchable | str]:
    """Return by the new ids of their views what other SAEs' latents are matched by, or why they cannot be matched."""
    return {
        beside.name_view(view["id"]): _read_matchable(ctx, beside, view) for beside in besides for view in beside.views
    }


def _read_matchable(ctx: Context, beside: Beside, view: Mapping[str, Any]) -> Matchable | str:
    root, folders = beside.folder.resolve().parents[1], dict[str, Path]()
    for name, role in _READ.items():
        made = beside.made_from.get(role.format(seed=view.get("seed")), "")
        places = list(root.glob(f"*/*-{made}")) if _HASH.fullmatch(made) else []
        if not places:
            return (
                f"What the explorer beside was made from ({role.format(seed=view.get('seed'))}) is not in"
                " its output folder any more."
            )
        folders[name] = places[0]
    return read_matchable(ctx, **folders)


def take_views(
    folder: Path, beside: Beside, sets: dict[str, Any], matchable: Mapping[str, Matchable | str]
) -> list[dict[str, Any]]:
    """Take the views of another explorer, with their data and pictures, and return what the manifest says of them.

    Image sets of the same images are shared: of each image the one thumbnail stays.

    Args:
        folder: of this explorer, being written.
        sets: of its manifest so far; what is taken is added.
        matchable: of all views of this explorer.

    Raises:
        InputError: its data are not whole.
    """
    try:
        return _take_views(folder, beside, sets, matchable)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"The data of the explorer in {beside.folder} are damaged ({type(error).__name__}: {error}): make it again"
            " with stage=explore."
        ) from error


def _take_views(
    folder: Path, beside: Beside, sets: dict[str, Any], matchable: Mapping[str, Matchable | str]
) -> list[dict[str, Any]]:
    renamed = {view["id"]: beside.name_view(view["id"]) for view in beside.views}
    of_sets = {name: _take_set(folder, beside, name, about, sets) for name, about in beside.manifest["sets"].items()}
    taken: list[dict[str, Any]] = []
    for view in beside.views:
        new = renamed[view["id"]]
        others = [other for other in matchable if other not in renamed.values()]
        matches = {other: find_matches(matchable[new], matchable[other]) for other in others}
        _take_data(folder, beside, view, renamed, of_sets, matches)
        own = {name: view.get(name) or {} for name in ("matched_by", "unmatched")}
        kept = {name: {renamed[old]: of for old, of in about.items() if old in renamed} for name, about in own.items()}
        for name, of in say_matches(matches).items():
            kept[name] |= of
        about = {
            "id": new,
            "title": f"{view['title']} ({beside.words})",
            "set": of_sets[view["set"]],
            "images": {of_sets[name]: images for name, images in view["images"].items()},
            "from": beside.hash,
        }
        taken.append({**view, **kept, **about})
    return taken


def _take_data(
    folder: Path,
    beside: Beside,
    view: Mapping[str, Any],
    renamed: Mapping[str, str],
    sets: Mapping[str, str],
    matches: Matches,
) -> None:
    """Take columns, details of latents and browsed images, under the view's new id; write its matches."""
    old, new = view["id"], renamed[view["id"]]
    for column in view["columns"]:
        _copy(folder, beside, f"{old}/columns/{column['name']}", f"{new}/columns/{column['name']}")
    for other in view.get("matched_by") or {}:
        if other in renamed:
            _copy(folder, beside, f"{old}/columns/match_{other}", f"{new}/columns/match_{renamed[other]}")
    write_matches(folder, new, matches)
    for name, images in view["images"].items():
        for image in images:
            _copy(folder, beside, f"{old}/images/{name}-{int(image)}", f"{new}/images/{sets[name]}-{int(image)}")
    for block in range(-(-view["d_sae"] // view["block_size"])):
        details = read(beside.folder, f"{old}/latents/{block}")
        for latent, detail in details.items():
            here = [
                {**one, "view": renamed[one["view"]]} for one in detail.get("elsewhere", ()) if one["view"] in renamed
            ]
            detail["elsewhere"] = here + list_matches(int(latent), matches)
        put(folder, f"{new}/latents/{block}", details)


def _take_set(folder: Path, beside: Beside, name: str, about: Mapping[str, Any], sets: dict[str, Any]) -> str:
    """Take an image set, with the thumbnails and names that are not here yet; return its id in this explorer."""
    print_ = about.get("fingerprint")
    same = [here for here, of in sets.items() if print_ is not None and of.get("fingerprint") == print_]
    new = same[0] if same else f"{about['name']}-{(print_ or beside.hash)[:8]}"
    known = _read_names(folder, new, sets[new]) if same else {}
    here = {image for image, of in known.items() if not of.get("is_missing")}
    names = {image: of for image, of in _read_names(beside.folder, name, about).items() if image not in here}
    for image, of in names.items():
        if not of.get("is_missing"):
            _copy(folder, beside, name_thumbnail(name, int(image)), name_thumbnail(new, int(image)))
    names = known | names
    size, blocks = about["block_size"], dict[int, dict[str, Any]]()
    for image, of in names.items():
        blocks.setdefault(int(image) // size, {})[image] = of
    for block, of in blocks.items():
        put(folder, f"sets/{new}/names/{block}", of)
    n_missing = sum(bool(of.get("is_missing")) for of in names.values())
    sets[new] = {**about, **sets.get(new, {}), "n_shown": len(names), "n_missing": n_missing}
    return new


def _read_names(folder: Path, name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the images of a set are called, of those that are shown."""
    blocks = sorted((folder / "data/sets" / name / "names").glob("*.js"))
    found = [read(folder, f"sets/{name}/names/{int(path.stem)}") for path in blocks if path.stem.isdigit()]
    return {image: of for block in found for image, of in block.items()}


def _copy(folder: Path, beside: Beside, old: str, new: str) -> None:
    """Take a file of data: the same file where its key stays and the disk allows it, else a copy under the new key.

    Either is read before: what is no data, but a script of somebody else, would be run by the page.
    """
    source, target, value = (
        beside.folder / "data" / f"{old}.js",
        folder / "data" / f"{new}.js",
        read(beside.folder, old),
    )
    if old == new and not source.is_symlink():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
            return
        except OSError:  # another disk, or one that knows no links
            pass
    put(folder, new, value)
