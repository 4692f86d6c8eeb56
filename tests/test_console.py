"""Notes and bars go to standard error; tables to standard output."""

import io
import sys

import pytest

from mlflow_unlearn.console import note, stdout, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_note_is_one_line_on_standard_error_as_it_was_written(capsys):
    sentence = "Note: [red] is not markup, 12 is not highlighted; " + "long " * 60 + "end."
    note(sentence)
    assert capsys.readouterr() == ("", sentence + "\n")


def test_without_a_terminal_there_is_no_bar(capsys):
    items = [1, 2, 3]
    assert list(track(items, "reading", enabled=True)) == items
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("enabled", "shown"), [(True, True), (False, False)])
def test_on_a_terminal_there_is_one_unless_it_is_switched_off(monkeypatch, enabled, shown):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert list(track(iter("abc"), "reading", enabled=enabled, total=3)) == ["a", "b", "c"]
    assert ("reading" in terminal.getvalue()) is shown


def test_a_piped_table_has_the_width_that_it_is_given(monkeypatch):
    assert stdout(77).width == 77
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "55")
    assert stdout(77).width == 55
