"""``nnunet-dtc register``, ``unregister``, ``env``, ``doctor`` and ``trainers``."""

from rich.markup import escape

from nnunet_dtc.cli.console import err, fail, out, say


def register() -> None:
    """Register the trainers with nnU-Net, by a small file in its trainer folder."""
    from nnunet_dtc.plugin import registration

    try:
        file = registration.register()
    except registration.RegistrationError as error:
        raise fail(error) from error
    say(f"nnU-Net finds nnunet-dtc's trainers by {file}")
    say("Now: nnUNetv2_train DATASET 3d_fullres 0 -tr nnUNetTrainerDTC")


def unregister() -> None:
    """Remove that file from nnU-Net's trainer folder."""
    from nnunet_dtc.plugin import registration

    try:
        file = registration.unregister()
    except registration.RegistrationError as error:
        raise fail(error) from error
    say(f"removed {file}" if file else "there is nothing to remove")


def env() -> None:
    """Print the export of nnUNet_extTrainer, for installations that cannot be written: eval "$(nnunet-dtc env)"."""
    from nnunet_dtc.plugin import registration

    print(registration.export_line())


def doctor() -> None:
    """Check the installation and whether nnU-Net finds the trainers, and advise on what is wrong."""
    from nnunet_dtc.plugin.doctor import examine

    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "wrong": "[bold red]wrong[/]"}
    findings = []
    with err.status("examining the installation ..."):
        for finding in examine():
            findings.append(finding)
            out.print(
                f"{marks[finding.state]:<18} {escape(finding.subject)}: {escape(finding.seen)}"
                + (f"  [bold]-> {escape(finding.advice)}[/]" if finding.advice else ""),
                highlight=False,
                soft_wrap=True,
            )
    wrong = sum(finding.state == "wrong" for finding in findings)
    if wrong:
        raise fail(f"{wrong} of {len(findings)} findings are wrong, see above")
    out.print("[green]All is well.[/]")


def trainers() -> None:
    """List the trainer names."""
    from nnunet_dtc.trainers import names

    widths = [max(len(part[column]) for part in names.PARTS) for column in range(2)]
    lines = (
        "  ".join((part.ljust(widths[0]), meaning.ljust(widths[1]), example)) for part, meaning, example in names.PARTS
    )
    say(names.GRAMMAR, "", *lines, "", *names.NOTES)
