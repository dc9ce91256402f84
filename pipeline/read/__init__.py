"""Any input format to records and dead letters, streamed in bounded memory."""

from pipeline.read.seen import Seen
from pipeline.read.source import read_split

__all__ = ["Seen", "read_split"]
