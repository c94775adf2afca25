"""What pytest itself is told: a story's tests share one machine, in one process, in the order in which they stand."""

import collections
import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says what else the machine does, not what is wrong with the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

MANY_FILES = 100  # pytest, xdist and TensorFlow have some 20
STORIES = ("test_deploy_service.py",)
# A file goes to one worker, which makes its fixtures once. What takes minutes begins first, else one worker waits.
LONG = (
    "test_trainer_fit.py", "test_deploy_service.py", "test_backfill_ray.py", "test_trainer_face_training.py",
    "test_circle.py", "test_real_kills.py", "test_trainer_callbacks.py", "test_trainer_crossvalidate.py",
    "test_trainer_retrain.py", "test_moodbox.py", "test_trainer_heads.py", "test_crash.py", "test_trainer_check.py",
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def _broken_leases():
    """Survive SIGIO, a lease that a writer breaks, as the daemon does; by a handler: programs do not inherit it."""
    before = signal.signal(signal.SIGIO, lambda *_: None)
    yield
    signal.signal(signal.SIGIO, before)


@pytest.fixture(scope="session", autouse=True)
def _closed_files():
    """A process that goes from test to test ends with few open files: each leak of the product's adds up here."""
    yield
    opened = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.exists(entry.path)]
    assert len(opened) < MANY_FILES, collections.Counter(opened).most_common(20)


@pytest.hookimpl(trylast=True)  # after pytest-randomly
def pytest_collection_modifyitems(items):
    """Put the tests of a story in their order, each into a place that one of them had, and long files first."""
    places = [number for number, item in enumerate(items) if item.path.name in STORIES]
    told = sorted((items[number] for number in places), key=lambda item: (item.path, item.reportinfo()[1]))
    for number, item in zip(places, told, strict=True):
        items[number] = item
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
