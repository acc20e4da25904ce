"""The parts of the ``file`` and ``host_device`` drivers: how POSIX files are opened, locked, measured and shaped."""
