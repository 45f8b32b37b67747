"""The error of a training run whose numbers are no longer finite."""

import click


class DivergedError(click.ClickException):
    """The rows grew without bound. Raised on every rank at the end of the same epoch."""
