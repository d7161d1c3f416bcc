"""The kernel as a header file: system calls, mounts, namespaces, capabilities, cgroup files.

Nothing here knows what a container is, and nothing here imports more than the standard library: the shim, which
must start fast and stay small, is built on these modules alone.
"""
