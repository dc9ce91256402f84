"""The published rule of CUTE: what counts as the answer in an output, and when it is right."""

import pytest

from trainer.evaluation.tasks.cute import TASKS, extracted, is_right


def test_there_are_the_fourteen_published_tasks() -> None:
    assert len(set(TASKS)) == 14


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ('t h e"', "t h e"),
        (' t h e "', "t h e"),
        # The text ended at the quote, or without one: all of it is the answer.
        ("t h e", "t h e"),
        ("a g e n c y.\n\nThe answer is a g e n c y.", "a g e n c y.\n\nThe answer is a g e n c y."),
        # What is said after the closing quote is left out.
        ('cat" I hope this helps! "dog"', "cat"),
        # Of several answers the last one counts, and it is to stand in quotes.
        ('cat"\nQuestion: Write the word "d o g". Answer: "dog"', "dog"),
        ('cat" is my Answer: dog', ""),
        ('cat" Answer: ""', ""),
        ('Answer:"cat', "cat"),
        # The end of a sequence, where a model writes it out.
        ("cat</s><pad>", "cat"),
        ('cat</s>" Answer', "cat"),
        ('"', ""),
        ("", ""),
    ],
)
def test_the_answer_is_what_stands_between_quotes_after_the_last_answer(written: str, answer: str) -> None:
    assert extracted(written) == answer


@pytest.mark.parametrize(
    ("task", "written", "answer", "right"),
    [
        ("spell", ' t h e "', "t h e", True),
        ("spell", "T h e", "t h e", False),
        ("spell", "t  h e", "t h e", False),
        ("contains_char", 'Yes"', "Yes", True),
        ("contains_char", 'yes"', "Yes", False),
        ("contains_char", 'Yes."', "Yes", False),
        # The tasks about words are compared in lower case, the others as they are.
        ("contains_word", 'yes"', "Yes", True),
        ("del_word", 'the cat."', "The cat.", True),
        ("swap_word", 'The cat"', "The cat.", False),
        ("sem", "Happy", "happy", False),
        ("orth", "", "cold", False),
    ],
)
def test_only_exact_matches_are_right(task: str, written: str, answer: str, right: bool) -> None:
    assert is_right(task, written, answer) is right
