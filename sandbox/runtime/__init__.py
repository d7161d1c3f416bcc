"""The runtime core: from an OCI spec to a running process.

Three engines understand the same document: the native one (:mod:`.native`), and crun and runc (:mod:`.external`).
Everything here runs in the shim, so only the standard library and :mod:`sandbox.linux` are imported.
"""
