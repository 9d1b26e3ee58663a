"""The releases of TensorRT that the contract is checked against. A new release is one line in ``RELEASES``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """A release and where its bindings are: the package on the registry, and the first and last CPython 3 that it is built for."""

    version: str
    package: str
    first_python: int
    last_python: int

    def __str__(self) -> str:
        return self.version


RELEASES = (
    Release("8.6.1", "tensorrt-bindings==8.6.1", 6, 11),
    Release("10.0.1", "tensorrt-cu12-bindings==10.0.1", 8, 12),
    Release("10.8.0.43", "tensorrt-cu12-bindings==10.8.0.43", 8, 13),
    Release("10.16.1.11", "tensorrt-cu12-bindings==10.16.1.11", 8, 13),
    Release("11.0.0.114", "tensorrt-cu12-bindings==11.0.0.114", 8, 13),
    Release("11.4.0.106", "tensorrt-cu12-bindings==11.4.0.106", 8, 13),
)
