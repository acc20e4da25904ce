"""The console scripts ``blockio``, ``blockio-img`` and ``blockio-io``: what comes before anything is loaded.

While modules are loaded there is nothing to be cleaned up, so SIGINT ends the process at once, without the traceback
that Python would print; when a tool runs, it cancels what the tool does (``blockio.cli.main``). A module by itself,
so that it happens before almost anything is loaded.
"""

import signal

__all__ = ["command", "command_img", "command_io"]


def command() -> None:
    """The console script ``blockio``."""
    _die_of_interrupts()
    from blockio.cli.main import command

    command()


def command_img() -> None:
    """The console script ``blockio-img``."""
    _die_of_interrupts()
    from blockio.cli.main import command_img

    command_img()


def command_io() -> None:
    """The console script ``blockio-io``."""
    _die_of_interrupts()
    from blockio.cli.main import command_io

    command_io()


def _die_of_interrupts() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored: ``command &``
        signal.signal(signal.SIGINT, signal.SIG_DFL)
