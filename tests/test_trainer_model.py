import json
import sys
import urllib.error

import numpy as np
import pytest

import bundles
import drawings
from trainer import images

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
    from trainer import export

    face = np.asarray(export.draw_golden(224)["happy.png"], np.float32)[np.newaxis]
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


def separable(classes, count=60, width=8):
    """Features that tell the classes apart; one never varies, one hardly."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    values = rng.normal(size=(count, width)) + 3 * np.eye(width)[labels]
    values[:, -1] = 0.5
    values[:, -2] = 1e-4 * rng.integers(0, 2, count)
    return values.astype(np.float16), labels.astype(np.int32)


def trained_head(classes):
    from trainer import model

    features, labels = separable(classes)
    head = model.head(features, classes)
    model.compile_for(head, classes, 1e-2)
    head.fit(features.astype(np.float32), labels, epochs=20, verbose=0)
    return head, features, labels


@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_learns_and_gives_probabilities(classes):
    head, features, labels = trained_head(classes)
    scores = head.predict(features.astype(np.float32), verbose=0)
    predicted = (scores[:, 0] >= 0.5).astype(int) if classes == 2 else scores.argmax(axis=1)
    assert scores.shape == (60, 1 if classes == 2 else classes)
    assert (predicted == labels).mean() > 0.9


def test_a_feature_that_hardly_varied_cannot_outvote_the_others():
    head, features, _ = trained_head(2)
    unseen = features.astype(np.float32)
    expected = head.predict(unseen, verbose=0)
    unseen[:, -2] += 0.5
    unseen[:, -1] += 0.5
    assert np.abs(head.predict(unseen, verbose=0) - expected).max() < 0.3


def test_the_heads_penalty_is_that_of_logistic_regression():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from trainer import model

    features, labels = separable(2, count=200)
    features = features[:, :6]
    head = model.head(features, 2)
    head.get_layer("dropout").rate = 0.0
    model.compile_for(head, 2, 3e-3)
    head.fit(features.astype(np.float32), labels, epochs=150, batch_size=200, verbose=0)
    standard = StandardScaler().fit_transform(features.astype(np.float64))
    expected = LogisticRegression(C=model.LOGISTIC_C, tol=1e-8).fit(standard, labels)
    assert head.get_layer("probabilities").get_weights()[0][:, 0] == pytest.approx(expected.coef_[0], abs=3e-3)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_assembled_model_saves_loads_and_serves_the_same(classes, tmp_path):
    """Backbone + head, model.keras read with safe_mode, and model.tflite agree, also on features that hardly vary."""
    from trainer import export, litert, model

    head, _, _ = trained_head(classes)
    image = keras.Input((32, 32, 3))
    small = keras.layers.Rescaling(1 / 255)(image)
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3, strides=4)(small))
    backbone = keras.Model(image, pooled, name="stand_in")
    network = model.assemble(backbone, head, classes)
    photo = picture(32)
    expected = head(backbone(photo), training=False).numpy()
    assert 0.01 < expected.max() < 0.99, "a saturated score would hide mistakes"
    assert network(photo, training=False).numpy() == pytest.approx(expected, abs=1e-5)

    export.stage(network, tmp_path / "staged", classes, None)
    again = keras.saving.load_model(tmp_path / "staged" / "model.keras", safe_mode=True)
    assert again(photo, training=False).numpy() == pytest.approx(expected, abs=1e-5)

    predict = litert.Predictor((tmp_path / "staged" / "model.tflite").read_bytes(), 32, classes)
    served = predict(photo[0].astype(np.uint8))
    assert served.shape == (classes,)
    assert served.sum() == pytest.approx(1.0, abs=1e-5)
    assert served[1:] == pytest.approx(expected[0] if classes == 2 else expected[0, 1:], abs=5e-3)


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
    predict = litert.Predictor(export.to_litert(network), 224, 2)
    assert predict(photo[0].astype(np.uint8))[1] == pytest.approx(network(photo).numpy()[0, 0], abs=5e-3)
