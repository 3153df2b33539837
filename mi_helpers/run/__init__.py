"""The command line `mi`: run notebooks, keep score. In reading order:

- `cli`: the commands, and what each of them prints;
- `plan`: from values to jobs, each known by all that its result depends on (`parameters`: what a
  notebook's parameters cell says; `provenance`: hashes and versions);
- `sweep`: jobs to results in a folder, whole or absent;
- `execute`: one notebook, in a process of its own (`worker`);
- `scorecard`: claims as rows, models as columns, and what differs; `page`: as HTML and Markdown,
  from the templates in `assets/`;
- `render`: outputs back into the notebooks; `passport`: what a model is good for.
"""
