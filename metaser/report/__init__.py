"""Turn result rows into one page and one Markdown file: tables, curves, confusions, paired tests.

The report reads `rows.jsonl` and `run.json` and nothing else: it never computes on audio, needs
neither torch nor the corpora, and every sentence in it is generated from the rows.
"""

from metaser.report.page import overview, write
from metaser.report.reading import episodes, read_rows
from metaser.report.results import Results

__all__ = ["Results", "episodes", "overview", "read_rows", "write"]
