"""The report page: what was captured, planned and rewritten, as one HTML file to share."""

from sdp_compile.report_page.writing import write_report

__all__ = ["write_report"]
