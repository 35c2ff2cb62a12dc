"""Where a trained network samples an image: the paper's figure 7.

`trained_model` loads a model, `image_patch` a patch of an image, and `forward_pass` runs the network on it once.
`state_sentences` explains the states of `nnunet_dtc.ops.coordinates`, `sampling_figure` draws the samples, and
`sampling_report` writes and prints the results.
"""
