"""How the C library of a reading process keeps memory."""

import ctypes

# Names of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory(num_bytes: int) -> None:
    """Lets this process use freed memory again in place of giving it back.

    Frames and clips are megabytes that come and go. The GNU C library returns such to
    the system as soon as they are freed, and the system then has to map and clear every
    page anew: a tenth to a fifth of the time of reading a clip. Other C libraries are
    left as they are.

    Args:
        num_bytes: how much may be kept.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_TRIM_THRESHOLD, num_bytes)
        mallopt(_M_MMAP_THRESHOLD, num_bytes)
