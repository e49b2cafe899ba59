"""CLIP against adapted CLIP over data sets: one SAE reads the tokens of both.

    python experiments/adapted_clip.py                                      # the control: red and blue swapped
    python experiments/adapted_clip.py adapt.pretrained=train_clip clip.init=shipped clip.place=sea clip.n_steps=200 \
        clip.warmup_steps=10 clip.lr=5e-4 clip.batch_size=64 clip.n_images=2000 predict.target=place data.seed=0,1
    python experiments/adapted_clip.py adapt.pretrained=/ckpt/b16_tuned.pt model=clip_b16 sae=import \
        sae.path=/ckpt/sae.pt data=imagenet data.root=/imagenet,/imagenet-sketch predict=imagenet

Firing rates of both, how far the latents of each class are the same, which latents are remapped to another class, new
or gone, beside what random halves of the model's own images differ by, the fit of the SAE, and the zero-shot top-1 of
both. An imported SAE is the same one on all data sets; else each has SAEs of its own. adapt.pretrained is any other
weights of the model's architecture: a file, or what else model.pretrained takes.

The control adapts scenes_clip by swapping the red and the blue input of its patches: latents of red and of blue things
must be remapped, those of kinds of things must not.

PatchSAE compares CLIP with an adapted one (MaPLe) over several data sets; its weights and data were not at hand.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from infoscope.commands.experiments.runs import Run, Shown, join_runs, make_run_table, name_figures
from infoscope.commands.experiments.sweep import Experiment, main
from infoscope.data.scenes.factors import COLOURS
from infoscope.pipeline.context import Context
from infoscope.report.tables import OVER_SEEDS, Value, compute_stat
from infoscope.stages.adapt.figures import draw_adaptation
from infoscope.stages.adapt.numbers import Found as OfSeed
from infoscope.stages.adapt.numbers import summarise_found
from infoscope.stages.adapt.section import choose_classes, make_adapt_section
from infoscope.stages.adapt.stage import Adapt, found_of
from infoscope.vision.open_clip.weights import LOCAL_WEIGHTS, SHIPPED_FOLDER

Found = list[OfSeed]


def measure(ctx: Context) -> Found:
    """Return what the SAE of each seed sees of both models."""
    return [found_of(ctx, seed) for seed in ctx.config.seeds]


def show(runs: Sequence[Run[Found]]) -> Shown:
    """A row per data set, the tables of each, and its rates and overlaps."""
    notes = [
        OVER_SEEDS,
        "Jaccard: shared latents of a class / those in either, mean over"
        " classes; of halves: between random halves of the model's images; across halves: one half in the model, the"
        " other in the adapted one. Remapped, new, gone: latents.",
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


def make_control(folder: Path) -> list[str]:
    """Write the control's weights and the colours' names into a folder; return the overrides that use them."""
    weights = load_file(SHIPPED_FOLDER / LOCAL_WEIGHTS[0])
    weights["visual.conv1.weight"] = weights["visual.conv1.weight"][:, [2, 1, 0]].contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "swapped.safetensors")
    (folder / "colours.txt").write_text("\n".join(COLOURS) + "\n", encoding="utf-8")
    file, names = folder / "swapped.safetensors", folder / "colours.txt"
    return [f"adapt.pretrained={file}", "predict.target=colour", f"predict.class_names={names}"]


def add_control(arguments: Sequence[str]) -> list[str]:
    """Return arguments that give adapted weights: these, or with those of the control."""
    given = dict(one.partition("=")[::2] for one in arguments)
    if "--help" in given or {"adapt.pretrained", "model", "data"} & given.keys():
        return list(arguments)
    return [*arguments, *make_control(Path(given.get("output_dir", "outputs")) / "experiments" / "swapped_colours")]


if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, add_control(sys.argv[1:])))
