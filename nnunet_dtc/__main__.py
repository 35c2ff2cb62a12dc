"""``python -m nnunet_dtc``: the command line ``nnunet-dtc``."""

from nnunet_dtc.cli import main

main()
