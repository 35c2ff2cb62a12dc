"""What one does with trained models and with data: one package for each command.

`datasets` writes data sets in nnU-Net's raw layout, `evaluation` scores segmentations, `comparison` compares trained
models, `complexity` measures what trainers cost, `coordinates` shows where samples go. `figures` draws for all of them;
`label_files` checks images and labels, `processes` starts and ends processes, `texts` makes names readable.
"""
