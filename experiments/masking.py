"""PatchSAE's masking curve, crossed with scope: zero-shot top-1 with the n top latents of each image's true class.

    python experiments/masking.py                                           # the miniature: scenes and their own CLIP
    python experiments/masking.py partition=bands
    python experiments/masking.py masking.rank_split=test masking.sae_bias=0.105131256516992     # as PatchSAE's code
    python experiments/masking.py model=clip_b16 sae=import sae.path=PATCHSAE.pt data=imagenet data.root=/imagenet \
        predict=imagenet

These latents are kept alone, or dropped: the class's own, as many random ones, the first ones of high or of low
scope. The SAE's error stays in the tokens (ours), or what is kept is decoded (PatchSAE's). Needs labels and a model
with a text tower. True labels choose the latents: a curve says where the information on classes lies, and is no
classifier's.

Published for CLIP B/16, PatchSAE's own SAE and ImageNet: 68.25% on the original tokens, 64.82% on the reconstruction,
0.1% without any latent. Their code adds a constant to decoded tokens (masking.sae_bias), ranks latents on the images
that it predicts, does not norm the mean of a class's text embeddings, and fills up classes that have fewer latents
with such as do not fire.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infoscope.analyses.masking import MaskingResult
from infoscope.commands.experiments.runs import Run, Shown, join_runs, name_figures
from infoscope.commands.experiments.sweep import Experiment, main
from infoscope.pipeline.context import Context
from infoscope.stages.masking.section import make_masking_section
from infoscope.stages.masking.stage import Masking

Found = dict[int, MaskingResult]


def measure(ctx: Context) -> Found:
    """Return the predictions under every mask, by SAE seed."""
    return {seed: Masking.at(ctx, seed).load() for seed in ctx.config.seeds}


def show(runs: Sequence[Run[Found]]) -> Shown:
    """The table, the curves of each run, and what they say."""
    sections = {run.label: make_masking_section(run.found) for run in runs}
    table = join_runs(runs, lambda run: sections[run.label].tables["masking"])
    table.notes += [f"{label}: {finding}" for label, section in sections.items() for finding in section.findings]
    return Shown([table], name_figures("masking", runs, lambda run: sections[run.label].figures["masking"].draw()))


EXPERIMENT = Experiment("masking", __doc__, measure, show, stages=["masking"])

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
