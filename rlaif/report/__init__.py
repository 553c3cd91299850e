"""The report of a folder as one HTML page: figures first (`figures_of`), then the page that shows them."""

from __future__ import annotations
