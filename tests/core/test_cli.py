"""The plumbing of the command-line programs."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from clsloc import cli
from clsloc.errors import UserError


@pytest.mark.parametrize(
    ("line", "rest", "overrides"),
    [
        ("", "", ""),
        ("A.B 1", "", "A.B 1"),
        ("--input a.jpg b.jpg A.B cpu SEED 1", "--input a.jpg b.jpg", "A.B cpu SEED 1"),
        ("--output OUT", "--output OUT", ""),
        ("--output OUT SEED 1", "--output OUT", "SEED 1"),
        ("--input ONE two", "--input ONE two", ""),
        ("--switch A.B 1", "--switch", "A.B 1"),
        ("--switch A B 1", "--switch A", "B 1"),
        ("--name=value A.B 1", "--name=value", "A.B 1"),
        ("A.B 1 --flag", "A.B 1 --flag", ""),
        ("A.B --flag", "A.B --flag", ""),
        ("TEST.IMS_PER_BATCH -1", "", "TEST.IMS_PER_BATCH -1"),
        ("lower.case 1", "lower.case 1", ""),
    ],
)
def test_trailing_pairs_are_cut_off(line: str, rest: str, overrides: str) -> None:
    assert cli.split_overrides(line.split(), {"--switch"}) == (rest.split(), overrides.split())


def test_a_value_that_looks_like_an_option_is_one_value() -> None:
    parser = cli.make_parser("Test.", config=False, overrides=True)
    parser.add_argument("--flag", action="append")
    args = parser.parse_args(["--flag", "--coco a b.json c", "DATASETS.TRAIN", "('a',)"])
    assert (args.flag, args.opts) == (["--coco a b.json c"], ["DATASETS.TRAIN", "('a',)"])


def test_a_file_in_capitals_is_not_taken_for_a_key() -> None:
    args = "--input a.jpg README LICENSE".split()
    assert cli.split_overrides(args)[1] == ["README", "LICENSE"]
    Path("README").touch()
    assert cli.split_overrides(args)[1] == []


def test_parser_takes_shared_flags_and_overrides() -> None:
    parser = cli.make_parser("Test.")
    parser.add_argument("--input", nargs="+")
    line = "--config-file c.yaml --coco d j.json img --json out.json --input x y MODEL.DEVICE cpu"
    parser.add_argument("--dry", action="store_true")
    assert parser.parse_args(["--config-file", "c", "--dry", "A.B", "1"]).opts == ["A.B", "1"]
    args = parser.parse_args(line.split())
    assert args.opts == ["MODEL.DEVICE", "cpu"]
    assert args.input == ["x", "y"]
    assert (args.config_file, args.json) == ("c.yaml", "out.json")
    assert args.coco == [["d", "j.json", "img"]]


def test_a_leftover_is_an_error_of_the_command_line(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as error:
        cli.make_parser("Test.").parse_args(["--config-file", "c.yaml", "MODEL.DEVICE"])
    assert error.value.code == 2
    assert "MODEL.DEVICE" in capsys.readouterr().err


def test_a_parser_without_config_has_no_overrides() -> None:
    args = cli.make_parser("Test.", config=False).parse_args([])
    assert args == argparse.Namespace(json=None)


def test_a_user_error_becomes_a_sentence_and_status_2(capsys: pytest.CaptureFixture) -> None:
    def main(args: argparse.Namespace) -> int:
        raise UserError("The value 3 is odd; give an even one.")

    parser = cli.make_parser("Test.", config=False)
    parser.prog = "odd.py"
    assert cli.run(main, parser, []) == 2
    assert capsys.readouterr().err == "odd.py: The value 3 is odd; give an even one.\n"


def test_ctrl_c_becomes_a_word_and_status_130(capsys: pytest.CaptureFixture) -> None:
    def main(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    assert cli.run(main, cli.make_parser("Test.", config=False), []) == 130
    assert capsys.readouterr().err.endswith(": interrupted\n")


def test_a_defect_keeps_its_traceback() -> None:
    def main(args: argparse.Namespace) -> int:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        cli.run(main, cli.make_parser("Test.", config=False), [])


@pytest.mark.parametrize("status", [None, 0, 1])
def test_status_of_main_is_passed_on(status: int | None) -> None:
    parser = cli.make_parser("Test.", config=False)
    assert cli.run(lambda args: status, parser, []) == (status or 0)


def test_json_is_written_with_its_folder() -> None:
    cli.write_json({"a": [1, 2.5]}, "new/folder/report.json")
    assert json.loads(Path("new/folder/report.json").read_text()) == {"a": [1, 2.5]}


def test_json_has_null_for_what_is_no_number() -> None:
    nan, infinity = float("nan"), float("inf")
    report = {"a": nan, "b": [1, (-infinity, 2.5)], "c": {"d": np.float64(nan), "e": "NaN"}}
    cli.write_json(report, "report.json")
    found = json.loads(Path("report.json").read_text(), parse_constant=pytest.fail)
    assert found == {"a": None, "b": [1, [None, 2.5]], "c": {"d": None, "e": "NaN"}}


def test_json_that_cannot_be_written_is_a_user_error() -> None:
    Path("file").touch()
    with pytest.raises(UserError, match="file/report"):
        cli.write_json({}, "file/report.json")
