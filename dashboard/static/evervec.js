// What makes the pages live. Without it every button works as a plain form, and every page by reloading it.
"use strict";

// Server-sent events: each bears the name of a part of the page, and its HTML, which the server has escaped.
function live(root) {
  const area = root.querySelector("[data-events]");
  if (!area) return;
  const stream = new EventSource(area.dataset.events);
  for (const part of area.querySelectorAll("[data-live]")) {
    stream.addEventListener(part.dataset.live, (event) => swap(part, event.data));
  }
  stream.addEventListener("open", () => document.body.removeAttribute("data-away"));
  stream.addEventListener("error", () => document.body.setAttribute("data-away", ""));
  addEventListener("pagehide", () => stream.close(), { once: true });
  return stream;
}

// Put new HTML in place; whoever is at a link or a button there stays at it.
function swap(part, html) {
  const links = () => [...part.querySelectorAll("a, button, summary")];
  const at = links().indexOf(document.activeElement);
  part.innerHTML = html;
  if (at >= 0) links()[at]?.focus({ preventScroll: true });
}

// Parts that may take longer come after the page.
async function load(part) {
  part.setAttribute("aria-busy", "true");
  const answer = await fetch(part.dataset.load);
  if (answer.ok && !answer.redirected) part.innerHTML = await answer.text();
  part.removeAttribute("aria-busy");
}

// A form whose answer takes the place of the page's main part, without a reload: the focus goes to what was said.
async function send(form, button) {
  const fields = new URLSearchParams(new FormData(form, button));
  button?.setAttribute("disabled", "");
  let answer;
  try {
    answer = await fetch(form.action, { method: "POST", body: fields });
  } catch {
    button?.removeAttribute("disabled");
    return form.submit();
  }
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const main = page.querySelector("main");
  if (!main || answer.url.endsWith("/login")) return location.assign(answer.url);
  stream?.close();
  document.querySelector("main").replaceWith(main);
  document.title = page.title;
  if (answer.redirected) history.replaceState(null, "", answer.url);
  start();
  (main.querySelector("[role=status], [role=alert], h2") ?? main).scrollIntoView({ block: "nearest" });
  main.focus({ preventScroll: true });
}

let stream;
function start() {
  stream = live(document);
  document.querySelectorAll("[data-load]").forEach(load);
}

document.addEventListener("submit", (event) => {
  if (!event.target.hasAttribute("data-enhance")) return;
  event.preventDefault();
  send(event.target, event.submitter);
});
start();
