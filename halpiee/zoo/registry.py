"""Which network a MODEL string means: a zoo, torchvision or timm name, or ``package.module:function``.

A file may name networks of the zoo, torchvision and timm, and nothing else that would be imported or called. A
``package.module:function`` is code of the user's choice, so the user names it: on the command line, or by saying that
the file is trusted. See docs/decisions/0021-files-name-no-code.md.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from halpiee.errors import HalpieeError, UsageError, said, unknown
from halpiee.zoo.networks import ZOO

LOADING = ("weights", "pretrained", "checkpoint", "scriptable", "exportable", "cache_dir", "features_only")
"""What arguments start with that load something, or return something else than the network."""

MOST = 1e5
"""Largest number that a builder is given from a file; ImageNet-21k has 21,843 classes."""


def names_code(name: str) -> bool:
    """Whether a name stands for a function of any module rather than a known network or data set."""
    return ":" in name


def check_named(name: str, *, where: str, instead: str) -> None:
    """Refuses a function that only a file names.

    ``where`` names the file and what it says, such as ``the plan half.json names the network``; ``instead`` is what to
    type if the name is the user's own.

    Raises:
        UsageError: it is a function; it was neither imported nor called.
    """
    if names_code(name):
        raise UsageError(
            f"{where} {name[:80]!r}, which is code to import and call; files may name networks of the zoo, "
            f"torchvision and timm only: if you know the file, {instead}"
        )


def check_arguments(name: str, arguments: Mapping[str, Any], *, where: str, instead: str) -> None:
    """Refuses arguments from a file that would make the builder of a known network load something.

    ``where`` names the file, such as ``the plan half.json``; ``instead`` is what to type if it is the user's own.

    Raises:
        UsageError: one loads something, or is neither a moderate number, a boolean, null nor a list of these.
    """
    for key, value in arguments.items():
        if key.startswith(LOADING) or not _plain(value):
            raise UsageError(
                f"{where} builds {name[:80]!r} with {key[:40]!r}: {str(value)[:60]!r}; from a file a network "
                f"takes numbers up to {MOST:,.0f}, true and false, and nothing that loads "
                f"something: if you know the file, {instead}"
            )


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 64 and all(_plain(item) and not isinstance(item, list | tuple) for item in value)
    if value is None or isinstance(value, bool):
        return True
    return isinstance(value, int | float) and -MOST <= value <= MOST  # NaN is not


def names(*, everything: bool = False) -> tuple[str, ...]:
    """Returns the names that ``build`` knows, sorted.

    With ``everything``, torchvision's names, too, and, where it is installed, timm's.
    """
    known = set(ZOO)
    if everything:
        from torchvision.models import list_models

        known.update(list_models())
        if importlib.util.find_spec("timm") is not None:
            known.update(importlib.import_module("timm").list_models())
    return tuple(sorted(known))


def build(name: str, **kwargs: Any) -> nn.Module:
    """Builds the network that a MODEL string names, with random weights.

    Args:
        name: a zoo name, a torchvision name (``torchvision/vgg16_bn`` where the zoo has the same name),
            a timm name, or ``package.module:function``.
        **kwargs: passed to the builder, for example ``num_classes`` and, for zoo networks, ``width``.

    Raises:
        UsageError: the name is unknown, or its builder refuses the arguments or returns no module.
    """
    builder = resolve(name)
    lacking = required(builder, kwargs)
    if lacking:
        raise UsageError(
            f"the model {name!r} was asked for, and to build it needs {', '.join(lacking)}; name a function that needs "
            "no arguments and returns the network"
        )
    given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
    try:
        model = builder(**kwargs)
    except HalpieeError:
        raise
    except Exception as error:
        said = " ".join([f"{type(error).__name__}:", *str(error).split()])[:300].removesuffix(":")
        answer = f"building it ended in {said}; give other arguments, or mend the function"
        if isinstance(error, TypeError):
            cure = "let it take them, or leave out the arguments that it does not take"
            answer = f"its builder answered: {error}; {cure}"
        raise UsageError(f"the model {name!r} was asked for with ({given}), and {answer}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"the model {name!r} must be a function that returns a torch.nn.Module, it returned "
            f"{type(model).__name__}; name a function that builds the network"
        )
    return model


def required(builder: Callable[..., nn.Module], kwargs: dict[str, Any]) -> list[str]:
    """Returns the arguments that a builder cannot do without and that nobody gave."""
    try:
        parameters = inspect.signature(builder).parameters.values()
    except (TypeError, ValueError):
        return []
    varying = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        p.name for p in parameters if p.default is p.empty and p.kind not in varying and p.name not in kwargs
    ]


def resolve(name: str) -> Callable[..., nn.Module]:
    """Returns the builder that a MODEL string names.

    Raises:
        UsageError: no such network; the message has the closest names.
    """
    if ":" in name:
        named: Callable[..., nn.Module] = named_code(name)
        return named
    if name in ZOO:
        return ZOO[name]
    from torchvision.models import get_model, list_models

    plain = name.removeprefix("torchvision/")
    if plain in list_models():
        return lambda **kwargs: get_model(plain, **torchvision_defaults(kwargs, plain))
    has_timm = importlib.util.find_spec("timm") is not None
    if has_timm:
        timm = importlib.import_module("timm")
        if timm.is_model(name.removeprefix("timm/")):
            return lambda **kwargs: timm.create_model(name.removeprefix("timm/"), **kwargs)
    known = names(everything=True)
    hint = unknown(name, known, f"for example {', '.join(ZOO)}", most=3)
    raise UsageError(
        f"the model {name!r} is not one of the {len(known)} names of the zoo, torchvision"
        f"{' and timm' if has_timm else ''}; {hint} Your own network is named package.module:function"
    )


def torchvision_defaults(kwargs: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns the arguments with no weights to download: neither the network's nor its backbone's."""
    defaults: dict[str, Any] = {"weights": None}
    from torchvision.models import detection, list_models, segmentation

    if name in list_models(module=detection) or name in list_models(module=segmentation):
        defaults["weights_backbone"] = None
    return defaults | kwargs


def named_code(name: str, what: str = "the model", refusal: type[HalpieeError] = UsageError) -> Any:
    """Returns what ``package.module:NAME`` names; the working directory is on the path.

    ``what`` it is begins the messages of the ``refusal``.
    """
    module_name, _, wanted = name.partition(":")
    if module_name.endswith(".py"):
        dotted = ".".join(Path(module_name).with_suffix("").parts)
        raise refusal(f"{what} {name} names a file; write {dotted}:{wanted}, from the folder that holds it")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does while it is imported
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        raise refusal(
            f"{what} {name} asks for the module {module_name!r}, which does not import "
            f"({kind}{said(error)}); run from the folder that holds it, or install the package "
            "it is in"
        ) from error
    found = getattr(module, wanted, None)
    if not callable(found):
        known = (name for name in dir(module) if not name.startswith("_"))
        hint = unknown(wanted, known, f"define it in {module_name}")
        raise refusal(f"{what} {name} asks for {wanted!r}, which {module_name} does not have; {hint}")
    return found
