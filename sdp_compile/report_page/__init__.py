"""The report page: what was captured, decided and rewritten, as one HTML file to share with a team."""

from sdp_compile.report_page.writing import write_report

__all__ = ["write_report"]
