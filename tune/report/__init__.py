"""Records of a run as tables, figures, one HTML page and Markdown."""

from tune.report.axis import Axis
from tune.report.build import build_report, write_report
from tune.report.document import Report, Table

__all__ = ["Axis", "Report", "Table", "build_report", "write_report"]
