"""What a process that only reads videos sets for itself."""

import ctypes
import multiprocessing
import os
import threading

import cv2

# More than the frames and clips of a video take at usual sizes.
KEPT_BYTES = 2**27
# Larger pieces go back nevertheless; it is the most that the library allows.
_LARGEST_PIECE = 2**25

# Names of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def set_up() -> None:
    """Makes this process read fast, at the expense of what else it might do."""
    # There are as many such processes as cores: threads would only contend.
    cv2.setNumThreads(0)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Lets this process use freed memory again, KEPT_BYTES of it, and not give it back.

    Frames and clips are megabytes that come and go. The GNU C library returns such to
    the system as soon as they are freed, and the system then has to map and clear every
    page anew. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_PIECE)


def exit_with_parent() -> None:
    """Ends this process, from a thread of its own, when the one that started it ends.

    For processes that `multiprocessing` started.
    """

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
