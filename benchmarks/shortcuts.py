"""Do classifiers of real images take dark corners for a ruler, and does weighting end it?

    python benchmarks/shortcuts.py --data-root DIR

Trains reward classifier and judge of the ``ham10000`` preset as stage 02 does, and again without
the weights under which dark corners say nothing of any label
(:func:`derm_rl.classifier.calibration.independent`), and asks both what they call in test images.
Writes ``benchmarks/results/shortcuts_ham10000.csv``: :func:`corner_table` of each, and the AUC
in test images without dark corners, where the shortcut gains nothing.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pandas as pd
from sklearn.metrics import roc_auc_score

from derm_rl import config, data
from derm_rl.evaluation import classification
from derm_rl.io import write_csv
from derm_rl.paths import RUNS

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True, help="folder of HAM10000, see the README")
    preset = config.load("ham10000", data_root=parser.parse_args().data_root)
    if not (preset.stage_dir("01_data") / "stage.json").is_file():
        data.prepare(preset)
    test = data.load(preset, "test")
    names, corner = test.label_names, classification.corner_of(test.frame)
    parts = []
    for training in ("weighted", "plain"):
        plain = mock.patch.object(classification, "_confounder", lambda *_: None)
        for name in ("reward", "judge"):
            folder = RUNS / "benchmark_shortcuts" / training / name
            with plain if training == "plain" else nullcontext():
                model = classification._train_one(preset, name, folder, progress=True)
            p = model.predict(test.images)
            table = classification.corner_table(p > 0.5, test.labels, names, corner)
            y, bright = test.labels[~corner], p[~corner]
            auc = {n: roc_auc_score(y[:, j], bright[:, j]) for j, n in enumerate(names)
                   if 0 < y[:, j].sum() < len(y)}  # fmt: skip
            table["auc_without_corners"] = table["attribute"].map(auc)
            parts.append(table.assign(model=name, training=training))
    write_csv(RESULTS / "shortcuts_ham10000.csv", pd.concat(parts))
    print(pd.concat(parts).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
