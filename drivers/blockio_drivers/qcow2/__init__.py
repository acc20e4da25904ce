"""QEMU's qcow2 format, versions 2 and 3.

Pure codecs: ``header``, ``extensions``, ``tables``, ``refcounts``, ``areas``, ``compress``. What an image may be told:
``options``. Whole images: ``create``, ``check``, ``repair``, ``info``. The rest is the open image; ``driver`` is its
door.
"""
