"""How the options of `config` are typed in a shell: short, as flags, and a version's URI without its option's name.

MLproject gives every option by its full name and with a value; what is typed here is written out like that.
"""

import os
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from types import UnionType
from typing import Any

import click
from pydantic.fields import FieldInfo

from mlflow_unlearn.config import Command, HardwareOptions, LoadOptions, PublishOptions, ReadOptions, options
from mlflow_unlearn.console import be_quiet

ALSO = {
    "model_uri": ("-m",),
    "debug": ("-v", "--verbose"),
    "register_as": ("--name",),
    "aliases": ("--alias",),
}
"""Other spellings: short ones, and the word that other commands have for the same thing."""
_POSITIONAL = {"model_uri": "MODEL_URI", "action": "show", "data": "DATA", "name": "NAME"}
"""What may be given by its value alone: the first of these that a command has."""
_GROUPS: dict[type, str] = {
    LoadOptions: "What may be loaded",
    ReadOptions: "How the version and its data are read, where its record is missing or wrong",
    HardwareOptions: "Where and how to compute",
    PublishOptions: "What is published",
    Command: "What is printed",
}
"""Headings in the help, by the class that has the options."""
_LONGEST_CHOICE = 60
"""Characters of a list of choices beside an option, in help of 80 columns."""
_LONE = {"-q", "--quiet", "-h", "--help"}
_EXPERIMENT: list[click.Parameter] = [
    click.Option(
        [f"--experiment-{what}"],
        default="",
        help=f"{what.capitalize() if what == 'name' else 'Id'} of the experiment of the run; default: that of the "
        "version's own run, unless MLFLOW_EXPERIMENT_NAME or _ID names one.",
    )
    for what in ("name", "id")
]
"""Of the shell alone: `mlflow run` has its own options of these names."""


@contextmanager
def experiment(name: str, number: str) -> Iterator[None]:
    """Inside the block, MLflow takes the experiment of this name or id.

    Raises:
        click.UsageError: both are given.
    """
    if name and number:
        raise click.UsageError("--experiment-name and --experiment-id name one experiment: give one of them")
    given = {"MLFLOW_EXPERIMENT_NAME": name, "MLFLOW_EXPERIMENT_ID": number}
    before = {variable: os.environ.pop(variable, None) for variable in given}
    os.environ.update({variable: value for variable, value in given.items() if value})
    try:
        yield
    finally:
        for variable, value in before.items():
            os.environ.pop(variable, None)
            if value is not None:
                os.environ[variable] = value


class ShellCommand(click.Command):
    """A command with the options of one of `config`'s classes."""

    def __init__(self, name: str, config: type[Command], **more: Any) -> None:
        """Take over all of its options.

        Args:
            name: of the command.
            config: its options.
            more: for click.
        """
        self._config, self._fields = config, options(config)
        quiet = click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=lambda _, __, given: be_quiet(given),
            help="No notes and no progress bars: results, warnings and errors alone.",
        )
        required = (
            one for one in _POSITIONAL if one in self._fields and (one != "data" or self._fields[one].is_required())
        )
        self._positional = next(required, None)
        super().__init__(
            name,
            params=[*(_option(*item) for item in self._fields.items()), *_EXPERIMENT * config.makes_run, quiet],
            **more,
        )

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Also what may be given by its value alone."""
        pieces = super().collect_usage_pieces(ctx)
        return pieces if self._positional is None else [*pieces, f"[{_POSITIONAL[self._positional]}]"]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write out flags, and what stands alone.

        Raises:
            UsageError: what stands alone is given by its option as well, or an option is not usable.
        """
        try:
            return super().parse_args(ctx, self._written_out(args))
        except click.BadParameter as error:
            name = error.param.name if error.param is not None and not isinstance(error, click.MissingParameter) else ""
            if name and name == self._positional and not _typed(name, args):
                error.param_hint = repr(name.upper())
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """In groups: the command's own ones, and those that it shares with others."""
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                groups.setdefault(self._group(parameter.name or ""), []).append(record)
        groups[_GROUPS[Command]] = groups.pop(_GROUPS[Command])  # last
        for title, records in filter(lambda group: group[1], groups.items()):
            with formatter.section(title):
                formatter.write_dl(records)

    def _group(self, name: str) -> str:
        """By the class whose option it is."""
        if name in (option.name for option in _EXPERIMENT):
            return "Where the run is made"
        own = next(
            (each for each in self._config.__mro__ if {name, f"{name}_"} & {*vars(each).get("__annotations__", ())}),
            Command,
        )
        if own is self._config:
            return "Options"
        return _GROUPS[own]

    def _written_out(self, args: list[str]) -> list[str]:
        flags = {s for name, field in self._fields.items() if field.annotation is bool for s in _spellings(name)}
        known = {s for name in self._fields for s in _spellings(name)}
        written, alone, position = list[str](), list[str](), 0
        while position < len(args):
            token, following = args[position], args[position + 1 : position + 2]
            position += 1
            if token == "--":
                alone += args[position:]
                break
            if not token.startswith("-") or token == "-":
                alone.append(token)
            elif token.startswith("--no-") and token not in known and (positive := f"--{token[5:]}") in flags:
                written += [positive, "false"]
            elif token in flags:
                # What is no value is said to be none, but for what can only be a URI or a data spec.
                is_value = bool(following) and not following[0].startswith("-") and ":" not in following[0]
                written += [token, *(following if is_value else ["true"])]
                position += is_value
            elif "=" in token or token in _LONE or (token[:2] in known and token not in known):  # -mURI
                written.append(token)
            else:
                written += [token, *following]
                position += 1
        if self._positional is not None and alone:
            if given := _typed(self._positional, written):
                raise click.UsageError(f"{alone[0]!r} is given beside {given[0].partition('=')[0]}: give one of them")
            written = [_spellings(self._positional)[-1], alone.pop(0), *written]
        return [*written, *alone]


def _typed(name: str, args: list[str]) -> list[str]:
    """Where an option's own name was typed."""
    return [token for token in args if token.partition("=")[0] in _spellings(name)]


def _spellings(name: str) -> list[str]:
    """The full one last."""
    return [*ALSO.get(name, ()), f"--{name.replace('_', '-')}"]


def _option(name: str, field: FieldInfo) -> click.Option:
    """One option; pydantic checks bounds and choices, here they shape the help."""
    kinds = typing.get_args(field.annotation) or (field.annotation,)
    extra: dict[str, Any] = {"type": str}
    said = field.description
    if typing.get_origin(field.annotation) is typing.Literal:
        extra["type"] = click.Choice(kinds)
        if len("|".join(kinds)) > _LONGEST_CHOICE:
            extra["metavar"] = "NAME"
            said = f"{said} One of {', '.join(kinds)}."
    elif field.annotation is bool:
        extra |= {"type": bool, "metavar": "[true|false]"}
    elif field.annotation in (int, float):
        extra["type"] = field.annotation
    required = field.is_required()
    optional = isinstance(field.annotation, UnionType) and type(None) in kinds
    if not required:
        default = str(field.default).lower() if field.annotation is bool else field.default
        extra |= {"default": "" if optional else default, "show_default": not optional}
    return click.Option([*_spellings(name), name], required=required, help=said, **extra)
