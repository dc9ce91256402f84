"""What the command lines of both programs have in common: commands, help, one line for errors, log levels."""

import argparse
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from shared import __version__
from shared.errors import ExitCode, PatchworkError, did_you_mean
from shared.io.display.log import LOG, set_level
from shared.io.display.terminal import error_line, imports, one_line, run_program, show
from shared.io.stores.locations import location_of, path_of


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """A short usage, and what an option is when it is not given, unless its help says so."""

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],
        prefix: str | None = None,
    ) -> None:
        """What has to be given; all else is listed below."""
        self._prog += " [option]..."
        super().add_usage(usage, [action for action in actions if action.required], (), prefix)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        has_default = action.default not in (None, argparse.SUPPRESS) and action.default is not False
        if action.option_strings and has_default and action.default not in ("", [], ()) and "default" not in text:
            text += " (default: %(default)s)"
        return text


def path_option(text: str) -> Path:
    """The value of an option that is a path of this machine, never a URL."""
    try:
        return path_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def location_option(text: str) -> Path | str:
    """The value of an option that is a path of this machine or a URL."""
    try:
        location: Path | str = location_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return location


NEGATIVE_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
"""What is a value and no option: argparse of Python 3.11 knows none with an exponent."""


class Parser(argparse.ArgumentParser):
    """The options of a command, none of them abbreviated."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog, description=description, epilog=epilog, formatter_class=_Formatter, allow_abbrev=False
        )
        self._negative_number_matcher = NEGATIVE_NUMBER
        self.register("type", Path, path_option)
        self.register("type", location_of, location_option)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line."""
        LOG.error("%s (see %s --help)", one_line(message), self.prog)
        self.exit(ExitCode.REFUSED)

    def print_help(self, file: Any = None) -> None:
        """On standard output, whose failures argparse itself would swallow."""
        show(self.format_help().rstrip())
        sys.stdout.flush()

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Name the nearest choice, which argparse does not."""
        if action.choices is not None and value not in action.choices:
            choices = list(map(str, action.choices))
            near = did_you_mean(str(value), choices) or f"; choose from {', '.join(choices)}"
            raise argparse.ArgumentError(action, f"unknown value {value!r}{near}")

    def check_options(self, words: Sequence[str]) -> None:
        """Refuse unknown options before anything that is missing: the unknown one may be that."""
        known = [option for action in self._actions for option in action.option_strings]
        for word in words[: words.index("--")] if "--" in words else words:
            name = word.partition("=")[0]
            if word.startswith("--") and " " not in word and name not in known:
                self.error(f"unknown option {name}{did_you_mean(name, known)}")


_stopped = False
"""Whether a signal came that ends the command: libraries turn its exception into others."""


class Stopped(KeyboardInterrupt):
    """A signal that ends the command. Python ends itself by the signal after an interrupt of the exact class that has
    left an ``exec``, as those in imports do, even where it was caught.
    """


def heed_signals() -> None:
    """Let SIGTERM, SIGINT and SIGHUP, unless they are ignored, end the command with its line and exit code."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(*_: object) -> NoReturn:
    global _stopped
    _stopped = True
    raise Stopped


def run_command(program: str, about: str, commands: Mapping[str, str], words: Sequence[str]) -> int:
    """Run the command that the first word names, with safe output; its module is imported only then.

    Returns the exit code. Errors that a user can fix, and those of disks, are one line.

    Args:
        program: "pipeline" or "trainer", which has a module in its folder commands/ for each name.
        commands: what each does.
    """
    return run_program(lambda: _run(lambda: _chosen(program, about, commands, words)), complain)


def run_module(prog: str, module: ModuleType, words: Sequence[str]) -> int:
    """Run a program of one command, as it is typed (``prog``), in the same way; returns the exit code."""
    return run_program(lambda: _run(lambda: _carried_out(module_parser(prog, module), module, words)), complain)


def _run(command: Callable[[], int]) -> int:
    try:
        return command()
    except (Exception, KeyboardInterrupt) as error:
        if _stopped or isinstance(error, KeyboardInterrupt):
            LOG.warning("stopped; rerun the same command to resume")
            return ExitCode.INTERRUPTED
        if isinstance(error, PatchworkError | OSError):
            return complain(error)
        raise


def _chosen(program: str, about: str, commands: Mapping[str, str], words: Sequence[str]) -> int:
    name, *options = words or [""]
    prog = f"python -m {program}"
    if name in ("-h", "--help"):
        width = max(map(len, commands))
        listed = "\n".join(f"  {command.ljust(width)}  {does}" for command, does in commands.items())
        show(f"usage: {prog} COMMAND ...\n\n{about}\n\ncommands:\n{listed}\n\n{prog} COMMAND --help has its options.")
        return ExitCode.DONE
    if name == "--version":
        show(f"patchwork {__version__}")
        return ExitCode.DONE
    if name not in commands:
        what = f"unknown command {one_line(name)!r}" if name else "a command is needed"
        LOG.error("%s%s (see %s --help)", what, did_you_mean(name, commands), prog)
        return ExitCode.REFUSED
    return _carried_out(*command_parser(program, name, commands[name]), options)


def _carried_out(parser: Parser, module: ModuleType, options: Sequence[str]) -> int:
    if hasattr(module, "TAKES_OVERRIDES"):
        arguments, overrides = parser.parse_known_args(options)
        arguments.overrides = overrides
    else:
        parser.check_options(options)
        arguments = parser.parse_args(options)
    set_level(arguments.verbose, arguments.quiet)
    return int(module.run(arguments))


def command_parser(program: str, name: str, does: str) -> tuple[Parser, ModuleType]:
    """The options of a command, and its module."""
    with imports():
        module = import_module(f"{program}.commands.{name.replace('-', '_')}")
    return module_parser(f"python -m {program} {name}", module, does), module


def module_parser(prog: str, module: ModuleType, does: str = "") -> Parser:
    """The options of a command, whose module's docstring is its help."""
    about, _, more = (module.__doc__ or does).partition("\n\n")
    parser = Parser(prog, about, more)
    module.add_arguments(parser)
    levels = parser.add_argument_group("messages")
    levels.add_argument("--verbose", action="store_true", help="say also what is opened, resumed and chosen")
    levels.add_argument("--quiet", action="store_true", help="say only what is wrong: neither progress nor notes")
    return parser


def complain(error: BaseException) -> int:
    """Say in one line what is wrong; returns the exit code."""
    LOG.error("%s", error_line(error))
    return exit_code(error)


def exit_code(error: BaseException) -> int:
    """That of an error which a user can do something about."""
    return int(getattr(error, "exit_code", ExitCode.FAILED))
