"""README, CONTRIBUTING.md and docs/: their links, code, commands and tables."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.brain as fob
import fiftyone.core.cli as foc
import fiftyone.operators as foo
import fiftyone.zoo as foz
import pytest
import yaml
from write_docs import homepage, linked_documents, relink, tables

import fiftyone_hiera
from fiftyone_hiera.__main__ import _build_parser
from fiftyone_hiera.checkpoints import CHECKPOINTS
from fiftyone_hiera.config import OPTIONS
from fiftyone_hiera.hiera.pooling import POOLINGS
from fiftyone_hiera.models.classification import HieraClassifierModel
from fiftyone_hiera.models.embedding import HieraEmbeddingModel
from fiftyone_hiera.models.heatmap import (
    HieraAutoencoderModel,
    HieraFeatureHeatmapModel,
)
from fiftyone_hiera.plugin.compute_params import _OTHER_NAMES, EmbeddingParams

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]

MODELS = (
    HieraEmbeddingModel,
    HieraClassifierModel,
    HieraAutoencoderModel,
    HieraFeatureHeatmapModel,
)

# What the names in snippets are
KNOWN: dict[str, tuple[Any, ...]] = {
    "fo": (fo,),
    "fob": (fob,),
    "foo": (foo,),
    "foz": (foz,),
    "fiftyone_hiera": (fiftyone_hiera,),
    "dataset": (fo.Dataset,),
    "videos": (fo.Dataset,),
    "model": MODELS,
}


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def blocks(path: Path, *languages: str) -> list[str]:
    pattern = rf"^```(?:{'|'.join(languages)})\n(.*?)^```"
    return re.findall(pattern, path.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def all_blocks(*languages: str) -> list[Any]:
    return [
        pytest.param(block, id=f"{path.stem}-{number}")
        for path in DOCUMENTS
        for number, block in enumerate(blocks(path, *languages), 1)
    ]


def inline_calls(path: Path) -> list[str]:
    """Calls in backticks that give arguments to a function of one of the known names."""
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.DOTALL | re.M)
    return re.findall(rf"`((?:{'|'.join(KNOWN)})\.\w+\([^`)][^`]*)`", text)


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.DOTALL | re.M)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    words = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {title.replace(" ", "-") for title in words}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_length(path: Path) -> None:
    limit = 180 if path.name == "README.md" else 200
    assert len(path.read_text("utf-8").splitlines()) <= limit


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links(path: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8"))
    for link in links:
        if link.startswith(("https:", "http:")):
            continue

        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_listed() -> None:
    listed = re.findall(r"^\| \[[\w.]+\]\((\w+\.md)\)", read("docs/README.md"), re.M)
    assert sorted(listed) == [path.name for path in PAGES if path.name != "README.md"]


@pytest.mark.parametrize(("page", "name", "table"), [*tables()])
def test_tables_are_those_of_the_code(page: str, name: str, table: str) -> None:
    _, _, rest = read(page).partition(f"<!-- {name} -->")
    found, end, _ = rest.partition(f"<!-- /{name} -->")
    assert end
    assert found.strip() == table, "run scripts/write_docs.py"


@pytest.mark.parametrize("path", linked_documents(), ids=lambda path: path.name)
def test_links_name_the_owner(path: Path) -> None:
    text = path.read_text("utf-8")
    assert relink(text) == text, "run scripts/write_docs.py"


def test_relink() -> None:
    name = homepage().rpartition("/")[2]
    for place in ("https://github.com/{}", "https://colab.research.google.com/github/{}/b"):
        assert relink(place.format(f"somebody/{name}")) == relink(
            place.format(f"<owner>/{name}")
        )
        assert homepage() in relink(f"https://github.com/somebody/{name}/issues")

    other = f"https://github.com/somebody/{name}2 https://example.org/somebody/{name}"
    assert relink(other) == other


@pytest.mark.parametrize("block", all_blocks("python"))
def test_snippets_call_what_exists(block: str) -> None:
    _check_names(block)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_inline_calls_are_valid(path: Path) -> None:
    for code in inline_calls(path):
        _check_names(code)


def _check_names(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owners = KNOWN.get(node.value.id, ())
            assert not owners or _find(owners, node.attr) is not None, ast.unparse(node)

        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            _check_call(node, node.func)


def _find(owners: tuple[Any, ...], name: str) -> Any:
    return next((getattr(one, name) for one in owners if hasattr(one, name)), None)


def _check_call(call: ast.Call, function: ast.Attribute) -> None:
    """Check that the arguments fit the signature."""
    name = function.value.id if isinstance(function.value, ast.Name) else ""
    if name not in KNOWN:
        return

    owner = KNOWN[name][0]
    found = _find(KNOWN[name], function.attr)
    keywords = {one.arg: None for one in call.keywords if one.arg}
    bound = [None] * (len(call.args) + inspect.isclass(owner))
    is_static = isinstance(inspect.getattr_static(owner, function.attr, None), classmethod)
    inspect.signature(found).bind(*bound[is_static:], **keywords)
    if function.attr == "load_zoo_model":
        assert keywords.keys() <= {*OPTIONS, "cache"}


def test_models_exist() -> None:
    for path in DOCUMENTS:
        names = re.findall(r"facebook/hiera-[\w-]+", path.read_text("utf-8"))
        assert {*names} <= CHECKPOINTS.keys(), path


@pytest.mark.parametrize("block", all_blocks("shell", "bash"))
def test_commands_exist(block: str) -> None:
    done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    makefile = read("Makefile")
    for words in _commands(block):
        if words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word]
            assert all(f"\n{target}: " in makefile for target in targets)
        elif words[0] == "fiftyone":
            _parse(foc._register_main_command(foc.FiftyOneCommand), words[1:])
        elif "-m" in words and words[words.index("-m") + 1] == "fiftyone_hiera":
            _parse(_build_parser(), words[words.index("-m") + 2 :])
        elif words[0].endswith("python"):
            script = next(word for word in words if word.endswith(".py"))
            options = [word for word in words if word.startswith("--")]
            # Those of benchmarks are keywords of one function
            names = [option.removeprefix("--").replace("-", "_") for option in options]
            for option, name in zip(options, names, strict=True):
                assert re.search(rf'"{option}"|\b{name}=', read(script)), option


def _commands(block: str) -> Iterator[list[str]]:
    nested = re.findall(r"\$\((fiftyone [^)]*)\)", block)
    for line in [*block.replace("\\\n", "").splitlines(), *nested]:
        words = shlex.split(line, comments=True)
        if words:
            yield words


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> None:
    try:
        parser.parse_args(words)
    except SystemExit:
        pytest.fail(f"not a command: {words}")


@pytest.mark.parametrize("block", all_blocks("yaml"))
def test_yaml(block: str) -> None:
    assert yaml.safe_load(block)


def test_make_targets_are_documented() -> None:
    targets = re.findall(r"^\.PHONY: ([\w-]+)", read("Makefile"), re.M)
    (block, *_) = blocks(ROOT / "CONTRIBUTING.md", "shell")
    assert [*dict.fromkeys(re.findall(r"^make ([\w-]+)", block, re.M))] == sorted(
        targets, key=lambda target: block.find(f"make {target} ")
    )


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_exist(path: Path) -> None:
    text = path.read_text("utf-8")
    users = {"config.json", "_record.json"}
    users |= {"processor_config.json", "preprocessor_config.json"}
    for name in {*re.findall(r"`([\w/]+\.(?:py|json|toml|txt|yml))`", text)} - users:
        assert (ROOT / name).is_file(), name


def test_map_of_the_code() -> None:
    text = read("CONTRIBUTING.md").partition("| folder or file |")[2].partition("\n\n")[0]
    listed = re.findall(r"^\| `([\w./]+)` \|", text, re.M)
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    tops = {re.sub(r"/.*", "/", name) for name in files.stdout.splitlines()}
    code = {top for top in tops if top.endswith(("/", ".py")) and top[0] != "."}
    assert {*listed} == code | {"manifest.json"}

    # In the linter's order, from the lowest layer up
    contracts = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    layers = [layer for layer in reversed(contracts[0]["layers"]) if layer != "__main__"]
    names = [name.removesuffix(".py").strip("/") for name in listed]
    assert names[: len(layers)] == layers


def test_dependencies_are_explained() -> None:
    text = read("CONTRIBUTING.md").partition("## Dependencies")[2].partition("\n## ")[0]
    project = tomllib.loads(read("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    names = ("files", "lancedb", "milvus", "openvino", "pgvector", "ray")
    optional = [requirement for name in names for requirement in extras[name]]
    for requirement in [*project["dependencies"], *optional]:
        name = re.split(r"[<>=]", requirement)[0]
        assert re.search(rf"^\|.*\b{re.escape(name)}", text, re.M), name


def test_badge_of_python_versions() -> None:
    version = tomllib.loads(read("pyproject.toml"))["project"]["requires-python"]
    assert f"python-{version.removeprefix('>=')}%2B-" in read("README.md")


def test_options_and_poolings() -> None:
    readme = read("README.md")
    named = readme.partition("described in [docs/options.md]")[2].partition("\n\n")[0]
    assert re.findall(r"`(\w+)`", named) == [*OPTIONS]
    for text in (readme, read("docs/options.md")):
        assert re.findall(r'^- `"(\w+)"` ', text, re.M) == [*POOLINGS]


def test_table_of_checkpoints_to_choose() -> None:
    rows = re.findall(
        r'^\| [\w -]+ \| `([\w/.-]+)`.*? \| `"(\w+)"` \| ([^|]+) \|$',
        read("README.md"),
        re.M,
    )
    assert len(rows) == 4
    for name, pooling, license_ in rows:
        assert pooling in CHECKPOINTS[name].poolings
        assert license_ == CHECKPOINTS[name].license


def test_arguments_of_embed_samples() -> None:
    names = {*inspect.signature(HieraEmbeddingModel.embed_samples).parameters}
    text = read("docs/embedding.md")
    documented = {*re.findall(r"`(\w+)(?:=[^`]*)?`", text)}
    assert names - {"self", "samples", "embeddings_field"} <= documented
    table = text.partition("| argument |")[2].partition("\n\n")[0]
    assert {*re.findall(r"^\| `(\w+)=", table, re.M)} <= names


def test_parameters_of_the_operator() -> None:
    table = read("docs/app.md").partition("| parameter |")[2].partition("\n\n")[0]
    names = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", table, re.M))))
    assert names == {field.name for field in fields(EmbeddingParams)} | {*_OTHER_NAMES}


def test_pictures() -> None:
    # Those of the App are taken by the test in the browser
    source = read("tests/test_app.py")
    for path in DOCUMENTS:
        for name in re.findall(r"!\[[^]]+\]\((?!https)(\S+)\)", path.read_text("utf-8")):
            picture = path.parent / name
            assert picture.suffix != ".jpg" or f'picture("{picture.stem}")' in source
            limit = 3_000_000 if picture.suffix == ".webp" else 200_000
            assert picture.stat().st_size < limit


def test_promises_name_their_tests() -> None:
    links = re.findall(r"\[(test_\w+)\]\(\.\./([\w/.]+)\)", read("docs/reliability.md"))
    assert len(links) > 50
    for name, path in links:
        assert f"\ndef {name}(" in read(path)

    names = re.findall(r"`(test_\w+)`", read("docs/ray.md"))
    assert len(names) > 10
    tests = "".join(path.read_text("utf-8") for path in ROOT.glob("tests/test_*.py"))
    for name in names:
        assert f"\ndef {name}(" in tests
