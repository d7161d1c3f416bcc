"""Declare a pod, start it, talk to it: the one public door of the library.

Every name is looked up where it lives on first use (PEP 562), so that ``import sandbox`` itself costs next to
nothing and a program pays only for what it touches. Nothing here knows pytest; that is :mod:`pytest_sandbox`.
"""

from __future__ import annotations

# Type checkers take this name for true. Importing it from `typing` would cost more than all the rest here.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from sandbox import oci as oci, services as services
    from sandbox._version import __version__ as __version__
    from sandbox.build.errors import BuildError as BuildError, DockerfileError as DockerfileError
    from sandbox.build.fluent import Image as Image
    from sandbox.build.prepared import Prepared as Prepared, prepare as prepare
    from sandbox.errors import (
        CalledProcessError as CalledProcessError,
        CommandNotExecutable as CommandNotExecutable,
        CommandNotFound as CommandNotFound,
        ContainerExited as ContainerExited,
        ImageError as ImageError,
        ImageNotFound as ImageNotFound,
        ImageVerificationError as ImageVerificationError,
        LimitNotEnforceable as LimitNotEnforceable,
        ModelError as ModelError,
        NamespaceUnavailable as NamespaceUnavailable,
        PodStateError as PodStateError,
        ReadinessTimeout as ReadinessTimeout,
        SandboxError as SandboxError,
        SetupError as SetupError,
        ShimDied as ShimDied,
        ShimError as ShimError,
        SpecError as SpecError,
        TimeoutExpired as TimeoutExpired,
        UnsupportedFeature as UnsupportedFeature,
        UserNotFound as UserNotFound,
    )
    from sandbox.models import (
        Container as Container,
        IoLimit as IoLimit,
        Mount as Mount,
        Percent as Percent,
        Pod as Pod,
        Resources as Resources,
        Security as Security,
        Volume as Volume,
        as_pod as as_pod,
        read_env_file as read_env_file,
    )
    from sandbox.pods import (
        DEVNULL as DEVNULL,
        PIPE as PIPE,
        STDOUT as STDOUT,
        LogRecord as LogRecord,
        Options as Options,
        Process as Process,
        Result as Result,
        RunningContainer as RunningContainer,
        RunningPod as RunningPod,
        Stats as Stats,
        Usage as Usage,
        run as run,
        start as start,
    )
    from sandbox.probes import (
        All as All,
        Any as Any,
        Exec as Exec,
        Healthcheck as Healthcheck,
        Http as Http,
        Log as Log,
        Notify as Notify,
        Port as Port,
    )
    from sandbox.services.ending import ServiceResult as ServiceResult
    from sandbox.services.running import RunningService as RunningService
    from sandbox.services.start import service as service, start_service as start_service

# Where each public name lives. tests/unit/test_house.py holds this table, the block above and the modules
# themselves together.
_NAMES_OF = {
    "_version": ("__version__",),
    "build.errors": ("BuildError", "DockerfileError"),
    "build.fluent": ("Image",),
    "build.prepared": ("Prepared", "prepare"),
    "errors": (
        "CalledProcessError", "CommandNotExecutable", "CommandNotFound", "ContainerExited", "ImageError",
        "ImageNotFound", "ImageVerificationError", "LimitNotEnforceable", "ModelError",
        "NamespaceUnavailable", "PodStateError", "ReadinessTimeout", "SandboxError", "SetupError", "ShimDied",
        "ShimError", "SpecError", "TimeoutExpired", "UnsupportedFeature", "UserNotFound",
    ),
    "models": (
        "Container", "IoLimit", "Mount", "Percent", "Pod", "Resources", "Security", "Volume", "as_pod",
        "read_env_file",
    ),
    "pods": (
        "DEVNULL", "PIPE", "STDOUT", "LogRecord", "Options", "Process", "Result", "RunningContainer", "RunningPod",
        "Stats", "Usage", "run", "start",
    ),
    "probes": ("All", "Any", "Exec", "Healthcheck", "Http", "Log", "Notify", "Port"),
    "services.ending": ("ServiceResult",),
    "services.running": ("RunningService",),
    "services.start": ("service", "start_service"),
}  # fmt: skip
_HOME = {name: module for module, names in _NAMES_OF.items() for name in names}
_SUBMODULES = ("oci", "services")

__all__ = [*_HOME, *_SUBMODULES]  # noqa: PLE0604 - they are strings; the table above is the one list


if not TYPE_CHECKING:  # a type checker would take it for a module where every name exists

    def __getattr__(name: str) -> object:
        """Fetch a public name from its module, and keep it here for the next time."""
        from importlib import import_module

        if name in _SUBMODULES:
            return import_module(f"sandbox.{name}")  # which also sets it as our attribute
        if name not in _HOME:
            raise AttributeError(f"module 'sandbox' has no attribute {name!r}", name=name, obj=None)
        value = getattr(import_module(f"sandbox.{_HOME[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """List the public names too, before they are first used."""
        return sorted({*globals(), *__all__})
