"""An executed notebook as one HTML page that needs nothing else: no network, no script, images and formulas inside.

nbconvert's page fetches MathJax, RequireJS and Mermaid from the web and shows raw LaTeX where it cannot. Here formulas
become SVG when the page is made, by matplotlib's mathtext, and no script is left.
"""

import base64
import mimetypes
import re
from copy import deepcopy
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

_TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block data_png scoped -%}
<div class="jp-RenderedImage jp-OutputArea-output {{ extra_class }}">
<img src="data:image/png;base64,{{ output.data['image/png'] | escape_html }}"
 alt="{{ (output | get_metadata('alt', 'image/png') or 'Figure') | escape_html }}"
 width="{{ output | get_metadata('width', 'image/png') or '' }}">
</div>
{%- endblock -%}
{%- block html_head_css -%}
<style>
main { max-width: 72rem; margin: 0 auto; padding: 1rem; }
img { max-width: 100%; height: auto; }
img.formula { display: inline; height: auto; }
.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"] { background: none; color: #666; }
p > img.display { display: block; margin: 0.8em auto; }
</style>
{%- endblock -%}
"""
_CODE = r"```.*?```|`[^`\n]*`"
FORMULA = re.compile(rf"(?P<code>{_CODE}|\\\$)|\$\$(?P<display>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$", re.DOTALL)
_FIGURE = re.compile(rf"(?P<code>{_CODE})|!\[(?P<alt>[^\]]*)\]\((?P<file>[^)\s:]+)\)", re.DOTALL)
_UNITS = 100.0  # an em in the units of a drawing: whole numbers are fine enough


def to_html(notebook: Any, folder: Path | None = None) -> str:
    """The page of an executed notebook (an nbformat node). The notebook itself is left as it is.

    `folder` is where the notebook's source lies, beside which its text may show pictures, as in `![what](../a.png)`:
    they go into the page. One that isn't there stays a link.
    """
    from nbconvert.exporters import HTMLExporter

    notebook = deepcopy(notebook)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["title"] = title(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = cell.source if folder is None else _FIGURE.sub(partial(_figure, folder=folder), cell.source)
            cell.source = FORMULA.sub(_replace, text)
    body, _ = HTMLExporter(raw_template=_TEMPLATE, embed_images=True).from_notebook_node(notebook)
    return body


def _figure(match: re.Match[str], *, folder: Path) -> str:
    """A picture as its content; code, and what is not there, as it stands."""
    if match["code"] or not (folder / match["file"]).is_file():
        return match[0]
    kind, _ = mimetypes.guess_type(match["file"])
    content = base64.b64encode((folder / match["file"]).read_bytes()).decode()
    return f'<img alt="{escape(match["alt"])}" src="data:{kind};base64,{content}">'


def title(notebook: Any) -> str:
    """The first heading of a notebook."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (found := re.search(r"^#+\s+(.+)$", cell.source, re.MULTILINE)):
            return found[1].strip()
    return "Notebook"


def formula(latex: str, *, display: bool = False) -> str:
    """An <img> tag with the formula as SVG, on the base line of the text; ValueError when mathtext cannot read it."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path as Outline
    from matplotlib.textpath import TextPath, text_to_path

    font = FontProperties(size=_UNITS, math_fontfamily="stix")
    text = f"${' '.join(latex.split())}$"
    width, height, descent = text_to_path.get_text_width_height_descent(text, font, ismath=True)
    letters = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C"}
    strokes = []
    for points, code in TextPath((0, 0), text, prop=font).iter_segments(simplify=False):
        if code == Outline.CLOSEPOLY:
            strokes.append("Z")
        else:
            xy = " ".join(f"{x:.0f} {-y:.0f}" for x, y in points.reshape(-1, 2))
            strokes.append(letters[code] + xy)
    pad = 4
    box = f"{-pad} {descent - height - pad:.0f} {width + 2 * pad:.0f} {height + 2 * pad:.0f}"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}"><path d="{"".join(strokes)}"/></svg>'
    source = base64.b64encode(svg.encode()).decode()
    em = (1.25 if display else 1.05) / _UNITS  # a formula by itself is larger than one in a line of text
    size = f"width:{(width + 2 * pad) * em:.3f}em;vertical-align:{-(descent + pad) * em:.3f}em"
    kind = "formula display" if display else "formula"
    return f'<img class="{kind}" style="{size}" alt="{escape(latex.strip())}" src="data:image/svg+xml;base64,{source}">'


def _replace(match: re.Match[str]) -> str:
    """A formula as its picture; code, and what mathtext cannot read, as it stands."""
    if match["code"]:
        return match[0]
    latex, display = match["display"] or match["inline"], bool(match["display"])
    try:
        tag = formula(latex, display=display)
    except ValueError:
        return match[0]
    return f"\n\n{tag}\n\n" if display else tag
