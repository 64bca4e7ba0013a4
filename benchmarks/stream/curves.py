"""Accuracy against frames seen, one picture a track."""

from pathlib import Path
from statistics import mean
from typing import Any

__all__ = ["draw"]

Groups = dict[tuple[str, str], list[dict[str, Any]]]


def draw(track: str, groups: Groups, out: Path) -> Path:
    """FILE-TRACK.png beside FILE.jsonl: kNN of the backbone, mean over seeds; ours thick and black, i.i.d. dashed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    mine = [(name, lines) for (where, name), lines in groups.items() if where == track]
    for place, (name, lines) in enumerate(mine):
        curve = [
            (points[0]["frames"], 100 * mean(p["knn"] for p in points))
            for points in zip(*(line["points"] for line in lines), strict=True)
        ]
        style: dict[str, Any] = {"color": f"C{place % 10}", "linestyle": ("-", "-.")[place // 10 % 2], "label": name}
        if len(curve) == 1:  # not trained
            axes.axhline(curve[0][1], **(style | {"linestyle": ":"}))
            continue
        style |= {"linestyle": "--"} if "iid" in name else {}
        style |= {"linestyle": "-", "color": "black", "linewidth": 3} if name == "ours" else {"linewidth": 1.3}
        axes.plot(*zip(*curve, strict=True), **style)
    axes.set(xlabel="frames seen", ylabel="kNN of the backbone, all classes [%]", title=f"Track {track}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    picture = out.with_name(f"{out.stem}-{track}.png")
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(picture)
    return picture
