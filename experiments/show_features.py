"""Features of one set of photographs, shown on others: on pictures whose licence lets them be published.

    python experiments/show_features.py pictures=FOLDER model=dinov2_s14 model.layer=10 \
        model.pretrained=dinov2_s14.safetensors data=image_folder data.root=/photographs seeds=[0] sae=topk \
        sae.n_tokens=400000 sae.batch_tokens=1024

SAE, scores and groups are those of the configuration (this one is a block of real_vit.py). The pictures take
no part in them: each is cropped twice, and the maps of some features are drawn. Of each group, `N_EACH` features are
shown, those with the lowest CDS of the low and the highest of the high one among the features that their images settle
and that fire on both crops of at least `MIN_PICTURES` pictures: chosen by a rule, not by their looks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from jaxtyping import Int

from infoscope.commands.experiments.sweep import add_defaults, check_stage, run_command
from infoscope.config.tree import compose
from infoscope.data.pictures import Pictures
from infoscope.pipeline.context import Context
from infoscope.pipeline.run import apply_trainer
from infoscope.report.figure_style import save_figure
from infoscope.runtime.errors import InputError
from infoscope.runtime.job import Job
from infoscope.runtime.output import say
from infoscope.runtime.progress import Display
from infoscope.scope.partition import ABOVE
from infoscope.stages.backbone import load_backbone
from infoscope.stages.contextual_dependency.measure import ContextualDependency, contextual_dependency
from infoscope.stages.sae import sae_of
from infoscope.stages.score.example_figure import draw_examples
from infoscope.stages.score.examples import make_example
from infoscope.stages.score.result import ScopeResult
from infoscope.stages.score.stage import scope_of

N_EACH = 3
MIN_PICTURES = 3
SUFFIXES = (".jpg", ".jpeg", ".png")


def choose_latents(scope: ScopeResult, found: ContextualDependency, group: str) -> Int[np.ndarray, " n"]:
    """Return the features of a group to show, from the end of the scores that it lies at."""
    fires = np.isfinite(found.emd).sum(axis=1) >= min(MIN_PICTURES, found.emd.shape[1])
    latents = np.flatnonzero(scope.partition.groups[group] & ~scope.undecided & fires)
    order = np.argsort(scope.measure[latents], kind="stable")
    return latents[order[::-1] if group in ABOVE else order][:N_EACH]


def run(arguments: list[str]) -> list[str]:
    """Score, crop the pictures, draw; nothing is left to report."""
    given = [one for one in arguments if one.startswith("pictures=")]
    if len(given) != 1:
        raise InputError("Expected pictures=FOLDER, the pictures to show the features on.")
    overrides = [one for one in arguments if one not in given]
    folder = Path(given[0].partition("=")[2]).expanduser()
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise InputError(f"Expected at least 2 pictures ({', '.join(SUFFIXES)}) in {folder}, got {len(files)}.")
    config = compose(add_defaults(["stage=score"], overrides))
    check_stage(config, ["score"])
    apply_trainer(config.trainer, Display())
    ctx = Context(config, Display(bars=config.trainer.progress), Job(overrides=tuple(overrides)))
    seed = config.seeds[0]
    with ctx.tracking:
        scope, backbone, sae = scope_of(ctx, seed), load_backbone(ctx), sae_of(ctx, seed).load()
    n, shift = len(files), config.scope.shift_patches
    found = contextual_dependency(backbone, sae, files, k_cds=1, k_max=n, shift_patches=shift, progress=False)
    pictures, examples = Pictures(files), []
    for group in scope.partition.groups:
        for latent in choose_latents(scope, found, group):
            of = int(latent), group, found.scores, found.ranking
            examples.append(make_example(scope, *of, pictures, backbone.patch_px))
    out = Path(config.output_dir) / "experiments" / "show_features"
    out.mkdir(parents=True, exist_ok=True)
    save_figure(lambda: draw_examples(examples, shift), "features", out, ("png", "pdf"))
    say(f"{len(examples)} features on {n} pictures: {out}")
    return []


def main(arguments: list[str]) -> int:
    """Run from the command line and return the exit code."""
    return run_command("show_features", __doc__, lambda: run(arguments), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
