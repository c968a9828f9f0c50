"""The documentation site; `make docs` builds it, with warnings as errors.

Nothing in it comes from another site when it is read: equations are MathML, which browsers draw.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from importlib import metadata
from pathlib import Path
from textwrap import fill
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import binep
from binep.cli import main as cli
from binep.cli import paper as seed_cli
from binep.export.page import page

project = "binep"
release = metadata.version("binep")
exclude_patterns = ["_build"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["binep.css"]
html_title = f"binep {release}"
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"  # below

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# A notebook is run each time, and an error or a warning of it fails the build.
nb_execution_mode = "force"
nb_execution_timeout = 120
nb_execution_show_tb = True
nb_execution_in_temp = True
nb_output_stderr = "warn"

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
napoleon_use_ivar = True  # an attribute stands in its class's text, not a second time below

COLON = "\ue000"
"""Stands for a colon that napoleon is to leave alone."""

WIDTHS = {"wide": 88, "narrow": 50}
"""Letters in a line of a page and, of a phone, which shows the one or the other."""


class Help(SphinxDirective):
    """`--help` of every command, asked for when the site is built."""

    def run(self) -> list[nodes.Node]:
        """A section per command."""
        asked = {f"binep {name}": (cli.main, [name, "--help"]) for name in cli.COMMANDS}
        asked["python main.py"] = (seed_cli.main, ["--help"])
        sections: list[nodes.Node] = []
        for title, (main, arguments) in asked.items():
            section = nodes.section("", nodes.title(text=title), ids=[nodes.make_id(title)])
            for name, width in WIDTHS.items():
                text = self.said(main, arguments, width)
                section += nodes.literal_block(text, text, language="text", classes=[name])
            sections.append(section)
        return sections

    def said(self, main: Any, arguments: list[str], width: int) -> str:
        """What a command prints, in lines of at most so many letters."""
        os.environ["COLUMNS"] = str(width)
        said = io.StringIO()
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
            main(arguments)
        lines = [line.rstrip() for line in said.getvalue().splitlines()]
        return "\n".join(fill(line, width) if len(line) > width else line for line in lines)


def draw_inline(translator: Any, node: nodes.math) -> None:
    """An equation within a line."""
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def draw_block(translator: Any, node: nodes.math_block) -> None:
    """An equation of its own."""
    translator.body.append(tex2mathml(node.astext(), as_block=True))
    raise nodes.SkipNode


def read_as_written(
    app: Sphinx, what: str, name: str, of: Any, options: Any, lines: list[str]
) -> None:
    """Keep what docstrings write as it is read, such as *shape and |Δs|, from being markup."""
    lines[:] = [re.sub(r"(?<![*\w`])([*|])(?=[^\s*])", r"\\\1", line) for line in lines]
    if what in ("attribute", "property"):
        lines[:] = [line.replace(": ", COLON) for line in lines]


def colons_again(
    app: Sphinx, what: str, name: str, of: Any, options: Any, lines: list[str]
) -> None:
    """After napoleon, which takes what stands before an attribute's first colon for its type."""
    lines[:] = [line.replace(COLON, ": ") for line in lines]


DOCS = Path(__file__).parent
ALONE = re.compile(r"\A\[[^]]*\]\((\.\./[\w./]+\.md)\)$", re.MULTILINE)
"""At a page's start: a link to a file, which the site shows in its place."""
SHOWN = {
    (DOCS / found[1]).resolve(): page.name
    for page in DOCS.glob("*.md")
    if (found := ALONE.match(page.read_text()))
}
LINK = re.compile(r"(!?)\[([^]]*)\]\(([^):#]+)(#[^)]*)?\)")
HERE = "<!-- The first page of the site ends here. -->"


def show_files(app: Sphinx, page: str, source: list[str]) -> None:
    """Put files outside of docs/ in the place of links to them, and mend links for the site.

    Links to what is no part of the site become the names of files, or their text in a file's own
    folder.
    """
    found = ALONE.match(source[0])
    if found is None:
        source[0] = LINK.sub(lambda link: _mended(link, DOCS), source[0])
        return
    file = (DOCS / found[1]).resolve()
    app.env.note_dependency(str(file))
    text = LINK.sub(lambda link: _mended(link, file.parent), file.read_text().split(HERE)[0])
    source[0] = text + source[0][found.end() :]


def _mended(link: re.Match[str], folder: Path) -> str:
    """A link of a file in some folder, as a page of docs/ has it."""
    picture, text, path, anchor = link.groups(default="")
    target = (folder / path).resolve()
    if target in SHOWN:
        return f"[{text}]({SHOWN[target]}{anchor})"
    if picture or DOCS in target.parents:
        return f"{picture}[{text}]({os.path.relpath(target, DOCS)}{anchor})"
    return text if target.is_dir() else f"{text} (`{os.path.relpath(target, DOCS.parent)}`)"


def link_names(app: Sphinx, page: nodes.document) -> None:
    """Make `Network.step` and the like, in a page's text, links to what they name."""
    for literal in list(page.findall(nodes.literal)):
        name = literal.astext()
        inside = (nodes.title, nodes.reference, pending_xref)
        if name.split(".")[0] in binep.__all__ and not isinstance(literal.parent, inside):
            link = pending_xref(
                "", refdomain="py", reftype="obj", reftarget=f"binep.{name}", refexplicit=True
            )
            literal.replace_self(link)
            link += literal


def run_networks(app: Sphinx, exception: Exception | None) -> None:
    """Beside page.html, the pages of networks that it leads to: those that come with binep."""
    if exception is None and app.builder.name == "html":
        text = (Path(app.srcdir) / "page.md").read_text(encoding="utf-8")
        for name in re.findall(r'href="([\w-]+)\.html"', text):
            content = page(Path(name), warn=logging.getLogger(__name__).info)
            (Path(app.outdir) / f"{name}.html").write_text(content, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_directive("help-of-every-command", Help)
    app.add_html_math_renderer("mathml", (draw_inline, None), (draw_block, None))
    app.connect("autodoc-process-docstring", read_as_written, priority=1)
    app.connect("source-read", show_files)
    app.connect("doctree-read", link_names)
    app.connect("autodoc-process-docstring", colons_again, priority=1000)
    app.connect("build-finished", run_networks)
