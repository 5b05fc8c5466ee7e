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
  const disables = asked.action === "disable";
  document.getElementById("for").hidden = !disables;
  box.querySelector("input[name=hours]").disabled = !disables;
  box.showModal();
});

if (box) {
  const form = box.querySelector("form");
  const go = form.querySelector(".go");
  form.querySelector(".cancel").addEventListener("click", () => box.close());
  box.addEventListener("close", () => form.reset()); // the token is not kept, not even here
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const said = { reason: form.elements.reason.value };
    if (asked.action === "disable") said.duration = Number(form.elements.hours.value) * 3600;
    put("problem", "");
    go.disabled = true;
    try {
      const answer = await fetch(`scanners/${asked.name}/${asked.action}`, {
        method: "POST",
        headers: { "Content-Type": "application/json", "Authorization": `Bearer ${form.elements.token.value}` },
        body: JSON.stringify(said),
      });
      if (!answer.ok) { put("problem", (await answer.json()).error.message); return; }
    } catch (error) {
      put("problem", `No answer: ${error.message}`);
      return;
    } finally {
      go.disabled = false;
    }
    box.close();
    refresh();
  });
}

async function refresh() {
  try {
    const answer = await fetch(location.pathname, { cache: "no-store" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const focused = document.activeElement?.dataset.scanner;
    for (const id of ["fleet", "headline"]) document.getElementById(id).replaceWith(fresh.getElementById(id));
    document.title = fresh.title;
    if (focused) document.querySelector(`button[data-scanner="${focused}"]`)?.focus();
  } catch (error) {
    const line = document.getElementById("headline");
    line.textContent = "No answer from the service; what follows is old.";
    line.className = "bad";
  }
}
setInterval(() => { if (!document.hidden) refresh(); }, 5000);
