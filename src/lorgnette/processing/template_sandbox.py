"""Compiles a chat template so that rendering it takes bounded time and memory, whatever it says.

A template is a program that comes with a checkpoint. jinja2's sandbox keeps it from files and processes, but nested
loops, `'a' * 10**10` or a macro that calls itself twice would never end or fill the memory. So every construct is on a
list of those that are metered, and each spends from one budget before it works:

    loops       a wrapped iterable: every item spends the size of the loop's body
    macros      every call spends the size of the template
    values      whatever builds or compares them spends their sizes as they print (`[a, a]` counts a twice)
    output      spends its length before it is joined

Constructs that are not on the lists raise an error when they are used. The rendered text is jinja2's own.
"""

import json
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, ValuesView
from functools import partial
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.ext import loopcontrols
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_SOURCE_LENGTH = 2**16
"""Characters of a template; Qwen3-VL's has 5,300."""
_MAX_INT_BITS = 64
_NODES = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Assign, nodes.AssignBlock, nodes.Macro,
    nodes.Break, nodes.Continue, nodes.Name, nodes.NSRef, nodes.Const, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair,
    nodes.Keyword, nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Call, nodes.Getattr, nodes.Getitem, nodes.Slice,
    nodes.Compare, nodes.Operand, nodes.Concat, nodes.BinExpr, nodes.UnaryExpr,
)  # fmt: skip
_FILTERS = frozenset({
    "abs", "capitalize", "count", "d", "default", "first", "float", "int", "items", "join", "last", "length", "list",
    "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "safe", "select", "selectattr",
    "string", "title", "trim", "unique", "upper",
})  # fmt: skip
_FAST_FILTERS = frozenset({"count", "d", "default", "first", "last", "length"})
"""They take the same time for a value of any size."""
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset({
        "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit",
        "islower", "isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix",
        "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
        "title", "upper",
    }),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    LoopContext: frozenset({"changed", "cycle"}),
}  # fmt: skip
_GROW, _ITERATE = "grow!", "iterate!"
"""Filters of the compiled template; no source can name them."""


class SandboxError(TemplateError):
    """The template uses what is not supported, or too much of it."""


class _Namespace(Namespace):
    """jinja2's, which prints its content: `measure` counts it as one."""

    def __repr__(self) -> str:
        return "<namespace>"


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment in which transformers renders chat templates (utils/chat_template_utils.py), with a budget.

    budget: what is left of it; the caller sets it before each rendering.
    """

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        # Without constant folding, which would work while it compiles.
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], optimized=False)
        self.budget, self._num_nodes = 0, 0
        self._plain = ImmutableSandboxedEnvironment()
        self.finalize = pass_context(lambda context, value: self.measure(value))
        self.concat = self._join_output  # type: ignore[method-assign]
        functions = {"range": safe_range, "dict": dict, "namespace": _Namespace, "raise_exception": _raise_exception}
        self.globals = dict(functions)
        self._functions = list(functions.values())
        self.filters = {name: _take_context(partial(self._call_filter, name)) for name in self.filters}
        self.filters |= {"tojson": self._meter(_to_json), _GROW: self._meter(lambda value: value)}
        self.filters[_ITERATE] = pass_context(lambda context, value, cost: self._iterate(value, cost))
        self.tests = {name: _take_context(partial(self._call_test, name)) for name in self.tests}

    def compile_source(self, source: str) -> Template:
        """Raises TemplateError for a source that is too long or broken, or uses other constructs. Any other exception
        is about the source too."""
        if len(source) > MAX_SOURCE_LENGTH:
            raise SandboxError(f"it has {len(source):,} characters, more than {MAX_SOURCE_LENGTH:,}")
        tree = self.parse(source)
        for node in tree.find_all(nodes.Node):
            if not isinstance(node, _NODES) or (isinstance(node, nodes.For) and node.recursive):
                raise SandboxError(f"it uses {type(node).__name__.lower()}, which is not supported")
        self._num_nodes = _count_nodes(tree)
        _AddMeters(self).visit(tree)
        return Template.from_code(self, self.compile(tree), self.make_globals(None))

    def spend(self, cost: int) -> None:
        self.budget -= cost
        if self.budget < 0:
            raise SandboxError("it takes too many steps, or makes too much text")

    def measure(self, value: Any) -> Any:
        """Spend the value's size as it prints; returns the value."""
        stack = [value]
        while stack:
            item = stack.pop()
            if isinstance(item, str):
                self.spend(1 + len(item))
            elif isinstance(item, list | tuple | set):
                self.spend(1 + len(item))
                stack += item
            elif isinstance(item, dict):
                self.spend(1 + 2 * len(item))
                stack += [*item.keys(), *item.values()]
            elif isinstance(item, int) and item.bit_length() > _MAX_INT_BITS:
                raise SandboxError("it makes too large a number")
            else:
                self.spend(1)
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.measure([left, right])
        if operator == "%" and isinstance(left, str):
            raise SandboxError("it formats a text with %, which is not supported")
        if operator == "*" and (lengths := [len(side) for side in (left, right) if hasattr(side, "__len__")]):
            self.spend(max(0, lengths[0] * next((side for side in (left, right) if isinstance(side, int)), 0)))
        if operator == "**" and isinstance(right, int) and right > _MAX_INT_BITS:
            raise SandboxError("it makes too large a number")
        return self.measure(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        # Names with an underscore are jinja2's own: the variables of loops around the call.
        self.measure([args, {name: value for name, value in kwargs.items() if not name.startswith("_")}])
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", type(function).__name__)
        if isinstance(function, Macro):
            self.spend(self._num_nodes)
        elif any(function is known for known in self._functions):
            pass
        elif any(isinstance(owner, type_) and name in names for type_, names in _METHODS.items()):
            self.measure(owner)
            if isinstance(owner, str):
                args = self._spend_growth(name, owner, args)
        else:
            raise SandboxError(f"it calls {name}, which is not supported")
        result: Any = super().call(context, function, *args, **kwargs)
        return self.measure(list(result) if isinstance(result, ItemsView | KeysView | ValuesView) else result)

    def _spend_growth(self, name: str, text: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Spend what `replace` and `join` may make of their arguments; returns these."""
        if name == "replace" and len(args) > 1:
            self.spend(text.count(str(args[0])) * len(str(args[1])))
        if name == "join" and args:
            items = list(self._iterate(args[0], 1))
            self.spend(len(text) * len(items))
            self.measure(items)
            return (items, *args[1:])
        return args

    def _iterate(self, values: Iterable[Any], cost: int) -> Iterator[Any]:
        for value in values:
            self.spend(cost)
            yield value

    def _join_output(self, parts: Iterable[str]) -> str:
        pieces = []
        for piece in parts:
            self.spend(1 + len(piece))
            pieces.append(piece)
        return "".join(pieces)

    def _meter(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as a filter or test, which the compiler does not call: it needs a context."""

        @pass_context
        def call(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
            return function(self.measure(value), *self.measure(args), **self.measure(kwargs))

        return call

    def _call_filter(self, name: str, context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        if name not in _FILTERS:
            raise SandboxError(f"it uses the filter {name}, which is not supported")
        self.measure([args, kwargs])
        if name not in _FAST_FILTERS:
            self.measure(value)
        if name == "replace":
            self._spend_growth("replace", str(value), (*args, *kwargs.values()))
        if name == "join":
            (value,) = self._spend_growth("join", str(next(iter([*args, *kwargs.values()]), "")), (value,))
        result = self._plain.call_filter(name, value, args, kwargs, context)
        if isinstance(result, Iterator):
            result = list(self._iterate(result, 1))
        return result if name in _FAST_FILTERS else self.measure(result)

    def _call_test(self, name: str, context: Context, value: Any, *args: Any, **kwargs: Any) -> bool:
        self.measure([args, kwargs])  # a comparison takes as long as the shorter side
        return bool(self._plain.call_test(name, value, args, kwargs, context))


def _take_context(function: Any) -> Any:
    """pass_context for what is no plain function. A function made for each name would be checked anew by every test."""
    return pass_context(function)


class _AddMeters(NodeTransformer):
    """Wraps what builds or compares values, and what loops run over, in the filters that spend."""

    def __init__(self, environment: TemplateSandbox) -> None:
        self._environment = environment

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        cost = _count_nodes(node) if isinstance(node, nodes.For) else 0
        self.generic_visit(node)
        match node:
            case nodes.For():
                node.iter = self._filter(node.iter, _ITERATE, nodes.Const(cost))
            case nodes.Compare():
                node.expr = self._filter(node.expr, _GROW)
                for operand in node.ops:
                    operand.expr = self._filter(operand.expr, _GROW)
            case nodes.Concat():
                node.nodes = [self._filter(part, _GROW) for part in node.nodes]
                return self._filter(node, _GROW)
            case nodes.List() | nodes.Dict() | nodes.Getitem(arg=nodes.Slice()):
                return self._filter(node, _GROW)
            case nodes.Tuple(ctx="load"):
                return self._filter(node, _GROW)
            case nodes.Getitem():
                node.arg = self._filter(node.arg, _GROW)
        return node

    def _filter(self, node: nodes.Node, name: str, *args: nodes.Expr) -> nodes.Filter:
        wrapped = nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)
        wrapped.set_environment(self._environment)
        return wrapped


def _count_nodes(node: nodes.Node) -> int:
    return 1 + sum(1 for _ in node.find_all(nodes.Node))


def _to_json(value: Any, *args: Any, **options: Any) -> str:
    if args or options.keys() - {"ensure_ascii"}:
        raise SandboxError("it uses the filter tojson with options, which is not supported")
    return json.dumps(value, ensure_ascii=False)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
