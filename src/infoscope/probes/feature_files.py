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
from infoscope.sae.config import TokenNorm
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
        self.wanted, self.folders, self.split = wanted, folders, split
        self.shares = wanted.start_shares() if wanted.shares else None
        self.counts = [np.zeros(1, np.int64)]
        readouts, d_in = wanted.config.cls_readouts if wanted.vectors else [], wanted.inputs.sae.d_in
        self.files = {
            f"{key}/{readout.name}": RowWriter(
                folders[key] / f"{split}-{readout.name}.npy", (d_in,), wanted.config.feature_dtype
            )
            for key in wanted.variants
            for readout in readouts
        }
        has_stats = wanted.inputs.sae.token_norm is not TokenNorm.none
        means_files = _MEANS_FILES | ({"stats": "float32"} if has_stats else {})
        for name, dtype in means_files.items() if wanted.means else ():
            shape = {"mean_x": (d_in,), "stats": (2,)}.get(name, ())
            self.files[name] = RowWriter(folders[MEANS] / f"{split}-{name}.npy", shape, dtype)

    def write(self, part: Part) -> None:
        """Append what is known of some images."""
        for name, file in self.files.items():
            file.write(part[name])
        if self.wanted.means:
            self.counts.append(part["counts"].numpy())
        if self.shares:
            self.shares.add(part)

    def close(self) -> None:
        """Close the files; write where each image's entries lie, and the shares of all images."""
        for file in self.files.values():
            file.close()
        if self.wanted.means:
            np.save(self.folders[MEANS] / f"{self.split}-indptr.npy", np.concatenate(self.counts).cumsum())
        if self.shares:
            for key, values in zip(self.wanted.variants, self.shares.compute(), strict=True):
                (self.folders[key] / SHARES_FILE).write_text(json.dumps(values), encoding="utf-8")
