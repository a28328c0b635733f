"""Eyes, the last instrument of the panel: was the judge fooled in what it calls exactly right?

Readers look at random hits of the judge, enlarged, each in an order of their own, and say whether
all that was asked for can be seen. They do not learn what the rules think.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from derm_rl import provenance
from derm_rl.captions.sampling import wilson
from derm_rl.captions.verdicts import verdicts
from derm_rl.config import Config
from derm_rl.evaluation.audit_sheet import sheet
from derm_rl.io import read_csv

if TYPE_CHECKING:
    from derm_rl.captions.review_widget import Reviewer

FOLDER = "audit"  # of the verdicts, beside the figures
QUESTION = "Can all that was asked for be seen in this image? Accept: yes. Reject: no."
ENLARGED = 8


def review(config: Config, reader: str) -> Reviewer:
    """Open the sheet in the review tool; show the result as the last line of a cell.

    Verdicts are kept beside the figures, in a file for each ``reader``. It resumes where it was.
    """
    from derm_rl.captions.review_widget import review

    table, images = sheet(config)
    image = table["image"]
    pairs = pd.DataFrame({"pair_id": image, "image_id": image, "conversation": image})
    pairs = pairs.assign(turn=0, language="en", source=config.data.source, question=QUESTION)
    large = images.repeat(ENLARGED, 1).repeat(ENLARGED, 2)
    return review(
        pairs.assign(answer=table["prompt"]), dict(zip(image, large, strict=True)),
        config.figures_dir / FOLDER, reader, overlap=1.0,
    )  # fmt: skip


def readings(config: Config) -> pd.DataFrame:
    """Of the published sheet, whether all can be seen: a row an image, a column a reader.

    Missing where a reader has not looked, or looked at other images.
    """
    images = read_csv(config.figures_dir / "audit.csv")["image"]
    given = verdicts(config.figures_dir / FOLDER)
    given = given.assign(visible=given["verdict"].eq("accept").astype("boolean"))
    by_reader = given.pivot(index="pair_id", columns="reader", values="visible")
    return by_reader.reindex(images).dropna(axis=1, how="all")


def metrics(config: Config) -> dict[str, Any]:
    """``panel.audit.visible``: in which share of the sheet every reader sees all, by Wilson.

    Nothing until there is a reader who has looked at every image.
    """
    if not (config.figures_dir / "audit.csv").is_file():
        return {}
    found = readings(config).dropna(axis=1)
    if found.empty:
        return {}
    visible = found.all(axis=1)
    low_high = wilson(int(visible.sum()), len(visible))
    return {"panel.audit.visible": provenance.metric(config, *low_high, csv="audit.csv")}
