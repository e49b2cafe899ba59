"""Files from strangers: what they hold, with nothing of them run or imported."""

from infoscope.runtime.untrusted.checkpoints import Checkpoint, list_keys, read_checkpoint
from infoscope.runtime.untrusted.records import Record, module_state, walk

__all__ = ["Checkpoint", "Record", "list_keys", "module_state", "read_checkpoint", "walk"]
