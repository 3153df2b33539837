"use strict";
// Figures are pictures until a reader comes near: then plotly, loaded once, draws them.
(() => {
  const home = document.currentScript.src;
  window.miFigures = {}; // what the scripts of figures leave, by their addresses
  const load = (address) => new Promise((done, fail) => {
    const script = document.createElement("script");
    script.src = address;
    script.onload = done;
    script.onerror = fail;
    document.head.append(script);
  });
  let loading;
  const plotly = () => (loading ??= load(new URL("plotly.min.js", home)));

  const touch = matchMedia("(pointer: coarse)").matches;

  async function draw(figure) {
    const picture = figure.querySelector("img");
    const address = picture.src.replace(/png$/, "js");
    await Promise.all([plotly(), load(address)]);
    const { data, layout } = miFigures[address];
    const own = layout.width ?? 700;
    const place = document.createElement("div");
    place.setAttribute("role", "group");
    place.setAttribute("aria-label", picture.alt);
    figure.append(place);
    // Narrower than its design by a third at most; below that the reader scrolls sideways.
    const room = place.clientWidth;
    const width = Math.max(0.67 * own, Math.min(own, room));
    if (width > room) figure.tabIndex = 0;
    const dragmode = touch ? false : (layout.dragmode ?? "zoom"); // a finger scrolls the page
    const shown = { ...layout, width, dragmode, modebar: { orientation: "v" } };
    const bar = { displaylogo: false, displayModeBar: touch ? false : "hover" };
    await Plotly.newPlot(place, data, shown, bar);
    picture.remove();
    figure.dataset.live = "yes";
  }

  // What the theme leaves without a name, or with another one than it shows.
  for (const button of document.querySelectorAll(".search-button-field")) {
    button.removeAttribute("aria-label");
  }
  for (const toggle of document.querySelectorAll("nav summary")) {
    toggle.setAttribute("aria-label", "Pages below this one");
  }

  // A signature over several lines comes as a <dl> without terms, which is none.
  for (const list of document.querySelectorAll("dt.sig > dl")) {
    const lines = document.createElement("div");
    for (const { childNodes } of list.children) {
      lines.append(document.createElement("div"));
      lines.lastChild.append(...childNodes);
    }
    lines.className = "sig-lines";
    list.replaceWith(lines);
  }

  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      draw(target);
    }
  }, { rootMargin: "600px" });
  document.querySelectorAll(".mi-figure").forEach((figure) => seen.observe(figure));
})();
