"""The page in the browser, used as a person does: in Chromium, from clips to a downloaded model."""

import re
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile

from metaser.model_file import load
from metaser.prediction import predict
from metaser.starter import read_recipe, train_model

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
uvicorn = pytest.importorskip("uvicorn", reason='needs uvicorn: pip install "metaser[app]"')
pytest.importorskip("starlette", reason='needs starlette: pip install "metaser[app]"')

from metaser import page as library  # noqa: E402

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
PROTOCOL = """
name = "tiny"
title = "Tiny"
description = "Made-up languages."
classes = ["angry", "happy", "neutral", "sad"]
sources = ["fa_synthetic", "it_synthetic"]
targets = ["ur_synthetic"]
speakers = "any"
seeds = [0]

[episodes]
shots = [1]
queries = 1
count = 1

[setups.plain]
frontend = { name = "mfcc", coefficients = 13, frames = 40 }
normalise = "corpus"
backbone = { name = "mlp", hidden = [16] }

[setups.plain.training]
shots = [1]
queries = 1
held_out = 0.5
updates = 20
validate_every = 10
meta_batch = 2

[setups.plain.methods]
inner_loop_alone = { method = "metaser", rates = "element", adapt_steps = 5 }
"""


@pytest.fixture(scope="module")
def model(spoken, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "tiny.toml").write_text(PROTOCOL, encoding="utf-8")
    recipe = read_recipe(folder / "tiny.toml")
    path, corpora = folder / "tiny.safetensors", (spoken / "audio", [spoken / "tasks"])
    train_model(path, recipe, *corpora, cache=folder / "cache", draws=3)
    return path


class Served:
    """A page that runs in a thread: its address, and the desk behind it."""

    def __init__(self, model: Path):
        self.app = library.application(load(model), model.stem)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listening.getsockname()[1]}/"
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_level="warning"))
        self.thread = threading.Thread(target=self.server.run, args=([self.listening],))
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)

    @property
    def desk(self):
        return self.app.state.desk

    def end(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.listening.close()


@pytest.fixture(scope="module")
def served(model):
    running = Served(model)
    yield running
    folder = running.desk.folder
    assert folder.is_dir()
    running.end()
    assert not folder.exists()  # and with it every clip


@pytest.fixture(scope="module")
def browser():
    if not Path(CHROMIUM).exists():
        pytest.skip(f"needs Chromium, found none at {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@pytest.fixture
def sheet(browser, served):
    """A fresh tab with the page, as wide as a phone; requests to elsewhere and errors fail it."""
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    strange, broken = [], []
    tab.on("request", lambda request: strange.append(request.url))
    tab.on("pageerror", lambda error: broken.append(str(error)))
    tab.goto(served.address)
    yield tab
    ours = (served.address, "data:", "blob:")
    assert [url for url in strange if not url.startswith(ours)] == [] and broken == []
    tab.close()


@pytest.fixture(scope="module")
def clips(spoken) -> list[Path]:
    """Two clips of each of two emotions, of two speakers."""
    found = sorted((spoken / "audio" / "SYNTHETIC-UR").glob("*.wav"))
    speakers = sorted({path.stem.split("_")[0] for path in found})[:2]
    return [
        next(p for p in found if p.stem.startswith(f"{speaker}_{emotion}_"))
        for emotion in ("angry", "sad")
        for speaker in speakers
    ]


def label(tab, path: Path) -> None:
    speaker, emotion = path.stem.split("_")[:2]
    tab.get_by_label(f"Emotion of {path.name}").select_option(emotion)
    tab.get_by_label(f"Who speaks in {path.name}").fill(speaker)


def test_from_clips_to_a_model_that_hears_new_ones(sheet, served, clips, tmp_path):
    sheet.get_by_text("learnt from synthetic speech only").wait_for()
    sheet.locator("#labelled").set_input_files(clips)
    sheet.get_by_text("4 clips: 4 without an emotion.").wait_for()
    for path in clips:
        label(sheet, path)
    sheet.get_by_label("Name of the language").fill("Urdu")
    sheet.get_by_role("button", name="Adapt").click()
    sheet.locator("#result").wait_for()

    own = served.desk.adapted.header.adaptation
    assert (own.name, own.clips, own.speakers, own.classes) == ("Urdu", 4, 2, ["angry", "sad"])
    said = sheet.locator("#result").inner_text()
    assert f"{100 * own.uar:.0f} in 100 right" in said
    assert f"between {100 * own.low:.0f} and {100 * own.high:.0f} in 100" in said
    assert "only 2 of angry" in said

    with sheet.expect_download() as waiting:
        sheet.get_by_role("link", name="Download the adapted model").click()
    waiting.value.save_as(tmp_path / "mine.safetensors")
    with sheet.expect_download() as waiting:
        sheet.get_by_role("link", name="Download the report").click()
    assert "## Adapted to Urdu" in Path(waiting.value.path()).read_text(encoding="utf-8")

    sheet.locator("#fresh").set_input_files(clips[0])
    shown = sheet.locator("#heard article")
    shown.wait_for()
    (row,) = predict(load(tmp_path / "mine.safetensors"), [clips[0]]).to_dict("records")
    assert f"It sounds {row['emotion']} ({row['confidence']:.0%}".replace("%", " %") in (
        shown.inner_text()
    )
    wide = sheet.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390, f"{wide} pixels do not fit a phone"

    long = tmp_path / "long.wav"
    sound = np.concatenate([soundfile.read(path)[0] for path in clips * 3])
    soundfile.write(long, sound, 16000)
    sheet.locator("#fresh").set_input_files(long)
    sheet.locator("#heard article").nth(1).wait_for()
    newest = sheet.locator("#heard article").first
    windows = predict(served.desk.adapted, [long], library.WINDOW, library.HOP)
    newest.get_by_text("Along time").click()
    assert newest.locator(".rows tbody tr").count() == len(windows) > 3
    loaded = "image => image.decode().then(() => image.naturalWidth)"
    assert newest.locator("img").evaluate(loaded) > 100
    assert len(list(served.desk.folder.iterdir())) == 4  # what was predicted on is gone
