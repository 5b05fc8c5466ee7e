"use strict";
const box = document.getElementById("change");
const put = (id, text) => { document.getElementById(id).textContent = text; };
let asked = null;

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-scanner]");
  if (!button) return;
  asked = { name: button.dataset.scanner, action: button.dataset.action };
  put("what", `${asked.action} ${asked.name}`);
  put("problem", "");
  document.getElementById("for").hidden = asked.action !== "disable";
  box.showModal();
});

if (box) box.querySelector("form").addEventListener("submit", async (event) => {
  if (event.submitter.value === "cancel") return;
  event.preventDefault();
  const form = event.target.elements;
  const said = { reason: form.reason.value };
  if (asked.action === "disable") said.duration = Number(form.hours.value) * 3600;
  try {
    const answer = await fetch(`scanners/${asked.name}/${asked.action}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "Authorization": `Bearer ${form.token.value}` },
      body: JSON.stringify(said),
    });
    if (!answer.ok) { put("problem", (await answer.json()).error.message); return; }
  } catch (error) { put("problem", `No answer: ${error.message}`); return; }
  event.target.reset();
  box.close();
  refresh();
});

async function refresh() {
  try {
    const text = await (await fetch(".", { cache: "no-store" })).text();
    const fresh = new DOMParser().parseFromString(text, "text/html");
    document.getElementById("fleet").replaceWith(fresh.getElementById("fleet"));
    document.getElementById("headline").replaceWith(fresh.getElementById("headline"));
    document.title = fresh.title;
  } catch (error) {
    const line = document.getElementById("headline");
    line.textContent = "No answer from the service; what follows is old.";
    line.className = "bad";
  }
}
setInterval(() => { if (!document.hidden) refresh(); }, 5000);
