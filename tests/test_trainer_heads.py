import numpy as np
import pytest

import drawings

pytestmark = [
    pytest.mark.tf,
    # Keras' save reads TensorFlow variables with np.array(), which numpy 2.4 complains about
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
keras = pytest.importorskip("keras")

from trainer import heads  # noqa: E402  after keras


def separable(classes, count=60, width=8):
    """Features that tell the classes apart; one never varies, one hardly."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    values = rng.normal(size=(count, width)) + 3 * np.eye(width)[labels]
    values[:, -1] = 0.5
    values[:, -2] = 1e-4 * rng.integers(0, 2, count)
    return values.astype(np.float16), labels.astype(np.int32)


def trained_head(classes):
    features, labels = separable(classes)
    head = heads.head(features, classes)
    heads.compile_for(head, classes, keras.optimizers.Adam(1e-2))
    head.fit(features.astype(np.float32), heads.targets(labels, classes), epochs=20, verbose=0)
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

    features, labels = separable(2, count=200)
    features = features[:, :6]
    head = heads.head(features, 2)
    head.get_layer("dropout").rate = 0.0
    heads.compile_for(head, 2, keras.optimizers.Adam(3e-3))
    head.fit(features.astype(np.float32), heads.targets(labels, 2), epochs=150, batch_size=200, verbose=0)
    standard = StandardScaler().fit_transform(features.astype(np.float64))
    expected = LogisticRegression(C=heads.LOGISTIC_C, tol=1e-8).fit(standard, labels)
    assert head.get_layer("probabilities").get_weights()[0][:, 0] == pytest.approx(expected.coef_[0], abs=3e-3)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_joined_model_saves_loads_and_serves_the_same(classes, tmp_path):
    """Backbone + head, model.keras read with safe_mode, and model.tflite agree, also on features that hardly vary."""
    from trainer import export, litert

    head, _, _ = trained_head(classes)
    image = keras.Input((32, 32, 3))
    small = keras.layers.Rescaling(1 / 255)(image)
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3, strides=4)(small))
    backbone = keras.Model(image, pooled, name="stand_in")
    network = heads.join(backbone, heads.folded(head), classes)
    photo = np.asarray(drawings.photo("happy", 1, (32, 32)), np.float32)[np.newaxis]
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


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_are_what_the_network_gives(classes):
    head, features, _ = trained_head(classes)
    found = heads.probabilities(features, heads.folded(head))
    expected = head.predict(features.astype(np.float32), verbose=0)
    assert found.shape == (60, classes)
    assert found[:, 1:] == pytest.approx(expected if classes == 2 else expected[:, 1:], abs=1e-4)
    assert found.sum(axis=1) == pytest.approx(1.0, abs=1e-5)


def test_class_weights_let_every_class_count_alike():
    weights = heads.class_weights(np.array([0, 0, 0, 1]), 3)
    assert weights[0] * 3 == pytest.approx(weights[1] * 1)
    assert np.isfinite(weights[2])


@pytest.mark.parametrize("classes", [2, 4])
def test_label_smoothing_is_in_the_loss_and_not_in_cross_entropy(classes):
    image = keras.Input((3,))
    network = keras.Model(image, heads.output(classes)(image))
    heads.compile_for(network, classes, keras.optimizers.SGD(0.0), label_smoothing=0.2)
    labels = np.arange(8) % classes
    network.layers[-1].set_weights(
        [10 * np.eye(3, 1 if classes == 2 else classes), np.zeros(1 if classes == 2 else classes)]
    )
    values = np.eye(3)[labels % 3].astype(np.float32)
    loss, _, cross_entropy = network.evaluate(values, heads.targets(labels, classes), verbose=0)
    scores = np.clip(network.predict(values, verbose=0), 1e-7, 1 - 1e-7)
    of_label = np.where(labels == 1, scores[:, 0], 1 - scores[:, 0]) if classes == 2 else scores[np.arange(8), labels]
    assert cross_entropy == pytest.approx(-np.log(of_label).mean(), rel=1e-3)
    assert loss != pytest.approx(cross_entropy, rel=1e-2)


def test_what_is_fine_tuned_starts_from_the_head_and_freezes_batch_normalisation():
    from trainer import model
    from trainer.features import Parts

    backbone = model.find("efficientnet_lite0").backbone(64)
    parts = Parts.of(backbone, "block14_add")
    kernel = np.random.default_rng(0).normal(size=(1280, 1)).astype(np.float32) / 100
    tuned = heads.tunable(parts.upper, (kernel, np.zeros(1, np.float32)), 2)
    photo = np.asarray(drawings.photo("sad", 1, (64, 64)), np.float32)[np.newaxis]
    maps = parts.lower(photo, training=False)
    joined = heads.join(backbone, (kernel, np.zeros(1, np.float32)), 2)
    expected = joined(photo, training=False).numpy()
    assert tuned(maps, training=False).numpy() == pytest.approx(expected, abs=1e-5)

    statistics = [w.numpy() for w in tuned.non_trainable_weights if "moving" in w.path]
    heads.compile_for(tuned, 2, heads.fine_tuning_optimizer(1e-3, 20))
    tuned.fit(np.repeat(maps, 8, 0), np.ones((8, 1)), epochs=20, verbose=0)
    assert all(np.array_equal(a, w.numpy()) for a, w in zip(
        statistics, [w for w in tuned.non_trainable_weights if "moving" in w.path], strict=True))  # fmt: skip
    last = tuned.get_layer("probabilities").get_weights()
    served = heads.join(backbone, tuple(last), 2)(photo, training=False).numpy()
    assert served == pytest.approx(tuned(maps, training=False).numpy(), abs=1e-5)
    assert served[0, 0] > expected[0, 0] + 0.05, "the whole network has learned, since its layers are shared"


def test_the_learning_rate_warms_up_and_falls_to_nothing():
    rate = heads.fine_tuning_optimizer(1e-3, 100)._learning_rate
    values = [float(rate(step)) for step in range(101)]
    assert max(values) == pytest.approx(1e-3)
    assert values.index(max(values)) == 10
    assert values[0] < 1e-4
    assert values[-1] == pytest.approx(0.0, abs=1e-9)
    assert heads.fine_tuning_optimizer(1e-3, 1) is not None
