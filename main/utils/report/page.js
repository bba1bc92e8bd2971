// Values under the pointer, or by the arrow keys; and the theme that was chosen last.
(() => {
  const numbers = text => text.split(" ").map(Number);
  const tip = document.createElement("div");
  tip.id = "tip"; tip.hidden = true;
  document.body.append(tip);

  function written(value, unit) {
    if (unit) return `${+(100 * value).toPrecision(3)}%`;
    const size = Math.abs(value);
    return size >= 1e4 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(4));
  }

  function curves(svg) {
    return svg.points ??= [...svg.querySelectorAll(".curve")].map(node => {
      let step = 0;
      return {
        node, name: node.dataset.name,
        steps: numbers(node.dataset.steps).map(by => step += by),
        values: numbers(node.dataset.values),
      };
    });
  }

  function nearest(steps, step) {
    let low = 0, high = steps.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (steps[middle] <= step) low = middle; else high = middle;
    }
    return step - steps[low] <= steps[high] - step ? low : high;
  }

  function show(svg, step, left, top) {
    const [x0, x1, a, b] = numbers(svg.dataset.x), [y0, y1, c, d] = numbers(svg.dataset.y);
    const shown = curves(svg).filter(curve => curve.node.getClientRects().length);
    if (!shown.length) return hide(svg);
    const places = shown.map(curve => nearest(curve.steps, step));
    const at = Math.min(...shown.map((curve, i) => Math.abs(curve.steps[places[i]] - step)));
    const here = shown.map((curve, i) => curve.steps[places[i]]).find(s => Math.abs(s - step) === at);
    const x = a + (here - x0) / (x1 - x0) * (b - a);
    const cursor = svg.querySelector(".cursor"), make = name =>
      cursor.appendChild(document.createElementNS("http://www.w3.org/2000/svg", name));
    cursor.replaceChildren();
    const line = make("line");
    for (const [key, value] of [["x1", x], ["x2", x], ["y1", c], ["y2", d]]) line.setAttribute(key, value);
    tip.replaceChildren();
    const head = document.createElement("b");
    head.textContent = `step ${here.toLocaleString("en")}`;
    tip.append(head);
    shown.forEach((curve, i) => {
      const at = curve.steps[places[i]], value = curve.values[places[i]];
      const dot = make("circle"), row = document.createElement("div");
      dot.setAttribute("class", curve.node.getAttribute("class").replace(/\b(curve|r\d+|train|eval)\b/g, ""));
      dot.setAttribute("cx", a + (at - x0) / (x1 - x0) * (b - a));
      dot.setAttribute("cy", c + (value - y0) / (y1 - y0) * (d - c));
      dot.setAttribute("r", 3.5);
      const name = document.createElement("span"), number = document.createElement("b");
      name.textContent = curve.name + (at === here ? "" : ` (step ${at.toLocaleString("en")})`);
      number.textContent = written(value, svg.dataset.unit);
      row.append(name, number);
      tip.append(row);
    });
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(6, Math.min(left + 14, innerWidth - box.width - 8))}px`;
    tip.style.top = `${top + 18 + box.height > innerHeight ? top - box.height - 12 : top + 18}px`;
    svg.step = here;
  }

  function hide(svg) {
    tip.hidden = true;
    svg.querySelector(".cursor").replaceChildren();
  }

  for (const svg of document.querySelectorAll("figure svg")) {
    svg.addEventListener("pointermove", event => {
      const box = svg.getBoundingClientRect(), [x0, x1, a, b] = numbers(svg.dataset.x);
      const pixel = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
      show(svg, x0 + (pixel - a) / (b - a) * (x1 - x0), event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", () => hide(svg));
    svg.addEventListener("blur", () => hide(svg));
    svg.addEventListener("keydown", event => {
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!way) return;
      const [x0, x1] = numbers(svg.dataset.x), box = svg.getBoundingClientRect();
      const all = [...new Set(curves(svg).flatMap(curve => curve.steps))].sort((p, q) => p - q);
      const place = svg.step === undefined ? (way > 0 ? -1 : all.length) : nearest(all, svg.step);
      const step = all[Math.max(0, Math.min(all.length - 1, place + way))];
      show(svg, step, box.left + box.width * (step - x0) / (x1 - x0) * .7, box.top + 20);
      event.preventDefault();
    });
  }

  try {  // a file that was opened from a disk may have no storage
    const radio = document.getElementById(`theme-${localStorage.getItem("main-peft-theme")}`);
    if (radio) radio.checked = true;
    document.querySelector(".theme").addEventListener("change", event =>
      localStorage.setItem("main-peft-theme", event.target.id.replace("theme-", "")));
  } catch { /* the choice lasts as long as the page */ }
})();
