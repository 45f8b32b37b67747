"""Which launcher started this process, read off the variables that launchers set."""

import os
from collections.abc import Mapping

from intentpm.foundation.errors import ConfigError

LAUNCHERS = ("alone", "local", "torchrun", "mpi", "slurm")
LAUNCHER_VARIABLES = {
    "local": ("INTENTPM_RANK", "INTENTPM_SIZE", "INTENTPM_RENDEZVOUS"),
    "torchrun": ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"),
    "mpi": (
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "PMIX_NAMESPACE",
        "PMI_SIZE",
        "PMI_RANK",
        "PMI_PORT",
        "PMI_FD",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_RANK",
    ),
    "slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
}
"""What tells one rank of a launcher from all others."""

_SET_FOR_RANKS = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "MV2_", "HYDI_", "HYDRA_", "SLURM_", "TORCHELASTIC_", "DMLC_")
_SET_FOR_RANKS_BY_NAME = {
    *("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK"),
    *("GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME"),
    *("INTENTPM_RANK", "INTENTPM_SIZE", "INTENTPM_RENDEZVOUS", "INTENTPM_SECRET", "INTENTPM_LOCAL_RANKS"),
    *("INTENTPM_LAUNCHER", "INTENTPM_RANK_PROCESS"),
}
_KEPT = ("SLURM_CONF",)


def detect_launcher(environment: Mapping[str, str]) -> str:
    """The launcher named by ``INTENTPM_LAUNCHER``, else the innermost whose variables are set, else "alone".

    Launchers nest (``srun torchrun``, ``mpirun`` in a Slurm job); ``launchers_set`` gives all.
    """
    return next(iter(launchers_set(environment)), "alone")


def launchers_set(environment: Mapping[str, str]) -> list[str]:
    """The launchers whose variables are set, from the innermost out; only the one that ``INTENTPM_LAUNCHER`` names.

    "alone" is none of them.
    """
    forced = environment.get("INTENTPM_LAUNCHER") or "auto"
    if forced != "auto":
        if forced not in LAUNCHERS:
            raise ConfigError(f"INTENTPM_LAUNCHER={forced!r}: choose one of auto, {', '.join(LAUNCHERS)}")
        return [forced] if forced != "alone" else []
    is_set = {
        "local": "INTENTPM_RANK" in environment and "INTENTPM_RENDEZVOUS" in environment,
        "torchrun": all(name in environment for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")),
        "mpi": mpi_size(environment) is not None and not _is_slurm_speaking_pmi(environment),
        # A batch script or salloc shell has SLURM_PROCID too, but is no task of a step that srun started.
        "slurm": "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment,
    }
    return [launcher for launcher in LAUNCHERS if is_set.get(launcher)]


def clean_environment() -> dict[str, str]:
    """This process's environment without what launchers set for it: for programs that are no part of its rank.

    A program started with it is a job of its own: of one rank, or of several under a launcher of its own. Options that
    were set as ``INTENTPM_*`` variables stay. Started by a rank of ``intentpm run``, it still ends with that job.

        subprocess.run([sys.executable, "evaluate.py"], env=intentpm.clean_environment())

    Threads: any.
    """
    return {name: value for name, value in os.environ.items() if name in _KEPT or not _is_set_for_ranks(name)}


def mpi_size(environment: Mapping[str, str]) -> int | None:
    """How many ranks an MPI launcher (Open MPI, hydra and its kin) says it started; None under no such launcher."""
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"):
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    return None


def _is_set_for_ranks(name: str) -> bool:
    return name in _SET_FOR_RANKS_BY_NAME or name.startswith(_SET_FOR_RANKS)


def _is_slurm_speaking_pmi(environment: Mapping[str, str]) -> bool:
    """``srun --mpi=pmi2`` sets hydra's variables: the ranks are Slurm's tasks then, and need no MPI."""
    return (
        "OMPI_COMM_WORLD_SIZE" not in environment
        and environment.get("PMI_SIZE") == environment.get("SLURM_STEP_NUM_TASKS")
        and environment.get("PMI_RANK") == environment.get("SLURM_PROCID")
    )
