"""LiteRT: a network of a bundle as a function from one image's pixels to class probabilities.

Invariant: one Predictor is one interpreter, used by one Python thread at a time; two give the same scores for the same
pixels, with any number of cores. One interpreter per core costs less CPU than one with many cores (measured), which
answers sooner.
"""

from collections.abc import Sequence

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray


class ModelFormatError(Exception):
    """A model file that LiteRT cannot run, or whose input and output are not a classifier's."""


def interpreter(model: bytes, cores: int = 1) -> Interpreter:
    """Return an interpreter that uses so many cores. Raises ModelFormatError where LiteRT cannot run `model`."""
    try:
        made = Interpreter(model_content=model, num_threads=cores)
        made.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ModelFormatError(f"LiteRT cannot run it: {' '.join(str(error).split())[:200]}") from None
    return made


class Predictor:
    """Predicts one image at a time: uint8 (S, S, 3), RGB, or (S, S, 1), to float32 (C,) probabilities that sum to 1.

    Raises ModelFormatError at creation where `model` is no such classifier of `size` pixels and `classes` classes.
    """

    def __init__(self, model: bytes, size: int, classes: int, channels: int = 3, cores: int = 1) -> None:
        self._interpreter = interpreter(model, cores)
        taken, given = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        _check_shapes([tuple(map(int, t["shape"])) for t in taken], (1, size, size, channels), "input")
        _check_shapes([tuple(map(int, t["shape"])) for t in given], (1, classes), "output")
        if taken[0]["dtype"] not in (np.float32, np.uint8) or given[0]["dtype"] != np.float32:
            raise ModelFormatError(f"it turns {taken[0]['dtype']} into {given[0]['dtype']}, not pixels into float32")
        self._shape = (size, size, channels)
        self._dtype = taken[0]["dtype"]
        self._input, self._output = taken[0]["index"], given[0]["index"]

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the class probabilities of one image; ValueError where `pixels` is not uint8 of its shape."""
        if pixels.shape != self._shape or pixels.dtype != np.uint8:
            raise ValueError(f"expected uint8 pixels {self._shape}, got {pixels.dtype} {pixels.shape}")
        self._interpreter.set_tensor(self._input, pixels[np.newaxis].astype(self._dtype))
        self._interpreter.invoke()
        scores: NDArray[np.float32] = self._interpreter.get_tensor(self._output)[0].astype(np.float32)
        return scores


def _check_shapes(found: Sequence[tuple[int, ...]], expected: tuple[int, ...], what: str) -> None:
    if list(found) != [expected]:
        raise ModelFormatError(f"its {what} is {', '.join(map(str, found))}, not {expected}")
