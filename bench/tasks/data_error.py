"""The error of data that cannot be trained on."""

import click


class DataError(click.ClickException):
    """Data that cannot be used; the message names the file or option and what is wrong with it."""

    def __init__(self, source: object, problem: str) -> None:
        super().__init__(f"{source}: {problem}")
