const tip = document.getElementById("tip");
document.addEventListener("pointerover", (event) => {
  const mark = event.target.closest("[data-tip]");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const box = mark.getBoundingClientRect();
  const left = box.x + box.width / 2 - tip.offsetWidth / 2;
  const last = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const above = box.y - tip.offsetHeight - 8;
  tip.style.left = `${Math.max(8, Math.min(left, last))}px`;
  tip.style.top = `${above > 8 ? above : box.bottom + 8}px`;
});
document.addEventListener("scroll", () => { tip.hidden = true; }, true);
