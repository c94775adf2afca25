import errno
import os
import shutil
from datetime import UTC, datetime

import pytest

import bundles
from trainer import bundle, decisions, known_labels, pruning
from trainer.bundle import BundleError

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def models(tmp_path):
    root = tmp_path / "models"
    for number in range(1, 7):
        bundles.publish(root, tmp_path / f"staged{number}", parent=number - 1 or None)
    bundle.promote(root, 1)
    return root


def decided(models, event, champion, **fields):
    decisions.append(models, event, NOW, champion=champion, **fields)


def events(models):
    return [line["event"] for line in decisions.read(models)]


def test_lines_are_read_back_oldest_first(models):
    assert decisions.read(models) == []
    decided(models, "fit", 1, folder="a")
    decided(models, "refused", 1, challenger=2, folder="b")
    assert events(models) == ["fit", "refused"]
    assert decisions.newest_folder(decisions.read(models)) == "b"
    decided(models, "rollback", 1)
    assert decisions.newest_folder(decisions.read(models)) == "b"


@pytest.mark.parametrize("torn", [b"{", b'{"event":"promoted","champion":9', b"\xff"])
def test_a_torn_tail_counts_as_nothing_and_is_mended(models, torn):
    decided(models, "fit", 1)
    with (models / decisions.NAME).open("ab") as file:
        file.write(torn)
    assert events(models) == ["fit"]
    decided(models, "rollback", 1)
    assert events(models) == ["fit", "rollback"]
    assert (models / decisions.NAME).read_bytes().endswith(b"\n")


@pytest.mark.parametrize("damaged", [b"{}\n", b"[]\n", b"x\n", b'{"event":1}\n'])
def test_a_damaged_line_is_an_error_that_names_it(models, damaged):
    decided(models, "fit", 1)
    with (models / decisions.NAME).open("ab") as file:
        file.write(damaged)
    with pytest.raises(BundleError, match=r"decisions.jsonl: line 2 is damaged: remove that line"):
        decisions.read(models)


def test_a_full_disk_leaves_whole_lines(models, monkeypatch):
    decided(models, "fit", 1)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device.*decisions.jsonl"):
            decided(models, "promoted", 2)
    assert events(models) == ["fit"]


def test_what_was_decided_and_not_done_is_found(models):
    def unfinished():
        return decisions.unfinished(models, decisions.read(models))

    assert unfinished() is None
    decided(models, "promoted", 2, challenger=2)
    assert unfinished() == 2
    bundle.promote(models, 2)
    assert unfinished() is None
    decided(models, "rollback", 1)
    bundle.promote(models, 1)
    assert unfinished() is None
    decided(models, "refused", 1, challenger=3)
    bundle.promote(models, 4)  # by hand: a refusal says nothing about the link
    assert unfinished() is None
    decided(models, "promoted", 99)  # a bundle that is gone
    assert unfinished() is None


def test_a_rollback_pins_until_the_next_promotion(models):
    for event, pinned in [("fit", False), ("rollback", True), ("refused", True), ("promoted", False)]:
        decided(models, event, 1)
        assert decisions.pinned(decisions.read(models)) == pinned, event


def test_damaged_labels_are_an_error(models):
    assert known_labels.read(models) is None
    for text in ("[]", "{", '{"a": 1}'):
        (models / known_labels.NAME).write_text(text)
        with pytest.raises(BundleError, match=r"labels.json: damaged: delete it"):
            known_labels.read(models)


def test_pruning_keeps_the_newest_the_champion_and_where_it_came_from(models):
    bundle.promote(models, 3)
    assert pruning.superfluous(models, 2) == [4]
    assert pruning.prune(models, 2) == [4]
    assert bundle.numbers(models) == [1, 2, 3, 5, 6]
    assert bundle.champion(models) == 3
    assert pruning.prune(models, 2) == []


def test_refused_bundles_are_pruned_first(models):
    bundle.promote(models, 3)
    for number in (4, 5, 6):
        decisions.append(models, "refused", NOW, champion=3, challenger=number)
    decisions.append(models, "rollback", NOW, champion=5)  # a person took it all the same
    decisions.append(models, "rollback", NOW, champion=3)
    assert decisions.refused(decisions.read(models)) == {4, 6}
    assert pruning.superfluous(models, 3) == [4]
    assert pruning.superfluous(models, 2) == [4]


def test_pruning_keeps_what_is_about_to_be_champion(models):
    decided(models, "promoted", 2)
    assert pruning.prune(models, 1) == [3, 4, 5]


def test_a_damaged_champion_stays(models):
    bundle.promote(models, 3)
    (models / "3" / "manifest.json").write_text("{")
    assert pruning.prune(models, 1) == [2, 4, 5]


def test_a_prune_that_was_killed_is_finished_by_the_next(models, monkeypatch):
    def killed(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            pruning.prune(models, 3)
    assert bundle.numbers(models) == [1, 4, 5, 6]
    assert len(list(models.glob(".pruned-*"))) == 2
    assert pruning.prune(models, 3) == []
    assert not list(models.glob(".pruned-*"))


def test_a_bundle_that_lies_elsewhere_is_not_pruned(models, tmp_path):
    (models / "4").rename(tmp_path / "elsewhere")
    (models / "4").symlink_to(tmp_path / "elsewhere")
    bundle.promote(models, 3)
    assert pruning.prune(models, 1) == [5]
    assert (models / "4").is_symlink()


def test_a_link_that_a_person_moved_stays(models):
    decided(models, "rollback", 3, before=1)
    bundle.promote(models, 2)
    assert decisions.unfinished(models, decisions.read(models)) is None


def test_a_number_that_no_bundle_has_is_an_error(models):
    (models / "champion").unlink()
    os.symlink("9" * 30, models / "champion")
    with pytest.raises(BundleError, match="no bundle's number"):
        bundle.champion(models)
