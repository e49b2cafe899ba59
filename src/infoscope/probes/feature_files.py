"""Features on the disk: what the passes over both splits find is written into the folders of variants and of means."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from infoscope.probes.config import ProbeConfig
from infoscope.probes.extraction import Wanted, pass_over
from infoscope.probes.features import MEANS, SHARES_FILE
from infoscope.probes.inputs import ProbeInputs
from infoscope.runtime import processes
from infoscope.runtime.parts import Part
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.ablations import Ablation, Progress, no_progress
from infoscope.vision.tokens.shards import RowWriter

_MEANS_FILES = {"mean_x": "float32", "indices": "int32", "values": "float32"}


@dataclass(frozen=True)
class WantedFeatures:
    """The features that are missing of one SAE.

    inputs: the SAE, and what it is probed on.
    variants: by key; those without a folder are left out.
    folders: of variants, by key, and of the means of images, under `MEANS`: they are to be filled.
    progress_folder: where an interrupted run goes on from; None: nowhere.
    """

    inputs: ProbeInputs
    variants: Mapping[str, Ablation]
    folders: Mapping[str, Path]
    progress_folder: Path | None = None


@torch.no_grad()
def write_features(
    wanted: Sequence[WantedFeatures],
    config: ProbeConfig,
    rows: Mapping[str, Int[np.ndarray, " n"]],
    check_disk: Callable[[int], None],
    progress: Progress = no_progress,
) -> None:
    """Fill folders with features, of any number of SAEs that are probed on the same tokens.

    A variant's folder gets `<split>-<readout>.npy` [n, d] (`probe.feature_dtype`) for each readout of CLS, and the
    shares that it removes from the test tokens; the means are `ImageMeans`. A split is read once for all of them, and
    not at all if nothing is to be had from it. Several processes share the images; the main one writes the files,
    which are the same whichever SAEs they are made with.

    Args:
        wanted: of each SAE; no folder twice (the original tokens are the same for all).
        rows: of each split, the images, ascending.
        check_disk: refuses a number of bytes that the disk has no room for.

    Raises:
        InputError: a vector that is not finite, or too large for float16; no room on the disk.
        OSError: the disk is full.
    """
    n_images, copies = sum(map(len, rows.values())), 1  # what is joined
    if any(one.progress_folder is not None for one in wanted):
        copies = 2  # and its parts
    n_vectors = sum(len(one.folders.keys() - {MEANS}) * one.inputs.sae.d_in for one in wanted)
    vectors_bytes = n_images * n_vectors * len(config.cls_readouts) * np.dtype(config.feature_dtype).itemsize
    check_disk(copies * vectors_bytes)

    def check_means(parts: Sequence[Part]) -> None:  # how sparse they are is known when there are some
        with_means = [part for part in parts if "mean_x" in part]
        if with_means:
            n_bytes = sum(sum(part[name].nbytes for name in _MEANS_FILES) // len(part["mean_x"]) for part in with_means)
            check_disk(copies * (vectors_bytes + n_bytes * n_images))

    for split in ("train", "test"):
        asked = [(one.folders, _ask(one, config, split)) for one in wanted]
        asked = [(folders, one) for folders, one in asked if one.means or one.vectors or one.shares]
        if not asked:
            continue
        parts = pass_over([one for _, one in asked], split, rows[split], check_means, progress)
        if not processes.is_main():
            continue
        with ExitStack() as stack:
            files = [stack.enter_context(closing(_FeatureFiles(one, folders, split))) for folders, one in asked]
            for of_all in parts:
                for file, part in zip(files, of_all, strict=True):
                    file.write(part)


def _ask(wanted: WantedFeatures, config: ProbeConfig, split: str) -> Wanted:
    """Return what a pass over a split is made for."""
    missing = {key: wanted.variants[key] for key in wanted.folders if key != MEANS}
    return Wanted(
        wanted.inputs,
        config,
        missing,
        vectors=bool(missing and config.cls_readouts),
        shares=split == "test" and bool(missing),
        means=MEANS in wanted.folders,
        folder=wanted.progress_folder,
    )


class _FeatureFiles:
    """Writes all files of one SAE's features of a split, part by part."""

    def __init__(self, wanted: Wanted, folders: Mapping[str, Path], split: str) -> None:
        self.wanted, self.folders = wanted, folders
        self.means = _MeansWriter(folders[MEANS], split, wanted.inputs.sae) if wanted.means else None
        self.shares = wanted.start_shares() if wanted.shares else None
        readouts = wanted.config.cls_readouts if wanted.vectors else []
        shape, dtype = (wanted.inputs.sae.d_in,), wanted.config.feature_dtype
        self.vectors = {
            f"{key}/{readout.name}": RowWriter(folders[key] / f"{split}-{readout.name}.npy", shape, dtype)
            for key in wanted.variants
            for readout in readouts
        }

    def write(self, part: Part) -> None:
        """Append what is known of some images."""
        if self.means:
            self.means.write(part)
        for name, file in self.vectors.items():
            file.write(part[name])
        if self.shares:
            self.shares.add(part)

    def close(self) -> None:
        """Close the files; write the shares of all images."""
        if self.means:
            self.means.close()
        for file in self.vectors.values():
            file.close()
        if self.shares:
            for key, values in zip(self.wanted.variants, self.shares.compute(), strict=True):
                (self.folders[key] / SHARES_FILE).write_text(json.dumps(values), encoding="utf-8")


class _MeansWriter:
    """Writes the files of `ImageMeans` part by part."""

    def __init__(self, folder: Path, split: str, sae: SparseAutoencoder) -> None:
        self.path = folder / f"{split}-indptr.npy"
        self.counts = [np.zeros(1, np.int64)]
        shapes = {"mean_x": (sae.d_in,), "indices": (), "values": ()}
        self.files = {
            name: RowWriter(folder / f"{split}-{name}.npy", shapes[name], dtype) for name, dtype in _MEANS_FILES.items()
        }

    def write(self, part: Part) -> None:
        """Append the means of some images."""
        for name, file in self.files.items():
            file.write(part[name])
        self.counts.append(part["counts"].numpy())

    def close(self) -> None:
        """Write where each image's entries lie, and close the files."""
        for file in self.files.values():
            file.close()
        np.save(self.path, np.concatenate(self.counts).cumsum())
