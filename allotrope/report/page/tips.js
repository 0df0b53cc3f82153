// Plots: words beside a mark, for a pointer and for arrow keys. Without script, the browser shows the marks' titles.
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  const show = (frame, mark) => {
    if (tip.parentNode !== frame) frame.append(tip);
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    const [box, around] = [mark.getBoundingClientRect(), frame.getBoundingClientRect()];
    const middle = box.left - around.left + box.width / 2 - tip.offsetWidth / 2;
    const left = Math.max(0, Math.min(middle, around.width - tip.offsetWidth));
    const above = box.top - around.top - tip.offsetHeight - 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${above < 0 ? box.bottom - around.top + 8 : above}px`;
  };
  const hide = () => { tip.hidden = true; };
  for (const mark of document.querySelectorAll("[data-tip]")) {
    const title = mark.querySelector("title");
    mark.dataset.tip = title.textContent;
    title.remove();
  }
  for (const frame of document.querySelectorAll(".drawn")) {
    const marks = () => [...frame.querySelectorAll("[data-tip]")].filter((mark) => mark.getClientRects().length);
    if (!frame.querySelector("[data-tip]")) continue;
    let at = -1;
    frame.tabIndex = 0;
    frame.setAttribute("role", "group");
    frame.setAttribute("aria-label", "Plot; arrow keys go from value to value");
    frame.addEventListener("pointerover", (event) => {
      const mark = event.target.closest("[data-tip]");
      if (mark) show(frame, mark); else hide();
    });
    frame.addEventListener("pointerleave", hide);
    frame.addEventListener("blur", hide);
    frame.addEventListener("keydown", (event) => {
      const all = marks();
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") hide();
      if (!step || !all.length) return;
      event.preventDefault();
      at = Math.max(0, Math.min(all.length - 1, at + step));
      show(frame, all[at]);
    });
  }
})();
