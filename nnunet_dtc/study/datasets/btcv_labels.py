"""The organs of BTCV (Synapse syn3193805, "Beyond the Cranial Vault") and of the phantom, and their numbers."""

__all__ = ["LABELS", "ORGANS"]

ORGANS = (
    "spleen",
    "right_kidney",
    "left_kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior_vena_cava",
    "portal_and_splenic_vein",
    "pancreas",
    "right_adrenal_gland",
    "left_adrenal_gland",
)
"""BTCV's organs in the order of their numbers, 1 to 13."""

LABELS = {"background": 0, **{name: number for number, name in enumerate(ORGANS, start=1)}}
