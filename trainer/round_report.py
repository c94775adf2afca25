"""The report of a round of retraining: the decision, both models side by side, and what would now go elsewhere.

Invariant: as in `report`: one file that needs nothing else and runs no script, of bounded size, written whole or not at
all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer import calibration, durable, report
from trainer.bundle import Decision
from trainer.deliveries import Moved
from trainer.promotion import Share, Verdict
from trainer.thumbnails import Thumbnail, plain

TEMPLATE = "round.html.j2"
MOST_SHOWN = 60  # thumbnails: about a megabyte


@dataclass(frozen=True)
class Row:
    """A class, or all photos: what both got right, with 95 % intervals."""

    share: Share

    @property
    def edges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The intervals of the champion's and the challenger's shares."""
        photos = self.share.photos
        return calibration.wilson(self.share.champion, photos), calibration.wilson(self.share.challenger, photos)


@dataclass(frozen=True)
class Card:
    """A delivered photo: its name, where both models put it, and its picture."""

    name: str
    was: Decision
    now: Decision
    thumbnail: Thumbnail


def write(
    path: Path,
    verdict: Verdict,
    elsewhere: Sequence[Moved],
    looked: int,
    *,
    numbers: tuple[int, int],
    notes: Sequence[str],
    facts: Mapping[str, str],
    max_pixels: int,
) -> None:
    """Write the report; `numbers` are the champion's and the challenger's. Raises OSError where the disk refuses."""
    shown = elsewhere[:MOST_SHOWN]
    page = report.template(TEMPLATE).render(
        verdict=verdict,
        champion=numbers[0],
        challenger=numbers[1],
        notes=list(notes),
        rows=[Row(share) for share in (verdict.overall, *verdict.classes)],
        both=_paired(verdict.overall),
        cards=[_card(moved, max_pixels) for moved in shown],
        elsewhere=len(elsewhere),
        looked=looked,
        facts=facts,
    )
    durable.replace(path, page.encode(errors="backslashreplace"))


def _paired(overall: Share) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the paired table: rows champion right and wrong, columns challenger right and wrong."""
    both = overall.champion - overall.lost
    return (both, overall.lost), (overall.gained, overall.photos - both - overall.lost - overall.gained)


def _card(moved: Moved, max_pixels: int) -> Card:
    name = report.shortened(str(moved.path))
    return Card(name, moved.champion, moved.challenger, plain(moved.path, max_pixels))
