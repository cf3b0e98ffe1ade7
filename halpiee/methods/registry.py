"""Methods by name: a method is one file that registers itself with its paper, its units, its budgets and its options.

::

    @dataclass(frozen=True)
    class Options:
        at: int = halpiee.options.option(0, "Steps before the prune.")


    @halpiee.method("early", paper="…", units=("weights",), budgets=("global", "erk"), options=Options)
    class Early(Method): ...

What the files of this package register is read from their source, so that ``halpiee methods`` and the checks of a run's
settings load no torch; the method itself is imported when it is attached. Other packages offer theirs as entry points
of the group ``halpiee.methods`` (see ``latency.registry``).
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar

from halpiee.errors import UsageError
from halpiee.options import Option, own_options
from halpiee.ranges import ensure
from latency.registry import Registry, not_known

M = TypeVar("M", bound=Callable[..., Any])

DENSITIES = ("uniform", "erk", "global")
WEIGHTS = ("weights", "N:M")


@dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


@dataclass(frozen=True)
class Entry:
    """A method that is registered.

    Attributes:
        name: as ``halpiee train --method`` takes it.
        summary: what it does, in one line.
        paper: where it is from.
        units: what it removes: ``channels``, ``weights``, ``N:M``, ``filters``.
        budgets: what limits it: ``latency``, ``uniform``, ``erk``, ``global``, ``nm``; the first of the densities is
            the paper's.
        kind: whether it prunes during ``training``, ``once`` at a step, a dense training that has ended and ``rewind``s
            it, ``cut``s a whole network once, or is ``narrow`` from the start.
        module: where it is.
        python: what it is called there.
        make: the class or function; ``None`` until its module is imported.
        options: its options, a frozen dataclass.
        pretrained: whether it needs a trained network.
        home: module that registers it.
    """

    name: str
    summary: str
    paper: str
    units: tuple[str, ...]
    budgets: tuple[str, ...]
    kind: Literal["training", "once", "rewind", "narrow", "cut"]
    module: str
    python: str
    make: Callable[..., Any] | None = None
    options: type = NoOptions
    pretrained: bool = False
    home: str = ""

    @property
    def latency(self) -> bool:
        """Whether it trains to a latency."""
        return "latency" in self.budgets

    @property
    def sparsity(self) -> Literal["weights", "filters", "width"] | None:
        """What a sparsity is a share of; ``None``: it trains to no sparsity."""
        if self.kind == "narrow":
            return "width" if "parameters" in self.budgets else None
        if not any(budget in self.budgets for budget in (*DENSITIES, "nm")):
            return None
        return "weights" if "weights" in self.units else "filters"

    @property
    def distribution(self) -> Literal["erk", "global", "uniform"]:
        """How a sparsity is spread by default: as in the paper."""
        own: Any = next((budget for budget in self.budgets if budget in DENSITIES), "erk")
        return own  # type: ignore[no-any-return]

    @property
    def preset(self) -> dict[str, Any]:
        """Defaults that this name changes, where a method has several names."""
        usual = _defaults(getattr(self.make, "Options", NoOptions))
        return {
            n: value for n, value in _defaults(self.options).items() if n not in usual or usual[n] != value
        }

    def load(self) -> Entry:
        """Returns the entry with its class and options; imports the module."""
        if self.make is not None:
            return self
        import_module(self.home)
        return METHODS[self.name]

    def as_dict(self) -> dict[str, Any]:
        """Returns what ``halpiee methods --json`` shows of it."""
        return {
            "name": self.name,
            "summary": self.summary,
            "reference": self.paper,
            "units": ", ".join(self.units),
            "budgets": ", ".join(self.budgets),
            "python": self.python,
            "module": self.module,
            "latency": self.latency,
            "sparsity": self.sparsity,
            "distribution": self.distribution,
            "once": self.kind == "once",
            "pretrained": self.pretrained,
            "rewinds": self.kind == "rewind",
        }


class _Methods(Registry[Entry]):
    """The methods of this package are known from their source; their modules are imported one by one, when used."""

    def _search(self) -> None:
        if not self._searched:
            self._searched = True
            for file in sorted(Path(__file__).parent.glob("*.py")):
                for entry in declared(file.read_text(encoding="utf-8"), f"{__package__}.{file.stem}"):
                    if entry.name not in self._parts:
                        self._parts[entry.name] = entry
                        self._origins[entry.name] = f"{entry.module}.{entry.python}"


METHODS: Registry[Entry] = _Methods("method", group="halpiee.methods", home="halpiee.methods")
"""Name → method."""


def method(
    name: str,
    *,
    paper: str,
    units: tuple[str, ...] = WEIGHTS,
    budgets: tuple[str, ...] = DENSITIES,
    kind: Literal["training", "once", "rewind", "narrow", "cut"] = "training",
    options: Any = NoOptions,
    pretrained: bool = False,
    summary: str = "",
) -> Callable[[M], M]:
    """Registers a method: a subclass of ``halpiee.methods.method.Method``.

    ``name`` is in lower case, words joined by ``-``; for ``paper``, ``units``, ``budgets``, ``kind`` and ``pretrained``
    see ``Entry``. ``options`` is a frozen dataclass whose fields are the class's keyword arguments (see
    ``halpiee.options``), or an instance of one, whose values are the defaults under this name. The ``summary`` is by
    default the first line of the docstring.

    Raises:
        UsageError: a name that another method has, or options that are no frozen dataclass with defaults.
    """

    def register(made: M) -> M:
        taken = _options(name, options)
        python: str = made.__qualname__
        found = Entry(
            name,
            summary or _summary(inspect.getdoc(made)),
            paper,
            tuple(units),
            tuple(budgets),
            kind,
            made.__module__,
            python,
            made,
            taken,
            pretrained,
            made.__module__,
        )
        METHODS.add(name, found, made)
        if isinstance(made, type):
            made.Options = taken  # type: ignore[attr-defined]
            made.__signature__ = _signature(made, taken)  # type: ignore[attr-defined]
        return made

    return register


def options_of(owner: str, kind: type, given: Mapping[str, Any]) -> Any:
    """Returns the options of the method ``owner``, a dataclass; what is ``None`` has its default.

    Raises:
        UsageError: a name that is no option, or a value of another type or choice.
    """
    known = {option.name: option for option in own_options(kind)}
    for name, value in given.items():
        if name not in known:
            raise not_known(f"option of {owner}", name, list(known) or ["none"])
        if value is not None:
            _check_value(owner, known[name], value)
    return kind(**{name: value for name, value in given.items() if value is not None})


def declared(source: str, module: str) -> Iterator[Entry]:
    """Yields what a file registers, read from its source."""
    body = ast.parse(source).body
    homes = {n.name: i.module for i in body if isinstance(i, ast.ImportFrom) for n in i.names}
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            for mark in node.decorator_list:
                yield from _read(mark, node.name, module, module, ast.get_docstring(node))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and len(node.value.args) == 1:
            made = node.value.args[0]  # method(…)(function of a package below)
            if isinstance(made, ast.Name):
                yield from _read(node.value.func, made.id, homes.get(made.id) or module, module, None)


def _read(mark: ast.expr, python: str, module: str, home: str, doc: str | None) -> Iterator[Entry]:
    """Yields the entry of ``method(…)``; nothing of another expression."""
    if not (isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "method"):
        return
    plain = ("paper", "units", "budgets", "kind", "summary", "pretrained")
    found = {k.arg: ast.literal_eval(k.value) for k in mark.keywords if k.arg in plain}
    yield Entry(
        name=ast.literal_eval(mark.args[0]),
        summary=found.get("summary") or _summary(doc),
        paper=found["paper"],
        units=found.get("units", WEIGHTS),
        budgets=found.get("budgets", DENSITIES),
        kind=found.get("kind", "training"),
        module=module,
        python=python,
        pretrained=found.get("pretrained", False),
        home=home,
    )


def _summary(doc: str | None) -> str:
    """Returns the first line of a docstring for a list: without the paper, the capital and the full stop."""
    line = (doc or "").strip().partition("\n")[0].rstrip(".").replace("``", "")
    line = line.partition(" (")[0] if line.endswith(")") else line
    first = line.partition(" ")[0]
    return line if first[1:] != first[1:].lower() else line[:1].lower() + line[1:]


def _options(name: str, options: Any) -> type:
    """Returns the dataclass of a method's options: of an instance one with its values as defaults."""
    parameters = getattr(options, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise UsageError(f"the options of the method {name!r} are {options!r}; give a frozen dataclass")
    if not isinstance(options, type):
        kind: type = type(options)
        own = [
            (f.name, f.type, field(default=getattr(options, f.name), metadata=f.metadata))
            for f in fields(options)
            if getattr(options, f.name) != f.default
        ]
        made = make_dataclass(kind.__name__, own, bases=(kind,), frozen=True)
        made.__module__ = kind.__module__  # where its types are named; Python 3.12 sets this module's
        return made
    open_ = [f.name for f in fields(options) if f.default is MISSING and f.default_factory is MISSING]
    if open_:
        raise UsageError(f"the option {open_[0]!r} of the method {name!r} has no default; give it one")
    return options


def _defaults(options: type) -> dict[str, Any]:
    return {f.name: getattr(options(), f.name) for f in fields(options)}


WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def _check_value(owner: str, option: Option, value: Any) -> None:
    """Refuses a value that none of an option's plain types takes; an option with other types takes anything."""
    kinds = option.kinds - {Literal, type(None)}
    if kinds - WORDS.keys():
        return
    number = hasattr(value, "__index__") and not isinstance(value, bool)
    fits = (
        (isinstance(value, str | int) and value in option.choices)
        or any(kind in kinds and isinstance(value, kind) for kind in (bool, str))
        or (int in kinds and number)
        or (float in kinds and (number or isinstance(value, float)))
    )
    if not fits:
        wanted = [*map(repr, option.choices), *(words for kind, words in WORDS.items() if kind in kinds)]
        raise UsageError(f"{owner} was asked for {option.name}={value!r}; it takes {' or '.join(wanted)}")
    ensure(owner, option.name, value, option.hint)


def _signature(kind: type, options: type) -> inspect.Signature:
    """Returns the signature of a method's class: what all methods take, and its options for ``**arguments``."""
    whole = inspect.signature(kind.__init__)  # type: ignore[misc]
    taken = [p for p in list(whole.parameters.values())[1:] if p.kind is not inspect.Parameter.VAR_KEYWORD]
    taken += getattr(kind, "shared", ())
    names = {p.name for p in taken}
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [
        inspect.Parameter(f.name, keyword, default=f.default, annotation=f.type)
        for f in fields(options)
        if f.name not in names
    ]
    return whole.replace(parameters=[*taken, *own])
