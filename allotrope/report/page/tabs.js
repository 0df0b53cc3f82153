// Several engines: links to their articles become tabs; arrow keys, Home and End move between them.
(() => {
  const nav = document.querySelector("nav.switch");
  if (!nav) return;
  const panels = [...document.querySelectorAll(".engine")];
  const list = document.createElement("div");
  list.className = "tablist";
  list.setAttribute("role", "tablist");
  list.setAttribute("aria-label", nav.getAttribute("aria-label"));
  const tabs = [...nav.querySelectorAll("a")].map((link, i) => {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.id = `tab-${panels[i].id}`;
    tab.textContent = link.textContent;
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", panels[i].id);
    panels[i].setAttribute("role", "tabpanel");
    panels[i].setAttribute("aria-labelledby", tab.id);
    panels[i].tabIndex = -1;
    list.append(tab);
    return tab;
  });
  const choose = (chosen, focus) => {
    tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === chosen));
      tab.tabIndex = i === chosen ? 0 : -1;
      panels[i].hidden = i !== chosen;
    });
    if (focus) tabs[chosen].focus();
    dispatchEvent(new Event("resize"));  // what was hidden had no width
  };
  const follow = () => {  // a link into a panel opens it
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const found = target ? panels.findIndex((panel) => panel.contains(target)) : -1;
    if (found < 0) return;
    choose(found, false);
    target.scrollIntoView();
  };
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => choose(i, false));
    tab.addEventListener("keydown", (event) => {
      const last = tabs.length - 1;
      const next = { ArrowRight: i === last ? 0 : i + 1, ArrowLeft: i === 0 ? last : i - 1, Home: 0, End: last }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      choose(next, true);
    });
  });
  nav.replaceChildren(list);
  choose(0, false);
  follow();
  addEventListener("hashchange", follow);
})();
