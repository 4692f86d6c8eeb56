"""The command line: options come from `config`, what they do from `commands`, messages and exit codes from here."""

from mlflow_unlearn.console import STARTED, note, one_line, own_outputs, say, without_passwords  # noqa: F401, I001 (first: STARTED is when we start)

import atexit
import io
import gc
import os
import re
import signal
import sys
import traceback
import types
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import click
from pydantic import ValidationError

from mlflow_unlearn import __version__
from mlflow_unlearn.answer import (
    Answer,
    Kind,
    Problem,
    CommandResult,
    answers_of_ranks,
    deliver,
    nothing_else,
    problem,
    result_of,
    schema,
)
from mlflow_unlearn.config import (
    COMMANDS,
    STORAGE_VARIABLE,
    Command,
    HardwareOptions,
    ReadOptions,
    Request,
    Train,
    Tune,
    as_arguments,
)
from mlflow_unlearn.data.functions import no_exit
from mlflow_unlearn.errors import WAYS_OUT, AlreadyDone, BrokenMethod, NotPassed, UnlearnError, UnlearnWarning
from mlflow_unlearn.parsing import message
from mlflow_unlearn.quiet import for_authors, quiet_libraries
from mlflow_unlearn.shell import ALSO, ShellCommand, experiment
from mlflow_unlearn.spelling import spelled, spelling

PROGRAM = "mlflow-unlearn"
_EXAMPLE = 68
"""Characters of an example's line in help of 80 columns."""


def command_function(name: str) -> Callable[[Any], CommandResult | None]:
    """The function that runs the command ``name``: the one of that name in the file of that name.

    Imported when it is called: a decision about a version needs no tuner.
    """
    own = name.replace("-", "_")
    function: Callable[[Any], CommandResult | None] = getattr(_loaded(f"mlflow_unlearn.commands.{own}"), own)
    return function


def _loaded(name: str) -> types.ModuleType:
    """A module, imported now."""
    if name not in sys.modules:
        # What MLflow and its libraries load stays: to look through it for garbage again and again takes longer than a
        # search of a large registry.
        gc.disable()
        try:
            import_module(name)
            gc.freeze()
        finally:
            gc.enable()
    return sys.modules[name]


def result_class(name: str) -> type[CommandResult]:
    """What the command ``name`` returns."""
    returned = result_of(command_function(name))
    if returned is None:
        raise TypeError(f"the command {name} returns no result: annotate its function")
    return returned


def answer_schema(name: str) -> str:
    """The text of ``docs/schemas/NAME.schema.json``."""
    return schema(name, result_class(name))


class _Ended(Exception):
    """The ranks have ended and printed their messages; one of them may have left an answer."""

    def __init__(self, code: int, answer: str | None = None) -> None:
        super().__init__(code)
        self.code, self.answer = code, answer


class Terminated(BaseException):
    """SIGTERM: like KeyboardInterrupt, so that the run ends as KILLED and files are cleaned up."""


def _stop(signum: int, frame: FrameType | None) -> None:
    """End the command, but not during a transaction: half done, it would keep its lock on the database."""
    caller = frame
    while caller is not None:
        name = str(caller.f_globals.get("__name__", ""))
        # A thread of a pool that was started and is not yet known to it would be waited for without end.
        pool = name == "concurrent.futures.thread" and caller.f_code.co_name in ("submit", "_adjust_thread_count")
        if pool or "sqlalchemy" in name or name.startswith(("mlflow.store.db", "optuna.storages")):
            # Transactions take milliseconds: try again.
            signal.signal(signal.SIGALRM, lambda _, later: _stop(signum, later))
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            return
        caller = caller.f_back
    if "RANK" in os.environ:
        from mlflow_unlearn.distributed import ranks

        if ranks.peer_has_ended():
            raise ranks.RankLost
    raise KeyboardInterrupt if signum == signal.SIGINT else Terminated


def _folded(example: str) -> str:
    """An example on lines of less than 80 characters, which a shell still reads as one."""
    lines = [""]
    for part in re.split(r" (?=--)", example):
        if len(lines[-1]) + len(part) > _EXAMPLE and lines[-1]:
            lines.append("")
        lines[-1] += f" {part}" if lines[-1] else part
    return " \\\n    ".join(lines)


def _command(name: str, config: type[Command]) -> click.Command:
    def callback(experiment_name: str = "", experiment_id: str = "", **values: Any) -> CommandResult | None:
        if experiment_name or experiment_id:
            # As `mlflow run` has them; for this process and all that it starts.
            with experiment(experiment_name, experiment_id):
                return callback(**values)
        try:
            checked = config.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            option = spelled(str(first["loc"][0]), first["input"])
            raise click.UsageError(f"{option} is not usable: {message(first)}") from error
        alone = nothing_else if checked.format == "json" else nullcontext
        with alone():
            _check_named(checked)
        if not isinstance(checked, HardwareOptions):
            with no_exit("your own code"), alone():
                return _with_next_step(command_function(name)(checked), checked)
        # Here and not above: --help must not wait for torch and mlflow.
        from mlflow_unlearn.distributed import launch

        if launch.should_launch(checked.processes):
            if isinstance(checked, Tune):
                os.environ[STORAGE_VARIABLE] = checked.storage
            arguments = [name, *as_arguments(checked)]
            with alone(), answers_of_ranks() as answer:
                code = launch.launch(arguments, checked.processes, device=checked.device, on_lost_run=_fail_lost_run)
                raise _Ended(code, answer(code))
        from mlflow_unlearn.distributed import ranks

        with alone(), ranks.joined_up() as leads:
            if leads:
                return _with_next_step(command_function(name)(checked), checked)
            ranks.worker_loop()
            raise _Ended(0)

    return ShellCommand(
        name,
        config,
        callback=callback,
        help=f"{config.__doc__}\n\n\b\nExample:\n  {_folded(config.example)}",
        short_help=(config.__doc__ or "").splitlines()[0],
    )


def _check_named(options: Command) -> None:
    """Refuse what is not there, in commands that would load torch before they look it up.

    Not on a rank, for which its launcher has done so; nor under `mlflow run`, whose run tells what the command was.
    """
    early = isinstance(options, ReadOptions | Request | Train)
    if early and not {"RANK", "MLFLOW_RUN_ID"} & os.environ.keys():
        _loaded("mlflow_unlearn.registry.named").check_named(options)


def _with_next_step(result: CommandResult | None, options: Command) -> CommandResult | None:
    """The result of a command, once the one that follows it has been shown; a program knows what to do."""
    if result is not None and options.format != "json" and (following := result.next_step(options)) is not None:
        sys.stdout.flush()
        note(f"Next: {following}")
    return result


_HELP = """Unlearn a registered MLflow model version with LoTUS, measure it, and register the result.

\b
Example:
  mlflow-unlearn request --model-uri models:/clf/3 --forget ids.csv
  mlflow-unlearn unlearn --model-uri models:/clf/3

The same commands are entry points of the MLflow Project:

\b
  mlflow run . -e unlearn -P model_uri=models:/clf/3
"""


@click.group(
    commands={name: _command(name, config) for name, config in COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    help=_HELP,
    epilog="Exit codes: 0 done or passed, 2 bad input, 3 judged and refused (nothing to unlearn, no trial met the "
    "constraints, a version that does not pass or differs from its evidence), 130 interrupted, 143 terminated.",
)
@click.version_option(__version__, "-V", "--version", prog_name=PROGRAM)
def cli() -> None:
    """The group of all commands."""


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: one sentence for bad input, a traceback only for our own bugs or --debug."""
    # `mlflow run` sets it, and the command takes it away.
    with spelling("project" if os.environ.get("MLFLOW_RUN_ID") else "shell"):
        _main(sys.argv[1:] if argv is None else argv)


def _main(arguments: list[str]) -> NoReturn:
    own_outputs()
    # Torch's threads, when they have nothing to do, spin for milliseconds on cores that readers of images could use.
    # Read when torch is loaded, by this process and by those that it starts.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    warnings.showwarning = partial(_show_warning, debug=_wants_debug(arguments))
    sys.excepthook = partial(_show_crash, arguments)
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else Ctrl-C is ignored, as in background jobs
        signal.signal(signal.SIGINT, _stop)
    answer: dict[str, Any] = {}  # nothing, where another process has answered, or there is no question
    try:
        with quiet_libraries(_wants_debug(arguments)):
            returned = cli.main(arguments, prog_name=PROGRAM, standalone_mode=False)
        answer = {"result": returned} if isinstance(returned, CommandResult) else {}  # else it was --help
        code = 0
    except (click.ClickException, UnlearnError, BrokenMethod) as error:
        # The launcher ends a rank that is telling why it ends; one of them may still wait for a transaction's end.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if _wants_debug(arguments):
            _print_error(traceback.format_exc())
        whole = error.format_message() if isinstance(error, click.ClickException) else str(error)
        whole = "; ".join((whole, *getattr(error, "__notes__", ())))
        sentence, usage = one_line(whole), io.StringIO()
        if isinstance(error, click.ClickException):
            error.show(usage)
        if isinstance(error, NotPassed):
            _print_error("\n".join([sentence, *_ways_out(error)]))
        else:
            _print_error(usage.getvalue().replace(whole, sentence) or f"Error: {sentence}")
        _tag_project_run(sentence)  # only if the command has made no run, which takes the variable away
        answer |= {"error": problem(error, sentence), "result": getattr(error, "result", None)}
        code = error.exit_code
        signal.signal(signal.SIGTERM, _stop)
    except AlreadyDone as done:
        _print_error(str(done)) if _answers(arguments) else say(str(done))
        answer["note"] = str(done)
        if isinstance(done.result, CommandResult):  # a part of what the command returns
            answer["result"] = result_class(_name_of(arguments))(**dict(done.result))
        code = 0
    except _Ended as ended:
        code = ended.code
        if ended.answer is not None and _answers(arguments):
            deliver(ended.answer)
        elif code and "RANK" not in os.environ:  # killed before they could say anything
            kind: Kind = "stopped" if code in (130, 143) else "crashed"
            answer["error"] = Problem(kind=kind, message="a process of this command was killed")
    except (click.Abort, KeyboardInterrupt) as error:
        _print_error(f"Interrupted: {_outcome(error)}.")
        answer["error"] = Problem(kind="stopped", message=_outcome(error))
        code = 130
    except Terminated as error:
        _print_error(f"Terminated: {_outcome(error)}.")
        answer["error"] = Problem(kind="stopped", message=_outcome(error))
        code = 143
    if answer and _answers(arguments):
        _answer(arguments, code, **answer)
    atexit.register(_ignore_signals)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _ways_out(verdict: NotPassed) -> list[str]:
    return [WAYS_OUT, *(f"  {one_line(way)}" for way in verdict.ways_out)] if verdict.ways_out else []


def _outcome(error: BaseException) -> str:
    """What a command that was stopped has done."""
    notes = [one for said in (error, error.__cause__) for one in getattr(said, "__notes__", ())]  # click wraps Ctrl-C
    return "; ".join(notes) or "nothing was registered, requests stay as they were"


def _ignore_signals() -> None:
    """While the interpreter ends a signal would take the place of our exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _print_error(text: str) -> None:
    """Print to standard error, without passwords."""
    print(without_passwords(text.rstrip("\n")), file=sys.stderr)


def _show_crash(
    arguments: list[str], kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    """In the place of Python's own traceback, which would show passwords."""
    _print_error("".join(traceback.format_exception(kind, error, trace)))
    if _answers(arguments):
        _answer(arguments, 1, error=problem(error, one_line(f"{kind.__name__}: {error}")))


def _answer(arguments: list[str], code: int, **parts: Any) -> None:
    """Give the one document of a command."""
    answer = Answer[CommandResult](command=_name_of(arguments), exit_code=code, **parts)
    # A signal must not leave half a document, nor, as a crash, have a second one follow.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    deliver(answer.to_json())
    sys.stdout.flush()
    sys.excepthook = partial(_show_crash, [])
    for number, handler in before.items():
        signal.signal(number, handler)


def _name_of(arguments: list[str]) -> str:
    """The command; empty where there is none of that name."""
    return next((argument for argument in arguments if argument in COMMANDS), "")


_show_other_warning = warnings.showwarning


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, *where: Any, debug: bool = False, **more: Any
) -> None:
    """Our own warnings are a sentence, without the line of code that its reader has no use for."""
    if issubclass(category, UnlearnWarning):
        _print_error(one_line(f"Warning: {message}"))
    elif debug or not for_authors(category, filename):
        _show_other_warning(without_passwords(str(message)), category, filename, *where, **more)


def _given(arguments: list[str], *spellings: str) -> str | None:
    """An option's value in the raw arguments, since the error may have come before they were parsed; None without."""
    for position, argument in reversed([*enumerate(arguments)]):  # the last one counts
        name, _, value = argument.partition("=")
        if name in spellings:
            return (value or "".join(arguments[position + 1 : position + 2])).lower()
    return None


def _wants_debug(arguments: list[str]) -> bool:
    """Whether --debug is on."""
    given = _given(arguments, "--debug", *ALSO["debug"])
    no_value = given is not None and (given.startswith("-") or ":" in given)  # another option, or a URI alone
    return no_value or given in ("", "true", "1", "yes", "on", "t", "y")


def _answers(arguments: list[str]) -> bool:
    """Whether there is to be an answer for programs."""
    return _given(arguments, "--format") == "json"


def _fail_lost_run(run_id: str) -> None:
    from mlflow_unlearn.registry import tracking

    tracking.fail_lost_run(run_id)


def _tag_project_run(sentence: str) -> None:
    """Under `mlflow run` the run exists before we parse: leave the sentence on it, as on every failed run."""
    if os.environ.get("MLFLOW_RUN_ID"):
        from mlflow_unlearn.registry import tracking

        try:
            tracking.connect()
            tracking.tag_error(os.environ["MLFLOW_RUN_ID"], sentence)
        except Exception as error:  # Any error of a store that is not there, or has no such run.
            _print_error(one_line(f"Note: the run {os.environ['MLFLOW_RUN_ID']} could not be tagged: {error}"))
