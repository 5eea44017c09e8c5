"""Reads config files without running code from them.

Detectron2's ``merge_from_file`` falls back to an unsafe YAML loader, because the stock RetinaNet
base computes its anchor sizes with a Python expression. Here that one tag is evaluated as plain
arithmetic, and any other object tag is an error.
"""

import ast
import operator
import os
from pathlib import Path
from typing import Any

import yaml

from clsloc.errors import UserError
from detectron2 import model_zoo
from detectron2.utils.file_io import PathManager

BASE_KEY = "_BASE_"
CORE_CONFIGS = Path(__file__).resolve().parents[1] / "configs"

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}
_LARGEST_POWER = 64


def resolve_config_file(name: str, relative_to: str = "") -> str:
    """The path of a config file.

    Args:
        name: a path; or, where no such file exists, the name of a config of the core
            (``digits/faster_rcnn_R_18_FPN.yaml``) or of Detectron2's model zoo
            (``COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml``).
        relative_to: the folder from which a relative path counts.

    Raises:
        UserError: nothing has this name.
    """
    path = os.path.join(relative_to, os.path.expanduser(name))
    if "://" in name:
        path = name
    if PathManager.isfile(path):
        return path
    if (CORE_CONFIGS / name).is_file():
        return str(CORE_CONFIGS / name)
    try:
        return model_zoo.get_config_file(name)
    except RuntimeError:
        raise UserError(
            f"The config file {path!r} does not exist; give the path of a YAML file or a name "
            "from Detectron2's model zoo such as COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml."
        ) from None


def load_config_file(path: str, _children: tuple[str, ...] = ()) -> dict[str, Any]:
    """The content of a YAML config file, merged over that of its ``_BASE_`` file or files.

    Args:
        path: as returned by :func:`resolve_config_file`. A relative ``_BASE_`` counts from the
            folder of the file that names it, and may also be a name from the core or the zoo.

    Raises:
        UserError: the file is not YAML, holds an object tag, or is its own base.
    """
    if path in _children:
        raise UserError(f"The config file {path!r} is its own {BASE_KEY}; remove the circle.")
    content = _read_yaml(path)
    bases = content.pop(BASE_KEY, [])
    merged: dict[str, Any] = {}
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(
            f"{BASE_KEY} of the config file {path!r} must be a file or a list of files, got "
            f"{bases!r}."
        )
    for base in bases:
        base_path = resolve_config_file(base, relative_to=os.path.dirname(path))
        _merge(load_config_file(base_path, (*_children, path)), merged)
    _merge(content, merged)
    return merged


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        with PathManager.open(path) as file:
            content = yaml.load(file, Loader=_ConfigLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The config file {path!r} cannot be read: {reason}.") from error
    except OSError as error:
        raise UserError(f"The config file {path!r} cannot be opened: {error.strerror}.") from error
    if not isinstance(content or {}, dict):
        raise UserError(f"The config file {path!r} holds no mapping of keys to values.")
    return content or {}


def _merge(source: dict[str, Any], target: dict[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(value, target[key])
        else:
            target[key] = value


class _ConfigLoader(yaml.SafeLoader):
    """PyYAML's safe loader plus the arithmetic tag."""


def _construct_arithmetic(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    arguments = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
    try:
        (expression,) = arguments
        return evaluate_arithmetic(expression)
    except (ValueError, TypeError, SyntaxError, ArithmeticError) as error:
        raise yaml.constructor.ConstructorError(
            problem=f"{arguments!r} is not plain arithmetic ({error})",
            problem_mark=node.start_mark,
        ) from error


_ConfigLoader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _construct_arithmetic)


def evaluate_arithmetic(expression: str) -> Any:
    """The value of a Python expression made of numbers, operators, lists and comprehensions.

    >>> evaluate_arithmetic("[[x, x * 2**0.5] for x in [4, 9]]")
    [[4, 5.656854249492381], [9, 12.727922061357857]]

    Raises:
        ValueError: it holds anything else, such as a call or an attribute.
    """
    return _evaluate(ast.parse(expression.strip(), mode="eval").body, {})


def _evaluate(node: ast.expr, names: dict[str, Any]) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_evaluate(item, names) for item in items]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_number(operand, names))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _apply(op, _number(left, names), _number(right, names))
        case ast.ListComp(elt=item, generators=[generator]):
            return _comprehend(item, generator, names)
    raise ValueError(f"{ast.unparse(node)!r} is not allowed")


def _number(node: ast.expr, names: dict[str, Any]) -> float:
    value = _evaluate(node, names)
    if isinstance(value, list):  # a list times a huge number would fill the memory
        raise ValueError(f"{ast.unparse(node)!r} is not a number")
    return value


def _apply(op: ast.operator, left: float, right: float) -> float:
    if isinstance(op, ast.Pow) and max(abs(left), abs(right)) > _LARGEST_POWER:
        raise ValueError(f"{left} ** {right} is too large")
    return _OPERATORS[type(op)](left, right)


def _comprehend(item: ast.expr, generator: ast.comprehension, names: dict[str, Any]) -> list:
    if generator.ifs or not isinstance(generator.target, ast.Name):
        raise ValueError("a comprehension may only run over one name, without a condition")
    values = _evaluate(generator.iter, names)
    return [_evaluate(item, names | {generator.target.id: value}) for value in values]
