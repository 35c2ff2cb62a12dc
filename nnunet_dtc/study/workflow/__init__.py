"""A study: several trainers over folds and repetitions, run by Snakemake on one machine or on a cluster.

`definition` reads STUDY.yaml, `checks` refuses what cannot work before anything starts, the `Snakefile` has the rules,
`jobs` is what each job does, `status` reads how far the trainings are, `index_page` writes the page at the end.
`model_files`, `preprocessed_cases` and `held_out` know which results are there and still those of the present files.
"""
