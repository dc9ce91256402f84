"""Rows that join and leave while others are written: each text is that of its row alone, and so are its scores."""

import numpy as np
import pytest
import torch
from helpers.model_folders import entropy_model_folder, entropy_rule, model_folder

from shared.layers.batch import Patches, segments
from shared.models.blt import Blt
from shared.vocabulary import EOS, document_tokens
from trainer.generation.batch import Batch, Prompt
from trainer.generation.generator import Generator
from trainer.generation.row import Row
from trainer.generation.sampling import Draw, SamplingSettings, choose
from trainer.generation.settings import GenerateSettings

pytestmark = pytest.mark.numerics

PROMPTS = [b"", b"a prompt of some length", b"\xff\x00\n", b"x" * 300, b"The patch begins", b"1 2 3 " * 9]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    folder = tmp_path_factory.mktemp("batch")
    return Generator(model_folder(folder / "model", entropy_rule(), entropy_model_folder(folder / "entropy_model")))


def settings_of(number: int) -> GenerateSettings:
    """Another length, another temperature, another filter, another seed for each."""
    filters = [{}, {"top_k": 9}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 30, "top_p": 0.9, "min_p": 0.02}]
    sampling = SamplingSettings(temperature=0.0 if number % 3 == 0 else 0.9, seed=number, **filters[number % 5])
    return GenerateSettings(length=12 + 5 * number, sampling=sampling, utf8=number % 2 == 1, stop=(b"zq",))


def read_prompt(generator: Generator, prompt: bytes, settings: GenerateSettings) -> Prompt:
    reading = Prompt(generator.row(prompt, settings), generator.document(settings))
    while not reading.done:
        reading.advance()
    return reading


def test_every_row_is_written_as_if_alone_whoever_joins_and_leaves(generator: Generator) -> None:
    alone = [generator.texts([prompt], settings_of(number))[0] for number, prompt in enumerate(PROMPTS)]
    batch, texts = generator.batch(), {}
    joining = {0: [0, 1], 3: [2], 4: [3, 4], 9: [5]}
    names: dict[Row, int] = {}
    turn = 0
    while batch.rows or turn < 10:
        for number in joining.get(turn, ()):
            prompt = read_prompt(generator, PROMPTS[number], settings_of(number))
            names[prompt.row], texts[number] = number, b""
            batch.join(prompt)
        for row, pieces in batch.step() if batch.rows else ():
            texts[names[row]] += b"".join(piece.byte for piece in pieces)
        turn += 1
    assert [texts[number] for number in range(len(PROMPTS))] == alone
    assert all(row.ended for row in names)


def test_rows_that_are_taken_out_leave_the_others_as_they_are(generator: Generator) -> None:
    alone = generator.texts([PROMPTS[3]], settings_of(3))[0]
    prompts = [read_prompt(generator, prompt, settings_of(number)) for number, prompt in enumerate(PROMPTS)]
    batch, text = generator.batch(), b""
    for prompt in prompts:
        batch.join(prompt)
    for turn in range(10**6):
        if not batch.rows:
            break
        if turn in (2, 4):
            batch.remove([prompt.row for prompt in prompts[turn - 2 : turn]])
        text += b"".join(piece.byte for row, pieces in batch.step() for piece in pieces if row is prompts[3].row)
    # Rows 0 to 3 were taken out, the fourth before its end.
    assert prompts[3].row.ended is None
    assert 0 < len(text) < len(alone)
    assert alone.startswith(text)
    assert all(prompt.row.ended for prompt in prompts[4:])


def test_scores_are_those_of_the_finished_document(generator: Generator) -> None:
    settings = GenerateSettings(length=20, sampling=SamplingSettings(temperature=0.7, seed=3), logprobs=4)
    pieces = list(generator.write(b"a prompt ", settings))
    text = b"".join(piece.byte for piece in pieces)
    tokens = document_tokens(text)
    lengths = np.diff(np.flatnonzero([True, *(piece.starts for piece in pieces), True]))
    assert isinstance(generator.model, Blt)
    owner = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
    reads = torch.cat([owner[1:] - 1, owner[-1:]])
    with torch.inference_mode():
        ids = torch.from_numpy(tokens[:-1].astype(np.int64))
        logits = generator.model(ids, segments([len(ids)]), Patches(owner, reads, segments([len(lengths)])))
    nats = logits.double().log_softmax(-1)[:-1]
    assert len(pieces) == len(nats) == 29
    for piece, of_all in zip(pieces, nats):
        assert piece.score is not None
        assert piece.score.logprob == pytest.approx(float(of_all[piece.byte[0] + 4]), abs=1e-4)
        wanted = of_all.topk(4)
        assert [token for token, _ in piece.score.likeliest] == wanted.indices.tolist()
        np.testing.assert_allclose([value for _, value in piece.score.likeliest], wanted.values, atol=1e-4)


def test_nothing_is_scored_unasked(generator: Generator) -> None:
    assert {piece.score for piece in generator.write(b"ab", GenerateSettings(length=4))} == {None}


def test_a_prompt_may_go_on_from_what_is_known_of_it(generator: Generator) -> None:
    settings = settings_of(3)
    whole = read_prompt(generator, PROMPTS[3], settings)
    part = generator.document(settings)
    list(part.read_in_parts(whole.row.tokens[:256]))
    row = generator.row(PROMPTS[3], settings)
    rest = Prompt(row, part.fork(), known=256)
    shown = rest.advance()
    assert rest.done
    assert [piece.byte for piece in shown] == [b"x"] * 44
    batch: Batch = generator.batch()
    batch.join(rest)
    text = b""
    while batch.rows:
        text += b"".join(piece.byte for _, pieces in batch.step() for piece in pieces)
    assert text == generator.texts([PROMPTS[3]], settings)[0]


def test_choices_of_many_rows_are_those_of_each() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(200, 262)).round(1)
    draws = [
        Draw(
            settings_of(number).sampling,
            float(generator.random()),
            generator.random(260) < 0.5 if number % 4 == 0 else None,
            261 if number % 7 == 0 else None,
        )
        for number in range(200)
    ]
    for draw in draws:
        if draw.allowed is not None:
            draw.allowed[EOS] = True
    together = choose(logits, draws)
    assert together == [choose(logits[number : number + 1], [draw])[0] for number, draw in enumerate(draws)]
    assert len(set(together)) > 50
