"""The serve command: what it says, what it refuses, and how a signal ends it."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from helpers.serving import PATIENCE, Alone, alone, chat_model, running, sampled, served_process, text_of

from shared.errors import ConfigError
from trainer.__main__ import main
from trainer.commands.serve import api_keys, named_models
from trainer.generation.generator import Generator


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def single(folder: Path) -> Alone:
    return alone(Generator(folder))


@pytest.mark.drill
def test_a_signal_ends_it_when_what_is_written_is_finished(folder: Path, single: Alone) -> None:
    seed = next(seed for seed in range(100) if len(single("end", sampled(80, seed=seed))) == 80)
    asked = {"prompt": "end", "max_tokens": 80, "seed": seed, "stream": True}
    headers = {"Authorization": "Bearer secret"}
    with served_process(folder, "--verbose", PATCHWORK_API_KEY="secret") as (process, url):
        assert httpx.get(f"{url}/v1/models", trust_env=False).status_code == 401
        with httpx.stream(
            "POST", f"{url}/v1/completions", json=asked, headers=headers, timeout=PATIENCE, trust_env=False
        ) as answer:
            parts = answer.iter_raw()
            text = next(parts)
            process.send_signal(signal.SIGTERM)
            text += b"".join(parts)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(PATIENCE) == 0
    chunks = [json.loads(line[6:]) for line in text.decode().strip().split("\n\n")[:-1]]
    pieces = single("end", sampled(80, seed=seed))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text_of(pieces).decode("utf-8", "replace")
    assert "POST /v1/completions 200" in said
    assert "secret" not in said


def test_torch_and_starlette_wait_until_something_is_served(folder: Path) -> None:
    program = (
        "import sys; from trainer.__main__ import main\n"
        "try: main(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'starlette', 'uvicorn', 'prometheus_client'} & sys.modules.keys()))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "prometheus_client"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    folder: Path, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["serve", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert package in line
    assert "pip install" in line


def test_what_cannot_be_served_is_said_in_a_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = [
            ([str(folder), "--port", port], port),
            ([str(tmp_path / "nothing"), "--port", "0"], "nothing"),
            ([str(folder), "--port", "0", "--memory", "1", "--prefix-cache", "2"], "--prefix-cache"),
            ([str(folder), "--api-key-file", str(tmp_path / "none")], "--api-key-file"),
            ([str(folder), str(folder)], "tiny"),
            ([str(folder), "--host", "no such host"], "--host"),
        ]
        for options, named in words:
            assert main(["serve", *options]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert named in line


def test_models_are_called_by_their_folders_or_as_they_are_told(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    words = [str(tmp_path / "blt" / "model"), str(tmp_path / "other"), "mine=some/where", str(tmp_path / "a=b")]
    assert named_models(words) == {
        "blt": tmp_path / "blt" / "model",
        "other": tmp_path / "other",
        "mine": Path("some/where"),
        "a=b": tmp_path / "a=b",
    }
    with pytest.raises(ConfigError, match="NAME=b/x"):
        named_models(["a/x", "b/x"])
    with pytest.raises(ConfigError, match="NAME=MODEL"):
        named_models(["=x"])


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHWORK_API_KEY", "from outside")
    assert api_keys(None) == [b"from outside"]
    (tmp_path / "keys").write_text("one\n\n two \n")
    assert api_keys(tmp_path / "keys") == [b"one", b"two"]
    (tmp_path / "keys").write_text("\n")
    with pytest.raises(ConfigError, match="no key"):
        api_keys(tmp_path / "keys")
    monkeypatch.delenv("PATCHWORK_API_KEY")
    assert api_keys(None) == []


def test_a_page_is_served_that_may_load_nothing_from_elsewhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index.html").write_text("<p>a page")
    (tmp_path / "page.js").write_text("1")
    monkeypatch.setattr("trainer.serving.app.PLAYGROUND", tmp_path)
    with running({"tiny": Generator(folder)}, keys=[b"key"]) as served, served.http() as http:
        page, script = http.get("/"), http.get("/page.js")
        assert (page.text, script.text) == ("<p>a page", "1")
        for answer in (page, script):
            assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert http.get("/../app.py").status_code == 404
        assert http.get("/none").json()["error"]["message"]
        assert http.get("/v1/models").status_code == 401
        assert http.get("/health").status_code == 200
