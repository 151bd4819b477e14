// The page: a task of classes, a head of it, and what the head says of new items.
import { DropBox, base64, isPicture, takesDrops, thumbnail } from "./pictures.js";

const $ = (id) => document.getElementById(id);
const KINDS = ["texts", "images"];
const EXAMPLE = [
  ["refund", "the customer wants money back"], ["lost_card", "a lost or stolen card"],
  ["balance", "how much money is in the account"],
];
let models = [], later = 0, chosen = false; // later: a timer; chosen: whether the reader chose the kind of items
let made = null; // the head's file, its kind, and what it was asked with

const kind = () => document.querySelector("[name=kind]:checked").value;
const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

// --- talking to the service -------------------------------------------------------------------------------------

// What is wrong, in words for the reader.
class Trouble extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

async function ask(path, body, accept = "*/*", sent = {}) {
  const headers = { Accept: accept, ...(body && { "Content-Type": "application/json" }) };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  let response;
  try {
    response = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  } catch {
    throw new Trouble("The service cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  if (response.status === 401) $("key-line").hidden = false;
  let problem = {};
  try { problem = await response.json(); } catch { /* not from the service itself, but from what stands before it */ }
  throw new Trouble(explained(response, problem, sent), response.status);
}

// `sent` names the items of the request, so that an error can say which one it means.
function explained(response, problem, sent) {
  if (!problem.title) return `The service answered ${response.status} ${response.statusText}.`;
  const [, list, place] = /^\/(\w+)\/(\d+)/.exec(problem.field ?? "") ?? [];
  const item = sent[list]?.[place];
  return `${item ? `${item}: ` : ""}${problem.title}.\n${problem.detail}`;
}

async function busy(button, place, work) {
  place.hidden = true;
  button.disabled = true;
  try {
    await work();
  } catch (error) {
    place.textContent = error instanceof Trouble ? error.message : `Something went wrong in this page: ${error.message}`;
    place.hidden = false;
    place.scrollIntoView({ block: "nearest" });
    if (!(error instanceof Trouble)) console.error(error);
  } finally {
    button.disabled = false;
  }
}

// --- the models -------------------------------------------------------------------------------------------------

const reads = (model, kind) => model.state === "ready" && model.kind === "head" && model.input_kinds.includes(kind) && model.body.installed;

async function askModels() {
  clearTimeout(later);
  try {
    models = (await (await ask("models")).json()).models;
  } catch (error) {
    $("model-note").textContent = error.message;
    if (error.status !== 401) later = setTimeout(askModels, 3000); // a key has to be written first
    return;
  }
  if (models.some((model) => model.state === "loading")) later = setTimeout(askModels, 1000);
  else if (!chosen) choose(KINDS.find((kind) => models.some((model) => reads(model, kind))) ?? KINDS[0]);
  showModels();
}

function choose(kind) {
  chosen = true;
  document.querySelector(`[value=${kind}]`).checked = true;
  showKind();
}

function showModels() {
  const before = $("model").value, usable = models.filter((model) => reads(model, kind()));
  $("model").replaceChildren(...usable.map(({ name }) => new Option(name, name, false, name === before)));
  $("model-choice").hidden = usable.length < 2;
  showLimits();
}

function showLimits() {
  const model = models.find(({ name }) => name === $("model").value);
  $("make").disabled = !model;
  $("onnx").hidden = !model?.response_forms.includes("application/onnx");
  if (!models.length) return;
  if (model) {
    const [fewest, most] = model.limits.ways, side = model.body.image_size;
    const seen = kind() === "images" ? ` It sees grey pictures of ${side} by ${side} pixels: drawn symbols rather than photographs.` : "";
    $("model-note").textContent = `${model.name} tells ${fewest === most ? most : `${fewest} to ${most}`} classes apart.${seen}`;
    return;
  }
  const why = models.map(({ name, state, reason, input_kinds }) => {
    if (state !== "ready") return `${name} is ${state === "failed" ? `not usable (${reason})` : "still being loaded"}`;
    return `${name} ${input_kinds.includes(kind()) ? "lacks its encoder (pip install 'ltdi[text]')" : `reads ${input_kinds.join(" and ")}`}`;
  });
  $("model-note").textContent = `No model here reads ${kind()}: ${why.join("; ")}.`;
}

// --- the classes ------------------------------------------------------------------------------------------------

function addCard(kind, name = "", description = "") {
  const card = $("class-card").content.firstElementChild.cloneNode(true);
  card.querySelector(".name").value = name;
  card.querySelector(".description").value = description;
  card.querySelector(".remove").onclick = () => { card.remove(); changed(); };
  card.box = new DropBox(card.querySelector(".drop"), changed);
  if (kind === "images") takesDrops(card, (found) => card.box.add(found.map(([, file]) => file)));
  $(`${kind}-classes`).append(card);
  return card;
}

const cards = (kind) => [...$(`${kind}-classes`).children];
const nameOf = (card) => card.querySelector(".name").value.trim();
const examplesOf = (card) => lines(card.querySelector(".examples").value);

// Pictures by folder: each folder is the class of its name.
function addFolders(found) {
  if (!found.length) return trouble("There is no image in what you gave; PNG, JPEG and WebP are read.");
  $("trouble").hidden = true;
  const byFolder = Map.groupBy(found, ([folder]) => folder);
  for (const [folder, pairs] of byFolder) {
    const free = (card) => !nameOf(card) && !card.box.files.length;
    const card = cards("images").find((card) => folder && nameOf(card) === folder) ?? cards("images").find(free) ?? addCard("images");
    if (folder) card.querySelector(".name").value = folder;
    card.box.add(pairs.map(([, file]) => file));
  }
}

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = false;
}

function changed() {
  $("stale").hidden = !made;
}

// --- the task ---------------------------------------------------------------------------------------------------

// The request, and the names of its items for errors.
async function task(kind) {
  const used = cards(kind).filter((card) => nameOf(card) || examplesOf(card).length || card.box.files.length);
  const names = used.map(nameOf);
  check(used, names, kind);
  const request = { model: $("model").value, support: [] }, sent = { support: [], classes: names };
  request.classes = used.map((card) => kind === "images" ? { label: nameOf(card) } : { label: nameOf(card), description: meaning(card) });
  for (const card of used) {
    for (const item of kind === "images" ? card.box.files : examplesOf(card)) {
      request.support.push({ label: nameOf(card), ...(await itemOf(item)) });
      sent.support.push(`${item.name ?? `"${item}"`} of class "${nameOf(card)}"`);
    }
  }
  if (kind === "texts") {
    sent.unlabelled = lines($("log").value);
    request.options = { truncate: true };
    if (sent.unlabelled.length) request.unlabelled = sent.unlabelled.map((text) => ({ text }));
  }
  return [request, sent];
}

const itemOf = async (item) => item instanceof File ? { image: await base64(item) } : { text: item };
const meaning = (card) => card.querySelector(".description").value.trim() || nameOf(card).replace(/[_-]+/g, " ");

function check(used, names, kind) {
  const fail = (card, text) => { card?.querySelector(".name").focus(); throw new Trouble(text); };
  const nameless = used.find((card) => !nameOf(card));
  if (nameless) fail(nameless, "A class has examples but no name. Give it one.");
  if (used.length < 2) fail(cards(kind).find((card) => !nameOf(card)), "A head tells at least two classes apart. Name another.");
  const twice = used.find((card, i) => names.indexOf(nameOf(card)) < i);
  if (twice) fail(twice, `Two classes are called "${nameOf(twice)}". Give each a name of its own.`);
  const empty = kind === "images" && used.find((card) => !card.box.files.length);
  if (empty) fail(empty, `Class "${nameOf(empty)}" has no image. Add one, or remove the class.`);
}

async function make() {
  const asked = kind(), [request, sent] = await task(asked);
  const response = await ask("generate-head", request, "application/vnd.safetensors", sent), file = await response.blob();
  URL.revokeObjectURL($("file").href);
  made = { file, kind: asked, request, sent };
  $("file").href = URL.createObjectURL(file);
  $("about").textContent = about(response, request, file);
  $("stale").hidden = true;
  $("answers").replaceChildren();
  $("made").hidden = false;
  $("made").scrollIntoView({ behavior: "smooth", block: "nearest" });
  const items = asked === "images" ? tried.files : lines($("queries").value);
  if (items.length) await predict(items);
}

function about(response, request, file) {
  const said = (name) => response.headers.get(name), percent = (share) => `${(100 * share).toFixed(0)} %`;
  const total = /total;dur=([\d.]+)/.exec(said("Server-Timing") ?? "")?.[1];
  const words = [`${request.classes.length} classes, ${Math.ceil(file.size / 1024)} KiB${total ? `, made in ${Math.round(total)} ms` : ""}.`];
  const [own, closed] = [said("LtDi-Support-Accuracy"), said("LtDi-Baseline-Support-Accuracy")];
  if (own === null) words.push("No class has examples to spare, so nobody knows yet how often it is right: try it.");
  else words.push(`When some of your examples were held back, it named ${percent(own)} of them correctly; a plain closed form ${percent(closed)}.`);
  if (said("LtDi-Method") === "baseline") words.push("The closed form did better, so this is the closed form.");
  if (said("LtDi-Truncated")) words.push(`${said("LtDi-Truncated")} texts were too long; their ends were left out.`);
  return words.join(" ");
}

async function downloadOnnx() {
  const file = await (await ask("generate-head", made.request, "application/onnx", made.sent)).blob();
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: "head.onnx" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// --- trying it --------------------------------------------------------------------------------------------------

async function predict(items) {
  if (!items.length) throw new Trouble("Write a text first.");
  const queries = await Promise.all(items.map(itemOf)), head = await base64(made.file);
  const names = items.map((item) => item.name ?? `"${item}"`);
  const answer = await (await ask("predict", { head, model: made.request.model, queries }, "application/json", { queries: names })).json();
  $("answers").replaceChildren(...items.map((item, i) => answerLine(item, answer.labels, answer.probabilities[i])));
}

function answerLine(item, labels, shares) {
  const line = document.createElement("li"), what = document.createElement("span"), table = document.createElement("span");
  what.className = "item";
  what.append(item instanceof File ? thumbnail(item) : item);
  table.className = "shares";
  const best = shares.map((share, i) => [share, labels[i]]).sort(([a], [b]) => b - a).slice(0, 3);
  best.forEach(([share, label], i) => {
    const name = document.createElement("span"), bar = document.createElement("meter");
    name.textContent = label;
    if (!i) name.className = "best";
    bar.value = share;
    const number = Object.assign(document.createElement("span"), { className: "share", textContent: `${(100 * share).toFixed(0)} %` });
    table.append(name, bar, number);
  });
  line.append(what, table);
  return line;
}

// --- start ------------------------------------------------------------------------------------------------------

function showKind() {
  document.body.dataset.kind = kind();
  for (const one of KINDS) $(one).hidden = one !== kind();
  $("made").hidden = made?.kind !== kind();
  $("trouble").hidden = true;
  showModels();
}

for (const [name, description] of EXAMPLE) addCard("texts", name, description);
addCard("images");
addCard("images");
for (const one of KINDS) $(one).querySelector(".more").onclick = () => addCard(one).querySelector(".name").focus();
for (const radio of document.querySelectorAll("[name=kind]")) radio.onchange = () => choose(radio.value);
takesDrops($("images"), addFolders);
$("folder").onchange = () => {
  const files = [...$("folder").files].filter(isPicture);
  $("folder").value = "";
  addFolders(files.map((file) => [file.webkitRelativePath.split("/").at(-2) ?? "", file]));
};
const tried = new DropBox($("query-drop"), () => {
  if (tried.files.length) busy($("make"), $("try-trouble"), () => predict(tried.files));
  else $("answers").replaceChildren();
});
takesDrops($("query-drop"), (found) => tried.add(found.map(([, file]) => file)));
$("task").oninput = (event) => { if (event.target.name !== "kind") changed(); };
$("task").onsubmit = (event) => { event.preventDefault(); busy($("make"), $("trouble"), make); };
$("try").onsubmit = (event) => {
  event.preventDefault();
  busy($("try").querySelector(".main"), $("try-trouble"), () => predict(lines($("queries").value)));
};
$("onnx").onclick = () => busy($("onnx"), $("try-trouble"), downloadOnnx);
$("model").onchange = showLimits;
$("key").onchange = askModels;
if (KINDS.includes(location.hash.slice(1))) choose(location.hash.slice(1));
else showKind();
askModels();
