"""What a command would do, said beforehand: `infoscope plan=true`."""

from infoscope.pipeline.planning.known import Plan, Step
from infoscope.pipeline.planning.steps import make_plan
from infoscope.pipeline.planning.table import print_plan

__all__ = ["Plan", "Step", "make_plan", "print_plan"]
