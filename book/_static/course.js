// Sliders of figures, and links to notebooks where no course server shows the page.
"use strict";

function startSlider(box) {
  const { values, alts } = JSON.parse(box.dataset.slider);
  const input = box.querySelector("input[type=range]");
  const output = box.querySelector("output");
  const picture = box.querySelector("svg");
  const frames = [...picture.querySelectorAll(":scope > g.frame")];
  const update = () => {
    const chosen = Number(input.value);
    frames.forEach((frame, i) => {
      if (i === chosen) frame.removeAttribute("display");
      else frame.setAttribute("display", "none");
    });
    output.textContent = values[chosen];
    input.setAttribute("aria-valuetext", values[chosen]);
    picture.setAttribute("aria-label", alts[chosen]);
  };
  input.addEventListener("input", update);
  update(); // a browser may have kept the position from an earlier visit
}

// Probabilities after temperature, top-k and top-p; `sampled` in figures.py is the same.
function sampled(logits, t, k, p) {
  let weights = logits.map((x) => Math.exp((x - logits[0]) / t));
  weights = weights.map((w, i) => (logits[i] >= logits[k - 1] ? w : 0));
  const total = weights.reduce((a, b) => a + b);
  let before = 0;
  const kept = weights.map((w) => {
    const stays = p >= 1 || before < p * total;
    before += w;
    return stays ? w : 0;
  });
  const rest = kept.reduce((a, b) => a + b);
  return kept.map((w) => w / rest);
}

function startSampler(box) {
  const { tokens, logits } = JSON.parse(box.dataset.sampler);
  const picture = box.querySelector("svg");
  const rows = [...picture.querySelectorAll("g.bar")];
  const inputs = Object.fromEntries([...box.querySelectorAll("input")].map((i) => [i.name, i]));
  const own = sampled(logits, 1, logits.length, 1);
  const percent = (x) => (100 * x).toFixed(1) + " %";
  const update = () => {
    const [t, k, p] = ["t", "k", "p"].map((name) => Number(inputs[name].value));
    const drawn = sampled(logits, t, k, p);
    rows.forEach((row, i) => {
      row.querySelector(".now").setAttribute("width", 280 * drawn[i]);
      const value = row.querySelector(".value");
      value.setAttribute("x", 100 + 280 * Math.max(own[i], drawn[i]));
      value.textContent = drawn[i] ? percent(drawn[i]) : "out";
      row.style.opacity = drawn[i] ? 1 : 0.6;
    });
    const left = drawn.filter((x) => x > 0);
    picture.setAttribute(
      "aria-label",
      `${left.length} of ${tokens.length} tokens are left. The most likely, ${tokens[0]}, has ` +
        `${percent(drawn[0])}, the last of them ${percent(Math.min(...left))}.`,
    );
    for (const [name, shown] of [["t", t.toFixed(2)], ["k", k], ["p", p.toFixed(2)]]) {
      inputs[name].parentElement.querySelector("output").textContent = shown;
    }
  };
  Object.values(inputs).forEach((input) => input.addEventListener("input", update));
  update(); // a browser may have kept the positions from an earlier visit
}

async function servedByTheCourse() {
  if (!location.protocol.startsWith("http")) return false;
  try {
    const root = document.documentElement.dataset.content_root || "./";
    const answer = await fetch(new URL(root + "status", location.href), { cache: "no-store" });
    return answer.ok && (await answer.json()).course === "attention-to-detail";
  } catch {
    return false;
  }
}

function turnIntoHint(button) {
  const hint = document.createElement("span");
  hint.className = "notebook-hint";
  const command = document.createElement("code");
  command.textContent = "python3 course.py learn";
  const file = document.createElement("a");
  file.href = button.dataset.file;
  file.textContent = "notebook file";
  file.setAttribute("download", "");
  hint.append("To work on it, run ", command, " in the course’s folder, or take the ", file, ".");
  button.replaceWith(hint);
}

document.addEventListener("DOMContentLoaded", async () => {
  document.querySelectorAll("[data-slider]").forEach(startSlider);
  document.querySelectorAll("[data-sampler]").forEach(startSampler);
  const buttons = document.querySelectorAll("a.notebook-button");
  if (buttons.length && !(await servedByTheCourse())) buttons.forEach(turnIntoHint);
});
