"""What several modules promise together: settings, imports, names, and no skew between training and serving."""

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import daemon
import trainer
from trainer.settings import Settings, load

ROOT = Path(__file__).parent.parent


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


def test_settings_toml_lists_every_setting_with_its_default():
    with (ROOT / "settings.toml").open("rb") as file:
        written = tomllib.load(file)
    defaults = {name: field.default.model_dump(mode="json") for name, field in Settings.model_fields.items()}
    assert written == defaults


def test_the_shipped_settings_file_is_valid():
    assert load(ROOT / "settings.toml").settings.tray.root == ROOT / "tray"


@pytest.mark.parametrize("arguments", [["status"], ["--help"], ["status", "--help"]])
def test_quick_commands_never_load_tensorflow(tmp_path, arguments):
    code = f"""
import sys
from daemon.command_line import main
try:
    main({arguments!r})
except SystemExit:
    pass
loaded = [m for m in ("tensorflow", "keras", "ai_edge_litert") if m in sys.modules]
sys.exit(f"loaded {{loaded}}" if loaded else 0)
"""
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_installed_wheel_is_what_is_tested():
    by_choice = str(ROOT) in os.environ.get("PYTHONPATH", "").split(os.pathsep)  # a developer's short way
    for package in (daemon, trainer):
        assert by_choice or not Path(package.__file__).is_relative_to(ROOT / package.__name__)


def test_no_other_distribution_owns_our_packages():
    owners = importlib.metadata.packages_distributions()
    for package in ("daemon", "trainer"):
        assert set(owners.get(package, ["moodbox"])) == {"moodbox"}, f"{package} is also owned by another distribution"


def test_every_line_of_the_operations_page_names_a_real_field():
    from daemon.events import Line

    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    table = page.split("## The journal")[1].split("Names that are not")[0]
    named = {
        name.strip("` ") for row in table.splitlines() if row.startswith("| `") for name in row.split("|")[1].split(",")
    }
    assert named == (set(Line.model_fields) - {"schema_"}) | {"schema"}
