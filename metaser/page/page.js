// The part of the page in the browser: reads files or the microphone, asks the program, and shows
// its answers.
"use strict";

const main = document.querySelector("main");
const limits = {
  labelled: { bytes: +main.dataset.clipBytes, seconds: +main.dataset.clipSeconds },
  fresh: { bytes: +main.dataset.recordingBytes, seconds: +main.dataset.recordingSeconds },
};
const extensions = main.dataset.extensions.split(" ");
const take = { labelled: addClip, fresh: hearClip };
let recordings = 0;

const find = (id) => document.getElementById(id);
const megabytes = (bytes) => (bytes / 1e6).toFixed(0);

// --- asking the program -------------------------------------------------------------------------

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The program does not answer: perhaps it has ended. Start it again.");
  }
  if (answer.status === 204) return null;
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok)
    throw new Error(
      content.error ?? `The program failed (${answer.status}): see its window for the reason.`,
    );
  return content;
}

const send = (path, file, who = "") =>
  ask(`${path}?name=${encodeURIComponent(file.name)}&who=${who}`, { method: "POST", body: file });

function complain(list, message) {
  const item = document.createElement("li");
  item.textContent = message;
  list.append(item);
}

// --- sound --------------------------------------------------------------------------------------

// Convert what the browser can decode (its own recordings, phones' formats) to mono 16-bit WAV.
async function asWav(blob, name) {
  const context = new AudioContext();
  try {
    const sound = await context.decodeAudioData(await blob.arrayBuffer());
    const count = sound.numberOfChannels;
    const channels = Array.from({ length: count }, (_, i) => sound.getChannelData(i));
    const view = new DataView(new ArrayBuffer(44 + 2 * sound.length));
    const text = (at, word) => [...word].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
    text(0, "RIFF");
    view.setUint32(4, 36 + 2 * sound.length, true);
    text(8, "WAVEfmt ");
    view.setUint32(16, 16, true); // bytes of this section
    view.setUint16(20, 1, true); // whole numbers
    view.setUint16(22, 1, true); // one channel
    view.setUint32(24, sound.sampleRate, true);
    view.setUint32(28, 2 * sound.sampleRate, true); // bytes per second
    view.setUint16(32, 2, true); // bytes per sample
    view.setUint16(34, 16, true); // bits per sample
    text(36, "data");
    view.setUint32(40, 2 * sound.length, true);
    for (let i = 0; i < sound.length; i++) {
      const mean = channels.reduce((sum, channel) => sum + channel[i], 0) / count;
      view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, mean)) * 32767, true);
    }
    return new File([view], name, { type: "audio/wav" });
  } finally {
    context.close();
  }
}

function bounded(file, kind) {
  if (file.size <= limits[kind].bytes) return;
  throw new Error(
    `${file.name} has ${megabytes(file.size)} MB, expected at most ` +
      `${megabytes(limits[kind].bytes)} MB: cut it, or save it as FLAC or MP3.`,
  );
}

// Return a file that the program can read: the file itself, or the same sound as WAV.
async function readable(file, kind) {
  bounded(file, kind);
  if (extensions.some((extension) => file.name.toLowerCase().endsWith(extension))) return file;
  let wav;
  try {
    wav = await asWav(file, file.name);
  } catch {
    throw new Error(
      `${file.name} is not audio that this browser or MetaSER can read: ` +
        "save the sound as WAV, FLAC or MP3.",
    );
  }
  bounded(wav, kind);
  return wav;
}

function player(element, name, address) {
  element.src = address;
  element.setAttribute("aria-label", `Listen to ${name}`);
  element.addEventListener("error", () => {
    const note = document.createElement("p");
    note.className = "note";
    note.textContent = "This browser cannot play this kind of file, but the model can use it.";
    element.replaceWith(note);
  });
}

async function takeAll(files, kind) {
  const errors = find(`${kind}-errors`);
  errors.replaceChildren();
  for (const file of files) {
    try {
      await take[kind](await readable(file, kind));
    } catch (error) {
      complain(errors, error.message);
    }
  }
}

async function record(button) {
  const kind = button.dataset.for;
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    const errors = find(`${kind}-errors`);
    errors.replaceChildren();
    complain(
      errors,
      `The microphone cannot be used (${error.message}): allow it for this page, or choose a file.`,
    );
    return;
  }
  const recorder = new MediaRecorder(stream);
  const pieces = [];
  recorder.addEventListener("dataavailable", (event) => pieces.push(event.data));
  recorder.addEventListener("stop", async () => {
    clearTimeout(full);
    clearInterval(clock);
    stream.getTracks().forEach((track) => track.stop());
    button.classList.remove("recording");
    button.textContent = "Record a clip";
    recordings += 1;
    // The name has no known extension, so that the recording is converted to WAV.
    await takeAll([new File(pieces, `recording ${recordings}`)], kind);
  });
  const begun = Date.now();
  const showTime = () => {
    button.textContent = `Stop recording (${Math.floor((Date.now() - begun) / 1000)} s)`;
  };
  const clock = setInterval(showTime, 1000);
  const full = setTimeout(() => recorder.stop(), (limits[kind].seconds - 1) * 1000);
  button.classList.add("recording");
  button.addEventListener("click", () => recorder.state === "recording" && recorder.stop(), {
    once: true,
  });
  showTime();
  recorder.start();
}

// --- labelled clips -----------------------------------------------------------------------------

async function addClip(file) {
  const clip = await send("clips", file);
  const speaker = find("default-speaker").value;
  const item = showClip({ ...clip, emotion: find("default").value, speaker });
  offerSpeakers();
  showOutdated();
  await keep(item);
}

// Show a clip that the program keeps; returns its item in the list.
function showClip(clip) {
  const item = find("clip").content.firstElementChild.cloneNode(true);
  const [emotion, speaker, remove] = [".emotion", ".speaker", ".remove"].map((s) =>
    item.querySelector(s),
  );
  item.dataset.key = clip.key;
  item.querySelector(".name").textContent = `${clip.name} (${clip.seconds.toFixed(1)} s)`;
  item.querySelector(".note").textContent = clip.note;
  item.querySelector(".note").hidden = clip.note === "";
  player(item.querySelector("audio"), clip.name, `clips/${clip.key}`);
  emotion.value = clip.emotion;
  speaker.value = clip.speaker;
  emotion.setAttribute("aria-label", `Emotion of ${clip.name}`);
  speaker.setAttribute("aria-label", `Who speaks in ${clip.name} (optional)`);
  remove.setAttribute("aria-label", `Remove ${clip.name}`);
  emotion.addEventListener("change", count);
  speaker.addEventListener("change", offerSpeakers);
  for (const field of [emotion, speaker]) {
    field.addEventListener("change", showOutdated);
    field.addEventListener("change", () => orComplain(keep(item)));
  }
  remove.addEventListener("click", () => orComplain(removeClip(item)));
  find("clips").append(item);
  askNames();
  count();
  return item;
}

async function orComplain(work) {
  find("labelled-errors").replaceChildren();
  try {
    await work;
  } catch (error) {
    complain(find("labelled-errors"), error.message);
  }
}

const labels = (item) => ({
  emotion: item.querySelector(".emotion").value,
  speaker: item.querySelector(".speaker").value,
});

// The program keeps the labels, so that the page can be reloaded.
const keep = (item) =>
  ask(`clips/${item.dataset.key}`, { method: "PUT", body: JSON.stringify(labels(item)) });

async function removeClip(item) {
  await ask(`clips/${item.dataset.key}`, { method: "DELETE" });
  const next = item.nextElementSibling ?? item.previousElementSibling;
  (next?.querySelector(".remove") ?? find("labelled")).focus();
  item.remove();
  count();
  showOutdated();
}

async function removeAll() {
  if (!confirm(`Remove all ${clips().length} clips and their labels?`)) return;
  await ask("clips", { method: "DELETE" });
  find("clips").replaceChildren();
  find("labelled").focus();
  count();
  showOutdated();
}

// Show what the program has kept from before the page was reloaded.
async function restore() {
  const desk = await ask("desk");
  desk.clips.forEach(showClip);
  offerSpeakers();
  find("language").value = desk.language;
  find("who").value = desk.who;
  askNames();
  if (desk.result === null) return;
  showResult(desk.result);
  if (desk.outdated) showOutdated();
}

const clips = () => [...find("clips").children];

function count() {
  const counts = {};
  for (const item of clips()) {
    const emotion = item.querySelector(".emotion").value || "without an emotion";
    counts[emotion] = (counts[emotion] ?? 0) + 1;
  }
  const parts = Object.entries(counts).map(([emotion, times]) => `${times} ${emotion}`);
  const number = clips().length;
  find("counts").textContent = number
    ? `${number} ${number === 1 ? "clip" : "clips"}: ${parts.join(", ")}.`
    : "No clips yet.";
  find("remove-all").hidden = number < 2;
}

function showOutdated() {
  if (find("result").hidden) return;
  find("adapting").textContent =
    "The clips have changed: the result below is from before. Press Adapt again.";
}

// Names are asked for only where several people speak.
function askNames() {
  for (const part of document.querySelectorAll(".naming"))
    part.hidden = find("who").value !== "named";
}

function offerSpeakers() {
  const names = new Set(clips().map((item) => item.querySelector(".speaker").value.trim()));
  names.delete("");
  find("speakers").replaceChildren(...[...names].map((name) => new Option(name, name)));
}

async function adaptModel() {
  const errors = find("adapt-errors");
  errors.replaceChildren();
  find("adapt").disabled = true;
  find("adapting").textContent = "The model listens to your clips …";
  const wish = {
    name: find("language").value,
    who: find("who").value,
    clips: clips().map((item) => ({ key: item.dataset.key, ...labels(item) })),
  };
  try {
    showResult(await ask("adapt", { method: "POST", body: JSON.stringify(wish) }));
    find("result").focus();
    find("adapting").textContent = "Done.";
  } catch (error) {
    find("adapting").textContent = "";
    complain(errors, error.message);
  } finally {
    find("adapt").disabled = false;
  }
}

function showResult(result) {
  for (const place of document.querySelectorAll("[data-fill]"))
    place.textContent = result[place.dataset.fill];
  find("doubt").hidden = result.above_chance;
  find("notes").replaceChildren();
  find("lines").replaceChildren();
  result.notes.forEach((note) => complain(find("notes"), note));
  result.lines.forEach((line) => complain(find("lines"), line));
  find("result").hidden = find("new").hidden = false;
  find("wait").hidden = true;
  find("heard").replaceChildren(); // these are predictions of the previous model
}

// --- new clips ----------------------------------------------------------------------------------

async function hearClip(file) {
  find("hearing").textContent = `The model listens to ${file.name} …`;
  let heard;
  try {
    heard = await send("predict", file, find("fresh-who")?.value);
  } finally {
    find("hearing").textContent = "";
  }
  const item = find("prediction").content.firstElementChild.cloneNode(true);
  const place = (selector) => item.querySelector(selector);
  const percent = (chance) => `${Math.round(100 * chance)} %`;
  const along = heard.plot !== "";
  place(".name").textContent = `${file.name} (${heard.seconds.toFixed(1)} s)`;
  player(place("audio"), file.name, URL.createObjectURL(file));
  const sure = percent(heard.chances[heard.emotion]);
  place(".said").textContent = `${along ? "Overall it sounds" : "It sounds"} ${heard.emotion} (${sure})`;
  place(".notes").hidden = heard.notes.length === 0;
  heard.notes.forEach((note) => complain(place(".notes"), note));
  place(".known").hidden = !heard.known;
  place("caption").textContent = along
    ? "Probability of each emotion: the mean over the pieces"
    : "Probability of each emotion";
  for (const [emotion, chance] of Object.entries(heard.chances)) {
    const row = place(".chances tbody").insertRow();
    const name = document.createElement("th");
    name.scope = "row";
    name.textContent = emotion;
    const meter = document.createElement("meter");
    meter.value = chance;
    meter.setAttribute("aria-hidden", "true"); // the number next to it says the same
    row.append(name);
    row.insertCell().append(meter);
    row.insertCell().textContent = percent(chance);
    row.lastChild.className = "number";
  }
  if (along) {
    place("figure").hidden = place("details").hidden = false;
    place("img").src = `data:image/svg+xml,${encodeURIComponent(heard.plot)}`;
    const emotions = Object.keys(heard.chances);
    const top = place(".rows thead").insertRow();
    for (const title of ["seconds", "emotion", ...emotions]) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = title;
      top.append(cell);
    }
    for (const piece of heard.rows) {
      const row = place(".rows tbody").insertRow();
      row.insertCell().textContent = `${piece.start.toFixed(0)} to ${piece.end.toFixed(0)}`;
      row.insertCell().textContent = piece.emotion;
      for (const emotion of emotions) {
        row.insertCell().textContent = percent(piece[emotion]);
        row.lastChild.className = "number";
      }
    }
  }
  find("heard").prepend(item);
}

// --- what the user does -------------------------------------------------------------------------

for (const area of document.querySelectorAll(".drop")) {
  const input = find(area.dataset.for);
  input.addEventListener("change", async () => {
    const files = [...input.files];
    input.value = ""; // so that the same file can be chosen again
    await takeAll(files, area.dataset.for);
  });
  area.addEventListener("dragover", (event) => {
    event.preventDefault();
    area.classList.add("over");
  });
  area.addEventListener("dragleave", () => area.classList.remove("over"));
  area.addEventListener("drop", (event) => {
    event.preventDefault();
    area.classList.remove("over");
    takeAll([...event.dataTransfer.files], area.dataset.for);
  });
}
// Without this, a file dropped outside the area would replace the page.
for (const kind of ["dragover", "drop"])
  window.addEventListener(kind, (event) => event.preventDefault());
for (const button of document.querySelectorAll(".record")) {
  button.addEventListener("click", () => button.classList.contains("recording") || record(button));
}
if (find("clips")) {
  find("adapt").addEventListener("click", adaptModel);
  find("who").addEventListener("change", askNames);
  find("who").addEventListener("change", showOutdated);
  find("remove-all").addEventListener("click", () => orComplain(removeAll()));
  orComplain(restore());
}
