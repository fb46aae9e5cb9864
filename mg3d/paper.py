"""Every number that Tables I to VIII of the paper print (arXiv 2412.05876), with its ± where there is one, in %.

    PRINTED["II"]["Ours, 3D Swin-B"]["MSD Task 06 Dice"]    Printed(value=62.15, deviation=1.15)

A ± is the standard deviation of three divisions into training and test cases. Rows and columns stand as in the paper;
the blocks below are laid out like its tables, so that they can be read beside them. Where the paper contradicts itself
(Table VII repeats the last row of VI, with 70.79 ± 4.17 for ± 4.06 and 77.02 ± 7.26 for ± 7.27), both are kept.
"""

from collections.abc import Mapping
from typing import NamedTuple

RUNS = 3  # divisions behind a ±


class Printed(NamedTuple):
    """A printed number in %; its deviation over three divisions is NaN where none is printed."""

    value: float
    deviation: float


VISION = ("CC-CCII ACC", "Luna16 AUC", "MSD Task 06 Dice", "Covid-19-20 Dice", "ACDC Dice", "STOIC-2021 AUC")
LANGUAGE = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "CT-RATE AUC", "CT-RATE Recall@50")

COLUMNS = {
    "I": VISION[:2],
    "II": VISION[2:] + LANGUAGE,
    "III": VISION[2:3],
    "IV": VISION[2:3],
    "V": LANGUAGE[4:5],
    "VI": VISION + LANGUAGE,
    "VII": VISION,
    "VIII": LANGUAGE,
}

_ROWS = {
    "I": """
MAE3D, 3D ViT-B         89.05±2.80 88.26±2.17
Jigsaw, 3D UNet         92.89±2.24 90.31±1.12
Rubik++, 3D UNet        87.73±4.15 92.39±0.10
PCRLv1, 3D UNet         89.80±2.15 86.25±5.39
PCRLv2, 3D UNet         92.10±0.44 91.96±2.22
SwinUNETR, 3D Swin-B    91.82±0.94 96.58±0.03
SwinMM, 3D Swin-B       89.51±0.50 95.40±0.98
M3AE, 3D Swin-B         90.48±1.02 94.50±1.40
ARL, 3D Swin-B          91.02±0.70 94.57±2.04
MRM, 3D Swin-B          90.88±0.39 96.41±0.10
PTunifier, 3D ViT-B     72.45±0.71 90.35±1.49
CT-CLIP, 3D ViT-B       79.47±0.74 84.26±0.85
M3D, 3D ViT-B           83.50±1.70 88.65±2.96
Ours, 3D Swin-B         91.90±0.13 96.78±0.06
Ours, 3D UNet           95.05±0.58 96.38±0.37
""",
    "II": """
MAE3D, 3D ViT-B         51.91±2.55 62.50±5.86 88.33±0.20 69.48±6.94 53.27 43.19 36.90 32.51 66.60 3.85
Jigsaw, 3D Swin-B       56.94±1.62 68.37±4.75 88.50±0.44 72.76±9.72 56.56 45.71 39.09 34.51 58.05 2.93
Rubik++, 3D Swin-B      59.20±2.22 68.85±4.76 88.49±0.50 71.02±8.49 52.32 42.09 36.13 31.95 59.83 2.57
PCRLv1, 3D Swin-B       51.83±1.56 68.60±5.26 88.47±0.48 70.69±6.74 58.64 48.11 40.97 35.95 62.09 2.80
PCRLv2, 3D Swin-B       60.46±1.48 68.50±4.44 88.61±0.25 70.98±6.76 58.76 48.47 41.47 36.46 58.88 3.46
SwinUNETR, 3D Swin-B    59.65±1.44 69.30±4.80 88.49±0.50 72.11±7.66 55.46 45.03 38.55 33.94 63.92 3.69
SwinMM, 3D Swin-B       58.61±0.68 67.96±5.82 88.21±0.85 72.35±9.98 58.30 46.46 39.06 33.82 61.84 2.40
M3AE, 3D Swin-B         60.54±1.30 69.06±4.92 88.77±0.43 71.89±4.30 59.91 48.62 41.29 36.20 63.60 3.09
ARL, 3D Swin-B          58.79±2.96 68.99±4.78 88.65±0.37 74.55±7.70 60.28 49.15 42.18 37.16 63.18 2.93
MRM, 3D Swin-B          60.40±1.25 69.00±5.37 88.59±0.52 74.45±5.26 59.17 47.74 40.08 35.52 63.61 2.99
PTunifier, 3D ViT-B     34.31±2.84 62.26±6.30 87.27±0.66 63.60±2.96 58.31 47.73 40.34 35.10 65.09 2.99
CT-CLIP, 3D ViT-B       22.97±8.61 56.58±6.65 62.92±2.23 63.75±6.49 59.52 47.95 40.81 36.12 57.85 2.27
M3D, 3D ViT-B           45.85±1.44 62.04±5.90 88.41±0.84 66.96±7.77 55.22 45.39 38.70 33.81 62.09 2.80
Ours, 3D Swin-B         62.15±1.15 70.27±4.55 89.01±0.18 76.62±7.85 62.07 50.16 42.58 37.17 67.96 3.88
""",
    # guidance of MIM; attention of MIM, of MLM; CML. No row has inter-patient losses
    "III": """
from scratch                               54.88
word guidance, classical, classical        57.55
sentence guidance, classical, classical    59.12
sentence guidance, ours, classical         60.63
sentence guidance, ours, ours, no CML      61.20
sentence guidance, ours, ours              61.56
""",
    "IV": """
no SFR    61.54
no DFA    62.11
no SSM    62.22
all       63.40
""",
    "V": """
1.4K     64.82
2.8K     65.12
10K      67.57
47.1K    68.62
""",
    "VI": """
CTRG-Chest 1.4K, 3D Swin-B    91.90±0.13 96.78±0.06 62.15±1.15 70.27±4.55 89.01±0.18 76.62±7.85\
 62.07 50.16 42.58 37.17 67.96 3.88
CT-RATE 47.1K, 3D Swin-B      93.26±0.67 96.91±0.06 62.74±0.43 70.94±4.17 89.09±0.23 76.31±7.26\
 63.54 51.61 43.79 38.19 68.62 4.05
CT-RATE 47.1K, 3D Swin-L      93.61±0.99 98.20±0.08 65.52±1.87 70.79±4.06 89.38±0.41 77.02±7.27\
 62.72 51.45 43.63 37.93 68.47 3.06
""",
    "VII": """
PCRLv2       91.00±1.92 87.89±1.34 58.01±5.37 69.45±4.96 89.77±0.63 74.62±10.57
Vox2Vec      93.15±1.54 98.04±0.23 63.33±3.47 69.77±4.48 88.47±0.56 75.27±6.74
TransVW      91.28±1.39 95.55±2.32 51.01±3.81 69.73±7.60 89.85±0.55 56.23±5.63
SwinUNETR    91.88±1.20 94.16±1.03 52.83±3.94 65.84±2.86 88.46±0.56 74.46±7.25
CT-CLIP      79.13±0.42 85.73±0.56 24.93±6.97 57.16±7.24 88.90±0.40 63.12±4.27
M3D          88.03±3.83 90.22±0.16 45.07±1.55 61.39±4.29 88.25±0.72 62.71±7.11
RadFM        87.77±0.65 85.69±0.12 25.70±4.46 57.26±4.55 89.93±0.48 64.85±7.25
Ours         93.61±0.99 98.20±0.08 65.52±1.87 70.79±4.17 89.38±0.41 77.02±7.26
""",
    "VIII": """
PCRLv2       56.09 45.39 38.95 34.48 65.16 3.16
Vox2Vec      54.98 44.62 38.34 33.97 66.54 3.22
TransVW      59.77 49.08 41.98 37.02 65.16 3.16
SwinUNETR    59.64 48.67 41.64 36.66 63.83 2.86
CT-CLIP      59.28 48.00 40.80 35.77 66.50 3.23
M3D          55.07 45.53 39.21 34.70 65.70 3.52
RadFM        47.29 39.13 34.05 30.38 64.43 3.19
Ours         63.54 51.61 43.79 38.19 68.62 4.05
""",
}

# Fig. 8: an axis, the table and the column that it shows
AXES = {
    "CC-CCII": ("VII", "CC-CCII ACC"),
    "Luna16": ("VII", "Luna16 AUC"),
    "MSD Task 06": ("VII", "MSD Task 06 Dice"),
    "Covid-19-20": ("VII", "Covid-19-20 Dice"),
    "STOIC-2021": ("VII", "STOIC-2021 AUC"),
    "ACDC": ("VII", "ACDC Dice"),
    "CTRG-Chest": ("VIII", "BLEU-1"),
    "CT-RATE anomalies": ("VIII", "CT-RATE AUC"),
    "CT-RATE retrieval": ("VIII", "CT-RATE Recall@50"),
}
VOLUMES = {"1.4K": 1443, "2.8K": 2886, "10K": 10_000, "47.1K": 47_149}  # Table V; 2.8K is read as twice 1.4K


def _read(rows: str, columns: tuple[str, ...]) -> dict[str, dict[str, Printed]]:
    """A block of rows: a name, two spaces or more, one number a column."""
    found = {}
    for line in rows.strip().splitlines():
        name, numbers = line.split("  ", 1)
        cells = [
            (float(value), float(spread or "nan")) for value, _, spread in (n.partition("±") for n in numbers.split())
        ]
        found[name] = {column: Printed(*cell) for column, cell in zip(columns, cells, strict=True)}
    return found


PRINTED: Mapping[str, Mapping[str, Mapping[str, Printed]]] = {
    table: _read(rows, COLUMNS[table]) for table, rows in _ROWS.items()
}


def radar() -> dict[str, dict[str, float]]:
    """Fig. 8: for each model of Tables VII and VIII, its value on each of the nine axes."""
    return {
        model: {axis: PRINTED[table][model][column].value for axis, (table, column) in AXES.items()}
        for model in PRINTED["VII"]
    }
