"""The operator and its blocks: torch alone.

`deformation` is equation 1, `sampling` the functional form of the branch, `dtc` the module over it, `heads` its
convolutions, `convert` puts it into networks of others; `backends` compute it. `coordinates` collects and measures
where the samples of a network go. `checks` are the rules for arguments.
"""
