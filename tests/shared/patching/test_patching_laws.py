"""Laws 1 and 2 for every rule: boundaries are causal, and the stream finds those that are stored."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shared.patching import PatchingSettings, PatchStream, patch_lengths
from shared.patching.chunks import ChunkedLengths
from shared.patching.grid import GRID, dequantise, quantise, snap
from shared.patching.lengths import patch_lengths_together
from shared.patching.settings import ENTROPY_RULES, RISE_RULES
from shared.vocabulary import OFFSET, VOCABULARY_SIZE, document_tokens, is_special

TEXT_BYTES = st.sampled_from(list(b"ab09  .\n\x00\xc3\xa9\xff"))
CHARACTERS = st.sampled_from("a \n\x7fé߿ࠀあ한\uffff\U00010000😀\U0010ffff").map(str.encode)
PIECES = st.lists(CHARACTERS | TEXT_BYTES.map(lambda byte: bytes([byte])) | st.binary(max_size=5), max_size=40)


@st.composite
def documents(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of a document and entropies that know only the tokens so far (as a causal model's do)."""
    text = bytes(draw(st.lists(TEXT_BYTES, max_size=60))) if draw(st.booleans()) else b"".join(draw(PIECES))
    tokens = document_tokens(text)
    if draw(st.booleans()) and len(text) > 2:
        for _ in range(draw(st.integers(1, 3))):  # special ids inside, some of them named ones
            tokens[draw(st.integers(1, len(text)))] = draw(st.sampled_from([*range(OFFSET), 260, 263]))
    return tokens, causal_entropies(tokens)


def causal_entropies(tokens: np.ndarray) -> np.ndarray:
    """float32 [N - 1]: each a fixed pseudo-random function of the last three tokens, now and then NaN."""
    padded = np.concatenate([[0, 0], tokens[:-1].astype(np.int64)])
    mixed = (padded[2:] * 7919 + padded[1:-1] * 104_729 + padded[:-2] * 1_299_709) % 997
    values = (mixed / 997 * 3).astype(np.float32)
    values[mixed < 20] = np.nan
    return values


@st.composite
def patchings(draw: st.DrawFn) -> PatchingSettings:
    rule = draw(st.sampled_from(["byte", "static", "space", *ENTROPY_RULES]))
    low = draw(st.integers(1, 5))
    whole = draw(st.booleans())
    longest = draw(st.integers(low, 14)) + (3 if whole else 0)
    keys: dict = {"rule": rule, "min_length": low, "max_length": longest, "whole_characters": whole}
    if rule in ENTROPY_RULES:
        keys["theta"] = draw(st.floats(-0.5, 2.5))
    if rule == "entropy_rise":
        keys["theta_rise"] = draw(st.floats(-1, 1))
    if rule == "static":
        keys["stride"] = draw(st.integers(1, 20))
    if rule in RISE_RULES:
        keys["reference_starts"] = draw(st.booleans())
        keys["entropy_dtype"] = draw(st.sampled_from(["float32", "float16"]))
    return PatchingSettings(**keys)


def starts(tokens: np.ndarray, patching: PatchingSettings) -> np.ndarray:
    lengths = patch_lengths(tokens, patching, causal_entropies(tokens))
    return np.cumsum(lengths.astype(np.int64)) - lengths


@given(documents(), patchings())
def test_streaming_finds_the_stored_boundaries(
    document: tuple[np.ndarray, np.ndarray], patching: PatchingSettings
) -> None:
    tokens, entropies = document
    stream = PatchStream(patching)
    found = [0]
    for position, (token, entropy) in enumerate(zip(tokens[:-1], entropies)):
        if stream.push(int(token), float(entropy)):
            found.append(position + 1)
    assert found == starts(tokens, patching).tolist()


@given(documents(), patchings())
def test_lengths_cover_all_tokens_within_their_limits(
    document: tuple[np.ndarray, np.ndarray], patching: PatchingSettings
) -> None:
    tokens, entropies = document
    lengths = patch_lengths(tokens, patching, entropies)
    assert lengths.dtype == np.uint16
    assert lengths[0] == 1
    assert lengths.sum() == len(tokens)
    assert lengths.max() <= patching.max_length
    after_special = np.flatnonzero(is_special(tokens[:-1])) + 1
    assert set(after_special) <= set(starts(tokens, patching).tolist())
    short = np.flatnonzero(lengths[:-1] < patching.min_length)
    ends = np.cumsum(lengths.astype(np.int64))[short]
    assert set(ends) <= set(after_special)  # only a special id makes a patch shorter than the minimum


@given(documents(), patchings(), st.data())
def test_flipping_a_token_never_moves_a_start_at_or_before_it(
    document: tuple[np.ndarray, np.ndarray], patching: PatchingSettings, data: st.DataObject
) -> None:
    tokens, _ = document
    position = data.draw(st.integers(1, len(tokens) - 1))
    flipped = tokens.copy()
    flipped[position] = (int(tokens[position]) + data.draw(st.integers(1, VOCABULARY_SIZE - 1))) % VOCABULARY_SIZE
    before, after = starts(tokens, patching), starts(flipped, patching)
    assert before[before <= position].tolist() == after[after <= position].tolist()


@given(documents(), patchings(), st.data())
def test_boundaries_of_a_prefix_are_a_prefix_of_the_boundaries(
    document: tuple[np.ndarray, np.ndarray], patching: PatchingSettings, data: st.DataObject
) -> None:
    tokens, _ = document
    cut = data.draw(st.integers(2, len(tokens)))
    whole, prefix = starts(tokens, patching), starts(tokens[:cut], patching)
    assert prefix.tolist() == whole[whole < cut].tolist()


@given(st.lists(st.floats(0, 6, width=32) | st.sampled_from(GRID.tolist()) | st.just(float("nan")), min_size=1))
def test_a_threshold_on_the_grid_replays_exactly_from_the_sidecar(values: list[float]) -> None:
    entropies = np.array(values, np.float32)
    quantised = quantise(entropies)
    for g in (0, 1, 60, 128, 254):
        np.testing.assert_array_equal(entropies > GRID[g], quantised > g)
        np.testing.assert_array_equal(entropies > GRID[g], dequantise(quantised) > GRID[g])


def test_snapped_thresholds_stay_where_they_are() -> None:
    for theta in (0.0, 0.7, 1.335442066192627, 9.0):
        assert snap(snap(theta)) == snap(theta)
        assert np.float32(snap(theta)) in GRID
    assert abs(snap(1.335442066192627) - 1.335442066192627) <= 0.011


@given(st.lists(st.floats(-1, 7, width=32) | st.sampled_from(GRID.tolist()), min_size=1))
def test_a_sidecar_value_counts_the_grid_values_below(values: list[float]) -> None:
    entropies = np.array(values, np.float32)
    around = np.concatenate([entropies, np.nextafter(entropies, 9), np.nextafter(entropies, -9)]).astype(np.float32)
    np.testing.assert_array_equal(quantise(around), np.searchsorted(GRID, around, side="left"))


@given(documents(), patchings(), st.data())
def test_a_document_in_chunks_has_the_lengths_of_the_whole(
    document: tuple[np.ndarray, np.ndarray], patching: PatchingSettings, data: st.DataObject
) -> None:
    tokens, entropies = document
    cuts = sorted(data.draw(st.lists(st.integers(1, len(tokens) - 1), max_size=6)))
    chunked = ChunkedLengths(patching)
    found, known = [], 0
    for begin, end in pairwise([0, *cuts, len(tokens)]):
        if begin == end:
            continue
        found.append(chunked.add(tokens[begin:end], entropies[begin:end], end == len(tokens)))
        known += int(found[-1].sum())
        # Nothing is held back but the patch that may still grow: it is within the longest.
        assert end - known <= patching.max_length
    lengths = np.concatenate(found)
    assert lengths.dtype == np.uint16
    np.testing.assert_array_equal(lengths, patch_lengths(tokens, patching, entropies))


@given(st.lists(documents(), min_size=1, max_size=6), patchings(), st.data())
def test_documents_together_have_the_lengths_of_each_alone(
    given_documents: list[tuple[np.ndarray, np.ndarray]], patching: PatchingSettings, data: st.DataObject
) -> None:
    tokens, entropies = ([document[part] for document in given_documents] for part in (0, 1))
    thetas = None
    own = [patching] * len(tokens)
    if patching.needs_entropy and data.draw(st.booleans()):
        thetas = [data.draw(st.floats(-0.5, 2.5)) for _ in tokens]
        own = [patching.model_copy(update={"theta": theta}) for theta in thetas]
    together = patch_lengths_together(tokens, patching, entropies, thetas)
    alone = [patch_lengths(t, p, e) for t, p, e in zip(tokens, own, entropies)]
    assert [found.tolist() for found in together] == [found.tolist() for found in alone]
    assert all(found.dtype == np.uint16 for found in together)
