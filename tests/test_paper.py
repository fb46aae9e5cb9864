"""The printed numbers: as many as the paper has, and those that the text or Fig. 8 repeats."""

import math

import pytest

from mg3d.paper import AXES, COLUMNS, LANGUAGE, PRINTED, VISION, VOLUMES, radar

SHAPES = {
    "I": (15, 2),
    "II": (14, 10),
    "III": (6, 1),
    "IV": (4, 1),
    "V": (4, 1),
    "VI": (3, 12),
    "VII": (8, 6),
    "VIII": (8, 6),
}


@pytest.mark.parametrize("table", PRINTED)
def test_a_table_has_its_rows_and_columns(table):
    rows = PRINTED[table]
    assert (len(rows), len(COLUMNS[table])) == SHAPES[table]
    assert all(tuple(row) == COLUMNS[table] for row in rows.values())


@pytest.mark.parametrize("table", PRINTED)
def test_numbers_are_percentages_with_a_deviation_where_three_divisions_were_averaged(table):
    averaged = set(VISION) if table in ("I", "II", "VI", "VII") else set()
    for row in PRINTED[table].values():
        for column, printed in row.items():
            assert 2 < printed.value < 100
            assert math.isnan(printed.deviation) == (column not in averaged)
            assert not printed.deviation > 11


def test_figure_8_has_the_best_values_on_its_axes():
    """The nine numbers that Fig. 8 prints beside its axes; ACDC's is not the largest there."""
    ours = radar()["Ours"]
    assert list(ours.values()) == [93.61, 98.20, 65.52, 70.79, 77.02, 89.38, 63.54, 68.62, 4.05]
    assert list(ours) == list(AXES)
    assert len(radar()) == 8
    ahead = {a: [m for m, axes in radar().items() if axes[a] > ours[a]] for a in AXES}
    assert {a: m for a, m in ahead.items() if m} == {"ACDC": ["PCRLv2", "TransVW", "RadFM"]}


@pytest.mark.parametrize(
    ("table", "row", "column", "value"),
    [  # what Sec. IV says of its tables, and their corners
        ("I", "Ours, 3D UNet", "CC-CCII ACC", 95.05),
        ("I", "MAE3D, 3D ViT-B", "Luna16 AUC", 88.26),
        ("II", "MAE3D, 3D ViT-B", "MSD Task 06 Dice", 51.91),
        ("II", "Ours, 3D Swin-B", "CT-RATE Recall@50", 3.88),
        ("II", "CT-CLIP, 3D ViT-B", "ACDC Dice", 62.92),
        ("III", "from scratch", "MSD Task 06 Dice", 54.88),
        ("III", "sentence guidance, ours, ours", "MSD Task 06 Dice", 61.56),
        ("IV", "all", "MSD Task 06 Dice", 63.40),
        ("V", "47.1K", "CT-RATE AUC", 68.62),
        ("VIII", "RadFM", "BLEU-4", 30.38),
    ],
)
def test_corners(table, row, column, value):
    assert PRINTED[table][row][column].value == value


def test_tables_repeat_each_other_where_the_paper_does():
    ours, whole, large = PRINTED["VI"].values()
    first = PRINTED["I"]["Ours, 3D Swin-B"] | PRINTED["II"]["Ours, 3D Swin-B"]
    assert ours == first or {k: v.value for k, v in ours.items()} == {k: v.value for k, v in first.items()}
    assert [PRINTED["VIII"]["Ours"][c].value for c in LANGUAGE] == [whole[c].value for c in LANGUAGE]
    seven = PRINTED["VII"]["Ours"]
    assert [seven[c].value for c in VISION] == [large[c].value for c in VISION]
    differ = [c for c in VISION if seven[c] != large[c]]
    assert differ == ["Covid-19-20 Dice", "STOIC-2021 AUC"]
    assert list(VOLUMES) == list(PRINTED["V"])
