# nnunet-dtc: this line marks the file as ours; `nnunet-dtc unregister` removes it
"""Provides nnunet-dtc's trainers to nnU-Net's trainer search.

nnU-Net imports this file either in its place, through the environment variable nnUNet_extTrainer (`nnunet-dtc env`), or
as a copy in its own trainer folder (`nnunet-dtc register`). It imports every file that its search passes, while
sys.path starts with nnU-Net's own folder. Therefore this file imports only the standard library, and nnunet-dtc only
when it is asked for a trainer that no other file defines. If nnunet-dtc is removed or broken, all other trainers are
still found.
"""

import ast
import contextlib
import os
import pkgutil
import sys


def __getattr__(name):
    if not name.startswith("nnUNetTrainer") or name == "nnUNetTrainer" or defined_by(name) is not None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _nnunets_folder_off_the_path():
        try:
            trainers = _import_trainers()
        except Exception as error:
            print(
                f"nnunet-dtc is registered with nnU-Net, but cannot be imported ({type(error).__name__}: {error}). If "
                f"{name} is one of its trainers, install nnunet-dtc again; if you no longer want it, delete {__file__}",
                file=sys.stderr,
            )
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from error
        try:
            return getattr(trainers, name)
        except trainers.names.UnknownSuffixError as error:
            if not trainers.is_searching() and name not in trainers.hints_given:
                trainers.hints_given.add(name)
                print(f"Hint: {error}", file=sys.stderr)
            raise


def defined_by(name):
    """The file in nnU-Net's trainer folder or in the nnUNet_extTrainer folders that defines a name, or None.

    Files and packages are searched as nnU-Net searches them, but are not imported. A definition is a class, a function,
    an import or an assignment at module level; nnU-Net does not find names inside functions and classes, or names that
    are only imported for type checkers. nnU-Net searches files before packages, so without this function names that
    others define in a package would be taken for nnunet-dtc's.
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
    """Whether a module with this text defines the name. True if it cannot be parsed."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return True
    return any(name in _names_bound(statement) for statement in _module_level(tree.body))


def _module_level(statements):
    """The statements that run when the module is imported, including those in conditions, loops and try blocks."""
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
    """The names that the statement itself binds, without those of the statements in it."""
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


@contextlib.contextmanager
def _nnunets_folder_off_the_path():
    """During nnU-Net's search sys.path starts with its folder, whose `utilities` and `imageio` would hide others."""
    import nnunetv2

    shadow = os.path.abspath(nnunetv2.__path__[0])
    path = list(sys.path)
    sys.path[:] = [entry for entry in path if not entry or os.path.abspath(entry) != shadow]
    try:
        yield
    finally:
        sys.path[:] = path


def _import_trainers():
    # all that the trainers need; packages of extras, such as MONAI, are imported when a network is built
    import nnunet_dtc.trainers
    import nnunet_dtc.trainers.networks
    import nnunet_dtc.trainers.paper2d

    return nnunet_dtc.trainers
