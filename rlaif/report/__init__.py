"""The report of a folder as one HTML page: figures first (`build_page`), then the page that shows them."""

from __future__ import annotations
