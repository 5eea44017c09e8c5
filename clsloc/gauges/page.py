"""A comparison as one HTML file that needs no other file and no network."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

Cells = Sequence[Sequence[str]]  # the first line holds the titles

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1240px; padding: 16px; color: #222; background: #fff;
  font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
h1 { font-size: 1.6em; margin: .4em 0; }
h2 { font-size: 1.25em; margin: 1.8em 0 .4em; border-bottom: 1px solid #ddd; }
h3 { font-size: 1em; margin: 1.4em 0 .4em; font-weight: 600; overflow-wrap: anywhere; }
p { margin: .4em 0; max-width: 46em; }
.scroll { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; font-size: 13px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 4px 9px; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #e4e4e4; }
thead th { border-bottom: 2px solid #999; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
th:first-child, td:first-child { padding-left: 2px; border-right: 1px solid #e4e4e4; }
tbody tr:hover td { background: #f4f6f8; }
td wbr { display: none; }
.plot { display: block; width: 100%; min-width: 560px; max-width: 820px; height: auto;
  margin: .6em 0; }
.tiles { display: grid; gap: 8px; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; }
figcaption { font-size: 12px; line-height: 1.3; padding: 2px 0 4px; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: 10px; background: #f4f6f8;
  font-size: 12.5px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; font-size: 13px; }
dt { font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 600px) {
  td:first-child { white-space: normal; min-width: 8em; }
  td wbr { display: inline; }
  .tiles { grid-template-columns: 1fr 1fr; }
  dl { grid-template-columns: 1fr; }
  dd { margin-bottom: 6px; }
}
"""


def page(title: str, *sections: str) -> str:
    """The whole file; the sections are those of the functions below."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{''.join(sections)}</body>\n</html>\n"
    )


def heading(text: str, *paragraphs: str) -> str:
    lines = [f"<p>{escape(paragraph)}</p>\n" for paragraph in paragraphs]
    return f"<h2>{escape(text)}</h2>\n{''.join(lines)}"


def table(cells: Cells) -> str:
    """A table that can be moved sideways while its first column stays."""
    titles, *lines = cells
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in titles)
    body = [
        f"<tr><td>{_breakable(name)}</td>"
        + "".join(f"<td>{escape(text)}</td>" for text in line)
        + "</tr>\n"
        for name, *line in lines
    ]
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(body)}</tbody>\n</table></div>\n"
    )


def plot(png: bytes, text: str) -> str:
    return (
        f'<div class="scroll"><img class="plot" alt="{escape(text)}" src="{_uri(png, "png")}">'
        "</div>\n"
    )


def tiles(title: str, pictures: Mapping[str, bytes]) -> str:
    """JPEG files side by side with their names below."""
    figures = [
        f'<figure><img alt="{escape(f"{title}: {name}")}" src="{_uri(jpeg, "jpeg")}">'
        f"<figcaption>{_breakable(name)}</figcaption></figure>\n"
        for name, jpeg in pictures.items()
    ]
    return f'<h3>{_breakable(title)}</h3>\n<div class="tiles">\n{"".join(figures)}</div>\n'


def command(text: str) -> str:
    return f"<pre>{escape(text)}</pre>\n"


def facts(items: Mapping[str, str]) -> str:
    """Names with their values."""
    lines = [
        f"<dt>{escape(name)}</dt><dd>{_breakable(value)}</dd>\n" for name, value in items.items()
    ]
    return f"<dl>\n{''.join(lines)}</dl>\n"


def _breakable(name: str) -> str:
    """A long name may be broken behind an underscore or a slash."""
    return escape(name).replace("_", "_<wbr>").replace("/", "/<wbr>")


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{b64encode(content).decode('ascii')}"
