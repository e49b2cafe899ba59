"""With this folder on PYTHONPATH, jobs of infoscope do as they are told instead of computing: they start in a second.

`logger.group` says what: succeed, fail, break, kill; `logger.project` for how many seconds before. Every job that lives
leaves a line of JSON in the file `ran` of the sweep's folder.
"""

import json
import os
import signal
import sys
import time
from types import ModuleType


def run(config, job):
    """Stand in for `infoscope.pipeline.run.run`."""
    from infoscope.runtime.errors import InputError

    begin = time.time()
    print("at work", flush=True)
    time.sleep(float(config.logger.project))
    if config.logger.group == "fail":
        raise InputError(f"Expected anything but scope.k_cds={config.scope.k_cds}.")
    if config.logger.group == "break":
        raise RuntimeError("a bug")
    if config.logger.group == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    names = (
        "OMP_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES",
        "SUBMITIT_LOCAL_GLOBALID",
        "SLURM_PROCID",
        "SLURM_CPUS_PER_TASK",
    )
    ran = {"job": job.number, "begin": begin, "end": time.time(), **{name: os.environ.get(name) for name in names}}
    with (job.sweep / "ran").open("a") as file:
        file.write(json.dumps(ran) + "\n")


pipeline = ModuleType("infoscope.pipeline.run")
pipeline.run = run  # pyright: ignore[reportAttributeAccessIssue]
sys.modules["infoscope.pipeline.run"] = pipeline
