"""The ways between two ranks of this machine that the benches compare, by the names their cases have."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from intentpm.bench.runner import run_scenario

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""For all ranks and baselines: with more, numpy and torch would measure how busy the machine is."""


@dataclass(frozen=True, slots=True)
class Link:
    """A transport with its settings."""

    name: str
    transport: str
    ucx_tls: str | None = None
    """``UCX_TLS`` of the ranks, if it must be set."""
    perftest_tls: str | None = None
    """``UCX_TLS`` that makes ucx_perftest use the same path; None: it cannot."""

    @property
    def env(self) -> dict[str, str]:
        """Of the ranks."""
        return {"UCX_TLS": self.ucx_tls} if self.ucx_tls else {}

    def run(self, scenario: str, ranks: int, arguments: Mapping[str, Any], timeout_s: float) -> list[dict[str, Any]]:
        """``run_scenario`` over this link. ``scenario``: name of a module of ``intentpm.bench.scenarios``."""
        return run_scenario(
            f"intentpm.bench.scenarios.{scenario}", ranks, arguments,
            transport=self.transport, timeout_s=timeout_s, env={**ONE_THREAD, **self.env},
        )  # fmt: skip


LINKS = (
    Link("ucx-shm", "ucx", None, "posix,sysv,self"),
    Link("ucx-tcp", "ucx", "tcp", "tcp"),
    Link("tcp", "tcp"),
)


def usable_links() -> list[Link]:
    """Those of ``LINKS`` that work on this machine."""
    from intentpm.transports.registry import available

    found = available()
    return [link for link in LINKS if found[link.transport].usable]
