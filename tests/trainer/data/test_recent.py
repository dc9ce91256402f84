"""What was used most recently is kept, within its memory."""

import numpy as np

from trainer.data.packing.slices import Recent


def test_the_least_recently_used_go_first_and_the_latest_always_stays() -> None:
    made = []

    def make(key: int) -> np.ndarray:
        made.append(key)
        return np.zeros(key, np.uint8)

    recent = Recent(100, make)
    for key in (40, 50, 40, 30, 40, 50, 500, 500, 40):
        assert len(recent[key]) == key
    assert made == [40, 50, 30, 50, 500, 40]
