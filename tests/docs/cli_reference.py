"""The page docs/cli.md, made from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator

import click

__all__ = ["cli_page"]

HEAD = """# Command line

Made from the program's own help by `tox -e docs -- --update`; a test keeps both equal.

Exit statuses, the same for every command:

| status | meaning |
|---|---|
| 0 | pass |
| 2 | usage: an option or a setting is wrong |
| 3 | a verdict is FAIL, or a required one is INCONCLUSIVE |
| 4 | the input was refused |
| 5 | the model does something that is not supported |
| 6 | this machine lacks something that was required |
| 70 | a bug of the program itself |
| 130, 143 | interrupted, terminated |

1 is never used on purpose: it is what an interpreter that broke says.
"""


def _walk(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[tuple[str, click.Context]]:
    settings = {"max_content_width": 110, **command.context_settings, "terminal_width": 110, "color": False}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    yield context.command_path, context
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                yield from _walk(found, child, context)


def cli_page(main: click.Command) -> str:
    """Return the page for the command tree below ``main``."""
    parts = [HEAD]
    for name, context in _walk(main, "exporter"):
        parts.append(f"## `{name}`\n\n```text\n{context.command.get_help(context).rstrip()}\n```\n")
    return "\n".join(parts)
