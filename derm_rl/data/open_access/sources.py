"""The open-access sources: what they are, under which licence, and where their files belong.

A licence or attribution that the metadata give for an image goes before the one here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pandas as pd

from derm_rl.data.dermoscopy import Exclusions
from derm_rl.prompts import near

Reader = Callable[[Path, Exclusions], pd.DataFrame]


@dataclass(frozen=True)
class Source:
    """One data set. ``modality`` is None where it differs from image to image."""

    name: str
    title: str
    modality: str | None
    licence: str
    attribution: str
    url: str
    layout: tuple[str, ...]  # what belongs into its folder, a line each
    module: str | None  # "module:function" of its reader, below derm_rl.data.open_access
    note: str = ""  # on the licence

    @property
    def reader(self) -> Reader:
        module, _, function = str(self.module).partition(":")
        return getattr(import_module(f"derm_rl.data.open_access.{module}"), function)


CHECK = "Compare it with the one stated where you download: it is not repeated in every file."
_ALL = (
    Source(
        "derm12345",
        "DERM12345",
        "dermoscopic",
        "CC BY-NC 4.0",
        "A. Yilmaz et al.: DERM12345: A large, multisource dermatoscopic skin lesion dataset with "
        "40 subclasses, Scientific Data 11, 1302 (2024)",
        "https://doi.org/10.7910/DVN/DAXZ7P",
        (
            "*metadata*.csv (or .tab): image_id, super_class, malignancy, main_class_1, "
            "main_class_2, sub_class, and where given patient_id, lesion_id",
            "images in folders or zip archives derm12345*, images*, train*, test*",
        ),
        "derm12345:read",
        CHECK,
    ),
    Source(
        "bcn20000",
        "BCN20000",
        "dermoscopic",
        "CC BY-NC 4.0",
        "M. Combalia et al.: BCN20000: Dermoscopic lesions in the wild, arXiv 1908.02288 (2019)",
        "https://www.isic-archive.com",
        (
            "metadata.csv or bcn_20k_train.csv: bcn_filename or isic_id, diagnosis or diagnosis_1 "
            "to _5, age_approx, anatom_site_general or anatom_site_1 to _5, sex, lesion_id, split",
            "images in folders or zip archives BCN_*, bcn_*, ISIC*, images*; or ISIC_*.jpg beside "
            "the table",
        ),
        "isic_archive:bcn20000",
        CHECK,
    ),
    Source(
        "pad_ufes_20",
        "PAD-UFES-20",
        "clinical",
        "CC BY 4.0",
        "A. G. C. Pacheco et al.: PAD-UFES-20: A skin lesion dataset composed of patient data and "
        "clinical images collected from smartphones, Data in Brief 32, 106221 (2020)",
        "https://doi.org/10.17632/zr7vgbcyr2.1",
        (
            "metadata.csv: img_id, patient_id, lesion_id, diagnostic, age, gender, region, …",
            "imgs_part_1, imgs_part_2, imgs_part_3 (folders or zip archives), here or in images/",
        ),
        "pad_ufes_20:read",
        CHECK,
    ),
    Source(
        "scin",
        "SCIN",
        "clinical",
        "SCIN Data Use License",
        "A. Ward et al.: Crowdsourcing dermatology images with Google Search ads: Creating a "
        "real-world skin condition dataset, arXiv 2402.18545 (2024)",
        "https://github.com/google-research-datasets/scin",
        (
            "scin_cases.csv and scin_labels.csv, here or in dataset/",
            "images/ beside them (folder or zip archive): what image_1_path to _3_path name",
        ),
        "scin:read",
        "It has conditions of its own. Read them before you pass anything on.",
    ),
    Source(
        "hiba",
        "HIBA Skin Lesions",
        None,
        "CC BY 4.0",
        "M. A. Ricci Lara et al.: A dataset of skin lesion images collected in Argentina for the "
        "evaluation of AI tools in this population, Scientific Data 10, 712 (2023)",
        "https://www.isic-archive.com",
        (
            "metadata.csv: isic_id, diagnosis_1 to _5, image_type, age_approx, sex, "
            "anatom_site_general or anatom_site_1 to _5, fitzpatrick_skin_type, lesion_id, "
            "patient_id, copyright_license, attribution",
            "images in folders or zip archives ISIC*, images*, hiba*; or ISIC_*.jpg here",
        ),
        "isic_archive:hiba",
        "Column copyright_license gives it for each image, and goes before this one.",
    ),
    Source(
        "ham10000",
        "HAM10000",
        "dermoscopic",
        "CC BY-NC 4.0",
        "P. Tschandl, C. Rosendahl, H. Kittler: The HAM10000 dataset, Scientific Data 5, 180161 "
        "(2018), doi:10.1038/sdata.2018.161",
        "https://doi.org/10.7910/DVN/DBW86T",
        (
            "HAM10000_metadata.csv (or .tab, or without ending)",
            "images in folders or zip archives HAM10000_images*; or ISIC_*.jpg beside the table",
            "isic2019_artifacts.csv, if there are annotations of artifacts",
        ),
        "ham10000:read",
        CHECK,
    ),
    Source(
        "phantom",
        "Phantom dermoscopy",
        "dermoscopic",
        "Apache-2.0",
        "derm_rl phantom",
        "",
        ("nothing: its images are drawn when they are looked at",),
        None,
        "A test instrument, never evidence about patients.",
    ),
)
SOURCES: dict[str, Source] = {source.name: source for source in _ALL}


def find(name: str) -> Source:
    """The source of a name, written as it is published or as in ``SOURCES``.

    Raises:
        ValueError: there is none; names the nearest.
    """
    key = str(name).strip().lower().replace("-", "_").replace(" ", "_")
    if key not in SOURCES:
        raise ValueError(f"unknown source {name!r}{near(key, SOURCES)}")
    return SOURCES[key]
