"""systemd over D-Bus: buses, managers, transient units and their properties. Knows nothing of containers.

This package imports nothing of pytest-sandbox, and no D-Bus library until a connection is made.
"""
