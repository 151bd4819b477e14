// Pictures of a class: chosen, dropped, drawn; shown as thumbnails; sent as base64.

const LARGE = 400_000, SIDE = 1024, SHOWN = 12; // bytes and pixels above which a picture is made smaller; thumbnails

export class DropBox {
  // `place` is filled with buttons and thumbnails; `changed` is called when pictures come or go.
  constructor(place, changed) {
    this.files = [];
    this.changed = changed;
    place.append(document.getElementById("drop-box").content.cloneNode(true));
    this.thumbs = place.querySelector(".thumbs");
    const input = place.querySelector("input");
    input.onchange = () => { this.add([...input.files]); input.value = ""; };
    place.querySelector(".draw").onclick = async () => {
      const file = await draw();
      if (file) this.add([file]);
    };
  }
  add(files) {
    this.files.push(...files);
    this.show();
  }
  remove(file) {
    this.files = this.files.filter((other) => other !== file);
    this.show();
  }
  show() {
    this.thumbs.querySelectorAll("img").forEach((image) => URL.revokeObjectURL(image.src));
    this.thumbs.replaceChildren(...this.files.slice(0, SHOWN).map((file) => {
      const button = document.createElement("button");
      button.type = "button";
      button.title = `remove ${file.name}`;
      button.append(thumbnail(file));
      button.onclick = () => this.remove(file);
      return button;
    }));
    if (this.files.length > SHOWN) this.thumbs.append(`and ${this.files.length - SHOWN} more`);
    this.changed();
  }
}

export function thumbnail(file) {
  const image = document.createElement("img");
  image.src = URL.createObjectURL(file);
  image.alt = file.name;
  return image;
}

// Let `place` take what is dropped on it: `taken` gets pairs of a folder's name ("" for none) and a file.
export function takesDrops(place, taken) {
  const over = (event, inside) => {
    event.preventDefault();
    event.stopPropagation();
    place.classList.toggle("over", inside);
  };
  place.addEventListener("dragover", (event) => over(event, true));
  place.addEventListener("dragleave", (event) => over(event, false));
  place.addEventListener("drop", async (event) => {
    over(event, false);
    const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
    const entries = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile()); // both are gone after the event
    const found = [];
    for (const entry of entries) found.push(...(entry instanceof File ? [["", entry]] : await filesOf(entry, "")));
    taken(found.filter(([, file]) => isPicture(file)));
  });
}

async function filesOf(entry, folder) {
  if (entry.isFile) return [[folder, await new Promise((done, failed) => entry.file(done, failed))]];
  const reader = entry.createReader(), found = [];
  for (;;) {
    const batch = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!batch.length) return found;
    for (const inner of batch) found.push(...(await filesOf(inner, entry.name)));
  }
}

export const isPicture = (file) => file.type.startsWith("image/");

// A file as base64; a large picture is made smaller first, as no model looks at so many pixels.
export async function base64(file) {
  const small = file.size > LARGE ? await smaller(file) : file;
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => failed(new Error(`${file.name} cannot be read; choose it again.`));
    reader.readAsDataURL(small);
  });
}

async function smaller(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    return file; // the service says what is wrong with it
  }
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const brush = canvas.getContext("2d");
  brush.fillStyle = "white";
  brush.fillRect(0, 0, canvas.width, canvas.height);
  brush.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
}

let drawn = 0;

// A drawing as a PNG file; null when it was cancelled or nothing was drawn.
function draw() {
  const pad = document.getElementById("pad"), canvas = pad.querySelector("canvas"), brush = canvas.getContext("2d");
  let strokes = 0;
  brush.fillStyle = "white";
  brush.fillRect(0, 0, canvas.width, canvas.height);
  Object.assign(brush, { lineWidth: 14, lineCap: "round", lineJoin: "round", strokeStyle: "black" });
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height];
  };
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    strokes++;
    brush.beginPath();
    brush.moveTo(...at(event));
    canvas.onpointermove(event);
  };
  canvas.onpointermove = (event) => {
    if (!event.buttons) return;
    brush.lineTo(...at(event));
    brush.stroke();
  };
  pad.showModal();
  return new Promise((done) => {
    document.getElementById("pad-cancel").onclick = () => pad.close("");
    document.getElementById("pad-done").onclick = () => pad.close("done");
    pad.onclose = () => {
      if (pad.returnValue !== "done" || !strokes) return done(null);
      canvas.toBlob((blob) => done(new File([blob], `drawing ${++drawn}.png`, { type: "image/png" })));
    };
    pad.returnValue = "";
  });
}
