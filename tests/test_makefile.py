"""What make passes on: every value as it was typed, and nothing of it to the shell."""

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ["plain", "my corpus", "a#b", "a$b", "$(touch ran)", "`touch ran`", "it's", 'a"b', "a;touch ran", "ü", "a(b)"]
NAMES += ["a&b", "a%b", "a:b", "a,b", "*", "-a", ".b c", "a\\b", "~"]


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Where a virtual environment would be: its python writes down what it was called with."""
    program = tmp_path / "v e" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/bash\nprintf '%s\\0' \"$@\" $'\\n' >>'{tmp_path}/calls'\n")
    program.chmod(0o755)
    return program.parents[1]


def calls(environment: Path, *words: str) -> list[list[str]]:
    """The arguments of each call of python that these words of make lead to."""
    line = ["make", "--no-print-directory", "-C", str(ROOT), "--assume-old", "setup", f"VENV={environment}", *words]
    # Not what a make around these tests was called with.
    inherited = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "OUT")}
    done = subprocess.run(line, capture_output=True, text=True, env=inherited)
    assert done.returncode == 0, done.stderr
    text = (environment.parent / "calls").read_text()
    return [call.removesuffix("\0").split("\0") for call in text.split("\n\0")[:-1]]


def after(call: list[str], option: str) -> str:
    return call[call.index(option) + 1]


@pytest.mark.parametrize("name", NAMES)
def test_a_corpus_and_a_place_of_any_name_arrive_as_they_are(environment, tmp_path, name):
    corpus = tmp_path / name
    corpus.mkdir()
    *_, made, trained = calls(environment, "entropy", f"CORPUS={corpus}", f"OUT={corpus}/o", f"ENTROPY_CONFIG={name}")
    assert made[:4] == ["-m", "pipeline", "preprocess", str(corpus)]
    assert after(made, "--out") == f"{corpus}/o/corpus"
    assert name in trained
    assert after(trained, "--data.path") == f"{corpus}/o/corpus"
    assert not (ROOT / "ran").exists()


def test_both_recipes_are_read_before_anything_is_made(environment, tmp_path):
    first, second, made, *_ = calls(environment, "blt", f"CORPUS={tmp_path}", "ENTROPY_CONFIG=e.toml", "CONFIG=b.toml")
    assert [first[1:], second[1:]] == [["e.toml", "--plan"], ["b.toml", "--plan"]]
    assert made[2] == "preprocess"


@pytest.mark.parametrize("wrong", ["NPROC=0", "NPROC=two", "THREADS=", "PATCH_SIZE=six", "CORPUS_BYTES=1MB"])
def test_a_number_that_is_none_is_refused_by_its_own_name_before_anything_is_made(environment, wrong):
    with pytest.raises(AssertionError, match=f"make: {wrong.partition('=')[0]} is a "):
        calls(environment, "entropy", wrong)


def test_a_misspelt_name_is_refused_unless_it_is_that_of_a_make_above(environment, tmp_path, monkeypatch):
    with pytest.raises(AssertionError, match=r"no target reads CORPSU; the variables are .* CORPUS "):
        calls(environment, "corpus", "CORPSU=x")
    monkeypatch.setenv("MAKELEVEL", "1")
    calls(environment, "corpus", f"CORPUS={tmp_path}", "THEIRS=x")


def test_every_variable_that_a_target_reads_may_be_given():
    text = re.sub(r"(?m)^#.*", "", (ROOT / "Makefile").read_text())
    read = {
        *re.findall(r"\((?:call \w+,|filter \w+,\$\(origin )?([A-Z_]+)\)", text),
        *re.findall(r"(?m)^([A-Z_]+) \?=", text),
    }
    own = {*re.findall(r"(?m)^([A-Z_]+) :?= ", text), "MAKELEVEL", "MAKEFILE_LIST"} - {"CORPUS", "OUT"}
    given = re.search(r"(?m)^VARIABLES := ((?:.*\\\n)*.*)", text)[1].replace("\\\n", "").split()
    assert {*given} == read - own


@pytest.mark.parametrize(
    ("given", "ranks"), [(["NPROC=8"], "8"), (["NPROC=8", "CONFIG=b.toml"], "8"), ([], "2"), (["CONFIG=b.toml"], None)]
)
def test_a_plan_is_for_as_many_ranks_as_are_asked_for_or_the_recipe_says(environment, given, ranks):
    (planned,) = calls(environment, "plan", *given)
    assert (after(planned, "--plan.ranks") if "--plan.ranks" in planned else None) == ranks


@pytest.mark.parametrize(("name", "out"), [("my corpus", "my corpus"), ("dots.v1.2/", "dots"), (".a b.txt", "a b")])
def test_a_run_is_named_after_its_corpus(environment, tmp_path, name, out):
    (tmp_path / name).mkdir()
    (made,) = calls(environment, "corpus", f"CORPUS={tmp_path}/{name}")
    assert after(made, "--out") == f"runs/{out}/corpus"


def test_several_paths_are_several(environment, tmp_path):
    compared, scaled = calls(
        environment, "compare", "scaling", f"CORPUS={tmp_path}/a.jsonl {tmp_path}/b;c", "ONLY=bytes bpe;x", "SIZES=s m"
    )
    assert compared[3:5] == scaled[3:5] == [f"{tmp_path}/a.jsonl", f"{tmp_path}/b;c"]
    assert compared[-2:] == ["bytes", "bpe;x"]
    assert scaled[scaled.index("--sizes") + 1 :] == ["s", "m"]


def test_each_new_text_of_an_adaptation_is_a_word(environment, tmp_path):
    new = [f"el={tmp_path}/a;b", "ru=r.jsonl"]
    (made,) = calls(
        environment, "adaptation", f"CORPUS={tmp_path}", f"NEW={' '.join(new)}", "NEW_BYTES=5000", "SEEDS=0"
    )
    assert made[made.index("--new") + 1 :] == [*new, "--seeds", "0", "--bytes", "5000"]


def test_a_full_comparison_can_be_made_in_parts(environment, tmp_path):
    (full,) = calls(environment, "compare-full", f"CORPUS={tmp_path}", "ONLY=bytes bpe", "EQUAL=flops bytes")
    assert full[-7:] == ["--only", "bytes", "bpe", "--equal", "flops", "bytes", "--full"]


def test_options_are_words_in_which_quotes_hold_together(environment, tmp_path):
    options = "--include '*.py' --text-column \"a b\" c;touch ran $(touch ran)"
    made, planned = calls(environment, "corpus", "plan", f"CORPUS={tmp_path}", f"CORPUS_OPTIONS={options}", "PLAN=a; b")
    words = ["--include", "*.py", "--text-column", "a b", "c;touch", "ran", "$(touch", "ran)"]
    assert made[4 : 4 + len(words)] == words
    assert planned[-2:] == ["a;", "b"]
    assert not (ROOT / "ran").exists()


def test_values_of_the_environment_are_not_expanded_either(environment, tmp_path, monkeypatch):
    monkeypatch.setenv("CORPUS", f"{tmp_path}/a$b")
    (made,) = calls(environment, "corpus", "OUT=o")
    assert made[3] == f"{tmp_path}/a$b"


@pytest.mark.parametrize("file", ["Makefile", "infra/setup.sh", "infra/train.sh", "infra/submit.sh", ".ci/run"])
def test_no_program_is_called_that_names_the_interpreter_of_another_folder(file):
    called = re.findall(r'(?:\$\(BIN\)|"?\$venv"?|\.venv)/bin/(\w+)', (ROOT / file).read_text())
    assert set(called) <= {"python", "pip"}
    assert not re.search(r'bin/pip"? install', (ROOT / file).read_text())


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "benchmarks").glob("bench_*.py")), ids=lambda path: path.stem)
def test_every_benchmark_runs_without_arguments(path: Path) -> None:
    """`make bench` gives none; what needs data of its user is called study_*.py."""
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    for call in found:
        if getattr(call.func, "attr", "") == "add_argument":
            named = {
                word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg in ("nargs", "required")
            }
            optional = ast.literal_eval(call.args[0]).startswith("-") or named.get("nargs") in ("?", "*")
            assert optional, ast.unparse(call)
            assert not named.get("required"), ast.unparse(call)
