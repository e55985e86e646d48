"use strict";
// Small comforts over pages that work without: filters that follow typing, questions on their way, keys, themes.
// Pages are fetched from the server that escaped them, and parsed as documents, never as strings put into this one.
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const byId = (id) => document.getElementById(id);
  const all = (selector) => [...document.querySelectorAll(selector)];
  let timer = 0;
  let typing = null;
  let job = "";

  try {
    const kept = localStorage.getItem("headwater-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch { /* no storage: the system's own theme */ }

  function flip() {
    const dark = getComputedStyle(root).colorScheme.trim() === "dark";
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("headwater-theme", root.dataset.theme); } catch { /* not kept */ }
  }

  function say(words) { byId("said").textContent = words; }

  // Another page's content in place of this one's, without losing the place of the cursor.
  async function swap(address, id, push) {
    const response = await fetch(address, { headers: { Accept: "text/html" } });
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const fresh = page.getElementById(id);
    if (!fresh) {
      if (id !== "content") return swap(address, "content", push);
      location.assign(address);
      return undefined;
    }
    byId(id).replaceWith(document.adoptNode(fresh));
    const foot = page.querySelector(".foot");
    if (foot) document.querySelector(".foot").replaceWith(document.adoptNode(foot));
    document.title = page.title;
    if (push) history.replaceState(null, "", address);
    arrive();
    return fresh;
  }

  // Filters

  function addressOf(form) {
    const params = new URLSearchParams();
    for (const [name, value] of new FormData(form)) if (value !== "") params.set(name, value);
    const query = params.toString();
    return new URL(form.action).pathname + (query ? `?${query}` : "");
  }

  async function follow(form) {
    const address = addressOf(form);
    typing?.abort();
    const own = typing = new AbortController();
    try {
      const response = await fetch(address, { signal: own.signal });
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      const fresh = page.getElementById("listing");
      const field = form.querySelector("[data-live]");
      const trouble = page.querySelector(".trouble pre");
      field.setAttribute("aria-invalid", String(!fresh));
      if (!fresh) {
        say(trouble ? trouble.textContent : "That cannot be shown.");
        field.title = trouble ? trouble.textContent : "";
        return;
      }
      field.title = "";
      byId("listing").replaceWith(document.adoptNode(fresh));
      document.querySelector(".foot").replaceWith(document.adoptNode(page.querySelector(".foot")));
      document.title = page.title;
      history.replaceState(null, "", address);
      say(page.querySelector("#listing .figure, #listing .lead")?.textContent ?? "");
    } catch (error) {
      if (error.name !== "AbortError") say("The explorer does not answer.");
    }
  }

  document.addEventListener("input", (event) => {
    if (!event.target.matches?.("[data-live]")) return;
    clearTimeout(timer);
    timer = setTimeout(() => follow(event.target.form), 160);
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches?.(".controls select")) event.target.form.requestSubmit();
  });
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.matches("[role=search], .controls") && form.method === "get") {
      event.preventDefault();
      const params = new URLSearchParams(addressOf(form).split("?")[1] ?? "");
      if (event.submitter?.hasAttribute("data-random")) {
        params.set("sort", "random");
        params.set("seed", String(1 + Math.floor(Math.random() * 999999)));
      }
      const query = params.toString();
      location.assign(new URL(form.action).pathname + (query ? `?${query}` : ""));
    }
  });

  // Questions on their way

  const post = (address, fields) => fetch(address, { method: "POST", body: new URLSearchParams(fields) });

  function leave() {
    if (job) navigator.sendBeacon(`/jobs/${job}/leave`);
    job = "";
  }

  async function look(id, show, done) {
    job = id;
    while (job === id) {
      let status;
      try {
        const response = await fetch(`/jobs/${id}`);
        status = await response.json();
      } catch {
        status = { state: "failed", error: "The explorer does not answer." };
      }
      if (job !== id) return;
      if (["done", "failed", "dropped"].includes(status.state)) {
        job = "";
        done(status);
        return;
      }
      show(status);
      await new Promise((resume) => setTimeout(resume, 220));
    }
  }

  function wayOf(place) {
    const words = document.createElement("p");
    words.className = "words";
    const bar = document.createElement("progress");
    bar.max = 100;
    bar.setAttribute("aria-label", "Progress");
    place.replaceChildren(words, bar);
    return (status) => {
      if (words.textContent !== status.words) words.textContent = status.words;
      if (status.share) bar.value = status.share;
    };
  }

  function fail(place, message) {
    const words = document.createElement("p");
    words.setAttribute("role", "alert");
    words.textContent = message;
    place.replaceChildren(words);
  }

  async function travel(way) {
    let id = way.dataset.job;
    const show = wayOf(way);
    if (!id) {
      const params = new URLSearchParams(location.search);
      const fields = { kind: way.dataset.kind };
      for (const name of ["prompt", "target", "against", "index"]) fields[name] = params.get(name) ?? "";
      const response = await post("/jobs", fields);
      const status = await response.json();
      if (status.error && !status.id) return fail(way, status.error);
      id = status.id;
      show(status);
    }
    look(id, show, async (status) => {
      if (status.state === "dropped") return fail(way, "This question was dropped.");
      await swap(location.href, "content", false);
      const result = byId("result") ?? document.querySelector(".goes");
      say(result ? "Answered." : status.error ?? "");
      result?.scrollIntoView({ block: "start", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    });
    return undefined;
  }

  async function heat(button) {
    const place = byId("heat-place");
    button.disabled = true;
    place.className = "way";
    const show = wayOf(place);
    const response = await post("/jobs", { kind: "tokens", ...button.dataset });
    const status = await response.json();
    if (!status.id) return fail(place, status.error);
    look(status.id, show, (finished) => {
      if (finished.state !== "done" || !finished.heat) return fail(place, finished.error || "The tokens could not be scored.");
      const text = document.createElement("p");
      text.className = "page-text heat";
      text.dir = "auto";
      for (const piece of finished.heat) {
        const span = document.createElement("span");
        span.className = piece.kind;
        span.title = piece.score;
        span.textContent = piece.text;
        text.append(span);
      }
      const legend = document.createElement("p");
      legend.className = "heat-legend";
      const end = (words) => { const span = document.createElement("span"); span.textContent = words; return span; };
      const patch = (kind) => { const each = document.createElement("i"); each.className = kind; return each; };
      const kinds = ["n5", "n4", "n3", "n2", "n1", "z", "p1", "p2", "p3", "p4", "p5"];
      legend.append(end("speaks against"), ...kinds.map(patch), end("speaks for the answer"));
      place.className = "heated";
      place.replaceChildren(text, legend);
      button.remove();
      say("Its tokens are scored.");
      return undefined;
    });
    return undefined;
  }

  addEventListener("pagehide", leave);

  // Keys

  const rows = () => all("[data-row]");
  const linkOf = (row) => (row.matches("a") ? row : row.querySelector("a"));

  function mark(by) {
    const list = rows();
    if (!list.length) return;
    const at = list.findIndex((row) => row.classList.contains("marked"));
    list.forEach((row) => row.classList.remove("marked"));
    const next = list[Math.min(list.length - 1, Math.max(0, at + by))];
    next.classList.add("marked");
    linkOf(next).focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
  }

  const keys = {
    "/": () => document.querySelector("[data-live], .ask textarea")?.focus(),
    j: () => mark(1),
    k: () => mark(-1),
    ArrowLeft: () => document.querySelector("a[rel=prev]")?.click(),
    ArrowRight: () => document.querySelector("a[rel=next]")?.click(),
    r: () => (document.querySelector("[data-random]") ? document.querySelector("[data-random]").click() : location.assign("/browse?sort=random&seed=" + (1 + Math.floor(Math.random() * 999999)))),
    d: flip,
    "?": () => byId("keys").showModal(),
  };

  document.addEventListener("keydown", (event) => {
    const busy = event.target.closest?.("input, textarea, select, dialog[open]");
    if (event.key === "Escape" && event.target.matches?.("input, textarea")) event.target.blur();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.matches?.(".ask textarea, .ask input")) event.target.form.requestSubmit();
    if (busy || event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    if (document.body.dataset.files !== undefined && event.key === "r") return;
    event.preventDefault();
    keys[event.key]();
  });

  document.addEventListener("click", async (event) => {
    const copy = event.target.closest("[data-copy]");
    if (copy) {
      try {
        await navigator.clipboard.writeText(copy.dataset.copy);
        say("Copied.");
        copy.textContent = "Copied";
      } catch {
        copy.textContent = "Copying is not allowed here";
      }
      setTimeout(() => { copy.textContent = "Copy citation"; }, 1800);
    }
    if (event.target.closest("#theme")) flip();
    if (event.target.closest("#keys-open")) byId("keys").showModal();
    const button = event.target.closest("#heat");
    if (button) heat(button);
  });

  function arrive() {
    const way = byId("way");
    if (way && !way.dataset.going) {
      way.dataset.going = "yes";
      travel(way);
    }
  }

  document.addEventListener("DOMContentLoaded", arrive);
})();
