"""What commands say on stdout.

Invariant: results go here and progress does not, so that stdout can be piped; names of files cannot act on a terminal.
"""

import sys
from collections.abc import Sequence

from trainer.dataset import Unused
from trainer.progress import printable

LONGEST = 20  # lines of a list on a terminal


def write(text: str) -> None:
    """Write a line of result."""
    sys.stdout.write(text + "\n")


def show_unused(unused: Sequence[Unused]) -> None:
    """List the files that are not used, each with its reason; of very many, the first."""
    for file in unused[:LONGEST]:
        write(f"not used: {printable(file.path)}: {printable(file.reason)}")
    if len(unused) > LONGEST:
        write(f"not used: and {len(unused) - LONGEST} more: `moodbox-train check` writes down all of them")
