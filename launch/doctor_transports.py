"""Checks of the transports: real bytes between two ranks over each, and which one ``auto`` takes."""

import json
import sys

from intentpm.launch.bootstrap import survey_transports
from intentpm.launch.findings import Finding, last_line, run_tool

PROBE_S = 45.0


def check_transports() -> list[Finding]:
    survey = survey_transports()
    findings = [_check(name, why_not) for name, why_not in survey.items()]
    working = [finding.facts["transport"] for finding in findings if finding.verdict == "ok"]
    if not working:
        fix = "several ranks cannot work here; a job of one rank can"
        return [*findings, Finding("Transport auto takes", "broken", "none", fix)]
    passed_over = list(survey)[: list(survey).index(working[0])]
    reason = f"{' and '.join(passed_over)} cannot be used: see above" if passed_over else "the fastest there is"
    found = f"{working[0]} ({reason})"
    return [*findings, Finding("Transport auto takes", "ok", found, facts={"transport": working[0]})]


def _check(name: str, why_not: str) -> Finding:
    title = f"Transport {name}"
    if why_not:
        fix = "pip install 'intentpm[ucx]'" if name == "ucx" else ""
        return Finding(title, "missing", why_not, fix, {"transport": name})
    argv = [sys.executable, "-m", "intentpm", "run", "-n", "2", "--no-prefix", "--timeout", str(PROBE_S - 10)]
    tried = run_tool([*argv, "--grace", "1", "-m", "intentpm.launch.probe_transport", name], PROBE_S)
    if tried.returncode != 0:
        why = last_line("\n".join(line for line in tried.stderr.splitlines() if not line.startswith("intentpm run:")))
        return Finding(title, "broken" if name == "tcp" else "warn", f"2 ranks failed: {why}", "", {"transport": name})
    facts = {"transport": name, **json.loads(last_line(tried.stdout))}
    found = (
        f"2 ranks: round trip {facts['round_trip_us']:.1f} us (p99 {facts['round_trip_p99_us']:.1f}), "
        f"{facts['gigabytes_per_s']:.2f} GB/s"
    )
    return Finding(title, "ok", found, facts=facts)
