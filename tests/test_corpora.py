"""Corpora in their published layouts: what is listed, what is put aside with a reason, and what stops the run."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from mg3d.data.corpora import CORPORA, BadTable, Leak, MissingCorpus, cases, check_patients
from mg3d.data.hu import EIGHT_BIT
from mg3d.data.listing import shuffled, split_patients
from mg3d.data.reading import REASONS
from mg3d.data.table import read_table
from mg3d.types import Case

SHARED = Path(__file__).parents[2] / "shared" / "data"
real = pytest.mark.skipif(not SHARED.exists(), reason="no real reports beside the clone")
LABELS = ("Emphysema", "Lung nodule")


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def write_csv(path: Path, rows: list[list], *, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(rows)
    return path


# CT-RATE


def volume(dataset: Path, folder: str, name: str) -> Path:
    split, number, scan, _ = name.split("_")
    return touch(dataset / folder / f"{split}_{number}" / f"{split}_{number}_{scan}" / f"{name}.nii.gz")


def ctrate(folder: Path, *, splits: tuple[str, ...] = ("train", "valid"), n: int = 3) -> Path:
    """CT-RATE's tree: n patients a split, two reconstructions of one scan each; gives the `dataset` folder back."""
    dataset = folder / "dataset"
    for split in splits:
        table = {"valid": "validation"}.get(split, split)
        names = [f"{split}_{i}_a_{r}" for i in range(1, n + 1) for r in (1, 2)]
        for name in names:
            volume(dataset, split, name)
        files = [f"{name}.nii.gz" for name in names]
        header = ["VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN"]
        reports = [[f, "Cough.", "Native.", f"Nodule, 4 mm, in {f[:7]}.", 'An "old" finding.'] for f in files]
        write_csv(dataset / "radiology_text_reports" / f"{table}_reports.csv", [header, *reports])
        labels = [[f, i % 2, 1] for i, f in enumerate(files)]
        name = f"{split}_predicted_labels.csv"
        write_csv(dataset / "multi_abnormality_labels" / name, [["VolumeName", *LABELS], *labels])
        header = ["VolumeName", "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing"]
        metadata = [[f, 1.0, -1024, "[0.7, 0.7]", 1.5] for f in files]
        write_csv(dataset / "metadata" / f"{table}_metadata.csv", [header, *metadata])
    return dataset


def edit(path: Path, old: str, new: str, *, count: int = 1) -> Path:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, count), encoding="utf-8")
    return path


@pytest.mark.parametrize("corpus", ["ctrate", "phantom"])
@pytest.mark.parametrize("inner", ["", "dataset"])
def test_ctrate_is_listed_whole(tmp_path, corpus, inner):
    dataset = ctrate(tmp_path)
    listing = cases(corpus, tmp_path / inner)
    assert listing.problems == []
    assert Counter(c.split for c in listing.cases) == {"train": 6, "valid": 6}
    assert listing.cases[3] == Case(
        id="train_2_a_2",
        patient="train_2",
        split="train",
        volume=dataset / "train" / "train_2" / "train_2_a" / "train_2_a_2.nii.gz",
        report='Nodule, 4 mm, in train_2. An "old" finding.',
        labels={"Emphysema": 1, "Lung nodule": 1},
        rescale=(1.0, -1024.0),
    )


def test_the_phantom_adds_a_test_split_and_the_truth(tmp_path):
    ctrate(tmp_path, splits=("train", "valid", "test"))
    truth = touch(tmp_path / "truth" / "test_1_a_2.json")
    listing = cases("phantom", tmp_path)
    assert {c.id: c.truth for c in listing.cases if c.truth} == {"test_1_a_2": truth}
    assert Counter(c.split for c in listing.cases)["test"] == 6


def test_labels_and_metadata_may_be_missing(tmp_path):
    dataset = ctrate(tmp_path)
    (dataset / "multi_abnormality_labels" / "train_predicted_labels.csv").unlink()
    (dataset / "metadata" / "train_metadata.csv").unlink()
    edit(dataset / "metadata" / "validation_metadata.csv", "valid_1_a_1.nii.gz,1.0,-1024", "valid_1_a_1.nii.gz,,")
    found = {c.id: c for c in cases("ctrate", tmp_path).cases}
    assert found["train_1_a_1"].labels == {}
    assert found["train_1_a_1"].rescale is None
    assert found["valid_1_a_1"].rescale is None
    assert found["valid_1_a_2"].rescale == (1.0, -1024.0)


def test_mended_volumes_win(tmp_path):
    dataset = ctrate(tmp_path)
    fixed = volume(dataset, "train_fixed", "train_1_a_1")
    found = {c.id: c for c in cases("ctrate", tmp_path).cases}
    assert found["train_1_a_1"].volume == fixed
    assert found["train_1_a_2"].volume.parts[-4] == "train"


def test_ctrate_rows_without_a_volume_and_volumes_without_a_row_are_told(tmp_path):
    dataset = ctrate(tmp_path)
    reports = dataset / "radiology_text_reports" / "train_reports.csv"
    gone = dataset / "train" / "train_1" / "train_1_a" / "train_1_a_1.nii.gz"
    gone.unlink()
    stray = volume(dataset, "train", "train_9_a_1")
    edit(reports, 'train_2_a_1.nii.gz,Cough.,Native.,"Nodule, 4 mm, in train_2."', "train_2_a_1.nii.gz,,,Not given.")
    edit(reports, '"An ""old"" finding."\ntrain_2_a_2', "\ntrain_2_a_2")
    (dataset / "metadata" / "no_chest_train.txt").write_text("train_3/train_3_a/train_3_a_2.nii.gz\n")
    listing = cases("ctrate", tmp_path)
    assert {p.id: (p.reason, p.path) for p in listing.problems} == {
        "train_1_a_1": ("missing", str(gone)),
        "train_2_a_1": ("empty-report", str(gone).replace("train_1", "train_2")),
        "train_3_a_2": ("not-chest", str(gone).replace("train_1_a_1", "train_3_a_2").replace("train_1", "train_3")),
        "train_9_a_1": ("no-report", str(stray)),
    }
    assert {p.reason for p in listing.problems} <= REASONS.keys()
    assert len(listing.cases) == 9
    assert all(p.detail for p in listing.problems)


def test_volumes_of_a_split_without_reports_are_told(tmp_path):
    dataset = ctrate(tmp_path)
    (dataset / "radiology_text_reports" / "validation_reports.csv").unlink()
    listing = cases("ctrate", tmp_path)
    assert {p.reason for p in listing.problems} == {"no-report"}
    assert len(listing.problems) == len(listing.cases) == 6


def test_an_impression_alone_is_a_report(tmp_path):
    dataset = ctrate(tmp_path)
    edit(dataset / "radiology_text_reports" / "train_reports.csv", '"Nodule, 4 mm, in train_1."', "Not given.")
    assert cases("ctrate", tmp_path).cases[0].report == 'An "old" finding.'


@pytest.mark.parametrize(
    ("table", "old", "new", "words"),
    [
        ("radiology_text_reports/train_reports.csv", "train_2_a_1", "train_1_a_2", "VolumeName comes more than once"),
        ("radiology_text_reports/train_reports.csv", "train_2_a_1.nii.gz", "scan7.nii.gz", "'scan7.nii.gz' (line 4)"),
        ("radiology_text_reports/train_reports.csv", "Findings_EN", "Findings", "no column Findings_EN"),
        ("multi_abnormality_labels/train_predicted_labels.csv", "a_2.nii.gz,1,1", "a_2.nii.gz,x,1", "'x' (line 3)"),
        ("multi_abnormality_labels/train_predicted_labels.csv", "train_2_a_1", "train_1_a_1", "lines 2 and 4"),
        ("metadata/train_metadata.csv", "train_1_a_2.nii.gz,1.0,-1024", "train_1_a_2.nii.gz,1.0,b", "'b' (line 3)"),
    ],
)
def test_faults_in_ctrates_tables_stop_with_the_line(tmp_path, table, old, new, words):
    path = edit(ctrate(tmp_path) / table, old, new)
    with pytest.raises(BadTable) as caught:
        cases("ctrate", tmp_path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


# CTRG-Chest


def ctrg(folder: Path, *, train: int = 60, test: int = 8) -> Path:
    def rows(start: int, n: int) -> list[dict]:
        return [
            {"id": f"{i}.nii.gz", "report": f"Findings {i}.", "result": "Fatty liver."} for i in range(start, start + n)
        ]

    held_out = rows(1000, test)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reports.json").write_text(json.dumps({"train": rows(0, train), "val": held_out, "test": held_out}))
    for row in [*rows(0, train), *held_out]:
        touch(folder / "volumes" / row["id"])
    return folder


def test_ctrg_holds_a_part_of_train_out(tmp_path):
    listing = cases("ctrg", ctrg(tmp_path))
    assert Counter(c.split for c in listing.cases) == {"train": 57, "valid": 3, "test": 8}
    assert listing == cases("ctrg", tmp_path)
    first = listing.cases[0]
    assert first.report == "Findings 0. Fatty liver."
    assert first.rescale == EIGHT_BIT
    assert first.volume == tmp_path / "volumes" / "0.nii.gz"


def test_ctrg_labels_count_what_is_stated_as_present(tmp_path):
    ctrg(tmp_path)
    write_csv(tmp_path / "ctrg_finding_labels.csv", [["id", "edema", "fracture"], [0, 1, 2], [1, 3, 0]])
    found = {c.id: c.labels for c in cases("ctrg", tmp_path).cases}
    assert found["0"] == {"edema": 1, "fracture": 0}
    assert found["1"] == {"edema": 0, "fracture": 0}
    assert found["2"] == {}


def test_ctrg_problems(tmp_path):
    ctrg(tmp_path)
    (tmp_path / "volumes" / "5.nii.gz").unlink()
    data = json.loads((tmp_path / "reports.json").read_text())
    data["train"][7] |= {"report": " ", "result": None}
    (tmp_path / "reports.json").write_text(json.dumps(data))
    assert {(p.id, p.reason) for p in cases("ctrg", tmp_path).problems} == {("5", "missing"), ("7", "empty-report")}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"train": []}', "not the reports of CTRG-Chest"),
        (b'{"train": [{"report": "x"}], "test": []}', "no id in entry 0 of train"),
        (b'{"train": [{"id": "1"}], "test": [{"id": "1.nii.gz"}]}', "comes more than once in train and test: 1"),
    ],
)
def test_ctrg_faults(tmp_path, content, words):
    (tmp_path / "reports.json").write_bytes(content)
    with pytest.raises(BadTable, match=words):
        cases("ctrg", tmp_path)


@real
def test_ctrg_as_published(tmp_path):
    """The real JSON and labels; empty files stand for the volumes."""
    for name in ("ctrg_chest_reports.json", "ctrg_finding_labels.csv"):
        (tmp_path / name).symlink_to(SHARED / "reports" / name)
    data = json.loads((tmp_path / "ctrg_chest_reports.json").read_text())
    assert {r["id"] for r in data["val"]} == {r["id"] for r in data["test"]}
    (tmp_path / "v").mkdir()
    for row in data["train"] + data["test"]:
        (tmp_path / "v" / row["id"]).touch()
    listing = cases("ctrg", tmp_path)
    assert Counter(c.split for c in listing.cases) == {"train": 1372, "valid": 72, "test": 360}
    assert listing.problems == []
    assert all(len(c.labels) == 14 for c in listing.cases)


# one's own folder


ROWS = [
    ["id", "volume", "report", "patient", "split"],
    ["a", "scans/a.nii.gz", "Clear lungs.", "p1", "train"],
    ["b", "scans/b", "Emphysema,\nboth sides.", "p1", "train"],
    ["c", "scans/c.nii", "No effusion.", "p2", "valid"],
]


def own(folder: Path, rows: list[list] = ROWS, *, name: str = "volumes.csv", encoding: str = "utf-8") -> Path:
    touch(folder / "scans" / "a.nii.gz")
    (folder / "scans" / "b").mkdir(exist_ok=True)
    touch(folder / "scans" / "c.nii")
    return write_csv(folder / name, rows, encoding=encoding)


def changed(row: int, column: int, value: str) -> list[list]:
    rows = [list(r) for r in ROWS]
    rows[row][column] = value
    return rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(("name", "asked"), [("volumes.csv", ""), ("x.csv", ""), ("x.csv", "x.csv")])
def test_a_folder_is_listed(tmp_path, encoding, name, asked):
    own(tmp_path, changed(1, 2, "Ödem, 3 × 4 mm."), name=name, encoding=encoding)
    listing = cases("folder", tmp_path / asked)
    assert listing.problems == []
    assert [(c.id, c.patient, c.split, c.volume.name) for c in listing.cases] == [
        ("a", "p1", "train", "a.nii.gz"),
        ("b", "p1", "train", "b"),
        ("c", "p2", "valid", "c.nii"),
    ]
    assert listing.cases[0].report == "Ödem, 3 × 4 mm."
    assert listing.cases[1].report == "Emphysema,\nboth sides."


def test_volumes_may_lie_anywhere(tmp_path):
    elsewhere = touch(tmp_path / "far" / "z.nii.gz")
    (tmp_path / "near").mkdir()
    own(tmp_path / "near", [*changed(1, 1, str(elsewhere)), ["d", "../far/z.nii.gz", "Same scan.", "p1", "train"]])
    assert [c.volume for c in cases("folder", tmp_path / "near").cases if c.id in "ad"] == [elsewhere, elsewhere]


def test_labels_notes_and_rescale(tmp_path):
    extra = [["emphysema", "age", "note", "slope", "intercept"], ["1", "61", "", "1", "-1024"]]
    extra += [["0", "70", "seen twice", "", ""], ["0", "55", "", "", ""]]
    own(tmp_path, [r + e for r, e in zip(ROWS, extra, strict=True)])
    first, second, _ = cases("folder", tmp_path).cases
    assert first.labels == {"emphysema": 1, "age": 61}
    assert (first.rescale, second.rescale) == ((1.0, -1024.0), None)


def test_without_patients_and_splits(tmp_path):
    """Each row is a patient; 80 / 10 / 10 % of the patients, whatever the order of the rows."""
    rows = [["id", "volume", "report"], *([f"v{i}", f"{i}.nii.gz", "Clear."] for i in range(50))]
    for row in rows[1:]:
        touch(tmp_path / row[1])
    write_csv(tmp_path / "volumes.csv", rows)
    found = {c.id: c.split for c in cases("folder", tmp_path).cases}
    assert Counter(found.values()) == {"train": 40, "valid": 5, "test": 5}
    write_csv(tmp_path / "volumes.csv", [rows[0], *reversed(rows[1:])])
    assert {c.id: c.split for c in cases("folder", tmp_path).cases} == found


def test_rows_that_cannot_be_used_are_told(tmp_path):
    rows = changed(1, 2, "  ")
    rows[2][1] = "scans/lost.nii.gz"
    path = own(tmp_path, rows)
    listing = cases("folder", tmp_path)
    assert [c.id for c in listing.cases] == ["c"]
    told = {p.id: p for p in listing.problems}
    assert told["a"].reason == "empty-report"
    assert told["b"].reason == "missing"
    assert told["b"].path == str(tmp_path / "scans" / "lost.nii.gz")
    assert f"line 3 of {path}" in told["b"].detail


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (changed(2, 0, "a"), "the same id comes more than once: a (lines 2 and 3)"),
        (changed(1, 0, ""), "no id in line 2"),
        (changed(2, 1, ""), "no volume in line 3"),
        (changed(3, 3, ""), "no patient in line 5"),
        (changed(0, 2, "text"), "no column report. The file has: id, volume, text, patient, split"),
        (changed(0, 3, "id"), "the column 'id' is there twice"),
        (changed(3, 4, "dev"), "unknown split 'dev' (line 5). Valid: train, valid, test"),
        (changed(3, 4, ""), "unknown split '' (line 5)"),
        (changed(3, 1, "scans/a.nii.gz"), "lines 2 and 5 give the volume"),
        ([*ROWS, ["d", "x"]], "the header has 5 cells, line 6 has 2"),
        (ROWS[:1], "no rows"),
        ([], "empty"),
        (
            [[*r, e] for r, e in zip(ROWS, ["edema", "1", "yes", "0"], strict=True)],
            "column edema holds what is no whole",
        ),
        ([[*r, e] for r, e in zip(ROWS, ["edema", "1", "", "0"], strict=True)], "'' (line 3)"),
        ([[*r, e] for r, e in zip(ROWS, ["edema", "1", "0.5", "0"], strict=True)], "'0.5' (line 3)"),
        ([[*r, e] for r, e in zip(ROWS, ["slope", "1", "1", "1"], strict=True)], "slope by itself"),
        ([[*r, *e] for r, e in zip(ROWS, [["slope", "intercept"], [1, ""], [1, 0], [1, 0]], strict=True)], "line 2"),
    ],
)
def test_faults_in_the_table_stop_with_the_line(tmp_path, rows, words):
    path = own(tmp_path, rows)
    with pytest.raises(BadTable) as caught:
        cases("folder", tmp_path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_csv_that_is_not_utf_8_names_line_and_byte(tmp_path):
    path = own(tmp_path, changed(3, 2, "Ödem."), encoding="cp1252")
    with pytest.raises(BadTable, match=r"byte 0xd6 in line 5 .*UTF-8") as caught:
        cases("folder", tmp_path)
    at = int(str(caught.value).split("(byte ")[1].split()[0])
    assert path.read_bytes()[at] == 0xD6


def test_an_open_quote_names_the_line(tmp_path):
    path = own(tmp_path)
    path.write_text('id,volume,report\na,scans/a.nii.gz,fine\nb,scans/b,"never closed\n')
    with pytest.raises(BadTable, match="from line 3 on"):
        cases("folder", tmp_path)


def test_several_tables_need_a_choice(tmp_path):
    own(tmp_path, name="x.csv")
    own(tmp_path, name="y.csv")
    with pytest.raises(BadTable, match=r"more than one CSV: x\.csv, y\.csv"):
        cases("folder", tmp_path)
    assert len(cases("folder", tmp_path / "y.csv").cases) == 3


def test_a_patient_in_two_splits_is_a_leak(tmp_path):
    own(tmp_path, changed(2, 4, "valid"))
    with pytest.raises(Leak, match=r"1 patient is in more than one split: p1 \(train, valid\)"):
        cases("folder", tmp_path)


def test_a_leak_names_ten_patients_and_counts_the_rest():
    shared = [Case(f"{s}{i}", f"p{i}", s, Path("x"), "r") for i in range(13) for s in ("train", "test")]
    with pytest.raises(Leak, match=r"13 patients .* p9 \(test, train\) and 3 more") as caught:
        check_patients(shared)
    assert "p10" not in str(caught.value)
    check_patients(shared[::2])


# all of them


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("there", [True, False])
def test_a_missing_corpus_says_what_where_and_how(tmp_path, corpus, there):
    folder = tmp_path if there else tmp_path / "nowhere"
    with pytest.raises(MissingCorpus) as caught:
        cases(corpus, folder)
    assert str(folder) in str(caught.value)
    assert CORPORA[corpus].get in str(caught.value)


def test_tables_without_any_volume_are_a_missing_corpus(tmp_path):
    dataset = ctrate(tmp_path / "r")
    for path in [*dataset.rglob("*.nii.gz")]:
        path.unlink()
    for path in [*(ctrg(tmp_path / "g") / "volumes").iterdir()]:
        path.unlink()
    write_csv(tmp_path / "f" / "volumes.csv", ROWS)
    for corpus, folder in (("ctrate", "r"), ("ctrg", "g"), ("folder", "f")):
        with pytest.raises(MissingCorpus, match="Every volume"):
            cases(corpus, tmp_path / folder)


def test_an_unknown_corpus_lists_the_known(tmp_path):
    with pytest.raises(ValueError, match="'mimic'; valid: phantom, ctrate, ctrg, folder"):
        cases("mimic", tmp_path)


def test_splits_are_drawn_by_patient_and_seed():
    names = [f"p{i}" for i in range(200)]
    found = split_patients(names + names)
    assert Counter(found.values()) == {"train": 160, "valid": 20, "test": 20}
    assert found != split_patients(names, seed=1)
    assert shuffled(names, seed=3) == shuffled(reversed(names), seed=3)
    assert [Counter(split_patients(names[:n]).values())["train"] for n in (1, 2, 3, 8)] == [1, 2, 1, 6]


def test_line_numbers_are_those_of_an_editor(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufeffa, b\n1,"two\nlines"\n\n,,\n3 ,\u2028x\n'.replace(",,", ","), encoding="utf-8")
    table = read_table(path)
    assert table.columns == {"a": ["1", "3"], "b": ["two\nlines", "x"]}
    assert table.lines == [2, 6]


@real
def test_a_published_reports_table_is_read(tmp_path):
    table = read_table(SHARED / "reports" / "ctrate_reports_train.csv", columns=("AccessionNo", "report_text"))
    assert len(table) == len(table.unique("AccessionNo")) == 800
    assert set(table.whole("Emphysema")) == {0, 1}
