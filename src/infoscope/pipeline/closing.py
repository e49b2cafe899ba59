"""What a stage without a report ends with: a small table of what it has found, read from its artifacts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from infoscope.config import Stage
from infoscope.pipeline.analyses import Analyses
from infoscope.pipeline.reporting import find_paper_reference, read_results, read_scope
from infoscope.report.removal import make_main_table
from infoscope.report.scope_table import make_ranking_table, make_sae_table, make_scope_table
from infoscope.report.tables import Column, Table
from infoscope.report.variants import Result
from infoscope.sae.edit import EditMode
from infoscope.scope.ranking import Ranking

Closing = Sequence[Table | str]
"""What is printed: tables, and sentences."""


def _close_clip(chain: Analyses) -> Closing:
    held_out = chain.train_clip().read_json("training.json")["held_out"]
    percent = {"digits": 1, "scale": 100.0, "unit": "%"}
    columns = {
        "image_to_text_top1": Column("image_to_text_top1", "captions found for pictures", **percent),
        "text_to_image_top1": Column("text_to_image_top1", "pictures found for captions", **percent),
        "among": Column("among", "among", digits=0),
    }
    table = Table("clip", "CLIP, on held-out scenes", [columns.get(key, Column(key, key)) for key in held_out])
    table.add_row(*held_out.values())
    return [table]


def _close_saes(chain: Analyses) -> Closing:
    return [make_sae_table({seed: chain.train_sae(seed).read_json("metrics.json") for seed in chain.config.seeds})]


def _close_rankings(chain: Analyses) -> Closing:
    return [make_ranking_table({seed: Ranking.load(chain.rank(seed).folder) for seed in chain.config.seeds})]


def _close_scores(chain: Analyses) -> Closing:
    scored = {seed: chain.score(seed) for seed in chain.config.seeds}
    scopes = [
        read_scope(chain.config, seed, chain.train_sae(seed), chain.rank(seed), of_seed)
        for seed, of_seed in scored.items()
    ]
    return [make_scope_table(scopes)]


def _close_probes(chain: Analyses) -> Closing:
    results = read_results({seed: chain.probe(seed) for seed in chain.config.seeds})
    table = make_main_table(_choose_shown(results), find_paper_reference(chain.config))
    table.notes.append("Reconstruct, differences and further metrics stand in the report: stage=report.")
    return [table]


def _choose_shown(results: Sequence[Result]) -> list[Result]:
    """The original tokens, and what was removed while the SAE's error stays."""
    kept = EditMode.error_preserving.name
    return [
        result for result in results if result["variant"]["role"] == "original" or result["variant"]["mode"] == kept
    ]


def _close_outliers(chain: Analyses) -> Closing:
    section = chain.outlier_section()
    return [*section.tables.values(), *section.findings]


CLOSINGS: Mapping[Stage, Callable[[Analyses], Closing]] = {
    Stage.train_clip: _close_clip,
    Stage.train_sae: _close_saes,
    Stage.rank: _close_rankings,
    Stage.score: _close_scores,
    Stage.probe: _close_probes,
    Stage.outliers: _close_outliers,
}
