"use strict";
// The page is complete without this script. It refreshes what has changed, and only that; it sends orders.
const $ = (id) => document.getElementById(id);
const root = document.body.dataset.root;
const box = $("change"), find = $("find");
const NOTES = {
  disable: "Its scans end disabled until the time is up, whatever alerts say.",
  enable: "It is back at once. Alerts cannot take it out again until the time is up.",
  reset: "Closes its breaker and forgets the failures.",
  "reset provider": "Closes the breaker that its scanners share, and ends a pause that it asked for. They call it at once.",
  forget: "Drops its cached answers: the next scan asks the source.",
  probe: "Its next scan is a probe, as if the cool-off had passed.",
  run: "Runs this scanner alone, after the run under way. A fresh cached answer counts: forget it first to ask the source.",
};
document.documentElement.classList.add("js");

// Times: the server writes UTC, people read their own.
const local = new Intl.DateTimeFormat("sv-SE", { dateStyle: "short", timeStyle: "medium" });
function localize(part) {
  for (const time of part.querySelectorAll("time")) {
    const at = local.format(new Date(time.dateTime));
    if (time.className) time.title = `${at}, ${time.title}`;
    else { time.title = time.textContent; time.textContent = at; }
  }
  const zone = part.querySelector("#zone");
  if (zone) zone.textContent = Intl.DateTimeFormat().resolvedOptions().timeZone;
}

// Refreshing: an element that is equal is left alone, so selected text, focus and open details stay as they are.
const KEEP = "td, th, dd, li, p, pre, summary";
function selected(node) {
  const selection = getSelection();
  return !selection.isCollapsed && selection.containsNode(node, true);
}
function same(one, other) { // a button never changes its meaning while somebody is about to press it
  return one.nodeName === other.nodeName && (one.id || "") === (other.id || "") && one.dataset?.action === other.dataset?.action;
}
function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== Node.ELEMENT_NODE) { old.data = fresh.data; return; }
  if (old.matches(KEEP) && selected(old)) return; // later, when nothing in it is selected
  for (const { name, value } of [...fresh.attributes]) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  if (old.nodeName === "TBODY") { // the blanks between rows must not make a row move, which would drop what is selected in it
    for (const blank of [...old.childNodes, ...fresh.childNodes]) if (blank.nodeType === Node.TEXT_NODE) blank.remove();
  }
  const known = new Map([...old.children].filter((each) => each.id).map((each) => [each.id, each]));
  let next = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    let match = child.id ? known.get(child.id) : next;
    if (match && !same(match, child)) match = null;
    if (!match) { old.insertBefore(document.importNode(child, true), next); continue; }
    if (match !== next) old.insertBefore(match, next);
    morph(match, child);
    next = match.nextSibling;
  }
  while (next) { const after = next.nextSibling; next.remove(); next = after; }
}
let moved = 0;
document.addEventListener("pointermove", () => { moved = Date.now(); });
function stay(fresh) { // while somebody is at a row, none moves: a click must not land on another one
  for (const table of ["#fleet", "#providers"]) settle(document.querySelector(`${table} tbody`), fresh.querySelector(`${table} tbody`));
}
function settle(rows, coming) {
  if (!rows || !coming || !((rows.matches(":hover") && Date.now() - moved < 15000) || rows.contains(document.activeElement) || selected(rows))) return;
  const place = new Map([...rows.children].map((row, index) => [row.id, index]));
  const at = (row) => place.get(row.id) ?? Infinity;
  coming.append(...[...coming.children].sort((one, other) => (at(one) > at(other)) - (at(one) < at(other))));
}
let turn = 0;
async function refresh() {
  const mine = ++turn;
  try {
    const answer = await fetch(location.href, { cache: "no-store" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (mine !== turn || box?.open) return;
    localize(fresh);
    stay(fresh);
    const focused = document.activeElement;
    for (const id of ["live", "headline"]) morph($(id), fresh.getElementById(id));
    const near = focused.isConnected ? focused : focused.dataset.scanner && document.querySelector(`button[data-scanner="${focused.dataset.scanner}"]`);
    if (near && document.activeElement !== focused) near.focus({ preventScroll: true });
    document.title = fresh.title;
  } catch (error) {
    if (mine !== turn) return;
    $("headline").textContent = "No answer from the service; what follows is old.";
    $("headline").className = "bad";
  }
}
setInterval(() => { if (!document.hidden && !box?.open) refresh(); }, 5000);
document.addEventListener("visibilitychange", () => { if (!document.hidden && !box?.open) refresh(); });

// Finding: the address says what is shown, so that it survives a reload and can be sent to a colleague.
if (find) {
  let soon;
  const seek = () => {
    const said = [...new FormData(find)].filter(([name, value]) => value && value !== find.elements[name].options?.[0].value);
    const query = new URLSearchParams(said).toString();
    history.replaceState(null, "", query ? `?${query}` : location.pathname);
    refresh();
  };
  find.addEventListener("submit", (event) => { event.preventDefault(); seek(); });
  find.addEventListener("input", () => { clearTimeout(soon); soon = setTimeout(seek, 150); });
}

// Orders
let asked = null;
document.addEventListener("click", (event) => {
  const copy = event.target.closest("button.copy");
  if (copy) {
    getSelection().selectAllChildren($(copy.dataset.of));
    navigator.clipboard?.writeText($(copy.dataset.of).textContent).then(() => { $("said").textContent = "Copied."; }, () => {});
  }
  const button = event.target.closest("button[data-scanner], button[data-provider]");
  if (!button || !box) return;
  const { scanner, provider, action } = button.dataset, label = button.textContent;
  asked = provider
    ? { name: decodeURIComponent(provider), action, label, path: `providers/${provider}` }
    : { name: scanner, action, label, path: `scanners/${scanner}` };
  $("what").textContent = `${label} ${asked.name}`;
  $("note").textContent = NOTES[label] || NOTES[action];
  $("problem").textContent = $("said").textContent = "";
  const lasts = asked.action === "disable" || asked.action === "enable";
  $("for").hidden = !lasts;
  box.querySelector("[name=hours]").disabled = !lasts;
  try { box.querySelector("[name=who]").value ||= localStorage.getItem("resilient-scan-who") || ""; } catch { /* not allowed */ }
  box.showModal();
});
if (box) {
  const form = box.querySelector("form"), field = form.elements;
  const go = form.querySelector(".go");
  const leave = () => { form.reset(); box.close(); }; // the token is not kept, not even here
  form.querySelector(".cancel").addEventListener("click", leave);
  box.addEventListener("close", () => { if (!box.open) { form.reset(); refresh(); } }); // a little later, and after Escape too
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const said = { reason: field.reason.value }, who = field.who.value.trim().replaceAll(":", "_");
    const credentials = btoa(String.fromCharCode(...new TextEncoder().encode(`${who}:${field.token.value}`)));
    if (!field.hours.disabled) said.duration = Number(field.hours.value) * 3600;
    $("problem").textContent = "";
    go.disabled = true;
    try {
      const answer = await fetch(`${root}${asked.path}/${asked.action}`, {
        method: "POST",
        headers: { "Content-Type": "application/json", "Authorization": `Basic ${credentials}` },
        body: JSON.stringify(said),
      });
      if (!answer.ok) { $("problem").textContent = (await answer.json()).error.message; return; }
    } catch (error) {
      $("problem").textContent = `No answer: ${error.message}`;
      return;
    } finally {
      go.disabled = false;
    }
    try { localStorage.setItem("resilient-scan-who", who); } catch { /* not allowed */ }
    $("said").textContent = asked.action === "run" ? `${asked.name} will run; how that ends appears here.` : `Done: ${asked.label} ${asked.name}.`;
    leave();
  });
}
localize(document);
