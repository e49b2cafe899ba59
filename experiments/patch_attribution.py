"""What fires on a patch of a picture, and where else in it: the patch, its latents, their maps over the picture.

    python experiments/patch_attribution.py            # the demo's first test picture, the patch in its middle
    python experiments/patch_attribution.py patch=8,3 picture=FILE seeds=[1]

SAE, scores and groups are those of the configuration (here the demo's), first seed; the picture takes no part in them.
With each latent stand its CDS and group, and where `infoscope stage=segment` has been run, the label that its map
masks best on training images. The `n_latents=8` of largest contribution are shown: activation times norm of the decoder
row. The figure's name holds the picture, the patch, the seed, and a hash of SAE and picture.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

from infoscope.commands.experiments.sweep import add_defaults, check_stage, run_command
from infoscope.config.tree import compose
from infoscope.data.images import CHECK_PX
from infoscope.pipeline.context import Context
from infoscope.pipeline.run import apply_trainer, check
from infoscope.report.figure_style import save_figure
from infoscope.runtime.errors import InputError
from infoscope.runtime.job import Job
from infoscope.runtime.manifests import compute_hash
from infoscope.runtime.output import say
from infoscope.runtime.progress import Display
from infoscope.scope.partition import name_group
from infoscope.stages.backbone import load_backbone
from infoscope.stages.images import open_split
from infoscope.stages.patch_latents import explain_patch, load_picture
from infoscope.stages.sae import sae_of
from infoscope.stages.score.stage import scope_of
from infoscope.stages.segment.stage import Segment
from infoscope.stages.tokens import find_sizes

FORMATS = ("png", "pdf")
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


def read_patch(text: str) -> tuple[int, int] | None:
    """Return row and column of `patch=ROW,COLUMN`; None: nothing is given.

    Raises:
        InputError: something else.
    """
    parts = text.split(",")
    if text and (len(parts) != 2 or not all(part.strip().isdecimal() for part in parts)):
        raise InputError(f"Expected patch=ROW,COLUMN, counted from 0 at the top left, got patch={text}.")
    return (int(parts[0]), int(parts[1])) if text else None


def check_patch(patch: tuple[int, int], grid: int) -> None:
    """Refuse a patch outside of the grid.

    Raises:
        InputError: it is.
    """
    if max(patch) >= grid:
        raise InputError(
            f"Expected patch=ROW,COLUMN in 0..{grid - 1}, for this backbone cuts a picture into {grid} x {grid}"
            f" patches, got {patch[0]},{patch[1]}."
        )


def name_figure(source: str, patch: tuple[int, int], seed: int, sae_hash: str) -> str:
    """Return the figure's name, another one for each picture, patch and SAE.

    Args:
        source: the picture's path; empty: the first test picture.
    """
    of = Path(source).expanduser()
    digits = compute_hash([str(of.resolve()) if source else "", sae_hash])[:8]
    return f"{of.stem if source else 'test_picture'}_patch_{patch[0]}_{patch[1]}_seed{seed}_{digits}"


def run(arguments: list[str]) -> list[str]:
    """Score, explain the patch, draw; nothing is left to report."""
    given = dict(one.split("=", 1) for one in arguments if one.partition("=")[0] in OWN and "=" in one)
    own = {**OWN, **given}
    overrides = [one for one in arguments if one.partition("=")[0] not in OWN]
    if not own["n_latents"].isdecimal() or int(own["n_latents"]) < 1:
        raise InputError(f"Expected n_latents to be a whole number of at least 1, got {own['n_latents']}.")
    patch, picture = read_patch(own["patch"]), Path(own["picture"]).expanduser()
    if own["picture"]:
        load_picture(picture, CHECK_PX)
    config = compose(add_defaults(["stage=score"], overrides))
    check_stage(config, ["score"])
    apply_trainer(config.trainer, Display())
    seed = config.seeds[0]
    config = replace(config, seeds=[seed])
    ctx = Context(config, Display(bars=config.trainer.progress), Job(overrides=tuple(overrides)))
    check(ctx)
    grid = find_sizes(ctx).grid
    patch = patch or (grid // 2, grid // 2)
    check_patch(patch, grid)
    with ctx.tracking:
        backbone, made = load_backbone(ctx), sae_of(ctx, seed)
        shown = picture if own["picture"] else open_split(ctx, "test").load(0, backbone.image_px)
        found = explain_patch(backbone, made.load(), shown, *patch, int(own["n_latents"]), config.model.layer)
        told = describe_latents(ctx, seed, found.latents.tolist())
    out = Path(config.output_dir) / "experiments" / "patch_attribution"
    out.mkdir(parents=True, exist_ok=True)
    files = save_figure(lambda: found.figure(told), name_figure(own["picture"], patch, seed, made.hash), out, FORMATS)
    say("\n".join(map(str, [found, *files])))
    return []


def main(arguments: list[str]) -> int:
    """Run from the command line and return the exit code."""
    return run_command("patch_attribution", __doc__ or "", lambda: run(arguments), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
