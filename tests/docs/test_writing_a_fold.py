"""The page on writing a fold quotes code that is there."""

from __future__ import annotations

from tests.docs.markdown import ROOT


def test_example_is_the_file() -> None:
    """The worked example is the whole rewrite, word for word."""
    code = (ROOT / "exporter/graph/rewrites/copied_producers.py").read_text()
    assert f"```python\n{code}```" in (ROOT / "docs/writing-a-fold.md").read_text()
