"""An index that stays small: 64-bit numbers and where what they stand for lies."""

from array import array

FIRST_SIZE = 1024  # a power of two, as all sizes are


class KeyPlaces:
    """Places in [0, 2^62) by key in [0, 2^64), each with a mark that is set once: 24 to 48 bytes a key, where a dict of
    ints and a set take 224. Open addressing with linear probing; keys are hashes already, so their low bits are where
    the search begins."""

    def __init__(self) -> None:
        self.count = 0
        self.keys = array("Q", bytes(8 * FIRST_SIZE))
        self.values = array("Q", bytes(8 * FIRST_SIZE))  # 0: free; else 2 * (place + 1), and 1 more where marked

    def slot(self, key: int) -> int:
        """The key's, or the free one where it would be."""
        keys, values, last = self.keys, self.values, len(self.keys) - 1
        slot = key & last
        while values[slot] and keys[slot] != key:
            slot = (slot + 1) & last
        return slot

    def get(self, key: int) -> int | None:
        value = self.values[self.slot(key)]
        return (value >> 1) - 1 if value else None

    def put(self, key: int, place: int) -> None:
        """A key that is marked stays so."""
        slot = self.slot(key)
        if not self.values[slot]:
            self.count += 1
        self.keys[slot], self.values[slot] = key, 2 * (place + 1) | self.values[slot] & 1
        if 3 * self.count > 2 * len(self.keys):
            self.grow()

    def grow(self) -> None:
        old = zip(self.keys, self.values, strict=True)
        self.keys, self.values = array("Q", bytes(16 * len(self.keys))), array("Q", bytes(16 * len(self.values)))
        for key, value in old:
            if value:
                slot = self.slot(key)
                self.keys[slot], self.values[slot] = key, value

    def mark(self, key: int) -> bool:
        """Mark a key that is there; whether this was the first time."""
        slot = self.slot(key)
        first = not self.values[slot] & 1
        self.values[slot] |= 1
        return first

    def places(self) -> list[int]:
        return sorted((value >> 1) - 1 for value in self.values if value)
