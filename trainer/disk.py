"""A disk that fills, or fails, while Keras, h5py and TensorFlow write: one line instead of their many ways to say so.

Invariant: only errors of writing are translated, to FailureError with the folder's name; every other error passes.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from trainer.errors import FailureError, InputError
from trainer.progress import printable

FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what is raised when `folder` cannot be written any more into a FailureError of one line."""
    try:
        yield
    except (InputError, FailureError):
        raise
    except Exception as error:
        if "DecodeImage" in str(error):  # TensorFlow names the kernel, not the file
            raise FailureError(
                f"{printable(folder.parent / 'prepared')}: a prepared copy of a photo is damaged: delete that folder: "
                "it is made anew"
            ) from None
        reason = fault(error)
        if reason is None:
            raise
        raise FailureError(
            f"{printable(folder)}: {reason}: nothing was published; make room there, then go on: `fit` with --resume, "
            "`retrain` as it is"
        ) from None


def fault(error: BaseException) -> str | None:
    """Return what the disk said, where it is to blame.

    h5py raises OSError, without a name, or RuntimeError on closing; TensorFlow ResourceExhaustedError, which is also
    what it says when memory runs out: only the kernel's own words tell.
    """
    if isinstance(error, OSError) and error.errno in FAULTS:
        return os.strerror(error.errno)
    if isinstance(error, OSError) and error.errno is not None:
        return None
    return next((os.strerror(code) for code in FAULTS if os.strerror(code) in str(error)), None)
