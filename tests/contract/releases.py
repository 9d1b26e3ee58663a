"""The releases of TensorRT that the contract is checked against. A new release is one line in ``RELEASES``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """A release and where its bindings are: the package on the registry, and the first and last CPython 3 that it is built for.

    Attributes:
        is_large: the package holds all of TensorRT, half a gigabyte: it is fetched only where ``EXPORTER_CONTRACT_LARGE=1`` (`tox -e tensorrt-8`).
    """

    version: str
    package: str
    first_python: int
    last_python: int
    is_large: bool = False

    @property
    def number(self) -> tuple[int, int]:
        """Return major and minor version."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)

    def __str__(self) -> str:
        return self.version


RELEASES = (
    Release("8.5.3", "tensorrt==8.5.3.1", 6, 10, is_large=True),
    Release("8.6.1", "tensorrt-bindings==8.6.1", 6, 11),
    Release("10.0.1", "tensorrt-cu12-bindings==10.0.1", 8, 12),
    Release("10.3.0", "tensorrt-cu12-bindings==10.3.0", 8, 12),
    Release("10.8.0.43", "tensorrt-cu12-bindings==10.8.0.43", 8, 13),
    Release("10.12.0.36", "tensorrt-cu12-bindings==10.12.0.36", 8, 13),
    Release("10.16.1.11", "tensorrt-cu12-bindings==10.16.1.11", 8, 13),
    Release("11.0.0.114", "tensorrt-cu12-bindings==11.0.0.114", 8, 13),
    Release("11.4.0.106", "tensorrt-cu12-bindings==11.4.0.106", 8, 13),
)
