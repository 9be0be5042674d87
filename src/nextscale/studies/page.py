"""The report of a comparison as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>nextscale: families compared</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }}
img {{ max-width: 100% }} .samples img {{ image-rendering: pixelated; display: block }}
.samples {{ display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; align-items: center }}
table {{ border-collapse: collapse; font-size: .9rem }} h2 {{ margin-top: 2.5rem }}
.wide {{ overflow-x: auto }}
th, td {{ text-align: left; vertical-align: top; padding: .25rem 1.2rem .25rem 0 }}
tr {{ border-bottom: 1px solid #ddd }}
td small {{ color: #555 }} pre {{ background: #f4f4f4; padding: 1rem; overflow-x: auto; font-size: .8rem }}
</style></head><body>
<h1>{title}</h1>
<p>Priors of equally many parameters (within 5 %) and of equal arithmetic in training, on the same images.
Every winner is computed from its row; where 95 % intervals overlap, it is not clear. One training per family:
another seed might come out otherwise.</p>
{warnings}
<h2>Samples</h2>
<p>The same classes and seeds of each family, seeds counting up from 0, none chosen. Classes from left to
right: {classes}.</p>
<div class="samples">{samples}</div>
<h2>Figures</h2><div class="wide"><table id="figures">{figures}</table></div>
<h2>Quality against training arithmetic</h2>
<p>{few:,} samples of the averaged weights at points of each training, sampled as in the table above.</p>
<img src="{compute}" alt="{metric} over training FLOPs, a line per family">
<h2>Quality against sampling time</h2>
<p>{few:,} samples of the finished priors, sampled in several ways; time of an image at batch {batch}.</p>
<img src="{time}" alt="{metric} over seconds per image, a mark per way to sample">
<div class="wide"><table id="samplings">{samplings}</table></div>
<h2>How it was made</h2>
<p>Reference: {reference}. Times: {machine}. Versions: {versions}.</p>
<pre>{command}</pre>
<details><summary>All settings</summary><pre>{settings}</pre></details>
</body></html>
"""


def write_page(
    report: dict[str, Any], *, samples: dict[str, Path], plots: dict[str, Path],
    class_names: tuple[str, ...],
) -> str:  # fmt: skip
    """The page of a report.

    Args:
        report: of `nextscale.studies.report.build_report`.
        samples: by family a PNG of its samples.
        plots: PNGs by name: ``compute`` and ``time``.
        class_names: of the samples, in their order.
    """
    rows = "".join(
        f'<span>{html.escape(name)}</span><img src="{_embedded(path)}" alt="samples of {html.escape(name)}">'
        for name, path in samples.items()
    )
    setting, reference = report["times"]["setting"], report["reference"]
    return _PAGE.format(
        title=html.escape(" | ".join(report["families"])),
        warnings="".join(f"<p><b>Warning:</b> {html.escape(text)}</p>" for text in report["warnings"]),
        classes=html.escape(", ".join(class_names)), samples=rows, figures=_figures(report),
        few=report["settings"]["few_samples"], compute=_embedded(plots["compute"]),
        metric=html.escape(report["metric"]), time=_embedded(plots["time"]),
        batch=max(report["settings"]["timing_batches"]), samplings=_samplings(report),
        reference=html.escape(
            f"{reference['count']} {reference['kind']} images of {reference['source']} "
            f"({reference['features']} features, weights {str(report['features_digest'])[:12]}; "
            f"{reference['preprocessing']})"
        ),
        machine=html.escape(f"{setting['device']}, {setting['threads']} threads, {setting['machine']}"),
        versions=html.escape(", ".join(f"{name} {value}" for name, value in report["versions"].items())),
        command=html.escape(report["command"]),
        settings=html.escape(json.dumps(report["settings"], indent=2)),
    )  # fmt: skip


def _embedded(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _figures(report: dict[str, Any]) -> str:
    families = report["families"]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *families, "winner"))
    lines = [f"<tr>{head}</tr>"]
    for row in report["rows"]:
        cells = "".join(f"<td>{_cell(row['values'][name])}</td>" for name in families)
        name, meaning = html.escape(row["name"]), html.escape(row["meaning"])
        better = f"; {row['better']} is better" if row["better"] else ""
        lines.append(
            f"<tr><td>{name}<br><small>{meaning}{better}</small></td>{cells}"
            f"<td>{html.escape(row['winner'])}</td></tr>"
        )
    return "\n".join(lines)


def _cell(value: dict[str, float | None]) -> str:
    if value["value"] is None:
        return "not known"
    text = _number(value["value"])
    if value["low"] is None or value["high"] is None:
        return text
    return f"{text}<br><small>{_number(value['low'])} to {_number(value['high'])}</small>"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value == int(value) and abs(value) < 1e8:
        return f"{int(value):,}"
    return f"{value:.4g}"


def _samplings(report: dict[str, Any]) -> str:
    metric = report["metric"]
    names = ("family", "sampling", "steps", "seconds per image", metric, "class agreement", "settings")
    lines = ["<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in names) + "</tr>"]
    for row in report["samplings"]:
        used = {name: value for name, value in row["settings"].items() if value is not None}
        settings = ", ".join(f"{name} {value}" for name, value in used.items())
        cells = (
            row["family"], row["sampling"], _number(row["steps"]), _number(row["seconds_per_image"]),
            _number(row[metric]), _number(row["class_agreement"]), settings,
        )  # fmt: skip
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return "\n".join(lines)
