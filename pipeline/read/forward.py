"""Reading forward through chunks that may end too early: so many bytes, or a line."""

from collections.abc import Iterator

from pipeline.read.streams import DamagedStream


class Forward:
    """Bytes in order, in bounded memory. Damage counts as the end, and is told by ``damage``."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.offset = 0
        """Bytes taken so far."""
        self.damage: str | None = None
        self._chunks = chunks
        self._held = b""
        self._at = 0

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer only at the end."""
        parts = []
        while size and self._more():
            part = self._held[self._at : self._at + size]
            parts.append(part)
            self._advance(len(part))
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def skip(self, size: int) -> int:
        """Pass over ``size`` bytes; returns how many there were."""
        left = size
        while left and self._more():
            step = min(left, len(self._held) - self._at)
            self._advance(step)
            left -= step
        return size - left

    def line(self, longest: int) -> bytes:
        """The next line with its newline; cut at ``longest`` bytes, or at the end."""
        parts: list[bytes] = []
        while longest and self._more():
            newline = self._held.find(b"\n", self._at, self._at + longest)
            stop = self._at + longest if newline < 0 else newline + 1
            part = self._held[self._at : stop]
            parts.append(part)
            self._advance(len(part))
            longest -= len(part)
            if newline >= 0:
                break
        return b"".join(parts)

    def put_back(self, data: bytes) -> None:
        """Bytes that were just read, to be read again."""
        self._held, self._at = data + self._held[self._at :], 0
        self.offset -= len(data)

    def _advance(self, size: int) -> None:
        self._at += size
        self.offset += size

    def _more(self) -> bool:
        while self._at >= len(self._held):
            try:
                self._held, self._at = next(self._chunks), 0
            except StopIteration:
                return False
            except DamagedStream as damage:
                self.damage = str(damage)
                self._chunks = iter(())
                return False
        return True
