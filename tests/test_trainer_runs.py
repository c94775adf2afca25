from datetime import UTC, datetime

import pytest

from trainer import runs
from trainer.errors import InputError

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


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


def test_only_a_run_that_was_begun_and_not_finished_can_be_gone_on_with(tmp_path):
    with pytest.raises(InputError, match="no run there was interrupted"):
        runs.last_unfinished(tmp_path)
    first, second, third = (runs.create(tmp_path, name, NOW) for name in "abc")
    runs.begin(first, {"trainer.seed": 1})
    runs.begin(second, {"trainer.seed": 1})
    assert runs.last_unfinished(tmp_path) == second
    runs.finish(second, {"bundle": 1})
    assert runs.unfinished(tmp_path) == [first]
    with runs.opened(tmp_path, "x", NOW, resume=True) as workdir:
        assert workdir == first
    assert third.exists()


def test_a_run_goes_on_only_with_what_it_was_begun_with(tmp_path):
    runs.begin(tmp_path, {"trainer.seed": 1, "the photos": "abc"})
    runs.begin(tmp_path, {"trainer.seed": 1, "the photos": "abc"})
    with pytest.raises(InputError, match=r"since the photos and trainer\.seed changed: begin anew"):
        runs.begin(tmp_path, {"trainer.seed": 2, "the photos": "abd"})
    (tmp_path / runs.ASKED).write_text("{")
    with pytest.raises(InputError, match=r"run\.json: damaged"):
        runs.begin(tmp_path, {})


def test_a_finished_run_keeps_what_is_looked_at_and_no_scratch(tmp_path):
    for name in (*runs.SCRATCH, "tensorboard"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(b"x")
    runs.finish(tmp_path, {"bundle": 3})
    assert {entry.name for entry in tmp_path.iterdir()} == {"tensorboard", runs.RESULT}
