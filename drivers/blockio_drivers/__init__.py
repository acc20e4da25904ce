"""The drivers that come with blockio, each found through the entry-point group ``blockio.drivers``."""
