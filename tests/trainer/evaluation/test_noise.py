"""The five noises: what they make of fixed texts, at which rates, and what they never touch."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.evaluation.robustness.noise import NOISES, Noise, noised

TEXT = "The man removes the snow, naïve Straße 雪.".encode()
GOLDEN: dict[Noise, str] = {
    "antspeak": "T H E   M A N   R E M O V E S   T H E   S N O W ,   N A Ï V E   S T R A S S E   雪 .",
    "drop": "he man removs he snow, nïe Straße 雪",
    "random-case": "THe mAn removeS ThE sNoW, NAÏve StrASSE 雪.",
    "repeat": "Thhe  man rremovees the    ssnowwww,,,, naïve  Sttttraßeeee 雪....",
    "upper-case": "THE MAN REMOVES THE SNOW, NAÏVE STRASSE 雪.",
}
LONG = ("abcdefghij" * 4000).encode()


@pytest.mark.parametrize("noise", NOISES)
def test_a_fixed_text_and_seed_give_a_fixed_text(noise: Noise) -> None:
    assert noised(TEXT, noise, seed=0).decode() == GOLDEN[noise]


@pytest.mark.parametrize("noise", ["drop", "random-case", "repeat"])
def test_another_seed_or_another_text_gives_other_draws(noise: Noise) -> None:
    assert noised(LONG, noise, 0) == noised(LONG, noise, 0)
    assert noised(LONG, noise, 0) != noised(LONG, noise, 1)
    assert noised(LONG + b"x", noise, 0)[:20000] != noised(LONG, noise, 0)[:20000]


def test_another_process_with_other_hashes_draws_the_same() -> None:
    code = "from trainer.evaluation.robustness.noise import noised\n"
    code += "print(noised(b'The man removes the snow', 'drop', 5).decode())"
    made = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "77", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
    )
    assert made.stdout.decode().strip() == noised(b"The man removes the snow", "drop", 5).decode()


def test_a_tenth_of_the_characters_is_dropped() -> None:
    assert len(noised(LONG, "drop")) / len(LONG) == pytest.approx(0.9, abs=0.005)


def test_half_of_the_characters_is_upper_case() -> None:
    changed = noised(LONG, "random-case")
    assert changed.lower() == LONG
    assert sum(map(str.isupper, changed.decode())) / len(LONG) == pytest.approx(0.5, abs=0.01)


def test_a_fifth_of_the_characters_is_written_two_three_or_four_times_equally_often() -> None:
    changed = np.frombuffer(noised(LONG, "repeat"), np.uint8)
    begins = np.flatnonzero(np.diff(changed, prepend=0))  # neighbours differ in LONG
    times = np.diff(begins, append=len(changed))
    assert changed[begins].tobytes() == LONG
    shares = np.bincount(times, minlength=5) / len(LONG)
    assert shares[1:] == pytest.approx([0.8, 0.2 / 3, 0.2 / 3, 0.2 / 3], abs=0.006)
    assert len(shares) == 5


@pytest.mark.parametrize("noise", NOISES)
def test_bytes_that_are_not_utf8_stay(noise: Noise) -> None:
    damaged = b"\xff" * 400 + b"\xc3"
    assert noised(damaged, noise).replace(b" ", b"") == damaged
    assert noised(b"ab\xe9\x9bcd" * 40, noise).count(b"\xe9") == 40


@given(text=st.binary(max_size=30), noise=st.sampled_from(NOISES), seed=st.integers(0, 2**40))
def test_only_an_empty_text_becomes_empty_and_utf8_stays_utf8(text: bytes, noise: Noise, seed: int) -> None:
    changed = noised(text, noise, seed)
    assert bool(changed) == bool(text)
    try:
        text.decode()
    except UnicodeDecodeError:
        return
    changed.decode()
