"""The shim: the process that holds the pods.

A client starts a monitor (:mod:`.monitor`), the monitor starts the shim as process 1 of a process namespace
(:mod:`.server`), and everything that runs in a pod lives below that. Whoever of the three is killed, the kernel takes the
pods along: nothing has to be remembered or undone.
"""
