// Keeps a page up to date, and asks before what hurts. Without it everything can be read, and every button works.
"use strict";
(() => {
  const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? "";
  const skew = Date.parse(document.documentElement.dataset.now) - Date.now();
  const announcer = document.getElementById("announcer");
  const lost = document.getElementById("lost");
  const freshness = document.getElementById("freshness");

  // --- times

  const ago = (seconds) => {
    for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]])
      if (seconds >= size) return `${Math.floor(seconds / size)} ${unit} ago`;
    return seconds >= 5 ? `${Math.floor(seconds)} s ago` : "just now";
  };
  const took = (seconds) => {
    if (seconds < 60) return `${Math.floor(seconds)} s`;
    const minutes = Math.floor(seconds / 60);
    return minutes < 60 ? `${minutes} min ${String(Math.floor(seconds % 60)).padStart(2, "0")} s`
      : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  };
  const tick = () => {
    for (const each of document.querySelectorAll("time[data-ago], time[data-for]")) {
      const seconds = Math.max(0, (Date.now() + skew - Date.parse(each.dateTime)) / 1000);
      const text = "for" in each.dataset ? took(seconds) : ago(seconds);
      if (each.textContent !== text) each.textContent = text;
    }
  };

  // --- parts that have changed

  const said = (element) => [...element.querySelectorAll("[data-say]")].map((each) => each.dataset.say).join(". ");

  const shown = new Map();
  const replace = (html) => {
    const template = document.createElement("template");
    template.innerHTML = html;
    const fresh = template.content.firstElementChild;
    const old = fresh && document.getElementById(fresh.id);
    if (!old) return;
    if (shown.get(fresh.id) === html) return;
    shown.set(fresh.id, html);
    for (const field of fresh.querySelectorAll('input[name="csrf"]')) field.value = meta("csrf");
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    const open = [...old.querySelectorAll("details[open][id]")].map((each) => each.id);
    const scrolled = [...old.querySelectorAll("[id]")].filter((each) => each.scrollTop).map((each) => [each.id, each.scrollTop]);
    const words = said(fresh);
    if (words && words !== said(old)) announcer.textContent = words;
    old.replaceWith(fresh);
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    for (const [id, top] of scrolled) { const each = document.getElementById(id); if (each) each.scrollTop = top; }
    if (focused) (document.getElementById(focused) ?? document.getElementById("main")).focus({ preventScroll: true });
    tick();
  };

  // --- the log: what is added at its end, followed as long as its end is in view

  const MOST = 262144;
  const log = document.getElementById("log");
  const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const append = (piece) => {
    if (piece.end <= Number(log.dataset.end)) return;
    const follow = atEnd();
    if (piece.start > Number(log.dataset.end)) log.append("\n[… some of it is left out here …]\n");
    log.insertAdjacentHTML("beforeend", piece.html);
    log.dataset.end = piece.end;
    log.dataset.style = piece.style;
    for (let length = log.textContent.length; length > MOST && log.firstChild !== log.lastChild; ) {
      length -= log.firstChild.textContent.length;
      log.firstChild.remove();
    }
    if (follow) log.scrollTop = log.scrollHeight;
  };
  let fetching = false;
  let wanted = false;
  const more = async () => {
    wanted = true;
    if (!log || fetching) return;
    fetching = true;
    try {
      while (wanted) {
        wanted = false;
        const { more, end, style } = log.dataset;
        const answer = await fetch(`${more}?place=${end}&style=${encodeURIComponent(style)}`);
        if (answer.ok) append(await answer.json());
      }
    } catch { /* the connection is lost: the next event, or the next connection, asks again */ }
    fetching = false;
  };

  // --- the connection; the browser tries again by itself, unless the server has refused it

  let place = document.querySelector('meta[name="live"]')?.dataset.place ?? "";
  const renew = async () => {
    const answer = await fetch(location.pathname);
    if (answer.status === 401 || answer.status === 404) return location.reload();
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const each of fresh.querySelectorAll("[data-part]")) replace(each.outerHTML);
    more();
  };
  const listen = () => {
    const source = new EventSource(`/live?page=${encodeURIComponent(meta("live"))}&since=${encodeURIComponent(place)}`);
    source.onopen = () => { lost.hidden = true; freshness.textContent = "live"; more(); };
    source.onerror = () => {
      lost.hidden = false;
      freshness.textContent = "not up to date";
      if (source.readyState === EventSource.CLOSED) setTimeout(() => renew().catch(() => {}).then(listen), 3000);
    };
    const on = (name, act) => source.addEventListener(name, (event) => {
      place = event.lastEventId || place;
      act(JSON.parse(event.data));
    });
    on("parts", (parts) => parts.forEach(replace));
    on("log", more);
    on("reset", renew);
    addEventListener("pagehide", () => source.close(), { once: true });
  };
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

  // --- asking before what hurts

  const ask = (form, question) => {
    const dialog = document.createElement("dialog");
    const copy = document.createElement("form");
    const heading = document.createElement("h2");
    const actions = document.createElement("div");
    const no = document.createElement("button");
    const yes = document.createElement("button");
    heading.id = "question";
    heading.textContent = question;
    dialog.setAttribute("aria-labelledby", "question");
    copy.method = "post";
    copy.action = form.getAttribute("action");
    for (const [name, value] of [...new FormData(form), ["confirmed", "yes"]]) {
      const field = document.createElement("input");
      field.type = "hidden";
      field.name = name;
      field.value = value;
      copy.append(field);
    }
    no.type = "button";
    no.textContent = "No, go back";
    no.onclick = () => dialog.close();
    yes.className = "danger main";
    yes.textContent = "Yes, do it";
    actions.className = "actions";
    actions.append(no, yes);
    copy.append(actions);
    dialog.append(heading, copy);
    dialog.onclose = () => dialog.remove();
    document.body.append(dialog);
    dialog.showModal();
  };
  document.addEventListener("submit", (event) => {
    const question = event.target.dataset.confirm;
    if (!question) return;
    event.preventDefault();
    ask(event.target, question);
  });

  if (location.search.startsWith("?notice=")) history.replaceState(null, "", location.pathname);
  if (log) log.scrollTop = log.scrollHeight;
  tick();
  setInterval(tick, 1000);
  if (meta("live")) listen();
})();
