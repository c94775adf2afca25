"""The training script that a user writes first: `python -m benchmarks.speed.plain_keras PHOTOS`.

Keras's guide to transfer learning with the backbone that Moodbox uses: a head on the frozen network, then its upper
half, too, at a low rate; random flips, turns and zooms in the model; a fifth of the photos held out.
"""

import sys
from pathlib import Path

import keras
from keras import layers

from trainer.efficientnet_lite import efficientnet_lite0
from trainer.model import EFFICIENTNET_LITE0

SIZE, HEAD_EPOCHS, TUNE_EPOCHS = 224, 10, 5


def main() -> None:
    keras.utils.set_random_seed(0)
    train, held_out = keras.utils.image_dataset_from_directory(
        Path(sys.argv[1]), label_mode="binary", image_size=(SIZE, SIZE), validation_split=0.2, subset="both", seed=0
    )
    train, held_out = train.prefetch(2), held_out.prefetch(2)
    backbone = efficientnet_lite0(SIZE)
    backbone.trainable = False
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.RandomZoom(0.1)(layers.RandomRotation(0.05)(layers.RandomFlip("horizontal")(image)))
    x = layers.Dropout(0.2)(backbone(x, training=False))
    model = keras.Model(image, layers.Dense(1, activation="sigmoid")(x))
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy", metrics=["accuracy"])
    model.fit(train, validation_data=held_out, epochs=HEAD_EPOCHS, verbose=0)
    backbone.trainable = True
    for layer in backbone.layers[: backbone.layers.index(backbone.get_layer(EFFICIENTNET_LITE0.cut)) + 1]:
        layer.trainable = False
    model.compile(keras.optimizers.Adam(1e-5), "binary_crossentropy", metrics=["accuracy"])
    model.fit(train, validation_data=held_out, epochs=TUNE_EPOCHS, verbose=0)
    print(f"accuracy {model.evaluate(held_out, verbose=0)[1]:.3f}")


if __name__ == "__main__":
    main()
