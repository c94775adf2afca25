import json
import sys
import urllib.error

import numpy as np
import pytest

import bundles
import drawings
from trainer import golden, images

pytestmark = [
    pytest.mark.tf,
    # Keras' save reads TensorFlow variables with np.array(), which numpy 2.4 complains about
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
keras = pytest.importorskip("keras")

# Pooled features 0, 50, … 1250 of the drawn face below; made once with the port that was compared with the published
# features of two photos (largest difference 8e-6).
REFERENCE = [
    0.00000,
    0.00000,
    0.00000,
    0.00000,
    0.82698,
    0.00000,
    0.00000,
    0.70515,
    1.12869,
    0.05592,
    0.00000,
    0.05283,
    0.00000,
    0.00000,
    1.25926,
    0.00000,
    0.49529,
    0.00000,
    0.02319,
    0.00000,
    0.00000,
    0.00293,
    0.01411,
    0.00000,
    0.00000,
    1.22938,
]


def picture(size=224):
    """A photo for every test here, and not a flat one."""
    return np.asarray(drawings.photo("happy", 1, (size, size)), np.float32)[np.newaxis]


@pytest.fixture(scope="module")
def lite0():
    from trainer import model

    return model.find("efficientnet_lite0").backbone(224)


def test_the_backbone_gives_the_features_of_the_published_weights(lite0):

    face = np.asarray(golden.draw(224)["happy.png"], np.float32)[np.newaxis]
    features = lite0(face, training=False).numpy()[0]
    assert features.shape == (1280,)
    assert np.count_nonzero(features) > 400
    assert features[::50] == pytest.approx(REFERENCE, abs=1e-4)


def test_the_backbone_has_3_4_million_weights_and_takes_sizes_divisible_by_32(lite0):
    from trainer import model

    assert lite0.count_params() == 3_413_024
    with pytest.raises(model.ArchitectureError, match="multiple of 32"):
        model.find("efficientnet_lite0").backbone(100)
    assert model.find("efficientnet_lite0").backbone(64).output_shape == (None, 1280)


def test_a_weight_too_many_or_too_few_in_the_file_is_an_error(monkeypatch):
    from trainer import efficientnet_lite

    real = np.load
    monkeypatch.setattr(efficientnet_lite.np, "load", lambda *a, **k: dict(real(*a, **k)) | {"extra": np.zeros(1)})
    with pytest.raises(ValueError, match="extra"):
        efficientnet_lite.efficientnet_lite0(32)


def test_the_tutorials_network_is_the_tutorials():
    from trainer import model

    network = model.tutorial_cnn(256, 2)
    kinds = [type(layer).__name__ for layer in network.layers]
    assert kinds == ["Rescaling", *["Conv2D", "MaxPooling2D"] * 3, "Flatten", "Dense", "Dense"]
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [(c.filters, c.kernel_size, c.padding, c.activation.__name__) for c in convolutions] == [
        (16, (3, 3), "valid", "relu"),
        (32, (3, 3), "valid", "relu"),
        (16, (3, 3), "valid", "relu"),
    ]
    assert network.layers[0].scale == 1 / 255
    assert [(d.units, d.activation.__name__) for d in network.layers[-2:]] == [(256, "relu"), (1, "sigmoid")]
    assert network.count_params() == 3_696_625
    assert (model.TUTORIAL_CNN.image_size, model.TUTORIAL_CNN.epochs) == (256, 20)
    assert model.tutorial_cnn(64, 5).layers[-1].activation.__name__ == "softmax"
    assert model.tutorial_cnn(model.TUTORIAL_CNN.smallest, 2).output_shape == (None, 1)


@pytest.mark.parametrize(
    ("name", "found", "size"),
    [
        ("EfficientNet_Lite0", "efficientnet_lite0", 224),
        ("TUTORIAL_CNN", "tutorial_cnn", 256),
        ("mobilenetv3small", "MobileNetV3Small", 224),
        ("Xception", "Xception", 299),
    ],
)
def test_architectures_are_found_in_upper_or_lower_case(name, found, size):
    from trainer import model

    assert (model.find(name).name, model.find(name).image_size) == (found, size)


@pytest.mark.parametrize(("name", "hint"), [("mobilnetv3smal", "MobileNetV3Small"), ("tutorial", "tutorial_cnn")])
def test_an_unknown_architecture_gets_a_hint(name, hint):
    from trainer import model

    with pytest.raises(model.ArchitectureError, match=f"did you mean {hint}"):
        model.find(name)


def test_every_application_has_its_size_here():
    """Keras' own default sizes, where they are not 224, as their builders state them."""
    import inspect

    from trainer import model

    for name, size in model.OWN_SIZES.items():
        source = inspect.getsource(sys.modules[getattr(keras.applications, name).__module__])
        assert f"{size}" in source


@pytest.mark.parametrize(
    "name", ["mobilenet_v3", "resnet50", "mobilenet_v2", "densenet", "vgg16", "efficientnet", "xception", "convnext"]
)
def test_preprocessing_as_a_layer_equals_keras_own(name):
    from trainer import model

    preprocess = getattr(keras.applications, name).preprocess_input
    image = np.random.default_rng(0).uniform(0, 255, (2, 5, 4, 3)).astype(np.float32)
    found = np.asarray(model.preprocessing_layer(preprocess)(image))
    assert found == pytest.approx(preprocess(image.copy()), abs=1e-4)


def test_weights_that_cannot_be_fetched_are_one_clear_error(monkeypatch, tmp_path, capsys):
    from keras.src.utils import file_utils

    from trainer import model

    def offline(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(file_utils, "urlretrieve", offline)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(
        model.DownloadError, match=r"MobileNetV3Small could not be fetched .*no route to host"
    ) as caught:
        model.find("mobilenetv3small").backbone(224)
    assert "efficientnet_lite0" in str(caught.value)
    assert capsys.readouterr().out == ""
    assert "\n" not in str(caught.value)
    with pytest.raises(model.ArchitectureError, match="at least 32x32"):
        model.find("mobilenetv3small").backbone(16)


def test_an_application_is_pooled_and_has_its_preprocessing_inside(monkeypatch):
    from trainer import model

    built = keras.applications.MobileNetV2
    monkeypatch.setattr(keras.applications, "MobileNetV2", lambda **k: built(**(k | {"weights": None, "alpha": 0.35})))
    monkeypatch.setattr(keras.applications.MobileNetV2, "__module__", built.__module__)
    backbone = model.find("mobilenetv2").backbone(32)
    assert backbone.output_shape == (None, 1280)
    assert type(backbone.layers[1]).__name__ == "Conv2D"
    assert not backbone.layers[1].trainable


def test_golden_images_are_drawn_and_their_scores_replay(tmp_path):
    from trainer import bundle, export, model

    network = model.tutorial_cnn(32, 2)
    staged = tmp_path / "staged"
    export.stage(network, staged, 2, None)
    sizes = {path.name: (images.decode(path).width, images.decode(path).height) for path in staged.glob("golden/*.png")}
    assert len(sizes) == 4
    assert any(width != height and min(width, height) > 32 for width, height in sizes.values())
    assert set(json.loads((staged / "golden" / "expected.json").read_text())["scores"]) == set(sizes)
    assert bundle.publish(tmp_path / "models", staged, bundles.draft(architecture="tutorial_cnn")) == 1


def test_the_default_model_at_float16_predicts_what_keras_does(lite0):
    from trainer import export, litert

    output = keras.layers.Dense(1, "sigmoid")
    network = keras.Model(lite0.input, output(lite0.output))
    photo = picture()
    predict = litert.Predictor(export.to_litert(network, export.Precision()), 224, 2)
    assert predict(photo[0].astype(np.uint8))[1] == pytest.approx(network(photo).numpy()[0, 0], abs=5e-3)
