"""Boundaries against cases worked by hand, rule by rule."""

import numpy as np
import pytest
from pydantic import ValidationError

from shared.patching import PatchingSettings, patch_lengths
from shared.vocabulary import EOS, document_tokens

LOW, HIGH = 0.5, 2.0


def lengths(text: bytes, patching: PatchingSettings, entropies: list[float] | None = None) -> list[int]:
    values = None if entropies is None else np.array(entropies, np.float32)
    return patch_lengths(document_tokens(text), patching, values).tolist()


@pytest.mark.parametrize("rule", ["byte", "space"])
def test_an_empty_document_has_two_patches_of_one(rule: str) -> None:
    assert lengths(b"", PatchingSettings(rule=rule)) == [1, 1]
    assert lengths(b"", PatchingSettings(rule="static", stride=4)) == [1, 1]
    assert lengths(b"", PatchingSettings(rule="entropy", theta=0.0), [9.0]) == [1, 1]


def test_byte_rule_makes_every_token_a_patch() -> None:
    assert lengths(b"abc", PatchingSettings(rule="byte")) == [1, 1, 1, 1, 1]


def test_static_starts_at_one_and_every_stride_after() -> None:
    # BOS | abc | def | g EOS
    assert lengths(b"abcdefg", PatchingSettings(rule="static", stride=3)) == [1, 3, 3, 2]
    # EOS alone when the stride divides the text
    assert lengths(b"abcdef", PatchingSettings(rule="static", stride=3)) == [1, 3, 3, 1]


def test_entropy_rule_opens_after_a_position_strictly_above_theta() -> None:
    #            BOS   a    b     c    d     (entropy after each)
    entropies = [9.0, 0.5, 2.0, 1.0, 2.0]
    # start 1 is forced; entropy[2] > 1 opens at 3 (c); entropy[3] == 1 does not open at 4; entropy[4] opens at EOS
    assert lengths(b"abcd", PatchingSettings(rule="entropy", theta=1.0), entropies) == [1, 2, 2, 1]


def test_the_entropy_after_bos_is_ignored() -> None:
    for first in (0.0, 9.0, float("nan")):
        assert lengths(b"ab", PatchingSettings(rule="entropy", theta=1.0), [first, LOW, LOW]) == [1, 3]


def test_nan_never_opens() -> None:
    nan = float("nan")
    assert lengths(b"abc", PatchingSettings(rule="entropy", theta=-1.0), [nan, nan, nan, nan]) == [1, 4]
    assert lengths(b"abc", PatchingSettings(rule="monotonic", theta=-9.0), [1.0, nan, 1.0, 1.0]) == [1, 3, 1]


def test_monotonic_rule_looks_at_rises_and_starts_at_three_at_the_earliest() -> None:
    # rises: i=1: +8 (would open 2: too early), i=2: +0.2, i=3: +1.0 opens 4
    entropies = [1.0, 9.0, 9.2, 10.2, 0.0]
    assert lengths(b"abcd", PatchingSettings(rule="monotonic", theta=0.5), entropies) == [1, 3, 2]
    # the released reference always starts at 2
    reference = PatchingSettings(rule="monotonic", theta=0.5, reference_starts=True)
    assert lengths(b"abcd", reference, entropies) == [1, 1, 2, 2]


def test_entropy_rise_needs_both_a_high_entropy_and_a_rise() -> None:
    settings = PatchingSettings(rule="entropy_rise", theta=1.0, theta_rise=0.5)
    #            BOS   a    b    c    d    e
    entropies = [0.0, 0.1, 0.9, 1.5, 1.6, 2.3]
    # opens after c (1.5 > 1, rise 0.6), not after d (rise 0.1), after e (2.3, rise 0.7)
    assert lengths(b"abcde", settings, entropies) == [1, 3, 2, 1]


def test_reference_starts_of_entropy_rise_force_two_and_forbid_three() -> None:
    settings = PatchingSettings(rule="entropy_rise", theta=1.0, theta_rise=0.5, reference_starts=True)
    entropies = [0.0, 1.0, 2.0, 3.0, 4.0]  # every position from b on would open
    assert lengths(b"abcd", settings, entropies) == [1, 1, 2, 1, 1]


def test_rises_are_taken_on_entropies_rounded_to_the_recorded_dtype() -> None:
    entropies = [1.0, 2.0, 2.0004, 2.0004]  # the rise vanishes in float16 (steps of 2**-9 at 2)
    assert lengths(b"abc", PatchingSettings(rule="monotonic", theta=1e-4), entropies) == [1, 2, 2]
    half = PatchingSettings(rule="monotonic", theta=1e-4, entropy_dtype="float16")
    assert lengths(b"abc", half, entropies) == [1, 4]


def test_space_rule_starts_after_the_first_space_like_byte_of_a_run() -> None:
    # "ab  cd." -> ab_ | _cd. | EOS      (the second space of the run does not end a patch)
    assert lengths(b"ab  cd.", PatchingSettings(rule="space")) == [1, 3, 4, 1]


def test_utf8_lead_bytes_are_space_like_and_continuation_bytes_are_not() -> None:
    # "aé b": a, C3 (space-like), A9 (not), space, b
    assert lengths("aé b".encode(), PatchingSettings(rule="space")) == [1, 2, 2, 2]


def test_a_document_that_begins_with_a_space_continues_the_run_of_bos() -> None:
    assert lengths(b" ab c", PatchingSettings(rule="space")) == [1, 4, 2]


def test_a_special_id_ends_its_patch_whatever_the_rule_and_the_minimum() -> None:
    tokens = document_tokens(b"abcdef")
    tokens[3] = EOS
    settings = PatchingSettings(rule="static", stride=100, min_length=3)
    assert patch_lengths(tokens, settings).tolist() == [1, 3, 4]


def test_max_length_cuts_greedily_and_a_cut_becomes_the_previous_start() -> None:
    # one natural patch of 8 tokens after BOS: 3, 3, 2
    assert lengths(b"abcdefg", PatchingSettings(rule="static", stride=100, max_length=3)) == [1, 3, 3, 2]
    # with a minimum of 2, the wanted start 1 after a forced cut is suppressed
    entropies = [0, LOW, LOW, LOW, HIGH, LOW, LOW, LOW]
    free = PatchingSettings(rule="entropy", theta=1.0, max_length=3)
    assert lengths(b"abcdefg", free, entropies) == [1, 3, 1, 3, 1]
    bound = PatchingSettings(rule="entropy", theta=1.0, max_length=3, min_length=2)
    assert lengths(b"abcdefg", bound, entropies) == [1, 3, 3, 2]


def test_min_length_counts_from_the_last_start() -> None:
    entropies = [0, HIGH, HIGH, HIGH, HIGH, HIGH]
    assert lengths(b"abcde", PatchingSettings(rule="entropy", theta=1.0, min_length=2), entropies) == [1, 2, 2, 2]


def test_each_subset_can_have_its_own_theta() -> None:
    settings = PatchingSettings(rule="entropy", theta=1.0, thetas={"de": 3.0})
    assert settings.for_subset("de").theta == 3.0
    assert settings.for_subset("fr").theta == 1.0
    assert settings.for_subset(None).theta == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "entropy"}, "needs theta"),
        ({"rule": "byte", "theta": 1.0}, "does not take theta"),
        ({"rule": "static"}, "needs stride"),
        ({"rule": "entropy_rise", "theta": 1.0}, "needs theta_rise"),
        ({"rule": "byte", "min_length": 9, "max_length": 8}, "greater than max_length"),
        ({"rule": "byte", "max_length": 70_000}, "65535"),
        ({"rule": "space", "thetas": {"a": 1.0}}, "does not take thetas"),
        ({"rule": "entropy", "theta": 1.0, "grid": True}, "nearest value"),
        ({"rule": "entropy", "theta": 1.0, "reference_starts": True}, "reference_starts"),
        ({"rule": "entropy", "theta": 1.0, "treshold": 2}, "treshold"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PatchingSettings(**settings)


def test_entropies_of_the_wrong_count_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\b4 .* 5 .* 3\b"):
        lengths(b"abc", PatchingSettings(rule="entropy", theta=1.0), [1.0, 1.0, 1.0])
