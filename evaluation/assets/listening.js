const STORE = "listening-" + PLAN.test;
const WORDS = { 1: "1 bad", 2: "2 poor", 3: "3 fair", 4: "4 good", 5: "5 excellent" };
const stage = document.getElementById("stage");
const state = load() || { ratings: {}, pairs: {}, order: shuffled(PLAN.items), pairOrder: shuffled(PLAN.pairs), at: 0 };

function load() {
  try { return JSON.parse(localStorage.getItem(STORE)); } catch { return null; }
}
function keep() {
  try { localStorage.setItem(STORE, JSON.stringify(state)); } catch { /* a page from a file may have no store */ }
}
function shuffled(list) {
  const out = [...list];
  for (let i = out.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [out[i], out[j]] = [out[j], out[i]];
  }
  return out;
}
function sound(name) { return document.getElementById("s" + name); }
function element(tag, text, kind) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
function button(label, act) {
  const made = element("button", label);
  made.addEventListener("click", act);
  return made;
}
function clear() {
  for (const audio of stage.querySelectorAll("audio")) {
    audio.pause();
    audio.home.append(audio);
  }
  stage.replaceChildren();
}
function show() {
  clear();
  const { order, pairOrder, at } = state;
  const progress = document.getElementById("progress");
  progress.max = order.length + pairOrder.length;
  progress.value = at;
  if (at < order.length) return showRating(order[at]);
  if (at < order.length + pairOrder.length) return showPair(pairOrder[at - order.length]);
  stage.append(element("p", "That was all. Save the answers, please.", "said"));
}
function place(name, title) {
  const home = sound(name);
  const audio = home.querySelector("audio");
  audio.home = home;
  if (title) stage.append(element("h3", title));
  stage.append(audio);
}
function showRating(name) {
  stage.append(element("p", "“" + sound(name).dataset.text + "”", "said"), element("p", "How does it sound?"));
  place(name);
  const choices = element("div", "", "choices");
  for (const score of [1, 2, 3, 4, 5]) choices.append(button(WORDS[score], () => rate(score)));
  stage.append(choices);
}
function showPair([a, b]) {
  stage.append(element("p", "“" + sound(a).dataset.text + "”", "said"), element("p", "Which sounds better?"));
  place(a, "A");
  place(b, "B");
  const choices = element("div", "", "choices");
  for (const [value, label] of [["a", "A"], ["b", "B"], ["=", "= no difference"]]) choices.append(button(label, () => choose(value)));
  stage.append(choices);
}
function rate(score) {
  state.ratings[state.order[state.at]] = score;
  step(1);
}
function choose(value) {
  state.pairs[state.pairOrder[state.at - state.order.length].join("-")] = value;
  step(1);
}
function step(by) {
  state.at = Math.max(0, Math.min(state.at + by, state.order.length + state.pairOrder.length));
  keep();
  show();
}
function unlessCut(error) {
  if (error.name !== "AbortError") throw error; // rated before it began: the player was taken away
}
document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
  const rating = state.at < state.order.length;
  const pair = !rating && state.at < state.order.length + state.pairOrder.length;
  if (event.key === " ") {
    event.preventDefault();
    const audios = [...stage.querySelectorAll("audio")];
    const playing = audios.findIndex((audio) => !audio.paused);
    audios.forEach((audio) => audio.pause());
    const next = audios[playing + 1];
    if (next) { next.currentTime = 0; next.play().catch(unlessCut); }
  } else if (event.key === "Backspace") step(-1);
  else if (rating && "12345".includes(event.key)) rate(Number(event.key));
  else if (pair && "ab=".includes(event.key.toLowerCase())) choose(event.key.toLowerCase());
});
document.getElementById("save").addEventListener("click", () => {
  const rater = document.getElementById("rater").value.trim() || "listener";
  const answers = { schema_version: PLAN.schema, test: PLAN.test, rater, ratings: state.ratings, pairs: state.pairs };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(answers, null, 2)], { type: "application/json" }));
  link.download = "answers-" + rater.replace(/[^\w-]+/g, "_") + ".json";
  link.click();
});
show();
