// Show the claims that the boxes above the table ask for; without scripts all of them show.
const box = (id) => document.getElementById(id);
const checked = (id) => box(id) !== null && box(id).checked;
const rows = [...document.querySelectorAll("tr[data-papers]")];

function show() {
  const paper = box("paper").value;
  const words = box("words").value.toLowerCase();
  for (const row of rows) {
    row.hidden =
      (paper !== "" && !row.dataset.papers.split("|").includes(paper)) ||
      !row.textContent.toLowerCase().includes(words) ||
      (checked("differs") && !row.dataset.differs) ||
      (checked("changed") && !row.dataset.changed);
  }
  for (const body of document.querySelectorAll("tbody")) {
    body.hidden = [...body.querySelectorAll("tr[data-papers]")].every((row) => row.hidden);
  }
  const shown = rows.filter((row) => !row.hidden).length;
  box("shown").textContent = `${shown} of ${rows.length} claims`;
}

for (const name of ["input", "change"]) {
  document.querySelector("nav").addEventListener(name, show);
}
show();
