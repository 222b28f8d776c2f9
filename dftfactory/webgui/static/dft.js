// Figures, the reader's clock, and live refresh of our pages. Data stands in JSON blocks or comes from our own routes.
"use strict";

(() => {
  const EVERY = 3000; // milliseconds between two looks while something runs or waits
  const LONGEST = 30000; // between two tries while nobody answers
  const MOST_BALLS = 600; // atoms; more are drawn as markers, which cost less
  const NARROW = 520; // pixels of a figure; below, words are smaller and there are no buttons
  const CONFIG = {
    responsive: true,
    displaylogo: false,
    // plotly.js would offer to send the figure to its makers.
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["lasso2d", "select2d", "zoomIn2d", "zoomOut2d", "tableRotation", "resetCameraLastSave3d"],
  };

  const DARK = window.matchMedia("(prefers-color-scheme: dark)");
  const ON_DARK = { "#23844a": "#3da567", "#0c4123": "#2c8350", "#b3242b": "#e0575d" };

  const page = document.body;
  const shown = new Map(); // what each part and figure shows now, as text, to draw again only what is new
  let figures = read("figures") || {};

  function read(id) {
    const block = document.getElementById(id);
    return block && JSON.parse(block.textContent);
  }

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  // ---- figures

  // A ball around each atom: an octahedron whose faces are cut in four `times` times and pushed out to the sphere.
  function sphere(times) {
    let points = [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]];
    let faces = [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]];
    for (let turn = 0; turn < times; turn++) {
      const middles = new Map();
      const middle = (a, b) => {
        const key = a < b ? `${a} ${b}` : `${b} ${a}`;
        if (!middles.has(key)) {
          const sum = points[a].map((value, axis) => value + points[b][axis]);
          const length = Math.hypot(...sum);
          middles.set(key, points.push(sum.map((value) => value / length)) - 1);
        }
        return middles.get(key);
      };
      faces = faces.flatMap(([a, b, c]) => {
        const [ab, bc, ca] = [middle(a, b), middle(b, c), middle(c, a)];
        return [[a, ab, ca], [b, bc, ab], [c, ca, bc], [ab, bc, ca]];
      });
    }
    return { points, faces };
  }

  // Light from the left above, as part of the colours: plotly.js leaves meshes of small triangles in the dark.
  function shaded(hex, points) {
    const own = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    return points.map(([x, y, z]) => {
      const towards = 0.35 * x - 0.55 * y + 0.76 * z; // cosine to the light
      const dim = 0.78 + 0.22 * towards;
      const shine = 0.5 * Math.max(0, towards) ** 12;
      return `rgb(${own.map((value) => Math.round(value * dim * (1 - shine) + 255 * shine)).join(",")})`;
    });
  }

  function balls(trace, ball) {
    const colours = shaded(trace.marker.color, ball.points);
    const mesh = {
      type: "mesh3d", name: trace.name, legendgroup: trace.name, showlegend: false, hoverinfo: "text",
      lighting: { ambient: 1, diffuse: 0, specular: 0, fresnel: 0 },
      x: [], y: [], z: [], i: [], j: [], k: [], hovertext: [], vertexcolor: [],
    };
    trace.x.forEach((_, atom) => {
      const first = mesh.x.length;
      for (const point of ball.points) {
        mesh.x.push(trace.x[atom] + trace.meta.radius * point[0]);
        mesh.y.push(trace.y[atom] + trace.meta.radius * point[1]);
        mesh.z.push(trace.z[atom] + trace.meta.radius * point[2]);
        mesh.hovertext.push(trace.text[atom]);
      }
      mesh.vertexcolor.push(...colours);
      for (const face of ball.faces) {
        mesh.i.push(first + face[0]);
        mesh.j.push(first + face[1]);
        mesh.k.push(first + face[2]);
      }
    });
    // A mesh has no good sign in the legend: a marker that is nowhere lends it one.
    return [mesh, { ...trace, legendgroup: trace.name, x: [null], y: [null], z: [null], text: [] }];
  }

  function withBalls(traces) {
    const isAtoms = (trace) => trace.meta && trace.meta.radius;
    const atoms = traces.filter(isAtoms).reduce((sum, trace) => sum + trace.x.length, 0);
    if (atoms > MOST_BALLS) return traces;
    const ball = sphere(atoms <= 60 ? 3 : 2);
    return traces.flatMap((trace) => (isAtoms(trace) ? balls(trace, ball) : [trace]));
  }

  function isForce(trace) {
    return trace.legendgroup === "forces";
  }

  function draw(place) {
    const name = place.dataset.figure;
    if (!window.Plotly || !figures[name]) return;
    const { data, layout } = structuredClone(figures[name].figure);
    const ink = colour("--ink");
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    const isNarrow = place.clientWidth < NARROW;
    layout.font = { ...layout.font, color: ink, size: isNarrow ? 11 : 13 };
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: colour("--grey"), activecolor: colour("--link") };
    for (const axis of ["xaxis", "yaxis"]) {
      if (!layout[axis]) continue;
      Object.assign(layout[axis], { gridcolor: colour("--plot-grid"), linecolor: colour("--edge") });
      if (layout[axis].title) layout[axis].title.font = { size: isNarrow ? 11 : 13 };
    }
    let traces = data;
    if (layout.scene) {
      const wanted = document.querySelector("[data-show-forces]");
      traces = withBalls(data);
      traces.filter(isForce).forEach((trace) => { trace.visible = !wanted || wanted.checked; });
      document.querySelectorAll("[data-forces]").forEach((each) => { each.hidden = !traces.some(isForce); });
    } else {
      // Without it plotly.js would take back what the reader has zoomed to.
      layout.uirevision = "same";
      traces.forEach((trace) => {
        // The thresholds are drawn in ink, which on a dark page is white.
        if (trace.line && trace.line.dash === "dash") trace.line.color = ink;
        // The darkest levels would vanish there.
        for (const own of DARK.matches ? [trace.line, trace.marker] : []) {
          if (own && own.color in ON_DARK) own.color = ON_DARK[own.color];
        }
      });
    }
    delete layout.height;
    window.Plotly.react(place, traces, layout, { ...CONFIG, displayModeBar: isNarrow ? false : "hover" });
  }

  function drawAll() {
    document.querySelectorAll("[data-figure]").forEach(draw);
  }

  function renew(name, figure) {
    const text = JSON.stringify(figure);
    if (shown.get(`figure ${name}`) === text) return;
    shown.set(`figure ${name}`, text);
    figures[name] = figure;
    const place = document.querySelector(`[data-figure="${CSS.escape(name)}"]`);
    if (!place) return;
    const title = document.querySelector(`[data-title="${CSS.escape(name)}"]`);
    const note = document.querySelector(`[data-note="${CSS.escape(name)}"]`);
    if (title) {
      title.textContent = figure.title;
      place.setAttribute("aria-label", figure.note ? `${figure.title}. ${figure.note}` : figure.title);
    }
    if (note) {
      note.textContent = figure.note;
      note.hidden = !figure.note;
    }
    draw(place);
  }

  // ---- times on the reader's clock

  const two = (number) => String(number).padStart(2, "0");
  const clock = (time) => `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;

  function localTimes(root) {
    for (const each of root.querySelectorAll("time[datetime]")) {
      const time = new Date(each.dateTime);
      if (Number.isNaN(time.getTime())) continue;
      each.title = each.textContent;
      const day = `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}`;
      each.textContent = `${day} ${two(time.getHours())}:${two(time.getMinutes())}`;
    }
  }

  // ---- live refresh

  const mark = document.getElementById("updated");
  let isLive = page.dataset.live === "yes";
  let failed = 0;
  let timer = null;
  let last = new Date();

  function say(kind, words) {
    mark.className = `updated ${kind}`;
    mark.querySelector(".words").textContent = words;
  }

  function sayUpdated() {
    say(isLive ? "live" : "", `updated ${clock(last)}${isLive ? "" : ", nothing runs or waits"}`);
  }

  // New words in the old place; who has the keyboard in it keeps it, and a table that was scrolled stays so.
  function replace(part, html) {
    if (shown.get(part) === html) return;
    shown.set(part, html);
    const place = document.querySelector(`[data-part="${CSS.escape(part)}"]`);
    if (!place) return;
    const active = place.contains(document.activeElement) ? document.activeElement : null;
    const [address, region] = active ? [active.getAttribute("href"), active.getAttribute("role")] : [];
    const scrolled = [...place.querySelectorAll(".scroll")].map((each) => each.scrollLeft);
    place.innerHTML = html; // escaped by the server, as the page itself
    localTimes(place);
    place.querySelectorAll(".scroll").forEach((each, index) => { each.scrollLeft = scrolled[index] || 0; });
    const again = address
      ? place.querySelector(`a[href="${CSS.escape(address)}"]`)
      : region && place.querySelector(`[role="${CSS.escape(region)}"]`);
    if (again) again.focus({ preventScroll: true });
  }

  async function look() {
    timer = null;
    try {
      const answer = await fetch(page.dataset.api, { cache: "no-store", signal: AbortSignal.timeout(LONGEST) });
      if (!answer.ok) throw new Error(`${answer.status}`);
      const facts = await answer.json();
      // An overview that was empty when it was made has no places for its parts.
      if (Object.keys(facts.parts).some((part) => !document.querySelector(`[data-part="${CSS.escape(part)}"]`))) {
        window.location.reload();
        return;
      }
      Object.entries(facts.parts).forEach(([part, html]) => replace(part, html));
      Object.entries(facts.figures).forEach(([name, figure]) => renew(name, figure));
      failed = 0;
      isLive = facts.live;
      last = new Date();
      sayUpdated();
    } catch {
      failed += 1;
      say("lost", `no answer since ${clock(last)}; trying again`);
    }
    plan();
  }

  function plan() {
    clearTimeout(timer);
    timer = null;
    if (document.hidden || !page.dataset.api || !(isLive || failed)) return;
    timer = setTimeout(look, Math.min(LONGEST, EVERY * 2 ** Math.min(failed, 4)));
  }

  document.addEventListener("visibilitychange", () => {
    // Who comes back wants to see the present, also where nothing was going on.
    if (!document.hidden && page.dataset.api) look();
    else plan();
  });

  // ---- forms and switches

  document.querySelectorAll("form[data-sparse]").forEach((form) => {
    // So that the address has only what limits the table.
    form.addEventListener("submit", () => {
      for (const field of form.elements) if (field.name && !field.value) field.disabled = true;
    });
  });
  window.addEventListener("pageshow", () => {
    document.querySelectorAll("form[data-sparse] :disabled").forEach((field) => { field.disabled = false; });
  });
  document.addEventListener("change", (event) => {
    if (!event.target.matches("[data-show-forces]")) return;
    const place = document.querySelector(".plot.three");
    const chosen = place.data.flatMap((trace, index) => (isForce(trace) ? [index] : []));
    window.Plotly.restyle(place, { visible: event.target.checked }, chosen);
  });
  DARK.addEventListener("change", drawAll);

  for (const [name, figure] of Object.entries(figures)) shown.set(`figure ${name}`, JSON.stringify(figure));
  localTimes(document);
  drawAll();
  if (page.dataset.api) sayUpdated();
  plan();
})();
