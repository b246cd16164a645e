"""The page in the browser, used as a person does: in Chromium, from clips to a downloaded model."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from metaser.adaptation.adapt import adapt
from metaser.adaptation.clips import Clips
from metaser.adaptation.model_file import ModelFile, load
from metaser.adaptation.predict import predict
from metaser.adaptation.recipe import read_recipe
from metaser.adaptation.train import train_model
from metaser.cli import app
from metaser.files import Places

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
uvicorn = pytest.importorskip("uvicorn", reason='needs uvicorn: pip install "metaser[app]"')
pytest.importorskip("starlette", reason='needs starlette: pip install "metaser[app]"')

from metaser import page as library  # noqa: E402
from metaser.page import desk, server  # noqa: E402

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
    path = folder / "tiny.safetensors"
    places = Places.at(spoken / "audio", spoken / "tasks", folder / "cache")
    train_model(path, recipe, places, draws=3)
    return path


class Served:
    """A page that runs in a thread: its address, and the desk behind it."""

    def __init__(self, model: ModelFile, name: str):
        self.app = library.application(model, name)
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
    running = Served(load(model), model.stem)
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
    desk = served.desk  # as if the program had just begun
    while desk.clips:
        desk.clips.popitem()[1].path.unlink()
    desk.adapted, desk.result, desk.learnt, desk.language, desk.who = None, None, [], "", "named"
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
    assert f"{100 * own.low:.0f} to {100 * own.high:.0f} in 100 right" in said
    assert f"most likely about {100 * own.uar:.0f}" in said
    assert "few clips of angry (2), sad (2)" in said and "Nobody is named" not in said

    with sheet.expect_download() as waiting:
        sheet.get_by_role("link", name="Download the adapted model").click()
    assert waiting.value.suggested_filename == "Urdu.safetensors"
    waiting.value.save_as(tmp_path / "mine.safetensors")
    with sheet.expect_download() as waiting:
        sheet.get_by_role("link", name="Download the report").click()
    assert "## Adapted to Urdu" in Path(waiting.value.path()).read_text(encoding="utf-8")

    sheet.locator("#fresh").set_input_files(clips[0])
    shown = sheet.locator("#heard article")
    shown.wait_for()
    proves_nothing = "adapted to this very clip"
    assert proves_nothing in shown.inner_text()
    (row,) = predict(load(tmp_path / "mine.safetensors"), [clips[0]]).to_dict("records")
    assert f"It sounds {row['emotion']} ({100 * row['confidence']:.0f} %)" in shown.inner_text()
    wide = sheet.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390, f"{wide} pixels do not fit a phone"

    long = tmp_path / "long.wav"
    sound = np.concatenate([soundfile.read(path)[0] for path in clips * 3])
    soundfile.write(long, sound, 16000)
    sheet.locator("#fresh").set_input_files(long)
    sheet.locator("#heard article").nth(1).wait_for()
    newest = sheet.locator("#heard article").first
    assert proves_nothing not in newest.inner_text()
    windows = predict(served.desk.adapted, [long], window=desk.WINDOW, hop=desk.HOP)
    newest.get_by_text("Over time").click()
    assert newest.locator(".rows tbody tr").count() == len(windows) > 3
    loaded = "image => image.decode().then(() => image.naturalWidth)"
    assert newest.locator("img").evaluate(loaded) > 100
    assert "Done." in sheet.locator("#adapting").inner_text()
    sheet.get_by_label(f"Emotion of {clips[0].name}").select_option("happy")
    assert "Press Adapt again" in sheet.locator("#adapting").inner_text()
    # What was predicted on and what was downloaded is gone.
    assert len(list(served.desk.folder.iterdir())) == len(served.desk.clips)


def test_a_bad_file_is_refused_by_its_name_and_the_others_are_taken(sheet, clips, tmp_path):
    (tmp_path / "text.wav").write_text("a letter", encoding="utf-8")
    (tmp_path / "letter.pdf").write_text("a letter", encoding="utf-8")
    soundfile.write(tmp_path / "long.flac", np.zeros(8000 * 61), 8000)
    (tmp_path / "large.wav").write_bytes(bytes(server.CLIP_BYTES + 10**6))
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 8000)
    names = ["text.wav", "letter.pdf", "long.flac", "large.wav", "silent.wav"]
    sheet.locator("#labelled").set_input_files([*(tmp_path / name for name in names), clips[0]])
    sheet.get_by_text("2 clips: 2 without an emotion.").wait_for()
    said = sheet.locator("#labelled-errors li").all_inner_texts()
    expected = ["cannot be decoded", "is not audio", "61 s long", "21 MB, expected at most 20 MB"]
    assert len(said) == 4
    for name, part, message in zip(names, expected, said):
        assert message.startswith(name) and part in message
    assert "almost silent" in sheet.locator("#clips li").first.inner_text()
    assert "almost silent" not in sheet.locator("#clips li").last.inner_text()


def test_what_cannot_be_learnt_from_is_said(sheet, clips):
    press, errors = sheet.get_by_role("button", name="Adapt"), sheet.locator("#adapt-errors li")

    def pressed() -> str:
        with sheet.expect_response("**/adapt"):
            press.click()
        errors.wait_for()
        return errors.inner_text()

    assert "no clips yet" in pressed()
    sheet.get_by_label("Emotion of the clips that I add now").select_option("sad")
    sheet.locator("#labelled").set_input_files([clips[0], clips[1], clips[0]])
    sheet.get_by_text("3 clips: 3 sad.").wait_for()
    assert "all 3 clips are sad" in pressed()
    choice = sheet.get_by_label(f"Emotion of {clips[0].name}")
    choice.first.select_option("")
    assert f"no emotion is chosen for {clips[0].name}" in pressed()
    choice.first.select_option("angry")
    said = pressed()  # the same clip twice, called by its name and not by where it lies
    assert f", but {clips[0].name} and {clips[0].name} are the same audio with two labels" in said
    sheet.get_by_label(f"Who speaks in {clips[1].name}").fill("Ali")
    assert f"not {clips[0].name}, {clips[0].name}: name all speakers, or none" in pressed()
    sheet.get_by_role("button", name=f"Remove {clips[0].name}").first.click()
    sheet.get_by_text("2 clips: 1 sad").or_(sheet.get_by_text("2 clips: 2 sad")).wait_for()


def test_a_clip_is_recorded_by_the_microphone(sheet, served):
    before = set(served.desk.clips)
    sheet.get_by_role("button", name="Record a clip").first.click()
    sheet.wait_for_timeout(700)
    sheet.get_by_role("button", name="Stop recording").click()
    sheet.get_by_text("1 clip: 1 without an emotion.").wait_for()
    (key,) = set(served.desk.clips) - before
    sound, rate = soundfile.read(served.desk.clips[key].path)
    assert 0.3 < len(sound) / rate < 5 and sound.ndim == 1
    assert np.abs(sound).max() > 0.01  # the beeps of Chromium's made-up microphone


def test_clips_and_labels_survive_when_the_page_is_loaded_anew(sheet, served, clips):
    sheet.get_by_label("Emotion of the clips that I add now").select_option("sad")
    sheet.locator("#labelled").set_input_files(clips)
    sheet.get_by_text("4 clips: 4 sad.").wait_for()
    for path in clips:
        label(sheet, path)
    sheet.get_by_label("Name of the language").fill("Urdu")
    sheet.get_by_role("button", name="Adapt").click()
    sheet.locator("#result").wait_for()
    expected = sheet.locator("#result").inner_text()

    sheet.reload()
    sheet.locator("#result").wait_for()
    assert sheet.locator("#result").inner_text() == expected
    assert sheet.locator("#adapting").inner_text() == ""
    assert sheet.get_by_label("Name of the language").input_value() == "Urdu"
    for path in clips:
        speaker, emotion = path.stem.split("_")[:2]
        assert sheet.get_by_label(f"Emotion of {path.name}").input_value() == emotion
        assert sheet.get_by_label(f"Who speaks in {path.name}").input_value() == speaker
    plays = """sound => new Promise((done, fail) => {
        sound.onerror = fail;
        sound.onloadedmetadata = () => done(sound.duration);
        if (sound.readyState) done(sound.duration);
    })"""
    seconds = sheet.get_by_label(f"Listen to {clips[0].name}").evaluate(plays)
    assert seconds == pytest.approx(soundfile.info(clips[0]).duration, abs=0.05)

    with sheet.expect_response("**/clips/*"):
        sheet.get_by_label(f"Emotion of {clips[0].name}").select_option("happy")
    sheet.reload()
    sheet.get_by_text("Press Adapt again").wait_for()
    assert sheet.get_by_label(f"Emotion of {clips[0].name}").input_value() == "happy"
    sheet.get_by_role("button", name=f"Remove {clips[1].name}").click()
    sheet.get_by_text("3 clips: ").wait_for()
    assert len(served.desk.clips) == 3
    paths = [clip.path for clip in served.desk.clips.values()]
    assert all(path.exists() for path in paths)
    sheet.on("dialog", lambda question: question.accept())
    sheet.get_by_role("button", name="Remove all clips").click()
    sheet.get_by_text("No clips yet.").wait_for()
    assert not served.desk.clips and not any(path.exists() for path in paths)
    sheet.reload()
    sheet.locator("#result").wait_for()
    assert sheet.locator("#clips li").count() == 0


def test_who_speaks_is_asked_and_passed_on(browser, clips):
    running = Served(load("starter-light"), "starter-light")
    try:
        tab = browser.new_page()
        tab.goto(running.address)
        asked = tab.get_by_label("Who speaks in these clips?")
        names = tab.locator(".naming:visible")
        tab.get_by_label("Who speaks in the clips that I add now").fill("Ali")
        tab.locator("#labelled").set_input_files(clips)
        tab.get_by_text("4 clips: 4 without an emotion.").wait_for()
        assert names.count() == 5 and {clip.speaker for clip in running.desk.clips.values()} == {
            "Ali"
        }
        for path in clips:
            label(tab, path)
        for choice, people in (("named", 2), ("one", 1), ("unknown", None)):
            asked.select_option(choice)
            assert names.count() == (5 if choice == "named" else 0)
            with tab.expect_response("**/adapt"):
                tab.get_by_role("button", name="Adapt").click()
            tab.get_by_text("Done.").wait_for()
            assert running.desk.adapted.header.adaptation.speakers == people
        tab.reload()
        tab.get_by_text("4 clips: 2 angry").wait_for()
        assert asked.input_value() == "unknown" and names.count() == 0
        tab.locator("#fresh").set_input_files(clips[0])
        tab.locator("#heard article").wait_for()
        assert "was not told who speaks" not in tab.locator("#heard article").inner_text()
        for choice, kept in (("one", 2), ("file", 0)):
            tab.get_by_label("Who speaks in the new clips?").select_option(choice)
            before = tab.locator("#heard article").count()
            tab.locator("#fresh").set_input_files(clips[:2])
            tab.locator("#heard article").nth(before + 1).wait_for()
            assert len(running.desk.voice) == kept
            assert "was not told who speaks" in tab.locator("#heard article").first.inner_text()
            kept_here = [path for path in running.desk.folder.iterdir() if "-voice" in path.stem]
            assert len(kept_here) == kept
        tab.close()
    finally:
        running.end()


def test_a_voice_is_known_by_the_new_clips_so_far(clips, tmp_path):
    file = load("starter-light")
    given = Clips(tuple(clips), ("angry", "angry", "sad", "sad"), ("a", "b", "a", "b"))
    adapted = adapt(file, given)
    adapted = replace(adapted, fitted=replace(adapted.fitted, trust=0.9))
    bench = desk.Desk(file, "light", tmp_path, adapted=adapted)
    copies = [Path(shutil.copy(path, tmp_path)) for path in clips]
    answers = []
    for path in copies:
        answers.append(desk.hear_recording(bench, desk.Clip(path.name, path), "one"))
    expected = predict(adapted, copies[-1:], speaker="one", voice=copies).iloc[0]
    assert answers[-1]["chances"]["sad"] == pytest.approx(expected["sad"], abs=1e-3)
    alone = desk.hear_recording(bench, desk.Clip("x", copies[-1]), "file")
    assert bench.voice == [] and alone["chances"] != answers[-1]["chances"]
    with pytest.raises(ValueError, match="who speaks must be unknown, one or file"):
        desk.hear_recording(bench, desk.Clip("x", copies[-1]), "many")


def test_the_page_can_be_used_by_keyboard_and_by_ear(sheet, clips):
    sheet.locator("#labelled").set_input_files(clips[:1])
    sheet.get_by_label(f"Emotion of {clips[0].name}").wait_for()
    nameless = """controls => controls.filter(c => !(c.getAttribute("aria-label")
        || c.labels?.[0]?.textContent.trim() || c.textContent.trim())).map(c => c.outerHTML)"""
    shown = sheet.locator("button, input, select, audio, a, summary")
    assert shown.count() > 10 and shown.evaluate_all(nameless) == []
    assert sheet.locator("html").get_attribute("lang") == "en"
    reached = []
    for _ in range(30):
        sheet.keyboard.press("Tab")
        reached.append(sheet.evaluate("document.activeElement.id"))
        if reached[-1] == "adapt":
            break
    first = ["who", "default", "default-speaker", "labelled"]
    assert reached[:4] == first and reached[-2:] == ["language", "adapt"]
    sheet.keyboard.press("Enter")
    sheet.locator("#adapt-errors li").wait_for()


def _ask(address: str, body: bytes | None = None, **headers) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body, headers)) as answer:
            return answer.status, answer.headers["Content-Security-Policy"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_other_sites_are_refused_and_none_is_asked(served):
    assert _ask(served.address) == (200, server.POLICY)
    assert _ask(served.address, Host="evil.example")[0] == 400
    assert _ask(f"{served.address}adapt", b"{}", Origin="http://evil.example")[0] == 403
    assert _ask(f"{served.address}adapt", b"{}", Origin=served.address.rstrip("/"))[0] == 400
    assert _ask(f"{served.address}page.py")[0] == 404
    assert _ask(f"{served.address}clips/..%2Fa.wav")[0] == 404
    assert _ask(f"{served.address}clips/unknown")[0] == 404


def test_the_program_itself_holds_the_limits(served, monkeypatch):
    monkeypatch.setattr(server, "CLIP_BYTES", 2_000_000)
    before = set(served.desk.folder.iterdir())
    code, said = _ask(f"{served.address}clips?name=../large.wav", bytes(2_000_001))
    assert (code, json.loads(said)["error"]) == (400, "large.wav is larger than 2 MB: cut it")
    monkeypatch.setattr(server, "MOST_CLIPS", 0)
    assert "which is the most" in _ask(f"{served.address}clips?name=a.wav", b"a")[1]
    assert set(served.desk.folder.iterdir()) == before


def test_an_adapted_model_hears_at_once(browser, model, clips, tmp_path):
    given = Clips(tuple(clips), ("angry", "angry", "sad", "sad"))
    running = Served(adapt(load(model), given, name="Urdu"), "mine")
    try:
        tab = browser.new_page()
        tab.goto(running.address)
        tab.get_by_role("heading", name="The model is adapted to Urdu").wait_for()
        tab.locator("#fresh").set_input_files(clips[0])
        tab.locator("#heard article").wait_for()
        assert tab.locator("#labelled").count() == 0
        tab.close()
    finally:
        running.end()


def test_the_command_serves_this_machine_alone_and_removes_clips(model, clips, tmp_path):
    program = "from metaser.cli import app; app(prog_name='metaser')"
    arguments = ["app", "--model", str(model), "--port", "0", "--no-browser"]
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
    ) as running:
        address = running.stdout.readline().split()[5].rstrip(",")
        assert address.startswith("http://127.0.0.1:")
        assert _ask(f"{address}/clips?name=a.wav", clips[0].read_bytes())[0] == 200
        assert len(list(tmp_path.glob("metaser-*/*.wav"))) == 1
        running.send_signal(signal.SIGHUP)  # as if its terminal were closed
        running.wait(10)
    assert list(tmp_path.glob("metaser-*/")) == []


def test_a_taken_port_and_a_missing_extra_are_said(model, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        done = CliRunner().invoke(app, ["app", "--model", str(model), "--port", str(number)])
    assert done.exit_code == 2 and f"port {number} cannot be used" in done.output
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    done = CliRunner().invoke(app, ["app", "--model", str(model)])
    assert done.exit_code == 2 and 'pip install "metaser[app]"' in done.output
