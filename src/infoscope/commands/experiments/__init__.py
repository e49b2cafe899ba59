"""What the files in experiments/ share: running a sweep, reading what it made, writing tables and figures."""

from infoscope.commands.experiments.runs import (
    SCOPE_COLUMNS,
    Run,
    Shown,
    explain_unscored,
    is_swept,
    join_removal,
    join_runs,
    make_run_table,
    name_figures,
    read_removal,
    read_scopes,
    scope_cells,
    show_models,
    split_runs,
)
from infoscope.commands.experiments.sweep import Experiment, main, run_command

__all__ = [
    "SCOPE_COLUMNS",
    "Experiment",
    "Run",
    "Shown",
    "explain_unscored",
    "is_swept",
    "join_removal",
    "join_runs",
    "main",
    "make_run_table",
    "name_figures",
    "read_removal",
    "read_scopes",
    "run_command",
    "scope_cells",
    "show_models",
    "split_runs",
]
