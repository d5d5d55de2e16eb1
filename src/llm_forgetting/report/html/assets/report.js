"use strict";
(() => {
  // `solid` is the ink of three-dimensional plots, which are printed as they stand on the screen: also to be read on white.
  const palettes = {
    light: {
      ink: "#1b1f24", solid: "#1b1f24", quiet: "#59616b", grid: "#e3e6ea", mesh: "#b9c0c8", ground: "#ffffff",
      line: ["#0072B2", "#D55E00", "#009E73", "#B2599A", "#B07A00", "#2C8FC9"],
    },
    dark: {
      ink: "#e7e9ec", solid: "#8c96a1", quiet: "#a7b0ba", grid: "#333b44", mesh: "#56606b", ground: "#15181c",
      line: ["#6BB8EA", "#F2935A", "#45C79F", "#E0A0CB", "#E9BE52", "#9AD4F5"],
    },
  };
  const START = { eye: { x: 1.15, y: -1.38, z: 0.85 }, center: { x: 0, y: 0, z: -0.17 }, up: { x: 0, y: 0, z: 1 } };
  // Few buttons, named one by one: plotly's own list has one that sends the data away.
  const config = (solid) => ({
    scrollZoom: false, displaylogo: false, responsive: true, showTips: false, plotlyServerURL: "", showSendToCloud: false, showEditInChartStudio: false,
    modeBarButtons: [solid ? ["toImage"] : ["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  });
  const root = document.documentElement;
  const preference = window.matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const plots = [...document.querySelectorAll(".plot")];
  const cameras = {};
  const drawn = new Set();
  let theme = preference.matches ? "dark" : "light";

  // "@ink", "@line0" and "@line0/0.25" (with its opacity) are colours of the palette.
  function colour(token, palette) {
    const [name, opacity] = token.slice(1).split("/");
    const index = /^line(\d+)$/.exec(name);
    const found = index ? palette.line[index[1] % palette.line.length] : palette[name];
    return opacity ? found + Math.round(255 * opacity).toString(16).padStart(2, "0") : found;
  }

  function paint(node, palette) {
    if (typeof node === "string") return node.startsWith("@") ? colour(node, palette) : node;
    if (Array.isArray(node)) return typeof node[0] === "number" ? node : node.map((entry) => paint(entry, palette));
    if (node && typeof node === "object") {
      return Object.fromEntries(Object.entries(node).map(([key, entry]) => [key, paint(entry, palette)]));
    }
    return node;
  }

  function template(palette) {
    const flat = {
      gridcolor: palette.grid, zerolinecolor: palette.grid, linecolor: palette.quiet, tickcolor: palette.quiet,
      ticks: "outside", ticklen: 4, automargin: true, title: { standoff: 8 },
    };
    const deep = { gridcolor: palette.mesh, zerolinecolor: palette.mesh, linecolor: palette.quiet, color: palette.solid, showbackground: false };
    return {
      layout: {
        font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: palette.ink },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        xaxis: flat, yaxis: flat, scene: { xaxis: deep, yaxis: deep, zaxis: deep },
        legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
        hoverlabel: { bgcolor: palette.ground, bordercolor: palette.quiet, font: { color: palette.ink } },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: palette.quiet, activecolor: palette.ink },
      },
    };
  }

  const specs = new Map(plots.map((plot) => [plot, JSON.parse(plot.parentElement.querySelector("script").textContent)]));
  const alike = document.getElementById("alike");
  const shown = (plot) => (alike?.checked && specs.get(plot).alike) || specs.get(plot);

  // On paper a plot has the size that its place has there; a browser does not wait for it to be measured again.
  // Three-dimensional ones would be drawn too late in a new size, and are shrunk as they are.
  function figure(plot, name) {
    const as = shown(plot).layout.scene && plot._fullLayout;
    const [width, height] = as ? [as.width, as.height] : [plot.clientWidth, plot.clientHeight];
    const paper = "printing" in root.dataset ? { width, height, autosize: false } : {};
    const palette = palettes[name];
    const spec = paint(shown(plot), palette);
    const layout = { margin: { l: 50, r: 12, t: 24, b: 40 }, ...spec.layout, template: template(palette), autosize: true, ...paper };
    if (layout.scene) layout.scene = { ...layout.scene, camera: structuredClone(cameras[plot.dataset.link] || START) };
    return [spec.data, layout];
  }

  function hasWebGL() {
    const canvas = document.createElement("canvas");
    return Boolean(canvas.getContext("webgl2") || canvas.getContext("webgl"));
  }
  let webgl = null;

  function draw(plot) {
    if (drawn.has(plot)) return;
    drawn.add(plot);
    const [data, layout] = figure(plot, theme);
    if (layout.scene) {
      webgl = webgl === null ? hasWebGL() : webgl;
      if (!webgl) {
        plot.textContent = "This browser draws no three-dimensional figures (WebGL is off); the contours show the same.";
        plot.classList.add("quiet");
        plot.style.minHeight = plot.style.aspectRatio = "auto";
        return;
      }
    }
    Plotly.newPlot(plot, data, layout, config(Boolean(layout.scene)));
    if (layout.scene) {
      // The wheel scrolls the page: plotly takes it from a surface even where it does not zoom.
      plot.addEventListener("wheel", (event) => event.stopPropagation(), { capture: true });
      plot.on("plotly_relayouting", (event) => follow(plot, event["scene.camera"]));
      plot.on("plotly_relayout", (event) => follow(plot, event["scene.camera"]));
    }
  }

  function repaint(name, some = drawn) {
    for (const plot of some) {
      if (plot.classList.contains("js-plotly-plot")) Plotly.react(plot, ...figure(plot, name), config(Boolean(specs.get(plot).layout.scene)));
    }
  }

  // Surfaces of one group turn together. While others follow, what they report is not followed in turn.
  let following = false, waiting = null;
  function follow(from, camera) {
    if (!camera || following) return;
    const link = from.dataset.link;
    cameras[link] = structuredClone(camera);
    if (waiting === null) window.requestAnimationFrame(() => move(waiting, link));
    waiting = from;
  }

  function move(from, link) {
    waiting = null;
    following = true;
    const others = plots.filter((plot) => plot !== from && plot.dataset.link === link && plot._fullLayout);
    Promise.all(others.map((plot) => Plotly.relayout(plot, { "scene.camera": structuredClone(cameras[link]) })))
      .finally(() => { following = false; });
  }

  function turn(link, by) {
    const camera = structuredClone(cameras[link] || START);
    const { x, y, z } = camera.eye;
    const distance = Math.hypot(x, y, z);
    let around = Math.atan2(y, x), above = Math.asin(z / distance);
    const step = Math.PI / 18;
    if (by === "left") around -= step;
    if (by === "right") around += step;
    if (by === "up") above += step;
    if (by === "down") above -= step;
    if (by === "top") above = Math.PI / 2;
    above = Math.min(Math.max(above, -1.4), 1.55);
    camera.eye = { x: distance * Math.cos(above) * Math.cos(around), y: distance * Math.cos(above) * Math.sin(around), z: distance * Math.sin(above) };
    cameras[link] = by === "reset" ? structuredClone(START) : camera;
    move(null, link);
  }

  for (const group of document.querySelectorAll(".turn")) {
    group.addEventListener("click", (event) => {
      if (event.target.dataset.by) turn(group.dataset.turn, event.target.dataset.by);
    });
  }
  const keys = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down", Home: "reset" };
  for (const plot of plots.filter((each) => each.dataset.link)) {
    plot.addEventListener("keydown", (event) => {
      if (!keys[event.key]) return;
      event.preventDefault();
      turn(plot.dataset.link, keys[event.key]);
    });
  }

  function apply(name) {
    theme = name;
    root.dataset.theme = name;
    button.setAttribute("aria-pressed", String(name === "dark"));
    repaint(name);
  }
  button.addEventListener("click", () => apply(theme === "dark" ? "light" : "dark"));
  alike?.addEventListener("change", () => repaint(theme, [...drawn].filter((plot) => specs.get(plot).alike)));
  preference.addEventListener("change", (event) => apply(event.matches ? "dark" : "light"));
  apply(theme);

  // What is near the window is drawn at once, the rest while the page is idle: it opens quickly and prints whole.
  const soon = window.requestIdleCallback || ((work) => window.setTimeout(work, 50));
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { watch.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "300px" });
  for (const plot of plots) watch.observe(plot);
  function drawNext() {
    const next = plots.find((plot) => !drawn.has(plot));
    if (!next) { root.dataset.drawn = "all"; return; }
    draw(next);
    soon(drawNext);
  }
  window.addEventListener("load", () => window.setTimeout(() => soon(drawNext), 300));
  // Numbers that are folded away are printed too; questions as they stand.
  let unfolded = [];
  window.addEventListener("beforeprint", () => {
    root.dataset.theme = "light";
    unfolded = [...document.querySelectorAll("details:not([open])")].filter((part) => part.querySelector("table"));
    for (const part of unfolded) part.open = true;
    plots.forEach(draw);
    const solid = [...drawn].filter((plot) => plot._fullLayout && plot._fullLayout.scene);
    const wide = new Map(solid.map((plot) => [plot, plot.clientWidth]));
    root.dataset.printing = "";
    repaint("light");
    for (const plot of solid) {
      plot.firstElementChild.style.transform = `scale(${plot.clientWidth / wide.get(plot)})`;
      plot._fullLayout.scene._scene?.glplot?.redraw?.();
    }
  });
  window.addEventListener("afterprint", () => {
    delete root.dataset.printing;
    for (const part of unfolded) part.open = false;
    for (const plot of drawn) if (plot.firstElementChild) plot.firstElementChild.style.transform = "";
    apply(theme);
  });

  // What goes on beyond its right edge fades out there.
  const fade = (box) => box.toggleAttribute("data-more", box.scrollWidth - box.clientWidth - box.scrollLeft > 2);
  const edges = new ResizeObserver((entries) => entries.forEach((entry) => fade(entry.target)));
  for (const box of document.querySelectorAll(".wide, nav ul")) {
    edges.observe(box);
    box.addEventListener("scroll", () => fade(box), { passive: true });
  }

  for (const listing of document.querySelectorAll(".listing")) {
    const body = listing.querySelector("tbody");
    const rows = [...body.rows];
    const selects = [...listing.querySelectorAll("select")];
    const search = listing.querySelector("input");
    const output = listing.querySelector("output");
    const filter = () => {
      const words = search.value.trim().toLowerCase();
      let shown = 0;
      for (const row of rows) {
        const fits = selects.every((select) => !select.value || row.cells[select.dataset.column].textContent === select.value);
        row.hidden = !(fits && row.textContent.toLowerCase().includes(words));
        shown += !row.hidden;
      }
      output.textContent = `${shown} of ${rows.length} shown`;
    };
    const order = (head, column) => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of listing.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const numeric = "numeric" in head.dataset;
      const key = (row) => (numeric ? Number.parseFloat(row.cells[column].textContent) : row.cells[column].textContent);
      const compare = (a, b) => (numeric ? (Number.isNaN(a) - Number.isNaN(b)) || a - b : a.localeCompare(b, "en", { numeric: true }));
      rows.sort((a, b) => (up ? 1 : -1) * compare(key(a), key(b)));
      body.append(...rows);
    };
    listing.querySelectorAll("thead th").forEach((head, column) => head.querySelector("button").addEventListener("click", () => order(head, column)));
    listing.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
    const fold = (open) => { for (const row of rows) if (!row.hidden) row.querySelector("details").open = open; };
    listing.querySelector("[data-open]")?.addEventListener("click", () => fold(true));
    listing.querySelector("[data-close]")?.addEventListener("click", () => fold(false));
    listing.addEventListener("input", filter);
    filter();
  }
})();
