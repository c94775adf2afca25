import io
import zipfile

import numpy as np
import pytest

pytestmark = [
    pytest.mark.tf,
    # Keras' save reads TensorFlow variables with np.array(), which numpy 2.4 complains about
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
keras = pytest.importorskip("keras")
layers = keras.layers

SIZE = 32
RED, GREEN = (slice(0, 16), slice(0, 16)), (slice(16, 32), slice(16, 32))  # where the picture has which colour


@pytest.fixture(scope="module")
def gradcam():
    from trainer import gradcam

    return gradcam


def picture():
    """Grey, with a red upper left corner and a green lower right one."""
    pixels = np.full((SIZE, SIZE, 3), 40, np.uint8)
    pixels[RED] = (250, 40, 40)
    pixels[GREEN] = (40, 250, 40)
    return pixels


def network(classes=2, strength=1.0):
    """Return a network whose class 0 is red and whose class 1 is green (and class 2 blue), by weights set by hand."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    smoothed = layers.Conv2D(3, 3, padding="same", use_bias=False, activation="relu", name="smooth")
    pooled = layers.GlobalAveragePooling2D()(
        layers.MaxPooling2D(4, name="last")(smoothed(layers.Rescaling(1 / 255)(image)))
    )
    output = layers.Dense(1, "sigmoid") if classes == 2 else layers.Dense(3, "softmax")
    model = keras.Model(image, output(pooled), name="by_hand")
    smoothed.set_weights([np.eye(3)[np.newaxis, np.newaxis].repeat(3, 0).repeat(3, 1) / 9])
    kernel = np.array([[-1.0], [1.0], [0.0]]) if classes == 2 else np.eye(3)
    output.set_weights([strength * kernel, np.zeros(kernel.shape[1])])
    return model


def warmth(heat):
    """Return the mean heat in the red corner, in the green corner, and in the other two."""
    half = heat.shape[0] // 2
    rest = np.concatenate([heat[:half, half:], heat[half:, :half]])
    return heat[:half, :half].mean(), heat[half:, half:].mean(), rest.mean()


def both(gradcam, model):
    """Return the heat maps of one picture for class 0 and for class 1."""
    heat = gradcam.heatmaps(model, np.stack([picture(), picture()]), np.array([0, 1]))
    assert heat.dtype == np.float32
    assert heat.min() >= 0
    assert heat.max(axis=(1, 2)).tolist() == [1, 1]
    return heat


@pytest.mark.parametrize("classes", [2, 3])
def test_each_class_is_warm_where_its_own_colour_is(gradcam, classes):
    red, green = both(gradcam, network(classes))
    assert red.shape == (8, 8)
    assert warmth(red)[0] > 0.8
    assert max(warmth(red)[1:]) < 0.3
    assert warmth(green)[1] > 0.8
    assert max(warmth(green)[::2]) < 0.3


def test_answers_that_are_quite_sure_can_be_explained(gradcam):
    """Their probabilities are 0 and 1 to the last digit, and have no gradient: logits are looked at."""
    model = network(strength=1e4)
    pixels = np.stack([picture()] * 2)
    pixels[0, 16:], pixels[1, :16] = 40, 40
    assert model.predict(pixels, verbose=0)[:, 0].tolist() == [0.0, 1.0]
    red, green = gradcam.heatmaps(model, pixels, np.array([0, 1]))
    assert warmth(red)[0] > 0.8
    assert warmth(green)[1] > 0.8


def test_a_nested_network_is_looked_into(gradcam):
    image = keras.Input((SIZE, SIZE, 3))
    outer = keras.Model(image, network()(layers.Identity()(image)))
    for nested, plain in zip(both(gradcam, outer), both(gradcam, network()), strict=True):
        assert nested == pytest.approx(plain)


def flipped_inside():
    inner, image = network(), keras.Input((SIZE, SIZE, 3))
    return keras.Model(image, layers.Average()([inner(keras.ops.flip(image, axis=2)), inner(image)]))


def flipped_in_one_batch():
    inner, image = network(), keras.Input((SIZE, SIZE, 3))
    answers = inner(keras.ops.concatenate([image, keras.ops.flip(image, axis=2)], axis=0))
    return keras.Model(image, keras.ops.mean(keras.ops.reshape(answers, (2, -1, 1)), axis=0))


@pytest.mark.parametrize("build", [flipped_inside, flipped_in_one_batch])
def test_of_test_time_flip_both_views_are_shown_upright(gradcam, build):
    red, green = both(gradcam, build())
    assert warmth(red)[0] > 0.8
    assert max(warmth(red)[1:]) < 0.3
    assert warmth(green)[1] > 0.8
    assert max(warmth(green)[::2]) < 0.3


def test_many_pictures_are_taken_in_turns_and_do_not_change_one_another(gradcam, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (7, SIZE, SIZE, 3), dtype=np.uint8)
    classes = np.array([0, 1, 1, 0, 0, 0, 1])
    together = gradcam.heatmaps(network(), pixels, classes)
    monkeypatch.setattr(gradcam, "CHUNK", 2)
    assert gradcam.heatmaps(network(), pixels, classes) == pytest.approx(together, abs=1e-5)


def test_the_model_is_as_it_was(gradcam):
    model = network()
    before = model.predict(picture()[np.newaxis], verbose=0)
    both(gradcam, model)
    assert model.layers[-1].activation is keras.activations.sigmoid
    assert "call" not in vars(model.get_layer("last"))
    assert np.array_equal(model.predict(picture()[np.newaxis], verbose=0), before)


def test_where_nothing_speaks_for_a_class_nothing_is_warm(gradcam):
    only_red = picture()
    only_red[GREEN] = 0
    only_red[..., 1:] = 0
    assert gradcam.heatmaps(network(), only_red[np.newaxis], np.array([1])).max() == 0


@pytest.mark.parametrize("classes", [2, 3])
def test_our_own_architectures_can_be_explained(gradcam, classes):
    from trainer import model

    small = model.tutorial_cnn(SIZE, classes)
    assert gradcam.heatmaps(small, picture()[np.newaxis], np.array([1])).shape == (1, 2, 2)


def test_squeeze_and_excitation_is_no_map_and_keeps_its_sigmoid(gradcam):
    """A branch of one place, with a sigmoid of its own: neither is the last convolution nor the answer."""
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(4, 3, name="convolution")(image)
    gate = layers.Conv2D(4, 1, activation="sigmoid", name="gate")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    gated = layers.Multiply(name="gated")([x, gate])
    model = keras.Model(image, layers.Dense(1, "sigmoid")(layers.GlobalAveragePooling2D()(gated)))
    assert gradcam._last_spatial(model).name == "gated"
    with gradcam._as_logits(model):
        assert model.get_layer("gate").activation is keras.activations.sigmoid
        assert model.layers[-1].activation is keras.activations.linear
    of_logits = keras.Model(image, layers.Dense(1)(layers.GlobalAveragePooling2D()(gated)))
    with gradcam._as_logits(of_logits):
        assert of_logits.get_layer("gate").activation is keras.activations.sigmoid


def test_features_that_are_pooled_to_one_place_are_no_map(gradcam):
    image = keras.Input((SIZE, SIZE, 3))
    pooled = layers.GlobalAveragePooling2D(keepdims=True)(layers.Conv2D(4, 3, name="convolution")(image))
    model = keras.Model(image, layers.Dense(1, "sigmoid")(layers.Flatten()(layers.Conv2D(8, 1)(pooled))))
    assert gradcam._last_spatial(model).name == "convolution"


def test_a_network_without_convolutions_is_told_as_such(gradcam):
    model = keras.Sequential([keras.Input((SIZE, SIZE, 3)), layers.Flatten(), layers.Dense(1, "sigmoid")], name="flat")
    with pytest.raises(gradcam.UnexplainableError, match="flat has no convolutions"):
        gradcam.heatmaps(model, picture()[np.newaxis], np.array([1]))


def saved(model, path):
    model.save(path)
    return path.read_bytes()


def test_a_saved_model_is_loaded_from_its_bytes(gradcam, tmp_path):
    data = saved(network(), tmp_path / "model.keras")
    loaded = gradcam.load(data)
    assert both(gradcam, loaded)[0] == pytest.approx(both(gradcam, network())[0])


def empty_archive():
    file = io.BytesIO()
    zipfile.ZipFile(file, "w").close()
    return file.getvalue()


@pytest.mark.parametrize("data", [b"", b"stands for a keras file", empty_archive()])
def test_what_is_no_model_is_one_line(gradcam, data):
    with pytest.raises(gradcam.UnexplainableError, match="cannot be loaded") as caught:
        gradcam.load(data)
    assert "\n" not in str(caught.value)


def test_a_model_with_code_in_it_is_not_loaded(gradcam, tmp_path):
    code = keras.Sequential([keras.Input((SIZE, SIZE, 3)), layers.Lambda(lambda x: x), layers.Flatten()])
    with pytest.raises(gradcam.UnexplainableError, match="cannot be loaded"):
        gradcam.load(saved(code, tmp_path / "model.keras"))


def test_an_overlay_is_the_picture_in_grey_where_cold_and_red_where_warm(gradcam):
    heat = np.zeros((2, 2), np.float32)
    heat[0, 0] = 1
    laid = gradcam.overlay(np.full((40, 60, 3), (200, 100, 50), np.uint8), heat)
    assert (laid.shape, laid.dtype) == ((40, 60, 3), np.uint8)
    assert len(set(laid[-1, -1].tolist())) == 1
    assert int(laid[0, 0, 0]) > int(laid[0, 0, 2]) + 50
