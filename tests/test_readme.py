"""The README's commands and figures, as written."""

from __future__ import annotations

import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
from random_hiera import make_classifier, make_config, save_checkpoint
from zoo_user import ZooUser

from digits import write_digits
from fiftyone_hiera.checkpoints import CHECKPOINTS
from fiftyone_hiera.config import Settings
from fiftyone_hiera.hiera.pooling import POOLINGS
from fiftyone_hiera.plugin.compute_params import _OTHER_NAMES, EmbeddingParams

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_table_of_models() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (\d+) \| ([\d.]+) M \| (.+?) \|$", README, re.M)
    expected = [
        (
            checkpoint.name,
            str(checkpoint.embedding_dim),
            f"{checkpoint.parameters / 1e6:.1f}",
            f"{checkpoint.parameters * 4 / 1e6:.0f} MB"
            if checkpoint.name != "hiera-nano-digits"
            else "in this repository",
        )
        for checkpoint in CHECKPOINTS.values()
        if checkpoint.pooling is None
    ]
    assert sorted(rows) == sorted(expected)
    assert rows[:6] == expected[:6]


def test_table_of_options() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \| ", README, re.M)
    defaults = {name: value.replace('"', "'") for name, value in rows}
    assert defaults == {name: repr(value) for name, value in vars(Settings()).items()}
    for pooling in POOLINGS:
        assert f'- `"{pooling}"` ' in README


@pytest.mark.slow
def test_commands(zoo_user: ZooUser, tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_digits(tmp_path / "all")
    images.mkdir()
    for path in sorted((tmp_path / "all").iterdir())[:12]:
        shutil.copy(path, images)

    checkpoint = save_checkpoint(tmp_path / "checkpoint", make_classifier(make_config()))
    places = {
        "https://github.com/<owner>/fiftyone-hiera": zoo_user.url,
        "/path/to/images": str(images),
        "/path/to/folder": str(checkpoint),
    }
    plugin = next(block for block in _blocks("shell") if "fiftyone plugins" in block)
    for command in plugin.strip().splitlines():
        url = command.replace("https://github.com/<owner>/fiftyone-hiera", zoo_user.url)
        zoo_user.cli(*url.split()[1:])

    embed, patches, operator, heat, own, run = _blocks("python")
    setup = """
dataset.name, dataset.persistent = "my-dataset", True
for sample in dataset.iter_samples(autosave=True):
    box = fo.Detection(label="digit", bounding_box=[0, 0, 1, 1])
    sample["ground_truth"] = fo.Detections(detections=[box])

videos = fo.Dataset()
videos.media_type = "video"
"""
    # FiftyOne's own methods leave no record, so the run gets a field of its own
    run = run.replace('"hiera"', '"run"')
    result = """
index = dataset.load_brain_results("sim")
result = [
    dataset.first().hiera.shape,
    dataset.first().ground_truth.detections[0].hiera.shape,
    view.first().id == query.id and len(view) == 10,
    dataset.load_brain_results("map").points.shape,
    [report.embedded, report.skipped, len(report.failed)],
    dataset.first().hiera_cls.shape,
    list(set(np.ravel([sample.heat.map.shape for sample in dataset]).tolist())),
]
"""
    code = "import numpy as np\n" + embed + setup + patches + operator + heat
    code += own + run + result
    for place, value in places.items():
        code = code.replace(place, value)

    expected = [[768], [768], True, [12, 2], [12, 0, 0], [768], [64]]
    assert zoo_user.python(code) == expected

    commands = next(block for block in _blocks("shell") if "fiftyone zoo" in block)
    outputs = {}
    for command in commands.strip().splitlines():
        arguments = command.split()[1:]
        outputs[arguments[2]] = zoo_user.cli(*arguments)

    assert "facebook/hiera-huge-224-hf-cls" in outputs["list"]
    assert "CC BY-NC 4.0" in outputs["info"]
    assert "masked autoencoder" in outputs["info"]
    assert zoo_user.python(
        "result = fo.load_dataset('my-dataset').first().hiera.shape"
    ) == [768]


def test_table_of_parameters() -> None:
    _, _, table = README.partition("| parameter | by default |")
    rows = table.partition("\n\n")[0]
    others = {other for other in _OTHER_NAMES if f"`{other}`" in rows}
    assert others == set(_OTHER_NAMES)
    named = set(re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in _rows(rows))))
    assert named - others == {field.name for field in fields(EmbeddingParams)}


def _rows(table: str) -> list[str]:
    return [row for row in table.splitlines() if row.startswith("| `")]


def test_pictures() -> None:
    # All of them are taken by the test in the browser
    source = (Path(__file__).parent / "test_app.py").read_text("utf-8")
    names = re.findall(r"!\[[^]]+\]\(docs/pictures/(\w+)\.jpg\)", README)
    assert len(names) == README.count("![") == 6
    for name in names:
        assert f'picture("{name}")' in source
        path = Path(__file__).parents[1] / "docs" / "pictures" / f"{name}.jpg"
        assert path.stat().st_size < 200_000


def test_make_targets() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text("utf-8")
    block = next(block for block in _blocks("shell") if "make test" in block)
    for target in [*re.findall(r"^make ([\w-]+)", block, re.M), "test-app"]:
        assert f"\n{target}: " in makefile


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`([\w/]+\.(?:py|json))`", README)))
)
def test_files_exist(path: str) -> None:
    elsewhere = {"config.json", "preprocessor_config.json"}
    assert path in elsewhere or (Path(__file__).parents[1] / path).is_file()


def test_promises_name_their_tests() -> None:
    root = Path(__file__).parents[1]
    links = re.findall(r"\[(test_\w+)\]\(([\w/.]+)\)", README)
    assert len(links) > 20
    for name, path in links:
        assert f"\ndef {name}(" in (root / path).read_text("utf-8")
