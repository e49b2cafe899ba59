"""The table of latents: what is written is read again, and whatever cannot be read is one sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet

import infoscope
from infoscope.runtime.errors import InputError
from infoscope.sae import latent_table
from infoscope.sae.latent_table import FILE, LatentColumn, LatentTable, load_latents


def make_table(seed: int = 3) -> LatentTable:
    table = LatentTable(seed, [LatentColumn("rate", np.array([0.5, np.nan, 1], np.float32), "Häufigkeit", "share")])
    table.add("score", [LatentColumn("n", np.array([1, 2, 3]), "pairs", "pairs")])
    group, known = np.array(["high", "band 1 of 2", ""]), np.array([True, False, True])
    table.add("confounds", [LatentColumn("group", group, "group"), LatentColumn("known", known, "declared")])
    return table


def put(output_dir: Path, name: str, table: LatentTable, age: int = 0) -> Path:
    """Save a table where a run keeps it, so many seconds old."""
    folder = output_dir / "artifacts" / "latents" / name
    folder.mkdir(parents=True)
    table.save(folder)
    os.utime(folder / FILE, (1e9 - age, 1e9 - age))
    return folder


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    made = make_table()
    made.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    read = LatentTable.load(tmp_path)
    assert (read.seed, len(read)) == (3, 3)
    for old, new in zip(made, read, strict=True):
        assert (new.name, new.heading, new.unit, new.source) == (old.name, old.heading, old.unit, old.source)
        assert new.values.dtype == old.values.dtype
        np.testing.assert_array_equal(new.values, old.values)
    assert [column.n_known for column in read] == [2, 3, 2, 3]  # an empty text is no value
    assert "rate" in read
    assert "mass" not in read


def test_other_programs_read_the_columns_and_what_they_mean(tmp_path: Path) -> None:
    make_table().save(tmp_path)
    table = parquet.read_table(tmp_path / FILE)
    assert table.column_names == ["rate", "n", "group", "known"]
    assert table["group"].to_pylist() == ["high", "band 1 of 2", ""]
    assert table.schema.field("rate").type == pa.float32()
    assert "Häufigkeit" in table.schema.field("rate").metadata[b"infoscope"].decode()
    assert table.schema.equals(make_table().to_arrow().schema)


def test_a_notebook_shows_the_columns() -> None:
    table = LatentTable(3, make_table(), "SAE of <i>somebody</i>")
    table.add("name", [LatentColumn("name", np.array(["<script>", "<script>", ""]), "name")])
    shown = table._repr_html_()
    assert "<b>LatentTable</b>: SAE of &lt;i&gt;somebody&lt;/i&gt;, seed 3, 3 latents" in shown
    rows = {row.split("<")[0]: row for row in shown.split('<tr><td style="text-align:left;vertical-align:top">')[1:]}
    assert list(rows) == ["rate", "n", "group", "known", "name"]
    for text in ("Häufigkeit", "share", "2", "0.55", "0.75", "0.95"):
        assert f">{text}</td>" in rows["rate"]
    assert ">score</td>" in rows["n"]
    assert ">False 1, True 2<" in rows["known"] or ">True 2, False 1<" in rows["known"]
    assert ">&lt;script&gt; 2<" in rows["name"]
    assert "<script" not in shown
    assert repr(table).startswith("LatentTable(SAE of <i>somebody</i>, seed 3, 3 latents: rate, n")
    assert repr(LatentTable(None, make_table())).startswith("LatentTable(3 latents: ")


def test_a_column_is_added_once_and_of_every_latent() -> None:
    table = make_table()
    with pytest.raises(AssertionError, match="rate is there already"):
        table.add("rank", [LatentColumn("rate", np.zeros(3), "")])
    with pytest.raises(AssertionError, match="few"):
        table.add("rank", [LatentColumn("few", np.zeros(2), "")])


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_table(1).save(tmp_path)

    def write_half(_: object, path: Path) -> None:
        path.write_bytes(b"PAR1")
        raise OSError("the disk is full")

    monkeypatch.setattr(latent_table.parquet, "write_table", write_half)
    with pytest.raises(OSError, match="full"):
        make_table(2).save(tmp_path)
    assert LatentTable.load(tmp_path).seed == 1


def test_the_newest_table_of_a_seed_is_loaded_from_a_run(tmp_path: Path) -> None:
    old, new = LatentTable(0, [LatentColumn("old", np.zeros(2), "")]), make_table(0)
    folder = put(tmp_path, "a-seed0", new)
    put(tmp_path, "b-seed0", old, age=60)
    put(tmp_path, ".half.tmp", old, age=-60)
    assert "rate" in load_latents(tmp_path)
    put(tmp_path, "c-seed1", make_table(1), age=30)
    assert load_latents(str(tmp_path), seed=1).seed == 1
    assert "rate" in load_latents(tmp_path, seed=0)
    assert load_latents(folder).seed == 0
    with pytest.raises(InputError, match=r"holds latents of the SAE seeds 0, 1: say which, as seed=0"):
        load_latents(tmp_path)
    with pytest.raises(InputError, match=r"Expected latents of SAE seed 2 in .*, found those of 0, 1\."):
        load_latents(tmp_path, seed=2)


def test_tables_of_several_experiments_are_not_mixed_up(tmp_path: Path) -> None:
    made = {"0123456789abcdef": (-2, "auto"), "123456789abcdef0": (-1, "32"), "23456789abcdef01": (-1, "32")}
    for age, (digits, (layer, precision)) in enumerate(made.items()):
        folder = put(tmp_path, f"clip-topk-seed0-{digits}", make_table(0), age=-age)
        config = {"stage": f"s{age}", "seeds": [age], "model": {"name": "clip", "layer": layer}}
        config |= {"trainer": {"precision": precision, "device": f"d{age}"}, "sae": {"kind": "topk"}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError) as refused:
        load_latents(tmp_path)
    assert "\n" not in str(refused.value)
    assert "of 2 experiments: give the folder of one, load_latents(" in str(refused.value)
    assert (
        "NAME being clip-topk-seed0-23456789abcdef01 (model.layer=-1, precision=32),"
        " clip-topk-seed0-0123456789abcdef (model.layer=-2, precision=auto)."
    ) in str(refused.value)
    shutil.rmtree(tmp_path / "artifacts" / "latents" / "clip-topk-seed0-0123456789abcdef")
    table = load_latents(tmp_path)  # twice the same: what is newer has more columns
    assert repr(table).startswith(
        "LatentTable(model clip, layer -1, SAE topk, hash 23456789abcdef01, seed 0, 3 latents: rate, n,"
    )


def test_every_experiment_is_listed_by_what_tells_it_apart(tmp_path: Path) -> None:
    """Three settings that come with another kind of data hide neither the layers nor the folders."""
    images = [{"kind": "class_folders", "root": root, "n_test": 0, "image_px": 0, "mode": "a"} for root in ("A", "B")]
    images.append({"kind": "scenes", "root": None, "n_test": 1, "image_px": 1, "mode": "b"})
    settings = [(data, layer, 8) for data in images for layer in (-1, -2)] + [(images[0], -1, 16)]
    for number, (data, layer, k_cds) in enumerate(settings):
        folder = put(tmp_path, f"clip-topk-seed0-{number:016x}", make_table(0), age=-number)
        config = {"model": {"layer": layer}, "data": data, "scope": {"k_cds": k_cds}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match="of 7 experiments") as refused:
        load_latents(tmp_path)
    newest = "model.layer=-1, data.kind=class_folders, data.root=A, scope.k_cds=16"
    assert f"NAME being clip-topk-seed0-{6:016x} ({newest}), " in str(refused.value)
    assert "n_test" not in str(refused.value)


def test_a_column_that_is_not_there_is_one_sentence() -> None:
    table = make_table()
    for error in (InputError, KeyError):
        with pytest.raises(error) as refused:
            table["ratee"]
        assert str(refused.value).startswith(
            "Expected one of the 4 columns of this table, which print(table) names, got"
        )
        assert "'ratee' (did you mean rate?); stage=effects" in str(refused.value)


def test_a_damaged_table_that_is_not_asked_for_harms_nobody(tmp_path: Path) -> None:
    old = put(tmp_path, "clip-topk-seed0-0a1b", make_table(0), age=60)
    (old / FILE).write_bytes(b"PAR1")
    os.utime(old / FILE, (1e9 - 60, 1e9 - 60))
    put(tmp_path, "clip-topk-seed0-2c3d", make_table(0), age=30)
    assert load_latents(tmp_path).seed == 0
    new = put(tmp_path, "clip-topk-seed1-4e5f", make_table(1))
    (new / FILE).write_bytes(b"PAR1")
    assert load_latents(tmp_path, seed=0).seed == 0
    with pytest.raises(InputError, match=r"holds latents of the SAE seeds 0, 1: say which"):
        load_latents(tmp_path)
    with pytest.raises(InputError, match=r"clip-topk-seed1-4e5f.* is damaged or no table of latents"):
        load_latents(tmp_path, seed=1)


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Expected a table of latents in .*, found none"):
        load_latents(tmp_path)
    with pytest.raises(InputError, match="which is not there: make it with stage=latents"):
        LatentTable.load(tmp_path)
    make_table().save(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    for content in (b"", whole[:-20], whole[:40] + whole[60:]):
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(InputError, match="is damaged or no table of latents"):
            load_latents(tmp_path)
    parquet.write_table(pa.table({"x": [1]}), tmp_path / FILE)  # somebody else's
    with pytest.raises(InputError, match="is damaged or no table of latents"):
        load_latents(tmp_path)


def test_pandas_has_the_columns_and_the_latent_as_its_index(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    made = make_table()
    made.save(tmp_path)
    frame = load_latents(tmp_path).to_pandas()
    assert (frame.index.name, frame.index.to_list()) == ("latent", [0, 1, 2])
    assert frame.columns.to_list() == ["rate", "n", "group", "known"]
    for column in made:
        np.testing.assert_array_equal(frame[column.name].to_numpy(), column.values)
    assert frame["rate"].dtype == np.float32


def test_without_pandas_arrow_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_table, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs pandas, which is not installed: install it, or use to_arrow\(\)"):
        make_table().to_pandas()


def test_it_is_a_public_name_that_needs_no_torch(tmp_path: Path) -> None:
    assert infoscope.load_latents is load_latents
    make_table().save(tmp_path)
    code = "import sys; from infoscope import load_latents; load_latents(sys.argv[1]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_setting_that_is_new_and_another_number_of_a_block_make_no_other_experiment(tmp_path: Path) -> None:
    for age, (layer, score) in enumerate([(2, "a"), (-2, "a"), (3, "b")]):
        folder = put(tmp_path, f"clip-topk-seed0-{age:016x}", make_table(0), age=-age)
        config = {"model": {"layer": layer}, **({"attribution": {"n_steps": None}} if age == 1 else {})}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "manifest.json").write_text(
            json.dumps({"format_version": 1, "hash": "", "files": {}, "key": {"sources": {"score": score}}})
        )
    with pytest.raises(InputError, match="of 2 experiments"):
        load_latents(tmp_path)
    shutil.rmtree(folder)
    assert "layer -2" in repr(load_latents(tmp_path))


def test_groups_of_before_there_was_a_choice_of_what_divides_are_those_by_cds(tmp_path: Path) -> None:
    for age, partition in enumerate([{"by": "extent"}, {"by": "cds"}, {}]):
        folder = put(tmp_path, f"clip-topk-seed0-{age:016x}", make_table(0), age=-age)
        (folder / "config.yaml").write_text(yaml.safe_dump({"partition": {"rule": None, **partition}}))
    with pytest.raises(InputError, match=r"of 2 experiments.*2 \(partition.by=cds\).*0 \(partition.by=extent\)\.$"):
        load_latents(tmp_path)
    shutil.rmtree(tmp_path / "artifacts" / "latents" / f"clip-topk-seed0-{0:016x}")
    assert len(load_latents(tmp_path)) == 3
