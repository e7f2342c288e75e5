// The page that tries a model: one request at a time to /generate_stream, its events read as they come.
// Nothing is stored and nothing but this server is asked. What a user or a model wrote enters the page as text only.

const $ = (id) => document.getElementById(id);
const MOST_ANSWERS = 100; // older ones leave the page
const SENTINEL = /<extra_id_\d+>/;
const SENTINELS = /(<extra_id_\d+>)/;

const EXAMPLES = [
  { name: "Fill the gaps", text: "The <extra_id_0> walks in <extra_id_1> park every morning." },
  { name: "Translate", text: "translate English to German: The house is wonderful." },
  {
    name: "Summarise",
    text:
      "summarize: The river rose by two metres in a single night. Fields on both banks stand under water, and the road " +
      "to the north is closed. Nobody was hurt. The council expects the level to fall before Sunday.",
  },
  { name: "Judge", text: "sst2 sentence: a film of quiet charm and great warmth", choices: ["positive", "negative"] },
];

let info = { models: [], constraints: [], beams: 1 };
let running = null; // the AbortController of the request under way

// ---- what the server is ----

async function ask(path) {
  const answer = await fetch(path, { headers: headers(), cache: "no-store" });
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

function headers() {
  const key = $("key").value;
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function learn() {
  try {
    const found = await ask("info");
    info = {
      models: found.models?.length ? found.models : [{ id: found.model_id ?? "model" }],
      constraints: found.constraints ?? [],
      beams: found.max_beams ?? 1,
      tokens: found.max_new_tokens ?? found.max_total_tokens ?? 512,
      input: found.max_input_tokens,
    };
    server("up", found.engine ?? info.models[0].engine ?? "Ready");
    offer();
  } catch (problem) {
    server("down", problem.title ?? "The server does not answer");
    if (problem.status === 401) wantKey();
  }
}

function server(state, text) {
  $("server").dataset.state = state;
  $("server-text").textContent = text;
}

function wantKey() {
  $("key-hint").textContent = "this server asks for one";
  $("key").setAttribute("aria-invalid", "true");
  $("settings").open = true;
  $("key").focus();
}

function offer() {
  const chosen = $("model").value;
  $("model").replaceChildren(...info.models.map((model) => element("option", { value: model.id }, model.id)));
  if (info.models.some((model) => model.id === chosen)) $("model").value = chosen;
  $("max-tokens").max = info.tokens;
  if (Number($("max-tokens").value) > info.tokens) $("max-tokens").value = info.tokens;
  for (const label of document.querySelectorAll("[data-needs]")) label.hidden = !info.constraints.includes(label.dataset.needs);
  $("constraint-field").hidden = info.constraints.length === 0;
  document.querySelector("[name=search][value=beam]").parentElement.hidden = info.beams < 2;
  $("beams").max = info.beams;
  describe();
  brief();
}

function describe() {
  const model = info.models.find((one) => one.id === $("model").value) ?? {};
  const engine = model.engine && model.engine !== $("server-text").textContent ? model.engine : null;
  const most = model.max_input_tokens ?? info.input;
  const shape = model.shape !== model.id && model.shape;
  $("model-facts").textContent = [shape, engine, most && `up to ${most} tokens in`].filter(Boolean).join(" \u00b7 ");
  document.title = model.id ? `${model.id} \u00b7 DeepNarrow` : "DeepNarrow";
}

// ---- the form ----

const picked = (name) => document.querySelector(`[name=${name}]:checked`).value;
const pick = (name, value) => (document.querySelector(`[name=${name}][value=${value}]`).checked = true);
const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

function show() {
  for (const part of document.querySelectorAll(".of")) part.hidden = picked(part.dataset.of) !== part.dataset.value;
  brief();
}

function searchWords() {
  if (picked("search") === "sample") return `sampled at ${$("temperature").value}`;
  return picked("search") === "beam" ? `${$("beams").value} beams` : "greedy";
}

function constraintWords() {
  return { none: null, choices: "one of a list", regex: "by a regex", json: "by a schema" }[picked("constraint")];
}

function brief() {
  $("brief").textContent = [`${$("max-tokens").value} tokens`, searchWords(), constraintWords()].filter(Boolean).join(", ");
}

/** The settings as /generate_stream takes them; throws what is wrong with a schema. */
function parameters() {
  const found = { max_new_tokens: Number($("max-tokens").value), details: true };
  if (picked("search") === "sample") {
    Object.assign(found, { do_sample: true, temperature: Number($("temperature").value) });
    if (Number($("top-p").value) < 1) found.top_p = Number($("top-p").value);
    if (Number($("top-k").value) > 0) found.top_k = Number($("top-k").value);
    if ($("seed").value !== "") found.seed = Number($("seed").value);
  }
  if (picked("search") === "beam") found.num_beams = Number($("beams").value);
  const kind = picked("constraint");
  if (kind === "choices") found.grammar = { type: kind, value: lines($("choices").value) };
  if (kind === "regex") found.grammar = { type: kind, value: $("regex").value };
  if (kind === "json") found.grammar = { type: kind, value: JSON.parse($("json").value) };
  return found;
}

/** Whether all that is shown is filled in rightly; else the first mistake is focused and told. */
function checked() {
  for (const field of document.querySelectorAll("#form input, #form textarea")) {
    if (field.closest("[hidden]") || field.id === "text" || field.id === "key") continue;
    let wrong = field.checkValidity() ? "" : field.validationMessage;
    if (!wrong && field.required && !field.value.trim()) wrong = "Fill this in, or choose \u201cAny\u201d.";
    if (!wrong && field.id === "json") wrong = schemaMistake(field.value);
    field.toggleAttribute("aria-invalid", false);
    if (!wrong) continue;
    field.setAttribute("aria-invalid", "true");
    $("settings").open = true;
    field.setCustomValidity(wrong);
    field.reportValidity();
    field.setCustomValidity("");
    field.focus();
    say(wrong);
    return false;
  }
  return true;
}

function schemaMistake(text) {
  try {
    JSON.parse(text);
    return "";
  } catch (problem) {
    return `This is not JSON: ${problem.message}`;
  }
}

// ---- one answer ----

async function generate() {
  if (running || !checked()) return;
  if (!$("text").value.trim()) {
    say("Write a text for the model first.");
    $("text").focus();
    return;
  }
  const request = { inputs: $("text").value, parameters: parameters() };
  if ($("model").value) request.model = $("model").value;
  const card = newCard(request);
  running = new AbortController();
  busy(true);
  say("Generating.");
  const clock = { start: performance.now(), first: null, end: null };
  try {
    const answer = await fetch("generate_stream", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers() },
      body: JSON.stringify(request),
      signal: running.signal,
    });
    if (!answer.ok) throw await refusal(answer);
    for await (const events of batches(answer.body)) card.take(events, clock);
    clock.end = performance.now();
    card.finish(clock);
  } catch (problem) {
    clock.end = performance.now();
    if (problem.name === "AbortError") card.stop(clock);
    else card.fail(problem.title ? problem : lost(card.tokens.length));
    if (problem.status === 401) wantKey();
  } finally {
    running = null;
    busy(false);
  }
}

function busy(now) {
  const focused = document.activeElement;
  $("stop").hidden = !now;
  $("generate").disabled = now;
  $("generate").textContent = now ? "Generating" : "Generate";
  if (now && focused === $("generate")) $("stop").focus();
  if (!now && (focused === $("stop") || focused === document.body)) $("generate").focus({ preventScroll: true });
}

/** Yields the events of a server-sent stream, all that a chunk completed at once. */
async function* batches(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    rest = (rest + (value ?? "")).replaceAll("\r\n", "\n");
    const blocks = rest.split("\n\n");
    rest = done ? "" : blocks.pop();
    const events = blocks.map(data).filter((text) => text && text !== "[DONE]").map((text) => JSON.parse(text));
    if (events.length) yield events;
    if (done) return;
  }
}

function data(block) {
  const parts = block.split("\n").filter((line) => line.startsWith("data:"));
  return parts.map((line) => line.slice(5).trimStart()).join("\n");
}

function newCard(request) {
  const item = $("card").content.cloneNode(true).querySelector("li");
  const part = (name) => item.querySelector(name);
  const model = info.models.length > 1 ? [request.model] : [];
  part(".input").textContent = request.inputs;
  part(".how").textContent = [...model, searchWords(), constraintWords()].filter(Boolean).join(" \u00b7 ");
  const form = snapshot();
  let last = null;
  const tokens = [];
  const text = () => (last?.generated_text != null && !SENTINEL.test(written()) ? last.generated_text : written());
  const written = () => tokens.filter(shown).map((token) => token.text).join("");

  function close(state) {
    item.dataset.state = state;
    part(".output").removeAttribute("aria-busy");
    part(".copy").disabled = !text();
    part(".copy").hidden = !text();
    fill();
  }

  function fill() {
    if (!SENTINEL.test(request.inputs)) return;
    const spans = spansOf(text());
    part(".filled").hidden = spans.size === 0;
    part(".filled").replaceChildren(
      ...request.inputs.split(SENTINELS).map((piece) => (SENTINEL.test(piece) ? element("mark", {}, spans.get(piece) ?? "") : piece)),
    );
  }

  part(".copy").addEventListener("click", () => copy(text(), part(".copy")));
  part(".again").addEventListener("click", () => restore(form));
  part(".remove").addEventListener("click", () => {
    const neighbour = item.nextElementSibling ?? item.previousElementSibling;
    item.remove();
    count();
    (neighbour?.querySelector(".remove") ?? $("text")).focus();
  });
  $("list").prepend(item);
  while ($("list").children.length > MOST_ANSWERS) $("list").lastElementChild.remove();
  count();

  return {
    tokens,
    take(events, clock) {
      for (const event of events) {
        if (event.error) throw { title: "The server broke off", text: event.error };
        if (event.generated_text != null || event.details) last = event;
        if (!event.token) continue;
        clock.first ??= performance.now();
        tokens.push(event.token);
        if (shown(event.token)) part(".output").append(...drawn(event.token));
      }
      fill();
    },
    finish(clock) {
      if (last === null) throw lost(tokens.length);
      if (!SENTINEL.test(written()) && last.generated_text != null && last.generated_text.trim() !== written().trim()) {
        part(".output").textContent = last.generated_text; // a search that settles only at its end
      }
      if (!text().trim()) part(".output").replaceChildren(element("span", { className: "nothing" }, "The model answered with nothing."));
      times(item, last.details ?? {}, tokens.length, clock);
      close("done");
      say(`Done, ${counted(last.details?.generated_tokens ?? tokens.length)}: ${text()}`);
    },
    stop(clock) {
      part(".seen").hidden = false;
      part(".seen").textContent = `Stopped after ${counted(tokens.length)}, ${seconds((clock.end - clock.start) / 1000)}.`;
      close("stopped");
      say("Stopped.");
    },
    fail(problem) {
      part(".alert").hidden = false;
      part(".alert").replaceChildren(element("strong", {}, problem.title), element("p", {}, problem.text));
      part(".output").hidden = tokens.length === 0;
      close("failed");
    },
  };
}

/** Special tokens are not shown, except the sentinels, which are what T5 fills gaps with. */
const shown = (token) => !token.special || SENTINEL.test(token.text);

/** A token as nodes: the space before a word stands outside what is shaded. */
function drawn(token) {
  const sure = Math.exp(token.logprob ?? 0);
  const word = token.text.trimStart();
  const span = element("span", { className: SENTINEL.test(word) ? "token sentinel" : "token" }, word);
  if (token.logprob != null) span.title = `${(100 * sure).toFixed(sure < 0.1 ? 1 : 0)}% sure`;
  span.dataset.sure = sure >= 0.6 ? 2 : sure >= 0.25 ? 1 : 0;
  return [token.text.slice(0, token.text.length - word.length), span];
}

/** "<extra_id_0> dog<extra_id_1> the" as a map from sentinel to text. */
function spansOf(answer) {
  const pieces = answer.split(SENTINELS);
  const spans = new Map();
  for (let at = 1; at + 1 < pieces.length; at += 2) spans.set(pieces[at], pieces[at + 1].trim());
  return spans;
}

// ---- times ----

function times(item, details, received, clock) {
  const parts = details.timings ?? {};
  const number = details.generated_tokens ?? received;
  const rows = [
    ["queue", "Queue", parts.queue],
    ["encode", "Encode", parts.encode],
    ["first", "First token", parts.first_token],
    ["decode", "Then", parts.decode],
  ].filter(([, , value]) => value != null);
  const track = rows.filter(([, , value]) => value > 0);
  const whole = track.reduce((sum, [, , value]) => sum + value, 0);
  item.querySelector(".track").hidden = track.length === 0;
  item.querySelector(".track").replaceChildren(
    ...track.map(([part, , value]) => {
      const bar = element("i");
      bar.dataset.part = part;
      bar.style.flex = `${value / whole} 1 0`; // through the object model, which the policy of the page allows
      return bar;
    }),
  );
  const rate = parts.decode > 0 && number > 1 ? (number - 1) / parts.decode : null;
  const figures = rows.map(([part, name, value]) =>
    part === "decode" && rate ? figure(part, name, rate.toFixed(0), "tokens/s") : figure(part, name, ...split(value)),
  );
  if (parts.total != null) figures.push(figure(null, "Whole", ...split(parts.total)));
  item.querySelector(".times").hidden = figures.length === 0;
  item.querySelector(".times").replaceChildren(...figures);
  const first = clock.first === null ? "" : ` first token after ${seconds((clock.first - clock.start) / 1000)},`;
  const reason = { length: " Cut off at the most tokens.", deadline: " Cut off at the deadline." }[details.finish_reason] ?? "";
  const cached = details.cached ? " The encoder had it in its cache." : "";
  const seed = details.seed != null && item.querySelector(".how").textContent.includes("sampled") ? ` Seed ${details.seed}.` : "";
  item.querySelector(".seen").hidden = false;
  item.querySelector(".seen").textContent =
    `${counted(number)}. Seen from this page:${first} whole after ${seconds((clock.end - clock.start) / 1000)}.${cached}${reason}${seed}`;
}

function figure(part, name, value, unit) {
  const group = element("div");
  const title = element("dt");
  if (part) {
    title.append(element("i"));
    group.dataset.part = part;
  }
  title.append(name);
  const amount = element("dd", {}, value);
  amount.append(" ", element("small", {}, unit));
  group.append(title, amount);
  return group;
}

function split(time) {
  if (time >= 1) return [time.toFixed(2), "s"];
  return [(1000 * time).toFixed(time < 0.01 ? 1 : 0), "ms"];
}

const seconds = (time) => split(time).join("\u00a0");
const counted = (number) => `${number}\u00a0${number === 1 ? "token" : "tokens"}`;

// ---- mistakes ----

async function refusal(answer) {
  let text = "";
  try {
    const body = await answer.json();
    text = typeof body.error === "string" ? body.error : body.error?.message ?? body.detail?.[0]?.msg ?? body.detail ?? "";
  } catch {
    text = "";
  }
  const wait = answer.headers.get("Retry-After");
  const titles = {
    401: "This server asks for a key",
    403: "This key does not open this model",
    404: "This server has no such model",
    413: "The text is too long",
    422: "The server does not take this",
    429: "The server is busy",
    503: "The server is not ready",
    504: "It took too long",
  };
  const hints = { 401: "Write it under Settings, API key.", 429: `Try again in ${wait ?? 1}\u00a0s.`, 503: "Try again in a moment." };
  const said = String(text).trim().replace(/^(Input validation error|Request failed during generation): /, "");
  return {
    status: answer.status,
    title: titles[answer.status] ?? `The server failed (${answer.status})`,
    text: [said, hints[answer.status]].filter(Boolean).join(said.endsWith(".") ? " " : ". ") || "It gave no reason.",
  };
}

function lost(number) {
  const where = number ? `after ${counted(number)}` : "before the first token";
  return { title: "The connection broke", text: `The server went away ${where}. See whether it still runs, then try again.` };
}

// ---- small things ----

function element(tag, properties = {}, text = "") {
  const made = Object.assign(document.createElement(tag), properties);
  if (text) made.textContent = text;
  return made;
}

function say(text) {
  $("status").textContent = text;
}

function count() {
  const number = $("list").children.length;
  $("empty").hidden = number > 0;
  $("clear").hidden = number === 0;
}

const FIELDS = ["text", "max-tokens", "temperature", "top-p", "top-k", "seed", "beams", "choices", "regex", "json", "model"];

function snapshot() {
  return { fields: FIELDS.map((id) => $(id).value), search: picked("search"), constraint: picked("constraint") };
}

function restore(form) {
  FIELDS.forEach((id, at) => ($(id).value = form.fields[at]));
  pick("search", form.search);
  pick("constraint", form.constraint);
  show();
  describe();
  $("text").focus();
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    say("Copied.");
  } catch {
    select(button.closest("li").querySelector(".output")); // no clipboard without https: the next best
    button.textContent = "Selected";
    say("The answer is selected; copy it with Ctrl C.");
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function select(node) {
  const range = document.createRange();
  range.selectNodeContents(node);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
}

function example({ text, choices }) {
  $("text").value = text;
  const limit = choices && info.constraints.includes("choices");
  if (limit) $("choices").value = choices.join("\n");
  pick("constraint", limit ? "choices" : "none");
  show();
  $("text").focus();
}

$("examples").append(
  ...EXAMPLES.map((one) => {
    const chip = element("button", { type: "button", className: "chip" }, one.name);
    chip.addEventListener("click", () => example(one));
    return chip;
  }),
);
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
$("form").addEventListener("input", (event) => {
  event.target.removeAttribute("aria-invalid");
  brief();
});
$("search").addEventListener("change", show);
$("constraint").addEventListener("change", show);
$("model").addEventListener("change", describe);
$("key").addEventListener("change", learn);
$("stop").addEventListener("click", () => running?.abort());
$("shade").addEventListener("change", () => $("answers").classList.toggle("shaded", $("shade").checked));
$("clear").addEventListener("click", () => {
  running?.abort();
  $("list").replaceChildren();
  count();
  $("text").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) {
    event.preventDefault();
    running.abort();
  }
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    generate();
  }
});
if (/Mac|iPhone|iPad/.test(navigator.platform)) document.querySelector("kbd").textContent = "\u2318";
const narrow = matchMedia("(max-width: 900px)");
const arrange = () => ($("settings").open = !narrow.matches);
narrow.addEventListener("change", arrange);
arrange();
show();
learn();
$("text").focus();
