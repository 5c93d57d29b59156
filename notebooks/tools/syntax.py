"""Code as what it does: a docstring, a comment, the layout and a local's name change no hash.

The hash is of a dump of our own, which is the same on every Python from 3.10 on; `ast.dump` and
bytecode are not.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
NOT_DUMPED = {"ctx", "kind", "type_comment", "type_ignores"}
READS_NAMES = {"locals", "vars", "dir", "eval", "exec", "get_ipython"}
"""A function that uses one of these may read its locals by name; `!{command}` in a cell does."""
CAST = re.compile(
    r".*\.(to|type_as|float|half|double|bfloat16|promote_types|autocast)|_wide\w*", re.DOTALL
)
"""What is called to choose the type of a tensor's numbers; the last is this repository's own."""


def hash_of(value) -> str:
    """Sixteen hexadecimal digits of what JSON can hold, or of bytes."""
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return hashlib.sha256(text).hexdigest()[:16]


def is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Name)


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def does_nothing(node: ast.AST) -> bool:
    """True of a docstring, of any other string that stands by itself, and of ``pass``."""
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and is_text(node.value))


class Scope:
    """The names that a function, class or comprehension binds, and those that may be numbered."""

    def __init__(self, kind: str, node: ast.AST):
        self.kind, self.names, self.fixed, self.elsewhere = kind, set(), set(), set()
        self.numbers: dict[str, int] = {}
        if kind == "comprehension":
            for generator in node.generators:
                self.names |= {each.id for each in ast.walk(generator.target) if is_name(each)}
        else:
            if kind == "function":
                self.fixed |= {
                    each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)
                }
            for each in node.body if isinstance(node.body, list) else [node.body]:
                self.visit(each)
        inside = list(ast.walk(node))
        # An inner function that writes to an outer one's variable: left alone.
        inner = [name for each in inside if isinstance(each, ast.Nonlocal) for name in each.names]
        reads_names = any(is_name(each) and each.id in READS_NAMES for each in inside)
        if reads_names or kind == "class":
            self.fixed |= self.names
        self.fixed |= set(inner)
        self.fixed -= self.elsewhere
        self.names -= self.fixed | self.elsewhere

    def visit(self, node: ast.AST) -> None:
        """Gather what a node binds here; what it binds in scopes of its own is theirs."""
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            self.elsewhere |= set(node.names)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            self.fixed |= {(each.asname or each.name).split(".")[0] for each in node.names}
        elif is_name(node):
            if not isinstance(node.ctx, ast.Load):
                self.names.add(node.id)
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
            self.names |= {node.name} - {None}
        elif isinstance(node, ast.MatchMapping):
            self.names |= {node.rest} - {None}
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            # Named in messages and by pickle, so the name counts.
            self.fixed |= {node.name} if hasattr(node, "name") else set()
            outside = getattr(node, "decorator_list", []) + getattr(node, "bases", [])
            arguments = getattr(node, "args", None)
            if arguments:
                outside += [*arguments.defaults, *filter(None, arguments.kw_defaults)]
        elif isinstance(node, ast.comprehension):
            outside = [node.iter, *node.ifs]
        else:
            outside = ast.iter_child_nodes(node)
        for each in outside:
            self.visit(each)


class Dump:
    """Turns trees into nested lists. `casts` gathers those of them that choose a tensor's type.

    Args:
        number_locals: False gives all locals the same name, so that a new one changes no other.
        messages: False leaves out what is raised, which a run that came to its end did not show.
    """

    def __init__(self, number_locals: bool = True, messages: bool = True):
        self.number_locals, self.messages = number_locals, messages
        self.scopes: list[Scope] = []
        self.casts: list = []

    def name(self, name: str) -> str:
        """A number in place of a local's name."""
        for depth, scope in reversed(list(enumerate(self.scopes))):
            if scope.kind == "class" and depth < len(self.scopes) - 1:
                continue  # functions in a class do not see its names
            if name in scope.elsewhere and scope.kind == "function":
                # Global or nonlocal: left alone in every scope, see `Scope`.
                return name
            if name in scope.fixed:
                return name
            if name in scope.names:
                number = scope.numbers.setdefault(name, len(scope.numbers))
                return f"{depth} {number}" if self.number_locals else ""
        return name

    def __call__(self, value):
        if isinstance(value, list):
            return [self(each) for each in value if not does_nothing(each)]
        if not isinstance(value, ast.AST):
            return value
        special = getattr(self, type(value).__name__, None)
        if special is None and isinstance(value, COMPREHENSIONS):
            special = self.comprehension
        dumped = special(value) if special else [type(value).__name__, *self.fields(value)]
        if isinstance(value, ast.Call) and CAST.fullmatch(ast.unparse(value.func)):
            self.casts.append(dumped)
        return dumped

    def fields(self, node: ast.AST, leave_out: tuple[str, ...] = ()) -> list:
        return [
            [field, self(value)]
            for field, value in ast.iter_fields(node)
            if field not in NOT_DUMPED and field not in leave_out and value not in (None, [])
        ]

    def inside(self, kind: str, node: ast.AST, value):
        self.scopes.append(Scope(kind, node))
        dumped = self(value)
        self.scopes.pop()
        return dumped

    def FunctionDef(self, node):  # noqa: N802
        outside = self.fields(node, leave_out=("body",))
        return [type(node).__name__, outside, self.inside("function", node, node.body)]

    AsyncFunctionDef = Lambda = FunctionDef

    def ClassDef(self, node):  # noqa: N802
        outside = self.fields(node, leave_out=("body",))
        return ["ClassDef", outside, self.inside("class", node, node.body)]

    def comprehension(self, node):
        first = self(node.generators[0].iter)  # this one is evaluated outside
        self.scopes.append(Scope("comprehension", node))
        dumped = [type(node).__name__, first]
        for number, generator in enumerate(node.generators):
            done = ("iter",) if number == 0 else ()
            dumped.append(self.fields(generator, leave_out=done))
        dumped += self.fields(node, leave_out=("generators",))
        self.scopes.pop()
        return dumped

    def Name(self, node):  # noqa: N802
        return ["Name", self.name(node.id)]

    def ExceptHandler(self, node):  # noqa: N802
        name = node.name and self.name(node.name)
        return ["ExceptHandler", name, *self.fields(node, leave_out=("name",))]

    def MatchAs(self, node):  # noqa: N802
        name = node.name and self.name(node.name)
        return [type(node).__name__, name, *self.fields(node, leave_out=("name",))]

    MatchStar = MatchAs

    def MatchMapping(self, node):  # noqa: N802
        rest = node.rest and self.name(node.rest)
        return ["MatchMapping", rest, *self.fields(node, leave_out=("rest",))]

    def Raise(self, node):  # noqa: N802
        return ["Raise", *(self.fields(node) if self.messages else [])]

    def Constant(self, node):  # noqa: N802
        value = node.value
        return ["Constant", type(value).__name__, value if isinstance(value, str) else repr(value)]

    def JoinedStr(self, node):  # noqa: N802
        """Pythons differ in how many constants an f-string's text is cut into."""
        parts = []
        for each in map(self, node.values):
            if each[:2] == ["Constant", "str"] and parts and parts[-1][:2] == each[:2]:
                parts[-1] = [*each[:2], parts[-1][2] + each[2]]
            elif each != ["Constant", "str", ""]:
                parts.append(each)
        return ["JoinedStr", parts]


def names_of(node: ast.stmt) -> set[str]:
    """What a function, a class or an assignment defines."""
    targets = getattr(node, "targets", [getattr(node, "target", node)])
    names = {getattr(each, "id", getattr(each, "name", None)) for each in targets}
    return names - {None}


def definition(tree: ast.Module | ast.ClassDef, name: str) -> ast.stmt | None:
    """The function, class or assignment of that name in a module; of a class's, "Class.method"."""
    first, _, rest = name.partition(".")
    for node in tree.body:
        if first in names_of(node):
            return definition(node, rest) if rest else node
    return None
