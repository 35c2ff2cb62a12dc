"""Small plans as nnU-Net writes them, with uneven strides, for tests that need no data."""

from copy import deepcopy

_PLAIN = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
_RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"

DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "spleen": 2},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}


def architecture(kernel_sizes, strides, residual=False):
    axes = len(strides[0])
    stages = len(strides)
    blocks = {"n_blocks_per_stage": [1, 2, 2, 2][:stages]} if residual else {"n_conv_per_stage": [2] * stages}
    return {
        "network_class_name": _RESIDUAL if residual else _PLAIN,
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [4, 8, 12, 16][:stages],
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": kernel_sizes,
            "strides": strides,
            **blocks,
            "n_conv_per_stage_decoder": [1 if residual else 2] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _configuration(patch_size, spacing, arch, **more):
    resampling = {}
    for what, is_seg, order in (("data", False, 3), ("seg", True, 1), ("probabilities", False, 1)):
        options = {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}
        resampling[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        resampling[f"resampling_fn_{what}_kwargs"] = options
    return {
        "data_identifier": "nnUNetPlans_test",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch_size,
        "median_image_size_in_voxels": patch_size,
        "spacing": spacing,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        **resampling,
        "batch_dice": False,
        "architecture": arch,
        **more,
    }


_UNEVEN = {
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 1]],
}
_FLAT = {"kernel_sizes": [[3, 3]] * 3, "strides": [[1, 1], [2, 2], [1, 2]]}

CONFIGURATIONS = {
    "2d": _configuration([16, 24], [0.8, 0.8], architecture(**_FLAT)),
    "2d_residual": _configuration([16, 24], [0.8, 0.8], architecture(**_FLAT, residual=True)),
    "3d_lowres": _configuration([6, 16, 24], [6, 1.6, 1.6], architecture(**_UNEVEN), next_stage="3d_cascade_fullres"),
    "3d_fullres": _configuration([6, 16, 24], [3, 0.8, 0.8], architecture(**_UNEVEN)),
    "3d_residual": _configuration([6, 16, 24], [3, 0.8, 0.8], architecture(**_UNEVEN, residual=True)),
    "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
}

# the paper's other networks, small, as the plans may have them in ``architecture.nnunet_dtc``
SMALL_NETWORKS = {
    "UNETR": {"feature_size": 4, "hidden_size": 12, "mlp_size": 20, "heads": 3},
    "SwinUNETRV2": {"feature_size": 12, "depths": [1, 1, 1, 1], "heads": [1, 2, 3, 4], "window_size": 3},
    "NnMamba": {"width": 4, "blocks": 2},
    "SegMamba": {"widths": [4, 6, 8, 10], "bottleneck": 12, "depths": [1, 1, 1, 1]},
}

_PLANS = {
    "dataset_name": "Dataset998_Test",
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "label_manager": "LabelManager",
    "configurations": CONFIGURATIONS,
}


def small_plans():
    """A fresh plans dictionary: nnU-Net changes the one that it is given."""
    return deepcopy(_PLANS)
