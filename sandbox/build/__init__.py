"""Images that are made here: from Dockerfiles, in Python, of running containers, of Debian packages.

Nothing is imported before it is used: the helper process that reads and writes trees lives in here too.
"""
