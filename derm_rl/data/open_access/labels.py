"""Published diagnoses, and which of the codes of :data:`derm_rl.prompts.DIAGNOSES` each is.

The codes are those of ISIC 2019. Only names that are plainly one of its eight classes are here; for
any other the published text alone is kept. Benign keratosis is, as in HAM10000, seborrheic
keratosis, solar lentigo and lichenoid keratosis; Bowen's disease is a squamous cell carcinoma (in
situ), except where a data set has put it among the actinic keratoses.
"""

from __future__ import annotations

import re

import pandas as pd

_NAMES = {
    "MEL": """
        melanoma | mel | malignant melanoma | melanoma in situ | melanoma invasive | lentigo maligna
        lentigo maligna melanoma | nodular melanoma | acral lentiginous melanoma | acral melanoma
        acral nodular melanoma | superficial spreading melanoma | amelanotic melanoma
        melanoma superficial spreading | melanoma nodular | desmoplastic melanoma
        spitzoid melanoma
        melanoma lentigo maligna | melanoma acral lentiginous
    """,
    "NV": """
        nevus | nv | nev | melanocytic nevus | benign nevus | nevus mole | common nevus
        junctional nevus | compound nevus | dermal nevus | intradermal nevus | blue nevus
        dysplastic nevus | atypical nevus | spitz nevus | reed nevus | spitz reed nevus | halo nevus
        congenital nevus | congenital melanocytic nevus | acral nevus | recurrent nevus
        persistent nevus | balloon cell nevus | combined nevus | miescher nevus | unna nevus
        dysplastic junctional nevus | dysplastic compound nevus | dysplastic recurrent nevus
        acral junctional nevus | acral compound nevus | acral dermal nevus | banal junctional nevus
        banal compound nevus | banal dermal nevus | acral banal nevus | acral dysplastic nevus
        congenital junctional nevus | congenital compound nevus | congenital dermal nevus
        nevus spilus | clark nevus | nevus atypical dysplastic or clark | nevus spitz | nevus blue
        nevus congenital | nevus acral | nevus halo | nevus reed | nevus combined | nevus recurrent
        nevus recurrent or persistent
    """,
    "BCC": """
        basal cell carcinoma | bcc | nodular basal cell carcinoma | superficial basal cell carcinoma
        pigmented basal cell carcinoma | basal cell carcinoma nodular
        basal cell carcinoma superficial
        basal cell carcinoma pigmented | infiltrating basal cell carcinoma
    """,
    "AK": """
        actinic keratosis | ak | ack | solar or actinic keratosis | solar keratosis
        pigmented actinic keratosis
    """,
    "BKL": """
        benign keratosis | bkl | benign keratosis like lesion | seborrheic keratosis | sek | sk isk
        solar lentigo | lichen planus like keratosis | lichenoid keratosis | lplk
        pigmented benign keratosis | irritated seborrheic keratosis
    """,
    "DF": "dermatofibroma | df | fibrous histiocytoma",
    "VASC": """
        vascular lesion | vasc | vascular | angioma | cherry angioma | hemangioma | angiokeratoma
        spider angioma | pyogenic granuloma | lymphangioma | infantile hemangioma
        cherry hemangioma | hemangioma cherry | thrombosed angioma
    """,
    "SCC": """
        squamous cell carcinoma | scc | squamous cell carcinoma in situ | bowen disease | scc sccis
        squamous cell carcinoma invasive | invasive squamous cell carcinoma
        squamous cell carcinoma in situ bowen disease | bowens disease | scc in situ
    """,
}


def key(text: str) -> str:
    """A name as it is looked up: lower case, American spelling, only letters and blanks."""
    words = re.sub(r"['’]s\b", "", text.lower())
    for british, american in (
        ("aevus", "evus"),
        ("aevi", "evi"),
        ("haem", "hem"),
        ("rrhoe", "rrhe"),
    ):
        words = words.replace(british, american)
    words = " ".join(re.split(r"[^a-z]+", words)).strip()
    words = re.sub(r"\bnevi\b", "nevus", words)
    words = re.sub(r"\b(keratos|diagnos)es\b", r"\1is", words)
    words = re.sub(r"\b(lesion|melanoma|carcinoma|angioma|hemangioma)s\b", r"\1", words)
    return words.removesuffix(" nos")


_CODES = {
    key(name): code
    for code, names in _NAMES.items()
    for name in re.split(r"\||\n", names)
    if name.strip()
}


def code_of(text: str | None) -> str | None:
    """Code of a published diagnosis; None if it is missing or plainly none of the eight."""
    return _CODES.get(key(text)) if isinstance(text, str) else None


def codes(*levels: pd.Series) -> pd.Series:
    """Code of each row by the first of ``levels`` (the finest first) that has one."""
    out = pd.Series(pd.NA, index=levels[0].index, dtype="string")
    for level in levels:
        found = {name: code_of(name) for name in level.dropna().unique()}
        out = out.fillna(level.map(found).astype("string"))
    return out


def first(*levels: pd.Series) -> pd.Series:
    """The first of ``levels`` that is not missing, row by row."""
    out = levels[0].astype("string")
    for level in levels[1:]:
        out = out.fillna(level.astype("string"))
    return out
