import os
from pathlib import Path

import pytest

from daemon_parts import NOBODY, as_user, needs_root
from trainer import settings
from trainer.settings import SettingsError, load


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """An empty working directory, no settings in the environment, and no system file."""
    for name in [name for name in os.environ if name.upper().startswith("MOODBOX")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(settings, "SYSTEM_FILE", tmp_path / "etc" / "settings.toml")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_defaults_need_no_file_and_lie_below_the_working_directory(alone):
    loaded = load()
    assert loaded.file is None
    assert loaded.settings.trainer.architecture == "efficientnet_lite0"
    assert loaded.settings.models.root == alone / "cwd" / "models"
    assert loaded.settings.dataset.root == alone / "cwd" / "training"


def test_flags_win_over_the_environment_over_the_file_over_defaults(alone, monkeypatch):
    file = write(alone / "s.toml", "[trainer]\nseed = 1\nepochs = 1\nbatch_size = 1\nimage_size = 1\n")
    monkeypatch.setenv("MOODBOX_TRAINER__SEED", "2")
    monkeypatch.setenv("MOODBOX_TRAINER__EPOCHS", "2")
    monkeypatch.setenv("MOODBOX_TRAINER__BATCH_SIZE", "2")
    loaded = load(file, ["trainer.seed=3", "trainer.epochs=3"], {"trainer": {"seed": 4}})
    trainer = loaded.settings.trainer
    assert (trainer.seed, trainer.epochs, trainer.batch_size, trainer.image_size) == (4, 3, 2, 1)
    assert trainer.learning_rate == 0.0


def test_one_key_of_a_table_leaves_the_others_alone(alone, monkeypatch):
    file = write(alone / "s.toml", "[tray]\nsettle_seconds = 2\nmax_pixels = 5\n")
    monkeypatch.setenv("MOODBOX_TRAY__MAX_PIXELS", "6")
    tray = load(file).settings.tray
    assert (tray.settle_seconds, tray.max_pixels, tray.poll) == (2.0, 6, "auto")


@needs_root
def test_a_working_directory_that_may_not_be_entered_holds_no_settings(alone, monkeypatch):
    """As for `sudo -u moodbox moodbox status` in root's home."""
    monkeypatch.setattr(settings, "SYSTEM_FILE", Path("/etc/passwd"))
    (alone / "cwd").chmod(0o700)
    assert as_user(NOBODY, lambda: settings.find_file(None)) == Path("/etc/passwd")


def test_where_the_file_is_looked_for(alone, monkeypatch):
    system = write(alone / "etc" / "settings.toml", "[trainer]\nseed = 1\n")
    assert load().settings.trainer.seed == 1
    here = write(alone / "cwd" / "settings.toml", "[trainer]\nseed = 2\n")
    assert load().settings.trainer.seed == 2
    named = write(alone / "named.toml", "[trainer]\nseed = 3\n")
    monkeypatch.setenv("MOODBOX_SETTINGS", str(named))
    assert load().settings.trainer.seed == 3
    assert load(here).settings.trainer.seed == 2
    assert load(system).file == system


@pytest.mark.parametrize("way", ["option", "environment"])
def test_a_named_file_that_is_missing_is_an_error(alone, monkeypatch, way):
    missing = alone / "nowhere.toml"
    if way == "environment":
        monkeypatch.setenv("MOODBOX_SETTINGS", str(missing))
    with pytest.raises(SettingsError, match=r"nowhere\.toml.*does not exist"):
        load(missing if way == "option" else None)


def test_relative_paths_mean_the_folder_of_who_wrote_them(alone, monkeypatch):
    file = write(alone / "conf" / "s.toml", '[models]\nroot = "m"\n[dataset]\nroot = "/abs"\n')
    loaded = load(file, ["tray.root=t"]).settings
    assert loaded.models.root == alone / "conf" / "m"
    assert loaded.dataset.root == Path("/abs")
    assert loaded.trainer.runs == alone / "conf" / "runs"
    assert loaded.tray.root == alone / "cwd" / "t"
    monkeypatch.setenv("MOODBOX_MODELS__ROOT", "e")
    assert load(file).settings.models.root == alone / "cwd" / "e"
    assert load(options={"dataset": {"root": Path("~/x")}}).settings.dataset.root == Path.home() / "x"


@pytest.mark.parametrize("text", ["[trayner]\nseed = 1\n", "[trainer]\nsede = 1\n", "seed = 1\n"])
def test_a_misspelt_name_in_the_file_is_an_error(alone, text):
    with pytest.raises(SettingsError, match="no such setting") as caught:
        load(write(alone / "s.toml", text))
    assert "s.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_name_gets_a_hint(alone):
    with pytest.raises(SettingsError, match=r"trainer\.epoch:.*did you mean epochs\?"):
        load(flags=["trainer.epoch=3"])
    with pytest.raises(SettingsError, match=r"trainr.*did you mean trainer\?"):
        load(write(alone / "s.toml", "[trainr]\nseed = 1\n"))


@pytest.mark.parametrize("name", ["MOODBOX_TRAINR__SEED", "MOODBOX_TRAINER__SEDE", "MOODBOX_SEED"])
def test_a_misspelt_name_in_the_environment_is_an_error(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match="no such setting"):
        load()


@pytest.mark.parametrize(
    ("flag", "match"),
    [
        ("trainer.seed", "table.key=value"),
        ("seed=1", "table.key=value"),
        ("=", "table.key=value"),
        ("trainer.sede=1", "no such setting"),
        ("trainr.seed=1", "no such setting"),
        ("tray.ignore=[1", "JSON"),
        ("trainer.seed=many", "integer"),
        ("trainer.seed=-1", "greater than or equal"),
        ("trainer.test_fraction=0.5", "less than 0.5"),
        ("tray.poll=sometimes", "'auto', 'always' or 'never'"),
        ("daemon.name=a/b", "letters, digits"),
    ],
)
def test_a_flag_that_makes_no_sense_is_named(flag, match):
    with pytest.raises(SettingsError, match=match) as caught:
        load(flags=[flag])
    assert "\n" not in str(caught.value)
    assert flag.partition("=")[0].partition(".")[0] in str(caught.value)


def test_lists_are_written_as_json(monkeypatch):
    assert load(flags=['tray.ignore=["*.a", "b*"]']).settings.tray.ignore == ("*.a", "b*")
    monkeypatch.setenv("MOODBOX_TRAY__IGNORE", '["x"]')
    assert load().settings.tray.ignore == ("x",)
    monkeypatch.setenv("MOODBOX_TRAY__IGNORE", "[x")
    with pytest.raises(SettingsError, match="JSON"):
        load()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[trainer\n", "not valid TOML"),
        ('trainer = "x"\n', "trainer is a table"),
        ("[trainer]\nseed = 'one'\n", r"trainer\.seed"),
        ("[trainer]\nseed = 1\nseed = 2\n", "not valid TOML"),
        ("[trainer]\nepochs = 1.5\nseed = -1\n", "and 1 more"),
    ],
)
def test_a_file_that_makes_no_sense_is_an_error(alone, text, match):
    with pytest.raises(SettingsError, match=match):
        load(write(alone / "s.toml", text))


def test_a_file_that_is_not_utf8_is_an_error(alone):
    (alone / "s.toml").write_bytes(b"[trainer]\n# \xff\n")
    with pytest.raises(SettingsError, match="not valid TOML"):
        load(alone / "s.toml")


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load().settings.trainer.seed = 3
