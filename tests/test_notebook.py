"""The notebook: it runs offline from top to bottom, and has outputs to read."""

from __future__ import annotations

import time
from pathlib import Path

import nbformat
import pytest

from run_notebook import NOTEBOOK, run_notebook

REPOSITORY = "fiftyone-hiera/fiftyone-hiera"


@pytest.mark.slow
def test_it_runs_offline_in_less_than_three_minutes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing answers there

    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.delenv("NUMBA_DISABLE_JIT")  # its map has many points
    monkeypatch.setenv("FIFTYONE_MODEL_ZOO_DIR", str(tmp_path))  # it registers the source
    start = time.monotonic()
    notebook = run_notebook()
    assert time.monotonic() - start < 180
    printed = _printed(notebook)
    assert "10 of the 10 copies" in printed
    assert "1,010 (100 added, 0 removed)" in printed  # the samples that were added last


def test_it_has_the_outputs_of_one_run() -> None:
    assert NOTEBOOK.stat().st_size < 1_000_000
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds == {"stream", "display_data"}
    assert "10 of the 10 copies" in _printed(notebook)
    assert "/home/" not in _printed(notebook)


def test_its_badge_opens_it_in_colab() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    url = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/examples"
    assert f"({url}/{NOTEBOOK.name})" in notebook.cells[0].source


def _printed(notebook: nbformat.NotebookNode) -> str:
    return "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )
