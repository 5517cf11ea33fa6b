"""Notices at once that Orbax cannot save a checkpoint.

Orbax saves in several threads. It logs the error of a thread with its traceback, and
raises it when all threads have ended. Those that wait for a folder that could not be
created do so for 20 minutes.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any


class SaveErrors(logging.Filter):
    """Keeps the first error that Orbax logs; drops the tracebacks from the log.

    Attributes:
        first: the error; None so far.
    """

    def __init__(self):
        """Hears nothing before the first save."""
        super().__init__()
        self.first: BaseException | None = None
        self._logger = logging.getLogger("absl")
        self._report: Callable[[Any], Any] | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether to log a record."""
        error = record.exc_info and record.exc_info[1]
        if error is None or record.levelno < logging.ERROR:
            return True
        self.first = self.first or error
        return False

    @contextlib.contextmanager
    def of_save(self) -> Iterator[None]:
        """Listens, until `close`; keeps an error that the body raises, too."""
        if self._report is None:
            # One that was not closed, as its save has failed, would take the errors.
            for other in self._logger.filters[:]:
                if isinstance(other, SaveErrors):
                    self._logger.removeFilter(other)
            self._logger.addFilter(self)
            self._report = report = sys.unraisablehook
            sys.unraisablehook = lambda unraisable: report_others(report, unraisable)
        try:
            yield
        except BaseException as error:
            self.first = self.first or error
            raise

    def close(self) -> None:
        """Stops listening."""
        self._logger.removeFilter(self)
        if self._report is not None:
            sys.unraisablehook, self._report = self._report, None


def report_others(report: Callable[[Any], Any], unraisable: Any) -> None:
    """Drops the tracebacks of what Orbax abandons after another operation failed.

    Args:
        report: the `sys.unraisablehook` for all other errors.
        unraisable: its argument.
    """
    code = getattr(unraisable.object, "cr_code", None)
    is_abandoned = code is not None and "orbax" in code.co_filename
    if not is_abandoned and str(unraisable.exc_value) != "Event loop is closed":
        report(unraisable)


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Returns False for what asyncio logs of Orbax's abandoned tasks, any time later.

    Args:
        record: of the logger "asyncio", whose filter this is.
    """
    message = record.getMessage()
    return not (message.startswith("Task exception was never") and "orbax" in message)
