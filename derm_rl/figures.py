"""Every figure: drawn from a stage's tables, saved as PNG with the CSV behind it.

Each function takes the preset, reads finished stages, saves and returns the figure. Metadata are
dropped from the PNGs, so that the same table gives the same file. Real images are never saved among
the figures, which are committed: their sheets stay in the stage's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from derm_rl import data, pipeline, prompts
from derm_rl.config import Config, MissingArtifact
from derm_rl.evaluation.generation import generate
from derm_rl.io import atomic_path, read_csv, read_json, write_csv

PHANTOM = "phantom images: a test instrument, not patients"
STAGE1, RL, BASE = "#4878a8", "#d1603d", "#888888"
COLOURS = {"stage1": STAGE1, "rl": RL, "reward": RL, "judge": STAGE1}
NAMES = {"stage1": "after stage 1", "rl": "after RL", "base": "base model"}


def save_fig(
    fig: Figure, name: str, frame: pd.DataFrame, config: Config, folder: Path | None = None
) -> Path:
    """Write ``name.png`` and the table behind it, ``name.csv``, to the preset's figures."""
    folder = folder or config.figures_dir
    with atomic_path(folder / f"{name}.png") as temporary:
        fig.savefig(temporary, dpi=130, bbox_inches="tight", metadata={"Software": None})
    write_csv(folder / f"{name}.csv", frame)
    return folder / f"{name}.png"


def _axes(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    fig = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return fig, np.asarray(fig.subplots(rows, columns, squeeze=False))


def _show(ax: Axes, image: np.ndarray, title: str = "", frame: str | None = None) -> None:
    ax.imshow(image, interpolation="nearest" if len(image) < 100 else "auto")
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=7)
    for spine in ax.spines.values():
        spine.set(visible=frame is not None, color=frame or "white", linewidth=2.5)


def _short(finding: prompts.Finding) -> str:
    return finding.diagnosis + ": " + (", ".join(_words(finding.artifacts)) or "no artifact")


def _words(names: Sequence[str]) -> list[str]:
    return [prompts.ARTIFACTS.get(n, n) for n in names]


def _note(config: Config) -> str:
    return PHANTOM if config.data.source == "phantom" else f"{config.data.source}, real images"


# ------------------------------------------------------------------------------- 01 data


def data_sheet(config: Config, rows: int = 4, columns: int = 8) -> Figure:
    """Training images with what they show; of every finding some, also of the rare ones."""
    dataset = data.load(config, "diffusion")
    texts = pd.Series([prompts.render(f) for f in dataset.findings])
    order = texts.groupby(texts).cumcount().sort_values(kind="stable").index  # new texts first
    chosen = order[: rows * columns]
    fig, axes = _axes(rows, columns, 1.3, 1.45)
    for ax, i in zip(axes.flat, chosen, strict=False):
        _show(ax, dataset.images[i], _short(dataset.findings[i]).replace(": ", "\n"))
    fig.suptitle(_note(config), fontsize=10)
    frame = dataset.frame.iloc[chosen][["image_id", "diagnosis", *dataset.artifacts]]
    real = config.data.source != "phantom"
    folder = config.require(data.STAGE) if real else None
    save_fig(fig, "data_sheet", frame, config, folder)
    return fig


def phantom_truth(config: Config, n: int = 5) -> Figure | None:
    """Phantom images at 256 px with the truth that is known of them; None for real data."""
    if config.data.source != "phantom":
        return None
    from derm_rl.data import phantom, phantom_render

    frame = data.load(config, "test").frame
    chosen = frame.sort_values(["ink", "ruler", "gel_bubble"], ascending=False).iloc[: 12 * n : 12]
    fig, axes = _axes(2, n, 2.4, 2.7)
    for column, path in zip(axes.T, chosen["path"], strict=True):
        scene = phantom.scene_at(path)
        image, mask = phantom_render.render(scene, 256)
        _show(column[0], image, f"{scene.diagnosis}, skin type {scene.skin_type}")
        _show(column[1], np.where(mask[..., None], image, image // 4 + 190))
        column[1].set_title(
            f"asymmetry {scene.asymmetry:.2f}, border {scene.border:.2f}\n"
            f"{', '.join(scene.colours)}\n{len(scene.hairs)} hairs, {len(scene.bubbles)} bubbles",
            fontsize=7,
        )
    fig.suptitle(f"What was drawn, and its lesion mask ({PHANTOM})", fontsize=10)
    truth = phantom.truth(chosen["path"].tolist())
    save_fig(fig, "phantom_truth", truth.drop(columns=["hairs", "harmonics", "globules"]), config)
    return fig


def data_counts(config: Config) -> Figure:
    """Share of images with each finding, in every split."""
    table = data.summary(data.load(config)).reset_index()
    findings = [c for c in table if c not in ("split", "images", "lesions")]
    long = table.melt(["split", "images"], findings, "finding", "count")
    long["share"] = long["count"] / long["images"]
    long["finding"] = _words(long["finding"])
    fig, axes = _axes(1, 1, 7.5, 3)
    sns.barplot(long, x="finding", y="share", hue="split", ax=axes[0, 0], palette="muted")
    axes[0, 0].set(xlabel="", ylabel="share of images", title=_note(config))
    save_fig(fig, "data_counts", table, config)
    return fig


def shared_lesions(config: Config) -> Figure | None:
    """Lesions in more than one split, as published and as here; None without published splits."""
    file = config.require(data.STAGE) / "published_splits.csv"
    if not file.is_file():
        return None
    from derm_rl.data import splits

    ours = splits.shared_lesions(data.load(config).frame, "split").assign(which="here")
    table = pd.concat([read_csv(file).assign(which="published with RL4Med"), ours])
    fig, axes = _axes(1, 1, 7.5, 3)
    sns.barplot(table, y="splits", x="lesions", hue="which", ax=axes[0, 0], palette=[RL, STAGE1])
    axes[0, 0].set(ylabel="", xlabel="lesions in both", title="Leakage between splits")
    save_fig(fig, "shared_lesions", table, config)
    return fig


# ------------------------------------------------------------------- 02 reward classifier


def classifier_roc(config: Config) -> Figure:
    """ROC curves and calibration of reward classifier and judge on the test lesions."""
    folder = config.require("02_reward_classifier")
    tables = {n: read_csv(folder / f"{n}.csv") for n in ("roc", "reliability", "attributes")}
    fig, axes = _axes(2, 2, 4.2, 3.7)
    for row, model in zip(axes, ("reward", "judge"), strict=True):
        roc, reliability, found = (t[t["model"] == model] for t in tables.values())
        for label in found.itertuples():
            curve = roc[roc["attribute"] == label.attribute]
            name = f"{label.attribute} {label.auc:.3f} [{label.auc_low:.3f}, {label.auc_high:.3f}]"
            row[0].plot(curve.iloc[:, -2], curve.iloc[:, -1], label=name, lw=1.4)
            bins = reliability[reliability["attribute"] == label.attribute]
            row[1].plot(bins["stated"], bins["observed"], "o-", ms=3, lw=1)
        row[0].set(title=f"{model}: ROC", xlabel="false positive rate", ylabel="recall")
        row[0].legend(fontsize=6.5, title="AUC, 95 % interval", title_fontsize=7)
        row[1].plot([0, 1], [0, 1], "--", color=BASE, lw=1)
        row[1].set(title=f"{model}: calibration", xlabel="stated probability", ylabel="observed frequency")
    fig.suptitle(_note(config), fontsize=10)
    save_fig(fig, "classifier_attributes", tables["attributes"], config)
    for name in ("roc", "reliability"):
        write_csv(config.figures_dir / f"classifier_{name}.csv", tables[name])
    return fig


def autoencoder(config: Config, n: int = 8) -> Figure:
    """Test images before and after the autoencoder, and what the judge still sees in them."""
    table = read_csv(config.require("02_reward_classifier") / "autoencoder.csv")
    real = config.data.source != "phantom"
    fig, axes = _axes(1, 1, 4, 3) if real else _axes(2, n, 1.3, 1.4)
    if real:
        table[["original", "reconstruction"]].mean().plot.bar(ax=axes[0, 0], rot=0, color=STAGE1)
        axes[0, 0].set(ylabel="exact match of all artifacts", ylim=(0, 1))
    else:
        images = np.array(data.load(config, ids=table["image_id"][:n].tolist()).images)
        after = pipeline.reconstruct(pipeline.load(config.pipeline.base), images)
        for column, before, decoded in zip(axes.T, images, after, strict=True):
            _show(column[0], before)
            _show(column[1], decoded)
        fig.suptitle(f"Before and after the autoencoder ({PHANTOM})", fontsize=10)
    save_fig(fig, "classifier_autoencoder", table, config)
    return fig


# ------------------------------------------------------------------------ 03 fine-tuning


def finetune_loss(config: Config) -> Figure:
    """Loss and gradient norm of stage 1, smoothed over 25 steps."""
    log = read_csv(config.require("03_finetune_stable_diffusion") / "log.csv")
    fig, axes = _axes(1, 2, 4, 2.8)
    for ax, column in zip(axes.flat, ("loss", "grad_norm"), strict=True):
        ax.plot(log["step"], log[column], color=STAGE1, alpha=0.25, lw=0.8)
        ax.plot(log["step"], log[column].rolling(25, min_periods=1).mean(), color=STAGE1)
        ax.set(xlabel="step", title=column.replace("_", " "), yscale="log")
    save_fig(fig, "finetune_loss", log, config)
    return fig


def finetune_samples(config: Config, n: int = 4) -> Figure:
    """The same prompts and seeds by the base model and after stage 1."""
    findings = _showcase(config)
    folder = config.require("03_finetune_stable_diffusion") / "pipeline"
    sources = {"base": config.pipeline.base, "stage1": folder}
    fig, axes = _axes(len(findings), 2 * n + 1, 1.1, 1.2)
    steps = config.alignment.inference_steps
    for part, (model, source) in enumerate(sources.items()):
        images = generate(
            pipeline.load(source), findings, n, config.alignment.seed, steps,
            guidance_scale=2.0, eta=config.alignment.eta, size=config.image_size,
        )  # fmt: skip
        for i, image in enumerate(images):
            row, column = divmod(i, n)
            _show(axes[row, part * (n + 1) + column], image)
        axes[0, part * (n + 1)].set_title(NAMES[model], fontsize=9, loc="left")
    for ax, finding in zip(axes[:, n], findings, strict=True):
        ax.axis("off")
        ax.text(0.5, 0.5, _short(finding).replace(": ", "\n").replace(", ", "\n"), ha="center",
                va="center", fontsize=7)  # fmt: skip
    rows = [{"prompt": prompts.render(f), "images": n, "guidance_scale": 2.0} for f in findings]
    save_fig(fig, "finetune_samples", pd.DataFrame(rows), config)
    return fig


def _showcase(config: Config) -> list[prompts.Finding]:
    """Six prompts of the vocabulary: none, each of up to three artifacts, two, all."""
    names = data.vocabulary(config).artifacts
    sets = [(), *[(a,) for a in names[:3]], tuple(names[:2]), tuple(names)]
    diagnoses = data.vocabulary(config).diagnoses
    return [prompts.Finding(diagnoses[i % 2], s) for i, s in enumerate(dict.fromkeys(sets))]


# ------------------------------------------------------------------------------- 04 DDPO


def ddpo_curves(config: Config) -> Figure:
    """Reward and judge on fixed noise, clip fraction and KL by epoch."""
    log = read_csv(config.require("04_ddpo") / "log.csv")
    fig, axes = _axes(1, 3, 4, 3)
    for column, label, colour in (
        ("reward", "reward paid, sampled", "#e8b8a5"),
        ("eval_reward", "reward paid, fixed noise", RL),
    ):
        shown = log.dropna(subset=[column])
        axes[0, 0].plot(shown["epoch"], shown[column], "o-", ms=3, color=colour, label=label)
    for column, label, colour in (
        ("eval_reward_hard", "labels right, reward classifier", RL),
        ("eval_judge_hard", "labels right, judge", STAGE1),
        ("eval_judge_apr", "APR, judge", "#2f4f6f"),
    ):
        shown = log.dropna(subset=[column])
        axes[0, 1].plot(shown["epoch"], shown[column], "o-", ms=3, color=colour, label=label)
    axes[0, 2].plot(log["epoch"], log["clip_fraction"], color=RL, label="clip fraction")
    twin = axes[0, 2].twinx()
    twin.plot(log["epoch"], log["approx_kl"], color=STAGE1, label="approximate KL")
    twin.set_ylabel("approximate KL", color=STAGE1)
    axes[0, 2].set(ylabel="clip fraction")
    for ax, title in zip(
        axes[0], ("Reward", "The judge is not the reward", "Updates"), strict=True
    ):
        ax.set(xlabel="epoch", title=title)
    for ax in axes[0, :2]:
        ax.legend(fontsize=7)
    save_fig(fig, "ddpo_curves", log, config)
    return fig


# -------------------------------------------------------------------------- 05 alignment


def before_after(config: Config, n: int = 4) -> Figure:
    """The same prompt and noise before and after RL; green where the judge sees the artifacts."""
    folder = config.require("05_alignment")
    samples = read_csv(folder / "samples.csv")
    images = {m: np.load(folder / f"images_{m}.npy", mmap_mode="r") for m in ("stage1", "rl")}
    artifacts = data.vocabulary(config).artifacts
    seen = samples[[f"judge_{a}" for a in artifacts]].to_numpy() > 0.5
    samples["match"] = (seen == samples[[f"wanted_{a}" for a in artifacts]].to_numpy(bool)).all(1)
    findings = _showcase(config)
    fig, axes = _axes(len(findings), 2 * n + 1, 1.15, 1.25)
    rows = []
    for part, model in enumerate(("stage1", "rl")):
        mine = samples[samples["model"] == model].reset_index(drop=True)
        for row, finding in enumerate(findings):
            chosen = mine.index[mine["prompt"] == prompts.render(finding)][:n]
            for column, i in enumerate(chosen):
                frame = "#3a9a4c" if mine["match"][i] else "#c23b3b"
                _show(axes[row, part * (n + 1) + column], images[model][i], frame=frame)
            for ax in axes[row, part * (n + 1) + len(chosen) : part * (n + 1) + n]:
                ax.axis("off")
            rows.append(mine.loc[chosen])
        axes[0, part * (n + 1)].set_title(NAMES[model], fontsize=10, loc="left")
    for ax, finding in zip(axes[:, n], findings, strict=True):
        ax.axis("off")
        ax.text(0.5, 0.5, _short(finding).replace(": ", "\n").replace(", ", "\n"), ha="center",
                va="center", fontsize=7)  # fmt: skip
    fig.suptitle(f"Generated from {_note(config)}; same prompt, same noise", fontsize=10)
    save_fig(fig, "before_after", pd.concat(rows), config)
    write_csv(config.figures_dir / "alignment_samples.csv", samples)
    return fig


def apr_heatmap(config: Config) -> Figure:
    """APR of every prompt: artifact subsets by diagnosis, before, after, and the gain."""
    table = read_csv(config.require("05_alignment") / "per_prompt.csv")
    finding = table["prompt"].map(prompts.parse)
    table["artifacts"] = finding.map(lambda f: ", ".join(_words(f.artifacts)) or "none")
    table["diagnosis_asked"] = finding.map(lambda f: f.diagnosis)
    order = table["artifacts"].drop_duplicates().tolist()
    grids = {
        m: part.pivot(index="artifacts", columns="diagnosis_asked", values="apr").loc[order]
        for m, part in table.groupby("model", sort=False)
    }
    fig, axes = _axes(1, 3, 3.2, 0.33 * len(order) + 1)
    panels = [(NAMES[m], grids[m], 0, "Blues") for m in ("stage1", "rl")]
    panels.append(("gain", grids["rl"] - grids["stage1"], -1, "RdBu"))
    for ax, (title, grid, low, colours) in zip(axes[0], panels, strict=True):
        sns.heatmap(
            grid, ax=ax, vmin=low, vmax=1, cmap=colours, annot=True, fmt=".2f", cbar=False,
            annot_kws={"fontsize": 7}, yticklabels=ax is axes[0, 0],
        )  # fmt: skip
        ax.set(title=title, xlabel="", ylabel="")
    fig.suptitle("APR by prompt, under the judge", fontsize=10)
    save_fig(fig, "apr_heatmap", table, config)
    return fig


def attributes(config: Config) -> Figure:
    """Recall and false-add rate of each attribute before and after RL, with 95 % intervals."""
    table = read_csv(config.require("05_alignment") / "attributes.csv")
    fig, axes = _axes(1, 2, 4.2, 3)
    titles = {"recall": "asked for and seen (recall)", "false_add": "not asked for but seen"}
    for ax, (measure, title) in zip(axes[0], titles.items(), strict=True):
        for offset, model in ((-0.17, "stage1"), (0.17, "rl")):
            part = table[table["model"] == model]
            value = part[measure].to_numpy()
            error = np.abs(part[[f"{measure}_low", f"{measure}_high"]].to_numpy().T - value)
            ax.bar(np.arange(len(part)) + offset, value, 0.32, yerr=error, capsize=2,
                   color=COLOURS[model], label=NAMES[model])  # fmt: skip
        ax.set_xticks(range(len(part)), _words(part["attribute"]))
        ax.set(title=title, ylim=(0, 1))
    axes[0, 0].legend(fontsize=7)
    save_fig(fig, "attributes", table, config)
    return fig


def guidance(config: Config) -> Figure:
    """APR by guidance scale on the sample that chooses it."""
    table = read_csv(config.require("05_alignment") / "guidance.csv")
    fig, axes = _axes(1, 1, 4.2, 3)
    for model, part in table.groupby("model", sort=False):
        axes[0, 0].plot(part["guidance_scale"], part["apr"], "o-", color=COLOURS[model],
                        label=NAMES[model])  # fmt: skip
        best = part[part["chosen"]]
        axes[0, 0].plot(best["guidance_scale"], best["apr"], "o", ms=10, mfc="none",
                        color=COLOURS[model])  # fmt: skip
    axes[0, 0].set(xlabel="guidance scale", ylabel="APR", title="Each model at its best guidance")
    axes[0, 0].legend(fontsize=7)
    save_fig(fig, "guidance", table, config)
    return fig


FIGURES = {
    "01_data": (data_sheet, phantom_truth, data_counts, shared_lesions),
    "02_reward_classifier": (classifier_roc, autoencoder),
    "03_finetune_stable_diffusion": (finetune_loss, finetune_samples),
    "04_ddpo": (ddpo_curves,),
    "05_alignment": (before_after, apr_heatmap, attributes, guidance),
}


def redraw(config: Config) -> list[Path]:
    """Draw all figures of the finished stages; says which stages are missing."""
    for stage, functions in FIGURES.items():
        try:
            config.require(stage)
        except MissingArtifact as error:
            print(error)
            continue
        for function in functions:
            function(config)
    return sorted(config.figures_dir.glob("*.png"))


def metrics(config: Config, stage: str) -> pd.DataFrame:
    """The recorded metrics of a stage as a table: metric, value, low, high, n."""
    found = read_json(config.require(stage) / "metrics.json")
    rows = [
        {"metric": k} | {c: v[c] for c in ("value", "low", "high", "n")} for k, v in found.items()
    ]
    return pd.DataFrame(rows).round(3)
