"""CUTE: how well a model knows the characters of its words (Edman et al. 2024, arXiv 2409.15452).

The published records, {prompt, answer}, carry their own four examples. What is written after the cue is read by the
published rule, and right when it equals the answer. The published run has models write 100 tokens and nothing stops
them; here a text also ends at the quote that closes the answer, since a model that was not tuned to answer goes on with
further questions, of which the rule would read the last.
"""

import re
from pathlib import Path

from trainer.evaluation.tasks.questions import Completion
from trainer.evaluation.tasks.records import Record

WORD_TASKS = ("contains_word", "ins_word", "del_word", "sub_word", "swap_word")
"""Their outputs and answers are compared in lower case: the first word of a sentence may be moved."""
CHARACTER_TASKS = ("spell", "spell_inverse", "contains_char", "orth", "ins_char", "del_char", "sub_char", "swap_char")
TASKS = (*CHARACTER_TASKS, "sem", *WORD_TASKS)

CUE = ' Answer: "'
"""What the published run writes after each prompt."""
CLOSING = '"'
ROOM = 16
"""Bytes beyond the longest answer that a model may write: blanks around it count for nothing."""


def cute_task(path: Path) -> str | None:
    """Which of the tasks a file is, by its name or its folder's; None for other files.

    As published: spell-00000-of-00001.parquet; as converted by the hub: spell/0000.parquet; as saved by `datasets`:
    spell/data-00000-of-00001.arrow; or spell.jsonl.
    """
    name = re.sub(r"-\d+-of-\d+$", "", path.stem)
    return next((task for task in (name, path.parent.name) if task in TASKS), None)


def cute_question(record: Record) -> Completion | None:
    """The prompt with the cue, and the answer; None for a record of another form."""
    if not {"prompt", "answer"} <= record.values.keys():
        return None
    return Completion((record.text("prompt") or "") + CUE, (record.text("answer") or "",))


def extracted(written: str) -> str:
    """The answer in what was written after the cue, "" where there is none.

    The rule as published: of cue and output, what follows the last `Answer:`; of that, what comes before `</s>`; of
    that, what stands between the first quote and the next, or the end; without blanks around it.
    """
    reply = (CUE + written).rpartition("Answer:")[2].partition("</s>")[0]
    _, quote, rest = reply.partition('"')
    return rest.partition('"')[0].strip() if quote else ""


def is_right(task: str, written: str, answer: str) -> bool:
    """Exact match of the extracted answer, in lower case for the tasks about words."""
    found = extracted(written)
    return found.lower() == answer.lower() if task in WORD_TASKS else found == answer
