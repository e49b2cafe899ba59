"""SAEs on the Hugging Face hub: `hf:owner/name/folder@revision` is a place in its cache, filled where it has to be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from infoscope.runtime.errors import InputError, list_some
from infoscope.runtime.hub import get_cache_folder, is_offline, is_reachable

PREFIX = "hf:"
WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
CONFIGS = (".json", ".yaml", ".yml")
AnyPath = TypeVar("AnyPath", bound=PurePath)
_ADDRESS = re.compile(r"hf:([^/@]+/[^/@]+)((?:/[^/@]+)*)/?(?:@(.+))?")
_WEB = re.compile(r"/([^/]+/[^/]+)(?:/(?:tree|blob|resolve)/([^/]+)((?:/[^/]+)*))?/?")
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_REVISION = re.compile(r"\w[\w./-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_WEIGHTS = 4
"""Of a folder that are downloaded without being named one by one: beside an SAE may lie other tensors."""
_N_NAMED = 30
NUMPY_HINT = "of numpy's arrays (.npz) give the file itself, with sae.format=plain and sae.keys"


def list_config_folders(folder: AnyPath) -> list[AnyPath]:
    """Return where the configurations of weights in a folder lie: there, and of a training's checkpoints/ above too.

    In order: what a later one says counts.
    """
    return [folder.parent, folder] if folder.name == "checkpoints" else [folder]


class Located(NamedTuple):
    """Where an SAE lies on this machine: a file or folder.

    address: of the hub, without a revision; None: it is no address, but a path.
    revision: the commit on the hub, 40 hexadecimal digits.
    """

    path: Path
    address: str | None
    revision: str | None


class _Place(NamedTuple):
    """A repository on the hub, what in it (empty: its root), and a branch, tag or commit."""

    repo: str
    inner: str
    revision: str

    @property
    def address(self) -> str:
        return f"{PREFIX}{self.repo}/{self.inner}".rstrip("/")

    @property
    def storage(self) -> Path:
        return get_cache_folder() / f"models--{self.repo.replace('/', '--')}"

    @property
    def full(self) -> str:
        """The address with its revision."""
        return self.address if self.revision == "main" else f"{self.address}@{self.revision}"

    def at(self, inner: str) -> str:
        """Return the address of something else in the repository."""
        return self._replace(inner="" if inner == "." else inner).full


def resolve(address: str) -> Located:
    """Return where a path or an address of the hub lies on this machine.

    What the hub's cache holds is taken from there, without a network; what it does not hold is downloaded: the weights
    and configurations of that folder, or that file with the configurations beside it, and nothing else; of a folder
    checkpoints/ those above it too.

    Args:
        address: a path, or hf:owner/name[/folder or file][@branch, tag or commit], which names the very folder that
            the weights lie in.

    Raises:
        InputError: the address is malformed, there is no such thing, it names several SAEs, or it is not in the cache
            and the hub cannot be reached.
    """
    if address.lower().startswith(("http://", "https://")):
        raise InputError(
            f"Expected a path or an address of the hub, got the web page {address}: {_translate(address)}."
        )
    if not address.startswith(PREFIX):
        return Located(Path(address).expanduser(), None, None)
    place = _parse(address)
    return _find_cached(place) or _fetch(place)


def _translate(url: str) -> str:
    """Return what to give in place of a web page."""
    page = urlsplit(url)
    match = _WEB.fullmatch(unquote(page.path)) if page.hostname in _HOSTS else None
    if match is None or match[1].startswith(("datasets/", "spaces/")):
        return "fetch the file and give its path"
    return f"give {PREFIX}{match[1]}{match[3] or ''}@{match[2] or 'main'}"


def _parse(address: str) -> _Place:
    from huggingface_hub.utils import validate_repo_id

    match = _ADDRESS.fullmatch(address)
    try:
        if match is None:
            raise ValueError
        repo, inner, revision = match[1], match[2].strip("/"), match[3] or "main"
        validate_repo_id(repo)
        parts = (*inner.split("/"), *revision.split("/"))
        if ".." in parts or "." in parts or not inner.isprintable() or not _REVISION.fullmatch(revision):
            raise ValueError
    except ValueError as error:
        raise InputError(
            f"Expected an address of the hub such as hf:owner/name/folder@revision, got {address!r}: owner and name"
            " of a repository, a folder or file in it, and perhaps @ and a branch, a tag or a commit."
        ) from error
    return _Place(repo, inner, revision)


def _find_cached(place: _Place) -> Located | None:
    """Return the place in the cache; None if it is not there, or a folder without weights."""
    commit = _read_commit(place)
    path = place.storage / "snapshots" / commit / place.inner if commit else None
    if commit is None or path is None:
        return None
    is_there = path.is_file() or any(file.suffix in WEIGHTS and file.is_file() for file in path.glob("*"))
    return Located(path, place.address, commit) if is_there else None


def _read_commit(place: _Place) -> str | None:
    """Return the commit that the cache knows a revision as."""
    if _COMMIT.fullmatch(place.revision):
        return place.revision
    ref = place.storage / "refs" / place.revision
    commit = ref.read_text().strip() if ref.is_file() else ""
    return commit if _COMMIT.fullmatch(commit) else None


def _fetch(place: _Place) -> Located:
    if is_offline() or not is_reachable():
        why = "HF_HUB_OFFLINE is set" if is_offline() else "there is no network"
        raise InputError(
            f"{place.full} is not in the cache, and {why}: {_describe_cache(place)}; give one that is"
            " there, or fetch it where there is a network and copy the cache."
        )
    from huggingface_hub import HfApi, hf_hub_download

    try:
        info = HfApi().model_info(place.repo, revision=place.revision)
        commit, names = str(info.sha), [sibling.rfilename for sibling in info.siblings or ()]
        assert _COMMIT.fullmatch(commit), commit
        for name in _choose(place, names):
            hf_hub_download(place.repo, name, revision=commit)
    except InputError:
        raise
    except Exception as error:  # of the network or the hub, of every kind
        raise InputError(f"Cannot download {place.full}: {explain(error, place.repo)}.") from error
    _keep_commit(place, commit)
    return Located(place.storage / "snapshots" / commit / place.inner, place.address, commit)


def _keep_commit(place: _Place, commit: str) -> None:
    """Note which commit a branch or tag is, as the hub's client does, once all of it is there."""
    if place.revision != commit:
        ref = place.storage / "refs" / place.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)


def _choose(place: _Place, names: Sequence[str]) -> list[str]:
    """Return the files to download: configurations first, so that weights in the cache have theirs beside them.

    Raises:
        InputError: there is no such file or folder, no weights are in it, or too many.
    """
    files = [PurePosixPath(name) for name in names]
    is_file = place.inner in names
    folder = PurePosixPath(place.inner).parent if is_file else PurePosixPath(place.inner)
    here = [file for file in files if file.parent == folder]
    weights = [file for file in here if (_is_named(place, file) if is_file else file.suffix in WEIGHTS)]
    if not weights:
        hint = f"; {NUMPY_HINT}" if any(file.suffix == ".npz" for file in here) else ""
        raise InputError(f"{place.full} holds no weights of an SAE: {_name_folders(place, files)}{hint}.")
    if len(weights) > _MAX_WEIGHTS:
        some = list_some(sorted(file.name for file in weights), _N_NAMED)
        raise InputError(
            f"{place.full} holds {len(weights)} files of weights: give one of them, such as"
            f" {place.at(str(min(weights)))} ({some})."
        )
    folders = list_config_folders(folder)
    return [str(file) for file in (*(f for f in files if f.parent in folders and f.suffix in CONFIGS), *weights)]


def _is_named(place: _Place, file: PurePosixPath) -> bool:
    """Whether a file is the one that is asked for; that may also be one of numpy's."""
    return str(file) == place.inner and file.suffix in (*WEIGHTS, ".npz")


def _name_folders(place: _Place, files: Iterable[PurePosixPath]) -> str:
    """Say which folders of a repository hold weights, those below the place first."""
    folders = {str(file.parent) for file in files if file.suffix in WEIGHTS}
    below = sorted(folder for folder in folders if PurePosixPath(place.inner) in PurePosixPath(folder).parents)
    named = below or sorted(folders)
    if not named:
        return f"the repository {place.repo} has no file of weights ({', '.join(WEIGHTS)})"
    some = list_some(["its root" if folder == "." else folder for folder in named], _N_NAMED)
    return f"give the folder that they lie in, such as {place.at(named[0])} ({some})"


def _describe_cache(place: _Place) -> str:
    """Say what the cache holds of a repository."""
    refs, held = place.storage / "refs", list[str]()
    named = {ref.read_text().strip(): str(ref.relative_to(refs)) for ref in sorted(refs.rglob("*")) if ref.is_file()}
    for commit in sorted((place.storage / "snapshots").glob("*")):
        folders = {str(file.parent.relative_to(commit)) for file in commit.rglob("*") if file.suffix in WEIGHTS}
        kept = place._replace(revision=named.get(commit.name, commit.name))
        held += [kept.at(folder) for folder in sorted(folders)]
    return f"{get_cache_folder()} holds {list_some(held, _N_NAMED) or f'nothing of {place.repo}'}"


def check_repo(repo: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        InputError: it is no owner/name.
    """
    from huggingface_hub.utils import validate_repo_id

    try:
        if repo.count("/") != 1 or not all(repo.split("/")):
            raise ValueError
        validate_repo_id(repo)
    except ValueError as error:
        raise InputError(f"Expected a repository on the hub as owner/name, got {repo!r}.") from error


def explain(error: Exception, repo: str) -> str:
    """Return in words what the hub refuses."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if isinstance(error, GatedRepoError):
        return f"{repo} wants you to accept its terms on the hub first, and to be logged in (hf auth login)"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no repository {repo}, or it is private and you are not logged in (hf auth login)"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no such branch, tag or commit"
    if status in (401, 403):
        return f"you are not logged in to the hub as one who may do that to {repo} (hf auth login)"
    return " ".join(str(error).split())[:300].rstrip(".:") or type(error).__name__
