"""experiments/check_readme.py: what the READMEs claim is read from their own words and held against results."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

import check_readme
from claims import MISSING, OK, Claim, TableClaim, check_claims, compare, find_number
from infoscope.report.tables import MINUS, Stat
from infoscope.runtime.errors import InputError
from readme_claims import CLAIMS, LINEAGE, PARETO, RECONSTRUCTION

DOCUMENT = """
The light falls from 93.7 ± 0.2% to
32.3% (chance 25%), by -0.46 on average of 1,200 pictures; the order holds (.99).

| tokens | mass (%) | mIoU (%) | remark |
| :--- | ---: | ---: | :--- |
| original | | 54.0 | as it is |
| without low scope (CDS > 0.1) | 9.5 ± 4.3 | 22.9 ± 1.3 | |
"""
LIGHT = Claim(
    "falls from {}% to {}% (chance 25%), by {} on average of {} pictures; the order holds ({})",
    [
        "run/removal/section=a;variant=original/top1 * 100",
        "run/removal/section=b;variant=original/top1 * 100",
        "run/summary/rho",
        "run/summary/n",
        "run/summary/seeds/*/order",
    ],
)
TABLE = TableClaim(
    "| tokens | mass (%) |",
    [("original", "run/removal/section=a;variant=original"), ("without low", "run/removal/section=b;variant=low")],
    {"mass": "mass * 100", "mIoU": "miou * 100"},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a run has left: a table and a summary."""
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "removal.csv").write_text(
        "section,variant,top1,top1_sd,mass,mass_sd,miou,miou_sd\n"
        "a,original,0.9371,0.0024,,,0.5404,0\n"
        "b,original,0.3226,,,,0.5,0\n"
        "b,low,0.3,,0.0953,0.0434,0.2294,0.0149\n"
    )
    summary = {"rho": -0.463, "n": 1200, "seeds": [{"order": 0.98}, {"order": 1.0}]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def test_a_claim_that_holds_and_one_that_does_not(folder: Path) -> None:
    findings = list(check_claims([LIGHT, TABLE], DOCUMENT, lambda source: folder))
    assert [(one.said, one.found, one.verdict) for one in findings] == [
        ("93.7 ± 0.2", "93.7 ± 0.2", "ok"),
        ("32.3", "32.3", "ok"),
        ("-0.46", "-0.46", "ok"),
        ("1,200", "1,200", "ok"),
        (".99", ".99", "ok"),
        ("54.0", "54.0", "ok"),
        ("9.5 ± 4.3", "9.5 ± 4.3", "ok"),
        ("22.9 ± 1.3", "22.9 ± 1.5", "near"),  # the spread is another one
    ]
    assert findings[6].label == "without low scope (CDS > 0.1): mass (%)"
    (wrong,) = check_claims([Claim("(chance {}%)", ["run/summary/n"])], DOCUMENT, lambda source: folder)
    assert (wrong.said, wrong.found, wrong.verdict) == ("25", "1,200", "differs")
    (unbuilt,) = check_claims([Claim("(chance {}%)", ["run/summary/n"])], DOCUMENT, lambda source: None)
    assert unbuilt.verdict == "not built"


@pytest.mark.parametrize(
    ("claim", "sentence"),
    [
        (Claim("the light rises to {}%", ["run/summary/n"]), "Expected one sentence"),
        (Claim("chance {}%", ["run/summary/m"]), "Nothing stands at 'm'"),
        (Claim("chance {}%", ["run/scope/n"]), "Expected scope.csv or scope.json"),
        (Claim("chance {}%", ["run/removal/variant=original/top1"]), "found 2"),
        (Claim("chance {}%", ["run/removal/section=a;variant=original/variant"]), "Expected a number"),
        (TableClaim("| other |", [], {}), "Expected one table"),
        (TableClaim("| tokens |", [("without", "run/x")], {}), "Expected row 1"),
        (TableClaim("| tokens |", [("original", "run/x")], {}), "got more"),
        (TableClaim("| tokens |", [("original", "run/x")], {"top-1": "y"}), "Expected one column 'top-1'"),
        (TableClaim("| tokens |", [("original", "run/x")], {"remark": "y"}), "Expected a number under 'remark'"),
    ],
)
def test_what_has_changed_in_the_text_or_the_results_is_named(
    claim: Claim | TableClaim, sentence: str, folder: Path
) -> None:
    found = list(check_claims([claim], DOCUMENT, lambda source: folder))
    assert found[-1].verdict == "lost"
    assert sentence in found[-1].found


@pytest.mark.parametrize(
    ("said", "found", "written", "verdict"),
    [
        ("0.7 ± 1.3", Stat(0.66, 1.31, 3), "0.7 ± 1.3", "ok"),
        ("0.7 ± 1.3", Stat(1.9, 1.31, 3), "1.9 ± 1.3", "near"),
        ("0.7 ± 0.1", Stat(1.9, 1.31, 3), "1.9 ± 1.3", "differs"),
        ("+0.33", Stat(0.331, 0.1, 3), "+0.33", "ok"),
        ("+0.33", Stat(-0.331, 0.1, 3), "-0.33", "differs"),
        (f"{MINUS}4.1", Stat(-4.1, 0, 3), f"{MINUS}4.1", "ok"),
        ("0", Stat(0.0, 0, 1), "0", "ok"),
        ("2", Stat(1.4, 0, 1), "1", "near"),
        ("8,000", Stat(8000, 0, 1), "8,000", "ok"),
        ("8000", Stat(8000, 0, 1), "8000", "ok"),
        ("0.0", Stat(-0.04, 0, 1), "0.0", "ok"),
        ("5", Stat(float("nan"), 0, 0), "no number", "differs"),
    ],
)
def test_numbers_are_held_against_each_other_as_they_are_written(
    said: str, found: Stat, written: str, verdict: str
) -> None:
    finding = compare("label", said, found)
    assert (finding.found, finding.verdict) == (written, verdict)


def test_the_spread_stands_beside_the_mean(folder: Path) -> None:
    found = find_number(folder, "run/removal/section=b;variant=low/mass * -100")
    assert found[:2] == pytest.approx((-9.53, 4.34))
    over_seeds = find_number(folder, "run/summary/seeds/*/order")
    assert over_seeds.n == 2
    assert over_seeds.mean == pytest.approx(0.99)


UNCHECKED = (
    "A real vision transformer",
    "Is it the score, or how often a feature fires?",
    "Does scope help to choose features for a task?",
    "Variants of the score",
)
"""Sections whose numbers come from weights or scenes that check_readme.py does not run."""


@pytest.mark.parametrize("file", CLAIMS)
def test_the_readmes_say_what_the_script_checks(file: str) -> None:
    """Who writes a sentence with numbers anew writes it anew in readme_claims.py."""
    document = (check_readme.ROOT / file).read_text(encoding="utf-8")
    numbers = [number for claim in CLAIMS[file] for number in claim.read(document)]
    assert {address.split("/")[0] for _, _, address in numbers} <= check_readme.SOURCES.keys()
    for section in UNCHECKED:
        document = re.sub(rf"^## {re.escape(section)}\n.*?(?=^## )", "", document, flags=re.DOTALL | re.MULTILINE)
    document = re.sub(r"\s+", " ", document)
    unsigned = r"(?:\d+(?:\.\d+)?|\.\d+)"
    spreads = Counter(re.findall(rf"(?:(?<=[ |(])[+-])?(?<![\d.]){unsigned} ± {unsigned}", document))
    assert not spreads - Counter(said for _, said, _ in numbers)  # every one is checked


GIVEN = {
    "Masking by the true class": ["95%", "68.25%", "64.82%", "0.1%"],  # of intervals; published
    "What predictions rest on": [
        *("0.04", "5.5"),  # seconds at true model size
        *(".77", ".94", ".52", ".84", ".70", ".96", ".76"),  # why gradients err after block 0: seen once, in no table
    ],
    "What features are called": [".42", "85%", "25%", ".62"],  # MSAE's rule; typical textures; chance; seen once
    "Steering": ["99.9", "80%", "15%", "85%"],  # settings; published; as above
    "Whole images and words": [],
    "Reconstruction against sparsity": [
        *(".99", ".1", "80%", ".05"),  # MSAE's claims; gamma
        *("0.03", "0.1", "0.3", "0.0003", "0.001", "0.003") * 2,  # weights that name rows, in two tables
    ],
    "What goes with scope?": [],
    "Which measure tells the truth?": [
        *("95%", ".5", ".38", ".19", ".34", ".14"),  # features that are alike as one
        *(".51", ".27", ".38", ".03", ".42", ".15", ".49", ".18", ".30", ".04", ".44", ".12"),  # of single SAEs
        *(".950", ".005", ".007"),  # noise, other folds: seen once
    ],
    "How broadly they look": [
        *(".04", ".26", ".04", ".41", ".03", ".21", ".02", ".27", ".00", ".40", ".05", ".17"),  # of single SAEs
        *(".05", ".02", ".09", ".02", ".00", ".06", ".06", ".00", ".13", ".08", ".03", ".20"),  # other differences
        *(".997", ".960", ".963", ".862"),  # of scenes of seed 7
        *(".02", ".16", ".19", ".86", ".89", ".87", ".88", ".84", ".89"),  # against features that know no fact
        *(".57", ".095", ".027", ".224"),  # diffuse features
        *(".11", ".04", ".18", ".06", ".02", ".13", ".03", ".04", ".11", ".05", ".02", ".13"),  # of six SAEs
        *(".05", ".01", ".13", ".05", ".15"),  # mean extent against the CDS less its chance level
        *(".08", ".11", ".74", ".80", ".81", ".85", ".85", ".93"),  # against features that know no fact
        ".36",  # of the control
    ],
    "How stable they are, and what removal says": ["95%", ".02", ".3"],  # settings
}
"""Sections of experiments/README.md of which every fraction and percentage is checked, but those that are given."""


@pytest.mark.parametrize("section", GIVEN)
def test_a_section_has_no_number_that_is_in_no_check(section: str) -> None:
    document = (check_readme.ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(section)}\n(.*?)(?=^##)", document, re.DOTALL | re.MULTILINE)
    assert found is not None
    said: Counter[str] = Counter()
    for claim in CLAIMS["experiments/README.md"]:
        with suppress(InputError):  # it stands in another section
            said.update(part for _, number, _ in claim.read(found[1]) for part in re.findall(r"[\d,.]+", number))
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)", "", found[1])
    numbers = Counter(re.findall(r"(?<![\w.])(?:\d[\d,]*\.\d+|\.\d+|\d+(?=%))", prose))
    assert not numbers - said - Counter(number.removesuffix("%") for number in GIVEN[section])


@pytest.mark.parametrize("file", CLAIMS)
def test_the_readmes_say_what_the_kept_results_say(file: str) -> None:
    """So a number that is altered in a README, or in the tables beside it, fails here and not at the next release."""
    document = (check_readme.ROOT / file).read_text(encoding="utf-8")
    folders = {name: check_readme.ROOT / folder for name, folder in check_readme.KEPT.items()}
    findings = [one for one in check_claims(CLAIMS[file], document, folders.get) if one.verdict != MISSING]
    assert findings
    assert [one for one in findings if one.verdict != OK] == []


def test_a_number_that_is_altered_is_found() -> None:
    document = (check_readme.ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    folder = check_readme.ROOT / check_readme.KEPT["cross"]
    claims = [one for one in CLAIMS["experiments/README.md"] if one.name.startswith("| | with the CDS")]
    for said, altered in [("-.26 ± .16", "-.27 ± .16"), ("| .007 | 5.6", "| .008 | 5.6"), ("| .097", "| .098")]:
        assert document.count(said) == 1
        findings = list(check_claims(claims, document.replace(said, altered), lambda source: folder))
        assert len(findings) == 12 * 7 - 5  # cells without a number
        assert Counter(one.verdict for one in findings)[OK] == len(findings) - 1


def test_every_number_of_these_sections_is_held_against_its_table() -> None:
    """Each in turn with another last digit is found."""
    document = (check_readme.ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    numbers = [number for claim in (*LINEAGE, *RECONSTRUCTION) for number in claim.read(document)]
    assert len(numbers) > 2 * 9 * len(PARETO)
    for label, said, address in numbers:
        found = find_number(check_readme.ROOT / check_readme.KEPT[address.split("/")[0]], address)
        altered = f"{said[:-1]}{(int(said[-1]) + 5) % 10}"
        assert (compare(label, said, found).verdict == OK, compare(label, altered, found).verdict == OK) == (
            True,
            False,
        )


@pytest.mark.parametrize(
    ("source", "header"), [("sae_pareto", "| patch tokens"), ("sae_pareto_pooled", "| embeddings")]
)
def test_the_front_is_marked_as_the_results_have_it(source: str, header: str) -> None:
    document = (check_readme.ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    lines = document[document.index(f"{header} | L0") :].partition("\n\n")[0].splitlines()
    fvu = [cell.strip() for cell in lines[0].split("|")].index("FVU")
    folder = check_readme.ROOT / check_readme.KEPT[source]
    with (folder / "sae_pareto.csv").open(encoding="utf-8", newline="") as file:
        on_front = {row["setting"]: row["front"] == "yes" for row in csv.DictReader(file)}
    for line, setting in zip(lines[2:], PARETO.values(), strict=True):
        assert line.split("|")[fvu].strip().endswith("*") == on_front[setting]


def test_the_script_judges(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text(DOCUMENT)
    chance = Claim("(chance {}%)", ["run/summary/n"])
    asked: list[tuple[list[str], bool]] = []

    def find(given: list[str], builds: bool) -> Path | None:
        asked.append((given, builds))
        return folder

    monkeypatch.setattr(check_readme, "ROOT", tmp_path)
    monkeypatch.setattr(check_readme, "SOURCES", {"run": find})
    monkeypatch.setattr(check_readme, "CLAIMS", {"README.md": [LIGHT]})
    assert check_readme.main(["build=false", "seeds=[0]"]) == 0
    assert asked == [(["logger=none", "seeds=[0]"], False)]  # once
    assert "| README.md | falls from …% to  | 32.3 | 32.3 | ok |" in capsys.readouterr().out
    monkeypatch.setattr(check_readme, "CLAIMS", {"README.md": [LIGHT, TABLE]})
    assert check_readme.main([]) == 2
    assert "1 of 8 numbers are not those of the results" in capsys.readouterr().err
    assert check_readme.main(["near=true"]) == 0
    monkeypatch.setattr(check_readme, "CLAIMS", {"README.md": [chance, Claim("gone {}", ["run/summary/n"])]})
    assert check_readme.main(["near=true"]) == 2
    errors = capsys.readouterr().err
    assert "check_readme: README.md: Expected one sentence 'gone {}', found 0" in errors
    assert "1 of 2 numbers are not those of the results." in errors


def test_a_report_that_is_not_built_is_none(tmp_path: Path) -> None:
    find = check_readme.find_report("debug=tiny", "data.n_train=8", "data.n_test=4")
    assert find([f"output_dir={tmp_path}", "logger=none"], False) is None
    assert check_readme.find_settings([f"output_dir={tmp_path}"], False) is None
    with pytest.raises(InputError):
        find(["sae.kk=1"], False)
