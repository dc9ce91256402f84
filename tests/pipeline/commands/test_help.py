"""What one sees who asks the command line what it can do."""

import pytest

from pipeline.__main__ import COMMANDS, main


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)
