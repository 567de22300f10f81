"""Claims, reports, and files that appear whole or not at all."""

import json

import pytest

from pyext.files import whole_file
from pyext.report import Claim, Report


@pytest.mark.parametrize(
    ("measured", "relation", "held"),
    [(2, ">=", True), (1.9, ">=", False), (2, "<=", True), (2.1, "<=", False), (None, ">=", None)],
)
def test_a_claim_compares(measured, relation, held):
    assert Claim("x", measured, relation, 2).held is held


def test_not_a_number_never_holds():
    assert Claim("x", float("nan"), ">=", 2).held is False
    assert Claim("x", float("nan"), "<=", 2).held is False


def test_what_is_not_finite_is_a_word_in_json():
    assert Claim("x", float("nan"), ">=", 2).as_json()["measured"] == "nan"
    assert Claim("x", float("inf"), ">=", 2).as_json()["held"] is True


def test_a_report_is_json(tmp_path):
    report = Report("t", [{"a": 1, "b": None}], pictures={"p": tmp_path / "sub" / "p.png"})
    report.save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["rows"] == [{"a": 1, "b": None}]
    assert content["pictures"] == {"p": "sub/p.png"}


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.suffix == ".txt"
    assert path.read_text() == "new"
    assert [x.name for x in tmp_path.iterdir()] == ["file.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="midway"), whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("midway")
    assert path.read_text() == "old"
    assert [x.name for x in tmp_path.iterdir()] == ["file.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    with whole_file(tmp_path / "whole"):
        pass
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode
