"""Croissant metadata of a release (MLCommons Croissant 1.0), for search engines and loaders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from derm_rl.captions.card import clean, hub_licence

# Types of Parquet columns -> members of mlcroissant.DataType.
_TYPES = {"string": "TEXT", "int32": "INTEGER", "double": "FLOAT", "bool": "BOOL"}
_LICENCE_URLS = {
    "apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "mit": "https://opensource.org/license/mit",
    "cc0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
}


def metadata(folder: Path, images: str, described: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-LD of the release in ``folder``, whose Parquet files are written.

    Args:
        described: what ``card.describe`` returns.
    """
    import mlcroissant as mlc

    context = mlc.Context(conforms_to="http://mlcommons.org/croissant/1.0")
    record_sets = [_splits(described["splits"], context), _pairs(folder, images, context)]
    kept = {k: described[k] for k in ("url", "cite_as", "date_published") if described[k]}
    creators = [mlc.Person(ctx=context, name=clean(name)) for name in described["creators"]]
    about = mlc.Metadata(
        ctx=context,
        name=re.sub(r"[^A-Za-z0-9_-]+", "-", clean(described["title"])).strip("-") or "pairs",
        description=_description(described),
        version=described["version"],
        license=[_licence_url(name) for name in hub_licence(described["licence_ids"])],
        in_language=list(described["languages"]),
        keywords=["dermatology", "visual question answering", "research only"],
        creators=creators,
        distribution=[
            mlc.FileSet(
                ctx=context,
                id="parquet-files",
                name="parquet-files",
                description="Image-text pairs, a row a pair.",
                encoding_formats=["application/x-parquet"],
                includes=["data/*.parquet"],
            )
        ],
        record_sets=record_sets,
        **kept,
    )
    return _plain(about.to_json())


def _description(d: Mapping[str, Any]) -> str:
    said = [clean(d["description"]), f"{d['pairs']} pairs about {d['images']} images."]
    said.append("For research only; no medical advice.")
    if d["phantom_images"]:
        said.append(f"{d['phantom_images']} images are drawn phantoms, no evidence about patients.")
    if d["rule_based"]:
        said.append(f"{d['rule_based']} answers are rule-based, written from measurements.")
    return " ".join(said)


def _licence_url(name: str) -> str:
    if name.startswith("cc-by"):
        kind, _, version = name.removeprefix("cc-").rpartition("-")
        return f"https://creativecommons.org/licenses/{kind}/{version}/"
    return _LICENCE_URLS.get(name, "See columns licence and attribution of every row")


def _splits(names: list[str], context: Any) -> Any:
    import mlcroissant as mlc

    field = mlc.Field(
        ctx=context, id="splits/name", name="name", description="Name of the split.",
        data_types=[mlc.DataType.TEXT],
    )  # fmt: skip
    return mlc.RecordSet(
        ctx=context, id="splits", name="splits",
        description="Splits: what shares a patient, lesion or image is in one.",
        key=["splits/name"], data_types=[mlc.DataType.SPLIT], fields=[field],
        data=[{"splits/name": name} for name in names],
    )  # fmt: skip


def _pairs(folder: Path, images: str, context: Any) -> Any:
    import mlcroissant as mlc

    from derm_rl.captions.export_formats import files

    def field(name: str, kind: str, source: dict[str, Any], **further: Any) -> Any:
        extract = mlc.Extract(ctx=context, **source.pop("extract"))
        return mlc.Field(
            ctx=context, id=f"pairs/{name}", name=name.rpartition("/")[2],
            data_types=[getattr(mlc.DataType, kind)],
            description=further.pop("description", f"Column {name}."),
            source=mlc.Source(ctx=context, file_set="parquet-files", extract=extract, **source),
            **further,
        )  # fmt: skip

    def within(path: str) -> list[Any]:
        return [mlc.Transform(ctx=context, json_path=path)]

    # The loader applies it once more when it joins the splits, to the bare name.
    by_path = [mlc.Transform(ctx=context, regex=r"(?:data/)?(.+?)(?:-\d{5}\.parquet)?$")]
    fields = [
        field(
            "split",
            "TEXT",
            {"extract": {"file_property": "fullpath"}, "transforms": by_path},
            references=mlc.Source(ctx=context, field="splits/name"),
            description="Split, from the name of the file.",
        )  # fmt: skip
    ]
    if images == "embed":
        source = {"extract": {"column": "image"}, "transforms": within("bytes")}
        fields.append(field("image", "IMAGE_OBJECT", source))
    for column in _schema(next(iter(files(folder).values()))[0]):
        if str(column.type) in _TYPES:
            source = {"extract": {"column": column.name}}
            fields.append(field(column.name, _TYPES[str(column.type)], source))
    finding = mlc.Field(
        ctx=context, id="pairs/findings", name="findings", repeated=True,
        description="What an answer rests on.",
        sub_fields=[
            field(
                f"findings/{part}", "TEXT",
                {"extract": {"column": "findings"}, "transforms": within(part)},
            )
            for part in ("name", "value", "evidence")
        ],
    )  # fmt: skip
    return mlc.RecordSet(
        ctx=context, id="pairs", name="pairs", description="Image-text pairs.",
        key=["pairs/pair_id"], fields=[*fields, finding],
    )  # fmt: skip


def _schema(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_schema(path)


def _plain(value: Any) -> Any:
    """JSON without the order of sets or types that JSON does not have."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
