"""What fires on a patch of a picture, and where else in it: the patch, its latents, their maps over the picture.

    python experiments/patch_attribution.py            # the demo's first test picture, the patch in its middle
    python experiments/patch_attribution.py patch=8,3 picture=FILE seeds=[1]

SAE, scores and groups are those of the configuration (here the demo's), first seed; the picture takes no part in them.
With each latent stand its CDS and group, and where `infoscope stage=segment` has been run, the label that its map
masks best on training images. The `n_latents=8` of largest contribution are shown: activation times norm of the decoder
row.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np

from infoscope.commands.experiments.sweep import run_command
from infoscope.config.tree import compose
from infoscope.pipeline.context import Context
from infoscope.pipeline.run import apply_trainer
from infoscope.report.figure_style import save_figure
from infoscope.runtime.errors import InputError
from infoscope.runtime.job import Job
from infoscope.runtime.output import say
from infoscope.runtime.progress import Display
from infoscope.scope.partition import name_group
from infoscope.stages.backbone import load_backbone
from infoscope.stages.images import open_split
from infoscope.stages.patch_latents import explain_patch
from infoscope.stages.sae import sae_of
from infoscope.stages.score.stage import scope_of
from infoscope.stages.segment.stage import Segment

OWN = {"picture": "", "patch": "", "n_latents": "8"}
"""The arguments that are no overrides."""


def describe_latents(ctx: Context, seed: int, latents: list[int]) -> dict[int, str]:
    """Return what is known of some latents, in two lines each."""
    scope, segmented = scope_of(ctx, seed), Segment.at(ctx, seed) if Segment().applies(ctx) else None
    best = segmented.load().best_labels if segmented is not None and segmented.find() is not None else None
    told = {}
    for latent in latents:
        cds = scope.cds[latent]
        group = next((name for name, members in scope.partition.groups.items() if members[latent]), None)
        told[latent] = f"CDS {cds:.3f}, {name_group(group)}" if group and math.isfinite(cds) else "no CDS"
        if best is not None and segmented is not None and best[0][latent] >= 0:
            label = segmented.load().label_names[best[0][latent]]
            told[latent] += f"\n{label}, IoU {best[1][latent]:.2f}"
    return told


def choose_patch(text: str, grid: int) -> tuple[int, int]:
    """Return row and column of `patch=ROW,COLUMN`; by default the middle.

    Raises:
        InputError: something else.
    """
    parts = text.split(",") if text else [str(grid // 2)] * 2
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"Expected patch=ROW,COLUMN, counted from 0 at the top left, got patch={text}.")
    return int(parts[0]), int(parts[1])


def run(arguments: list[str]) -> list[str]:
    """Score, explain the patch, draw; nothing is left to report."""
    given = dict(one.split("=", 1) for one in arguments if one.partition("=")[0] in OWN and "=" in one)
    own = {**OWN, **given}
    overrides = [one for one in arguments if one.partition("=")[0] not in OWN]
    if not own["n_latents"].isdecimal():
        raise InputError(f"Expected n_latents to be a whole number, got {own['n_latents']}.")
    config = compose([*overrides, "stage=score"])
    apply_trainer(config.trainer, Display())
    ctx = Context(config, Display(bars=config.trainer.progress), Job(overrides=tuple(overrides)))
    seed = config.seeds[0]
    with ctx.tracking:
        backbone, sae = load_backbone(ctx), sae_of(ctx, seed).load()
        row, column = choose_patch(own["patch"], backbone.grid)
        picture: Path | np.ndarray = Path(own["picture"]).expanduser()
        if not own["picture"]:
            picture = open_split(ctx, "test").load(0, backbone.image_px)
        found = explain_patch(backbone, sae, picture, row, column, int(own["n_latents"]), config.model.layer)
        told = describe_latents(ctx, seed, found.latents.tolist())
    out = Path(config.output_dir) / "experiments" / "patch_attribution"
    out.mkdir(parents=True, exist_ok=True)
    save_figure(lambda: found.figure(told), f"patch_{row}_{column}", out, ("png", "pdf"))
    say(f"{found}\n{out}")
    return []


def main(arguments: list[str]) -> int:
    """Run from the command line and return the exit code."""
    return run_command("patch_attribution", __doc__ or "", lambda: run(arguments), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
