"""Where the samples of a trained network go, for one image: the paper's figure 7.

`model` reads a trained model and an image and runs the network once, `sentences` says what the numbers of
`nnunet_dtc.ops.coordinates` mean, `figure` draws, `report` writes.
"""
