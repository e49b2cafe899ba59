"""What can be set of the launchers; conf/hydra/launcher/ gives the values."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

from infoscope.runtime.bounds import Count, CountOrNone, Few, FewOrNone


@dataclass
class LocalConf:
    """Jobs of a sweep as processes of this machine."""

    _target_: str = "hydra_plugins.infoscope_launchers.launchers.LocalLauncher"
    submitit_folder: str = "${hydra.sweep.dir}/.submitit/%j"
    """Where jobs and their logs lie; %j is the number of the job's first process."""
    n_parallel: Few = 2
    """Jobs that run at a time."""
    tasks_per_node: Few = 1
    """Processes that share the work of each job."""


@dataclass
class SlurmConf(SlurmQueueConf):
    """Jobs of a sweep as jobs of Slurm."""

    _target_: str = "hydra_plugins.infoscope_launchers.launchers.SlurmLauncher"
    name: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Of the jobs; null: infoscope-STAGE."""
    srun_args: list[str] | None = None
    """Options for srun, which starts the tasks of a job."""
    nodes: Few = 1
    tasks_per_node: Few = 1
    cpus_per_task: Few | None = None
    gpus_per_node: FewOrNone | None = None
    cpus_per_gpu: Few | None = None
    gpus_per_task: FewOrNone | None = None
    mem_gb: Count | None = None
    timeout_min: Count = 60
    signal_delay_s: CountOrNone = 120
    max_num_timeout: CountOrNone = 0
    array_parallelism: Count = 256


ConfigStore.instance().store(group="hydra/launcher", name="infoscope_local", node=LocalConf, provider="infoscope")
ConfigStore.instance().store(group="hydra/launcher", name="infoscope_slurm", node=SlurmConf, provider="infoscope")
