"""The ways to compute the selective scan; :mod:`nnunet_dtc.architectures.selective_scan` chooses between them."""
