"""Objects behind URLs, read by ranges: HTTP, S3 and Google Cloud Storage, through fsspec.

Nothing here is imported before a URL is opened.
"""

from __future__ import annotations

from exporter.tensors.remote.file import RemoteFile, open_remote

__all__ = ["RemoteFile", "open_remote"]
