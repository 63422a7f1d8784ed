// Attention by query: pointing at a patch of an image shows where it looks, in every
// layer and head, and in every run of the page whose patches are as large.
"use strict";

const data = JSON.parse(document.getElementById("attention").textContent);
const toBytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const GAP = 4; // pixels, between the maps of two heads
const LEFT = 54; // for the names of layers
const TOP = 22; // for those of heads
const ALL = 0; // the query that stands for all of them

const bytes = toBytes(data.palette);
const palette = Array.from(
  { length: 256 },
  (_, level) => `rgb(${bytes.subarray(3 * level, 3 * level + 3).join(" ")})`,
);

async function decode(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  return image;
}

function createView(place, pictures) {
  const maps = data.maps[place.dataset.maps];
  // As large as lets two runs stand beside each other, where the page is wide.
  const all = place.parentElement;
  const width = all.clientWidth;
  const columns = Math.min(all.children.length, 2);
  const room = width > 900 ? width / columns - 240 : width;
  const tile = Math.floor((room - LEFT) / maps.heads) - GAP;
  return {
    ...maps,
    tile: Math.min(Math.max(tile, 48), 96),
    levels: toBytes(maps.levels),
    image: place.dataset.image,
    picture: pictures[place.dataset.image],
    patches: place.querySelector(".patches"),
    canvas: place.querySelector("canvas"),
    said: place.querySelector("[aria-live]"),
    kept: ALL,
  };
}

// A button for each patch, over the image; the arrow keys go from one to the next.
function addPatches(view) {
  const { grid, patches } = view;
  patches.style.gridTemplateColumns = `repeat(${grid}, 1fr)`;
  for (let patch = 0; patch < grid * grid; patch++) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", place(view, patch));
    button.addEventListener("pointerenter", () => choose(view, 1 + patch));
    for (const event of ["focus", "click"]) {
      button.addEventListener(event, () => choose(view, 1 + patch, true));
    }
    patches.append(button);
  }
  patches.addEventListener("pointerleave", () => choose(view, view.kept));
  patches.addEventListener("keydown", (event) => {
    if (event.key === "Escape") choose(view, ALL, true);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid, ArrowDown: grid };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const buttons = [...patches.children];
    buttons[buttons.indexOf(event.target) + steps[event.key]]?.focus();
  });
}

function place(view, patch) {
  return `row ${1 + Math.floor(patch / view.grid)}, column ${1 + (patch % view.grid)}`;
}

function choose(from, query, keep = false) {
  for (const view of views) {
    if (view.image !== from.image || view.grid !== from.grid) continue;
    if (keep) view.kept = query;
    show(view, query);
  }
}

// Draws the maps of all heads for a query, and says which attends most.
function show(view, query) {
  const { layers, heads, grid, levels, canvas, tile } = view;
  const scale = window.devicePixelRatio;
  const step = tile + GAP;
  const width = LEFT + heads * step;
  canvas.width = scale * width;
  canvas.height = scale * (TOP + layers * step);
  canvas.style.width = `${width}px`;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.imageSmoothingEnabled = view.picture.width > tile;
  context.fillStyle = getComputedStyle(canvas).color;
  context.font = "11px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  const middle = (i) => i * step + tile / 2;
  for (let i = 0; i < heads; i++) {
    context.fillText(`head ${1 + i}`, LEFT + middle(i), TOP / 2);
  }
  context.textAlign = "right";
  for (let i = 0; i < layers; i++) {
    context.fillText(`layer ${1 + i}`, LEFT - 6, TOP + middle(i));
  }
  const most = { level: -1 };
  const size = grid * grid;
  for (let layer = 0; layer < layers; layer++) {
    for (let head = 0; head < heads; head++) {
      const start = ((layer * heads + head) * (1 + size) + query) * size;
      const map = levels.subarray(start, start + size);
      drawTile(context, view, map, LEFT + head * step, TOP + layer * step);
      const patch = map.indexOf(Math.max(...map));
      if (map[patch] > most.level) {
        Object.assign(most, { level: map[patch], layer, head, patch });
      }
    }
  }
  [...view.patches.children].forEach((button, patch) => {
    button.setAttribute("aria-pressed", 1 + patch === query);
    button.tabIndex = patch === Math.max(0, query - 1) ? 0 : -1;
  });
  const times = 2 ** (data.octaves * ((2 * most.level) / 255 - 1));
  const high = most.level < 255 ? times.toFixed(1) : `${times} or more`;
  view.said.textContent =
    `${query === ALL ? view.all : `From ${place(view, query - 1)}`}. Strongest: layer ` +
    `${1 + most.layer}, head ${1 + most.head}, at ${place(view, most.patch)}, ${high} ` +
    "times uniform.";
}

// The image in grey, in its lighter half, times the colour of attention.
function drawTile(context, view, map, left, top) {
  const { grid, tile } = view;
  const edge = (i) => Math.round((i * tile) / grid);
  context.save();
  context.translate(left, top);
  context.fillStyle = "white";
  context.fillRect(0, 0, tile, tile);
  context.globalAlpha = 0.5;
  context.drawImage(view.picture, 0, 0, tile, tile);
  context.globalAlpha = 1;
  context.globalCompositeOperation = "saturation";
  context.fillStyle = "grey";
  context.fillRect(0, 0, tile, tile);
  context.globalCompositeOperation = "multiply";
  map.forEach((level, patch) => {
    const [x, y] = [patch % grid, Math.floor(patch / grid)];
    context.fillStyle = palette[level];
    context.fillRect(edge(x), edge(y), edge(x + 1) - edge(x), edge(y + 1) - edge(y));
  });
  context.restore();
}

let views = [];
Promise.all(data.images.map(decode)).then((pictures) => {
  const places = [...document.querySelectorAll(".queries")];
  views = places.map((place) => createView(place, pictures));
  for (const view of views) {
    addPatches(view);
    show(view, ALL);
  }
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", () => views.forEach((view) => show(view, view.kept)));
});
