"""The operator and its blocks, with torch as the only dependency.

- :mod:`~nnunet_dtc.ops.deformation`: the shifts and positions of equation 1.
- :mod:`~nnunet_dtc.ops.sampling`: the functional form of the deformable branch.
- :mod:`~nnunet_dtc.ops.dtc`: the modules over it; :mod:`~nnunet_dtc.ops.heads` has their convolutions.
- :mod:`~nnunet_dtc.ops.convert`: adds DTC to networks from other sources.
- :mod:`~nnunet_dtc.ops.coordinates`: records and measures the sampling positions of a network.
- :mod:`~nnunet_dtc.ops.backends`: computes the operator on a device.
- :mod:`~nnunet_dtc.ops.checks` and :mod:`~nnunet_dtc.ops.layout`: checks of arguments, and tensor layouts.
"""
