"""docs/cli.md is the program's own help."""

from __future__ import annotations

import click

from exporter.cli.app import cli
from tests.docs.cli_reference import cli_page
from tests.docs.markdown import ROOT

PAGE = ROOT / "docs" / "cli.md"


def test_page_is_the_help(update: bool) -> None:
    """The page equals what the commands say of themselves; ``--update`` writes it."""
    text = cli_page(cli)
    if update:
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text, "write it anew: tox -e docs -- --update"


def test_every_option_says_what_it_does() -> None:
    """Each visible option of each command has a help text, and stands in the page."""
    page = cli_page(cli)
    for name, command in ((name, cli.get_command(click.Context(cli), name)) for name in cli.list_commands(click.Context(cli))):
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, f"{name} {parameter.opts} says nothing of itself"
                assert all(option in page for option in parameter.opts), f"{name} {parameter.opts}"
