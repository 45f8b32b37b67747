"""The ``INTENTPM_*`` variables there are; one that is set and is none of them is pointed out."""

import difflib
import sys
from collections.abc import Mapping
from dataclasses import fields

from intentpm.launch.guardian import JOB_VARIABLE
from intentpm.launch.inheritance import MARK_VARIABLE
from intentpm.launch.local import RESTARTS_VARIABLE
from intentpm.runtime.config import Config
from intentpm.transports.ucx_library import SWITCH

PREFIX = "INTENTPM_"
KNOWN = (
    *(PREFIX + field.name.upper() for field in fields(Config)),
    *("INTENTPM_RANK", "INTENTPM_SIZE", "INTENTPM_RENDEZVOUS", "INTENTPM_LOCAL_RANKS", "INTENTPM_LAUNCHER"),
    RESTARTS_VARIABLE,
    *(JOB_VARIABLE, MARK_VARIABLE, SWITCH),
)

_said: set[str] = set()
"""Lines that this process has printed; changed by the thread that calls ``init``."""


def warn_of_unknown_variables(environment: Mapping[str, str]) -> None:
    """Prints a line for each, once in the life of this process."""
    for line in describe_unknown_variables(environment):
        if line not in _said:
            print(f"intentpm: {line}", file=sys.stderr)
            _said.add(line)


def describe_unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that starts as ours do and is none of them, with the nearest name there is."""
    unknown = sorted(name for name in environment if name.upper().startswith(PREFIX) and name not in KNOWN)
    return [f"the variable {name} is none of intentpm's and changes nothing{_advice(name)}" for name in unknown]


def _advice(name: str) -> str:
    near = difflib.get_close_matches(name.upper(), KNOWN, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""
