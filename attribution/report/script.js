"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const byId = (id) => document.getElementById(id);
  const { steps, chart, facts } = JSON.parse(byId("data").textContent);
  const box = byId("curves");
  const area = box.querySelector(".area");
  const place = (value, low, high) => 100 * Math.min(1, Math.max(0, (value - low) / (high - low)));
  const atStep = (step) => place(step, chart.low, chart.high);
  let picked = null;
  let shown = facts;

  byId("theme").addEventListener("click", () => {
    const dark = getComputedStyle(root).colorScheme.trim() === "dark";
    root.dataset.theme = dark ? "light" : "dark";
  });

  const scale = () => box.querySelector("input[name=scale]:checked").value;
  const words = (value) => (value === null || value === undefined ? "–" : value.toFixed(2).replace("0.", ".").replace("-", "−"));

  const share = (value) => value.toFixed(3).replace(/^0\./, ".");

  function drawPicked() {
    const panel = chart.panels[scale()];
    let line = "";
    let pen = "M";
    const values = picked ? picked[scale()] : [];
    values.forEach((value, number) => {
      if (value === null) { pen = "M"; return; }
      line += `${pen}${atStep(steps[number])} ${100 - place(value, panel.low, panel.high)}`;
      pen = "L";
    });
    box.querySelector(".picked path").setAttribute("d", line);
    const name = box.querySelector(".picked-name");
    const last = values.findLast((value) => value !== null);
    name.textContent = last === undefined ? "" : `${picked.subject} ${words(last)}`;
    // A curve that starts high would run through a name set above it.
    const start = values.find((value) => value !== null) ?? panel.low;
    name.classList.toggle("below", place(start, panel.low, panel.high) > 70);
    const ticks = picked ? picked.seen.map((step) => `M${atStep(step)} 0V10`).join("") : "";
    box.querySelector(".lane path").setAttribute("d", ticks);
    box.classList.toggle("following", picked !== null);
    box.querySelectorAll("[data-line]").forEach((each) => {
      each.classList.toggle("on", picked !== null && Number(each.dataset.line) === picked.relation);
    });
  }

  function describe() {
    const out = byId("readout");
    out.replaceChildren();
    if (!picked) return;
    const answer = document.createElement("mark");
    answer.textContent = picked.target;
    const known = picked.prob.filter((value) => value !== null);
    const more = document.createElement("small");
    const times = picked.seen.length
      ? `; its ${picked.gold} gold passages were injected ${picked.seen.length} times in all, first at step ${picked.seen[0].toLocaleString("en")}`
      : "";
    more.textContent = known.length
      ? `Probability of the answer ${share(known[0])} → ${share(known[known.length - 1])}${times}.`
      : "This fact was not probed.";
    out.append(`${picked.prompt} `, answer, more);
  }

  function pick(fact) {
    picked = fact;
    byId("pick-fact").value = fact ? fact.id : "";
    drawPicked();
    describe();
  }

  function list(relation) {
    shown = relation === "" ? facts : facts.filter((fact) => fact.relation === Number(relation));
    const options = shown.map((fact) => {
      const name = chart.panels.prob.lines[fact.relation].name;
      return new Option(`${fact.subject}: ${relation === "" ? `${name}, ` : ""}${fact.target}`, fact.id);
    });
    byId("pick-fact").replaceChildren(new Option("none, means only", ""), ...options);
  }

  function move(by) {
    if (!shown.length) return;
    const at = picked ? shown.indexOf(picked) : -1;
    pick(shown[(at + by + shown.length) % shown.length]);
  }

  byId("pick-relation").addEventListener("change", (event) => { list(event.target.value); pick(shown[0] ?? null); });
  byId("pick-fact").addEventListener("change", (event) => pick(shown.find((fact) => fact.id === event.target.value) ?? null));
  byId("pick-back").addEventListener("click", () => move(-1));
  byId("pick-next").addEventListener("click", () => move(1));
  box.querySelectorAll("input[name=scale]").forEach((each) => each.addEventListener("change", drawPicked));

  function row(name, value, colour) {
    const line = document.createElement("div");
    if (colour !== undefined) line.className = `c${colour}`;
    const left = document.createElement("span");
    left.textContent = name;
    const right = document.createElement("b");
    right.textContent = value;
    line.append(left, right);
    return line;
  }

  area.addEventListener("pointermove", (event) => {
    const frame = area.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - frame.left) / frame.width));
    const step = chart.low + share * (chart.high - chart.low);
    let near = 0;
    steps.forEach((each, number) => { if (Math.abs(each - step) < Math.abs(steps[near] - step)) near = number; });
    const left = atStep(steps[near]);
    const cross = area.querySelector(".cross");
    const tip = area.querySelector(".tip");
    cross.style.left = `${left}%`;
    const lines = chart.panels[scale()].lines.map((line) => ({ name: line.name, value: line.values[near], colour: line.colour }));
    lines.sort((a, b) => b.value - a.value);
    tip.replaceChildren(row("step", steps[near].toLocaleString("en")), ...lines.map((line) => row(line.name, words(line.value), line.colour)));
    if (picked) tip.append(row("this fact", words(picked[scale()][near])));
    tip.style.left = left < 50 ? `calc(${left}% + 14px)` : "auto";
    tip.style.right = left < 50 ? "auto" : `calc(${100 - left}% + 14px)`;
    cross.hidden = false;
    tip.hidden = false;
  });
  area.addEventListener("pointerleave", () => {
    area.querySelector(".cross").hidden = true;
    area.querySelector(".tip").hidden = true;
  });

  list("");
  pick(facts[0] ?? null);
})();
