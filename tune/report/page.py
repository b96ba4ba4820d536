"""The report as one HTML file that needs nothing besides itself."""

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tune.report.document import Block, Details, Document


def render_page(document: Document) -> str:
    """The page: no scripts, no references to anything outside, every text escaped."""
    environment = Environment(
        loader=PackageLoader("tune.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = _kind
    environment.filters["data_uri"] = _data_uri
    # Drawings are made by this package, which escapes the names that they contain.
    environment.filters["drawing"] = Markup
    return environment.get_template("report.html.j2").render(document=document)


def _kind(block: Block | Details) -> str:
    """Which part of the template shows a block."""
    return type(block).__name__


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
