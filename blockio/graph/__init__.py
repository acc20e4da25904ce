"""Nodes and edges: how drivers are put together, changed and taken apart while they are in use.

Import from the modules here; ``docs/architecture.md`` says which does what.
"""
