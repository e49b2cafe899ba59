"""A private Slurm for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.private_slurm import PrivateSlurm


@contextmanager
def _running(n_nodes: int, cpus_per_node: int) -> Iterator[PrivateSlurm]:
    if not PrivateSlurm.is_possible():
        pytest.skip("needs root and Debian's packages slurm-wlm and munge")
    slurm = PrivateSlurm(n_nodes, cpus_per_node)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()


@pytest.fixture(scope="session")
def slurm() -> Iterator[PrivateSlurm]:
    """One node that runs four jobs of one task at a time."""
    with _running(n_nodes=1, cpus_per_node=4) as slurm:
        yield slurm


@pytest.fixture(scope="session")
def slurm_of_two_nodes() -> Iterator[PrivateSlurm]:
    """Two virtual nodes."""
    with _running(n_nodes=2, cpus_per_node=2) as slurm:
        yield slurm
