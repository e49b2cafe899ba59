"""CLIP against adapted CLIP over data sets: one SAE reads the tokens of both.

    python experiments/adapted_clip.py adapt.pretrained=/ckpt/scenes_tuned.safetensors data.seed=0,1
    python experiments/adapted_clip.py adapt.pretrained=/ckpt/b16_tuned.pt model=clip_b16 sae=import \
        sae.path=/ckpt/sae.pt data=imagenet data.root=/imagenet,/imagenet-sketch predict=imagenet

Firing rates of both, how far the latents of each class are the same, which latents are remapped to another class, new
or gone, beside what random halves of the model's own images differ by, the fit of the SAE, and the zero-shot top-1 of
both. An imported SAE is the same one on all data sets; else each has SAEs of its own. adapt.pretrained is any other
weights of the model's architecture: a file, or what else model.pretrained takes.

PatchSAE compares CLIP with an adapted one (MaPLe) over several data sets; its weights and data were not at hand.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infoscope.commands.experiments.runs import Run, Shown, join_runs, make_run_table, name_figures
from infoscope.commands.experiments.sweep import Experiment, main
from infoscope.pipeline.context import Context
from infoscope.report.tables import Value, compute_stat
from infoscope.stages.adapt.figures import draw_adaptation
from infoscope.stages.adapt.numbers import Found as OfSeed
from infoscope.stages.adapt.numbers import summarise_found
from infoscope.stages.adapt.section import choose_classes, make_adapt_section
from infoscope.stages.adapt.stage import Adapt, found_of

Found = list[OfSeed]


def measure(ctx: Context) -> Found:
    """Return what the SAE of each seed sees of both models."""
    return [found_of(ctx, seed) for seed in ctx.config.seeds]


def show(runs: Sequence[Run[Found]]) -> Shown:
    """A row per data set, the tables of each, and its rates and overlaps."""
    notes = [
        "Mean ± standard deviation over SAE seeds. Jaccard: shared latents of a class / those in either, mean over"
        " classes; of halves: between random halves of the model's images; across halves: one half in the model, the"
        " other in the adapted one. Remapped, new, gone: latents."
    ]
    table = make_run_table("adapted_clip", "CLIP against adapted CLIP", runs, Adapt.columns, _cells, notes)
    sections = {run.label: make_adapt_section(run.found) for run in runs}
    names = dict.fromkeys(name for section in sections.values() for name in section.tables)
    others = []
    for name in names:
        having = [run for run in runs if name in sections[run.label].tables]
        others.append(join_runs(having, lambda run, name=name: sections[run.label].tables[name]))
    figures = name_figures("adapted_rates", runs, lambda run: draw_adaptation(run.found, choose_classes(run.found)))
    return Shown([table], figures, others)


def _cells(found: Found) -> list[Value]:
    numbers = [summarise_found(one) for one in found]
    values = [[one.get(column.key) for one in numbers] for column in Adapt.columns]
    return [compute_stat(value if isinstance(value, int | float) else None for value in of) for of in values]


EXPERIMENT = Experiment("adapted_clip", __doc__, measure, show, stages=["adapt"])

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
