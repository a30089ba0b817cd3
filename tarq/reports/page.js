// Players get their audio when the page is read; one plays at a time. Words can be narrowed down.
"use strict";
const clips = JSON.parse(document.getElementById("clips")?.textContent ?? "[]");
const players = [...document.querySelectorAll("audio[data-clip]")];
for (const player of players) {
  player.src = clips[player.dataset.clip];
  player.addEventListener("play", () => players.forEach((other) => other !== player && other.pause()));
}
const controls = document.querySelector(".controls");
if (controls) {
  const words = [...document.querySelectorAll(".words > li")];
  const narrow = () => {
    const { arm, kind } = Object.fromEntries(new FormData(controls));
    let shown = 0;
    for (const word of words) {
      const fits = (!arm || JSON.parse(word.dataset.arms).includes(arm)) && (!kind || word.dataset.kind === kind);
      word.hidden = !fits;
      shown += fits;
    }
    controls.querySelector("output").textContent = `${shown} of ${words.length} shown`;
  };
  controls.hidden = false;
  controls.addEventListener("change", narrow);
  controls.addEventListener("submit", (event) => event.preventDefault());
}
