"""Which launcher started this process, read off the variables that launchers set."""

from collections.abc import Mapping

from intentpm.foundation.errors import ConfigError

LAUNCHERS = ("alone", "local", "torchrun", "mpi", "slurm")


def detect_launcher(environment: Mapping[str, str]) -> str:
    """The launcher named by ``INTENTPM_LAUNCHER``, else the innermost whose variables are set.

    Launchers nest (``srun torchrun``, ``mpirun`` in a Slurm job), so the order below is from the innermost out.
    """
    forced = environment.get("INTENTPM_LAUNCHER", "auto")
    if forced != "auto":
        if forced not in LAUNCHERS:
            raise ConfigError(f"INTENTPM_LAUNCHER={forced!r}: choose one of auto, {', '.join(LAUNCHERS)}")
        return forced
    if "INTENTPM_RANK" in environment and "INTENTPM_RENDEZVOUS" in environment:
        return "local"
    if all(name in environment for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        return "torchrun"
    if mpi_size(environment) is not None and not _is_slurm_speaking_pmi(environment):
        return "mpi"
    # A batch script or salloc shell has SLURM_PROCID too, but is no task of a step that srun started.
    if "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment:
        return "slurm"
    return "alone"


def mpi_size(environment: Mapping[str, str]) -> int | None:
    """How many ranks an MPI launcher (Open MPI, hydra and its kin) says it started; None under no such launcher."""
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"):
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    return None


def _is_slurm_speaking_pmi(environment: Mapping[str, str]) -> bool:
    """``srun --mpi=pmi2`` sets hydra's variables: the ranks are Slurm's tasks then, and need no MPI."""
    return (
        "OMPI_COMM_WORLD_SIZE" not in environment
        and environment.get("PMI_SIZE") == environment.get("SLURM_STEP_NUM_TASKS")
        and environment.get("PMI_RANK") == environment.get("SLURM_PROCID")
    )
