"""The OCI image specification, version 1.1: configuration, manifest, index, descriptor.

Docker's variants of these documents load as well: they differ in media types and a few members of ``config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from sandbox.oci.converter import member


@attrs.frozen(kw_only=True)
class Platform:
    """What an image runs on (image-index.md).

    >>> Platform(architecture="arm64", os="linux", variant="v8").architecture
    'arm64'
    """

    #: In Go's words: ``amd64``, ``arm64``, ``riscv64``.
    architecture: str
    #: ``linux``.
    os: str
    os_version: str | None = attrs.field(default=None, metadata=member("os.version"))
    os_features: tuple[str, ...] | None = attrs.field(default=None, metadata=member("os.features"))
    variant: str | None = None
    features: tuple[str, ...] | None = None
    extra: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Descriptor:
    """What a blob is and how to know it (descriptor.md).

    >>> Descriptor(media_type="application/vnd.oci.image.config.v1+json", digest="sha256:" + 64 * "0", size=2).size
    2
    """

    media_type: str
    #: ``algorithm:hex``.
    digest: str
    #: Bytes.
    size: int
    urls: tuple[str, ...] | None = None
    annotations: Mapping[str, str] | None = None
    #: The blob itself in base64, if it is small.
    data: str | None = None
    platform: Platform | None = None
    artifact_type: str | None = None
    extra: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Manifest:
    """One image: its configuration and its layers, lowest first (manifest.md).

    >>> Manifest(schema_version=2, config=Descriptor(media_type="m", digest="sha256:0", size=2), layers=()).layers
    ()
    """

    #: 2; very old writers leave it out.
    schema_version: int | None = None
    media_type: str | None = None
    artifact_type: str | None = None
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    annotations: Mapping[str, str] | None = None
    extra: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Index:
    """Several manifests, usually one per platform (image-index.md).

    >>> Index(schema_version=2, manifests=()).manifests
    ()
    """

    #: 2; very old writers leave it out.
    schema_version: int | None = None
    media_type: str | None = None
    artifact_type: str | None = None
    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    annotations: Mapping[str, str] | None = None
    extra: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Healthcheck:
    """How docker finds out whether a container works; an extension that images in the wild carry.

    >>> Healthcheck(test=("CMD", "true"), interval=30 * 10**9).retries is None
    True
    """

    #: ``("CMD", arg, …)``, ``("CMD-SHELL", line)`` or ``("NONE",)``.
    test: tuple[str, ...] | None = attrs.field(default=None, metadata=member("Test"))
    #: Nanoseconds, like the other times here.
    interval: int | None = attrs.field(default=None, metadata=member("Interval"))
    timeout: int | None = attrs.field(default=None, metadata=member("Timeout"))
    start_period: int | None = attrs.field(default=None, metadata=member("StartPeriod"))
    start_interval: int | None = attrs.field(default=None, metadata=member("StartInterval"))
    retries: int | None = attrs.field(default=None, metadata=member("Retries"))
    extra: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class ExecutionConfig:
    """How containers of an image run unless they say otherwise: the member ``config`` (config.md).

    >>> ExecutionConfig(cmd=("sh",), env=("PATH=/bin",)).cmd
    ('sh',)
    """

    user: str | None = attrs.field(default=None, metadata=member("User"))
    #: ``{"5432/tcp": {}}``.
    exposed_ports: Mapping[str, Any] | None = attrs.field(default=None, metadata=member("ExposedPorts"))
    env: tuple[str, ...] | None = attrs.field(default=None, metadata=member("Env"))
    entrypoint: tuple[str, ...] | None = attrs.field(default=None, metadata=member("Entrypoint"))
    cmd: tuple[str, ...] | None = attrs.field(default=None, metadata=member("Cmd"))
    volumes: Mapping[str, Any] | None = attrs.field(default=None, metadata=member("Volumes"))
    working_dir: str | None = attrs.field(default=None, metadata=member("WorkingDir"))
    labels: Mapping[str, str] | None = attrs.field(default=None, metadata=member("Labels"))
    stop_signal: str | None = attrs.field(default=None, metadata=member("StopSignal"))
    healthcheck: Healthcheck | None = attrs.field(default=None, metadata=member("Healthcheck"))
    extra: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class RootFS:
    """The layers as they are unpacked (config.md)."""

    #: ``layers``.
    type: str
    #: Digests of the uncompressed layers, lowest first.
    diff_ids: tuple[str, ...] = attrs.field(metadata=member("diff_ids"))
    extra: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class History:
    """How one layer came to be (config.md)."""

    created: str | None = None
    created_by: str | None = attrs.field(default=None, metadata=member("created_by"))
    author: str | None = None
    comment: str | None = None
    empty_layer: bool | None = attrs.field(default=None, metadata=member("empty_layer"))
    extra: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class ImageConfig:
    """The configuration of an image (config.md).

    >>> ImageConfig(architecture="amd64", os="linux", rootfs=RootFS(type="layers", diff_ids=())).os
    'linux'
    """

    #: RFC 3339.
    created: str | None = None
    author: str | None = None
    architecture: str
    os: str
    os_version: str | None = attrs.field(default=None, metadata=member("os.version"))
    os_features: tuple[str, ...] | None = attrs.field(default=None, metadata=member("os.features"))
    variant: str | None = None
    config: ExecutionConfig | None = None
    rootfs: RootFS
    history: tuple[History, ...] | None = None
    extra: Mapping[str, Any] = attrs.field(factory=dict)
