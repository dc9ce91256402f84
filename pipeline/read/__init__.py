"""Any input format to records and dead letters, streamed in bounded memory."""

from pipeline.read.source import read_split

__all__ = ["read_split"]
