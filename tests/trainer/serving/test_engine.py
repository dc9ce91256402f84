"""An engine writes each text as if it were alone, whoever joins and leaves meanwhile, within its limits.

Turns are taken by hand, so that each test says exactly what happens between which bytes.
"""

from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from helpers.model_folders import entropy_folder, identity_of
from helpers.rounding import ENTROPY
from helpers.serving import PATIENCE, Alone, Asked, AtOnce, alone, chat_model, engine_of, finish, sampled
from helpers.tiny_runs import STACK

from shared.errors import ConfigError
from shared.model_folder.files import build_model, save_model
from shared.model_settings import HNetSettings
from shared.models.blt import Blt
from shared.models.initialise import initialise
from shared.patching import PatchingSettings
from shared.stack_settings import StackSettings
from shared.text.chat import Turn
from trainer.generation.batch import Prompt
from trainer.generation.generator import Generator
from trainer.provenance.identity import IDENTITY_NAME, save_identity
from trainer.serving.engine import Engine
from trainer.serving.memory import PART
from trainer.serving.metrics import Metrics
from trainer.serving.requests import RequestError, choice_seed

LONG = "a long prompt that goes on and on, " * 20
PROMPTS = ["", "a", "The patch begins", "naïve Größe", "x" * 300, "1 2 3 " * 9]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return Generator(chat_model(tmp_path_factory.mktemp("engine")))


@pytest.fixture(scope="module")
def single(generator: Generator) -> Alone:
    return alone(generator)


def check(asked: Asked, single: Alone) -> None:
    """A text is what it would be alone."""
    expected = single(asked.prompt, asked.settings)
    assert asked.text() == b"".join(piece.byte for piece in expected)
    assert [piece.starts for piece in asked.pieces()] == [piece.starts for piece in expected]
    np.testing.assert_allclose(
        [piece.entropy for piece in asked.pieces()], [piece.entropy for piece in expected], atol=ENTROPY
    )
    assert len(asked.endings) == 1


def test_rows_that_join_and_leave_between_bytes_are_their_single_runs(generator: Generator, single: Alone) -> None:
    engine = engine_of(generator, most_rows=4)
    asked = []
    for number in range(10):
        settings = sampled(5 + 7 * (number % 4), seed=number, utf8=bool(number % 2))
        asked.append(Asked(engine, PROMPTS[number % len(PROMPTS)], settings))
        engine.submit([asked[-1].job])
        for _ in range(3):
            engine._turn()
    finish(engine)
    for one in asked:
        check(one, single)


def test_the_engine_writes_in_a_thread_of_its_own(generator: Generator, single: Alone) -> None:
    engine = Engine(generator, 1 << 30, Metrics(), threads=1)
    done = Event()
    asked = Asked(engine, "a prompt", sampled(20, seed=3))

    def deliver(events: list) -> None:
        asked.events.extend(events)
        if any(event.ended or event.error for event in events):
            done.set()

    asked.job.deliver = deliver
    engine.start(AtOnce())  # type: ignore[arg-type]
    engine.submit([asked.job])
    assert done.wait(PATIENCE)
    engine.close()
    check(asked, single)


def test_several_texts_after_one_prompt_read_it_once(
    generator: Generator, single: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = []
    advance = Prompt.advance
    monkeypatch.setattr(Prompt, "advance", lambda self: parts.append(self) or advance(self))
    engine = engine_of(generator)
    asked = Asked(engine, LONG, sampled(12, seed=4), n=3)
    engine.submit([asked.job])
    finish(engine)
    assert len(parts) == -(-len(LONG) // PART)
    texts = [asked.text(choice) for choice in range(3)]
    assert len(set(texts)) == 3
    for choice, text in enumerate(texts):
        expected = single(LONG, sampled(12, seed=choice_seed(4, choice)))
        assert text == b"".join(piece.byte for piece in expected)


def test_a_prompt_is_shown_with_its_scores(generator: Generator) -> None:
    engine = engine_of(generator)
    asked = Asked(engine, LONG, sampled(0, logprobs=2), shows_prompt=True)
    engine.submit([asked.job])
    finish(engine)
    pieces = asked.pieces(None)
    assert b"".join(piece.byte for piece in pieces).decode() == LONG
    assert all(piece.score is not None and len(piece.score.likeliest) == 2 for piece in pieces)
    assert asked.job.prompt_patches == sum(piece.starts for piece in pieces) > 0
    assert asked.endings == ["length"]


@pytest.mark.parametrize("kind", ["entropy", "hnet"])
def test_the_other_kinds_that_write_are_served_too(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model"
    if kind == "entropy":
        entropy_folder(folder)
    else:
        stack = StackSettings(**STACK)
        settings = HNetSettings(encoder=stack, global_=stack, decoder=stack, window=32)
        model = build_model(settings)
        initialise(model, 0)
        save_model(model, settings, folder)
        save_identity(identity_of(PatchingSettings(rule="none")), folder / IDENTITY_NAME)
    generator = Generator(folder)
    engine = engine_of(generator, prefix_memory=1 << 24)
    asked = [Asked(engine, prompt, sampled(8, seed=1), n=2) for prompt in ("a", LONG, LONG)]
    for one in asked:
        engine.submit([one.job])
        engine._turn()
    finish(engine)
    for one in asked:
        assert isinstance(one.prompt, str)
        expected = generator.texts([one.prompt.encode()], sampled(8, seed=1))
        assert [one.text()] == expected


def test_an_engine_that_fails_by_itself_says_so(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(generator)
    asked = [Asked(engine, "a", sampled(5)), Asked(engine, "b", sampled(5))]
    engine.submit([one.job for one in asked])
    monkeypatch.setattr(engine, "_expire", lambda: 1 / 0)
    engine._run()
    assert [one.status for one in asked] == [500, 500]
    with pytest.raises(RequestError, match="failed") as caught:
        engine.submit([asked[0].job])
    assert caught.value.status == 503


def test_a_chat_is_answered(generator: Generator) -> None:
    turns = [Turn("user", b"hello")]
    engine = engine_of(generator)
    asked = Asked(engine, turns, sampled(20, seed=2))
    engine.submit([asked.job])
    finish(engine)
    expected = [piece for _, piece in generator.write_batch([turns], sampled(20, seed=2)) if not piece.from_prompt]
    assert asked.text() == b"".join(piece.byte for piece in expected)
    with pytest.raises(ConfigError, match="tool"):
        engine.rows([Turn("tool", b"x")], sampled(5))
    with pytest.raises(ConfigError, match="subset"):
        engine.rows(turns, sampled(5, subset="none"))


def test_a_long_prompt_is_read_while_others_write(generator: Generator, single: Alone) -> None:
    engine = engine_of(generator)
    short, long = Asked(engine, "a", sampled(30)), Asked(engine, LONG, sampled(5))
    engine.submit([short.job])
    engine._turn()
    engine.submit([long.job])
    before = len(short.text())
    engine._turn()
    assert len(short.text()) == before + 1
    assert long.text() == b""  # 256 of 700 bytes have been read
    finish(engine)
    check(short, single)
    check(long, single)


@pytest.mark.parametrize("moment", ["waiting", "reading", "writing"])
def test_who_gives_up_leaves_the_others_as_they_were(generator: Generator, single: Alone, moment: str) -> None:
    engine = engine_of(generator, most_rows=3)
    stays = [Asked(engine, "stays", sampled(25, seed=1)), Asked(engine, "too", sampled(9, seed=2))]
    leaves = Asked(engine, LONG if moment == "reading" else "leaves", sampled(20))
    last = Asked(engine, "last", sampled(6))
    engine.submit([stays[0].job, leaves.job, stays[1].job])
    if moment != "waiting":
        engine._turn()
        engine._turn()
    told = len(leaves.events)
    assert bool(told) == (moment == "writing")
    engine.cancel([leaves.job])
    engine.submit([last.job])
    finish(engine)
    assert len(leaves.events) == told
    for one in (*stays, last):
        check(one, single)
    engine.cancel([leaves.job, last.job])  # of what is over: nothing happens
    assert engine.idle


def test_a_deadline_ends_a_request_that_waits_or_is_written(generator: Generator, single: Alone) -> None:
    engine = engine_of(generator, most_rows=2)
    late, stays = Asked(engine, "late", sampled(50)), Asked(engine, "stays", sampled(15))
    waits = Asked(engine, "waits", sampled(5), deadline=0.0)
    engine.submit([late.job, stays.job, waits.job])
    engine._turn()
    assert (late.status, waits.status) == (None, 504)
    late.job.deadline = 0.0
    engine._turn()
    assert late.status == 504
    finish(engine)
    check(stays, single)


def test_a_full_queue_refuses_and_says_for_how_long(generator: Generator, single: Alone) -> None:
    engine = engine_of(generator, most_rows=1, queue=2)
    asked = [Asked(engine, "a", sampled(4, seed=seed)) for seed in range(4)]
    engine.submit([asked[0].job, asked[1].job])
    with pytest.raises(RequestError) as caught:
        engine.submit([asked[2].job])
    assert (caught.value.status, caught.value.code) == (429, "queue_full")
    assert 1 <= engine.retry_after() <= 120
    engine._turn()  # one of them is written now, and another may wait
    engine.submit([asked[2].job])
    with pytest.raises(RequestError):
        engine.submit([asked[3].job])
    finish(engine)
    for one in asked[:3]:
        check(one, single)


def test_what_is_written_at_once_stays_within_the_memory(generator: Generator, single: Alone) -> None:
    need = engine_of(generator).size.total_bytes([Asked(engine_of(generator), "ab", sampled(9)).job.demand] * 2)
    engine = engine_of(generator, memory=need, most_rows=10)
    asked = [Asked(engine, "ab", sampled(9, seed=seed)) for seed in range(5)]
    engine.submit([one.job for one in asked])
    most = 0
    while not engine.idle:
        engine._turn()
        most = max(most, len(engine._active))
    assert most == 2
    for one in asked:
        check(one, single)


def test_what_would_never_fit_is_refused_with_the_numbers(generator: Generator) -> None:
    engine = engine_of(generator, memory=1 << 23, most_rows=4, queue=3)
    with pytest.raises(RequestError, match="100,000") as caught:
        engine.submit([Asked(engine, "x" * 1000, sampled(100_000)).job])
    assert caught.value.status == 400
    with pytest.raises(RequestError, match="5 texts"):
        Asked(engine, "x", sampled(1), n=5)
    with pytest.raises(RequestError, match="4 prompts"):
        engine.submit([Asked(engine, "x", sampled(1)).job for _ in range(4)])
    assert engine.idle


def test_prompts_that_begin_alike_are_read_once_and_answered_alike(generator: Generator, single: Alone) -> None:
    engine = engine_of(generator, prefix_memory=1 << 26)
    read: list[float] = []

    def answer(prompt: str, **more: object) -> Asked:
        asked = Asked(engine, prompt, sampled(10, seed=5, **more))
        before = engine.metrics.prompt_bytes.labels("model")._value.get()
        engine.submit([asked.job])
        finish(engine)
        read.append(engine.metrics.prompt_bytes.labels("model")._value.get() - before)
        return asked

    first = answer(LONG)
    again, other, within = answer(LONG), answer(LONG[:600] + "other"), answer(LONG[:300])
    for asked in (first, again, other, within):
        check(asked, single)
    theta = generator.identity.patching.theta + 0.05
    cut = answer(LONG, theta=theta)
    check(cut, single)
    assert read == [700, 700 - 512, 605 - 512, 300 - 256, 700]
    assert first.job.prompt_patches == again.job.prompt_patches > 0
    assert cut.job.prompt_patches != first.job.prompt_patches


def test_prefixes_leave_when_others_need_their_room(generator: Generator) -> None:
    size = engine_of(generator).size
    engine = engine_of(generator, prefix_memory=2 * size.row_bytes(PART))
    for letter in "abca":
        engine.submit([Asked(engine, letter * 300, sampled(1)).job])
        finish(engine)
        assert engine._prefixes.reserved <= 2 * size.row_bytes(PART)
    assert len(engine._prefixes) == 2
    assert engine.metrics.prefix_bytes.labels("model")._value.get() == 0  # a had left before it came again


def test_a_shutdown_finishes_what_is_written_and_refuses_the_rest(generator: Generator, single: Alone) -> None:
    engine = engine_of(generator, most_rows=1)
    written, waits = Asked(engine, "written", sampled(12)), Asked(engine, "waits", sampled(5))
    engine.submit([written.job, waits.job])
    engine._turn()
    engine.refuse()
    with pytest.raises(RequestError) as caught:
        engine.submit([Asked(engine, "new", sampled(5)).job])
    assert caught.value.status == 503
    finish(engine)
    assert waits.status == 503
    check(written, single)


def test_closing_tells_everybody(generator: Generator) -> None:
    engine = engine_of(generator, most_rows=2)
    asked = [Asked(engine, prompt, sampled(500)) for prompt in ("writing", LONG, "waits")]
    engine.submit([one.job for one in asked])
    engine._turn()
    engine.close()
    assert not engine._turn()
    assert [one.status for one in asked] == [503, 503, 503]


def test_what_fails_ends_the_requests_that_it_is_about_alone(
    generator: Generator, single: Alone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = engine_of(generator)
    broken, reading = Asked(engine, "broken", sampled(50)), Asked(engine, LONG, sampled(5))
    engine.submit([broken.job, reading.job])
    engine._turn()

    def fails() -> None:
        raise RuntimeError("a secret of the machine")

    with monkeypatch.context() as patched:
        patched.setattr(engine._batch, "step", fails)
        engine._turn()
    assert broken.status == 500
    assert not any("secret" in str(event.error) for event in broken.events)
    assert "a secret of the machine" in capsys.readouterr().err  # whoever runs the server is told
    finish(engine)
    check(reading, single)


def test_a_model_without_finite_weights_says_so(tmp_path: Path) -> None:
    generator = Generator(chat_model(tmp_path))
    with torch.no_grad():
        next(generator.model.parameters()).fill_(float("nan"))
    engine = engine_of(generator)
    asked = Asked(engine, "a", sampled(5))
    engine.submit([asked.job])
    finish(engine)
    assert asked.status == 500
    assert any("finite" in str(event.error) for event in asked.events)


def test_a_text_that_nothing_can_be_chosen_for_ends_alone(tmp_path: Path) -> None:
    generator = Generator(chat_model(tmp_path))
    wanted = alone(generator)("abc", sampled(30))
    assert not any(b"~" in piece.byte for piece in wanted)
    assert isinstance(generator.model, Blt)
    with torch.no_grad():  # whoever reads this byte has no logits
        generator.model.encoder.embedding.weight[ord("~") + 4] = float("nan")
    engine = engine_of(generator)
    whole, broken = Asked(engine, "abc", sampled(30)), Asked(engine, "ab~", sampled(30))
    engine.submit([whole.job, broken.job])
    finish(engine)
    assert broken.status == 500
    assert whole.status is None
    assert whole.pieces() == wanted


def test_metrics_of_a_model_are_there_before_anything_has_happened() -> None:
    metrics = Metrics()
    metrics.begin("model")
    text = metrics.text().decode()
    for name in ("written_bytes_total", "prompt_bytes_total", "queue_length", "first_byte_seconds_count"):
        assert f'patchwork_{name}{{model="model"}} 0.0' in text
