"""Linear probes on edited tokens: variants, heads, metrics, results."""

from infoscope.probes.config import ProbeConfig, Readout, Task, check_probes
from infoscope.probes.inputs import ProbeData, ProbeInputs
from infoscope.probes.results import VariantResult, load_result, save_result
from infoscope.probes.run import run_probes
from infoscope.probes.variants import Control, Role, Variant, make_variants

__all__ = [
    "Control",
    "ProbeConfig",
    "ProbeData",
    "ProbeInputs",
    "Readout",
    "Role",
    "Task",
    "Variant",
    "VariantResult",
    "check_probes",
    "load_result",
    "make_variants",
    "run_probes",
    "save_result",
]
