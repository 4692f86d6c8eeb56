"""The file of `listen`: which events of which models are answered by which commands."""

import json
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from mlflow_unlearn.config import COMMANDS
from mlflow_unlearn.errors import UnlearnError, did_you_mean
from mlflow_unlearn.parsing import NumbersAreNumbers, load_options, message, read_text
from mlflow_unlearn.spelling import spelled

STEPS = tuple(name for name, command in COMMANDS.items() if "model_uri" in command.model_fields)
"""Commands that a chain can have: those about one version."""
FULFILLING = ("unlearn", "tune")
"""Those that fulfil the pending requests of a version, and register a new one."""
PRODUCING = (*FULFILLING, "compare")
"""Those after which the chain goes on with the version that they have registered."""
_VARIABLE = "env:"
_ALIAS = "alias:"


class ModelRule(NumbersAreNumbers):
    """When something happens to one of these models, then run these commands, one after the other.

    Attributes:
        name: of the registered models, a pattern such as ``clf*``.
        when: ``request``, a forget request is pending; ``version``, a version was created; ``alias:PATTERN``, an alias
            was set.
        then: commands; each one gets the version of the event, or the one that a command before it has registered.
        options: of these commands.
        despite: commands after whose refusal (exit code 3) the chain goes on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    when: tuple[str, ...] = Field(min_length=1)
    then: tuple[str, ...] = Field(min_length=1)
    options: dict[str, dict[str, Any]] = {}
    despite: tuple[str, ...] = ()

    @field_validator("when")
    @classmethod
    def _events(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if value not in ("request", "version") and not value.removeprefix(_ALIAS) != value != _ALIAS:
                raise ValueError(f"{value!r} is not an event: valid values: 'request', 'version', 'alias:NAME'")
        return values

    @field_validator("then")
    @classmethod
    def _commands(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if value not in STEPS:
                raise ValueError(f"there is no command {value!r} about a version; {did_you_mean(value, STEPS)}")
        return values

    @model_validator(mode="after")
    def _fits(self) -> "ModelRule":
        for key, names in (("options", self.options), ("despite", self.despite)):
            for name in names:
                if name not in self.then:
                    raise ValueError(f"{key} names {name!r}, which is not one of then: {', '.join(self.then)}")
        made = next((name for name in self.then if name in PRODUCING), None)
        if made is not None and "retire" in self.then[self.then.index(made) :]:
            raise ValueError(f"then has 'retire' after {made!r}: it would retire the new version, so leave it out")
        for name in self.then:
            self._check_options(name)
        if "request" in self.when:
            self._check_fulfilling()
        return self

    def _check_options(self, name: str) -> None:
        """As the shell would: a misspelt option must not wait for the first request."""
        command, given = COMMANDS[name], as_texts(self.options.get(name, {}))
        if "model_uri" in given:
            raise ValueError(f"options.{name} names model_uri, which comes from the event: leave it out")
        try:
            command.model_validate({"model_uri": "models:/NAME/1", **given})
        except ValidationError as error:
            first = error.errors()[0]
            where = str(first["loc"][0])
            if first["type"] == "extra_forbidden":
                known = [field.alias or key for key, field in command.model_fields.items()]
                raise ValueError(f"{name} has no option {where!r}; {did_you_mean(where, known)}") from error
            if first["type"] == "missing":
                raise ValueError(f"{name} needs the option {where!r}: give it under options.{name}") from error
            raise ValueError(f"options.{name}.{where} = {first['input']!r}: {message(first)}") from error

    def _check_fulfilling(self) -> None:
        first = self.then[0]
        if first not in FULFILLING:
            raise ValueError(f"then begins with {first!r}: on a request, begin with {' or '.join(FULFILLING)}")
        given = as_texts(self.options.get(first, {}))
        for name, harmless in (("forget", ""), ("plan", "false"), ("register", "best")):
            if given.get(name, harmless) != harmless:
                raise ValueError(
                    f"options.{first}.{name} = {given[name]!r} would leave the request pending: leave it out"
                )

    def answers(self, model: str, kind: str, detail: str) -> bool:
        """Whether this rule is about such an event; ``detail`` is the alias."""
        if not fnmatchcase(model, self.name):
            return False
        if kind != "alias":
            return kind in self.when
        return any(fnmatchcase(_ALIAS + detail, one) for one in self.when if one.startswith(_ALIAS))

    def arguments(self, command: str) -> list[str]:
        """The options of a command as the shell takes them."""
        given = as_texts(self.options.get(command, {}))
        return [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]


def as_texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Options as the shell takes them: a list is separated by commas, a mapping is JSON.

    >>> as_texts({"relearn": True, "methods": ["lotus", "ssd"], "params": {"alpha": 2}})
    {'relearn': 'true', 'methods': 'lotus,ssd', 'params': '{"alpha": 2}'}
    """
    found = {}
    for name, value in values.items():
        if isinstance(value, list) and not any(isinstance(each, list | dict) for each in value):
            value = ",".join(map(str, value))
        found[name] = value if isinstance(value, str) else json.dumps(value) if value is not None else ""
    return found


class ListenFile(NumbersAreNumbers):
    """What the file says; paths in it, and in the options of commands, are relative to its folder.

    Attributes:
        secret: ``env:NAME``, the environment variable with the secret of the webhook.
        queue: the file of the queue, SQLite.
        workers: how many models are worked on at once; of one model always one job.
        attempts: of each command, before its job has failed.
        backoff: seconds before the second attempt, doubled before each further one.
        replay_window: seconds by which the timestamp of a delivery may differ from the clock here.
        max_body: bytes of a delivery.
        sweep: seconds after which the registry is searched for pending requests of which no event has come.
        models: the first rule that answers to an event is the one that counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    secret: str
    queue: str = Field("queue.sqlite", min_length=1)
    workers: int = Field(1, ge=1, le=64)
    attempts: int = Field(3, ge=1, le=100)
    backoff: float = Field(30.0, ge=0, le=86400)
    replay_window: float = Field(300.0, gt=0, le=86400)
    max_body: int = Field(1_000_000, ge=1000, le=100_000_000)
    sweep: float = Field(600.0, ge=1, le=86400)
    models: tuple[ModelRule, ...] = Field(min_length=1)
    _folder: Path = PrivateAttr(default=Path())

    @field_validator("secret")
    @classmethod
    def _names_a_variable(cls, value: str) -> str:
        if not value.startswith(_VARIABLE) or value == _VARIABLE:
            # Not quoted: it may be the secret itself.
            raise ValueError("the secret does not belong in the file: write env:NAME, and set that variable")
        return value

    @property
    def folder(self) -> Path:
        """Where the file is: commands run there."""
        return self._folder

    @property
    def queue_path(self) -> Path:
        """Of the queue."""
        return self._folder / Path(self.queue).expanduser()

    @property
    def secret_variable(self) -> str:
        """The environment variable that holds the secret."""
        return self.secret.removeprefix(_VARIABLE)

    def read_secret(self) -> bytes:
        """The secret of the webhook.

        Raises:
            UnlearnError: the environment does not hold it.
        """
        value = os.environ.get(self.secret_variable, "")
        if not value:
            raise UnlearnError(
                f"there is no environment variable {self.secret_variable!r}: set it to the secret of the webhook"
            )
        return value.encode()

    def rule(self, model: str, kind: str, detail: str) -> ModelRule | None:
        """The first rule that answers to an event."""
        return next((rule for rule in self.models if rule.answers(model, kind, detail)), None)


def read_file(path: str) -> ListenFile:
    """The file of `listen`.

    Raises:
        UnlearnError: it cannot be read, or says what is not possible.
    """
    try:
        values = load_options(read_text(path), yaml=True)
    except OSError as error:
        raise UnlearnError(f"{spelled('config', path)} cannot be read ({error.strerror}): give a YAML file") from error
    except ValueError as error:
        raise UnlearnError(f"{spelled('config', path)} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise UnlearnError(f"{spelled('config', path)} holds no names with values, such as secret: and models:")
    try:
        file = ListenFile.model_validate(values)
    except ValidationError as error:
        raise UnlearnError(f"{spelled('config', path)} is not usable: {_reason(error)}") from error
    file._folder = Path(path).expanduser().resolve().parent
    return file


def _reason(error: ValidationError) -> str:
    """Where the first error is, what is there, and what would be right; a misspelt key explains others."""
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        fields = ModelRule.model_fields if len(first["loc"]) > 1 else ListenFile.model_fields
        return f"there is no key {where!r}; {did_you_mean(str(first['loc'][-1]), fields)}"
    if first["type"] == "missing":
        return f"the key {where!r} is missing"
    given = "" if first["type"] == "value_error" else f" = {first['input']!r}"
    return f"{where}{given}: {message(first)}"
