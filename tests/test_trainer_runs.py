from datetime import UTC, datetime

import pytest

from trainer import runs
from trainer.errors import InputError

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)


def test_runs_of_the_same_second_get_directories_of_their_own(tmp_path):
    with (
        runs.opened(tmp_path, "../odd name", NOW, resume=False) as first,
        runs.opened(tmp_path, "../odd name", NOW, resume=False) as second,
    ):
        assert first == tmp_path / "20260102T030405Z-___odd_name"
        assert second.name == first.name + "-2"
        (second / "curves.png").write_bytes(b"x")
    assert not first.exists()
    assert second.exists()


def test_only_the_last_run_can_be_gone_on_with_and_only_where_it_was_interrupted(tmp_path, capsys):
    with pytest.raises(InputError, match="was not interrupted"):
        runs.last_unfinished(tmp_path)
    first, second, third = (runs.create(tmp_path, name, NOW) for name in "abc")
    runs.begin(first, {"trainer.seed": 1}, NOW)
    runs.begin(second, {"trainer.seed": 1}, NOW)
    with runs.opened(tmp_path, "x", NOW, resume=True) as workdir:
        assert workdir == second
    assert f"going on with {second}" in capsys.readouterr().err
    runs.finish(second, {"bundle": 1})
    with pytest.raises(InputError, match="was not interrupted"):
        runs.last_unfinished(tmp_path)
    assert third.exists()


def test_a_run_goes_on_only_with_what_it_was_begun_with(tmp_path):
    begun = runs.begin(tmp_path, {"trainer.seed": 1, "the photos": "abc"}, NOW)
    assert runs.begin(tmp_path, {"trainer.seed": 1, "the photos": "abc"}, LATER) == begun
    with pytest.raises(InputError, match=r"since the photos and trainer\.seed changed: begin anew"):
        runs.begin(tmp_path, {"trainer.seed": 2, "the photos": "abd"}, NOW)
    for damaged in ("{", "[]", "{}", "", "7"):
        (tmp_path / runs.ASKED).write_text(damaged)
        with pytest.raises(InputError, match=r"run\.json: damaged"):
            runs.begin(tmp_path, {}, NOW)


def test_a_run_that_is_at_work_is_left_alone(tmp_path):
    with runs.opened(tmp_path, "a", NOW, resume=False) as workdir:
        runs.begin(workdir, {}, NOW)
        with pytest.raises(InputError, match="still at work"), runs.opened(tmp_path, "a", LATER, resume=True):
            raise AssertionError
    with runs.opened(tmp_path, "a", LATER, resume=True) as again:
        assert again == workdir
        (again / runs.RESULT).write_bytes(b"")  # torn by a full disk
    assert runs.last_unfinished(tmp_path) == workdir


def test_a_finished_run_keeps_what_is_looked_at_and_no_scratch(tmp_path):
    for name in (*runs.SCRATCH, "tensorboard"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(b"x")
    runs.finish(tmp_path, {"bundle": 3})
    assert {entry.name for entry in tmp_path.iterdir()} == {"tensorboard", runs.RESULT}
