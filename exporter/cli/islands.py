"""``--find-islands``: which nodes have to stay in float32, on the screen and as configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from exporter.cli.screen import Screen

if TYPE_CHECKING:
    from exporter.islands import FoundIslands
    from exporter.workspace import Workspace

__all__ = ["find_and_show", "islands_options"]

Command = TypeVar("Command", bound=Callable[..., Any])

_FIND = "Search for the nodes that have to stay in float32, so that {of} in half precision passes parity; print them as configuration."
_BUILDS = "With --find-islands: most candidates that are made and judged; default: {default}."
_SHOWN = 12
"""Nodes that are listed though nothing is known of them alone."""


def islands_options(of: str, *, default: int) -> Callable[[Command], Command]:
    """Add ``--find-islands`` and ``--builds``; ``of`` says whose islands they are, ``default`` how many builds."""

    def add(command: Command) -> Command:
        command = click.option("--builds", type=click.IntRange(min=2), help=_BUILDS.format(default=default))(command)
        return click.option("--find-islands", is_flag=True, help=_FIND.format(of=of))(command)

    return add


def find_and_show(screen: Screen, workspace: Workspace, *, engine: bool, builds: int | None) -> int:
    """Search, print what was found, and return 0 or 3."""
    from exporter.artifacts import Outcome, to_json
    from exporter.cli.verdicts import EXIT_NOT_PASS, show_verdicts
    from exporter.islands import find_islands

    found = find_islands(workspace, engine=engine, builds=builds)
    screen.close()
    screen.show(_lines(found))
    show_verdicts(screen, found.verdicts)
    screen.show(_configuration(found))
    screen.result(to_json(found))
    return 0 if found.outcome is Outcome.PASS else EXIT_NOT_PASS


def _lines(found: FoundIslands) -> list[str]:
    from exporter.artifacts import Outcome

    mark = {Outcome.PASS: "✓", Outcome.FAIL: "✗"}.get(found.outcome, "-")
    share = f"{len(found.islands)} of {found.num_nodes} nodes in {found.precision}"
    if not found.islands:
        said = f"none of {found.num_nodes} nodes in {found.precision} has to stay in float32"
    elif found.outcome is Outcome.PASS:
        said = f"{share} {'has' if len(found.islands) == 1 else 'have'} to stay in float32"
    else:
        said = (
            f"it passes with {share} kept in float32; fewer may do"
            if found.outcome is Outcome.INCONCLUSIVE
            else f"it fails with {share} kept in float32"
        )
    lines = [f"islands {mark} {found.outcome.value} {found.candidate}: {said}   {found.num_builds} build{'' if found.num_builds == 1 else 's'}"]
    shown = [island for index, island in enumerate(found.islands) if island.why or index < _SHOWN]
    for island in shown:
        why = f"   without it: {island.why.partition(';')[0]}" if island.why else ""
        lines.append(f"        {island.node} ({island.op}{f' of {island.module}' if island.module else ''}){why}")
    if len(found.islands) > len(shown):
        lines.append(f"        and {len(found.islands) - len(shown)} more")
    lines += [f"        seen: {text}" for text in found.verified]
    lines += [f"        not seen: {text}" for text in found.not_verified]
    return lines


def _configuration(found: FoundIslands) -> list[str]:
    if not found.islands:
        return []
    return ["", "[onnx]", f'precision = "{found.precision}"', f"float32 = {json.dumps(list(found.float32), ensure_ascii=False)}"]
