"""A round of retraining: a challenger is made, judged beside the champion, and takes its place or does not.

Invariant: a kill at any moment leaves the champion as it was, or a whole new one: the challenger is published, then the
decision is a line on disk, then the link moves, and only then do the new labels count for the next round.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from trainer import (
    bundle,
    contest,
    decisions,
    deliveries,
    durable,
    known_labels,
    lessons,
    memory,
    prepared,
    promotion,
    round_report,
    runs,
    teaching,
    train,
)
from trainer.contest import Agreement, Answered
from trainer.dataset import Photo
from trainer.disk import disk_errors
from trainer.errors import FailureError, InputError
from trainer.lessons import Lessons
from trainer.photos import Rules
from trainer.promotion import Verdict
from trainer.settings import Settings

NAME, ASKED, REPORT, TRAINING = "retrain", "round.json", "report.html", "training"
SHORT = "the last layer learns anew, from what the champion had learned from and from these photos"
FULL = "all of the recipe, from the folder alone: it holds enough"


@dataclass(frozen=True)
class Round:
    """A round that ended."""

    challenger: int
    verdict: Verdict
    report: Path
    elsewhere: tuple[int, int]
    agreed: Agreement


@dataclass(frozen=True)
class Challenger:
    """What was made, published; `taught` where its last layer alone is new."""

    bundle: bundle.Bundle
    number: int
    taught: teaching.Taught | None


def route(settings: Settings, material: Lessons) -> str:
    """Return how a challenger can be made: SHORT or FULL; nothing where neither can be."""
    teachable = teaching.teachable(material.replay, len(material.data.class_names))
    if material.enough_for_all(settings.trainer.full_from) and (material.can_judge or not teachable):
        return FULL
    return SHORT if teachable else ""


def hold(settings: Settings, material: Lessons, cache: prepared.Cache, way: str) -> Round:
    """Make a challenger in the way that `route` named, judge it, and decide. Raises what training does."""
    started, said = time.monotonic(), len(decisions.read(settings.models.root))
    train.make_repeatable(settings.trainer.seed)
    with opened(settings, material, way) as (workdir, begun):
        with disk_errors(workdir):
            made = (
                full(settings, material, workdir) if way == FULL else short(settings, material, cache, workdir, begun)
            )
        names = material.data.class_names
        answered = contest.between(material, made.bundle, made.taught, settings.tray.max_pixels)
        verdict = promotion.decide(
            answered.labels, answered.champion, answered.challenger, names, settings.trainer.least_accuracy
        )
        if made.taught:
            made = published(settings, made, answered, begun)
        facts = {"route": way, "time": f"{time.monotonic() - started:.0f} s"}
        doubted = known_labels.doubted(settings.models.root) if verdict.promoted else set()
        agreed = contest.agreement(material, made.bundle, doubted, settings.tray.max_pixels)
        elsewhere = report(settings, material, made, answered, verdict, facts, agreed, workdir)
        carry_out(settings.models.root, material, made.number, verdict, agreed, said)
        runs.finish(workdir, {"bundle": made.number, "promoted": verdict.promoted, "reason": verdict.reason})
    return Round(made.number, verdict, workdir / REPORT, elsewhere, agreed)


def carry_out(root: Path, material: Lessons, challenger: int, verdict: Verdict, agreed: Agreement, said: int) -> None:
    """Note the decision, then move the link, then let the new labels count; `said`: how many lines there were before.

    Raises FailureError, OSError.
    """
    champion = material.champion.manifest.number
    # by then, a person may have spoken
    if bundle.champion(root) != champion or len(decisions.read(root)) != said:
        raise FailureError(f"{root}: somebody chose a champion meanwhile: the next retraining judges anew")
    decisions.append(
        root,
        decisions.PROMOTED if verdict.promoted else decisions.REFUSED,
        datetime.now(UTC),
        champion=challenger if verdict.promoted else champion,
        before=champion,
        challenger=challenger,
        folder=material.data.hash,
        reason=verdict.reason,
        **verdict.as_json(),
    )
    if verdict.promoted:
        bundle.promote(root, challenger)
    known_labels.write(root, material.data, doubted(root, material.new, verdict, agreed))


def doubted(root: Path, new: Sequence[Photo], verdict: Verdict, agreed: Agreement) -> set[str]:
    """Return the hashes of the photos that judge no later round.

    Labels that the gate spoke against, or that half of cannot be learned, may be somebody's joke. They stay doubted
    until a model is promoted that heeds them; a gate that had too few photos to judge by has spoken against none.
    """
    fresh = {photo.sha256 for photo in new}
    earlier = known_labels.doubted(root) - fresh
    if verdict.promoted:
        earlier -= agreed.heeded
    is_trusted = agreed.is_learned and (verdict.promoted or not verdict.could_judge)
    return earlier if is_trusted else earlier | fresh


@contextlib.contextmanager
def opened(settings: Settings, material: Lessons, way: str) -> Iterator[tuple[Path, str]]:
    """Give the round's directory and when it began: that of the last round, where it was killed in the same one."""
    asked = {
        "folder": material.data.hash,
        "champion": material.champion.manifest.number,
        "route": way,
        "settings": settings.trainer.model_dump(mode="json"),
    }
    workdir, begun = _interrupted(settings.trainer.runs, asked) or _begun(settings.trainer.runs, asked)
    with runs.locked(workdir):
        yield workdir, begun


def short(settings: Settings, material: Lessons, cache: prepared.Cache, workdir: Path, begun: str) -> Challenger:
    """Teach the last layer; not published yet: its figures are missing."""
    taught = teaching.teach(settings, material, cache, workdir, begun)
    return Challenger(taught.bundle, 0, taught)


def full(settings: Settings, material: Lessons, workdir: Path) -> Challenger:
    """Train as `fit` does, going on where a kill ended it, and publish."""
    manifest = material.champion.manifest
    like = {"architecture": manifest.architecture, "image_size": manifest.input_size, "views": manifest.views}
    asked = settings.model_copy(update={"trainer": settings.trainer.model_copy(update=like)})
    folder = workdir / TRAINING
    folder.mkdir(exist_ok=True)
    trained = train.train_and_evaluate(asked, folder, promote=False, expected=material.data.hash)
    return Challenger(bundle.load(settings.models.root, trained.number), trained.number, None)


def published(settings: Settings, made: Challenger, answered: Answered, begun: str) -> Challenger:
    """Publish what was taught, with what it got right in its manifest."""
    figures: dict[str, Any] = {"judged": {"photos": answered.total, "as_served": answered.served, "retraining": True}}
    if answered.total:
        figures = contest.metrics(answered, made.bundle.manifest.class_names).as_json() | figures
    draft = made.bundle.manifest.model_copy(update={"metrics": figures, "created": begun})
    number = train.published(settings.models.root, made.bundle, draft)
    return Challenger(made.bundle, number, made.taught)


def report(
    settings: Settings,
    material: Lessons,
    made: Challenger,
    answered: Answered,
    verdict: Verdict,
    facts: Mapping[str, str],
    agreed: Agreement,
    workdir: Path,
) -> tuple[int, int]:
    """Write the report; return how many delivered photos would go elsewhere, of how many."""
    rules, names = Rules(settings.tray.ignore, settings.tray.max_file_bytes), material.data.class_names
    listed = deliveries.read(settings.dataset.root)
    moved, looked = deliveries.moved(material.champion, made.bundle, listed, rules, settings.tray.max_pixels)
    notes = [f"New since the last round: {lessons.described(material.new, names) or 'nothing'}."]
    if agreed.asked:
        notes.append(f"{agreed}.")
    told = {
        **facts,
        "judges": f"{answered.total:,} photos: {answered.served:,} files of the folder as they are served, "
        f"{answered.total - answered.served:,} of the replay by their features",
        "folder": f"{lessons.described(material.data.photos, names)}, hash {material.data.hash}",
        "least accuracy": f"{settings.trainer.least_accuracy:.0%} (trainer.least_accuracy)",
        "peak memory": f"{memory.peak() / 1e9:.1f} GB",
    }
    numbers = material.champion.manifest.number, made.number
    round_report.write(
        workdir / REPORT, verdict, moved, looked, numbers=numbers, notes=notes, facts=told,
        max_pixels=settings.tray.max_pixels,
    )  # fmt: skip
    return len(moved), looked


def _unfinished(folder: Path) -> list[Path]:
    """Return the directories of the rounds that did not end."""
    rounds = [path.parent for path in folder.glob(f"*-{NAME}*/{ASKED}")]
    return [workdir for workdir in rounds if not (workdir / runs.RESULT).exists()]


def _interrupted(folder: Path, asked: Mapping[str, Any]) -> tuple[Path, str] | None:
    """Return the directory of a round that asked for the same and did not end, and when it began."""
    for workdir in _unfinished(folder):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            found = dict(orjson.loads((workdir / ASKED).read_bytes()))
            begun = str(found.pop(runs.BEGUN))
            if found == asked:
                return workdir, begun
    return None


def _begun(folder: Path, asked: Mapping[str, Any]) -> tuple[Path, str]:
    """Begin a round; those that did not end never will, since photos, champion or settings have changed."""
    for workdir in _unfinished(folder):
        with contextlib.suppress(InputError), runs.locked(workdir):
            runs.clear(workdir)
            runs.clear(workdir / TRAINING)
    now = datetime.now(UTC)
    workdir = runs.create(folder, NAME, now)
    durable.replace(workdir / ASKED, orjson.dumps({runs.BEGUN: now.isoformat(), **asked}, option=orjson.OPT_INDENT_2))
    return workdir, now.isoformat()
