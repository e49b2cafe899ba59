"""What a command would do, said beforehand: `infoscope plan=true`."""

from infoscope.planning.steps import Plan, Step, make_plan
from infoscope.planning.table import print_plan

__all__ = ["Plan", "Step", "make_plan", "print_plan"]
