"""What is printed, where stdout knows few letters or is lost."""
# ruff: noqa: RUF001 - letters that look alike are what it is about

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import infoscope
from infoscope.report.tables import Column, Stat, Table
from infoscope.runtime import output
from infoscope.runtime.output import LostOutput, Terminal, adapt_streams, end_output, say
from tests.support.pipeline_samples import copy_run, finish_tiny_run, make_overrides

FOREIGN = "71.8 ± 0.2 ≤ 3 × 4 − 1 → γ = 10⁻³ °∅†↑ ─┼│ █░ “ü” é ß 你 \udcff.jpg …"


@pytest.fixture
def stdout(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], io.BytesIO]:
    def open_as(encoding: str) -> io.BytesIO:
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, newline="\n"))
        adapt_streams()
        return raw

    return open_as


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("ascii", "71.8 +- 0.2 <= 3 x 4 - 1 -> gamma = 10-3  degnone+^ -+| ## 'u' e ss \\u4f60 \\xff.jpg ..."),
        ("latin-1", "71.8 ± 0.2 <= 3 × 4 - 1 -> gamma = 10-³ °none+^ -+| ## 'ü' é ß \\u4f60 \\xff.jpg ..."),
        ("cp1252", "71.8 ± 0.2 <= 3 × 4 - 1 -> gamma = 10-³ °none†^ -+| ## “ü” é ß \\u4f60 \\xff.jpg …"),
        ("utf-8", FOREIGN.replace("\udcff", "\\xff")),
    ],
)
def test_letters_that_an_encoding_lacks_are_written_in_plain_ones(
    stdout: Callable[[str], io.BytesIO], encoding: str, written: str
):
    raw = stdout(encoding)
    say(FOREIGN)
    assert raw.getvalue().decode(encoding) == f"{written}\n"


def test_a_table_remains_one(stdout: Callable[[str], io.BytesIO]):
    raw = stdout("ascii")
    table = Table("removal", "Feature removal", [Column("top1", "top-1 ↑", digits=1), Column("n", "n", digits=0)])
    table.add_row(Stat(71.8, 0.2, 3), 5)
    table.add_row(Stat(9.1, 0.3, 3), 12)
    table.print(Terminal(width=60))
    lines = [line for line in raw.getvalue().decode("ascii").splitlines() if " +- " in line]
    assert [line.split() for line in lines] == [["71.8", "+-", "0.2", "|", "5"], ["9.1", "+-", "0.3", "|", "12"]]
    assert len({line.index("|") for line in lines}) == 1


class Lost(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_lost_stdout_ends_the_run_whatever_prints(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(LostOutput):
        Terminal(file=Lost()).print("built")
    monkeypatch.setattr(sys, "stdout", Lost())
    with pytest.raises(LostOutput):
        say("done")
    monkeypatch.setattr(sys, "stdout", None)  # of a program without one
    say("done")
    assert end_output() == 0


def test_a_terminal_without_a_size_is_written_to(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "0")
    adapt_streams()
    stream = io.StringIO()
    Terminal(file=stream).print("built")
    assert stream.getvalue() == "built\n"


def test_stderr_may_be_lost_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", Lost())
    output.complain("infoscope: a sentence")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish_tiny_run(tmp_path_factory)[0]


def start(arguments: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "infoscope.app", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, check=False, **options)  # pyright: ignore


@pytest.mark.long
def test_a_run_in_the_c_locale_prints_its_report_and_names_an_encoding_wherever_it_opens_text(
    finished: Path, tmp_path: Path
):
    environ = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environ |= {"PYTHONWARNDEFAULTENCODING": "1", "PYTHONWARNINGS": "default::EncodingWarning"}
    arguments = make_overrides(copy_run(finished, tmp_path), "logger=csv")
    done = start(arguments, stdout=subprocess.PIPE, env=environ)
    assert done.returncode == 0, done.stderr.decode()
    assert "Feature removal" in done.stdout.decode("ascii")
    assert "<=" in done.stdout.decode("ascii")
    ours = str(Path(infoscope.__file__).parent)
    assert [line for line in done.stderr.decode().splitlines() if "EncodingWarning" in line and ours in line] == []


@pytest.mark.long
@pytest.mark.parametrize("buffering", ["", "1"])
def test_a_closed_pipe_is_no_fault_and_a_full_disk_one_sentence(buffering: str):
    environ = {**os.environ, "PYTHONUNBUFFERED": buffering}
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = start(["--cfg", "job"], stdout=pipe, env=environ)
    assert (done.returncode, done.stderr) == (141, b"")
    with Path("/dev/full").open("wb") as full:
        done = start(["--cfg", "job"], stdout=full)
    assert done.returncode == 2
    assert done.stderr.decode().startswith("infoscope: cannot print any more (No space left on device): send stdout")
    assert done.stderr.count(b"\n") == 1
