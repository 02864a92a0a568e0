"""Run the notebook from top to bottom, and keep its outputs.

    python examples/run_notebook.py

It needs ipykernel, nbclient and nbformat, and uses a FiftyOne of its own in a temporary
folder.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from sandbox import use_own_fiftyone

NOTEBOOK = Path(__file__).with_name("hiera_in_fiftyone.ipynb")
"""The path of the notebook."""


def main() -> None:
    """Run the notebook in a FiftyOne of its own, and save it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        use_own_fiftyone(Path(folder))
        nbformat.write(run_notebook(), NOTEBOOK)


def run_notebook() -> Any:
    """Run the notebook in a new kernel, with the FiftyOne of this environment.

    Returns:
        the notebook with its outputs

    Raises:
        CellExecutionError: if a cell fails
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=180,
        record_timing=False,
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    )
    return client.execute()


if __name__ == "__main__":
    main()
