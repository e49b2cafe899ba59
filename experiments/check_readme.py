"""What the READMEs claim in numbers, beside what the results say: run it before each release.

    python experiments/check_readme.py                       # builds what is missing: half an hour on two idle cores
    python experiments/check_readme.py build=false           # checks what exists, builds nothing
    python experiments/check_readme.py near=true             # on another machine, whose SAEs are others by a little

The numbers are read from the sentences and tables of README.md and experiments/README.md, and must have the digits that
the results have. A sentence that was written anew is named: write its words here anew too. Exit code 2 if a number
differs. Other arguments are overrides of every run (output_dir=..., trainer.n_threads=1).

What `KEPT` names is held against the READMEs by the tests too. Its tables under experiments/demo are those that the
stages wrote with trainer.n_threads=1 (those of sweeps without the columns that name paths): copy them anew where
results change.

Not checked: times, memory and disk, what ran at true model size, estimates, and the table of what was predicted, whose
signs tests assert.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from claims import DIFFERS, LOST, MISSING, NEAR, Finding, check_claims
from infoscope.commands.collect.opening import ContextFactory
from infoscope.commands.experiments.sweep import BUILD_NOTHING, Experiment, Sweep, run_command
from infoscope.config.tree import compose
from infoscope.pipeline.run import find_stage, run
from infoscope.report.tables import Align, Column, Table
from infoscope.runtime.progress import Display
from infoscope.runtime.read_only import MissingArtifact
from readme_claims import CLAIMS

ROOT = Path(__file__).resolve().parents[1]
Find = Callable[[Sequence[str], bool], Path | None]
"""Returns the folder of a source, built if that is asked for and it is missing; None: it is missing."""


def find_report(*overrides: str) -> Find:
    """The report that a command of `infoscope` ends with."""

    def find(given: Sequence[str], builds: bool) -> Path | None:
        config = compose([*given, *overrides])
        if builds:
            run(config)
        reading = ContextFactory(Display.silent(), builds=False).open(config)
        try:
            report = find_stage(reading).find_last(reading)
        except MissingArtifact:
            return None
        assert report is not None, f"stage={config.stage.name} ends with no report"
        return report.folder

    return find


def find_tables(name: str, *overrides: str, copy: str = "") -> Find:
    """The tables that a file of experiments/ writes; they are written anew, from what exists.

    Args:
        copy: the name of a folder beside that of the file, where its tables are put for another command not to write
            over them.
    """

    def find(given: Sequence[str], builds: bool) -> Path | None:
        folder = write_tables(load_script(name).EXPERIMENT, [*given, *overrides], builds)
        if folder is None:
            return None
        return Path(shutil.copytree(folder, folder.with_name(copy), dirs_exist_ok=True)) if copy else folder

    return find


def write_tables(experiment: Experiment[Any], arguments: Sequence[str], builds: bool) -> Path | None:
    """Return the folder of an experiment's tables, written from what exists or is built; None: something is missing."""
    sweep = Sweep(experiment, [*arguments, *([] if builds else [BUILD_NOTHING])])
    sweep.run()
    if sweep.failures or sweep.missing or sweep.output_dir is None:
        return None
    sweep.write()
    return sweep.output_dir / "experiments" / experiment.name


def find_settings(given: Sequence[str], builds: bool) -> Path | None:
    """The tables of sae_settings.py; where there are any they stay as they are, for that trains twelve SAEs."""
    folder = Path(compose(list(given)).output_dir) / "experiments" / "sae_settings"
    if builds and not (folder / "sae_settings_reported.csv").exists():
        load_script("sae_settings").run(list(given))
    return folder if (folder / "sae_settings_reported.csv").exists() else None


def load_script(name: str) -> ModuleType:
    """Return a file of experiments/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_folder(path: str) -> Find:
    """A folder of the repository."""
    return lambda given, builds: ROOT / path


def find_swapped(*overrides: str) -> Find:
    """The report on the control of adapted_clip.py, whose weights are written anew."""

    def find(given: Sequence[str], builds: bool) -> Path | None:
        folder = Path(compose(list(given)).output_dir) / "experiments" / "swapped_colours"
        control = load_script("adapted_clip").make_control(folder)
        return find_report("stage=adapt", *control, *overrides)(given, builds)

    return find


def find_measures(given: Sequence[str], builds: bool) -> Path | None:
    """The tables of scope_measures.py, which writes the SAE of its positive control."""
    script = load_script("scope_measures")
    asked = [*given, *([] if builds else [BUILD_NOTHING])]
    with TemporaryDirectory() as scratch:
        return write_tables(script.add_marks(asked, Path(scratch)), given, builds)


def find_cross(given: Sequence[str], builds: bool) -> Path | None:
    """The page on what goes with scope, with attributions, which it takes where they are at hand."""
    find_report("stage=attribute")(given, builds)
    return find_report("stage=cross")(given, builds)


KEPT = {
    "attribution": "experiments/demo/attribution",
    "attribution_block_0": "experiments/demo/attribution_block_0",
    "attribution_block_1": "experiments/demo/attribution_block_1",
    **{f"attribution_halfway_{block}": f"experiments/demo/attribution_halfway_{block}" for block in range(3)},
    "attribution_planted": "experiments/demo/attribution_planted",
    "steering": "experiments/demo/steering",
    "steering_picture": "experiments/demo/steering_picture",
    "steering_text": "experiments/demo/steering_text",
    "cross": "experiments/demo/cross",
    "names": "experiments/demo/names",
    "names_kinds": "experiments/demo/names_kinds",
    "names_patches": "experiments/demo/names_patches",
    "scope_by_layer": "experiments/demo/scope_by_layer",
    "scope_measures": "experiments/demo/scope_measures",
    "sae_pareto": "experiments/demo/sae_pareto",
    "sae_pareto_pooled": "experiments/demo/sae_pareto_pooled",
    "lineage": "experiments/demo/lineage",
    "scenes_clip": "src/infoscope/vision/open_clip/scenes_clip",
    "benchmarks": "experiments/benchmarks/results",
}
"""Folders of the repository with what sources say. The tests hold the READMEs against them and build nothing."""
SOURCES: Mapping[str, Find] = {
    "demo": find_report(),
    "bands": find_report("partition=bands"),
    "energy": find_report("partition=energy"),
    "class": find_report("probe.target=class", "probe.tasks=[classification]", "probe.n_draws=0", "seeds=[0]"),
    "predict": find_report("stage=predict"),
    "masking": find_report("stage=masking"),
    "attribution": find_report("stage=attribute"),
    "attribution_block_0": find_report("stage=attribute", "model.layer=0", "seeds=[0]"),
    "attribution_block_1": find_report("stage=attribute", "model.layer=1", "seeds=[0]"),
    **{
        f"attribution_halfway_{block}": find_report(
            "stage=attribute", f"model.layer={block}", "seeds=[0]", "attribution.n_groups=16"
        )
        for block in range(3)
    },
    "steering": find_report("stage=steer"),
    "steering_picture": find_report("stage=steer", "data.planted=picture", "seeds=[0]"),
    "steering_text": find_report("stage=steer", "data.planted=text", "seeds=[0]"),
    "cross": find_cross,
    "names": find_report("stage=name", "model.site=pooled"),
    "names_kinds": find_report("stage=name", "model.site=pooled", "probe.target=class"),
    "names_patches": find_report("stage=name"),
    "swapped": find_swapped(),
    "swapped_kinds": find_swapped("predict.target=class", "predict.class_names=null"),
    "sea": find_report(
        *("stage=adapt", "adapt.pretrained=train_clip", "clip.init=shipped", "clip.place=sea", "clip.n_steps=200"),
        *("clip.lr=5e-4", "clip.batch_size=64", "clip.n_images=2000", "clip.warmup_steps=10", "predict.target=place"),
    ),
    "stability": find_report("stage=stability"),
    "select": find_report("stage=select"),
    "curve": find_report("stage=curve"),
    "planted": find_report("experiment=planted_registers", "seeds=[0]"),
    "gamma_sweep": find_tables("gamma_sweep"),
    "scope_by_layer": find_tables("scope_by_layer", "seeds=[0]"),
    "scope_measures": find_measures,
    "k_cds_sweep": find_tables("k_cds_sweep"),
    "sae_pareto": find_tables(
        *("sae_pareto", "data.n_train=1200", "data.n_test=300", "scope.k_max=8", "sae.n_tokens=200000"),
        *("sae.batch_tokens=512", "quality.n_tokens=3000", "seeds=[0]"),
        copy="sae_pareto_patches",
    ),
    "sae_pareto_pooled": find_tables(
        *("sae_pareto", "model.site=pooled", "data.n_train=6000", "seeds=[0]"), copy="sae_pareto_pooled"
    ),
    "lineage": find_tables("lineage"),
    "sae_settings": find_settings,
    **{name: find_folder(KEPT[name]) for name in ("attribution_planted", "scenes_clip", "benchmarks")},
}


def check(arguments: Sequence[str]) -> list[str]:
    """Print every claim beside what was found, and return what is wrong, a sentence each."""
    builds, given = "build=false" not in arguments, ["logger=none"]
    given += [one for one in arguments if one not in ("build=true", "build=false", "near=true", "near=false")]

    @cache
    def find(name: str) -> Path | None:
        with redirect_stdout(sys.stderr):  # what the runs print
            return SOURCES[name](given, builds)

    findings = {
        file: list(check_claims(claims, (ROOT / file).read_text(encoding="utf-8"), find))
        for file, claims in CLAIMS.items()
    }
    make_table(findings).show(Display().console)
    return judge(findings, accepts_near="near=true" in arguments)


def make_table(findings: Mapping[str, Sequence[Finding]]) -> Table:
    """Return a row per number."""
    titles = {"file": "file", "claim": "claim", "said": "README says", "found": "found", "verdict": ""}
    table = Table("claims", "Claims of the READMEs", [Column(key, title, Align.left) for key, title in titles.items()])
    for file, of_file in findings.items():
        for one in of_file:
            table.add_row(file, one.label, one.said, "" if one.verdict == LOST else one.found, one.verdict)
    return table


def judge(findings: Mapping[str, Sequence[Finding]], accepts_near: bool = False) -> list[str]:
    """Return what is wrong, a sentence each; say what could not be checked."""
    every = [(file, one) for file, of_file in findings.items() for one in of_file]
    counts = Counter(one.verdict for _, one in every)
    n_wrong = counts[DIFFERS] + (0 if accepts_near else counts[NEAR])
    if counts[MISSING]:
        print(f"{counts[MISSING]} of {len(every)} numbers have no result yet: run without build=false.")
    lost = [f"{file}: {one.found}" for file, one in every if one.verdict == LOST]
    return [
        *dict.fromkeys(lost),
        *([f"{n_wrong} of {len(every)} numbers are not those of the results."] if n_wrong else []),
    ]


def main(arguments: Sequence[str]) -> int:
    """Run from the command line and return the exit code."""
    return run_command("check_readme", __doc__, lambda: check(arguments), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
