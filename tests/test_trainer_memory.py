import pytest

pytestmark = pytest.mark.tf
keras = pytest.importorskip("keras")

from trainer import memory  # noqa: E402  after keras
from trainer.errors import InputError  # noqa: E402


@pytest.fixture
def network():
    image = keras.Input((100, 100, 3))
    return keras.Model(image, keras.layers.Conv2D(10, 1)(image))


def test_a_batch_that_does_not_fit_is_refused_with_the_size_that_does(network, monkeypatch):
    per_photo = memory.activation_bytes(network)
    assert per_photo == 3 * 4 * (100 * 100 * 3 + 100 * 100 * 10)
    monkeypatch.setattr(memory, "available", lambda: 40 * per_photo)
    memory.require(network, 40)
    with pytest.raises(InputError, match=r"trainer\.batch_size 41 takes about 0\.1 GB .* set it to 32 or less"):
        memory.require(network, 41)


def test_where_the_system_does_not_say_nothing_is_refused(network, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: None)
    memory.require(network, 10**9)


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    names = (tmp_path / "max", tmp_path / "current")
    monkeypatch.setattr(memory, "LIMITS", [str(name) for name in names])
    for text, found in (("5000\n", [3000]), ("max\n", [])):
        names[0].write_text(text)
        names[1].write_text("2000\n")
        assert memory._cgroup() == found
    names[0].write_text("5000")
    assert memory.available() == 3000


def test_what_the_process_took_is_known():
    assert 50e6 < memory.peak() < 1e12
