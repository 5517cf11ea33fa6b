"""Errors the user can fix; `main.py` and the commands report them without a traceback.

All of them derive from `UserError`. Anything else that reaches the top is a defect of
this library and keeps its traceback.
"""


class UserError(Exception):
    """An error the user can fix; the message says what is wrong and what to do.

    Attributes:
        exit_code: of the program that it ends.
    """

    exit_code = 1


class ConfigError(UserError, ValueError):
    """Config fields that fit neither each other nor the devices, or do not exist."""


class RecordError(UserError, ValueError):
    """A list or data set that cannot be read; the message names the line."""


class LineError(RecordError):
    """A line that cannot be parsed or written; the message says what is expected."""


class VideoError(UserError, ValueError):
    """A video that cannot be read; the message names the file and the reason."""


class NoReadableVideoError(UserError, RuntimeError):
    """None of many videos in a row could be read; the message names some of them."""


class TooManyBadVideosError(UserError, RuntimeError):
    """More videos than allowed could not be read; the message lists them."""


class InputError(UserError, ValueError):
    """An array of another shape, dtype or range than a model takes."""


class WorkerError(UserError, RuntimeError):
    """A process that reads videos has died; the message says how."""


class PretrainedError(UserError, ValueError):
    """A model that cannot be read, edited or written; the message says why."""


class CheckpointError(UserError, ValueError):
    """A checkpoint that is missing or does not fit the model it is restored into."""


class CompleteRunError(UserError, ValueError):
    """A complete run was started with other settings, which have no effect."""

    exit_code = 2


class ClusterError(UserError, RuntimeError):
    """The processes of a run could not be joined into one cluster, or they disagree."""


class NonFiniteLossError(UserError, RuntimeError):
    """The loss or its gradient is not finite; the message says where to look."""


class TopologyError(UserError, ValueError):
    """Unknown TPU slice, or libtpu is not installed."""


class CompilerError(UserError, ValueError):
    """The TPU compiler refused a program; the message says why and what to try."""
