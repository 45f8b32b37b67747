"""The world of this process: its launcher's implementation, and no other, is imported."""

import os

from intentpm.launch.inheritance import find_launcher, mark_process
from intentpm.runtime.config import Config
from intentpm.runtime.types import World


def find_world(config: Config) -> World:
    """Returns the world of this process; connects to what its launcher offers for ranks to meet.

    Collective: every rank of the job calls it. Raises ConfigError when the variables contradict each other, are
    inherited from a process that is the rank they name, or a package is missing (naming it); WaitTimeoutError when the
    others do not appear within ``config.start_timeout``.
    """
    if config.secret is not None:
        from intentpm.launch.local import job_secret

        job_secret(config)
    launcher = find_launcher(os.environ)
    if launcher != "alone":
        mark_process(os.environ)
    if launcher == "local":
        from intentpm.launch.local import LocalWorld

        return LocalWorld(config)
    if launcher == "torchrun":
        from intentpm.launch.torchrun import TorchrunWorld

        return TorchrunWorld(config)
    if launcher == "mpi":
        from intentpm.launch.mpi import MpiWorld

        return MpiWorld(config)
    if launcher == "slurm":
        from intentpm.launch.slurm import SlurmWorld

        return SlurmWorld(config)
    from intentpm.launch.alone import AloneWorld

    return AloneWorld(config)
