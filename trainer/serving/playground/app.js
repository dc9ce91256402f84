/** The page: what is asked, what comes, and what is shown of it. */

import { answer, models } from "./api.js";
import { Figures, counted } from "./figures.js";
import { Passage, MOST_ENTROPY, made } from "./passage.js";
import { Readout } from "./readout.js";
import { faulty, offerTheta, request, resetTheta, set, theta, tie } from "./settings.js";
import { hasEntropies, hasLine, hasPatches, hasTheta } from "./settings.js";

const at = (id) => document.getElementById(id);
const MOST_A_FRAME = 2000; // bytes shown at once, so that a long prompt does not hold up the page
const ROLES = ["user", "assistant", "end"];

let served = []; // as /v1/models has them
let writing = null; // the AbortController of the request under way
let messages = []; // of the chat so far
const readout = new Readout(at("pane"), at("readout"));

const model = () => served.find(({ id }) => id === at("model").value);
const chats = () => document.querySelector("[name=view]:checked").value === "chat";
const knowsChats = ({ specials }) => ROLES.every((role) => specials.includes(role));

// ---- What the page can ask for.

async function connect() {
  tell("Connecting");
  try {
    served = await models(at("key").value);
  } catch (error) {
    fail(error);
    return;
  }
  at("model").replaceChildren(...served.map(({ id }) => new Option(id)));
  at("model").disabled = served.length < 2;
  at("write").disabled = false;
  tell("Ready");
  chosen();
}

/** Another model: another threshold, and maybe no chats. */
function chosen() {
  offerTheta(model());
  const able = knowsChats(model());
  const [text, chat] = document.querySelectorAll("[name=view]");
  chat.disabled = !able;
  at("views").hidden = !served.some(knowsChats);
  at("no-chat").hidden = able || at("views").hidden;
  if (!able) text.checked = true;
  at("legend-patches").hidden = !hasPatches(model());
  at("legend-entropy").hidden = !hasEntropies(model());
  at("legend-theta").hidden = !hasLine(model());
  for (const figure of document.querySelectorAll(".of-patches")) figure.hidden = !hasPatches(model());
  at("pane").classList.toggle("barred", hasEntropies(model()));
  drawTheta();
  turned();
}

/** Another view: it begins empty. */
function turned() {
  clear();
  at("system-field").hidden = !(chats() && model().specials.includes("system"));
  at("echo-field").hidden = chats();
  at("prompt-label").textContent = chats() ? "Message" : "Prompt";
  at("prompt").placeholder = chats() ? "A message" : "A beginning, or nothing";
  at("invitation").textContent = chats()
    ? "Say something, and the model answers here, byte by byte."
    : "What the model writes appears here, byte by byte.";
}

function drawTheta() {
  const changed = hasTheta(model()) && theta(model()) !== model().patching.theta;
  at("theta-default").classList.toggle("idle", !changed);
  at("pane").classList.toggle("lined", hasLine(model()));
  if (!hasLine(model())) return;
  at("theta-shown").textContent = `theta, ${theta(model()).toFixed(2)} nats`;
  at("pane").style.setProperty("--theta-at", Math.min(theta(model()) / MOST_ENTROPY, 1).toFixed(4));
}

// ---- Writing.

async function write() {
  const wrong = faulty();
  if (wrong !== null) {
    if (!at("settings").checkVisibility()) at("settings").showPopover();
    wrong.reportValidity();
    return;
  }
  const chat = chats();
  const given = at("prompt").value;
  if (chat && !given) {
    at("prompt").focus();
    return;
  }
  const asked = request(model());
  if (!chat) clear();
  const passage = begin(chat, given, !chat && at("echo").checked);
  const figures = new Figures(hasPatches(model()));
  const own = (writing = new AbortController());
  working(true);
  tell("Writing");
  const body = chat
    ? { ...asked, logprobs: true, messages: [...messages, { role: "user", content: given }] }
    : { ...asked, logprobs: 0, prompt: given, echo: at("echo").checked };
  if (chat && !at("system-field").hidden && at("system").value) {
    body.messages.unshift({ role: "system", content: at("system").value });
  }
  const queue = [];
  const shown = showing(queue, passage, figures);
  let text = "";
  let reason = null;
  let usage = null;
  let rates = null;
  let failure = null;
  try {
    const path = chat ? "v1/chat/completions" : "v1/completions";
    for await (const event of answer(path, body, at("key").value, own.signal)) {
      usage = event.usage ?? usage;
      rates = event.rates ?? rates;
      for (const choice of event.choices) {
        reason = choice.finish_reason ?? reason;
        text += choice.text ?? choice.delta.content ?? "";
        if (!choice.details) continue; // the opening of a chat has none
        figures.count(choice.details);
        for (const detail of choice.details) queue.push(detail);
      }
    }
  } catch (error) {
    failure = error;
  }
  queue.ended = true;
  await shown;
  passage.end();
  if (writing !== own) return; // all of it has been cleared away
  const nothing = failure !== null && !passage.element.querySelector(".c");
  if (!nothing) figures.end(usage, rates);
  if (chat) keep(given, text, reason !== null || figures.written > 0);
  working(false);
  writing = null;
  if (nothing && !chat) clear();
  const size = counted(figures.written, "byte");
  if (own.signal.aborted) tell(`Stopped after ${size}`);
  else if (failure !== null) fail(failure);
  else tell(`${size}, ${reason === "length" ? "as long as asked for" : asked.stop ? "ended or stopped" : "ended by itself"}`);
}

/** Where an answer will be shown, and above it what it answers. */
function begin(chat, given, echoed) {
  at("empty").hidden = true;
  const passage = new Passage();
  if (chat) {
    at("pane").append(turn("user", given));
    at("pane").append(turn("assistant", passage.element));
    at("prompt").value = "";
  } else {
    if (given && !echoed) {
      const plain = made("div", "plain");
      plain.textContent = given;
      at("pane").append(plain);
    }
    at("pane").append(passage.element);
  }
  passage.append([]);
  follow();
  return passage;
}

function turn(role, content) {
  const found = made("section", `turn ${role}`);
  const name = made("h2", "");
  name.textContent = role === "user" ? "You" : "Model";
  const said = made("div", "said");
  said.append(content);
  found.append(name, said);
  return found;
}

/** The chat so far; a message that was never answered goes back into its field. */
function keep(given, text, answered) {
  if (answered) {
    messages.push({ role: "user", content: given }, { role: "assistant", content: text });
    return;
  }
  for (const unanswered of [...document.querySelectorAll(".turn")].slice(-2)) unanswered.remove();
  at("empty").hidden = messages.length > 0;
  at("prompt").value ||= given;
}

/** Show what comes, once a frame; done when the last of it is there. */
function showing(queue, passage, figures) {
  return new Promise((done) => {
    const frame = (now) => {
      if (queue.length) {
        const stays = atEnd();
        passage.append(queue.splice(0, MOST_A_FRAME));
        if (stays) follow();
      }
      if (passage.element.isConnected) figures.show(now);
      if (queue.ended && !queue.length) done();
      else requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  });
}

// Whoever has scrolled up to read stays there.
const atEnd = () => innerHeight + scrollY >= document.documentElement.scrollHeight - 8;
const follow = () => scrollTo(0, document.documentElement.scrollHeight);

function clear() {
  if (writing) {
    writing.abort();
    writing = null;
    working(false);
    tell("Stopped");
  }
  messages = [];
  readout.clear();
  at("pane").replaceChildren(at("empty"));
  at("empty").hidden = false;
}

function working(does) {
  at("write").textContent = does ? "Stop" : "Write";
  at("write").classList.toggle("stops", does);
}

function tell(words) {
  at("status").textContent = words;
  at("error").textContent = "";
}

function fail(error) {
  tell("");
  at("error").textContent = error.message;
  if (error.status !== 401) return;
  at("key-field").hidden = false;
  if (!at("settings").checkVisibility()) at("settings").showPopover();
  at("key").focus();
}

// ---- What a person does.

tie((name) => {
  if (name === "theta" && served.length) drawTheta();
});
at("dock").addEventListener("submit", (event) => {
  event.preventDefault();
  if (writing) writing.abort();
  else write();
});
at("clear").addEventListener("click", () => {
  clear();
  at("prompt").focus();
});
at("seed").addEventListener("input", () => (at("reseed").checked = false));
at("seed-slider").addEventListener("input", () => (at("reseed").checked = false));
at("theta-default").addEventListener("click", () => {
  resetTheta(model());
  drawTheta();
});
at("pane").addEventListener("copy", (event) => {
  const chosen = getSelection().getRangeAt(0);
  const inside = chosen.commonAncestorContainer;
  if (!(inside instanceof Element ? inside : inside.parentElement).closest(".passage")) return;
  // Long lines are several blocks, between which a browser would put an end of line.
  event.clipboardData.setData("text/plain", chosen.cloneContents().textContent);
  event.preventDefault();
});
at("model").addEventListener("change", chosen);
at("views").addEventListener("change", turned);
at("key").addEventListener("change", connect);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!writing && !at("write").disabled) write();
  }
  if (event.key === "Escape" && !at("settings").matches(":popover-open")) writing?.abort();
});
connect();
