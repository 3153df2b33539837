// Show the claims that the boxes above the table ask for, and the models that have any of them;
// without scripts all of them show.
const box = (id) => document.getElementById(id);
const checked = (id) => box(id) !== null && box(id).checked;
const heads = document.querySelector("thead tr");
const rows = [...document.querySelectorAll("tr[data-papers]")];

function show() {
  const paper = box("paper").value;
  const words = box("words").value.toLowerCase();
  for (const row of rows) {
    row.hidden =
      (paper !== "" && !row.dataset.papers.split("|").includes(paper)) ||
      (checked("replications") && row.dataset.kind === "check") ||
      !row.textContent.toLowerCase().includes(words) ||
      (checked("differs") && !row.dataset.differs) ||
      (checked("changed") && !row.dataset.changed);
  }
  for (const body of document.querySelectorAll("tbody")) {
    body.hidden = [...body.querySelectorAll("tr[data-papers]")].every((row) => row.hidden);
  }
  const shown = rows.filter((row) => !row.hidden);
  for (const column of [...heads.cells].keys()) {
    const used = shown.some((row) => !row.cells[column].classList.contains("empty"));
    for (const row of [heads, ...rows]) row.cells[column].hidden = column > 0 && !used;
  }
  box("shown").textContent = `${shown.length} of ${rows.length} claims`;
}

for (const name of ["input", "change"]) {
  document.querySelector("nav").addEventListener(name, show);
}
show();
