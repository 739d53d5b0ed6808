"""A real Slurm for the tests of this folder, up while they run and not longer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.slurm import packages
from tests.slurm.cluster import OUTER, Cluster

ON_SLURM = {"slurm", "running_slurm", "other_slurm"}


def pytest_itemcollected(item: pytest.Item) -> None:
    if ON_SLURM & set(getattr(item, "fixturenames", ())):
        item.add_marker("slurm")


def require(accounting: bool = True) -> None:
    """Skip the test where no cluster can be started; in CI that is a failure."""
    reason = packages.refusal(accounting)
    if reason is not None and packages.in_ci():
        pytest.fail(reason, pytrace=False)
    if reason is not None:
        pytest.skip(reason)


def enter(patch: pytest.MonkeyPatch, cluster: Cluster) -> None:
    """Let commands that tests start find this cluster, and no other."""
    for name in [name for name in os.environ if name.startswith(OUTER)]:
        patch.delenv(name)
    for name, value in cluster.environment().items():
        patch.setenv(name, value)


@pytest.fixture(scope="package")
def running_slurm() -> Iterator[Cluster]:
    """Four nodes of 4 CPUs, 8000 MB and 2 GPUs, with accounting; see `slurm` for one without old jobs."""
    require()
    with Cluster() as cluster, pytest.MonkeyPatch.context() as patch:
        enter(patch, cluster)
        yield cluster


@pytest.fixture
def slurm(running_slurm: Cluster) -> Iterator[Cluster]:
    """The cluster, without jobs and with all its nodes and daemons up."""
    yield running_slurm
    running_slurm.calm()


@pytest.fixture
def other_slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Cluster]]:
    """Starts a cluster with the arguments of `Cluster`, which all commands go to for the rest of the test."""
    started: list[Cluster] = []

    def start(*, accounting: bool = True, **shape: int | str) -> Cluster:
        require(accounting)
        cluster = Cluster(accounting=accounting, **shape)  # type: ignore[arg-type]
        cluster.up()
        started.append(cluster)
        enter(monkeypatch, cluster)
        return cluster

    yield start
    for cluster in started:
        cluster.down()
