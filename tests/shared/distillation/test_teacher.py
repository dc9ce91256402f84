"""A teacher predicts each token once, from half a context at least, whatever lies beside it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.subword_examples import LINES
from helpers.target_examples import teacher_folder
from hypothesis import given
from hypothesis import strategies as st

from shared.distillation import teacher as teachers
from shared.distillation.teacher import FlatTeacher, windows
from shared.layers.batch import segments
from shared.model_folder.files import load_model
from shared.vocabulary import BOE, BOS, EOS


@given(st.lists(st.integers(0, 20), min_size=1, max_size=5), st.integers(2, 9))
def test_windows_predict_each_token_once_from_half_a_context_at_least(sizes: list[int], context: int) -> None:
    ends = np.cumsum([*sizes, 1])
    ids = np.arange(ends[-1])
    found = list(windows((ids[end - size : end] for size, end in zip([*sizes, 1], ends)), context))
    assert np.concatenate([window.ids[window.known :] for window in found]).tolist() == ids.tolist()
    for number, window in enumerate(found):
        assert window.begins == (number == 0)
        assert len(window.ids) <= context
        assert window.known == 0 if window.begins else window.known >= context // 2
        assert window.known < len(window.ids)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_folder(tmp_path_factory.mktemp("teacher"))


@pytest.mark.numerics
def test_predictions_are_those_of_each_window_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teachers, "TOGETHER", 50)
    teacher, model = FlatTeacher(folder, context=12), load_model(folder)
    documents = [b"", *LINES[:4], b"\xff", b"\n".join(LINES[5:9])]
    parts = [[text[:9], text[9:20], text[20:]] for text in documents]
    found = list(teacher.predictions(parts))
    assert max(len(said.ids) for said in found) <= 50
    logits, ids, at, flops = torch.cat([said.logits for said in found]), [said.ids for said in found], 0, 0.0
    ids = np.concatenate(ids).tolist()
    for text in documents:
        own = [*teacher._encoder.ids(text).tolist(), EOS]
        assert ids[at : at + len(own)] == own
        for window in windows([np.array(own)], 12):
            inputs = [BOS if window.begins else BOE, *window.ids[:-1].tolist()]
            wanted = model(torch.tensor(inputs), segments([len(inputs)]))[window.known :]
            torch.testing.assert_close(logits[at : at + len(wanted)], wanted, rtol=1e-4, atol=1e-4)
            at += len(wanted)
            flops += teacher.flops([len(inputs)])
    assert at == len(ids)
    assert sum(said.flops for said in found) == flops == teacher.flops(list(teacher.window_lengths(parts)))


def test_a_model_with_a_window_reads_two_of_them(folder: Path, tmp_path: Path) -> None:
    assert FlatTeacher(folder).identity.context == 1024
    assert FlatTeacher(teacher_folder(tmp_path, window=700)).identity.context == 1400
