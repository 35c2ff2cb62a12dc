# nnunet-dtc: this line marks the file as ours; `nnunet-dtc unregister` removes it
"""Tells nnU-Net's trainer search of nnunet-dtc's trainers.

The one flat file that nnU-Net sees: in place, by the environment variable nnUNet_extTrainer (`nnunet-dtc env`), or as
a copy in nnU-Net's own trainer folder (`nnunet-dtc register`). nnU-Net imports every file that it passes in its
search, and during that search sys.path starts with nnU-Net's own folder; so this file imports only the standard
library, and nnunet-dtc only when it is asked for a trainer that nobody else defines. Were nnunet-dtc removed or
broken, every other trainer would still be found.
"""

import ast
import os
import pkgutil
import sys


def __getattr__(name):
    if not name.startswith("nnUNetTrainer") or name == "nnUNetTrainer" or defined_by(name) is not None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        trainers = _import_trainers()
    except Exception as error:
        print(
            f"nnunet-dtc is registered with nnU-Net, but cannot be imported ({type(error).__name__}: {error}). "
            f"If {name} is one of its trainers, install nnunet-dtc again; if you do not want it any more, delete "
            f"{__file__}",
            file=sys.stderr,
        )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from error
    try:
        return getattr(trainers, name)
    except trainers.names.UnknownSuffixError as error:
        if name not in trainers.hints_given:
            trainers.hints_given.add(name)
            print(f"Hint: {error}", file=sys.stderr)
        raise


def defined_by(name):
    """The file of nnU-Net's trainer folder or of the nnUNet_extTrainer folders that has something of this name.

    By the rules of nnU-Net's search, flat files and packages, but without importing them: a class, a function, an
    import or an assignment of the module itself. nnU-Net looks into flat files before packages, so without this the
    names of others would be taken for ours. None where no file has it: what a function or a class has inside of it,
    and what is imported for type checkers alone, nnU-Net does not find either.
    """
    for folder in _trainer_folders():
        for file in _python_files(folder):
            try:
                with open(file, encoding="utf-8", errors="ignore") as opened:
                    text = opened.read()
            except OSError:
                continue
            if name in text and _binds(text, name):
                return file
    return None


def _binds(text, name):
    """Whether a module of this text has the name; where it cannot be parsed, whether the name stands in it."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return True
    return any(name in _names_bound(statement) for statement in _module_level(tree.body))


def _module_level(statements):
    """The statements that run when the module is imported, however deep in conditions, loops and attempts."""
    for statement in statements:
        yield statement
        if isinstance(statement, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if not (isinstance(statement, ast.If) and _is_type_checking(statement.test)):
            yield from _module_level(getattr(statement, "body", []))
        for branch in ("orelse", "finalbody"):
            yield from _module_level(getattr(statement, branch, []))
        for branch in getattr(statement, "handlers", []) + getattr(statement, "cases", []):
            yield from _module_level(branch.body)


def _is_type_checking(test):
    return getattr(test, "id", getattr(test, "attr", None)) == "TYPE_CHECKING"


def _names_bound(statement):
    """What the statement itself binds, without the statements in it."""
    if isinstance(statement, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return {statement.name}
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return {alias.asname or alias.name for alias in statement.names}
    targets = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, (ast.For, ast.AsyncFor)) or (isinstance(statement, ast.AnnAssign) and statement.value):
        targets = [statement.target]
    elif isinstance(statement, (ast.With, ast.AsyncWith)):
        targets = [item.optional_vars for item in statement.items if item.optional_vars]
    names = [node for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    return {node.id for node in names if isinstance(node.ctx, ast.Store)}


def _trainer_folders():
    import nnunetv2

    yield os.path.join(nnunetv2.__path__[0], "training", "nnUNetTrainer")
    for folder in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep):
        if folder.strip() and os.path.isdir(folder):
            yield folder


def _python_files(folder):
    for _, module, is_package in pkgutil.iter_modules([folder]):
        if is_package:
            yield from _python_files(os.path.join(folder, module))
        else:
            file = os.path.join(folder, module + ".py")
            if os.path.isfile(file):
                yield file


def _import_trainers():
    import nnunetv2

    # in nnU-Net's search sys.path starts with nnunetv2's folder, where `utilities` or `imageio` mean something else
    shadow = os.path.abspath(nnunetv2.__path__[0])
    path = list(sys.path)
    sys.path[:] = [entry for entry in path if not entry or os.path.abspath(entry) != shadow]
    try:
        # all that the trainers need now; what an extra brings, such as MONAI, is imported when its network is built
        import nnunet_dtc.trainers
        import nnunet_dtc.trainers.networks
        import nnunet_dtc.trainers.paper2d
    finally:
        sys.path[:] = path
    return nnunet_dtc.trainers
