"""What can go wrong in a build, beside what can be wrong with images and containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.errors import ImageError

if TYPE_CHECKING:
    from typing import Unpack

    from sandbox.errors import Facts

__all__ = ["BuildError", "DockerfileError"]


class BuildError(ImageError):
    """A step of a build failed.

    :ivar line: where the step begins, ``"./Dockerfile:7"``; ``None`` where it came from no file
    :ivar step: the step as it was written
    """

    facts = (*ImageError.facts, "line", "step")

    def __init__(
        self, detail: str | None = None, *, line: str | None = None, step: str | None = None, **facts: Unpack[Facts]
    ) -> None:  # fmt: skip
        super().__init__(detail, **facts)
        self.line = line
        self.step = step

    def _reason(self) -> str:
        return ": ".join(part for part in (self.line, super()._reason()) if part)


class DockerfileError(BuildError):
    """A Dockerfile is not well-formed; ``line`` says where."""
