"""Notes and bars go to standard error; tables to standard output."""

import errno
import io
import os
import sys

import pytest

from mlflow_unlearn.console import PIPED, Output, note, one_line, say, say_command, stdout, track


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


def test_a_table_is_as_wide_as_columns_says_else_a_pipe_has_its_own_width(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert stdout().width == PIPED
    monkeypatch.setenv("COLUMNS", "55")
    assert stdout().width == 55
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert stdout().width == 55


class Gone(io.StringIO):
    """A reader that has gone, or a disk that is full."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.error = OSError(number, os.strerror(number))

    def flush(self) -> None:
        raise self.error


def test_output_is_passed_on_line_by_line_and_without_passwords():
    stream = io.StringIO()
    output = Output(stream)
    print("see http://me:sec", end="", file=output)
    assert stream.getvalue() == ""
    print("ret@host\nnext", end="", file=output)
    assert stream.getvalue() == "see http://me:***@host\n"
    output.flush()
    output.writelines(["a\n", "b\n"])
    assert stream.getvalue() == "see http://me:***@host\nnexta\nb\n"
    assert not output.isatty() and output.seekable()


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_output_that_nobody_reads_ends_nothing(monkeypatch, capsys, number):
    output = Output(Gone(number))
    monkeypatch.setattr(sys, "stdout", output)
    print("one")
    output.flush()
    print("two", flush=True)
    shown = capsys.readouterr().err
    said = f"Note: standard output cannot be written ([Errno {number}] {os.strerror(number)}); the command continues"
    assert shown == ("" if number == errno.EPIPE else f"{said} without it.\n")


def test_output_that_has_been_closed_or_takes_ascii_alone():
    closed = io.StringIO()
    closed.close()
    print("one", file=Output(closed), flush=True)
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print("one – two", file=Output(narrow), flush=True)
    assert narrow.buffer.getvalue() == b"one \\u2013 two\n"


def test_a_message_is_one_short_line():
    long = "start " + "x" * 9000 + "\n\n  end http://me:secret@host"
    shown = one_line(long)
    assert len(shown) < 2000 and "\n" not in shown and "secret" not in shown
    assert shown.startswith("start xxx") and shown.endswith("xxx end http://me:***@host")


def said(capsys, monkeypatch, columns: int, *lines: str) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    say(*lines)
    return capsys.readouterr().out.splitlines()


def test_a_sentence_is_broken_at_blanks_and_an_id_never(capsys, monkeypatch):
    digest = "0123456789abcdef" * 2
    assert said(capsys, monkeypatch, 20, f"the digest {digest} of it") == ["the digest", digest, "of it"]
    assert said(capsys, monkeypatch, 20, "exactly twenty cells", "one two three four twenty-one") == [
        "exactly twenty cells",
        "one two three four",
        "twenty-one",
    ]
    assert said(capsys, monkeypatch, 20, "- a point that takes two", "  an item of two lines") == [
        "- a point that takes",
        "  two",
        "  an item of two",
        "  lines",
    ]
    assert said(capsys, monkeypatch, 20, "chances of at least 95 % and") == ["chances of at least", "95 % and"]
    assert said(capsys, monkeypatch, 20, "日本語日本語 日本語日本語") == ["日本語日本語", "日本語日本語"], (
        "two cells each"
    )


def test_nothing_in_a_line_is_markup_steers_a_terminal_or_is_a_password(capsys, monkeypatch):
    lines = said(capsys, monkeypatch, 80, "[red]a[/red] :smile: b\x1b[2J http://me:secret@host")
    assert lines == ["[red]a[/red] :smile: b[2J http://me:***@host"]


def test_a_command_is_never_broken(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    say_command("mlflow-unlearn review --model-uri models:/clf/2")
    assert capsys.readouterr().out == "  mlflow-unlearn review --model-uri models:/clf/2\n"
