"""Dirty bitmaps: which parts of a disk were written since somebody last looked. Pure data: no node, no I/O.

``bits`` is the set of bits, ``dirty`` one bitmap with its granularity and its rules, ``owner`` the bitmaps of one node,
which loads the others when it gets its first.
"""
