"""Dirty bitmaps: which parts of a disk were written since somebody last looked. Pure data: no node, no I/O.

``bits`` is the set of bits, ``dirty`` one bitmap with its granularity and its rules, ``owner`` the bitmaps of one node.
"""

from blockio.bitmaps.dirty import BitmapUse, DirtyBitmap, DirtyBitmapInfo
from blockio.bitmaps.owner import DirtyBitmaps

__all__ = ["BitmapUse", "DirtyBitmap", "DirtyBitmapInfo", "DirtyBitmaps"]
