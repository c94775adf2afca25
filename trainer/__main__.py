"""What starts the `moodbox-train` command, as a script or by `python -m trainer`: see trainer.command_line.

Invariant: Ctrl-C ends it without a traceback from the first line on, also in the half second in which Python imports.
"""

from typing import NoReturn

from trainer import ending


def command() -> NoReturn:
    """Run a command and end the process."""
    ending.by_interrupt()
    from trainer import command_line  # noqa: PLC0415  # only now

    command_line.command()


if __name__ == "__main__":
    command()
