"""Pages whose commands are given as they are typed there."""

import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from answers import checked
from stores import call

ID = re.compile(r"\b[0-9a-f]{12}\b")


def masked(text: str) -> Counter[str]:
    """Its words, without what differs from one time and machine to the next: where lines break, among other things."""
    text = re.sub(r"\b(m-)?[0-9a-f]{12,}\b", "ID", re.sub("[┏┓┗┛━┳┻╇┡┩┃│├┤┼└┘─┴┬]", " ", text))
    text = re.sub(r"\d+", "#", re.sub(r"-?\d+\.\d+", "#", text.replace("−", "-")))
    return Counter(text.split())


class Page:
    """The commands of the page, one after another, each with what the page says that it prints."""

    def __init__(
        self, path: Path, folder: Path, *, ours: Mapping[str, str], more: Mapping[str, Sequence[object]] | None = None
    ) -> None:
        """The page's text says one thing and here it is another (``ours``); some commands get more arguments."""
        self.text = path.read_text(encoding="utf-8")
        blocks = re.findall(r"^```console\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)
        steps = [step.partition("\n") for block in blocks for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
        self._steps = [(command, output) for command, _, output in steps]
        self._folder, self._ours, self._more = folder, dict(ours), more or {}

    def left(self) -> list[str]:
        return [command for command, _ in self._steps]

    def _next(self, beginning: str) -> tuple[str, str]:
        command, output = self._steps.pop(0)
        for word, ours in self._ours.items():
            command = command.replace(word, ours)
        assert command.startswith(beginning), command
        return command, output

    def give(self, name: str, code: int | None = 0) -> dict[str, Any]:
        """Give the next command, which is this one; its result. Without a code it may be refused."""
        command, output = self._next(f"mlflow-unlearn {name}")
        done = call(*shlex.split(command)[1:], *self._more.get(name, ()), "--format", "json")
        ended = done.code if code is None and done.code in (0, 3) else code or 0
        answer = checked(done, name, code=ended)
        if code is not None:
            self._compare(command, output, done.err)
        result: dict[str, Any] = answer["result"]
        return result

    def shell(self, beginning: str) -> str:
        command, output = self._next(beginning)
        done = subprocess.run(["bash", "-c", command], cwd=self._folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        self._compare(command, output, done.stdout)
        return done.stdout

    def _compare(self, command: str, output: str, printed: str) -> None:
        """All that the page has was printed, but for figures; from now on its ids are those of this store."""
        missing = [*(masked(output.replace("\n…\n", "\n")) - masked(printed.replace(str(self._folder), "~")))]
        assert not missing, f"{command}\nprinted:\n{printed}\nthe page has {missing} besides"
        for word, ours in zip(ID.findall(output), ID.findall(printed), strict=False):
            self._ours.setdefault(word, ours)  # `request` names all of them first
