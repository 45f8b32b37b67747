"""Seconds on a command line: as ``intentpm.foundation.deadlines`` takes them, nan is refused and infinity is long."""

import click

from intentpm.foundation.deadlines import wait_s
from intentpm.foundation.errors import ConfigError


class Seconds(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers alone
    """A click type. ``least``: the smallest number allowed; without one, what is negative means now."""

    name = "seconds"

    def __init__(self, least: float | None = None) -> None:
        self.least = least

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = wait_s(float(value) if isinstance(value, str) else value)
        except (ConfigError, ValueError):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        if self.least is not None and seconds < self.least:
            self.fail(f"{value} is less than {self.least:g} s", param, ctx)
        return seconds
