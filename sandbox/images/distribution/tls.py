"""TLS to registries: whose certificates count."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.images.errors import RegistryError

if TYPE_CHECKING:
    import ssl

__all__ = ["make_context"]


def make_context(host: str, *, verify: bool) -> ssl.SSLContext:
    """System certificates, and the host's own directory: containers-certs.d(5), also where docker has it.

    :raises RegistryError: a certificate there is none
    """
    import ssl

    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    for place in (Path(config) / "containers/certs.d", Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d")):
        directory = place / host
        if not os.path.isdir(directory):
            continue
        for file in sorted(directory.iterdir()):
            try:
                if file.suffix == ".crt":
                    context.load_verify_locations(file)
                elif file.suffix == ".cert":
                    context.load_cert_chain(file, file.with_suffix(".key"))
            except (ssl.SSLError, OSError) as error:
                raise RegistryError(
                    operation="read certificate", path=file, registry=host, cause=str(error),
                    hint="see containers-certs.d(5) for what belongs there",
                ) from error  # fmt: skip
        break
    return context
