"""Every key of a configuration without building anything: a store that claims to have everything, and who asks it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infoscope.config.tree import Config, StageName
from infoscope.data.scenes.scene_set import save_scenes
from infoscope.pipeline.context import Context
from infoscope.pipeline.run import find_stage, set_goals
from infoscope.pipeline.stage import list_needed
from infoscope.probes.config import Task
from infoscope.probes.heads import LinearMaps
from infoscope.probes.results import AblationResult, save_result
from infoscope.runtime.manifests import Artifact, Spec
from infoscope.runtime.progress import Display
from infoscope.runtime.store import Store
from infoscope.sae.activations import make_activation
from infoscope.sae.checkpoint import save_sae
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.confounds import ConfoundResult, LatentProperties
from infoscope.scope.energy import TokenSample
from infoscope.scope.ranking import Ranking
from infoscope.scope.scores import Scores
from infoscope.stages.backbone import load_backbone
from infoscope.stages.probe.features import features_of
from infoscope.stages.probe.run import list_probe_groups
from infoscope.stages.probe.stage import Probe
from infoscope.stages.tokens import Tokens
from infoscope.vision.backbone import Backbone
from infoscope.vision.open_clip.weights import SHIPPED_FOLDER

D_IN, D_SAE, K_MAX, GRID = 4, 12, 16, 3
NOT_AT_HAND = ("segment", "attribution", "quality", "name", "steering", "extent")
"""What nobody has asked for, so that the table of latents has no columns of it."""


def record_keys(config: Config, ends: Sequence[StageName], store: FixedStore, backbone: Backbone) -> None:
    """Ask `store` for every artifact that stages which end with `ends` need; the store writes down their specs.

    This is all that knows how the chain is made inside: what moves there is followed here, and the golden file stays.

    Args:
        backbone: stands for the configuration's own, of which predictions ask no more than whether it has text.
    """
    for end in ends:
        ctx = Context(replace(config, stage=end), Display.silent())
        ctx.store, store.end = store, find_stage(ctx).kind
        ctx.known[(load_backbone.__module__, "_load", repr(((config.model,), {})))] = backbone
        stage = find_stage(ctx)
        for node in list_needed(set_goals(ctx)):
            node.make()
        if end.name == "probe":
            _record_features(ctx, store)
        stage.find_last(ctx)


def _record_features(ctx: Context, store: FixedStore) -> None:
    """The probes and what those of classification read, of every data set and seed."""
    for seed in ctx.config.seeds:
        variants = list(Probe().make(ctx, seed))
        for group in list_probe_groups(ctx):
            for split in ("train", "test"):
                Tokens.at(ctx, split, group.data).get()
            if Task.classification in group.probe.tasks:
                store.specs += [handle.spec for handle in features_of(ctx, seed, group, variants).values()]


class FixedStore(Store):
    """A store that has what it is asked for, but `NOT_AT_HAND` where another stage asks: small fixed files, a set for
    each kind of artifact."""

    end = ""
    """The kind of what the stage that asks makes."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.specs: list[Spec] = []
        """What it was asked for."""
        write_fixed_files(root)

    def find(self, spec: Spec) -> Artifact | None:
        if spec.stage in NOT_AT_HAND and spec.stage != self.end:
            return None
        self.specs.append(spec)
        folder = SHIPPED_FOLDER if spec.stage == "train_clip" else self.root / spec.stage
        return Artifact(folder, spec.hash, {}, built=False)

    def get_together(self, specs: Mapping[str, Spec], *_: Any, **__: Any) -> dict[str, Artifact]:
        found = {name: self.find(spec) for name, spec in specs.items()}
        return {name: artifact for name, artifact in found.items() if artifact is not None}

    @contextmanager
    def claim(self, specs: Iterable[Spec]) -> Iterator[list[str]]:
        yield []


def write_fixed_files(root: Path) -> None:
    """Write what keys are computed from: scores and activations divide the latents, heads and decoder choose some.

    No two numbers that are compared lie close together, so that every machine divides and chooses alike.
    """
    latents = np.arange(D_SAE)
    (root / "scenes").mkdir(parents=True)
    save_scenes(root / "scenes", 0, "train", 2, 32, 1)
    (root / "tokens").mkdir()
    (root / "tokens" / "skipped.json").write_text(json.dumps({}))
    sizes = {"d_in": D_IN, "grid": GRID, "n_prefix": 1, "patch_px": 8}
    (root / "tokens" / "tokens.json").write_text(json.dumps(sizes))
    emd = np.repeat(latents[:, None] / 20, K_MAX, axis=1)
    emd[:, K_MAX // 2 :] += 0.01
    emd[5] = np.nan  # is not scored
    mass, maps = np.ones_like(emd), np.ones((D_SAE, K_MAX, 2, GRID, GRID), np.float32)
    Scores(emd, mass, mass, emd / 2, maps, GRID, 1).save(root / "score")
    mean_act = np.where(latents == 7, 0, 1 + (latents * 5) % D_SAE).astype(np.float64)  # latent 7 never fires
    (root / "rank").mkdir()
    top = np.tile(np.arange(K_MAX), (D_SAE, 1))
    Ranking(top, np.ones(top.shape), mean_act / 100, mean_act, K_MAX, 100 * K_MAX).save(root / "rank")
    support = (1 + (latents * 7) % D_SAE) ** 2 / 200
    properties = LatentProperties(mean_act / 100, mean_act / 20, np.ones((D_SAE, K_MAX)), support, support)
    ConfoundResult(properties, 100, {}, None).save(root / "confounds")
    (root / "sample").mkdir()
    entries = latents.astype(np.int32)  # each fires on a token with the next one
    both = np.sort(np.stack([entries, (entries + 1) % D_SAE], axis=1), axis=1).ravel()
    TokenSample(D_SAE, entries.repeat(2), both, np.ones(2 * D_SAE, np.float32)).save(root / "sample")
    sae = SparseAutoencoder(D_IN, D_SAE, make_activation("topk", {"k": 2}))
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(D_IN).repeat(D_SAE // D_IN, 1) * torch.arange(1, D_SAE + 1)[:, None])
    save_sae(root / "train_sae", sae, layer=-2)
    weight = torch.diag(torch.arange(1.0, D_IN + 1))[None]
    heads = {"classification/patch_mean": weight, "segmentation": weight.flip(1), "depth": weight.roll(1, 1)}
    facts = {"mass_share": 0.0, "energy_share": 0.0}
    (root / "probe").mkdir()
    named = {name: LinearMaps(values, torch.zeros(1, D_IN)) for name, values in heads.items()}
    save_result(root / "probe", AblationResult(facts, {}, {}, {}, named))
