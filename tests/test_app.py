"""The real App in a real browser, with the plugin in its plugins folder.

Off by default; ``make test-app`` runs it. Each step leaves a picture in the folder
that the environment variable PICTURES names, or in ``.app``.
"""

from __future__ import annotations

import io
import os
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from chromium import open_chromium
from fiftyone.operators.delegated import DelegatedOperationService
from index_servers import Postgres, configured
from PIL import Image
from waiting import wait_until

import fiftyone_hiera
from photographs import View, write_photographs

pytest.importorskip("playwright")
from playwright.sync_api import Locator, Page, expect

pytestmark = [pytest.mark.app, pytest.mark.xdist_group("app")]

NANO = "hiera-nano-photos"
COMPUTE = "Compute Hiera embeddings"
SORT = "Sort by Hiera similarity to an image"

_PICTURES = Path(os.environ.get("PICTURES") or Path(__file__).parents[1] / ".app")

_LEGEND = 320  # how many pixels of the map it may cover, from the top
_LIMIT = 300_000  # milliseconds, after which it is taken for a hang
_SIZE: Any = {"width": 1400, "height": 1000}
_REPORT = re.compile("embedded, .* skipped")


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> list[View]:
    """Parts of photographs."""
    return write_photographs(tmp_path_factory.mktemp("photographs"), 1600)


@pytest.fixture(scope="module")
def dataset(views: list[View], plugin: Any) -> Iterator[Any]:
    """1,200 parts of photographs, and one whose file is absent."""
    dataset = fo.Dataset("photographs", persistent=True, overwrite=True)
    dataset.add_samples(
        [
            fo.Sample(
                filepath=str(view.path), label=fo.Classification(label=view.photograph)
            )
            for view in views[:1200]
        ]
    )
    dataset.add_sample(fo.Sample(filepath=str(views[0].path.with_name("absent.png"))))
    yield dataset
    fo.delete_dataset("photographs")


@pytest.fixture(scope="module")
def session(dataset: Any, postgres: Postgres) -> Iterator[Any]:
    """The App, which is configured for the PostgreSQL server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    variable = "FIFTYONE_BRAIN_SIMILARITY_PGVECTOR_CONNECTION_STRING"
    with (
        pytest.MonkeyPatch.context() as patch,
        configured("pgvector", connection_string=postgres.uri),
    ):
        patch.setenv(variable, postgres.uri)
        patch.delenv("NUMBA_DISABLE_JIT")  # its map has many points
        session = fo.launch_app(dataset, port=port, address="localhost", auto=False)
        wait_until(lambda: session._client._connected)  # or it refuses what tests set
        yield session
        session.close()


class Browser:
    """A user in front of the App."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self._url = url
        page.set_default_timeout(_LIMIT)
        expect.set_options(timeout=_LIMIT)
        # Advertisements come up after a while, over whatever is there
        page.add_locator_handler(
            page.get_by_role("button", name="Dismiss"),
            lambda button: button.first.click(),
            no_wait_after=True,
        )

    def open(self) -> None:
        self.page.goto(self._url)
        expect(self.page.get_by_text(re.compile(r"^[\d,]+ samples?$"))).to_be_visible()
        self.wait_for_images()

    def wait_for_images(self) -> None:
        """Wait until the grid is not empty any more, and shows the rest."""
        expect(self.page.locator("canvas[canvas-loaded=true]").first).to_be_visible()
        self.wait_until_still()

    def wait_until_still(self) -> None:
        """Wait until nothing on the page changes for a while."""
        pictures = [b""]

        def is_still() -> bool:
            self.page.wait_for_timeout(700)
            pictures.append(self.page.screenshot())
            return pictures[-1] == pictures[-2]

        wait_until(is_still)

    def picture(self, name: str) -> None:
        _PICTURES.mkdir(parents=True, exist_ok=True)
        path = _PICTURES / f"{name}.jpg"
        self.page.screenshot(path=path, type="jpeg", quality=70)

    def open_operator(self, label: str, picture: str | None = None) -> None:
        self.page.keyboard.press("Backquote")
        search = self.page.get_by_placeholder(re.compile("Search operations"))
        search.fill("hiera")
        choice = self.page.get_by_text(label, exact=True)
        expect(choice).to_be_visible()
        if picture is not None:
            self.picture(picture)

        with self.resolved():
            choice.click()

    def choose(self, current: str, wanted: str) -> None:
        self.page.get_by_role("combobox").filter(has_text=current).click()
        with self.resolved():
            self.page.get_by_role("option", name=re.compile(wanted)).click()

    def click(self, text: str) -> None:
        with self.resolved():
            self.page.get_by_text(text, exact=True).click()

    def fill_field(self, name: str) -> None:
        field = self.page.get_by_placeholder("Type or select a value").first
        with self.resolved():
            field.fill(name)

        field.blur()  # a list of what there is covers what is wrong

    @property
    def execute(self) -> Locator:
        return self.page.get_by_role("button", name="Execute", exact=True)

    def resolved(self) -> Any:
        """Wait until the form has been checked."""
        return self.page.expect_response(lambda response: "resolve-type" in response.url)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with open_chromium() as browser:
        yield browser.new_page(viewport=_SIZE)


@pytest.fixture
def browser(page: Page, session: Any, request: pytest.FixtureRequest) -> Iterator[Browser]:
    """The App, freshly opened."""
    session.view = None
    session.spaces = None
    browser = Browser(page, session.url)
    browser.open()
    yield browser
    browser.picture(f"end-of-{request.node.name}")


def _fill_form(browser: Browser, field: str, batch_size: int | None = None) -> None:
    browser.open_operator(COMPUTE)
    browser.choose("facebook/hiera-tiny-224-hf", NANO)
    if batch_size is not None:
        with browser.resolved():
            browser.page.locator("input[type=number]").first.fill(str(batch_size))

    browser.fill_field(field)


def test_form_run_and_report(browser: Browser, dataset: Any) -> None:
    browser.picture("grid")
    browser.open_operator(COMPUTE, picture="operators")
    page = browser.page
    expect(browser.execute).to_be_enabled()
    browser.choose("facebook/hiera-tiny-224-hf", NANO)
    browser.click("Similarity index")
    browser.click("2-D map")
    page.set_viewport_size({"width": 1200, "height": 1520})
    expect(page.get_by_text("t-SNE")).to_be_visible()
    expect(browser.execute).to_be_enabled()
    browser.picture("form")
    page.set_viewport_size(_SIZE)
    browser.picture("filled")

    expect(page.get_by_text("Empty for 'hiera'.")).to_be_visible()
    browser.fill_field("_hiera")
    expect(page.get_by_text("Field names cannot start with '_'")).to_be_visible()
    expect(browser.execute).to_be_disabled()
    browser.picture("invalid")
    browser.fill_field("hiera")
    expect(browser.execute).to_be_enabled()
    browser.execute.click()

    seen, progress = [], "of 1,201 images"
    bar = page.get_by_role("progressbar")
    while not page.get_by_text(_REPORT).is_visible():
        # Not inner_text(), which waits for a label that may just have gone; and the label
        # that was found may have another text when it is read
        for text in page.get_by_text(progress).all_inner_texts():
            if progress not in text:
                continue

            seen.append(text)
            if len(set(seen)) == 5:
                expect(bar.first).to_be_visible()
                browser.picture("progress")

        page.wait_for_timeout(100)

    done = [int(text.partition(" of ")[0].replace(",", "")) for text in seen]
    assert len(set(done)) > 3
    assert done == sorted(done)
    assert any("per second" in text and "left" in text for text in seen)
    expect(page.get_by_text("1,200 embedded, 0 skipped, 1 failed")).to_be_visible()
    browser.picture("report")

    page.get_by_role("button", name="Show the samples that failed: 1").click()
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_text("1 sample", exact=True)).to_be_visible()
    browser.picture("failed")

    dataset.reload()
    assert dataset.count("hiera") == 1200
    assert dataset.list_brain_runs() == ["hiera_map", "hiera_similarity"]


def test_lasso_a_cluster(browser: Browser, dataset: Any) -> None:
    page = browser.page
    page.locator("[data-cy=new-panel-btn]").first.click()
    page.get_by_text("Embeddings", exact=True).first.click()
    page.get_by_role("button", name=re.compile("hiera_map 2D")).click()
    expect(page.get_by_text("1,200 points")).to_be_visible()
    browser.wait_until_still()  # the points fly to their places
    canvas: Any = page.locator("canvas[data-engine*=three]").last.bounding_box()

    dataset.reload()
    drawing = dataset.load_brain_results("hiera_map")
    points = _find_on_page(drawing.points, page.screenshot(clip=canvas), canvas)
    labels = dict(zip(*dataset.values(["id", "label.label"]), strict=True))
    of_points = np.array([labels[sample_id] for sample_id in drawing.sample_ids])
    clusters = [points[of_points == label] for label in sorted(set(of_points))]
    free = [c for c in clusters if np.median(c[:, 1]) > canvas["y"] + _LEGEND]
    # Each map has other clusters that are apart from all others
    circles = {_purity(points, of_points, *circle): circle for circle in map(_circle, free)}
    purity, (center, radius) = max(circles.items())
    assert purity > 0.9
    inside = int((np.linalg.norm(points - center, axis=1) < radius).sum())

    page.get_by_text("Color by").click()
    page.get_by_role("option", name="label.label").click()
    browser.wait_until_still()
    browser.picture("map")

    page.get_by_role("button", name="Select", exact=True).click()
    expect(page.get_by_text("Drag to lasso")).to_be_visible()
    angles = np.linspace(0, 2 * np.pi, 40)
    ring = center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    page.mouse.move(*ring[0])
    page.mouse.down()
    for point in ring:
        page.mouse.move(*point)
        # The browser merges what moves within a frame, which may take long
        page.evaluate("() => new Promise(requestAnimationFrame)")

    page.mouse.up()
    shown = page.get_by_text(re.compile(r"^\d+ samples$")).first
    expect(shown).to_be_visible()
    count = int(shown.inner_text().partition(" ")[0])
    assert abs(count - inside) <= 0.05 * inside
    assert 40 < count < 160
    browser.wait_for_images()
    browser.picture("lasso")


def _circle(cluster: Any) -> tuple[Any, float]:
    """Return the center of a cluster, and a radius that holds nearly all of it."""
    center = np.median(cluster, axis=0)
    return center, np.percentile(np.linalg.norm(cluster - center, axis=1), 90) + 6


def _purity(points: Any, labels: Any, center: Any, radius: float) -> float:
    """Return the share of the most frequent label inside a circle."""
    inside = labels[np.linalg.norm(points - center, axis=1) < radius]
    return float(np.unique(inside, return_counts=True)[1].max() / len(inside))


def _find_on_page(points: Any, picture: bytes, canvas: Any) -> Any:
    """Return where a map's points are on the page, from the colored pixels."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("HSV"))
    rows, columns = np.nonzero((pixels[:, :, 1] > 120) & (pixels[:, :, 2] > 100))
    least, most = points.min(axis=0), points.max(axis=0)
    share = (points - least) / (most - least)
    return np.stack(
        [
            canvas["x"] + columns.min() + share[:, 0] * np.ptp(columns),
            canvas["y"] + rows.max() - share[:, 1] * np.ptp(rows),
        ],
        axis=1,
    )


def test_search_by_an_image(browser: Browser, views: list[View], session: Any) -> None:
    query = _unseen(views)
    page = browser.page
    browser.open_operator(SORT)
    expect(browser.execute).to_be_disabled()
    with browser.resolved():
        page.locator("input[type=file]").set_input_files(query.path)

    browser.picture("search")
    browser.execute.click()
    expect(page.get_by_text("25 samples", exact=True)).to_be_visible()
    browser.wait_for_images()
    browser.picture("found")
    labels = session.view.values("label.label")
    assert len(labels) == 25
    assert labels.count(query.photograph) >= 20


def _unseen(views: list[View]) -> View:
    """Return a view that is not in the dataset."""
    return next(view for view in views[1500:] if view.photograph == "coins")


def test_search_stores_distances(
    browser: Browser, views: list[View], dataset: Any, session: Any
) -> None:
    page = browser.page
    browser.open_operator(SORT)
    with browser.resolved():
        page.locator("input[type=file]").set_input_files(_unseen(views).path)

    field = page.get_by_role("textbox").last
    with browser.resolved():
        field.fill("label")

    expect(page.get_by_text("not FloatField")).to_be_visible()
    expect(browser.execute).to_be_disabled()
    with browser.resolved():
        field.fill("distance")

    browser.execute.click()
    expect(page.get_by_text("25 samples", exact=True)).to_be_visible()
    browser.wait_for_images()
    browser.picture("distances")
    expect(page.locator("[data-cy=checkbox-distance]")).to_be_visible()
    distances = session.view.values("distance")
    assert distances == sorted(distances)
    assert _count(dataset, "distance") == 25


def test_stop_and_go_on(browser: Browser, dataset: Any) -> None:
    _fill_form(browser, "stopped", batch_size=1)
    browser.execute.click()
    page = browser.page
    expect(page.get_by_text(re.compile(r"^\d\d+ of 1,201 images"))).to_be_visible()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_text(re.compile("^Stopped: "))).to_be_visible()
    browser.picture("stopped")
    dataset.reload()
    stored = dataset.count("stopped")
    assert 0 < stored < 1200
    expect(page.get_by_text(f"Stopped: {stored:,} embedded")).to_be_visible()
    page.get_by_role("button", name="Done").click()

    _fill_form(browser, "stopped")
    browser.execute.click()
    report = f"{1200 - stored:,} embedded, {stored:,} skipped, 1 failed"
    expect(page.get_by_text(report)).to_be_visible()


def test_closing_the_app_stops_the_run(browser: Browser, dataset: Any) -> None:
    _fill_form(browser, "closed", batch_size=1)
    browser.execute.click()
    page = browser.page
    expect(page.get_by_text(re.compile(r"^\d\d+ of 1,201 images"))).to_be_visible()
    page.goto("about:blank")
    counts = [-1]
    while counts[-1] != _count(dataset, "closed"):
        counts.append(_count(dataset, "closed"))
        page.wait_for_timeout(1000)

    assert 0 < counts[-1] < 1200


def _count(dataset: Any, field: str) -> int:
    dataset.reload()
    count: int = dataset.count(field)
    return count


def test_field_made_by_other_settings(browser: Browser) -> None:
    _fill_form(browser, "hiera")
    page = browser.page
    with browser.resolved():
        page.get_by_text("cls", exact=True).click()

    refusal = "1200 embeddings computed with different settings"
    expect(page.get_by_text(refusal)).to_be_visible()
    expect(page.get_by_text("Empty for 'hiera_2'.")).to_be_visible()
    expect(browser.execute).to_be_disabled()
    browser.picture("other-settings")


def test_schedule(browser: Browser, dataset: Any) -> None:
    _fill_form(browser, "scheduled")
    page = browser.page
    page.get_by_role("group").get_by_role("button").last.click()
    page.get_by_text("Schedule", exact=True).click()
    page.get_by_role("button", name="Schedule", exact=True).click()
    expect(page.get_by_text("Operation successfully scheduled")).to_be_visible()
    browser.picture("scheduled")
    service = DelegatedOperationService()
    (operation,) = service.list_operations(dataset_name="photographs", run_state="queued")
    with ThreadPoolExecutor(1) as other:  # this thread has the browser's event loop
        other.submit(service.execute_operation, operation).result()

    assert service.get(operation.id).run_state == "completed"
    assert _count(dataset, "scheduled") == 1200


def test_heatmaps(browser: Browser, dataset: Any, session: Any) -> None:
    view = dataset.limit(60)
    session.view = view
    browser.open()
    before = _grid(browser)

    def draw() -> None:
        model = fiftyone_hiera.load_model(NANO, stage=2, output="heatmap")
        model.fit_heatmap(view)
        view.apply_model(model, "heat", batch_size=16, num_workers=0)

    with ThreadPoolExecutor(1) as other:  # this thread has the browser's event loop
        other.submit(draw).result()

    browser.open()
    assert _share_of_changes(before, _grid(browser)) < 0.01
    browser.page.locator("[data-cy=checkbox-heat]").click()
    browser.wait_for_images()
    browser.picture("heatmaps")
    assert _share_of_changes(before, _grid(browser)) > 0.1


def _grid(browser: Browser) -> Any:
    """Return the pixels of the grid."""
    clip: Any = {"x": 300, "y": 150, "width": 1050, "height": 800}
    picture = Image.open(io.BytesIO(browser.page.screenshot(clip=clip))).convert("RGB")
    return np.asarray(picture).astype(int)


def _share_of_changes(one: Any, other: Any) -> float:
    """Return the share of pixels that differ clearly."""
    return float((np.abs(one - other).max(axis=2) > 60).mean())


def test_index_in_a_database(
    browser: Browser, dataset: Any, postgres: Postgres, views: list[View]
) -> None:
    page = browser.page

    def feed(*, is_grown: bool = False) -> None:
        browser.open_operator(COMPUTE)
        browser.choose("facebook/hiera-tiny-224-hf", NANO)
        browser.fill_field("indexed")
        browser.click("Similarity index")
        if not is_grown:
            browser.choose("sklearn", "pgvector")

        expect(page.get_by_text("empty for 'hiera_similarity_2'")).to_be_visible()
        page.set_viewport_size({"width": 1200, "height": 1520})
        browser.picture("index")
        page.set_viewport_size(_SIZE)
        expect(browser.execute).to_be_enabled()
        browser.execute.click()
        expect(page.get_by_text(_REPORT)).to_be_visible()

    feed()
    expect(page.get_by_text("has 1,200 rows: 1,200 added, 0 removed")).to_be_visible()
    browser.picture("index-report")
    page.get_by_role("button", name="Done").click()

    dataset.reload()
    table = dataset.get_brain_info("hiera_similarity_2").config.table_name
    dataset.delete_samples(dataset.exists("indexed").limit(2).values("id"))
    dataset.add_samples([fo.Sample(filepath=str(view.path)) for view in views[1200:1203]])
    browser.open()
    feed(is_grown=True)
    expect(page.get_by_text("3 embedded, 1,198 skipped")).to_be_visible()
    expect(page.get_by_text("has 1,201 rows: 3 added, 2 removed")).to_be_visible()
    browser.picture("index-grown")
    assert postgres.fetch(f'SELECT count(*) FROM "{table}"') == [(1201,)]


def test_tour() -> None:
    """Put pictures of the other tests together, to the one in the README."""
    names = ("grid", "filled", "progress", "report", "map", "lasso", "found")
    frames = [
        Image.open(_PICTURES / f"{name}.jpg").resize((980, 700), Image.Resampling.LANCZOS)
        for name in names
    ]
    tour = _PICTURES / "tour.webp"
    options: dict[str, Any] = {"duration": 2000, "loop": 0, "quality": 75, "method": 6}
    frames[0].save(tour, save_all=True, append_images=frames[1:], **options)
    with Image.open(tour) as saved:
        assert getattr(saved, "n_frames", 1) == len(names)

    assert tour.stat().st_size < 3_000_000
