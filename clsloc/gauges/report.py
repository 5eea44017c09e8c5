"""What a comparison leaves in its folder: tables, pictures and a page that shows it all."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clsloc import cli
from clsloc.engine import setup_cfg
from clsloc.errors import UserError
from clsloc.files import atomic_write
from clsloc.gauges import gallery, page, plots
from clsloc.gauges.comparison import difference_cells, markdown, summarise, table_cells
from clsloc.gauges.histories import read_history

logger = logging.getLogger(__name__)

TABLE = (
    "Mean ± sample standard deviation over the seeds, AP in percent. Δ is the difference to "
    "{first}, paired over equal seeds."
)
CAPTIONS = {
    "ap_by_iou": (
        "AP by IoU threshold",
        "The mean over the seeds; the band is one standard deviation wide to each side. The "
        "further to the right a line stays up, the tighter are the boxes.",
    ),
    "training_curves": (
        "Training",
        "The mean over the seeds. Losses of different methods have different terms: compare "
        "their course, not their height.",
    ),
    "ap_by_latency": (
        "AP by time for an image",
        "The median of one image at a time, with the weights of the first seed, the methods in "
        "turn; bars are one standard deviation of AP.",
    ),
}
GALLERY = (
    "Images of {dataset}, chosen by a fixed seed. Of each method's first seed as many predictions "
    "are drawn as the image has objects, the best scored. Green, with the IoU of box and object: "
    "the right class and an IoU of {iou} or more. Red, with the predicted class: anything else. "
    "Blue: the ground truth."
)


def write_report(
    output: Path,
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    origin: Mapping[str, Any],
    *,
    json_file: str | None = None,
    num_images: int = 0,
) -> str:
    """Write table.md, table.json, the pictures and index.html.

    Args:
        output: the folder.
        runs: the figures of the finished runs of each method, as
            :func:`~clsloc.gauges.comparison.summarise` takes them, each with its ``folder``.
        origin: ``made_with`` (hardware, commit and versions), ``seeds``, ``command``, ``configs``
            and ``unfinished``, a list of runs.
        json_file: another place for table.json.
        num_images: images in the gallery.

    Returns:
        The text of table.md.
    """
    rows, first = summarise(runs), next(iter(runs))
    for path in filter(None, (output / "table.json", json_file)):
        cli.write_json({"rows": rows, "runs": runs, **origin}, path)
    text = _tables(rows, first, origin)
    _write(output / "table.md", text)

    plotted = _plots(rows, runs)
    for name, png in plotted.items():
        _write(output / f"{name}.png", png)
    title = f"Comparison of {len(rows)} methods"
    sections = [
        *_table_sections(rows, first),
        *_plot_sections(plotted),
        *_gallery(runs, num_images),
        *_origin_sections(origin),
    ]
    _write(output / "index.html", page.page(title, *sections))
    return text


def _tables(rows: Sequence[Mapping[str, Any]], first: str, origin: Mapping[str, Any]) -> str:
    blocks = [table_cells(rows), difference_cells(rows)]
    tables = [markdown(cells) for cells in blocks if len(cells) > 1]
    return "\n".join([*tables, f"{TABLE.format(first=first)} {_origin_sentence(origin)}\n"])


def _plots(
    rows: Sequence[Mapping[str, Any]], runs: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, bytes | None]:
    histories = {
        name: [read_history(Path(run["folder"], "metrics.json")) for run in of_method]
        for name, of_method in runs.items()
    }
    return {
        "ap_by_iou": plots.ap_by_iou(rows),
        "training_curves": plots.training_curves(histories),
        "ap_by_latency": plots.ap_by_latency(rows),
    }


def _table_sections(rows: Sequence[Mapping[str, Any]], first: str) -> list[str]:
    differences = difference_cells(rows)
    sections = [page.heading("Results", TABLE.format(first=first)), page.table(table_cells(rows))]
    if len(differences) > 1:
        sections += [page.heading(f"Difference to {first}"), page.table(differences)]
    return sections


def _plot_sections(plotted: Mapping[str, bytes | None]) -> list[str]:
    return [
        page.heading(title, text) + page.plot(png, title)
        for name, png in plotted.items()
        if png
        for title, text in [CAPTIONS[name]]
    ]


def _write(path: Path, content: str | bytes | None) -> None:
    """None stands for no file, not even that of an earlier report."""
    if content is None:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def _gallery(runs: Mapping[str, Sequence[Mapping[str, Any]]], count: int) -> list[str]:
    """Nothing where the images cannot be had: the runs may have been made elsewhere."""
    if not count:
        return []
    folders = {name: Path(of_method[0]["folder"]) for name, of_method in runs.items() if of_method}
    try:
        config = setup_cfg(config_file=str(next(iter(folders.values())) / "config.yaml"))
        dataset = config.DATASETS.TEST[0]
        images = gallery.draw_gallery(dataset, folders, count)
    except (UserError, OSError) as error:
        logger.warning("No gallery of predictions: %s", error)
        return []
    text = GALLERY.format(dataset=dataset, iou=gallery.RIGHT_IOU)
    return [page.heading("Predictions", text)] * bool(images) + [
        page.tiles(title, pictures) for title, pictures in images
    ]


def _origin_sentence(origin: Mapping[str, Any]) -> str:
    made = origin["made_with"]
    sentence = (
        f"{origin['seeds']} seed(s); {made['hardware']}; torch {made['torch']}, "
        f"Python {made['python']}; commit {made['commit']}."
    )
    if origin["unfinished"]:
        sentence += f" Runs that are not finished: {len(origin['unfinished'])}."
    return sentence


def _origin_sections(origin: Mapping[str, Any]) -> list[str]:
    facts = {
        **origin["made_with"],
        "not finished": ", ".join(origin["unfinished"]) or "nothing",
    }
    return [
        page.heading("How this was made"),
        page.command(origin["command"]),
        page.facts(facts),
        page.heading("Configs"),
        page.facts(origin["configs"]),
    ]
